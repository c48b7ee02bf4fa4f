//! The store: import, load, names, removal, pruning, several users at once.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::layout::Layout;
use common::{Tar, gzip, sh};
use mycelium_image::{Error, ImageConfig, Images, ImportOptions, PrunePolicy};

fn store() -> (tempfile::TempDir, Images) {
    let folder = tempfile::tempdir().unwrap();
    let images = Images::open(folder.path().join("images")).unwrap();
    (folder, images)
}

fn one_file(name: &str, data: &[u8]) -> Vec<u8> {
    Tar::new().raw_file(name, data).build()
}

fn read(images: &Images, name: &str, path: &str) -> Option<Vec<u8>> {
    let image = images.resolve(name).unwrap().unwrap();
    images.lowerdirs(&image).unwrap().iter().find_map(|layer| fs::read(layer.join(path)).ok())
}

/// What lies in the store's folders; temporary files count.
fn entries(images: &Images, folder: &str) -> usize {
    fs::read_dir(images.dir().join(folder)).unwrap().count()
}

#[test]
fn an_imported_image_is_found_by_every_spelling_of_its_name() {
    let (_folder, images) = store();
    let options = ImportOptions {
        config: ImageConfig { entrypoint: vec!["/app".into()], user: "1000:0".into(), ..ImageConfig::default() },
        created: None,
    };
    let tar = gzip(&one_file("etc/motd", b"hello"));
    let image = images.import(&tar[..], "symphainy-platform:latest", options.clone()).unwrap();
    assert!(image.loaded_by_hand && image.size == 5);
    for name in [
        "symphainy-platform",
        "docker.io/library/symphainy-platform:latest",
        image.digest.to_string().as_str(),
        &image.id.to_string(),
        &image.id.hex()[..12],
    ] {
        assert_eq!(images.resolve(name).unwrap().as_ref(), Some(&image), "{name}");
    }
    assert_eq!(images.resolve("symphainy-platform:1").unwrap(), None);
    assert!(matches!(images.resolve("No Name"), Err(Error::Reference(_))));
    assert_eq!(read(&images, "symphainy-platform", "etc/motd").unwrap(), b"hello");
    // The same content is the same image; another process sees it.
    let other = Images::open(images.dir()).unwrap();
    assert_eq!(other.import(&tar[..], "symphainy-platform", options).unwrap().digest, image.digest);
    assert_eq!(images.list().unwrap().len(), 1);
}

#[test]
fn a_program_alone_makes_an_image() {
    let (folder, images) = store();
    let program = folder.path().join("program");
    fs::write(&program, b"\x7fELF").unwrap();
    sh(&format!("chmod 755 {}", program.display()));
    let files = [(PathBuf::from("/opt/bin/app"), program)];
    images.import_files(&files, "app", ImportOptions::default()).unwrap();
    let image = images.resolve("app").unwrap().unwrap();
    let layer = images.lowerdirs(&image).unwrap().remove(0);
    assert_eq!(
        sh(&format!("cd {} && find . -mindepth 1 -printf '%p %m '", layer.display())),
        "./opt 755 ./opt/bin 755 ./opt/bin/app 755 "
    );
    let missing = [(PathBuf::from("/x"), folder.path().join("missing"))];
    assert!(images.import_files(&missing, "app", ImportOptions::default()).is_err());
    assert!(matches!(
        images.import_files(&[], &format!("a@{}", image.digest), ImportOptions::default()),
        Err(Error::Document { .. })
    ));
}

#[test]
fn a_failed_import_leaves_nothing() {
    let (_folder, images) = store();
    let tar = one_file("a", &[1; 100_000]);
    assert!(matches!(images.import(&tar[..70_000], "a", ImportOptions::default()), Err(Error::Unpack { .. })));
    assert_eq!((entries(&images, "layers"), entries(&images, "ingest"), entries(&images, "blobs/sha256")), (0, 0, 0));
}

