//! `kata-cc measure`: the launch digest of a guest, foretold offline by the code that the VMM measures with.
//!
//! It depends on the guest's firmware, kernel, command line (and with it on the root image), initramfs if it
//! has one, and the number of vCPUs; with the same `--cpus` it is that of `kata-cc run`. The digest of the init-data (`HOST_DATA`) is told beside it; the key broker demands both, since init-data is
//! what the guest does, and the host hands it over.

mod explain;
mod options;
mod ovmf;
mod pod;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_boot::{Firmware, LaunchInput, LaunchPlan};
use kata_cc_kbs_client::ClientError;
use kata_cc_kbs_protocol::admin::ReferenceValueMessage;
use kata_cc_kbs_protocol::initdata::fit;
use kata_cc_measurement::explain::Explanation;
use kata_cc_sandbox::config::Simulated;
use kata_cc_sandbox::{NodeConfig, RootImage, Tier, initdata, sizing, vm_shape};
use kata_cc_sim_tee::SimPlatform;
use kata_cc_sim_tee::tdx::{Quoter, ROOT_FILE};
use serde::Serialize;
use serde_json::{Value, json};

use self::options::HardwareOptions;
use super::broker::BrokerArguments;
use super::size::SizeArguments;
use super::{block_on, read_text};
use crate::output::{Output, note};

/// Names of the reference values that the attestation policy asks for.
const SNP_MEASUREMENT: &str = "snp_launch_measurement";
/// Those of simulated guests, which must not affirm one of hardware.
const SIM_SNP_MEASUREMENT: &str = "sim_snp_launch_measurement";
const SIM_MRTD: &str = "sim_mr_td";
const MRTD: &str = "mr_td";
const RTMR_1: &str = "rtmr_1";
const RTMR_2: &str = "rtmr_2";
const XFAM: &str = "xfam";
const INIT_DATA: &str = "init_data";

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<explain::Command>,
    /// Tier that the guest is measured by.
    #[arg(long, value_enum, default_value_t = Measured::SimSnp)]
    tier: Measured,
    #[command(flatten)]
    hardware: HardwareOptions,
    #[command(flatten)]
    size: SizeArguments,
    /// Guest kernel; the node's without it.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The guest's root image, its seal beside it in a file of the same name that ends in `.json`; the node's without it.
    #[arg(long, value_name = "FILE", conflicts_with = "ovmf")]
    root: Option<PathBuf>,
    /// Guest initramfs, in place of a root image; the node's without it.
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// Image of the guest firmware stage0; the node's without it.
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// Words added to the guest's command line; the node's without it.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    cmdline_append: Option<String>,
    /// Init-data (TOML) whose digest is told; the node's own without it.
    #[arg(long, value_name = "FILE", conflicts_with = "pod")]
    init_data: Option<PathBuf>,
    /// Manifest of a pod, or of what makes pods (YAML or JSON): its limits give the size, its annotation the init-data.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cpus", "memory", "vcpus"])]
    pod: Option<PathBuf>,
    /// Node configuration; /etc/kata-cc/config.toml without it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Sign the provider's message with this key (PKCS#8 PEM: Ed25519, P-256 or P-384): whoever has it may register it where
    /// the key is trusted.
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// Add both digests, of the launch and of the init-data, to the key broker's reference values.
    #[arg(long)]
    register: bool,
    #[command(flatten)]
    broker: BrokerArguments,
    /// Make the throw-away platform of the simulated TEE, which protects nothing.
    #[arg(long)]
    create_sim_platform: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Measured {
    /// The simulated SEV-SNP.
    SimSnp,
    /// The simulated TDX.
    SimTdx,
}

impl Measured {
    const fn simulated(self) -> Simulated {
        match self {
            Self::SimSnp => Simulated::SimSnp,
            Self::SimTdx => Simulated::SimTdx,
        }
    }
}

/// What else a TD's token is judged by.
#[derive(Debug, Serialize)]
struct TdxAnswer {
    /// RTMR1 when the kernel starts: the kernel.
    rtmr_1: String,
    /// RTMR2: command line, and initramfs if there is one.
    rtmr_2: String,
    /// XFAM as quotes hold it.
    xfam: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Lines of text, or JSON with --json.
    Text,
    /// Message of the reference value provider.
    Rvps,
}

#[derive(Debug, Serialize)]
struct Answer {
    tier: Tier,
    /// Launch digest of SNP, MRTD of TDX.
    launch_digest: String,
    /// HOST_DATA of SNP, MRCONFIGID of TDX: the digest of the init-data.
    host_data: String,
    vcpus: u8,
    memory_mib: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
    cmdline: String,
    kernel: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initramfs: Option<PathBuf>,
    firmware: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<Explanation>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    tdx: Option<TdxAnswer>,
}

