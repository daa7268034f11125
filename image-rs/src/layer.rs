//! One layer on its way from the registry to the root folder.
//!
//! The blob goes through a [`Spool`] while its digest and, for an encrypted one, its HMAC are computed; from there it is decrypted,
//! decompressed and unpacked, piece by piece, while the HMAC and the diff id of the image configuration are checked once more.
//! Memory is bounded by a few buffers whatever the layer's size. Nothing of the image is visible before all of it was checked.

use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;
use tokio_util::bytes::Bytes;

use crate::crypto::{DecryptReader, LayerKey, PublicOptions, verify_mac};
use crate::digest::{Digest, Hasher};
use crate::error::PullError;
use crate::media::{Codec, LayerType};
use crate::pull::spool::{End, Spool, SpoolReader};
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
}

impl LayerPlan {
    /// Whether it may be unpacked while it still comes, when nobody vouches for its bytes yet. Not so where they would be
    /// decrypted: CTR lets anybody flip bits. Nor where they go through the zstd library: what a registry chose freely is seen by
    /// code that is safe by its language alone.
    pub(crate) fn streams(&self) -> bool {
        self.sealed.is_none() && self.kind.codec != Codec::Zstd
    }
}

/// What comes from the network.
pub(crate) enum Arrived {
    /// The next bytes.
    Piece(Bytes),
    /// There are no more.
    All,
}

/// Takes the blob of `plan` from the network to the spool, and checks size, digest and HMAC. Keeps a thread.
///
/// # Errors
/// When one of them is wrong. A network that falls silent without the end is no error of this half.
pub(crate) fn receive(
    plan: &LayerPlan,
    mut arriving: mpsc::Receiver<Arrived>,
    spool: &Spool,
    progress: &dyn Fn(u64),
) -> Result<(), PullError> {
    let mut hasher = plan.digest.hasher();
    let mut mac = plan.sealed.as_ref().map(|sealed| sealed.key.mac());
    let mut have = 0u64;
    loop {
        let piece = match arriving.blocking_recv() {
            Some(Arrived::Piece(piece)) => piece,
            Some(Arrived::All) => break,
            None => return Ok(()),
        };
        have += piece.len() as u64;
        if have > plan.size {
            return Err(PullError::LayerSize { layer: plan.number, expected: plan.size, seen: have });
        }
        hasher.update(&piece);
        if let Some(mac) = mac.as_mut() {
            mac.update(&piece);
        }
        let written = spool.write(&piece);
        if !written.map_err(|source| PullError::Spool { layer: plan.number, source })? {
            return Ok(());
        }
        progress(have);
    }
    let seen = hasher.finish();
    if seen != plan.digest {
        return Err(PullError::LayerDigest { layer: plan.number, expected: plan.digest.clone(), seen });
    }
    if have != plan.size {
        return Err(PullError::LayerSize { layer: plan.number, expected: plan.size, seen: have });
    }
    if let (Some(mac), Some(sealed)) = (mac, plan.sealed.as_ref()) {
        verify_mac(mac, &sealed.options.hmac)
            .map_err(|source| PullError::Decrypt { layer: plan.number, source })?;
    }
    spool.end(End::Checked);
    Ok(())
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
    let plain: Box<dyn Read> = match &plan.sealed {
        None => Box::new(file),
        Some(sealed) => Box::new(
            DecryptReader::new(file, &sealed.key, &sealed.options)
                .map_err(|source| PullError::Decrypt { layer: plan.number, source })?,
        ),
    };
    let mut archive = Archive {
        inner: decompress(plan.kind.codec, plain)
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
pub fn decompress(codec: Codec, plain: Box<dyn Read>) -> io::Result<Box<dyn Read>> {
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
