//! Pulls over bad networks, from mirrors, and layer by layer as a stream.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Answer, Guard, Image, Liar, RegistryServer, gzip, layer, missing, noise, range, run};
use kata_cc_image::{
    ClientConfig, ImageClient, Limits, Mirror, NoKeys, Progress, PullError, PullTarget, PulledImage,
    Registries, RegistryError, RegistryRule, Retry,
};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn settings(host: &str) -> ClientConfig {
    let retry = Retry { first_wait: Duration::from_millis(1), ..Retry::default() };
    ClientConfig { insecure_registries: vec![host.to_owned()], retry, ..ClientConfig::default() }
}

async fn pull(config: &ClientConfig, reference: &str, dir: &Path) -> Result<PulledImage, PullError> {
    let target = PullTarget { work_dir: dir.join("work"), rootfs_dir: dir.join("rootfs") };
    ImageClient::new(config.clone())?.pull(reference, &target, &NoKeys, &|_: Progress| {}).await
}

fn image(length: usize) -> (Image, Vec<u8>) {
    let data = noise(length);
    let archive = layer(&[("etc/first", b"1"), ("big", &data), ("etc/last", b"2")]);
    (Image::new(&[(GZIP, gzip(&archive), &archive)]), data)
}

fn is_layer(image: &Image, request: &str) -> bool {
    request.split(' ').nth(1).unwrap_or_default().ends_with(image.blobs[1].0.as_str())
}

#[tokio::test]
async fn a_layer_that_breaks_off_goes_on_from_there() {
    let (image, data) = image(3 << 20);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let liar = Liar::start({
        let asked = asked.clone();
        move |request| {
            let answer = image.answer(request);
            if !is_layer(&image, request) {
                return answer;
            }
            asked.lock().unwrap().push(range(request));
            // more breaks than attempts: each time something came, which is no failed attempt
            if asked.lock().unwrap().len() < 7 { answer.cut(600_000) } else { answer }
        }
    });
    let out = tempfile::tempdir().unwrap();
    let mut config = settings(&liar.host);
    config.retry.attempts = 7;
    let image = pull(&config, &format!("{}/test:1", liar.host), out.path()).await.unwrap();
    assert!(std::fs::read(image.rootfs.join("big")).unwrap() == data);
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0], None);
    let later: Vec<_> = asked[1..].iter().map(|from| from.unwrap()).collect();
    assert!(later.is_sorted() && later[0] > 100_000 && later[2] > later[0], "{later:?}");
}

#[tokio::test]
async fn a_registry_without_ranges_begins_anew_and_no_byte_counts_twice() {
    let (image, data) = image(1 << 20);
    let count = AtomicUsize::new(0);
    let liar = Liar::start(move |request| {
        let whole = request.replace("range:", "no-range:");
        let answer = image.answer(&whole);
        let first = is_layer(&image, request) && count.fetch_add(1, Ordering::SeqCst) == 0;
        if first { answer.cut(500_000) } else { answer }
    });
    let out = tempfile::tempdir().unwrap();
    let image = pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap();
    assert!(std::fs::read(image.rootfs.join("big")).unwrap() == data);
}

#[tokio::test]
async fn another_range_than_asked_for_is_refused() {
    let (image, _) = image(1 << 20);
    let liar = Liar::start(move |request| match range(request) {
        Some(_) => image.answer(&request.replace("bytes=", "bytes=1")),
        None if is_layer(&image, request) => image.answer(request).cut(9),
        None => image.answer(request),
    });
    let out = tempfile::tempdir().unwrap();
    let error = pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap_err();
    assert!(error.to_string().contains("asked for bytes from 9 on"), "{error}");
}

#[tokio::test]
async fn too_many_requests_and_errors_of_the_server_are_waited_out() {
    for status in [408, 429, 500, 502, 503, 504] {
        let (image, _) = image(1000);
        let count = AtomicUsize::new(0);
        // every path says no twice
        let liar = Liar::start(move |request| {
            if request.starts_with("GET /v2/ ") || count.fetch_add(1, Ordering::SeqCst) % 3 == 2 {
                return image.answer(request);
            }
            Answer::new(status, "application/json", b"{}".to_vec()).header("retry-after", "0")
        });
        let out = tempfile::tempdir().unwrap();
        pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap();
    }
}

