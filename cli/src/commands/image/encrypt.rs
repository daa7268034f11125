//! `kata-cc image encrypt`: an image, its layers encrypted for guests, owners of key pairs and certificates, and key providers.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use kata_cc_image::{EncryptOptions, LayerSelection, Recipient, RequiredTier, encrypt_image};
use serde_json::json;

use super::{RegistryArguments, key_file, providers};
use crate::commands::{block_on, read_input, secret};
use crate::output::{Output, printable};

/// Most bytes of a public key or a certificate.
const MAX_PUBLIC: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Encrypt {
    /// Image: a registry reference, oci:DIR[:TAG] or oci-archive:FILE[:TAG].
    src: String,
    /// Where the encrypted one goes, in the same forms.
    dst: String,
    /// Name of the key in the key broker, kbs:///repository/type/tag.
    #[arg(long, value_name = "URI", requires = "key_file", required_unless_present = "recipient")]
    key_id: Option<String>,
    /// File with the key (32 bytes); made when it is not there. `kata-cc secret put` gives it to the key broker.
    #[arg(long, value_name = "FILE", requires = "key_id")]
    key_file: Option<PathBuf>,
    /// Who else shall open it: jwe:PUBLIC-KEY.pem, pkcs7:CERTIFICATE.pem, or provider:NAME[:PARAMETERS] for a key provider that
    /// OCICRYPT_KEYPROVIDER_CONFIG names. More than once for several.
    #[arg(long, value_name = "KIND:FILE")]
    recipient: Vec<String>,
    /// Number of a layer to encrypt, from 0; negative ones count from the top. All without it; more than once for several.
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    layer: Vec<i64>,
    /// Tier that the image demands: confidential, snp, tdx.
    #[arg(long, value_name = "TIER")]
    require_tier: Option<RequiredTier>,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// The layers that the numbers of a command line mean.
pub(super) fn selection(numbers: &[i64]) -> LayerSelection {
    if numbers.is_empty() { LayerSelection::All } else { LayerSelection::Only(numbers.to_vec()) }
}

/// A recipient as it stands on a command line.
fn recipient(text: &str) -> anyhow::Result<Recipient> {
    let wrong =
        || format!("--recipient must be jwe:FILE, pkcs7:FILE or provider:NAME[:PARAMETERS], seen {text:?}");
    let (kind, rest) = text.split_once(':').with_context(wrong)?;
    let read = || read_input(Some(rest.as_ref()), MAX_PUBLIC).map(|bytes| bytes.to_vec());
    Ok(match kind {
        "jwe" => Recipient::Jwe(read()?),
        "pkcs7" => Recipient::Pkcs7(read()?),
        "provider" => Recipient::Provider(providers::named(rest)?),
        _ => anyhow::bail!(wrong()),
    })
}

/// Run it.
pub(super) fn run(arguments: &Encrypt, output: &Output) -> anyhow::Result<()> {
    let Encrypt { src, dst, .. } = arguments;
    let mut recipients: Vec<_> =
        arguments.recipient.iter().map(|text| recipient(text)).collect::<anyhow::Result<_>>()?;
    let client = arguments.registry.config(&[src, dst])?;
    let mut broker = None;
    if let (Some(key_id), Some(file)) = (&arguments.key_id, &arguments.key_file) {
        ensure!(key_id.starts_with("kbs://"), "--key-id must be kbs:///repository/type/tag, seen {key_id:?}");
        secret::resource_path(key_id)?;
        let (key, new) = key_file::read_or_make(file)?;
        recipients.insert(0, Recipient::Broker { key_id: key_id.clone(), key });
        broker = Some((key_id, file, new));
    }
    let options = EncryptOptions {
        required_tier: arguments.require_tier,
        layers: selection(&arguments.layer),
        client,
        ..EncryptOptions::for_recipients(recipients)
    };
    let progress = output.progress(&format!("kata-cc: encrypting {} to {}", printable(src), printable(dst)));
    let made = block_on(async { Ok(encrypt_image(src, dst, &options).await?) });
    drop(progress);
    let made = made?;
    if output.json {
        return output.document(&json!({"image": dst, "manifest_digest": made.manifest_digest.to_string(),
            "key_id": broker.map(|(id, _, _)| id), "recipients": arguments.recipient,
            "encrypted_layers": made.encrypted_layers, "layers": made.layers,
            "key_file": broker.map(|(_, file, _)| file), "key_is_new": broker.is_some_and(|(_, _, new)| new)}));
    }
    let names = broker.iter().map(|(id, _, _)| (*id).clone()).chain(arguments.recipient.iter().cloned());
    let names: Vec<String> = names.map(|name| printable(&name)).collect();
    let mut text = format!(
        "{dst}  {}  {} of {} layers encrypted for {}\n",
        made.manifest_digest,
        made.encrypted_layers,
        made.layers,
        names.join(", ")
    );
    match broker {
        Some((id, file, _)) => text.push_str(&format!(
            "give the key to the key broker: kata-cc secret put {id} --file {}\n",
            file.display()
        )),
        None => text.push_str("no key of a key broker opens it: guests cannot run it\n"),
    }
    output.text(&text)
}
