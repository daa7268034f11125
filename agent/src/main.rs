//! `kata-cc-agent`: the first process of the guest.
//!
//! It mounts the guest's file systems, serves Kata's agent API over vsock, builds and watches containers, and in a
//! confidential guest trusts nothing from the host: every call passes the measured policy or the one that the
//! attested init-data brings. `kata-cc-agent init` is the short-lived process that becomes a container's program
//! (see [`stage`]).
//!
//! Outside of a VM (`agent.server_addr=unix://…`, not PID 1) it serves the same API for tests.

// A test that cannot go on says so by panicking.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod confidential;
mod config;
mod container;
mod corruption;
mod creating;
mod credentials;
mod egress;
mod gate;
mod guest;
mod image;
mod listener;
mod log;
mod measure;
mod memory;
mod mounts;
mod net;
mod paths;
mod pause;
mod pid1;
#[cfg(test)]
mod policies_test;
mod reaper;
mod sandbox;
mod sealed_image;
mod service;
mod stage;
mod storage;
mod sys;
mod unseal;
mod volume;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use kata_cc_agent_protocol::agent_ttrpc::{AgentService, create_agent_service};
use kata_cc_agent_protocol::health_ttrpc::{Health, create_health};
use kata_cc_policy::AgentPolicy;
use tracing::{info, warn};

use config::{Config, Tee};
use log::Log;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("init") => pid1::end(stage::main()),
        Some("pause") => pid1::end(pause::main()),
        _ => {}
    }
    let first = pid1::is_pid1();
    let mounted = match first {
        true => {
            pid1::open_console();
            pid1::mount_all().and_then(|()| sys::lock_memory())
        }
        false => Ok(()),
    };
    let config = Config::load();
    let log = Log::install(config.log_level);
    tracing::info!("agent started");
    let hook_log = log.clone();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(panic = %panic, "a task of the agent panicked: this is a bug");
        // Whoever waits for that task would wait for ever, and a guest that has lost its footing must not go on.
        if pid1::is_pid1() {
            hook_log.flush(std::time::Duration::from_secs(1));
            pid1::power_off("the agent panicked");
        }
    }));
    let outcome = mounted
        .context("mount the guest's file systems and lock the agent's memory")
        .and_then(|()| run(&config, &log));
    match outcome {
        Ok(()) => pid1::power_off("the sandbox is destroyed"),
        Err(e) => {
            pid1::power_off(&format!("{e:#}"));
        }
    }
}

fn run(config: &Config, log: &Log) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let served = runtime.block_on(serve(config, log));
    if let Err(e) = &served {
        tracing::error!(stage = "failed", by = "agent", reason = %format!("{e:#}"), "agent cannot go on");
    }
    // The lines are sent by the runtime: before it ends.
    log.flush(std::time::Duration::from_secs(2));
    // Pending reads and waits must not hold up the end.
    runtime.shutdown_background();
    served
}

async fn serve(config: &Config, log: &Log) -> Result<()> {
    if config.server_addr.starts_with("vsock") {
        log.send_to_host();
    }
    container::process::open_program().context("open the agent's own program")?;
    nix::sys::prctl::set_child_subreaper(true).context("become the reaper of orphans")?;
    let reaper = reaper::Reaper::default();
    reaper.run().context("watch for exits")?;
    match container::cgroup::prepare() {
        Ok(()) => {}
        Err(e) if pid1::is_pid1() => return Err(e).context("prepare cgroups"),
        Err(e) => warn!(error = %e, "containers run without limits"),
    }
    let network = net::Network::new();
    if pid1::is_pid1()
        && let Err(e) = network.loopback_up().await
    {
        warn!(error = %e, "no loopback");
    }
    let tee = config.tee().map_err(anyhow::Error::msg)?;
    guest::log_probe(tee.is_confidential());
    // Fails only when a provider is installed already, which is then the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let settings = match pid1::is_pid1() {
        true => confidential::load(tee).await?,
        false => confidential::Settings::default(),
    };
    let policy = Arc::new(gate::Gate::new(load_policy(tee, &settings)?));
    let volumes = Arc::new(volume::Volumes::default());
    let proxy = match pid1::is_pid1() {
        true => {
            egress::start().await.context("start the egress proxy")?;
            Some(egress::url())
        }
        false => None,
    };
    let measurements = Arc::new(measure::Measurements::start(tee, settings.event_log())?);
    let broker = confidential::Broker::new(&settings, tee, proxy.clone(), Arc::clone(&measurements))?;
    let settings = Arc::new(settings);
    let images = image::Images::new(
        Arc::clone(&settings),
        broker.clone(),
        tee,
        proxy.clone(),
        Arc::clone(&measurements),
    );
    let images = Arc::new(images.context("seals of the init-data")?);
    let served = match pid1::is_pid1() && tee.is_confidential() {
        true => {
            let features = settings.features(config.guest_api.as_deref())?;
            credentials::fetch(&settings.cdh.credentials, broker.as_ref()).await?;
            let service =
                confidential::attestation_service(&settings, tee, proxy, Arc::clone(&measurements))?;
            let tee = confidential::attested_tee(tee);
            let (images, policy) = (Arc::clone(&images), Arc::clone(&policy));
            let volumes = Arc::clone(&volumes);
            let parts = guest::Parts { tee, broker, service, measurements, images, policy, volumes };
            Some(guest::start(&settings, features, parts).await?)
        }
        false => None,
    };
    let unsealer = unseal::Unsealer(served.as_ref().map(|served| Arc::clone(&served.api)));
    let sandbox = sandbox::Sandbox::new(reaper, tee.is_confidential(), unsealer, Arc::clone(&volumes));
    let service = Arc::new(service::Service::new(sandbox, policy, images, network));
    let ended = Arc::clone(&service.ended);
    let agent: Arc<dyn AgentService + Send + Sync> = service.clone();
    let health: Arc<dyn Health + Send + Sync> = service;
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(
            listener::listen(&config.server_addr)
                .with_context(|| format!("listen on {}", config.server_addr))?,
        )
        .register_service(create_agent_service(agent))
        .register_service(create_health(health));
    server.start().await.context("start the server")?;
    info!(stage = "agent-ready", tee = tee.name(), address = config.server_addr, "agent ready");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = ended.notified() => {
            // The answer to DestroySandbox is still on its way.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        _ = terminate.recv() => info!("asked to end"),
    }
    // What is on them outlives the guest: no journal left to be replayed.
    volumes.close().await;
    Ok(())
}

/// The policy in force until init-data or an allowed SetPolicy replaces it.
fn load_policy(tee: Tee, settings: &confidential::Settings) -> Result<AgentPolicy> {
    if let Some(text) = &settings.policy {
        return AgentPolicy::new("policy.rego of the init-data", text).context("policy of the init-data");
    }
    let (path, built_in) = match tee.is_confidential() {
        true => (paths::DEFAULT_POLICY, include_str!("../policy/default.rego")),
        false => (paths::PLAIN_POLICY, include_str!("../policy/plain.rego")),
    };
    // Both files are in the root that the launch measurement vouches for, as is this binary with its copies of them.
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => built_in.to_owned(),
        Err(e) => return Err(e).with_context(|| format!("read {path}")),
    };
    AgentPolicy::new(path, &text).with_context(|| format!("policy {path}"))
}