#[tokio::test]
async fn what_does_not_pass_is_asked_once_and_what_goes_on_has_an_end() {
    for (status, expected) in [(404, 1), (403, 1), (503, 4), (429, 4)] {
        let count = Arc::new(AtomicUsize::new(0));
        let liar = Liar::start({
            let count = count.clone();
            move |request| {
                if request.starts_with("GET /v2/ ") {
                    return Answer::new(200, "application/json", b"{}".to_vec());
                }
                count.fetch_add(1, Ordering::SeqCst);
                Answer::new(status, "application/json", b"{}".to_vec())
            }
        });
        let out = tempfile::tempdir().unwrap();
        let error =
            pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap_err();
        assert_eq!(count.load(Ordering::SeqCst), expected, "{status}: {error}");
        assert!(status == 404 || error.to_string().contains(&status.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_registry_is_believed_about_its_wait_up_to_a_bound() {
    let (image, _) = image(1000);
    let count = AtomicUsize::new(0);
    let liar = Liar::start(move |request| {
        if request.contains("/manifests/") && count.fetch_add(1, Ordering::SeqCst) == 0 {
            return Answer::new(429, "application/json", b"{}".to_vec()).header("retry-after", "86400");
        }
        image.answer(request)
    });
    let mut config = settings(&liar.host);
    config.retry.longest_wait = Duration::from_millis(300);
    let out = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    pull(&config, &format!("{}/test:1", liar.host), out.path()).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_token_that_expires_during_a_pull_is_had_anew() {
    let (image, _) = image(1000);
    let given = Arc::new(AtomicUsize::new(0));
    let liar = Liar::start({
        let given = given.clone();
        move |request| {
            if request.starts_with("GET /token") {
                let token = given.fetch_add(1, Ordering::SeqCst) + 1;
                return Answer::new(
                    200,
                    "application/json",
                    format!("{{\"token\":\"t{token}\"}}").into_bytes(),
                );
            }
            // the first token is good for the manifest alone
            let token =
                request.split("authorization: Bearer ").nth(1).and_then(|rest| rest.split('\r').next());
            let good = if request.contains("/manifests/") { "t1" } else { "t2" };
            if token == Some(good) {
                return image.answer(request);
            }
            let realm = format!(
                "http://{}/token",
                request.split("host: ").nth(1).unwrap().split('\r').next().unwrap()
            );
            Answer::new(401, "application/json", b"{}".to_vec())
                .header("www-authenticate", &format!("Bearer realm=\"{realm}\",service=\"s\""))
        }
    });
    let out = tempfile::tempdir().unwrap();
    pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap();
    assert_eq!(given.load(Ordering::SeqCst), 2);
}

fn mirrored(prefix: &str, mirrors: &[&str], itself: &str) -> ClientConfig {
    let mirror = |place: &&str| Mirror { location: (*place).to_owned(), insecure: true, ..Mirror::default() };
    let rule = RegistryRule {
        prefix: Some(prefix.to_owned()),
        location: Some(itself.to_owned()),
        insecure: true,
        mirror: mirrors.iter().map(mirror).collect(),
        ..RegistryRule::default()
    };
    ClientConfig { registries: Registries { registry: vec![rule] }, ..settings("nothing") }
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_for_what_the_mirror_lacks() {
    let (image, data) = image(2 << 20);
    let (image, again) = (Arc::new(image), Arc::new(AtomicUsize::new(0)));
    let mirror = Liar::start({
        let image = image.clone();
        move |request| {
            assert!(request.contains("/v2/cache/team/app/") || request.starts_with("GET /v2/ "), "{request}");
            if is_layer(&image, request) { image.answer(request).cut(700_000) } else { image.answer(request) }
        }
    });
    let registry = Liar::start({
        let (image, again) = (image.clone(), again.clone());
        move |request| {
            if is_layer(&image, request) {
                again.store(range(request).unwrap_or(1), Ordering::SeqCst);
            }
            image.answer(request)
        }
    });
    let places = [format!("{}/cache", mirror.host)];
    let mut config = mirrored("registry.example", &[&places[0]], &format!("{}/real", registry.host));
    config.retry.attempts = 1;
    let out = tempfile::tempdir().unwrap();
    let pulled = pull(&config, "registry.example/team/app:1", out.path()).await.unwrap();
    assert!(std::fs::read(pulled.rootfs.join("big")).unwrap() == data);
    // the registry sent what the mirror had not sent, and nothing else
    assert!(again.load(Ordering::SeqCst) > 500_000, "{again:?}");
}

#[tokio::test]
async fn a_mirror_is_believed_nothing() {
    let (real, data) = image(1000);
    let (other, _) = image(2000);
    let digest = kata_cc_image::digest::Digest::sha256(real.manifest.to_string().as_bytes());
    let (mirror, registry) = (other.serve(), real.serve());
    let config = mirrored("registry.example", &[&mirror.host], &registry.host);
    let out = tempfile::tempdir().unwrap();
    // by digest: the mirror has another manifest, the registry the right one
    let pulled = pull(&config, &format!("registry.example/app@{digest}"), out.path()).await.unwrap();
    assert!(std::fs::read(pulled.rootfs.join("big")).unwrap() == data);
    // with no other place there is none
    let config = mirrored("registry.example", &[], &mirror.host);
    let out = tempfile::tempdir().unwrap();
    let error = pull(&config, &format!("registry.example/app@{digest}"), out.path()).await.unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::ManifestDigest { .. })), "{error}");
}

#[tokio::test]
async fn a_list_of_images_names_what_was_asked_for_and_not_the_mirror() {
    let (image, _) = image(1000);
    let digest = kata_cc_image::digest::Digest::sha256(image.manifest.to_string().as_bytes());
    let mirror = image.serve();
    let mut config = mirrored("registry.example", &[&mirror.host], "registry.example");
    config.allowed = Some(vec![format!("registry.example/app@{digest}")]);
    let out = tempfile::tempdir().unwrap();
    pull(&config, "registry.example/app:1", out.path()).await.unwrap();
    config.allowed = Some(vec![format!("{}/app@{digest}", mirror.host)]);
    let out = tempfile::tempdir().unwrap();
    let error = pull(&config, "registry.example/app:1", out.path()).await.unwrap_err();
    assert!(matches!(error, PullError::NotAllowed { .. }), "{error}");
}

/// The unfinished root folder's file `name`, when it is there.
fn unfinished(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries.map(|entry| entry.path().join(name)).find(|path| path.is_file())
}

/// A server that sends half of the layer, and the rest when `go` says so.
fn halting(image: Image, go: impl Fn() + Send + Sync + 'static) -> Liar {
    let go = Arc::new(go);
    Liar::start(move |request| {
        let answer = image.answer(request);
        let go = go.clone();
        if is_layer(&image, request) { answer.pause(1 << 20, move || go()) } else { answer }
    })
}

#[tokio::test]
async fn a_layer_is_unpacked_while_it_comes() {
    let (image, _) = image(2 << 20);
    let out = tempfile::tempdir().unwrap();
    let dir = out.path().to_owned();
    let liar = halting(image, move || {
        let deadline = Instant::now() + Duration::from_secs(20);
        while unfinished(&dir, "etc/first").is_none() {
            assert!(Instant::now() < deadline, "nothing is unpacked before all of the layer came");
            std::thread::sleep(Duration::from_millis(5));
        }
        // not visible under its name
        assert!(!dir.join("rootfs").exists());
    });
    let image = pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap();
    assert_eq!(std::fs::read(image.rootfs.join("etc/last")).unwrap(), b"2");
}

/// The first layer stands still; the second is another one than the manifest names, which is told without waiting for the first.
#[tokio::test]
async fn a_wrong_layer_ends_the_pull_while_another_still_comes() {
    let archives = [layer(&[("big", &noise(2 << 20))]), layer(&[("a", &noise(100_000))])];
    let mut image = Image::new(&[0, 1].map(|n: usize| (GZIP, gzip(&archives[n]), archives[n].as_slice())));
    image.blobs[2].1[90_000] ^= 1;
    let (told, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let liar = halting(image, move || {
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(20));
    });
    let out = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let error = pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(15), "the pull waited for the first layer");
    told.send(()).unwrap();
    assert!(matches!(error, PullError::LayerDigest { layer: 1, .. }), "{error}");
}

/// The zstd library is no place for bytes that nobody vouches for.
#[tokio::test]
async fn a_zstd_layer_waits_for_its_digest() {
    let archive = layer(&[("etc/first", b"1"), ("big", &noise(2 << 20))]);
    let image = Image::new(&[(ZSTD, zstd::encode_all(archive.as_slice(), 1).unwrap(), &archive)]);
    let out = tempfile::tempdir().unwrap();
    let dir = out.path().to_owned();
    let seen = Arc::new(Mutex::new(None));
    let liar = halting(image, {
        let seen = seen.clone();
        move || {
            std::thread::sleep(Duration::from_millis(300));
            *seen.lock().unwrap() = Some(unfinished(&dir, "etc/first"));
        }
    });
    pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), Some(None));
}

