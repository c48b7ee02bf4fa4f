//! Layers as they come, honest and hostile, unpacked into directories of their own.

mod common;

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{Tar, sh};
use mycelium_image::unpack::{Limits, UnpackError, decompress, unpack};

fn unpack_over(tar: &[u8], lowers: &[PathBuf]) -> (tempfile::TempDir, Result<u64, UnpackError>) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let result = unpack(tar, &root, lowers, &Limits::default());
    (folder, result)
}

fn refusal(tar: &[u8]) -> String {
    let (folder, result) = unpack_over(tar, &[]);
    assert!(!Path::new("/tmp/mycelium-escape").exists());
    assert!(fs::read_dir(folder.path()).unwrap().count() == 1, "something was written beside the root");
    result.expect_err("the tar was taken").to_string()
}

#[test]
fn every_kind_of_entry_keeps_its_attributes() {
    let tar = Tar::new()
        .directory("./", 0o711, 0)
        .directory("etc/", 0o750, 5)
        .file("etc/suid", 0o4755, 1000, b"program")
        .symlink("etc/link", "/anywhere/at/all")
        .hard_link("etc/again", "etc/suid")
        .node("dev/null", tar::EntryType::Char, 1, 3)
        .node("dev/pipe", tar::EntryType::Fifo, 0, 0)
        .file("/absolute/is/relative", 0o600, 0, b"x")
        .extended("etc/capable", "SCHILY.xattr.user.note", b"kept")
        .extended("etc/opaque", "SCHILY.xattr.trusted.overlay.redirect", b"/etc")
        .build();
    let (folder, result) = unpack_over(&tar, &[]);
    assert_eq!(result.unwrap(), 8 + 2);
    let root = folder.path().join("root");
    let of = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    assert_eq!(of("").permissions().mode() & 0o7777, 0o711);
    assert_eq!((of("etc").uid(), of("etc").mtime()), (5, 1_000_000));
    assert_eq!((of("etc/suid").permissions().mode() & 0o7777, of("etc/suid").uid()), (0o4755, 1000));
    assert_eq!((of("etc/suid").ino(), of("etc/suid").nlink()), (of("etc/again").ino(), 2));
    assert_eq!(fs::read_link(root.join("etc/link")).unwrap(), Path::new("/anywhere/at/all"));
    assert!(of("dev/null").file_type().is_char_device() && of("dev/pipe").file_type().is_fifo());
    assert_eq!(of("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert!(of("absolute/is/relative").is_file());
    let attribute = |path: &str, name: &str| {
        let mut value = [0; 64];
        rustix::fs::getxattr(root.join(path), CString::new(name).unwrap(), &mut value[..])
            .map(|len| value[..len].to_vec())
    };
    assert_eq!(attribute("etc/capable", "user.note").unwrap(), b"kept");
    assert!(attribute("etc/opaque", "trusted.overlay.redirect").is_err());
}

#[test]
fn hostile_names_and_links_are_refused() {
    let dots = Tar::new().raw_file("../mycelium-escape", b"x").build();
    assert!(refusal(&dots).contains("'..'"));
    let dots_inside = Tar::new().raw_file("a/../../mycelium-escape", b"x").build();
    assert!(refusal(&dots_inside).contains("'..'"));
    let through_link = Tar::new().symlink("out", "/tmp").raw_file("out/mycelium-escape", b"x").build();
    assert!(refusal(&through_link).contains("not a directory"));
    let through_file = Tar::new().raw_file("out", b"").raw_file("out/x", b"x").build();
    assert!(refusal(&through_file).contains("not a directory"));
    let link_out = Tar::new().symlink("out", "/etc").hard_link("stolen", "out/passwd").build();
    assert!(refusal(&link_out).contains("not a file of the layer"));
    let link_dots = Tar::new().hard_link("stolen", "../../../../etc/passwd").build();
    assert!(refusal(&link_dots).contains("'..'"));
    let link_nowhere = Tar::new().hard_link("a", "b").build();
    assert!(refusal(&link_nowhere).contains("does not exist"));
    let fake_whiteout = Tar::new().node("x", tar::EntryType::Char, 0, 0).build();
    assert!(refusal(&fake_whiteout).contains("deleted file"));
    let whiteout_dots = Tar::new().raw_file("a/.wh...", b"").build();
    assert!(refusal(&whiteout_dots).contains("whiteout"));
}

#[test]
fn a_file_takes_the_place_of_a_link_without_following_it() {
    let target = tempfile::NamedTempFile::new().unwrap();
    let tar = Tar::new().symlink("a", target.path().to_str().unwrap()).raw_file("a", b"new").build();
    let (folder, result) = unpack_over(&tar, &[]);
    result.unwrap();
    assert_eq!(fs::read(folder.path().join("root/a")).unwrap(), b"new");
    assert_eq!(fs::read(target.path()).unwrap(), b"");
}

#[test]
fn damage_and_excess_are_told_apart() {
    let whole = Tar::new().raw_file("a", &[7; 100_000]).build();
    let (_folder, cut) = unpack_over(&whole[..50_000], &[]);
    assert!(matches!(cut, Err(UnpackError::Read(_))), "{cut:?}");

    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { bytes: 99_999, entries: 10 };
    let result = unpack(&whole[..], folder.path(), &[], &limits);
    assert!(matches!(result, Err(UnpackError::TooLarge { unit: "bytes", .. })), "{result:?}");

    // A name of 64 MiB would have to be held in memory.
    let bomb = Tar::new().long_name(64 << 20).build();
    let (_folder, result) = unpack_over(&bomb, &[]);
    assert!(matches!(result, Err(UnpackError::Read(_))), "{result:?}");
}

#[test]
fn compression_is_found_out_by_content() {
    let tar = Tar::new().raw_file("a", b"x").build();
    for form in [tar.clone(), common::gzip(&tar), zstd::encode_all(&tar[..], 3).unwrap()] {
        let folder = tempfile::tempdir().unwrap();
        unpack(decompress(&form[..]).unwrap(), folder.path(), &[], &Limits::default()).unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"x");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever happens to an archive's bytes: no panic, and nothing outside the layer.
    #[test]
    fn damaged_archives_stay_inside(
        damage in proptest::collection::vec((0usize..6000, proptest::prelude::any::<u8>()), 1..20),
        cut in 0usize..8000,
    ) {
        let mut tar = Tar::new()
            .directory("d/", 0o755, 0)
            .symlink("d/up", "../..")
            .file("d/file", 0o644, 0, b"content")
            .hard_link("d/link", "d/file")
            .extended("x", "SCHILY.xattr.user.a", b"b")
            .build();
        for (at, byte) in damage {
            let at = at % tar.len();
            tar[at] = byte;
        }
        tar.truncate(cut.max(512));
        let (folder, _) = unpack_over(&tar, &[]);
        proptest::prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

/// The kernel is the judge: what overlayfs shows must be what the layers mean.
#[test]
fn layers_stack_as_they_should() {
    let lower = Tar::new()
        .directory("keep/", 0o700, 7)
        .file("keep/deleted", 0o644, 0, b"1")
        .file("keep/kept", 0o644, 0, b"2")
        .file("hidden/old", 0o644, 0, b"3")
        .file("replaced/old", 0o644, 0, b"4")
        .file("base", 0o640, 3, b"5")
        .build();
    let upper = Tar::new()
        .file("keep/.wh.deleted", 0o644, 0, b"")
        .file("hidden/.wh..wh..opq", 0o644, 0, b"")
        .file("hidden/new", 0o644, 0, b"6")
        .file(".wh.replaced", 0o644, 0, b"")
        .directory("replaced/", 0o755, 0)
        .file("replaced/new", 0o644, 0, b"7")
        .hard_link("linked", "base")
        .build();
    let (below, result) = unpack_over(&lower, &[]);
    result.unwrap();
    let (above, result) = unpack_over(&upper, &[below.path().join("root")]);
    result.unwrap();
    let point = tempfile::tempdir().unwrap();
    let shown = sh(&format!(
        "unshare --mount sh -ec 'mount -t overlay overlay -o lowerdir={}:{} {point}; cd {point}; \
         find . -type f | sort | tr \"\\n\" \" \"; stat -c %a:%u keep linked; cat linked'",
        above.path().join("root").display(),
        below.path().join("root").display(),
        point = point.path().display(),
    ));
    assert_eq!(shown, "./base ./hidden/new ./keep/kept ./linked ./replaced/new 700:7\n640:3\n5");
}
