//! `kata-cc secret seal|unseal|keygen`: sealed secrets, as CoCo's `secret` tool makes them.
//!
//! A sealed secret goes into an ordinary Kubernetes secret; the guest opens it. Opening one here is for checks: what the
//! key broker keeps it gives to attested guests only, so its resources are given as files.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use async_trait::async_trait;
use kata_cc_guest_api::sealed::{Payload, ResourceSource, Sealed, SigningKey, VerifyingKey};
use kata_cc_kbs_protocol::ResourcePath;
use serde_json::json;
use zeroize::Zeroizing;

use super::secret::resource_path;
use super::{block_on, read_input};
use crate::output::{Output, note};

/// Most bytes of a key file.
const MAX_KEY: u64 = 16 << 10;
/// Most bytes of a secret in an envelope: with its base64 it fits a Kubernetes secret.
const MAX_SECRET: u64 = 512 << 10;
/// Most bytes of a sealed secret.
const MAX_SEALED: u64 = kata_cc_guest_api::sealed::MAX_SEALED as u64;

/// What to seal.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Seal {
    /// A reference to a secret in the key broker.
    Vault {
        #[command(flatten)]
        signer: Signer,
        /// The secret: kbs:///repository/type/tag.
        #[arg(long, value_name = "URI")]
        resource_uri: String,
        /// Who keeps it; only kbs.
        #[arg(long, default_value = "kbs")]
        provider: String,
    },
    /// The secret itself, encrypted under a key in the key broker.
    Envelope {
        #[command(flatten)]
        signer: Signer,
        /// The key's name in the key broker: kbs:///repository/type/tag.
        #[arg(long, value_name = "URI")]
        key_id: String,
        /// File with that key: 32 bytes.
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        /// File with the secret; standard input without it.
        #[arg(long, value_name = "FILE")]
        file_path: Option<PathBuf>,
    },
}

/// Who signs.
#[derive(Debug, clap::Args)]
pub(crate) struct Signer {
    /// Name by which the guest finds the public key: kbs:///repository/type/tag, or a file name in the guest.
    #[arg(long, value_name = "KID")]
    signing_kid: String,
    /// File with the private key (JWK).
    #[arg(long, value_name = "FILE")]
    signing_jwk_path: PathBuf,
}

impl Signer {
    fn seal(&self, payload: &Payload) -> anyhow::Result<String> {
        let jwk = read_input(Some(&self.signing_jwk_path), MAX_KEY)?;
        let key = SigningKey::from_jwk(&jwk)
            .map_err(|why| anyhow::anyhow!("{}: {why}", self.signing_jwk_path.display()))?;
        Ok(payload.seal(&self.signing_kid, &key)?)
    }
}

/// How to open.
#[derive(Debug, clap::Args)]
pub(crate) struct Unseal {
    /// File with the sealed secret; standard input without it.
    #[arg(long, value_name = "FILE")]
    file_path: Option<PathBuf>,
    /// File with the signer's public key (JWK).
    #[arg(long, value_name = "FILE", required_unless_present = "skip_verification")]
    key_path: Option<PathBuf>,
    /// Do not look at the signature.
    #[arg(long)]
    skip_verification: bool,
    /// A resource of the key broker that is at hand, e.g. kbs:///default/key/1=key.bin; repeat for more.
    #[arg(long = "resource", value_name = "URI=FILE")]
    resources: Vec<String>,
}

/// Where keys go.
#[derive(Debug, clap::Args)]
pub(crate) struct Keygen {
    /// Name of the key, and of its files.
    #[arg(long, default_value = "sealed-signing")]
    kid: String,
    /// Folder for `<kid>-private.json` and `<kid>-public.json`.
    #[arg(long, value_name = "DIR", default_value = ".")]
    output_dir: PathBuf,
}