impl Answer {
    const fn measurement(&self) -> &'static str {
        match self.tier {
            Tier::Tdx => MRTD,
            Tier::SimTdx => SIM_MRTD,
            Tier::Snp => SNP_MEASUREMENT,
            _ => SIM_SNP_MEASUREMENT,
        }
    }

    fn reference_values(&self) -> Vec<(&'static str, &str)> {
        let mut values =
            vec![(self.measurement(), self.launch_digest.as_str()), (INIT_DATA, &self.host_data)];
        if let Some(tdx) = &self.tdx {
            values.extend([
                (RTMR_1, tdx.rtmr_1.as_str()),
                (RTMR_2, tdx.rtmr_2.as_str()),
                (XFAM, tdx.xfam.as_str()),
            ]);
        }
        values
    }
}

fn predict(arguments: &Arguments, config: &NodeConfig) -> anyhow::Result<Answer> {
    let options = &arguments.hardware;
    let simulated = arguments.tier.simulated();
    let tier = options.tier(simulated);
    let read = |file: &PathBuf| {
        std::fs::read(file).with_context(|| {
            format!(
                "cannot read {}: name the guest image's folder by KATA_CC_SHARE_DIR, or the file itself",
                file.display()
            )
        })
    };
    let kernel_file = config.kernel(tier);
    let kernel = read(&kernel_file)?;
    let initramfs = config.initramfs.as_ref().map(read).transpose()?;
    let root = RootImage::of(config)?;
    // Who registers the digest vouches for the image by its seal.
    root.as_ref().map(RootImage::verify).transpose()?;
    let firmware_file = config.firmware(tier).context("guests of this tier are not measured")?;
    let firmware = read(&firmware_file)?;
    let pod = arguments.pod.as_deref().map(pod::read).transpose()?;
    let limits = pod.as_ref().map_or_else(|| arguments.size.limits(), |pod| pod.limits);
    let size = sizing::size(limits, &config.vm);
    let vcpus = options.vcpus.unwrap_or(size.vcpus);
    let cmdline = vm_shape::command_line(config, tier, root.as_ref());
    let (platform, memory_bit) = options.platform(simulated);
    let input = LaunchInput {
        kernel: &kernel,
        initramfs: initramfs.as_deref(),
        cmdline: &cmdline,
        memory_mib: size.memory_mib,
        vcpus,
        devices: vm_shape::DEVICES,
        firmware: Some(Firmware::new(&firmware, platform, memory_bit)),
    };
    let plan = LaunchPlan::new(&input).with_context(|| {
        let (kernel, initramfs) = (kernel_file.display(), config.initramfs.as_deref());
        let initramfs =
            initramfs.map(|file| format!(" and initramfs {}", file.display())).unwrap_or_default();
        format!("a guest of kernel {kernel}{initramfs} cannot be launched")
    })?;
    let (launch_digest, explanation, tdx) = digest(&plan, tier, options)?;
    let document = match (&arguments.init_data, pod.and_then(|pod| pod.init_data)) {
        (Some(file), _) => {
            initdata::from_text(&read_text(file)?).with_context(|| format!("{}", file.display()))?
        }
        (None, Some(of_the_pod)) => of_the_pod,
        (None, None) => initdata::of_node(config)?,
    };
    let host_data = match &tdx {
        Some(_) => hex::encode(fit::<48>(&document.digest)),
        None => hex::encode(fit::<32>(&document.digest)),
    };
    Ok(Answer {
        tier,
        launch_digest: hex::encode(launch_digest),
        host_data,
        vcpus,
        memory_mib: size.memory_mib,
        cpu: options.cpu.map(|cpu| cpu.to_string()),
        cmdline: plan.cmdline,
        kernel: kernel_file,
        root: root.map(|root| root.image),
        initramfs: config.initramfs.clone(),
        firmware: firmware_file,
        explanation: options.explain.then_some(explanation),
        tdx,
    })
}