#[tokio::test]
async fn a_broken_archive_is_called_another_layer_when_it_is_one() {
    for at in [40, 1 << 20] {
        let (mut image, _) = image(2 << 20);
        image.blobs[1].1[at] ^= 1;
        let liar = image.serve();
        let out = tempfile::tempdir().unwrap();
        let error =
            pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap_err();
        assert!(matches!(error, PullError::LayerDigest { layer: 0, .. }), "{error}");
        // and nothing is left
        assert!(!out.path().join("rootfs").exists());
        assert!(unfinished(out.path(), "etc/first").is_none());
    }
    // one that its author broke is told as what it is
    let archive = layer(&[("a", &noise(100_000))]);
    let mut packed = gzip(&archive);
    packed[50_000] ^= 1;
    let liar = Image::new(&[(GZIP, packed, &archive)]).serve();
    let out = tempfile::tempdir().unwrap();
    let error = pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap_err();
    assert!(matches!(error, PullError::Unpack { layer: 0, .. }), "{error}");
}

#[tokio::test]
async fn many_layers_with_little_space_ahead_come_in_their_order() {
    let archives: Vec<_> =
        (0..9u8).map(|n| layer(&[("who", &[n]), (&format!("f{n}"), &noise(300_000 + n as usize))])).collect();
    let layers: Vec<_> = archives.iter().map(|archive| (GZIP, gzip(archive), archive.as_slice())).collect();
    let liar = Image::new(&layers).serve();
    let limits = Limits { max_ahead_bytes: 10_000, max_parallel: 4, ..Limits::default() };
    let config = ClientConfig { limits, ..settings(&liar.host) };
    let out = tempfile::tempdir().unwrap();
    let image = pull(&config, &format!("{}/test:1", liar.host), out.path()).await.unwrap();
    assert_eq!(std::fs::read(image.rootfs.join("who")).unwrap(), [8]);
    assert_eq!(std::fs::read_dir(&image.rootfs).unwrap().count(), 10);
}

