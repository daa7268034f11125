//! One layer on its way from the registry to the root folder.
//!
//! The blob goes through a [`Spool`] while its digest and, for an encrypted one, its HMAC are computed, and its chunks are compared where they are
//! listed; from there it is decrypted, decompressed and unpacked, piece by piece, while the HMAC and the diff id of the image configuration are checked once more.
//! Decompressing has a thread of its own ([`ReadAhead`]). Memory is bounded by a few buffers whatever the layer's size. Nothing of the image is visible before all of it was checked.

use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::hmac;
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;
use tokio_util::bytes::Bytes;

use crate::chunks::{ChunkCheck, ListedLayer, WrongChunk};
use crate::crypto::{DecryptReader, LayerKey, PublicOptions, verify_mac};
use crate::digest::{Digest, Hasher};
use crate::error::PullError;
use crate::media::{Codec, LayerType};
use crate::pull::spool::{End, Spool, SpoolReader};
use crate::read_ahead::ReadAhead;
use crate::unpack::{self, Budget, LayerStats, Owner};

/// Key and public options of an encrypted layer.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(crate) key: LayerKey,
    pub(crate) options: PublicOptions,
}

/// What is to be done with one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerPlan {
    pub(crate) number: usize,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) kind: LayerType,
    pub(crate) diff_id: Digest,
    pub(crate) sealed: Option<Sealed>,
    /// Hashes of its chunks, which the image's signer vouches for.
    pub(crate) chunks: Option<ListedLayer>,
}

/// When the reader of a layer may have its bytes.
pub(crate) enum Gate {
    /// At once: nobody vouches for them, and the reader can stand that.
    Open,
    /// Chunk by chunk, each when its hash is right.
    Chunks(ChunkCheck),
    /// When all of it is there and right.
    Shut,
}

impl LayerPlan {
    /// When its bytes may be read. Where no chunks are listed, nobody vouches for them before all is there. Then nothing is decrypted: CTR lets
    /// anybody flip bits. Nor does anything go through the zstd library: what a registry chose freely is seen by code that is safe by
    /// its language alone.
    pub(crate) fn gate(&self) -> Gate {
        match &self.chunks {
            Some(listed) => Gate::Chunks(listed.check()),
            None if self.sealed.is_none() && self.kind.codec != Codec::Zstd => Gate::Open,
            None => Gate::Shut,
        }
    }

    /// Whether it is unpacked while it still comes.
    pub(crate) fn streams(&self) -> bool {
        !matches!(self.gate(), Gate::Shut)
    }
}

/// What comes from the network.
pub(crate) enum Arrived {
    /// The next bytes.
    Piece(Bytes),
    /// There are no more.
    All,
    /// What follows begins with the chunk that was told to be wrong; what came since is to be passed over.
    Again,
}

/// Takes the blob of `plan` from the network to the spool, and checks its chunks, size, digest and HMAC. A chunk that is wrong is told by
/// `wrong`, and comes once more. Keeps a thread.
///
/// # Errors
/// When size, digest or HMAC is wrong. A network that falls silent without the end is no error of this half.
pub(crate) fn receive(
    plan: &LayerPlan,
    mut arriving: mpsc::Receiver<Arrived>,
    wrong: &mpsc::Sender<WrongChunk>,
    spool: &Spool,
    progress: &dyn Fn(u64),
) -> Result<(), PullError> {
    let mut intake = Intake::new(plan);
    let mut pass_over = false;
    loop {
        let piece = match arriving.blocking_recv() {
            None => return Ok(()),
            Some(Arrived::Again) => {
                pass_over = false;
                continue;
            }
            Some(_) if pass_over => continue,
            Some(Arrived::All) => break,
            Some(Arrived::Piece(piece)) => piece,
        };
        match intake.take(&piece, spool)? {
            Taken::All => progress(intake.sums.have),
            Taken::Unwanted => return Ok(()),
            Taken::Wrong(chunk) => {
                if wrong.blocking_send(chunk).is_err() {
                    return Ok(());
                }
                pass_over = true;
            }
        }
    }
    intake.finish()?;
    spool.end(End::Checked);
    Ok(())
}

/// What is computed over a layer.
#[derive(Clone)]
struct Sums {
    have: u64,
    hasher: Hasher,
    mac: Option<hmac::Context>,
}