/// Digest of a plan, what it is made of, and what else a TD is judged by.
fn digest(
    plan: &LaunchPlan<'_>,
    tier: Tier,
    options: &HardwareOptions,
) -> anyhow::Result<([u8; 48], Explanation, Option<TdxAnswer>)> {
    let Some(launch) = &plan.stage0 else {
        anyhow::bail!("the launch does not go through the guest firmware stage0")
    };
    let mut launch = launch.as_ref().clone().with_features(options.guest_features)?;
    if let Some(cpu) = options.cpu {
        anyhow::ensure!(!is_td(tier), "MRTD does not depend on the processor: leave --cpu out");
        launch = launch.with_cpu(cpu);
    }
    if !is_td(tier) {
        let explained = explain::snp(&launch.snp()?);
        return Ok((explained.digest, explained, None));
    }
    let explained = explain::tdx(&launch.tdx()?, options.order());
    let [_, rtmr_1, rtmr_2, _] = launch.rtmrs()?.values().map(hex::encode);
    let xfam = match tier {
        Tier::SimTdx => kata_cc_sim_tee::tdx::XFAM,
        _ => options.xfam.to_le_bytes(),
    };
    Ok((explained.digest, explained, Some(TdxAnswer { rtmr_1, rtmr_2, xfam: hex::encode(xfam) })))
}

const fn is_td(tier: Tier) -> bool {
    matches!(tier, Tier::Tdx | Tier::SimTdx)
}

/// Print the prediction, and register it when that was asked for.
pub(crate) fn measure(arguments: &Arguments, output: &Output) -> anyhow::Result<u8> {
    if let Some(command) = &arguments.command {
        return explain::run(command, output);
    }
    if let Some(image) = &arguments.hardware.ovmf {
        return measure_ovmf(image, arguments, output);
    }
    let mut config = match &arguments.config {
        Some(file) => NodeConfig::read(file)?,
        None => NodeConfig::load()?,
    };
    config.tee_kernel = arguments.kernel.clone().or(config.tee_kernel);
    // One of both on the command line is meant alone, whatever the node has.
    if arguments.root.is_some() || arguments.initramfs.is_some() {
        config.root.clone_from(&arguments.root);
        config.initramfs.clone_from(&arguments.initramfs);
    }
    config.firmware = arguments.firmware.clone().or(config.firmware);
    if let Some(words) = &arguments.cmdline_append {
        config.cmdline_append.clone_from(words);
    }
    if arguments.create_sim_platform {
        let dir = config.sim_platform();
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        create_sim_platform(&dir, &config.sim_tdx_platform())?;
        note(&format!("kata-cc: the simulated platform is in {}; it protects nothing", dir.display()));
        if output.json {
            output.document(&json!({"sim_platform": dir, "protects": "nothing"}))?;
        }
        return Ok(0);
    }
    let answer = predict(arguments, &config)?;
    if arguments.register {
        register(&arguments.broker, &answer.reference_values())?;
        let values = answer.reference_values();
        let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
        note(&format!("kata-cc: registered as {}", names.join(", ")));
    }
    if arguments.format == Format::Rvps || arguments.sign_key.is_some() {
        let values = answer.reference_values().into_iter();
        let values = values.map(|(name, value)| (name.to_owned(), json!([value]))).collect();
        output.document(&message(&values, arguments.sign_key.as_deref())?)?;
    } else if output.json {
        output.document(&answer)?;
    } else {
        output.text(&describe(&answer))?;
    }
    Ok(0)
}

/// Makes what is not there yet, and beside it `roots.pem`: what a key broker for trials is told to believe (`kbs init --simulated`).
fn create_sim_platform(dir: &Path, tdx: &Path) -> anyhow::Result<()> {
    let snp = SimPlatform::load_or_create(dir)?;
    let now = kata_cc_attestation_service::now().unsigned_abs();
    Quoter::load_or_create(tdx, now)?;
    let root = tdx.join(ROOT_FILE);
    let roots = std::fs::read_to_string(&root).with_context(|| format!("cannot read {}", root.display()))?;
    let file = dir.join("roots.pem");
    std::fs::write(&file, snp.ark_pem()? + &roots).with_context(|| format!("cannot write {}", file.display()))
}

/// The message that brings the values, signed when there is a key (type `signed` of the attestation service).
fn message(
    values: &BTreeMap<String, Value>,
    sign_key: Option<&Path>,
) -> anyhow::Result<ReferenceValueMessage> {
    let Some(file) = sign_key else { return Ok(ReferenceValueMessage::sample(values)) };
    let pem = zeroize::Zeroizing::new(
        std::fs::read(file).with_context(|| format!("cannot read the key {}", file.display()))?,
    );
    let key = SigningKey::from_pem(&pem).with_context(|| format!("{}", file.display()))?;
    let claims = json!({"iat": kata_cc_attestation_service::now(), "reference_values": values});
    let payload = key.sign(&json!({}), &claims)?;
    Ok(ReferenceValueMessage { kind: "signed".to_owned(), payload, ..ReferenceValueMessage::sample(values) })
}

