//! `kbs`: the key broker. Speaks Trustee's KBS protocol 0.4.0.
//!
//! A guest proves by remote attestation what was launched (`/auth`, `/attest`), then fetches resources that the resource
//! policy lets it have, encrypted to its key. Administrators put resources, policies and reference values.
//! The attestation service is linked in.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 1 when the start failed, 2 for wrong arguments.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod admin;
mod api;
mod config;
mod error;
mod handshake;
mod init;
mod jwe;
mod maintenance;
mod metrics;
mod policy;
mod server;
mod session;
mod state;
mod storage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kata_cc_attestation_service::serve::{self, Limits};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{Config, Log, LogFormat};

/// Key broker: hands secrets to guests that proved by remote attestation what they are.
#[derive(Debug, Parser)]
#[command(name = "kbs", version)]
struct Arguments {
    /// Configuration file (TOML).
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
    let config = Config::read(path)?;
    log(&config.log)?;
    if let Some(Command::Maintenance(command)) = &arguments.command {
        return maintenance::run(command, &config);
    }
    tokio::runtime::Runtime::new()?.block_on(serve(&config, arguments.check))?;
    Ok(ExitCode::SUCCESS)
}

fn log(log: &Log) -> anyhow::Result<()> {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| log.level.clone());
    let filter =
        tracing_subscriber::EnvFilter::try_new(&level).with_context(|| format!("log level {level:?}"))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match log.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

async fn serve(config: &Config, check: bool) -> anyhow::Result<()> {
    // Handlers first: a signal during the start must not be lost.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let kbs = state::Kbs::new(config).await?;
    let tls = server::tls(config)?;
    if check {
        kbs.store.close().await;
        println!("configuration is fine");
        return Ok(());
    }
    let listeners = server::bind(&config.http_server.sockets).await?;
    for listener in &listeners {
        info!(address = %listener.local_addr()?, tls = tls.is_some(), "listening");
    }
    let (stop, stopped) = watch::channel(false);
    let sweeper = tokio::spawn({
        let kbs = kbs.clone();
        async move {
            loop {
                tokio::time::sleep(Duration::from_secs(60)).await;
                if let Err(error) = kbs.sessions.sweep(kata_cc_attestation_service::now()).await {
                    warn!(%error, "expired sessions are not forgotten");
                }
            }
        }
    });
    notify("READY=1");
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        notify("STOPPING=1");
        let _ = stop.send(true);
    });
    serve::serve(listeners, tls, api::router(kbs.clone()), Limits::default(), &stopped).await;
    sweeper.abort();
    kbs.store.close().await;
    info!("stopped");
    Ok(())
}

/// Tells systemd (sd_notify(3)), when it asked to be told. Nobody waits for it, so a failure is not one of ours.
fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.to_str().and_then(|p| p.strip_prefix('@')) {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(state.as_bytes(), &address);
    }
}
