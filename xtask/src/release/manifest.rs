//! The reference manifest of a release. Its member `reference_values` has the names of the attestation policy, so that
//! `kata-cc explain --evidence … --reference-values` takes the file; the message beside it is for key broker and attestation service.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use kata_cc_kbs_protocol::admin::ReferenceValueMessage;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::compare::Files;
use super::launches::Launch;
use super::rounds::Kernel;
use crate::guest_image::{self, Measured, measured};
use crate::shell::{command, output};

/// Name of the manifest in a release's folder, where `manifest.json` is that of the guest image.
pub(super) const FILE: &str = "release.json";
/// Name of the message with the reference values.
const MESSAGE: &str = "reference-values.json";
/// Form of the manifest.
const FORM: u32 = 1;
/// What a simulated platform launched is no reference for real machines.
const SIMULATED: &str = "sim_";

/// What a release is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// Form of this file.
    manifest: u32,
    pub(super) version: String,
    /// Commit of the sources.
    pub(super) commit: String,
    /// Whether the guest kernel, too, was built in both folders.
    kernel_built: Kernel,
    /// Whose versions the bytes depend on.
    toolchain: BTreeMap<String, String>,
    pub(super) files: Vec<Measured>,
    pub(super) launches: Vec<Launch>,
    /// The launch values by the names of the attestation policy.
    reference_values: BTreeMap<String, BTreeSet<String>>,
}

impl Manifest {
    /// Of files that were just built.
    pub(super) fn of(
        commit: String,
        kernel: Kernel,
        files: &Files,
        launches: Vec<Launch>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            manifest: FORM,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit,
            kernel_built: kernel,
            toolchain: toolchain()?,
            files: files.iter().map(|(name, bytes)| measured(name, bytes)).collect(),
            reference_values: reference_values(&launches),
            launches,
        })
    }

    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no manifest of a release", file.display()))
    }

    fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let manifest: Self = serde_json::from_slice(text)?;
        ensure!(manifest.manifest == FORM, "its form is {}, only {FORM} is known", manifest.manifest);
        ensure!(!manifest.files.is_empty(), "it names no files");
        // They are looked for beside the manifest, and nowhere else.
        let outside =
            manifest.names().find(|name| name.is_empty() || name.starts_with('.') || name.contains('/'));
        ensure!(outside.is_none(), "{outside:?} is no name of a file beside it");
        Ok(manifest)
    }

    pub(super) fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// What lies beside the manifest, so that the folder is that of a guest image too: the files, the guest image's manifest, and the
    /// message with the reference values of hardware.
    pub(super) fn beside(&self, files: &Files) -> anyhow::Result<Files> {
        let hardware = self.reference_values.iter().filter(|(name, _)| !name.starts_with(SIMULATED));
        let values = hardware.map(|(name, values)| (name.clone(), json!(values))).collect();
        let mut message = serde_json::to_vec_pretty(&ReferenceValueMessage::sample(&values))?;
        message.push(b'\n');
        let mut all = files.clone();
        all.insert(MESSAGE.to_owned(), message);
        let image = guest_image::manifest(files)?;
        all.insert(guest_image::MANIFEST.to_owned(), image);
        Ok(all)
    }

    /// Names of the files.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.files.iter().map(|file| &file.file)
    }

    /// What can be told without building: files beside the manifest that it does not name so, and reference values that are not those
    /// of its launches.
    pub(super) fn contradictions(&self, beside: &Files) -> Vec<String> {
        let mut different: Vec<String> = self
            .files
            .iter()
            .filter_map(|named| {
                let seen = measured(&named.file, beside.get(&named.file)?);
                let (named_as, seen_as) = (digests(named), digests(&seen));
                (*named != seen)
                    .then(|| format!("{}: {named_as} in the manifest, {seen_as} beside it", named.file))
            })
            .collect();
        let of_launches = reference_values(&self.launches);
        let names: BTreeSet<&String> = self.reference_values.keys().chain(of_launches.keys()).collect();
        let wrong =
            names.into_iter().filter(|name| self.reference_values.get(*name) != of_launches.get(*name));
        different.extend(wrong.map(|name| format!("reference value {name}: it is not that of the launches")));
        different
    }

    /// What of this manifest another one, just made, does not confirm; a line for each.
    pub(super) fn differences(&self, found: &Self) -> Vec<String> {
        let mut different = Vec::new();
        if self.version != found.version {
            different.push(format!("version: {} in the manifest, {} built", self.version, found.version));
        }
        let files = |manifest: &Self| -> BTreeMap<String, String> {
            manifest.files.iter().map(|file| (file.file.clone(), digests(file))).collect()
        };
        let launches = |manifest: &Self| -> BTreeMap<String, String> {
            let name = |launch: &Launch| format!("launch value of {}", launch.shape);
            let value = |launch: &Launch| {
                let more = launch.more.iter().map(|(name, value)| format!(", {name} {value}"));
                format!("{} {}{}", launch.reference_value, launch.launch_digest, more.collect::<String>())
            };
            manifest.launches.iter().map(|launch| (name(launch), value(launch))).collect()
        };
        let references = |manifest: &Self| -> BTreeMap<String, String> {
            let name = |name: &String| format!("reference value {name}");
            let text = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(" ");
            manifest.reference_values.iter().map(|(key, values)| (name(key), text(values))).collect()
        };
        different.extend(unconfirmed(&files(self), &files(found)));
        different.extend(unconfirmed(&launches(self), &launches(found)));
        different.extend(unconfirmed(&references(self), &references(found)));
        // Two entries of one name could hide a false one behind a true one.
        for (what, entries, names) in [
            ("files", self.files.len(), files(self).len()),
            ("launches", self.launches.len(), launches(self).len()),
        ] {
            if entries != names {
                different.push(format!("{what}: the manifest names one more than once"));
            }
        }
        different
    }

    /// What differs and need not make a difference, but explains one.
    pub(super) fn notes(&self, found: &Self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.commit != found.commit {
            notes.push(format!("commit: {} in the manifest, {} here", self.commit, found.commit));
        }
        notes.extend(unconfirmed(&self.toolchain, &found.toolchain));
        notes.push(format!("manifest: {}", self.kernel_built.words()));
        notes.push(format!("here: {}", found.kernel_built.words()));
        notes
    }
}

