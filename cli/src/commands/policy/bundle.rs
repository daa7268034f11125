//! `kata-cc policy bundle`: policy bundles built, signed, verified, and carried to and from registries.
//!
//! Exit codes: 0 done; 1 the bundle is refused (its checks, its signature); 2 it, a key or the registry cannot be read.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kata_cc_attestation_service::follow::ServiceChecks;
use kata_cc_image::Registry;
use kata_cc_policy_bundle::archive::MAX_ARCHIVE;
use kata_cc_policy_bundle::layout::SIGNATURE;
use kata_cc_policy_bundle::sign::{Signer, verify};
use kata_cc_policy_bundle::source::signed_by;
use kata_cc_policy_bundle::{Bundle, BundleError, Severity, artifact, folder};
use serde_json::{Value, json};

use super::super::image::RegistryArguments;
use super::super::{block_on, read_input};
use crate::output::{Output, Tone, note, printable};

/// Exit code of a bundle that is refused.
const REFUSED: u8 = 1;
/// Exit code of what cannot be read or reached.
const UNREADABLE: u8 = 2;
/// Largest key file.
const MAX_KEY: u64 = 64 << 10;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check a folder and pack it: the same folder gives the same bytes.
    Build {
        /// Folder with kata-cc-policy.yaml.
        folder: PathBuf,
        /// Where it goes: a file, or oci:DIR for an OCI layout; without it the folder is only checked.
        #[arg(long, short, value_name = "FILE|oci:DIR")]
        output: Option<String>,
        /// Revision to be told in the layout, e.g. a Git commit.
        #[arg(long)]
        revision: Option<String>,
        /// Fail on warnings as well.
        #[arg(long)]
        strict: bool,
    },
    /// Sign a folder or file (a signature is put beside it, as `cosign sign-blob` makes it) or what is in a registry (as `cosign sign` does).
    Sign {
        /// Folder, file, or registry reference.
        target: String,
        /// Private key (PKCS#8 PEM, ECDSA P-256).
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        #[command(flatten)]
        registry: RegistryArguments,
    },
    /// Check signature, parts and cases of a bundle, as a service that follows it does.
    Verify {
        /// Folder, file, or registry reference.
        target: String,
        /// Public key (PEM).
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        #[command(flatten)]
        registry: RegistryArguments,
    },
    /// Put a checked bundle into a registry, as an OCI artifact.
    Push {
        /// Folder or file.
        source: PathBuf,
        /// Where to: HOST/NAME:TAG.
        reference: String,
        /// Private key to sign it with there.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Revision to be told, e.g. a Git commit.
        #[arg(long)]
        revision: Option<String>,
        #[command(flatten)]
        registry: RegistryArguments,
    },
    /// Fetch a bundle from a registry into a file.
    Pull {
        /// HOST/NAME:TAG or HOST/NAME@DIGEST.
        reference: String,
        /// File to make.
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// Public key (PEM) that it must be signed by.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        #[command(flatten)]
        registry: RegistryArguments,
    },
    /// Tell what a bundle holds.
    Show {
        /// Folder, file, or registry reference.
        target: String,
        #[command(flatten)]
        registry: RegistryArguments,
    },
}

/// Where a bundle lies.
enum Target {
    Folder(PathBuf),
    File(PathBuf),
    Reference(String),
}

impl Target {
    fn of(text: &str) -> Self {
        let path = PathBuf::from(text);
        if path.is_dir() {
            Self::Folder(path)
        } else if path.exists() || text.starts_with(['/', '.']) {
            Self::File(path)
        } else {
            Self::Reference(text.to_owned())
        }
    }
}

