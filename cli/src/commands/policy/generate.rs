//! `kata-cc policy gen`: a manifest in, a policy out, or the manifest with the policy in its init-data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use kata_cc_kbs_protocol::initdata::{self, ANNOTATION, Algorithm, InitData, fit};
use kata_cc_policy::annotate::annotate;
use kata_cc_policy::generate::{Generated, ImageMap, SecureMount, Settings, generate};
use kata_cc_policy::manifest::yaml::MAX_BYTES;
use kata_cc_policy::manifest::{Manifest, Workload};
use kata_cc_sandbox::NodeConfig;
use serde_json::json;

use super::super::image::RegistryArguments;
use super::super::{read_input, read_text};
use super::images::Images;
use crate::output::{Output, note, printable};

/// Classes whose pods may be confidential.
const CLASSES: [&str; 2] = ["kata-cc", "kata-cc-auto"];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Manifest (YAML or JSON, any number of documents); `-` is standard input.
    #[arg(value_name = "POD.yaml")]
    manifest: PathBuf,
    /// The one that is meant, KIND/NAME, when the manifest makes several pods.
    #[arg(long, value_name = "KIND/NAME")]
    workload: Option<String>,
    /// Write the policy, inside init-data, into the manifest's annotations, in place; comments and layout stay. All workloads without
    /// --workload. From standard input the changed manifest goes to standard output.
    #[arg(long)]
    write: bool,
    /// Write the policy to a file.
    #[arg(long, value_name = "FILE", conflicts_with = "write")]
    output: Option<PathBuf>,
    /// Init-data (TOML) that the policy is put into; without it the pod's own, else the node configuration's.
    #[arg(long, value_name = "FILE", requires = "write")]
    init_data: Option<PathBuf>,
    /// Node configuration; /etc/kata-cc/config.toml without it.
    #[arg(long, value_name = "FILE", requires = "write")]
    config: Option<PathBuf>,
    /// Open a request that pods do not need to run; may be repeated.
    #[arg(long, value_enum, value_name = "WHAT")]
    allow: Vec<Opening>,
    /// A command that may be run by exec, as words or a JSON list, in one container or all; may be repeated.
    #[arg(long, value_name = "[CONTAINER=]COMMAND")]
    allow_command: Vec<String>,
    /// A device node, in one container or all; may be repeated.
    #[arg(long, value_name = "[CONTAINER=]PATH")]
    allow_device: Vec<String>,
    /// An encrypted volume that programs in the guest may mount; may be repeated.
    #[arg(long, value_name = "KEY=MOUNTPOINT")]
    secure_mount: Vec<String>,
    /// Namespace of pods whose manifest names none.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Take images from this file ({"image": {"digest": …, "config": {…}}}) and ask no registry.
    #[arg(long, value_name = "FILE")]
    image_config: Option<PathBuf>,
    /// Write what the registries said to such a file.
    #[arg(long, value_name = "FILE", conflicts_with = "image_config")]
    save_image_config: Option<PathBuf>,
    /// Fail when there are warnings.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// What can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Opening {
    /// Any command in any container (kubectl exec).
    Exec,
    /// Output of programs (kubectl logs).
    Logs,
    /// Standard input of containers that ask for it (kubectl attach).
    Stdin,
    /// tar in any container (kubectl cp).
    Copy,
    /// Figures of the guest and its volumes.
    Metrics,
    /// Stopping the pod and letting it go on.
    Pause,
    /// Nothing: port forwarding asks nothing of the guest's agent.
    PortForward,
}

/// `NAME=rest` or `rest`.
fn scoped(text: &str) -> (Option<String>, &str) {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    match text.split_once('=') {
        Some((name, rest)) if is_name(name) => (Some(name.to_owned()), rest),
        _ => (None, text),
    }
}