fn digests(file: &Measured) -> String {
    format!("sha256 {}, sha384 {}, {} bytes", file.sha256, file.sha384, file.bytes)
}

fn reference_values(launches: &[Launch]) -> BTreeMap<String, BTreeSet<String>> {
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for launch in launches {
        for (name, value) in launch.reference_values() {
            values.entry(name.clone()).or_default().insert(value.clone());
        }
    }
    values
}

/// What differs between the texts of two manifests, by name.
fn unconfirmed(manifest: &BTreeMap<String, String>, built: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<&String> = manifest.keys().chain(built.keys()).collect();
    let differ = names.into_iter().filter(|name| manifest.get(*name) != built.get(*name));
    let text = |texts: &BTreeMap<String, String>, name: &String| {
        texts.get(name).map_or_else(|| "nothing".to_owned(), Clone::clone)
    };
    differ
        .map(|name| format!("{name}: {} in the manifest, {} built", text(manifest, name), text(built, name)))
        .collect()
}

/// Compilers, binutils, and the Debian packages whose contents become part of the files.
fn toolchain() -> anyhow::Result<BTreeMap<String, String>> {
    let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let tool = |name: &str| output(&mut command(name, &["--version"])).map(first);
    let package = |name: &str| output(&mut command("dpkg-query", &["-W", "-f", "${Version}", name]));
    Ok([
        ("rustc", output(&mut command("rustc", &["-vV"]))?.trim().to_owned()),
        ("gcc", tool("gcc")?),
        ("ld", tool("ld")?),
        ("linux-source-6.12", package("linux-source-6.12")?),
        ("ca-certificates", package("ca-certificates")?),
    ]
    .map(|(name, version)| (name.to_owned(), version))
    .into())
}

#[cfg(test)]
mod tests {
    use super::super::launches::Shape;
    use super::*;

    fn launch(cpu: &str, digest: &str) -> Launch {
        Launch {
            shape: Shape::new("snp", 2, Some(cpu), None),
            reference_value: "snp_launch_measurement".to_owned(),
            launch_digest: digest.to_owned(),
            more: BTreeMap::new(),
        }
    }

    fn simulated() -> Launch {
        Launch {
            shape: Shape::new("sim-snp", 1, None, None),
            reference_value: "sim_snp_launch_measurement".to_owned(),
            launch_digest: "cc".to_owned(),
            more: BTreeMap::new(),
        }
    }

    fn built() -> (Manifest, Files) {
        let files: Files = [
            ("root.erofs", vec![7; 100]),
            ("root.json", vec![b' '; 9]),
            ("stage0", vec![1, 2, 3]),
            ("vmlinux", vec![4]),
            ("vmlinux-tee", vec![5]),
        ]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .into();
        let launches = vec![launch("EPYC", "aa"), launch("EPYC-Rome", "bb"), simulated()];
        let manifest = Manifest {
            manifest: FORM,
            version: "1.2.3".to_owned(),
            commit: "0".repeat(40),
            kernel_built: Kernel::Once,
            toolchain: [("rustc".to_owned(), "rustc 1".to_owned())].into(),
            files: files.iter().map(|(name, bytes)| measured(name, bytes)).collect(),
            reference_values: reference_values(&launches),
            launches,
        };
        (manifest, files)
    }

    #[test]
    fn a_manifest_is_read_as_written_and_confirms_itself() {
        let (manifest, _) = built();
        let read = Manifest::parse(&manifest.bytes().unwrap()).unwrap();
        assert_eq!(read, manifest);
        assert!(read.differences(&manifest).is_empty());
    }