/// What became of a piece.
enum Taken {
    /// It is in the spool.
    All,
    /// Nobody wants it any more.
    Unwanted,
    /// A chunk is wrong. All is as before its first byte.
    Wrong(WrongChunk),
}

/// A layer as it comes in.
struct Intake<'p> {
    plan: &'p LayerPlan,
    gate: Gate,
    sums: Sums,
    /// As they were behind the last chunk that was right.
    checked: Sums,
}

impl<'p> Intake<'p> {
    fn new(plan: &'p LayerPlan) -> Self {
        let mac = plan.sealed.as_ref().map(|sealed| sealed.key.mac());
        let sums = Sums { have: 0, hasher: plan.digest.hasher(), mac };
        Self { plan, gate: plan.gate(), checked: sums.clone(), sums }
    }

    /// Writes `piece` to the spool, and lets through what may be read.
    fn take(&mut self, piece: &[u8], spool: &Spool) -> Result<Taken, PullError> {
        let layer = self.plan.number;
        let (seen, expected) = (self.sums.have + piece.len() as u64, self.plan.size);
        if seen > expected {
            return Err(PullError::LayerSize { layer, expected, seen });
        }
        let mut rest = piece;
        while !rest.is_empty() {
            let (part, next, release) = match &mut self.gate {
                Gate::Open => (rest, &rest[rest.len()..], true),
                Gate::Shut => (rest, &rest[rest.len()..], false),
                Gate::Chunks(check) => match check.update(rest) {
                    Ok(step) => step,
                    Err(wrong) => {
                        self.sums = self.checked.clone();
                        spool.rewind();
                        return Ok(Taken::Wrong(wrong));
                    }
                },
            };
            rest = next;
            self.sums.update(part);
            if !spool.write(part).map_err(|source| PullError::Spool { layer, source })? {
                return Ok(Taken::Unwanted);
            }
            if release {
                spool.release();
                if matches!(self.gate, Gate::Chunks(_)) {
                    self.checked = self.sums.clone();
                }
            }
        }
        Ok(Taken::All)
    }

    /// Checks what can be checked at the end.
    fn finish(self) -> Result<(), PullError> {
        let (plan, layer, Sums { have, hasher, mac }) = (self.plan, self.plan.number, self.sums);
        let seen = hasher.finish();
        if seen != plan.digest {
            return Err(PullError::LayerDigest { layer, expected: plan.digest.clone(), seen });
        }
        if have != plan.size {
            return Err(PullError::LayerSize { layer, expected: plan.size, seen: have });
        }
        if let (Some(mac), Some(sealed)) = (mac, plan.sealed.as_ref()) {
            verify_mac(mac, &sealed.options.hmac).map_err(|source| PullError::Decrypt { layer, source })?;
        }
        Ok(())
    }
}

impl Sums {
    fn update(&mut self, bytes: &[u8]) {
        self.have += bytes.len() as u64;
        self.hasher.update(bytes);
        if let Some(mac) = self.mac.as_mut() {
            mac.update(bytes);
        }
    }
}

/// Unpacks the blob in `spool` onto `root`.
pub(crate) fn unpack(
    plan: &LayerPlan,
    spool: Arc<Spool>,
    root: &Path,
    owner: Owner,
    budget: &mut Budget,
) -> Result<LayerStats, PullError> {
    let file = SpoolReader::new(spool);
    let plain: Box<dyn Read + Send> = match &plan.sealed {
        None => Box::new(file),
        Some(sealed) => Box::new(
            DecryptReader::new(file, &sealed.key, &sealed.options)
                .map_err(|source| PullError::Decrypt { layer: plan.number, source })?,
        ),
    };
    let mut archive = Archive {
        inner: decompress(plan.kind.codec, plain)
            .and_then(ReadAhead::new)
            .map_err(|source| PullError::Spool { layer: plan.number, source })?,
        hasher: plan.diff_id.hasher(),
        read: 0,
        allowed: (plan.size.saturating_mul(budget.limits().max_ratio)).max(budget.limits().ratio_from_bytes),
        over: false,
    };
    let result = unpack::apply(&mut archive, root, owner, budget);
    if archive.over {
        return Err(PullError::Bomb { layer: plan.number, packed: plan.size, unpacked: archive.read });
    }
    let stats = result.map_err(|error| {
        let source = if plan.sealed.is_some() { error.without_names() } else { error };
        PullError::Unpack { layer: plan.number, source }
    })?;
    let seen = archive.hasher.finish();
    if seen != plan.diff_id {
        return Err(PullError::DiffId { layer: plan.number, expected: plan.diff_id.clone(), seen });
    }
    Ok(stats)
}