fn measure_ovmf(image: &Path, arguments: &Arguments, output: &Output) -> anyhow::Result<u8> {
    let answer = ovmf::predict(
        image,
        arguments.kernel.as_deref(),
        arguments.initramfs.as_deref(),
        &arguments.hardware,
    )?;
    if output.json {
        output.document(&answer)?;
    } else {
        output.text(&format!("launch digest  {}\n", answer.launch_digest))?;
        if let Some(explanation) = &answer.explanation {
            output.text(&explain::table(explanation))?;
        }
    }
    Ok(0)
}

fn describe(answer: &Answer) -> String {
    let (digest, init_data) = match answer.tdx {
        Some(_) => ("MRTD          ", "MRCONFIGID    "),
        None => ("launch digest ", "HOST_DATA     "),
    };
    let simulated = matches!(answer.tier, Tier::SimSnp | Tier::SimTdx);
    let note = if simulated { " (simulated: protects nothing)" } else { "" };
    let registers = answer.tdx.as_ref().map(|td| {
        format!("RTMR1          {}\nRTMR2          {}\nXFAM           {}\n", td.rtmr_1, td.rtmr_2, td.xfam)
    });
    [
        format!("{digest} {}\n", answer.launch_digest),
        format!("{init_data} {}\n", answer.host_data),
        registers.unwrap_or_default(),
        format!("tier           {}{note}\n", answer.tier),
        answer.cpu.as_ref().map(|cpu| format!("processor      {cpu}\n")).unwrap_or_default(),
        format!("size           {} vCPUs, {} MiB\n", answer.vcpus, answer.memory_mib),
        format!("kernel         {}\n", answer.kernel.display()),
        answer.root.as_ref().map(|file| format!("root image     {}\n", file.display())).unwrap_or_default(),
        answer
            .initramfs
            .as_ref()
            .map(|file| format!("initramfs      {}\n", file.display()))
            .unwrap_or_default(),
        format!("firmware       {}\n", answer.firmware.display()),
        format!("command line   {}\n", answer.cmdline),
        answer
            .explanation
            .as_ref()
            .map(|explanation| format!("\n{}", explain::table(explanation)))
            .unwrap_or_default(),
    ]
    .concat()
}

/// Add the values to those that are known: guests of other sizes and of other init-data stay accepted.
fn register(broker: &BrokerArguments, added: &[(&str, &str)]) -> anyhow::Result<()> {
    let client = broker.client()?;
    block_on(async {
        let mut values = BTreeMap::new();
        for (name, value) in added {
            let known = match client.reference_value(name).await {
                Ok(known) => known,
                Err(ClientError::NotFound { .. }) => Value::Null,
                Err(error) => return Err(error).context("the reference values were not read"),
            };
            values.insert((*name).to_owned(), with(known, value));
        }
        client.set_reference_values(&values).await.context("the digests were not registered")
    })
}

/// The reference values `known` (one, several or none) and `value`.
fn with(known: Value, value: &str) -> Value {
    let mut all = match known {
        Value::Array(known) => known,
        Value::Null => Vec::new(),
        one => vec![one],
    };
    if !all.iter().any(|one| one == value) {
        all.push(json!(value));
    }
    Value::Array(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_registered_stays() {
        assert_eq!(with(json!(null), "b"), json!(["b"]));
        assert_eq!(with(json!("a"), "b"), json!(["a", "b"]));
        assert_eq!(with(json!(["a", "b"]), "b"), json!(["a", "b"]));
    }

    #[test]
    fn both_digests_are_reference_values() {
        let answer = Answer {
            tier: Tier::SimSnp,
            launch_digest: "aa".to_owned(),
            host_data: "bb".to_owned(),
            vcpus: 1,
            memory_mib: 1,
            cmdline: String::new(),
            kernel: PathBuf::new(),
            root: None,
            initramfs: None,
            firmware: PathBuf::new(),
            cpu: None,
            explanation: None,
            tdx: None,
        };
        assert_eq!(answer.reference_values(), [("sim_snp_launch_measurement", "aa"), ("init_data", "bb")]);
        let registers = || TdxAnswer { rtmr_1: "b1".into(), rtmr_2: "b2".into(), xfam: "e7".into() };
        let td = Answer { tier: Tier::Tdx, tdx: Some(registers()), ..answer };
        let more = [("init_data", "bb"), ("rtmr_1", "b1"), ("rtmr_2", "b2"), ("xfam", "e7")];
        assert_eq!(td.reference_values(), [&[("mr_td", "aa")], &more[..]].concat());
        let simulated = Answer { tier: Tier::SimTdx, ..td };
        assert_eq!(simulated.reference_values(), [&[("sim_mr_td", "aa")], &more[..]].concat());
    }
}
