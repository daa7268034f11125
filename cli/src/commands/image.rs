//! `kata-cc image`: encrypt and decrypt images, look at images, and check their signatures.

mod decrypt;
mod encrypt;
mod key_file;
mod keyprovider;
mod providers;
mod seal;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use kata_cc_image::{ClientConfig, DockerAuth, DockerAuthConfig, Summary, inspect};

use super::block_on;
use crate::output::{Output, printable};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Copy an image, its layers encrypted.
    Encrypt(encrypt::Encrypt),
    /// Copy an image, its layers decrypted with keys at hand.
    Decrypt(decrypt::Decrypt),
    /// Wrap and unwrap layer keys for skopeo and other tools: a key provider program of ocicrypt, asked on standard input.
    Keyprovider(keyprovider::Keyprovider),
    /// Make one read-only file of an image's layers, whose every block a root hash vouches for: guests of this node whose init-data
    /// has the seal take it instead of pulling the layers.
    Seal {
        /// Image: a registry reference, oci:DIR[:TAG] or oci-archive:FILE[:TAG].
        name: String,
        /// File for the sealed image; without it, it goes to this node's folder of sealed images.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// File for the seal (JSON), for `[image] seals` of the node's configuration or a pod's init-data.
        #[arg(long, value_name = "FILE")]
        seal: Option<PathBuf>,
        #[command(flatten)]
        registry: RegistryArguments,
    },
    /// Tell what an image is and who can open it.
    Inspect {
        /// Image: a registry reference, oci:DIR[:TAG] or oci-archive:FILE[:TAG].
        name: String,
        #[command(flatten)]
        registry: RegistryArguments,
    },
    /// Check an image's signatures against a policy: exit code 0 verified, 1 refused, 2 not readable or reachable.
    Verify(verify::Verify),
}

/// How registries are reached.
#[derive(Debug, clap::Args)]
pub(crate) struct RegistryArguments {
    /// PEM of a root that registries are trusted by, beside the system's.
    #[arg(long, value_name = "FILE")]
    registry_ca: Vec<PathBuf>,
    /// Registry spoken to without TLS.
    #[arg(long, value_name = "HOST:PORT")]
    insecure_registry: Vec<String>,
    /// User at the registries named; the password is taken from KATA_CC_REGISTRY_PASSWORD.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

impl RegistryArguments {
    /// A client's settings for these images.
    pub(super) fn config(&self, images: &[&str]) -> anyhow::Result<ClientConfig> {
        let read =
            |file: &PathBuf| std::fs::read(file).with_context(|| format!("cannot read {}", file.display()));
        let mut auth = None;
        if let Some(user) = &self.user {
            let password = std::env::var("KATA_CC_REGISTRY_PASSWORD")
                .context("--user needs the password in KATA_CC_REGISTRY_PASSWORD")?;
            let mut auths = BTreeMap::new();
            for image in
                images.iter().filter(|image| !image.starts_with("oci:") && !image.starts_with("oci-archive:"))
            {
                let host = kata_cc_image::parse_reference(image)?.registry().to_owned();
                let entry = DockerAuth {
                    username: Some(user.clone()),
                    password: Some(password.clone()),
                    ..DockerAuth::default()
                };
                auths.insert(host, entry);
            }
            auth = Some(DockerAuthConfig { auths });
        }
        Ok(ClientConfig {
            extra_roots_pem: self.registry_ca.iter().map(read).collect::<anyhow::Result<_>>()?,
            insecure_registries: self.insecure_registry.clone(),
            auth,
            ..ClientConfig::default()
        })
    }
}

/// Run it.
pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<u8> {
    match command {
        Command::Encrypt(arguments) => encrypt::run(&arguments, output)?,
        Command::Decrypt(arguments) => decrypt::run(&arguments, output)?,
        Command::Keyprovider(arguments) => keyprovider::run(&arguments, output)?,
        Command::Seal { name, output: file, seal, registry } => {
            let client = registry.config(&[&name])?;
            seal::run(&name, &client, file.as_deref(), seal.as_deref(), output)?;
        }
        Command::Inspect { name, registry } => {
            let client = registry.config(&[&name])?;
            let summary = block_on(async { Ok(inspect(&name, &client).await?) })?;
            if output.json {
                output.document(&summary)?;
                return Ok(0);
            }
            output.text(&describe(&summary))?;
        }
        Command::Verify(arguments) => return verify::run(arguments, output),
    }
    Ok(0)
}

/// What an image is, in lines of text; its texts are whoever's who made it.
fn describe(summary: &Summary) -> String {
    let mut lines = vec![
        format!("digest     {}", summary.manifest_digest),
        format!("encrypted  {}", if summary.encrypted { "yes" } else { "no" }),
        format!("demands    {}", summary.required_tier.as_deref().unwrap_or("no tier")),
    ];
    for layer in &summary.layers {
        let recipients = layer.recipients.iter();
        let ids: Vec<&str> = recipients.map(|one| one.key_id.as_deref().unwrap_or(&one.scheme)).collect();
        let (digest, size, media) = (&layer.digest, layer.size, &layer.media_type);
        lines.push(format!("layer      {digest}  {size} bytes  {media} {}", ids.join(" ")));
    }
    lines.iter().map(|line| printable(line) + "\n").collect()
}