/// A bundle, wherever it lies. With a key its signature must be good.
pub(super) fn load(target: &str, key: Option<&Path>, registry: &RegistryArguments) -> anyhow::Result<Bundle> {
    let key = key.map(|file| read_input(Some(file), MAX_KEY)).transpose()?;
    match Target::of(target) {
        Target::Folder(path) => {
            let read = folder::read(&path)?;
            for other in &read.others {
                note(&format!("{} is no part of the bundle and left out", printable(other)));
            }
            let bundle = Bundle::from_files(read.files)?;
            if let Some(key) = &key {
                let unsigned = || BundleError::Unsigned(target.to_owned(), SIGNATURE.to_owned());
                let signature = read.signature.ok_or_else(unsigned)?;
                verify(target, bundle.archive(), &signature, key)?;
            }
            Ok(bundle)
        }
        Target::File(path) => {
            let bytes = read_input(Some(&path), MAX_ARCHIVE)?;
            if let Some(key) = &key {
                let beside = beside(&path);
                let unsigned = |_| BundleError::Unsigned(target.to_owned(), beside.display().to_string());
                let signature = std::fs::read(&beside).map_err(unsigned)?;
                verify(target, &bytes, &signature, key)?;
            }
            Ok(Bundle::from_archive(&bytes)?)
        }
        Target::Reference(reference) => {
            let signed = key.as_ref().map(|key| signed_by(key)).transpose()?;
            let client = client(&reference, registry)?;
            block_on(async { Ok(artifact::pull(&client, &reference, signed.as_ref()).await?.bundle) })
        }
    }
}

/// Where the signature of a packed bundle lies.
fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

fn client(reference: &str, registry: &RegistryArguments) -> anyhow::Result<Registry> {
    let config = registry.config(&[reference])?;
    Ok(Registry::new(config.registry())?)
}

pub(crate) fn signer(file: &Path) -> anyhow::Result<Signer> {
    let pem = read_input(Some(file), MAX_KEY)?;
    Signer::from_pem(&pem).with_context(|| file.display().to_string())
}

/// Run it; gives the exit code.
pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<u8> {
    work(command, output).or_else(|error| {
        output.error(&error);
        Ok(exit_code(&error))
    })
}

/// Whether somebody refused it, or it could not be had.
pub(super) fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<BundleError>() {
        Some(BundleError::Read { .. } | BundleError::Registry(_) | BundleError::Key(_)) | None => UNREADABLE,
        Some(_) => REFUSED,
    }
}

fn work(command: Command, output: &Output) -> anyhow::Result<u8> {
    match command {
        Command::Build { folder, output: to, revision, strict } => {
            build(&folder, to.as_deref(), revision.as_deref(), strict, output)
        }
        Command::Sign { target, key, registry } => sign(&target, &signer(&key)?, &registry, output),
        Command::Verify { target, key, registry } => {
            let bundle = load(&target, Some(&key), &registry)?;
            checked(&bundle, false, output, json!({"signed": true}))
        }
        Command::Push { source, reference, key, revision, registry } => {
            let bundle = load(&source.display().to_string(), None, &registry)?;
            bundle.demand(&ServiceChecks)?;
            let client = client(&reference, &registry)?;
            let signer = key.as_deref().map(signer).transpose()?;
            let digest = block_on(async {
                let digest = artifact::push(&client, &reference, &bundle, revision.as_deref()).await?;
                if let Some(signer) = &signer {
                    artifact::sign(&client, &reference, signer).await?;
                }
                Ok(digest)
            })?;
            let signed = signer.is_some();
            told(
                output,
                &bundle,
                &json!({"reference": reference, "manifest_digest": digest, "signed": signed}),
                &format!("pushed {reference} {digest}{}", if signed { ", signed" } else { ", not signed" }),
            )
        }
        Command::Pull { reference, output: to, key, registry } => {
            let bundle = load(&reference, key.as_deref(), &registry)?;
            std::fs::write(&to, bundle.archive())
                .with_context(|| format!("cannot write {}", to.display()))?;
            told(
                output,
                &bundle,
                &json!({"file": to, "signed": key.is_some()}),
                &format!("wrote {}", to.display()),
            )
        }
        Command::Show { target, registry } => show(&load(&target, None, &registry)?, output),
    }
}