/// eStargz: a gzip member for each file, a table of contents as a file, and an empty member with its offset. Nothing of that
/// is needed here, and nothing of it may hinder.
#[tokio::test]
async fn an_estargz_layer_is_a_layer() {
    let parts = [layer(&[("stargz.index.json", b"{\"version\":1,\"entries\":[]}")]), layer(&[("a", b"1")])];
    // all but the last without the two blocks of zeros that end an archive
    let archive = [&parts[1][..parts[1].len() - 1024], &parts[0]].concat();
    let members = [gzip(&parts[1][..512]), gzip(&parts[1][512..1024]), gzip(&parts[0])];
    let extra = b"SG\x16\x0000000000000003e8STARGZ";
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, extra.len() as u8, 0];
    footer.extend_from_slice(extra);
    footer.extend_from_slice(&[1, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
    let blob = [members.concat(), footer].concat();
    let liar = Image::new(&[(GZIP, blob, &archive)]).serve();
    let out = tempfile::tempdir().unwrap();
    let image = pull(&settings(&liar.host), &format!("{}/test:1", liar.host), out.path()).await.unwrap();
    assert_eq!(std::fs::read(image.rootfs.join("a")).unwrap(), b"1");
}

#[tokio::test]
async fn a_zstd_chunked_layer_of_skopeos_is_a_layer() {
    if missing(&["docker-registry", "skopeo"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Open);
    let dir = tempfile::tempdir().unwrap();
    let data = noise(300_000);
    let archive = layer(&[("etc/first", b"1"), ("big", &data)]);
    // skopeo compresses what is not compressed yet
    let plain = "application/vnd.oci.image.layer.v1.tar";
    Image::new(&[(plain, archive.clone(), &archive)]).layout(&dir.path().join("layout"));
    let from = format!("oci:{}:t", dir.path().join("layout").display());
    let to = format!("docker://{}/test:1", server.host);
    let made =
        ["copy", "-q", "--dest-tls-verify=false", "--dest-compress-format", "zstd:chunked", &from, &to];
    run("skopeo", &made);
    let out = tempfile::tempdir().unwrap();
    let config = settings(&server.host);
    let pulled = pull(&config, &format!("{}/test:1", server.host), out.path()).await.unwrap();
    assert!(std::fs::read(pulled.rootfs.join("big")).unwrap() == data);
    let summary = kata_cc_image::inspect(&format!("{}/test:1", server.host), &config).await.unwrap();
    assert!(summary.layers[0].media_type.ends_with("zstd"), "{}", summary.layers[0].media_type);
}
