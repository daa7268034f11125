//! What `kata-cc measure` foretells for the usual shapes of guests made of a release's files.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use kata_cc_kbs_protocol::admin::ReferenceValueMessage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compare::Files;
use crate::guest_image;
use crate::place::Place;
use crate::shell::{command, output, step};

const VCPUS: [u8; 3] = [1, 2, 4];
/// As `kata-cc measure --cpu` knows them; without one a guest is bound to no processor.
const CPUS: [Option<&str>; 6] =
    [None, Some("EPYC"), Some("EPYC-Rome"), Some("EPYC-Milan"), Some("EPYC-Genoa"), Some("EPYC-Turin")];
/// Orders of adding and measuring pages: mainline KVM, trees before Linux 6.16.
const PAGE_ORDERS: [Option<&str>; 2] = [Some("single"), Some("two")];
/// The digest of the init-data is no property of a release.
const INIT_DATA: &str = "init_data";
/// Reference values that are a launch's digest.
const DIGESTS: [&str; 4] = ["snp_launch_measurement", "mr_td", "sim_snp_launch_measurement", "sim_mr_td"];
/// What a simulated platform launched is no reference for real machines.
const SIMULATED: &str = "sim-";

/// What a guest is launched as, and its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Launch {
    #[serde(flatten)]
    pub(super) shape: Shape,
    /// Name of the reference value that the digest is.
    pub(super) reference_value: String,
    /// Launch digest of SNP, MRTD of TDX.
    pub(super) launch_digest: String,
    /// What else a TD is judged by, by the names of its reference values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) more: BTreeMap<String, String>,
}

impl Launch {
    /// The reference values that it stands for. Those of a simulated launch that have hardware's names are left out.
    pub(super) fn reference_values(&self) -> impl Iterator<Item = (&String, &String)> {
        let more = self.more.iter().filter(|_| !self.shape.tier.starts_with(SIMULATED));
        std::iter::once((&self.reference_value, &self.launch_digest)).chain(more)
    }
}

/// What the digest depends on beside the files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) tier: String,
    pub(super) vcpus: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) page_order: Option<String>,
}

impl Shape {
    pub(super) fn new(tier: &str, vcpus: u8, cpu: Option<&str>, page_order: Option<&str>) -> Self {
        Self {
            tier: tier.to_owned(),
            vcpus,
            cpu: cpu.map(str::to_owned),
            page_order: page_order.map(str::to_owned),
        }
    }

    /// Every shape that a release tells.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for vcpus in VCPUS {
            all.extend(CPUS.map(|cpu| Self::new("snp", vcpus, cpu, None)));
            all.extend(PAGE_ORDERS.map(|order| Self::new("tdx", vcpus, None, order)));
            all.extend(["sim-snp", "sim-tdx"].map(|tier| Self::new(tier, vcpus, None, None)));
        }
        all.sort();
        all
    }

    fn options(&self) -> Vec<String> {
        let tee = (if self.tier.starts_with(SIMULATED) { "--tier" } else { "--tee" }, &self.tier);
        let cpu = self.cpu.as_ref().map(|cpu| ("--cpu", cpu));
        let order = self.page_order.as_ref().map(|order| ("--page-order", order));
        let named = [Some(tee), cpu, order].into_iter().flatten();
        let mut options: Vec<String> =
            named.flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect();
        options.extend(["--vcpus".to_owned(), self.vcpus.to_string()]);
        options
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} vCPUs", self.tier, self.vcpus)?;
        if let Some(cpu) = &self.cpu {
            write!(f, ", {cpu}")?;
        }
        self.page_order.iter().try_for_each(|order| write!(f, ", page order {order}"))
    }
}

/// Ask the `kata-cc measure` of a round's sources about every shape. It is built where the agent was, most of it being there already.
pub(super) fn of(place: &Place, files: &Files) -> anyhow::Result<Vec<Launch>> {
    step("building kata-cc, to foretell the launch values");
    let program = place.program("kata-cc")?;
    let folder = place.target.join("measured");
    std::fs::create_dir_all(&folder)?;
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes)?;
    }
    Shape::all()
        .into_iter()
        .map(|shape| {
            let mut measure = command(&program, &["measure", "--format", "rvps"]);
            // The node's own configuration must not count: it may add words to the command line.
            measure.args(["--config", "/dev/null"]).args(shape.options());
            for (option, file) in
                [("--kernel", "vmlinux-tee"), ("--root", guest_image::ROOT), ("--firmware", "stage0")]
            {
                measure.arg(option).arg(folder.join(file));
            }
            launch(shape, &output(&mut measure)?)
        })
        .collect()
}

/// A launch, of the message that `kata-cc measure` printed.
fn launch(shape: Shape, message: &str) -> anyhow::Result<Launch> {
    let read = || -> anyhow::Result<(String, String, BTreeMap<String, String>)> {
        let message: ReferenceValueMessage = serde_json::from_str(message)?;
        let mut values = BTreeMap::new();
        for (name, value) in message.values()?.into_iter().filter(|(name, _)| name != INIT_DATA) {
            let text = value.get(0).and_then(Value::as_str).context("a launch value is no text")?;
            values.insert(name, text.to_owned());
        }
        let digest = DIGESTS.into_iter().find_map(|name| values.remove_entry(name));
        let (name, digest) = digest.context("it names no launch value")?;
        Ok((name, digest, values))
    };
    let (reference_value, launch_digest, more) =
        read().with_context(|| format!("what kata-cc measure printed for {shape}"))?;
    Ok(Launch { shape, reference_value, launch_digest, more })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_shape_is_told_apart() {
        let all = Shape::all();
        assert_eq!(all.len(), 30);
        let mut names: Vec<String> = all.iter().map(Shape::to_string).collect();
        names.dedup();
        assert_eq!(names.len(), all.len());
        assert_eq!(
            Shape::new("snp", 2, Some("EPYC"), None).options().join(" "),
            "--tee snp --cpu EPYC --vcpus 2"
        );
        assert_eq!(Shape::new("sim-snp", 1, None, None).options().join(" "), "--tier sim-snp --vcpus 1");
    }

    #[test]
    fn the_init_data_is_left_out() {
        let values = BTreeMap::from([
            (INIT_DATA.to_owned(), json!(["00"])),
            ("snp_launch_measurement".to_owned(), json!(["ab"])),
        ]);
        let message = serde_json::to_string(&ReferenceValueMessage::sample(&values)).unwrap();
        let read = launch(Shape::new("snp", 1, None, None), &message).unwrap();
        assert_eq!((&*read.reference_value, &*read.launch_digest), ("snp_launch_measurement", "ab"));
        assert!(read.more.is_empty());
        assert!(launch(Shape::new("snp", 1, None, None), "{}").is_err());
    }

    #[test]
    fn registers_of_a_td_are_told_and_those_of_a_simulated_one_are_no_references() {
        let of = |tier: &str, digest: &str| {
            let values = [INIT_DATA, digest, "rtmr_1", "xfam"].map(|name| (name.to_owned(), json!([name])));
            let message = serde_json::to_string(&ReferenceValueMessage::sample(&values.into())).unwrap();
            let read = launch(Shape::new(tier, 1, None, None), &message).unwrap();
            read.reference_values().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(of("tdx", "mr_td"), ["mr_td", "rtmr_1", "xfam"]);
        assert_eq!(of("sim-tdx", "sim_mr_td"), ["sim_mr_td"]);
    }
}