fn build(
    folder: &Path,
    to: Option<&str>,
    revision: Option<&str>,
    strict: bool,
    output: &Output,
) -> anyhow::Result<u8> {
    let bundle = load(&folder.display().to_string(), None, &RegistryArguments::default())?;
    let problems = bundle.check(&ServiceChecks);
    let least = if strict { Severity::Warning } else { Severity::Error };
    if problems.iter().any(|one| one.severity >= least) {
        return checked(&bundle, strict, output, json!({}));
    }
    match to {
        None => {}
        Some(to) => match to.strip_prefix("oci:") {
            Some(layout) => drop(artifact::write_layout(&bundle, Path::new(layout), revision)?),
            None => std::fs::write(to, bundle.archive()).with_context(|| format!("cannot write {to}"))?,
        },
    }
    checked(&bundle, strict, output, json!({"output": to}))
}

/// Tells what the checks found, and the bundle; gives the exit code.
fn checked(bundle: &Bundle, strict: bool, output: &Output, more: Value) -> anyhow::Result<u8> {
    let problems = bundle.check(&ServiceChecks);
    let least = if strict { Severity::Warning } else { Severity::Error };
    let refused = problems.iter().any(|one| one.severity >= least);
    if output.json {
        let mut document = json!({"passed": !refused, "name": bundle.manifest().name, "version": bundle.manifest().version,
            "digest": bundle.digest(), "files": bundle.files().len(), "problems": problems});
        if let (Some(document), Value::Object(more)) = (document.as_object_mut(), more) {
            document.extend(more);
        }
        output.document(&document)?;
        return Ok(refused.into());
    }
    for one in &problems {
        let (tone, word) = match one.severity {
            Severity::Error => (Tone::Bad, "error  "),
            Severity::Warning => (Tone::Doubtful, "warning"),
        };
        output.text(&format!("{} {}\n", output.paint(tone, word), printable(&one.to_string())))?;
    }
    let word = if refused { output.paint(Tone::Bad, "refused") } else { output.paint(Tone::Good, "good   ") };
    output.text(&format!("{word} {}\n", title(bundle)))?;
    Ok(refused.into())
}

fn title(bundle: &Bundle) -> String {
    printable(&format!("{} {} ({} files)", bundle.manifest().title(), bundle.digest(), bundle.files().len()))
}

fn told(output: &Output, bundle: &Bundle, more: &Value, text: &str) -> anyhow::Result<u8> {
    if output.json {
        let mut document = json!({"digest": bundle.digest(), "name": bundle.manifest().name});
        if let (Some(document), Some(more)) = (document.as_object_mut(), more.as_object()) {
            document.extend(more.clone());
        }
        output.document(&document)?;
    } else {
        output.text(&format!("{}\n{}\n", printable(text), title(bundle)))?;
    }
    Ok(0)
}

fn sign(target: &str, signer: &Signer, registry: &RegistryArguments, output: &Output) -> anyhow::Result<u8> {
    let to = match Target::of(target) {
        Target::Reference(reference) => {
            let client = client(&reference, registry)?;
            let digest = block_on(async { Ok(artifact::sign(&client, &reference, signer).await?) })?;
            if output.json {
                output
                    .document(&json!({"reference": reference, "manifest_digest": digest, "signed": true}))?;
            } else {
                output.text(&format!("signed {} {digest}\n", printable(&reference)))?;
            }
            return Ok(0);
        }
        Target::Folder(path) => path.join(SIGNATURE),
        Target::File(path) => beside(&path),
    };
    let bundle = load(target, None, registry)?;
    let signature = signer.sign(bundle.archive())?;
    std::fs::write(&to, format!("{signature}\n"))
        .with_context(|| format!("cannot write {}", to.display()))?;
    told(output, &bundle, &json!({"signature": to, "signed": true}), &format!("wrote {}", to.display()))
}

fn show(bundle: &Bundle, output: &Output) -> anyhow::Result<u8> {
    let files = bundle.files().iter();
    let files: Vec<Value> = files
        .map(|(path, bytes)| json!({"path": path, "bytes": bytes.len(), "sha256": kata_cc_policy_bundle::sha256(bytes)}))
        .collect();
    if output.json {
        output
            .document(&json!({"digest": bundle.digest(), "manifest": bundle.manifest(), "files": files}))?;
        return Ok(0);
    }
    output.text(&format!("{}\n", title(bundle)))?;
    for (path, bytes) in bundle.files() {
        output.text(&format!("  {path} ({} bytes)\n", bytes.len()))?;
    }
    Ok(0)
}
