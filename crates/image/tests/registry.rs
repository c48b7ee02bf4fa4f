//! Pulls from a real registry on loopback: with and without TLS and login, broken connections, damaged content.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::Tar;
use common::layout::{Layout, PASSWORD, Registry, USER};
use mycelium_image::digest::Digest;
use mycelium_image::{Images, Progress, PullErrorKind, PullOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

fn store() -> (tempfile::TempDir, Images) {
    let folder = tempfile::tempdir().unwrap();
    let images = Images::open(folder.path().join("images")).unwrap();
    (folder, images)
}

fn layers() -> Vec<Vec<u8>> {
    vec![Tar::new().raw_file("a", b"below").build(), Tar::new().raw_file("a", b"above").build()]
}

/// A layout with one image of `layers`, tagged `t`.
fn layout(layers: &[Vec<u8>]) -> Layout {
    let mut layout = Layout::new();
    let image = layout.image(layers, "amd64");
    layout.tag(image, "t");
    layout
}

fn top_file(images: &Images, name: &str) -> Vec<u8> {
    let image = images.resolve(name).unwrap().unwrap();
    fs::read(images.lowerdirs(&image).unwrap()[0].join("a")).unwrap()
}

#[tokio::test]
async fn every_format_is_pulled_and_layers_are_shared() {
    let registry = Registry::start(&[]);
    let (_folder, images) = store();
    let layout = layout(&layers());
    let mut seen = Vec::new();
    for (name, options) in [
        ("oci", ""),
        ("docker", "--format v2s2"),
        ("zstd", "--dest-compress-format zstd"),
        ("plain", "--dest-decompress"),
    ] {
        registry.push(&layout, "t", &format!("team/{name}:v1"), options);
        let reference = format!("{}/team/{name}:v1", registry.address);
        let image = images.pull(&reference, PullOptions::default()).await.unwrap();
        assert!(!image.loaded_by_hand && image.config.env == ["A=b"]);
        assert_eq!(top_file(&images, &reference), b"above");
        // By digest, from the store and from the registry.
        let by_digest = format!("{}/team/{name}@{}", registry.address, image.digest);
        assert_eq!(images.resolve(&by_digest).unwrap().as_ref(), Some(&image));
        assert_eq!(images.pull(&by_digest, PullOptions::default()).await.unwrap().digest, image.digest);
        seen.push(image.layers);
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fs::read_dir(images.dir().join("layers")).unwrap().count(), 4);
    assert_eq!(fs::read_dir(images.dir().join("ingest")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_index_gives_the_image_for_this_machine() {
    let registry = Registry::start(&[]);
    let (_folder, images) = store();
    let mut layout = Layout::new();
    let foreign = layout.image(&layers()[..1], "s390x");
    let ours = layout.image(&layers(), "amd64");
    let (index, only_foreign) = (layout.index(&[foreign.clone(), ours]), layout.index(&[foreign]));
    let index_digest = index["digest"].as_str().unwrap().to_owned();
    layout.tag(index, "t");
    layout.tag(only_foreign, "foreign");
    registry.push(&layout, "t", "multi:1", "--all");
    registry.push(&layout, "foreign", "multi:foreign", "--all");
    let reference = format!("{}/multi:1", registry.address);
    let image = images.pull(&reference, PullOptions::default()).await.unwrap();
    assert_eq!(top_file(&images, &reference), b"above");
    let by_index = format!("{}/multi@{index_digest}", registry.address);
    assert_eq!(images.resolve(&by_index).unwrap().unwrap().digest, image.digest);
    let error = images.pull(&format!("{}/multi:foreign", registry.address), PullOptions::default()).await.unwrap_err();
    assert!(error.kind == PullErrorKind::Invalid && error.to_string().contains("linux/s390x"), "{error}");
}

#[tokio::test]
async fn what_is_wrong_is_told_apart() {
    let registry = Registry::start(&[]);
    let (_folder, images) = store();
    registry.push(&layout(&layers()), "t", "here:1", "");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (name, kind, part) in [
        (format!("{}/here:2", registry.address), PullErrorKind::NotFound, "does not have it"),
        (format!("{}/gone:1", registry.address), PullErrorKind::NotFound, "mycelium image load"),
        (format!("{free}/x"), PullErrorKind::Unreachable, "cannot be reached (Connection refused"),
        ("nowhere.invalid/x".to_owned(), PullErrorKind::Unreachable, "nowhere.invalid"),
        ("No/Name".to_owned(), PullErrorKind::InvalidName, "invalid image name"),
    ] {
        let error = images.pull(&name, PullOptions::default()).await.unwrap_err();
        assert!(error.kind == kind && error.to_string().contains(part), "{kind:?}: {error}");
        assert_eq!(error.allows_local(), kind != PullErrorKind::InvalidName);
    }
    assert!(images.list().unwrap().is_empty());
}

#[tokio::test]
async fn a_login_is_taken_from_the_configuration() {
    let registry = Registry::with_login();
    let (_folder, images) = store();
    registry.push(&layout(&layers()), "t", "private:1", &format!("--dest-creds '{USER}:{PASSWORD}'"));
    let reference = format!("{}/private:1", registry.address);
    let pull = |logins: &[(&str, &str)]| {
        let mut options = PullOptions::default();
        for (pattern, password) in logins {
            let pattern = pattern.replace("HOST", &registry.address.to_string());
            let auth = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{USER}:{password}"));
            let json = format!(r#"{{"auths":{{"{pattern}":{{"auth":"{auth}"}}}}}}"#);
            options.credentials.add_docker_config(json.as_bytes()).unwrap();
        }
        images.pull(&reference, options)
    };
    for wrong in [&[][..], &[("HOST", "wrong")], &[("elsewhere", PASSWORD)]] {
        let error = pull(wrong).await.unwrap_err();
        assert!(error.kind == PullErrorKind::Unauthorized && error.to_string().contains("imagePullSecrets"), "{error}");
    }
    // The more specific one is wrong, the other is tried as well.
    pull(&[("HOST/private", "wrong"), ("http://HOST/v2/", PASSWORD)]).await.unwrap();
    assert_eq!(top_file(&images, &reference), b"above");
}

#[tokio::test]
async fn tls_needs_the_right_authority() {
    let (registry, authority) = Registry::with_tls();
    let (_folder, images) = store();
    registry.push(&layout(&layers()), "t", "tls:1", "");
    let reference = format!("{}/tls:1", registry.address);
    let error = images.pull(&reference, PullOptions::default()).await.unwrap_err();
    assert!(error.kind == PullErrorKind::Untrusted && error.to_string().contains("/etc/docker/certs.d"), "{error}");
    let options = PullOptions { certificates: vec![authority.into_bytes()], ..PullOptions::default() };
    images.pull(&reference, options).await.unwrap();
    assert_eq!(top_file(&images, &reference), b"above");
}

/// Bytes that do not compress: the same for the same seed.
fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Copies at most `limit` bytes, and counts them as they pass.
async fn carry(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, limit: u64, total: &AtomicU64) -> u64 {
    let (mut buffer, mut carried) = (vec![0; 16 << 10], 0);
    while carried < limit {
        let room = usize::try_from(limit - carried).unwrap().min(buffer.len());
        let read = from.read(&mut buffer[..room]).await.unwrap_or(0);
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
        carried += read as u64;
        total.fetch_add(read as u64, Ordering::SeqCst);
    }
    carried
}

/// Forwards to `target`; cuts the first `cuts` connections that carried more than `limit` bytes. Counts what it carries.
async fn cutting_proxy(target: SocketAddr, cuts: usize, limit: u64) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (carried, cuts) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(cuts)));
    let total = carried.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (cuts, total) = (cuts.clone(), total.clone());
            tokio::spawn(async move {
                let server = TcpStream::connect(target).await.unwrap();
                let ((mut client_in, mut client_out), (mut server_in, mut server_out)) =
                    (client.into_split(), server.into_split());
                let up = tokio::spawn(async move { tokio::io::copy(&mut client_in, &mut server_out).await });
                let first = carry(&mut server_in, &mut client_out, limit, &total).await;
                let cut = first == limit
                    && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
                if !cut {
                    carry(&mut server_in, &mut client_out, u64::MAX, &total).await;
                }
                let _ = client_out.shutdown().await;
                up.abort();
            });
        }
    });
    (address, carried)
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_was() {
    let registry = Registry::start(&[]);
    let (_folder, images) = store();
    let size = 3 << 20;
    registry.push(&layout(&[Tar::new().raw_file("a", &noise(size, 1)).build()]), "t", "big:1", "");
    let (address, carried) = cutting_proxy(registry.address, 3, 600_000).await;
    let reference = format!("{address}/big:1");
    images.pull(&reference, PullOptions::default()).await.unwrap();
    assert_eq!(top_file(&images, &reference), noise(size, 1));
    let carried = carried.load(Ordering::SeqCst);
    assert!((size as u64..size as u64 + 400_000).contains(&carried), "{carried} bytes for a layer of {size}");
}