/// Largest zstd window: more would let a small frame claim much memory.
const ZSTD_WINDOW_LOG: u32 = 26;

/// A layer's archive as it comes out of its compression.
///
/// # Errors
/// When no decompressor can be set up; damage shows while reading.
pub fn decompress(codec: Codec, plain: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let buffered = BufReader::with_capacity(128 << 10, plain);
    Ok(match codec {
        Codec::None => Box::new(buffered),
        Codec::Gzip => Box::new(MultiGzDecoder::new(buffered)),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// The unpacked archive: hashes what is read, and ends with an error where it outgrows what is allowed.
struct Archive<R> {
    inner: R,
    hasher: Hasher,
    read: u64,
    allowed: u64,
    over: bool,
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.hasher.update(&out[..count]);
        self.read += count as u64;
        if self.read > self.allowed {
            self.over = true;
            return Err(io::Error::other("the layer grows too much when decompressed"));
        }
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::chunks::listed;

    /// A layer of a million bytes of which chunk number `flipped` comes changed, and then, where `again`, right: what its reader got, how its
    /// download ended, and the chunks that were told to be wrong.
    fn received(
        chunks: bool,
        flipped: usize,
        again: bool,
    ) -> (Vec<u8>, Result<(), PullError>, Vec<WrongChunk>) {
        let dir = tempfile::tempdir().unwrap();
        let good: Vec<u8> = (0..1_000_000u32).map(|n| (n / 3) as u8).collect();
        let plan = LayerPlan {
            number: 4,
            digest: Digest::sha256(&good),
            size: good.len() as u64,
            kind: LayerType { codec: Codec::Zstd, encrypted: false },
            diff_id: Digest::sha256(b""),
            sealed: None,
            chunks: chunks.then(|| listed(&good, 64 << 10)),
        };
        let mut blob = good.clone();
        blob[(flipped << 16) + 5] ^= 1;
        let spool = Arc::new(Spool::new(1000));
        spool.open(dir.path(), "layer").unwrap();
        let reader = std::thread::spawn({
            let spool = spool.clone();
            move || {
                let mut all = Vec::new();
                let _ = SpoolReader::new(spool).read_to_end(&mut all);
                all
            }
        });
        let (send, receive) = mpsc::channel(100);
        let send_from = |bytes: &[u8]| {
            for piece in bytes.chunks(30_011) {
                send.blocking_send(Arrived::Piece(Bytes::copy_from_slice(piece))).unwrap();
            }
            send.blocking_send(Arrived::All).unwrap();
        };
        send_from(&blob);
        if again {
            send.blocking_send(Arrived::Again).unwrap();
            send_from(&good[flipped << 16..]);
        }
        drop(send);
        let (refuse, mut refused) = mpsc::channel(10);
        let ended = super::receive(&plan, receive, &refuse, &spool, &|_| {});
        // Time for a reader that gets what it should not get.
        std::thread::sleep(std::time::Duration::from_millis(50));
        spool.end(End::Failed);
        let read = reader.join().unwrap();
        assert!(read == good[..read.len()]);
        drop(refuse);
        (read, ended, std::iter::from_fn(|| refused.blocking_recv()).collect())
    }

    #[test]
    fn a_reader_gets_nothing_of_a_wrong_chunk_and_nothing_after_it() {
        for flipped in [0, 3, 15] {
            let (read, ended, wrong) = received(true, flipped, false);
            assert_eq!(read.len(), flipped << 16);
            assert!(ended.is_ok() && wrong.len() == 1, "who sends is told, and says what to tell");
            assert_eq!(wrong[0].chunk.number, flipped as u64);
        }
        // without a list nothing is read
        let (read, ended, _) = received(false, 3, false);
        assert!(read.is_empty() && matches!(ended, Err(PullError::LayerDigest { layer: 4, .. })));
    }

    #[test]
    fn a_chunk_that_comes_right_the_second_time_is_read_once_and_the_sums_are_right() {
        for flipped in [0, 3, 15] {
            let (read, ended, wrong) = received(true, flipped, true);
            assert!(ended.is_ok() && wrong.len() == 1, "{ended:?}");
            assert_eq!(read.len(), 1_000_000);
        }
    }
}
