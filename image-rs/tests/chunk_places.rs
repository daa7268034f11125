//! Wrong chunks of a mirror, of the registry and of both: each place is asked once for a chunk, and none is believed.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/place.rs"]
mod place;
#[path = "../src/signature/test_utils.rs"]
mod sign;

use std::cell::RefCell;
use std::io::Write;
use std::sync::{Arc, Mutex, Once};

use common::{Answer, noise, range};
use kata_cc_image::PullError;
use kata_cc_image::chunks::{Had, MIN_CHUNK_BYTES, UnhadChunk};
use place::{Answered, Between, GZIP, Place};

/// Requests for the layer that somebody saw: first byte asked for.
type Seen = Arc<Mutex<Vec<usize>>>;

/// Somebody who flips a bit of each byte of the layer `path` that is listed, and notes what was asked for.
fn liar(path: &str, flips: Vec<usize>) -> (Between, Seen) {
    let (seen, path) = (Seen::default(), path.to_owned());
    let noted = seen.clone();
    let between = move |request: &str, mut answer: Answered| {
        if !request.contains(&path) {
            return answer.into();
        }
        let from = range(request).unwrap_or(0);
        noted.lock().unwrap().push(from);
        for at in &flips {
            if let Some(byte) = at.checked_sub(from).and_then(|at| answer.body.get_mut(at)) {
                *byte ^= 1;
            }
        }
        Answer::from(answer)
    };
    (Arc::new(between), seen)
}

thread_local! {
    /// What this thread has logged. Each test has one, and asks its places from there.
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes there.
struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGGED.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// For all threads, once: one that is set for a single thread may find that others had the events switched off.
    fn begin() {
        static BEGUN: Once = Once::new();
        BEGUN.call_once(|| {
            tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).without_time().init();
        });
    }

    fn lines(part: &str) -> Vec<String> {
        let text = LOGGED.with_borrow(|log| String::from_utf8(log.clone()).unwrap());
        text.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }
}

/// An encrypted image with a signed list of chunks of `chunk_bytes`, and the path of its layer.
async fn listed(chunk_bytes: u64) -> Option<(Place, String)> {
    let place = Place::start(GZIP, true).await?;
    place.attach_signed("1", &place.list_of("1", chunk_bytes).await).await;
    let path = place.layer_path("1").await;
    Some((place, path))
}

/// Pulls by a mirror that flips bits of the bytes `mirror`, and a registry that flips those of `registry`.
async fn pull(
    (place, path): &(Place, String),
    mirror: Vec<usize>,
    registry: Vec<usize>,
) -> (Result<(), PullError>, Vec<usize>, Vec<usize>) {
    let ((mirror, of_mirror), (registry, of_registry)) = (liar(path, mirror), liar(path, registry));
    let config = place.mirrored(place.config(), registry, mirror);
    let out = tempfile::tempdir().unwrap();
    let pulled = place.pull(config, "1", out.path()).await.map(|image| {
        assert!(std::fs::read(image.rootfs.join("big")).unwrap() == noise(3 << 20));
        assert_eq!(std::fs::read(image.rootfs.join("etc/last")).unwrap(), b"2");
    });
    let (of_mirror, of_registry) = (of_mirror.lock().unwrap().clone(), of_registry.lock().unwrap().clone());
    (pulled, of_mirror, of_registry)
}

const MIB: usize = 1 << 20;

#[tokio::test]
async fn the_next_place_is_asked_for_a_chunk_that_a_mirror_has_wrong() {
    let Some(place) = listed(MIB as u64).await else { return };
    Log::begin();
    let (pulled, mirror, registry) = pull(&place, vec![MIB + 7], vec![]).await;
    pulled.unwrap();
    assert_eq!((mirror, registry), (vec![0], vec![MIB]), "from the chunk's beginning on");
    let warned = Log::lines("a chunk came wrong");
    assert_eq!(warned.len(), 1, "{warned:?}");
    let list = place.0.list("1").await;
    let expected = format!("expected=sha256:{}", list["layers"][0]["chunks"][1].as_str().unwrap());
    for part in [
        "WARN",
        "nothing of it was decrypted",
        "layer=0",
        "place=registry 127.0.0.1:",
        "chunk=1",
        "first=1048576",
        "last=2097151",
        &expected,
        "seen=sha256:",
    ] {
        assert!(warned[0].contains(part), "{part}: {warned:?}");
    }
    // the first chunk, and the last one, after which nothing else comes
    for chunk in [0, 3] {
        let (pulled, _, registry) = pull(&place, vec![chunk * MIB], vec![]).await;
        pulled.unwrap();
        assert_eq!(registry, [chunk * MIB]);
    }
}