#[test]
fn archives_of_every_form_load_to_the_same_layers() {
    let (folder, images) = store();
    let mut layout = Layout::new();
    let layers = [one_file("a", b"1"), one_file("b", b"2")];
    let image = layout.image(&layers, "amd64");
    layout.tag(image, "example.com/team/app:v1");
    let archive = |kind: &str, file: &str| {
        let path = folder.path().join(file);
        sh(&format!(
            "skopeo --insecure-policy --tmpdir {} copy -q oci:{}:example.com/team/app:v1 {kind}:{}:example.com/team/{file}:v1",
            folder.path().display(),
            layout.path().display(),
            path.display(),
        ));
        path
    };
    let loaded = images.load(layout.path(), None).unwrap();
    assert_eq!(loaded[0].tags, ["example.com/team/app:v1"]);
    assert_eq!(loaded[0].config.entrypoint, ["/run"]);
    assert_eq!((loaded[0].config.user.as_str(), loaded[0].config.working_dir.as_str()), ("7:8", "/srv"));
    let docker = archive("docker-archive", "docker.tar");
    let packed = folder.path().join("docker.tar.gz");
    fs::write(&packed, gzip(&fs::read(&docker).unwrap())).unwrap();
    let oci = archive("oci-archive", "oci.tar");
    for path in [&docker, &packed, &oci] {
        let again = images.load(path, None).unwrap();
        assert_eq!(again[0].layers, loaded[0].layers, "{}", path.display());
    }
    let piped = images.load_reader(fs::File::open(&packed).unwrap(), Some("piped")).unwrap();
    assert_eq!(piped[0].layers, loaded[0].layers);
    // Two layers and their descriptions, however often they came.
    assert_eq!(entries(&images, "layers"), 4);
    assert_eq!(read(&images, "piped", "a").unwrap(), b"1");
    assert_eq!(read(&images, "example.com/team/docker.tar:v1", "b").unwrap(), b"2");
}

