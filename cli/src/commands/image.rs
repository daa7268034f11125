//! `kata-cc image`: encrypt and decrypt images, look at images, and check their signatures.

mod chunks;
mod decrypt;
mod encrypt;
mod key_file;
mod keyprovider;
mod providers;
mod referrer;
mod seal;
mod sign;
mod unpack;
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kata_cc_image::{ClientConfig, DockerAuth, DockerAuthConfig, Registries, Summary, inspect};

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
    /// Make one read-only file of an image's layers, whose every block a root hash vouches for: guests of this node that have the
    /// seal take it instead of pulling the layers. Of an encrypted image the layers are kept as they are, and guests read them from there.
    Seal(seal::Seal),
    /// List the hashes of an image's chunks: guests that have the list, signed, decrypt and unpack layers while they still come. Works for
    /// encrypted images without any key.
    Chunks(chunks::Chunks),
    /// Sign what a name stands for in its registry, as `cosign sign` does with a key: an image, a seal, anything.
    Sign(sign::Sign),
    /// Tell what an image is and who can open it.
    Inspect {
        /// Image: a registry reference, oci:DIR[:TAG] or oci-archive:FILE[:TAG].
        name: String,
        #[command(flatten)]
        registry: RegistryArguments,
    },
    /// Check an image's signatures against a policy: exit code 0 verified, 1 refused, 2 not readable or reachable.
    Verify(verify::Verify),
    /// Pull an image into a folder as a guest does: digests and signatures checked, layers decrypted and unpacked while they come.
    Unpack(unpack::Unpack),
}

/// How registries are reached.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct RegistryArguments {
    /// PEM of a root that registries are trusted by, beside the system's.
    #[arg(long, value_name = "FILE")]
    registry_ca: Vec<PathBuf>,
    /// Registry spoken to without TLS.
    #[arg(long, value_name = "HOST:PORT")]
    insecure_registry: Vec<String>,
    /// Mirrors and other locations of registries, as containers-registries.conf(5) has them.
    #[arg(long, value_name = "FILE")]
    registries: Option<PathBuf>,
    /// User at the registries named; the password is taken from KATA_CC_REGISTRY_PASSWORD.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

impl RegistryArguments {
    /// A client's settings for these images.
    pub(crate) fn config(&self, images: &[&str]) -> anyhow::Result<ClientConfig> {
        let read =
            |file: &PathBuf| std::fs::read(file).with_context(|| format!("cannot read {}", file.display()));
        let mut auth = None;
        if let Some(user) = &self.user {
            let password = std::env::var("KATA_CC_REGISTRY_PASSWORD")
                .context("--user needs the password in KATA_CC_REGISTRY_PASSWORD")?;
            let mut auths = BTreeMap::new();
            for image in images.iter().filter(|image| referrer::in_registry(image)) {
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
            registries: self.registries.as_deref().map(registries).transpose()?.unwrap_or_default(),
            auth,
            ..ClientConfig::default()
        })
    }
}

fn registries(file: &Path) -> anyhow::Result<Registries> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Registries::parse(&text).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))
}

/// Run it.
pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<u8> {
    match command {
        Command::Encrypt(arguments) => encrypt::run(&arguments, output)?,
        Command::Decrypt(arguments) => decrypt::run(&arguments, output)?,
        Command::Keyprovider(arguments) => keyprovider::run(&arguments, output)?,
        Command::Sign(arguments) => sign::run(&arguments, output)?,
        Command::Seal(arguments) => seal::run(&arguments, output)?,
        Command::Chunks(arguments) => chunks::run(&arguments, output)?,
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
        Command::Unpack(arguments) => unpack::run(arguments, output)?,
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
