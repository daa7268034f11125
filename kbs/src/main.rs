//! `kbs`: the key broker. Speaks Trustee's KBS protocol 0.4.0, 0.2.0 and 0.1.1.
//!
//! A guest proves by remote attestation what was launched (`/auth`, `/attest`), then fetches resources that the resource
//! policy lets it have, encrypted to its key. Administrators put resources, policies and reference values.
//! The attestation service is linked in.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 1 when the start failed, 2 for wrong arguments. SIGHUP takes a changed configuration
//! into use ([`reload`]).

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod admin;
mod api;
mod audit;
mod checks;
mod config;
mod error;
#[cfg(test)]
mod follow_test;
mod handshake;
mod init;
mod jwe;
mod limits;
mod maintenance;
mod metrics;
#[cfg(test)]
mod model_test;
mod plugins;
mod policy;
mod reload;
mod request;
mod server;
mod session;
mod state;
mod storage;
mod tend;
#[cfg(test)]
mod test_utils;
mod tokens;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kata_cc_attestation_service::serve;
use kata_cc_store::audit::Kind;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

use crate::config::Config;
use crate::state::Kbs;
use kata_cc_daemon::telemetry::{self, Telemeter};
use kata_cc_daemon::{MiMalloc, hardening, notify};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Key broker: hands secrets to guests that proved by remote attestation what they are.
#[derive(Debug, Parser)]
#[command(name = "kbs", version)]
struct Arguments {
    /// Configuration file: TOML, or JSON where its name ends in .json.
    #[arg(short, long, env = "KBS_CONFIG_FILE", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Check configuration, keys and stored policies, then exit.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make keys, a certificate and a configuration in a folder.
    Init(init::Init),
    #[command(flatten)]
    Maintenance(maintenance::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kbs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if let Some(Command::Init(init)) = &arguments.command {
        return init::run(init).map(|()| ExitCode::SUCCESS);
    }
    let path = arguments
        .config_file
        .as_ref()
        .context("no configuration: give --config-file FILE or KBS_CONFIG_FILE (kbs init DIR makes one)")?;
    hardening::protect_memory()?;
    // Fails only where it was done before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Config::read(path)?;
    if let Some(Command::Maintenance(command)) = &arguments.command {
        telemetry::log_only(&config.log)?;
        return maintenance::run(command, &config);
    }
    tokio::runtime::Runtime::new()?.block_on(serve(path, &config, arguments.check))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(path: &Path, config: &Config, check: bool) -> anyhow::Result<()> {
    let log = Telemeter::start("kbs", &config.log, &config.telemetry)?;
    // Handlers first: a signal during the start must not be lost.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hup = signal(SignalKind::hangup())?;
    let kbs = Kbs::new(config).await?;
    let policies = reload::Policies::read(config)?;
    let tls = server::Tls::new(config)?;
    if check {
        policies.check(&kbs)?;
        if let Some(follower) = kbs.follower() {
            follower.try_out().await.context("policy_source")?;
        }
        kbs.store.close().await;
        println!("configuration is fine");
        return Ok(());
    }
    audit::mark(&kbs, Kind::Start).await?;
    policies.put(&kbs).await?;
    // Before anybody can ask: what was in force before the restart is so again.
    if let Some(follower) = kbs.follower() {
        follower.start().await.context("policy_source")?;
        kbs.take_resource_policy().await;
    }
    let listeners = server::bind(&config.http_server.sockets).await?;
    for listener in &listeners {
        info!(address = %listener.local_addr()?, tls = tls.is_some(), "listening");
    }
    let (tls, acceptor) = tls.unzip();
    let (stop, stopped) = watch::channel(false);
    let sweeper = tokio::spawn(sweep(Arc::clone(&kbs)));
    let tending = tokio::spawn(tend::tend(Arc::clone(&kbs)));
    let following = tokio::spawn(follow(Arc::clone(&kbs)));
    let warmer = tokio::spawn({
        let gate = kbs.gate.load_full();
        async move { gate.warm().await }
    });
    let limits = config.limits.server(config.http_server.proxies()?);
    let serving = serve::serve(listeners, acceptor, api::router(Arc::clone(&kbs)), limits, &stopped);
    notify("READY=1");
    tokio::pin!(serving);
    loop {
        tokio::select! {
            () = &mut serving => break,
            _ = hup.recv() => {
                notify("RELOADING=1");
                reload::reload(path, config, &kbs, tls.as_deref(), &log).await;
                notify("READY=1");
            }
            _ = term.recv() => drain(&kbs, &stop),
            _ = int.recv() => drain(&kbs, &stop),
        }
    }
    for task in [warmer, sweeper, tending, following] {
        task.abort();
    }
    if let Err(why) = audit::mark(&kbs, Kind::Stop).await {
        tracing::warn!(%why, "the end is not in the audit log");
    }
    kbs.store.close().await;
    info!("stopped");
    log.stop().await;
    Ok(())
}

/// The begin of the end: no new connections, and not ready any more.
fn drain(kbs: &Kbs, stop: &watch::Sender<bool>) {
    kbs.draining.store(true, Ordering::Relaxed);
    notify("STOPPING=1");
    // Nobody listens when the server has ended by itself.
    let _ = stop.send(true);
}

/// Follows the policy bundle's source, where there is one.
async fn follow(kbs: Arc<Kbs>) {
    let Some(follower) = kbs.follower() else { return };
    loop {
        follower.turn().await;
        kbs.take_resource_policy().await;
    }
}

/// Forgets sessions and places of certificates that have expired, now and then.
async fn sweep(kbs: Arc<Kbs>) {
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let now = kata_cc_attestation_service::now();
        if let Err(why) = kbs.sessions.sweep(now).await {
            tracing::warn!(%why, "expired sessions cannot be removed");
        }
        if let Err(why) = kbs.store.sweep_once("", now).await {
            tracing::warn!(%why, "names that were taken until now cannot be removed");
        }
    }
}
