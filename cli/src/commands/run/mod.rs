//! `kata-cc run`: one container in a microVM of its own, without containerd.
//!
//! The guest pulls the image itself, in every tier. The exit code is the container's. A refusal ends with one message:
//! who refused, why, what to do, and the id for `kata-cc explain`. The sandbox is stopped whatever happens.

mod io;
mod spec;
mod stages;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use kata_cc_kbs_protocol::initdata;
use kata_cc_sandbox::sealed;
use kata_cc_sandbox::tier::Demand;
use kata_cc_sandbox::{
    Class, ContainerSpec, NodeConfig, Rootfs, Sandbox, SandboxSpec, cleanup_leftovers, paths,
};
use serde_json::json;

use super::size::SizeArguments;
use super::{block_on, read_text, records};
use crate::output::{Output, printable};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What is to protect the container.
    #[arg(long, value_enum, default_value_t = TierChoice::Confidential)]
    tier: TierChoice,
    /// Id of the sandbox; random without it.
    #[arg(long, value_name = "ID")]
    name: Option<String>,
    /// Environment variable; without a value it is taken from here.
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    #[command(flatten)]
    size: SizeArguments,
    /// Init-data (TOML) that the guest is started with; it is measured.
    #[arg(long, value_name = "FILE")]
    init_data: Option<PathBuf>,
    /// Node configuration; /etc/kata-cc/config.toml without it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Give the container a terminal.
    #[arg(long, short)]
    tty: bool,
    /// Pass standard input on.
    #[arg(long, short)]
    interactive: bool,
    /// Host name; the id without it.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Image, and the command instead of the image's own.
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "CMD"])]
    words: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum TierChoice {
    /// A TEE, or not at all.
    Confidential,
    /// A plain microVM.
    Vm,
    /// The best of the node's order.
    Auto,
    /// The user-space kernel: refused with the way to run an image on it.
    #[value(hide = true)]
    Sentry,
}

/// Why not by this command.
const NOT_ON_THE_SENTRY: &str = "an image is pulled inside the guest, which the sentry does not do yet; unpack it (`kata-cc image unpack IMAGE FOLDER`), make a \
     bundle (`kata-cc --tier sentry spec`) and run that: `kata-cc --tier sentry run ID`. containerd, Docker and Podman run images on it \
     (docs/operator-guide/sentry.md)";

/// All that is needed for a start, checked.
struct Plan {
    config: NodeConfig,
    sandbox: SandboxSpec,
    container: ContainerSpec,
    image: String,
    tty: bool,
    interactive: bool,
}

fn plan(arguments: Arguments) -> anyhow::Result<Plan> {
    anyhow::ensure!(arguments.tier != TierChoice::Sentry, NOT_ON_THE_SENTRY);
    let config = match &arguments.config {
        Some(file) => NodeConfig::read(file)?,
        None => NodeConfig::load()?,
    };
    let (image, command) = arguments.words.split_first().context("no image is named")?;
    kata_cc_image::parse_reference(image)?;
    let id = arguments.name.unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string()[..12].to_owned());
    anyhow::ensure!(
        paths::is_id(&id),
        "{id:?} cannot be a sandbox's id: 1 to 128 characters of [A-Za-z0-9_.-]"
    );
    anyhow::ensure!(
        !paths::run_dir().join(&id).exists(),
        "there is a sandbox {id} already: choose another --name, or wait for its end"
    );
    let mut annotations = HashMap::new();
    if let Some(file) = &arguments.init_data {
        let text = read_text(file)?;
        initdata::InitData::parse(&text).with_context(|| format!("{}", file.display()))?;
        annotations.insert(initdata::ANNOTATION.to_owned(), initdata::to_annotation(&text));
    }
    let hostname = arguments.hostname.unwrap_or_else(|| id.chars().take(63).collect());
    anyhow::ensure!(
        (1..=63).contains(&hostname.len())
            && hostname.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
        "{hostname:?} cannot be a host name: 1 to 63 letters, digits, `-`, `.`, `_`"
    );
    let mut env = environment(&arguments.env)?;
    if arguments.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push(format!("TERM={}", std::env::var("TERM").unwrap_or_else(|_| "xterm".into())));
    }
    let sealed_secret = sealed::variable(env.iter().map(String::as_str)).is_some();
    let spec = spec::specification(&spec::Choice {
        command,
        env: &env,
        hostname: &hostname,
        terminal: arguments.tty,
        size: io::terminal_size(),
    });
    let class = match arguments.tier {
        TierChoice::Confidential => Class::KataCc,
        TierChoice::Vm => Class::KataCcVm,
        TierChoice::Auto => Class::KataCcAuto,
        TierChoice::Sentry => Class::KataCcSentry,
    };
    let sandbox = SandboxSpec {
        id: id.clone(),
        class,
        netns: None,
        annotations,
        limits: arguments.size.limits(),
        hostname,
        dns: Vec::new(),
        image: Some(image.clone()),
        demand: Demand { sealed_secret, ..Demand::default() },
        shared_pids: false,
        cgroup: None,
    };
    let container = ContainerSpec { id, spec, rootfs: Rootfs::GuestPull(image.clone()) };
    Ok(Plan {
        config,
        sandbox,
        container,
        image: image.clone(),
        tty: arguments.tty,
        interactive: arguments.interactive,
    })
}

