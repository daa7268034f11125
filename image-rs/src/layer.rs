//! One layer on its way from the registry to the root folder.
//!
//! First the whole blob is fetched to the work folder while its digest and, for an encrypted one, its HMAC are computed. Only
//! when both are right is it read again: decrypted, decompressed, unpacked, piece by piece, while the HMAC and the
//! diff id of the image configuration are checked once more. So no parser sees a byte nobody vouches for, and
//! memory is bounded by a few buffers whatever the layer's size.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use tokio::io::AsyncWriteExt as _;

use crate::crypto::{DecryptReader, LayerKey, PublicOptions, verify_mac};
use crate::digest::{Digest, Hasher};
use crate::error::PullError;
use crate::media::{Codec, LayerType};
use crate::registry::Registry;
use crate::unpack::{self, Budget, LayerStats, Owner};
use oci_client::Reference;

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

/// Fetches the blob of `plan` into `folder`, and checks size, digest and HMAC.
pub(crate) async fn download(
    registry: &Registry,
    reference: &Reference,
    plan: &LayerPlan,
    folder: &Path,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<PathBuf, PullError> {
    let path = folder.join(format!("layer-{}", plan.number));
    let file = tokio::fs::File::create(&path).await.map_err(PullError::work("creating", &path))?;
    let mut file = tokio::io::BufWriter::with_capacity(256 << 10, file);
    let mut hasher = plan.digest.hasher();
    let mut mac = plan.sealed.as_ref().map(|sealed| sealed.key.mac());
    let mut have = 0u64;
    let result = registry
        .blob::<PullError>(reference, &plan.digest, async |piece| {
            have += piece.len() as u64;
            if have > plan.size {
                return Err(PullError::LayerSize { layer: plan.number, expected: plan.size, seen: have });
            }
            hasher.update(&piece);
            if let Some(mac) = mac.as_mut() {
                mac.update(&piece);
            }
            file.write_all(&piece).await.map_err(PullError::work("writing", &path))?;
            progress(have);
            Ok(())
        })
        .await;
    result?;
    file.flush().await.map_err(PullError::work("writing", &path))?;
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
    Ok(path)
}

/// Unpacks the checked blob `path` onto `root`.
pub(crate) fn unpack(
    plan: &LayerPlan,
    path: &Path,
    root: &Path,
    owner: Owner,
    budget: &mut Budget,
) -> Result<LayerStats, PullError> {
    let file = File::open(path).map_err(PullError::work("opening", path))?;
    let plain: Box<dyn Read> = match &plan.sealed {
        None => Box::new(file),
        Some(sealed) => Box::new(
            DecryptReader::new(file, &sealed.key, &sealed.options)
                .map_err(|source| PullError::Decrypt { layer: plan.number, source })?,
        ),
    };
    let mut archive = Archive {
        inner: decompress(plan.kind.codec, plain).map_err(PullError::work("decompressing", path))?,
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