pub(super) fn seal(command: &Seal, output: &Output) -> anyhow::Result<u8> {
    let sealed = match command {
        Seal::Vault { signer, resource_uri, provider } => {
            ensure!(provider == "kbs", "provider {provider:?} is not supported: guests have kbs alone");
            signer.seal(&Payload::vault(&resource_path(resource_uri)?))?
        }
        Seal::Envelope { signer, key_id, key_file, file_path } => {
            let key = read_input(Some(key_file), MAX_KEY)?;
            ensure!(key.len() == 32, "{} has {} bytes, a key has 32", key_file.display(), key.len());
            let secret = read_input(file_path.as_deref(), MAX_SECRET)?;
            signer.seal(&Payload::envelope(&resource_path(key_id)?, &key, &secret)?)?
        }
    };
    if output.json {
        output.document(&json!({"sealed": sealed}))?;
    } else {
        output.text(&format!("{sealed}\n"))?;
    }
    Ok(0)
}

struct Files(Vec<(ResourcePath, Zeroizing<Vec<u8>>)>);

#[async_trait]
impl ResourceSource for Files {
    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, String> {
        let found = self.0.iter().find(|(known, _)| known == path).map(|(_, bytes)| bytes.clone());
        found.ok_or_else(|| format!("it is not at hand: give --resource {}=FILE", path.uri()))
    }
}

pub(super) fn unseal(arguments: &Unseal, output: &Output) -> anyhow::Result<u8> {
    let text = read_input(arguments.file_path.as_deref(), MAX_SEALED)?;
    let sealed = Sealed::parse(&text)?;
    let payload = match (&arguments.key_path, arguments.skip_verification) {
        (_, true) => {
            note("kata-cc: the signature is not looked at, as asked for");
            sealed.unverified()?
        }
        (Some(path), false) => {
            let jwk = read_input(Some(path), MAX_KEY)?;
            let key =
                VerifyingKey::from_jwk(&jwk).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
            sealed.verified(&key)?
        }
        (None, false) => anyhow::bail!("give the signer's public key by --key-path"),
    };
    let mut files = Vec::new();
    for given in &arguments.resources {
        let (uri, file) = given.split_once('=').with_context(|| format!("{given:?} is not URI=FILE"))?;
        files.push((resource_path(uri)?, read_input(Some(Path::new(file)), MAX_SECRET)?));
    }
    let opened = block_on(async { Ok(payload.open(&Files(files)).await?) })?;
    output.bytes(&opened)?;
    Ok(0)
}

pub(super) fn keygen(arguments: &Keygen, output: &Output) -> anyhow::Result<u8> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let kid = arguments.kid.as_str();
    ensure!(
        !kid.is_empty() && kid.len() <= 200 && !kid.starts_with('.') && kid.chars().all(plain),
        "{:?} is no name of a key: letters, digits, `.`, `-`, `_`, not beginning with a dot",
        kid.chars().take(200).collect::<String>()
    );
    let (private, public) = SigningKey::generate()?.to_jwks(kid)?;
    std::fs::create_dir_all(&arguments.output_dir)
        .with_context(|| format!("cannot make {}", arguments.output_dir.display()))?;
    let file = |what: &str| arguments.output_dir.join(format!("{kid}-{what}.json"));
    let (private_path, public_path) = (file("private"), file("public"));
    write_new(&private_path, private.as_bytes(), 0o600)?;
    write_new(&public_path, public.as_bytes(), 0o644)?;
    if output.json {
        output.document(&json!({"private": private_path, "public": public_path, "kid": kid}))?;
    } else {
        output.text(&format!(
            "private key {}\npublic key  {}\n",
            private_path.display(),
            public_path.display()
        ))?;
        note(
            "kata-cc: guests find the public key by its name: store it in the key broker, and sign with that URI",
        );
    }
    Ok(0)
}

/// A key is never written over another.
fn write_new(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    use std::io::Write as _;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let write = file.and_then(|mut file| file.write_all(contents));
    write.with_context(|| format!("cannot write {}", path.display()))
}