#[tokio::test]
async fn a_chunk_that_no_place_has_right_is_refused_with_what_each_has() {
    let Some(place) = listed(MIB as u64).await else { return };
    let (pulled, mirror, registry) = pull(&place, vec![MIB + 7], vec![MIB + 8]).await;
    let error = pulled.unwrap_err();
    let PullError::Chunk { layer: 0, source: UnhadChunk { chunk, tried } } = &error else {
        panic!("{error}")
    };
    assert_eq!((chunk.number, mirror, registry), (1, vec![0], vec![MIB]), "each was asked once");
    let [Had::Other(one), Had::Other(other)] = [&tried.0[0].had, &tried.0[1].had] else { panic!("{error}") };
    assert!(one != other && *one != chunk.expected && *other != chunk.expected);
    for part in [
        "layer 0 was changed: chunk 1 (bytes 1048576 to 2097151) is had from nowhere",
        &format!("the chunk list says {}; {} sent one with the hash {one}", chunk.expected, tried.0[0].place),
        &format!("; {} sent one with the hash {other}", tried.0[1].place),
    ] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    assert_ne!(tried.0[0].place, tried.0[1].place);
}

#[tokio::test]
async fn places_that_lie_about_different_chunks_are_asked_in_turn() {
    let Some(place) = listed(MIB as u64).await else { return };
    let (pulled, mirror, registry) = pull(&place, vec![MIB], vec![2 * MIB]).await;
    pulled.unwrap();
    assert_eq!((mirror, registry), (vec![0, 2 * MIB], vec![MIB]));
}

#[tokio::test]
async fn places_that_lie_without_end_are_asked_no_more() {
    let Some(place) = listed(MIN_CHUNK_BYTES).await else { return };
    let chunk = |number: usize| number * MIN_CHUNK_BYTES as usize + 5;
    let (odd, even): (Vec<_>, Vec<_>) =
        (0..48).map(chunk).partition(|at| at / MIN_CHUNK_BYTES as usize % 2 == 1);
    let (pulled, mirror, registry) = pull(&place, odd, even).await;
    let error = pulled.unwrap_err();
    assert!(matches!(error, PullError::Chunk { layer: 0, .. }), "{error}");
    assert!(
        error.to_string().contains("was not asked, 8 chunks of the layer came wrong from there"),
        "{error}"
    );
    assert!(mirror.len() <= 9 && registry.len() <= 9, "{mirror:?} {registry:?}");
    assert!(mirror.len() + registry.len() >= 15, "{mirror:?} {registry:?}");
}

/// A chunk whose beginning is one place's and whose end is the other's: the other is asked for all of it before it is blamed.
#[tokio::test]
async fn a_chunk_of_two_places_is_asked_for_anew() {
    let Some(place) = listed(MIB as u64).await else { return };
    let (of_registry, path) = (place.0.layer_path("1").await, place.1.clone());
    let (registry, seen) = liar(&of_registry, vec![]);
    let mirror = move |request: &str, mut answer: Answered| match (request.contains(&path), range(request)) {
        (false, _) => answer.into(),
        (true, None) => {
            answer.body[MIB + 7] ^= 1;
            Answer::from(answer).cut(3 * MIB / 2)
        }
        (true, Some(_)) => Answer::new(404, "application/json", b"{}".to_vec()),
    };
    let config = place.0.mirrored(place.0.config(), registry, Arc::new(mirror) as Between);
    let out = tempfile::tempdir().unwrap();
    let image = place.0.pull(config, "1", out.path()).await.unwrap();
    assert!(std::fs::read(image.rootfs.join("big")).unwrap() == noise(3 << 20));
    let seen = seen.lock().unwrap();
    let [rest, chunk] = seen.as_slice() else { panic!("{seen:?}") };
    assert!(*rest > MIB && *rest <= 3 * MIB / 2 && *chunk == MIB, "{seen:?}");
}

#[tokio::test]
async fn a_mirror_that_ends_too_soon_is_followed_by_the_next_place() {
    let Some(place) = listed(MIB as u64).await else { return };
    let (registry, seen) = liar(&place.1, vec![]);
    let path = place.1.clone();
    let mirror = move |request: &str, mut answer: Answered| {
        if request.contains(&path) {
            let from = range(request).unwrap_or(0);
            answer.body.truncate((5 * MIB / 2).saturating_sub(from));
        }
        answer.into()
    };
    let mirror: Between = Arc::new(mirror);
    let config = place.0.mirrored(place.0.config(), registry, mirror.clone());
    let out = tempfile::tempdir().unwrap();
    place.0.pull(config, "1", out.path()).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [5 * MIB / 2]);
    let config = place.0.mirrored(place.0.config(), mirror.clone(), mirror);
    let out = tempfile::tempdir().unwrap();
    let error = place.0.pull(config, "1", out.path()).await.unwrap_err().to_string();
    assert!(error.contains("after 2621440 of ") && error.contains("ends blob sha256:"), "{error}");
}