#[tokio::test]
async fn what_a_killed_process_left_is_used_or_replaced() {
    let registry = Registry::start(&[]);
    let data = noise(1 << 20, 2);
    let mut layout = Layout::new();
    let layer = Tar::new().raw_file("a", &data).build();
    let packed = common::gzip(&layer);
    let image = layout.image(&[layer], "amd64");
    layout.tag(image, "t");
    registry.push(&layout, "t", "big:1", "");
    let digest = Digest::of(&packed);
    for (left, spoilt) in [(packed[..700_000].to_vec(), false), (noise(700_000, 3), true), (packed.clone(), false)] {
        let (_folder, images) = store();
        fs::write(images.dir().join("ingest").join(format!("{}.part", digest.hex())), left.clone()).unwrap();
        let (address, carried) = cutting_proxy(registry.address, 0, u64::MAX).await;
        let reference = format!("{address}/big:1");
        images.pull(&reference, PullOptions::default()).await.unwrap();
        assert_eq!(top_file(&images, &reference), data);
        let carried = carried.load(Ordering::SeqCst) as usize;
        let saved = carried < packed.len() - left.len() + 50_000;
        assert_eq!(saved, !spoilt, "{carried} of {}", packed.len());
        assert_eq!(fs::read_dir(images.dir().join("ingest")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn corrupt_content_is_refused_and_not_kept() {
    let registry = Registry::start(&[]);
    let (_folder, images) = store();
    let layers = layers();
    registry.push(&layout(&layers), "t", "bad:1", "");
    let blob = registry.blob(&Digest::of(&common::gzip(&layers[1])));
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let error = images.pull(&format!("{}/bad:1", registry.address), PullOptions::default()).await.unwrap_err();
    assert!(error.kind == PullErrorKind::Corrupt && error.to_string().contains("corrupt"), "{error}");
    assert!(images.list().unwrap().is_empty());
    fs::remove_file(&blob).unwrap();
    let error = images.pull(&format!("{}/bad:1", registry.address), PullOptions::default()).await.unwrap_err();
    assert!(error.kind == PullErrorKind::Registry && error.to_string().contains("push the image again"), "{error}");
}

#[tokio::test]
async fn processes_that_pull_the_same_share_the_work() {
    let registry = Registry::start(&[]);
    let (_folder, images) = store();
    let size = 1 << 20;
    registry.push(&layout(&[Tar::new().raw_file("a", &noise(size, 4)).build()]), "t", "big:1", "");
    let (address, carried) = cutting_proxy(registry.address, 0, u64::MAX).await;
    let reference = format!("{address}/big:1");
    let pulls = (0..4).map(|_| {
        // A store of its own each, as separate processes have.
        let (images, reference) = (Images::open(images.dir()).unwrap(), reference.clone());
        async move { images.pull(&reference, PullOptions::default()).await }
    });
    let results = futures::future::join_all(pulls).await;
    assert!(results.iter().all(|result| result.is_ok()), "{results:?}");
    assert_eq!(top_file(&images, &reference), noise(size, 4));
    let carried = carried.load(Ordering::SeqCst);
    assert!(carried < 2 * size as u64, "{carried} bytes for one layer of {size}");
    assert_eq!(fs::read_dir(images.dir().join("ingest")).unwrap().count(), 0);
}

#[tokio::test]
async fn pulls_of_one_image_at_once_are_one() {
    let registry = Registry::start(&[]);
    let (_folder, images) = store();
    registry.push(&layout(&layers()), "t", "same:1", "");
    let reference = format!("{}/same:1", registry.address);
    let events = Arc::new(Mutex::new(Vec::new()));
    let pull = || {
        let events = events.clone();
        let progress = move |event| events.lock().unwrap().push(event);
        images.pull(&reference, PullOptions { progress: Some(Arc::new(progress)), ..PullOptions::default() })
    };
    let results = futures::future::join_all((0..8).map(|_| pull())).await;
    assert!(results.iter().all(|result| result == &results[0]) && results[0].is_ok());
    let events = events.lock().unwrap();
    let ready: Vec<_> = events.iter().filter(|event| matches!(event, Progress::Ready { .. })).collect();
    assert_eq!(ready, [&Progress::Ready { layer: 0 }, &Progress::Ready { layer: 1 }]);
    assert!(matches!(&events[0], Progress::Resolved { layers } if layers.len() == 2 && !layers[0].2));
}