#[test]
fn archives_that_are_none_are_refused_with_the_reason() {
    let (folder, images) = store();
    let message = |path: &Path| images.load(path, None).unwrap_err().to_string();
    let file = folder.path().join("x.tar");
    fs::write(&file, b"no tar at all").unwrap();
    assert!(message(&file).contains("not an image archive"), "{}", message(&file));
    fs::write(&file, one_file("index.html", b"x")).unwrap();
    assert!(message(&file).contains("neither index.json nor manifest.json"));
    fs::write(&file, one_file("manifest.json", br#"[{"Config":"../../etc/passwd","RepoTags":["a"],"Layers":[]}]"#))
        .unwrap();
    assert!(message(&file).contains("refers to"), "{}", message(&file));
    assert!(message(Path::new("/nonexistent")).contains("cannot open /nonexistent"));

    let mut layout = Layout::new();
    let image = layout.image(&[one_file("a", b"1")], "s390x");
    layout.tag(image, "a:foreign");
    assert!(message(layout.path()).contains("s390x"));
    let mut layout = Layout::new();
    let image = layout.image(&[one_file("a", b"1")], "amd64");
    let blob = layout.path().join("blobs/sha256").join(image["digest"].as_str().unwrap().trim_start_matches("sha256:"));
    layout.tag(image, "a:changed");
    fs::write(blob, b"{}").unwrap();
    assert!(message(layout.path()).contains("corrupt"));
    let mut layout = Layout::new();
    let image = layout.image(&[one_file("a", b"1")], "amd64");
    layout.tag(image, "latest");
    assert!(message(layout.path()).contains("--name"));
}

#[test]
fn layers_go_with_the_last_image_that_has_them() {
    let (_folder, images) = store();
    let mut layout = Layout::new();
    let base = one_file("base", b"base");
    for (name, own) in [("a:1", b"1"), ("b:1", b"2")] {
        let image = layout.image(&[base.clone(), one_file("own", own)], "amd64");
        layout.tag(image, name);
    }
    images.load(layout.path(), None).unwrap();
    assert_eq!(entries(&images, "layers"), 2 * 3);
    images.tag("a:1", "a:2").unwrap();
    assert_eq!(images.remove("a:2", false).unwrap(), 0);
    assert_eq!(images.remove("a:1", false).unwrap(), 1);
    assert_eq!(entries(&images, "layers"), 2 * 2);
    assert_eq!(read(&images, "b:1", "base").unwrap(), b"base");
    assert!(matches!(images.remove("a:1", false), Err(Error::NotFound { .. })));
    assert_eq!(images.remove("b:1", false).unwrap(), 5);
    assert_eq!((entries(&images, "layers"), entries(&images, "blobs/sha256")), (0, 0));
}

#[test]
fn what_is_mounted_stays() {
    let (_folder, images) = store();
    for name in ["used", "unused", "wanted"] {
        images.import(&one_file("name", name.as_bytes())[..], name, ImportOptions::default()).unwrap();
    }
    let image = images.resolve("used").unwrap().unwrap();
    let layer = images.lowerdirs(&image).unwrap().remove(0);
    let point = tempfile::tempdir().unwrap();
    let script = "mount -t overlay overlay -o lowerdir=$1:$2 $2; echo; read end";
    let mut container = mycelium_linux::process::command("unshare")
        .args(["--mount", "sh", "-ec", script, "sh", layer.to_str().unwrap(), point.path().to_str().unwrap()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(container.stdout.as_mut().unwrap(), &mut [0]).unwrap();

    assert!(matches!(images.remove("used", false), Err(Error::InUse { .. })));
    let pruned = images.prune(&BTreeSet::from(["wanted".to_owned()]), PrunePolicy::Unused).unwrap();
    assert_eq!(pruned.images, ["docker.io/library/unused:latest"]);
    images.remove("used", true).unwrap();
    assert!(layer.join("name").exists(), "the container's files are gone");

    drop(container.stdin.take());
    container.wait().unwrap();
    assert_eq!(images.prune(&BTreeSet::new(), PrunePolicy::Dangling).unwrap().bytes, 4);
    assert!(!layer.exists() && images.resolve("wanted").unwrap().is_some());
}

#[test]
fn disk_pressure_spares_what_cannot_come_back() {
    let (_folder, images) = store();
    images.import(&one_file("a", b"1")[..], "by-hand", ImportOptions::default()).unwrap();
    let pressure = PrunePolicy::DiskPressure { high_percent: 0, low_percent: 0, min_age: Duration::ZERO };
    assert!(images.prune(&BTreeSet::new(), pressure).unwrap().images.is_empty());
    assert!((0.0..=100.0).contains(&images.disk_percent().unwrap()));
}

#[test]
fn many_at_once_lose_nothing() {
    let (_folder, images) = store();
    std::thread::scope(|scope| {
        for worker in 0..8 {
            // A store of its own each, as separate processes have.
            let images = Images::open(images.dir()).unwrap();
            scope.spawn(move || {
                for round in 0..5 {
                    let tar = one_file("a", format!("{round}").as_bytes());
                    images.import(&tar[..], &format!("w{worker}:{round}"), ImportOptions::default()).unwrap();
                    if round % 2 == 1 {
                        images.remove(&format!("w{worker}:{round}"), false).unwrap();
                    }
                }
            });
        }
    });
    let tags: usize = images.list().unwrap().iter().map(|image| image.tags.len()).sum();
    assert_eq!(tags, 8 * 3);
    for image in images.list().unwrap() {
        assert!(images.lowerdirs(&image).unwrap()[0].join("a").exists());
    }
    images.prune(&BTreeSet::new(), PrunePolicy::Unused).unwrap();
    assert_eq!((entries(&images, "layers"), entries(&images, "ingest")), (0, 0));
}

#[test]
fn a_damaged_index_is_told_and_kept() {
    let (_folder, images) = store();
    images.import(&one_file("a", b"1")[..], "a", ImportOptions::default()).unwrap();
    let index = images.dir().join("index.json");
    fs::write(&index, &fs::read(&index).unwrap()[..40]).unwrap();
    let error = Images::open(images.dir()).unwrap_err();
    assert!(matches!(error, Error::Index { .. }) && index.exists(), "{error}");
}
