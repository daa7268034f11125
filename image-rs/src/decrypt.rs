//! Makes plain images of encrypted ones, with keys at hand.
//!
//! For who owns the keys: guests decrypt while they pull and never write a plain image. Nothing of a layer is published before its HMAC is
//! known to be right, it is known to be encrypted for this image (`crate::pins`) where that is told, and it unpacks to the digest in the
//! configuration.

use std::io::{Read, Write as _};
use std::path::Path;

use crate::crypto::{CryptoError, DecryptReader, ENCRYPTION, PUBOPTS, PrivateOptions, PublicOptions};
use crate::digest::{Digest, DigestError, Hasher};
use crate::encrypt::LayerSelection;
use crate::keys::{KeyProvider, OpenError, open_any};
use crate::layer::decompress;
use crate::manifest::{Descriptor, ManifestError};
use crate::media::{LayerType, MediaError};
use crate::pull::{ClientConfig, packets};
use crate::store::{Store, StoreError, WorkDir};

/// How an image is decrypted.
pub struct DecryptOptions {
    /// Who opens layer keys; each is asked in turn.
    pub keys: Vec<Box<dyn KeyProvider>>,
    /// Which layers; all that are encrypted with [`LayerSelection::All`].
    pub layers: LayerSelection,
    /// How registries are reached.
    pub client: ClientConfig,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct DecryptedImage {
    /// Digest of the new manifest.
    pub manifest_digest: Digest,
    /// How many layers were decrypted.
    pub decrypted_layers: usize,
    /// How many of them do not say which image they were encrypted for.
    pub unbound_layers: usize,
    /// How many layers there are.
    pub layers: usize,
}

/// Why no image was decrypted.
#[derive(Debug, thiserror::Error)]
pub enum DecryptError {
    /// Source or destination.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source's manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A digest in it.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// Its configuration.
    #[error("the image's configuration is refused: {0}")]
    Config(String),
    /// A layer of a kind that is not known.
    #[error("layer {layer}: {source}")]
    Media {
        /// Its number.
        layer: usize,
        /// Its type.
        source: MediaError,
    },
    /// Layer numbers that make no sense.
    #[error("the image cannot be decrypted: {0}")]
    Options(String),
    /// No key opens a layer.
    #[error("layer {layer} is not decrypted: {source}")]
    Key {
        /// Its number.
        layer: usize,
        /// Why.
        source: OpenError,
    },
    /// A layer, its options or its HMAC.
    #[error("layer {layer}: {source}")]
    Crypto {
        /// Its number.
        layer: usize,
        /// What is wrong.
        source: CryptoError,
    },
    /// A layer that was encrypted for another image.
    #[error("layer {layer} was encrypted for the image with configuration {theirs}, this one has {ours}")]
    OtherImage {
        /// Its number.
        layer: usize,
        /// Digest of the configuration it was encrypted for.
        theirs: Digest,
        /// Digest of this configuration.
        ours: Digest,
    },
    /// A layer that is not the one of the configuration.
    #[error("layer {layer} unpacks to {seen}, the image's configuration says {expected}")]
    DiffId {
        /// Its number.
        layer: usize,
        /// What it unpacks to.
        seen: Digest,
        /// What it should be.
        expected: Digest,
    },
    /// The temporary folder, or reading the layer.
    #[error("decrypting layer {layer} failed: {source}")]
    Io {
        /// Its number.
        layer: usize,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The worker ended early.
    #[error("the decryption was cut off")]
    CutOff,
}

/// Copies the image `src` to `dst`, its layers decrypted.
///
/// # Errors
/// See [`DecryptError`]. A layer that is not decrypted leaves no image.
pub async fn decrypt_image(
    src: &str,
    dst: &str,
    options: &DecryptOptions,
) -> Result<DecryptedImage, DecryptError> {
    let work = WorkDir::create()?;
    let source = Store::open(src, &options.client, work.path()).await?;
    let target = Store::create(dst, &options.client, work.path())?;
    let (mut manifest, _) = source.manifest(&options.client).await?;
    let chosen = options.layers.chosen(manifest.layers.len()).map_err(DecryptError::Options)?;
    let all = options.layers == LayerSelection::All;
    let ours = manifest.config.digest()?;
    let config = source.blob(&manifest.config, work.path()).await?;
    let diff_ids = read_diff_ids(&config, manifest.layers.len())?;
    target.put_blob(&ours, &config, manifest.config.size).await?;
    let (mut decrypted_layers, mut unbound_layers) = (0, 0);
    for (number, (layer, diff_id)) in manifest.layers.iter_mut().zip(&diff_ids).enumerate() {
        let kind = LayerType::parse(&layer.media_type)
            .map_err(|source| DecryptError::Media { layer: number, source })?;
        if !kind.encrypted && chosen.contains(&number) && !all {
            return Err(DecryptError::Options(format!("layer {number} is not encrypted")));
        }
        let path = source.blob(layer, work.path()).await?;
        let mut put = path.clone();
        if kind.encrypted && chosen.contains(&number) {
            let options = open_layer(layer, number, &options.keys).await?;
            match options.0.config.as_ref() {
                Some(theirs) if *theirs != ours => {
                    return Err(DecryptError::OtherImage { layer: number, theirs: theirs.clone(), ours });
                }
                Some(_) => {}
                None => unbound_layers += 1,
            }
            put = work.path().join("opened");
            let (from, to, expected) = (path.clone(), put.clone(), diff_id.clone());
            let work = move || decrypt_layer(number, kind, (&from, &to), &options, &expected);
            let opened = tokio::task::spawn_blocking(work).await.map_err(|_| DecryptError::CutOff)??;
            (layer.digest, layer.size) = (opened.0.to_string(), opened.1);
            layer.media_type = LayerType { encrypted: false, ..kind }.oci_name();
            layer.annotations.retain(|name, _| !name.starts_with(ENCRYPTION));
            decrypted_layers += 1;
        }
        target.put_blob(&layer.digest()?, &put, layer.size).await?;
        for file in [&path, &put] {
            let _ = tokio::fs::remove_file(file).await;
        }
    }
    let bytes = serde_json::to_vec(&manifest).map_err(ManifestError::from)?;
    let manifest_digest = target.finish(bytes).await?;
    Ok(DecryptedImage { manifest_digest, decrypted_layers, unbound_layers, layers: manifest.layers.len() })
}

fn read_diff_ids(config: &Path, layers: usize) -> Result<Vec<Digest>, DecryptError> {
    let wrong = |why: String| DecryptError::Config(why);
    let bytes = std::fs::read(config).map_err(|error| wrong(error.to_string()))?;
    let config = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    crate::pull::diff_ids(&config, layers).map_err(|error| wrong(error.to_string()))
}

async fn open_layer(
    descriptor: &Descriptor,
    layer: usize,
    keys: &[Box<dyn KeyProvider>],
) -> Result<(PrivateOptions, PublicOptions), DecryptError> {
    let crypto = |source| DecryptError::Crypto { layer, source };
    let public = descriptor.annotations.get(PUBOPTS).map_or("", String::as_str);
    let public = PublicOptions::from_annotation(public).map_err(crypto)?;
    let json =
        open_any(&packets(descriptor), keys).await.map_err(|source| DecryptError::Key { layer, source })?;
    Ok((PrivateOptions::read(&json).map_err(crypto)?, public))
}

/// Decrypts the file of a layer into another, and checks what it unpacks to; gives digest and size.
fn decrypt_layer(
    layer: usize,
    kind: LayerType,
    (from, to): (&Path, &Path),
    (private, public): &(PrivateOptions, PublicOptions),
    expected: &Digest,
) -> Result<(Digest, u64), DecryptError> {
    let io = |source| DecryptError::Io { layer, source };
    let crypto = |source| DecryptError::Crypto { layer, source };
    let input = std::fs::File::open(from).map_err(io)?;
    let mut input = DecryptReader::new(input, &private.key, public).map_err(crypto)?;
    let mut output = std::io::BufWriter::new(std::fs::File::create(to).map_err(io)?);
    let (mut hasher, mut size) = (Hasher::sha256(), 0);
    pieces(&mut input, |piece| {
        hasher.update(piece);
        size += piece.len() as u64;
        output.write_all(piece)
    })
    .map_err(|source| match source.downcast() {
        Ok(source) => crypto(source),
        Err(source) => io(source),
    })?;
    output.flush().map_err(io)?;
    let plain = std::io::BufReader::new(std::fs::File::open(to).map_err(io)?);
    let mut plain = decompress(kind.codec, Box::new(plain)).map_err(io)?;
    let mut unpacked = expected.hasher();
    pieces(&mut plain, |piece| {
        unpacked.update(piece);
        Ok(())
    })
    .map_err(io)?;
    let seen = unpacked.finish();
    if seen != *expected {
        return Err(DecryptError::DiffId { layer, seen, expected: expected.clone() });
    }
    Ok((hasher.finish(), size))
}

/// Reads to the end, piece by piece.
fn pieces(from: &mut impl Read, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut buffer = zeroize::Zeroizing::new(vec![0; 128 << 10]);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => take(&buffer[..count])?,
        }
    }
}