impl Arguments {
    fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = Settings { namespace: self.namespace.clone(), ..Settings::default() };
        for opening in &self.allow {
            match opening {
                Opening::Exec => settings.open.exec = true,
                Opening::Logs => settings.open.logs = true,
                Opening::Stdin => settings.open.stdin = true,
                Opening::Copy => settings.open.copy = true,
                Opening::Metrics => settings.open.metrics = true,
                Opening::Pause => settings.open.pause = true,
                Opening::PortForward => {
                    note(
                        "kata-cc: port forwarding asks nothing of the agent: there is nothing to open in its policy",
                    );
                }
            }
        }
        for text in &self.allow_command {
            let (container, command) = scoped(text);
            let args: Vec<String> = if command.trim_start().starts_with('[') {
                serde_json::from_str(command)
                    .with_context(|| format!("--allow-command {text}: it is no JSON list of texts"))?
            } else {
                command.split_whitespace().map(str::to_owned).collect()
            };
            ensure!(!args.is_empty(), "--allow-command {text}: there is no command");
            settings.commands.push((container, args));
        }
        for text in &self.allow_device {
            let (container, path) = scoped(text);
            ensure!(path.starts_with("/dev/"), "--allow-device {text}: a device is a path below /dev");
            settings.devices.push((container, path.to_owned()));
        }
        for text in &self.secure_mount {
            let (key, mount_point) = text.rsplit_once('=').context("--secure-mount needs KEY=MOUNTPOINT")?;
            ensure!(
                key.starts_with("kbs:///"),
                "--secure-mount {text}: the key is kbs:///repository/type/tag"
            );
            settings
                .secure_mounts
                .push(SecureMount { key: key.to_owned(), mount_point: mount_point.to_owned() });
        }
        Ok(settings)
    }

    /// The workloads that are meant: the named one, else those of a confidential class, else all.
    fn chosen<'a>(&self, manifest: &'a Manifest) -> anyhow::Result<Vec<&'a Workload>> {
        let all: Vec<&Workload> = manifest.workloads.iter().collect();
        let titles = || all.iter().map(|w| printable(&w.title)).collect::<Vec<_>>().join(", ");
        if let Some(wanted) = &self.workload {
            let found: Vec<&Workload> = all.iter().copied().filter(|w| w.title == *wanted).collect();
            ensure!(!found.is_empty(), "the manifest has no {wanted}, but {}", titles());
            return Ok(found);
        }
        let confidential =
            |w: &&Workload| w.spec.runtime_class.as_deref().is_some_and(|c| CLASSES.contains(&c));
        let chosen: Vec<&Workload> = all.iter().copied().filter(confidential).collect();
        let chosen = if chosen.is_empty() { all.clone() } else { chosen };
        ensure!(!chosen.is_empty(), "the manifest makes no pods: give a Pod, or what makes pods");
        if chosen.len() > 1 && !self.write {
            bail!("the manifest makes {} pods: choose one by --workload, of {}", chosen.len(), titles());
        }
        Ok(chosen)
    }

    /// The init-data that a workload's policy is put into.
    fn base(&self, workload: &Workload) -> anyhow::Result<BTreeMap<String, String>> {
        let text = match (&self.init_data, workload.annotations.get(ANNOTATION)) {
            (Some(file), _) => read_text(file)?,
            (None, Some(annotation)) => initdata::from_annotation(annotation)
                .with_context(|| format!("annotation {ANNOTATION} of {}", workload.title))?,
            (None, None) => {
                let config = match &self.config {
                    Some(file) => NodeConfig::read(file)?,
                    None => NodeConfig::load()?,
                };
                kata_cc_sandbox::initdata::of_node(&config)?.text
            }
        };
        Ok(InitData::parse(&text)?.data().clone())
    }
}

