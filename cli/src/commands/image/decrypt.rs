//! `kata-cc image decrypt`: an image, its layers decrypted with keys at hand, for who owns them. Guests never need it.

use std::path::PathBuf;

use anyhow::Context as _;
use kata_cc_image::{DecryptOptions, HeldKeys, KeyProvider, decrypt_image};
use serde_json::json;
use zeroize::Zeroizing;

use super::encrypt::selection;
use super::{RegistryArguments, key_file, providers};
use crate::commands::{block_on, read_input, secret};
use crate::output::{Output, note, printable};

/// Most bytes of a private key's file.
const MAX_KEY: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Decrypt {
    /// Image: a registry reference, oci:DIR[:TAG] or oci-archive:FILE[:TAG].
    src: String,
    /// Where the decrypted one goes, in the same forms.
    dst: String,
    /// Name of the key in the key broker, kbs:///repository/type/tag.
    #[arg(long, value_name = "URI", requires = "key_file", required_unless_present = "decryption_key")]
    key_id: Option<String>,
    /// File with that key (32 bytes).
    #[arg(long, value_name = "FILE", requires = "key_id")]
    key_file: Option<PathBuf>,
    /// Private key (PEM) of a public key or certificate that the image was encrypted for, or provider:NAME[:PARAMETERS] for a key
    /// provider that OCICRYPT_KEYPROVIDER_CONFIG names. More than once for several.
    #[arg(long, value_name = "FILE")]
    decryption_key: Vec<String>,
    /// Number of a layer to decrypt, from 0; negative ones count from the top. All without it; more than once for several.
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    layer: Vec<i64>,
    #[command(flatten)]
    registry: RegistryArguments,
}

impl Decrypt {
    /// Who opens layer keys: what is at hand first.
    fn keys(&self) -> anyhow::Result<Vec<Box<dyn KeyProvider>>> {
        let mut held = HeldKeys::default();
        let mut others: Vec<Box<dyn KeyProvider>> = Vec::new();
        if let (Some(key_id), Some(file)) = (&self.key_id, &self.key_file) {
            secret::resource_path(key_id)?;
            held.by_id.insert(key_id.clone(), key_file::read(file)?);
        }
        for key in &self.decryption_key {
            match key.strip_prefix("provider:") {
                Some(name) => others.push(Box::new(providers::named(name)?)),
                None => {
                    let pem = read_input(Some(key.as_ref()), MAX_KEY)?;
                    held.add_private_pem(Zeroizing::new(pem.to_vec()))
                        .with_context(|| format!("{key} is no private key in PEM without a passphrase"))?;
                }
            }
        }
        others.insert(0, Box::new(held));
        Ok(others)
    }
}

/// Run it.
pub(super) fn run(arguments: &Decrypt, output: &Output) -> anyhow::Result<()> {
    let Decrypt { src, dst, .. } = arguments;
    let options = DecryptOptions {
        keys: arguments.keys()?,
        layers: selection(&arguments.layer),
        client: arguments.registry.config(&[src, dst])?,
    };
    let progress = output.progress(&format!("kata-cc: decrypting {} to {}", printable(src), printable(dst)));
    let made = block_on(async { Ok(decrypt_image(src, dst, &options).await?) });
    drop(progress);
    let made = made?;
    if made.unbound_layers > 0 {
        note(&format!(
            "kata-cc: {} layers do not say which image they were encrypted for",
            made.unbound_layers
        ));
    }
    if output.json {
        return output.document(&json!({"image": dst, "manifest_digest": made.manifest_digest.to_string(),
            "decrypted_layers": made.decrypted_layers, "unbound_layers": made.unbound_layers,
            "layers": made.layers}));
    }
    output.text(&format!(
        "{dst}  {}  {} of {} layers decrypted\n",
        made.manifest_digest, made.decrypted_layers, made.layers
    ))
}