    #[test]
    fn a_wrong_hash_is_refused_by_name() {
        let (manifest, _) = built();
        for (pick, name) in [("sha256", "stage0"), ("sha384", "stage0")] {
            let mut wrong = manifest.clone();
            let file = wrong.files.iter_mut().find(|file| file.file == name).unwrap();
            let hash = if pick == "sha256" { &mut file.sha256 } else { &mut file.sha384 };
            let flipped = if hash.starts_with('0') { "1" } else { "0" };
            hash.replace_range(..1, flipped);
            let different = wrong.differences(&manifest);
            assert_eq!(different.len(), 1);
            assert!(different[0].starts_with("stage0: sha256 "), "{different:?}");
        }
    }

    #[test]
    fn what_lies_beside_is_compared_before_anything_is_built() {
        let (manifest, mut files) = built();
        assert!(manifest.contradictions(&files).is_empty());
        assert!(manifest.contradictions(&Files::new()).is_empty());
        files.get_mut("root.erofs").unwrap()[99] ^= 1;
        let different = manifest.contradictions(&files);
        assert_eq!(different.len(), 1);
        assert!(different[0].starts_with("root.erofs: sha256 "), "{different:?}");

        let mut more = manifest.clone();
        more.reference_values.get_mut("snp_launch_measurement").unwrap().insert("ff".to_owned());
        assert_eq!(
            more.contradictions(&Files::new()),
            ["reference value snp_launch_measurement: it is not that of the launches"]
        );
    }

    #[test]
    fn a_wrong_launch_value_is_refused_by_name() {
        let (manifest, _) = built();
        let mut wrong = manifest.clone();
        wrong.launches[1].launch_digest = "bc".to_owned();
        assert_eq!(
            wrong.differences(&manifest),
            ["launch value of snp, 2 vCPUs, EPYC-Rome: snp_launch_measurement bc in the manifest, \
              snp_launch_measurement bb built"]
        );
        let mut more = manifest.clone();
        more.reference_values.get_mut("snp_launch_measurement").unwrap().insert("ff".to_owned());
        assert_eq!(
            more.differences(&manifest),
            ["reference value snp_launch_measurement: aa bb ff in the manifest, aa bb built"]
        );
    }

    #[test]
    fn what_is_missing_added_or_named_twice_is_refused() {
        let (manifest, _) = built();
        let mut wrong = manifest.clone();
        let gone = wrong.files.remove(0);
        assert!(wrong.differences(&manifest)[0].starts_with("root.erofs: nothing in the manifest"));
        wrong.files.extend([gone.clone(), Measured { sha256: "00".to_owned(), ..gone }]);
        wrong.files.rotate_left(1);
        assert!(!wrong.differences(&manifest).is_empty());
        let mut twice = manifest.clone();
        twice.files.push(twice.files[0].clone());
        assert_eq!(twice.differences(&manifest), ["files: the manifest names one more than once"]);
    }

    #[test]
    fn another_compiler_or_commit_is_a_note() {
        let (manifest, _) = built();
        let mut other = manifest.clone();
        other.commit = "1".repeat(40);
        other.toolchain.insert("rustc".to_owned(), "rustc 2".to_owned());
        assert!(manifest.differences(&other).is_empty());
        let notes = manifest.notes(&other).join("\n");
        assert!(notes.contains("rustc: rustc 1 in the manifest, rustc 2 built"), "{notes}");
        assert!(notes.contains("commit: 000"), "{notes}");
        assert!(notes.contains("NOT shown"), "{notes}");
    }

    #[test]
    fn what_is_no_manifest_is_not_read() {
        let (mut manifest, _) = built();
        for text in ["", "{}", "[]", "{\"manifest\": 1}"] {
            assert!(Manifest::parse(text.as_bytes()).is_err(), "{text}");
        }
        manifest.manifest = 2;
        let error = Manifest::parse(&manifest.bytes().unwrap()).unwrap_err();
        assert!(error.to_string().contains("its form is 2"), "{error}");
        for name in ["", "..", "/dev/zero", "a/b"] {
            let (mut manifest, _) = built();
            manifest.files[0].file = name.to_owned();
            assert!(Manifest::parse(&manifest.bytes().unwrap()).is_err(), "{name}");
        }
    }

    #[test]
    fn beside_it_are_a_guest_image_and_the_values_of_hardware_alone() {
        let (manifest, files) = built();
        let beside = manifest.beside(&files).unwrap();
        let image: serde_json::Value = serde_json::from_slice(&beside["manifest.json"]).unwrap();
        for (part, name) in [("kernel", "vmlinux"), ("root", "root.erofs"), ("root_seal", "root.json")] {
            let file = manifest.files.iter().find(|file| file.file == name).unwrap();
            assert_eq!(image[part]["sha256"], file.sha256);
        }
        let message: ReferenceValueMessage = serde_json::from_slice(&beside[MESSAGE]).unwrap();
        assert_eq!(
            message.values().unwrap(),
            BTreeMap::from([("snp_launch_measurement".to_owned(), json!(["aa", "bb"]))])
        );
    }
}