/// Run it.
pub(super) fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<u8> {
    let settings = arguments.settings()?;
    let from_stdin = arguments.manifest.as_os_str() == "-";
    let file = (!from_stdin).then_some(arguments.manifest.as_path());
    let bytes = read_input(file, MAX_BYTES as u64)?;
    let text = std::str::from_utf8(&bytes).context("the manifest is not UTF-8 text")?;
    let manifest = Manifest::read(text)?;
    let given = arguments
        .image_config
        .as_deref()
        .map(|file| anyhow::Ok(ImageMap::parse(&read_text(file)?)?))
        .transpose()?;
    let images = Images::new(given, &arguments.registry);
    let mut made = Vec::new();
    for workload in arguments.chosen(&manifest)? {
        let generated =
            generate(&manifest, workload, &images, &settings).with_context(|| printable(&workload.title))?;
        made.push((workload, generated));
    }
    if let Some(file) = &arguments.save_image_config {
        write_file(file, &images.seen().to_text())?;
    }
    let warnings = warnings(&manifest, &made);
    for warning in &warnings {
        if !output.json {
            note(&format!("warning: {}", printable(warning)));
        }
    }
    ensure!(
        !arguments.strict || warnings.is_empty(),
        "there are {} warnings, and --strict was given",
        warnings.len()
    );
    if arguments.write {
        return write(arguments, output, (text, file), &made, &warnings);
    }
    let Some((workload, generated)) = made.first() else { bail!("the manifest makes no pods") };
    if let Some(file) = &arguments.output {
        write_file(file, &generated.text)?;
    }
    if output.json {
        output.document(&json!({"workload": workload.title, "policy": generated.text, "data": generated.data, "warnings": warnings}))?;
    } else if arguments.output.is_none() {
        output.text(&generated.text)?;
    }
    Ok(0)
}

fn warnings(manifest: &Manifest, made: &[(&Workload, Generated)]) -> Vec<String> {
    let of = made.iter().flat_map(|(_, generated)| &generated.warnings);
    let mut all: Vec<String> = manifest.warnings.iter().chain(of).map(ToString::to_string).collect();
    all.sort();
    all.dedup();
    all
}

fn write_file(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Puts the policies into the manifest.
fn write(
    arguments: &Arguments,
    output: &Output,
    (text, file): (&str, Option<&Path>),
    made: &[(&Workload, Generated)],
    warnings: &[String],
) -> anyhow::Result<u8> {
    let mut changed = text.to_owned();
    let mut told = Vec::new();
    for (workload, generated) in made {
        let mut data = arguments.base(workload)?;
        data.insert("policy.rego".to_owned(), generated.text.clone());
        let document = InitData::build(Algorithm::Sha256, &data)?;
        changed = annotate(&changed, workload, ANNOTATION, &initdata::to_annotation(document.text()))?;
        let host_data: [u8; 32] = fit(&document.digest());
        told.push(json!({"workload": workload.title, "host_data": hex::encode(host_data)}));
    }
    match file {
        Some(file) => replace(file, &changed)?,
        None => output.text(&changed)?,
    }
    if output.json && file.is_some() {
        output.document(&json!({"written": told, "warnings": warnings}))?;
    } else {
        for one in &told {
            let text = |key: &str| printable(one[key].as_str().unwrap_or_default());
            note(&format!(
                "{}: init-data {} (HOST_DATA; register it by kata-cc measure --pod … --register)",
                text("workload"),
                text("host_data")
            ));
        }
    }
    Ok(0)
}

/// A file's text, all of it or none: a manifest that is half written is worse than one without a policy.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let file = std::fs::canonicalize(file).with_context(|| format!("cannot write {}", file.display()))?;
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".kata-cc-new");
    let new = file.with_file_name(name);
    write_file(&new, text)?;
    let kept = std::fs::metadata(&file).and_then(|old| std::fs::set_permissions(&new, old.permissions()));
    kept.and_then(|()| std::fs::rename(&new, &file)).map_err(|error| {
        let _ = std::fs::remove_file(&new);
        anyhow::Error::new(error).context(format!("cannot write {}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_stand_before_what_is_allowed() {
        assert_eq!(scoped("web=ls -l"), (Some("web".to_owned()), "ls -l"));
        assert_eq!(scoped("ls --x=y"), (None, "ls --x=y"));
        assert_eq!(scoped("/dev/x"), (None, "/dev/x"));
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pod.yaml");
        std::fs::write(&file, "a").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        replace(&file, "b").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "b");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
