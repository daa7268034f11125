//! `kata-cc image`: make encrypted images, look at images, and check their signatures.

mod verify;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use kata_cc_image::{
    ClientConfig, DockerAuth, DockerAuthConfig, EncryptOptions, Registries, RequiredTier, Summary,
    encrypt_image, inspect,
};
use serde_json::json;
use zeroize::Zeroizing;

mod seal;
mod unpack;

use super::{block_on, read_input, secret};
use crate::output::{Output, printable};

const KEY_LEN: usize = 32;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Copy an image, its layers encrypted.
    Encrypt {
        /// Image: a registry reference, oci:DIR[:TAG] or oci-archive:FILE[:TAG].
        src: String,
        /// Where the encrypted one goes, in the same forms.
        dst: String,
        /// Name of the key in the key broker, kbs:///repository/type/tag.
        #[arg(long, value_name = "URI")]
        key_id: String,
        /// File with the key (32 bytes); made when it is not there. `kata-cc secret put` gives it to the key broker.
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        /// Tier that the image demands: confidential, snp, tdx.
        #[arg(long, value_name = "TIER")]
        require_tier: Option<RequiredTier>,
        #[command(flatten)]
        registry: RegistryArguments,
    },
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
        /// Put the seal beside the image in its registry, as a referrer. Guests believe it when it is signed as their policy demands of the
        /// image: sign the digest that is printed (`cosign sign`).
        #[arg(long)]
        push: bool,
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

/// The key of a file; made, for its owner only, when it is not there. Gives whether it is new.
fn key(file: &Path) -> anyhow::Result<(Zeroizing<Vec<u8>>, bool)> {
    if file.exists() {
        let key = read_input(Some(file), KEY_LEN as u64)
            .with_context(|| format!("{} is no key of {KEY_LEN} bytes", file.display()))?;
        anyhow::ensure!(
            key.len() == KEY_LEN,
            "{} has {} bytes, a key has {KEY_LEN}",
            file.display(),
            key.len()
        );
        return Ok((key, false));
    }
    let mut key = Zeroizing::new(vec![0; KEY_LEN]);
    SystemRandom::new().fill(&mut key).map_err(|_| anyhow::anyhow!("there is no randomness to be had"))?;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    made.and_then(|mut made| made.write_all(&key))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok((key, true))
}

/// Run it.
pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<u8> {
    match command {
        Command::Encrypt { src, dst, key_id, key_file, require_tier, registry } => {
            anyhow::ensure!(
                key_id.starts_with("kbs://"),
                "--key-id must be kbs:///repository/type/tag, seen {key_id:?}"
            );
            secret::resource_path(&key_id)?;
            let client = registry.config(&[&src, &dst])?;
            let (key, new) = key(&key_file)?;
            let options =
                EncryptOptions { required_tier: require_tier, client, ..EncryptOptions::new(&key_id, key) };
            let progress =
                output.progress(&format!("kata-cc: encrypting {} to {}", printable(&src), printable(&dst)));
            let made = block_on(async { Ok(encrypt_image(&src, &dst, &options).await?) });
            drop(progress);
            let made = made?;
            if output.json {
                output.document(&json!({"image": dst, "manifest_digest": made.manifest_digest.to_string(), "key_id": key_id,
                    "encrypted_layers": made.encrypted_layers, "layers": made.layers, "key_file": key_file, "key_is_new": new}))?;
            } else {
                output.text(&format!(
                    "{dst}  {}  {} of {} layers encrypted for {key_id}\n\
                     give the key to the key broker: kata-cc secret put {key_id} --file {}\n",
                    made.manifest_digest,
                    made.encrypted_layers,
                    made.layers,
                    key_file.display()
                ))?;
            }
        }
        Command::Seal { name, output: file, seal, push, registry } => {
            let client = registry.config(&[&name])?;
            let places = seal::Places { file: file.as_deref(), seal: seal.as_deref(), push };
            seal::run(&name, &client, &places, output)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let (first, new) = key(&file).unwrap();
        assert!(new && first.len() == KEY_LEN);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(key(&file).unwrap(), (first, false));
        for length in [0, 31, 33, 64] {
            std::fs::write(&file, vec![1; length]).unwrap();
            assert!(key(&file).is_err(), "{length}");
        }
    }
}
