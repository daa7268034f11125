//! `kata-cc measure`: the launch digest of a guest, foretold offline by the code that the VMM measures with.
//!
//! It depends on kernel, initramfs, command line, and the VM's size; with the same `--cpus` and `--memory` it is that of
//! `kata-cc run`. The digest of the init-data (`HOST_DATA`) is told beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use kata_cc_boot::{LaunchInput, LaunchPlan};
use kata_cc_kbs_client::ClientError;
use kata_cc_kbs_protocol::admin::ReferenceValueMessage;
use kata_cc_sandbox::{NodeConfig, Tier, initdata, sizing, vm_shape};
use kata_cc_sim_tee::SimPlatform;
use serde::Serialize;
use serde_json::{Value, json};

use super::broker::BrokerArguments;
use super::size::SizeArguments;
use super::{block_on, read_text};
use crate::output::Output;

/// Name of the reference value that the attestation policy asks for.
const REFERENCE: &str = "snp_launch_measurement";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Tier that the guest is measured by.
    #[arg(long, value_enum, default_value_t = Measured::SimSnp)]
    tier: Measured,
    #[command(flatten)]
    size: SizeArguments,
    /// Guest kernel; the node's without it.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Guest initramfs; the node's without it.
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// Words added to the guest's command line; the node's without it.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    cmdline_append: Option<String>,
    /// Init-data (TOML) whose digest is told; the node's own without it.
    #[arg(long, value_name = "FILE")]
    init_data: Option<PathBuf>,
    /// Node configuration; /etc/kata-cc/config.toml without it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Add the digest to the key broker's reference values.
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
    tier: &'static str,
    launch_digest: String,
    host_data: String,
    vcpus: u8,
    memory_mib: u64,
    cmdline: String,
    kernel: PathBuf,
    initramfs: PathBuf,
}

fn predict(arguments: &Arguments, config: &NodeConfig) -> anyhow::Result<Answer> {
    let tier = match arguments.tier {
        Measured::SimSnp => Tier::SimSnp,
    };
    let read = |file: &PathBuf| {
        std::fs::read(file).with_context(|| {
            format!(
                "cannot read {}: name the guest image's folder by KATA_CC_SHARE_DIR, or the file itself",
                file.display()
            )
        })
    };
    let (kernel_file, initramfs_file) = (config.kernel(), config.initramfs());
    let (kernel, initramfs) = (read(&kernel_file)?, read(&initramfs_file)?);
    let size = sizing::size(arguments.size.limits(), &config.vm);
    let cmdline = vm_shape::command_line(config, tier);
    let input = LaunchInput {
        kernel: &kernel,
        initramfs: Some(&initramfs),
        cmdline: &cmdline,
        memory_mib: size.memory_mib,
        vcpus: size.vcpus,
        devices: vm_shape::DEVICES,
    };
    let plan = LaunchPlan::new(&input).context("such a guest cannot be launched")?;
    let document = match &arguments.init_data {
        Some(file) => {
            initdata::from_text(&read_text(file)?).with_context(|| format!("{}", file.display()))?
        }
        None => initdata::of_node(config)?,
    };
    Ok(Answer {
        tier: tier.name(),
        launch_digest: hex::encode(plan.launch_digest()),
        host_data: hex::encode(document.host_data),
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        cmdline: plan.cmdline,
        kernel: kernel_file,
        initramfs: initramfs_file,
    })
}

/// Print the prediction, and register it when that was asked for.
pub(crate) fn measure(arguments: &Arguments, output: &Output) -> anyhow::Result<u8> {
    let mut config = match &arguments.config {
        Some(file) => NodeConfig::read(file)?,
        None => NodeConfig::load()?,
    };
    config.kernel = arguments.kernel.clone().or(config.kernel);
    config.initramfs = arguments.initramfs.clone().or(config.initramfs);
    if let Some(words) = &arguments.cmdline_append {
        config.cmdline_append.clone_from(words);
    }
    if arguments.create_sim_platform {
        let dir = config.sim_platform();
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        SimPlatform::load_or_create(&dir)?;
        eprintln!("kata-cc: the simulated platform is in {}; it protects nothing", dir.display());
        if output.json {
            output.document(&json!({"sim_platform": dir, "protects": "nothing"}))?;
        }
        return Ok(0);
    }
    let answer = predict(arguments, &config)?;
    if arguments.register {
        register(&arguments.broker, &answer.launch_digest)?;
        eprintln!("kata-cc: registered as {REFERENCE}");
    }
    if arguments.format == Format::Rvps {
        let values = BTreeMap::from([(REFERENCE.to_owned(), json!([answer.launch_digest]))]);
        output.document(&ReferenceValueMessage::sample(&values))?;
    } else if output.json {
        output.document(&answer)?;
    } else {
        println!("launch digest  {}", answer.launch_digest);
        println!("HOST_DATA      {}", answer.host_data);
        println!("tier           {} (simulated: protects nothing)", answer.tier);
        println!("size           {} vCPUs, {} MiB", answer.vcpus, answer.memory_mib);
        println!("kernel         {}", answer.kernel.display());
        println!("initramfs      {}", answer.initramfs.display());
        println!("command line   {}", answer.cmdline);
    }
    Ok(0)
}

/// Add the digest to those that are known: guests of other sizes stay accepted.
fn register(broker: &BrokerArguments, digest: &str) -> anyhow::Result<()> {
    let client = broker.client()?;
    block_on(async {
        let mut known = match client.reference_value(REFERENCE).await {
            Ok(Value::Array(known)) => known,
            Ok(Value::Null) | Err(ClientError::NotFound { .. }) => Vec::new(),
            Ok(one) => vec![one],
            Err(error) => return Err(error).context("the reference values were not read"),
        };
        if !known.iter().any(|value| value == digest) {
            known.push(json!(digest));
        }
        let values = BTreeMap::from([(REFERENCE.to_owned(), Value::Array(known))]);
        client.set_reference_values(&values).await.context("the launch digest was not registered")
    })
}