/// `K=V` as it stands, `K` from our own environment (passed over when unset, as with Docker).
fn environment(entries: &[String]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in entries {
        let name = entry.split('=').next().unwrap_or_default();
        anyhow::ensure!(!name.is_empty(), "--env {entry:?} has no name: KEY=VALUE is needed");
        if entry.contains('=') {
            all.push(entry.clone());
        } else if let Ok(value) = std::env::var(name) {
            all.push(format!("{name}={value}"));
        }
    }
    Ok(all)
}

/// Run it; gives the container's exit code.
pub(crate) fn run(arguments: Arguments, output: &Output) -> anyhow::Result<u8> {
    let plan = plan(arguments)?;
    block_on(async { start(&plan, output).await })
}

async fn start(plan: &Plan, output: &Output) -> anyhow::Result<u8> {
    let id = &plan.sandbox.id;
    let mut signals = io::Signals::new().context("cannot listen for signals")?;
    let mut stages = stages::Stages::new(id, &plan.image, output);
    let created = tokio::select! {
        created = Sandbox::create(&plan.config, plan.sandbox.clone()) => created.map_err(anyhow::Error::from),
        () = stages.follow() => unreachable!("following never ends"),
        signal = signals.end() => {
            cleanup_leftovers(id).await;
            return Ok(interrupted(signal));
        }
    };
    stages.show();
    let sandbox = match created {
        Ok(sandbox) => sandbox,
        Err(error) => {
            drop(stages);
            return Err(explained(id, error));
        }
    };
    let result = drive(&sandbox, plan, output, &mut stages, &mut signals).await;
    if result.is_err() {
        // The guest's own words about it may still be on their way.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    drop(stages);
    sandbox.stop().await;
    let code = result.map_err(|error| explained(id, error))?;
    if output.json {
        output.line(&json!({"event": "exit", "code": code, "id": id}))?;
    }
    Ok(code)
}

fn interrupted(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(255)
}

async fn drive(
    sandbox: &Arc<Sandbox>,
    plan: &Plan,
    output: &Output,
    stages: &mut stages::Stages<'_>,
    signals: &mut io::Signals,
) -> anyhow::Result<u8> {
    let container = &plan.container.id;
    let starting = async {
        sandbox.create_container(&plan.container).await?;
        sandbox.start_container(container).await
    };
    tokio::select! {
        started = starting => started?,
        () = stages.follow() => unreachable!("following never ends"),
        signal = signals.end() => return Ok(interrupted(signal)),
    }
    stages.show();
    stages.done();
    io::attach(sandbox, container, plan.tty, plan.interactive, output.json, signals).await
}

/// The one message about a failure: what the record knows of its cause, else the error itself.
fn explained(id: &str, error: anyhow::Error) -> anyhow::Error {
    let cause = records::Summary::read(id).ok().and_then(|(_, stages)| records::refusal(&stages));
    let Some(cause) = cause else { return error };
    anyhow::anyhow!(
        "{} by {}: {}{}; what to do: {}; `kata-cc explain {id}` shows the whole start",
        cause.stage,
        printable(&cause.by),
        printable(&cause.reason),
        if cause.expected.is_empty() || cause.seen == cause.reason {
            String::new()
        } else {
            format!(" (expected {}, seen {})", printable(&cause.expected), printable(&cause.seen))
        },
        printable(&cause.advice),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_without_a_value_come_from_here() {
        let of = |entries: &[&str]| environment(&entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["A=b=c", "B="]).unwrap(), ["A=b=c", "B="]);
        assert_eq!(of(&["KATA_CC_TEST_NOT_SET"]).unwrap(), [""; 0]);
        assert!(of(&["PATH"]).unwrap()[0].starts_with("PATH="));
        assert!(of(&["=x"]).is_err() && of(&[""]).is_err());
    }
}
