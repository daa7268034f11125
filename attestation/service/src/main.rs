//! `attestation-service`: the attestation service over REST and gRPC, without a KBS. Thin: all work is in the library.
//!
//! Options as Trustee's `restful-as` (`-c`, `-s`, `-t`, `-k`); the file is our own. Policies, reference values and keys are changed by the
//! holder of the administrator's key (`--admin-key`), by nobody without one; without one it also listens on loopback only.
//!
//! SIGHUP reads keys, certificates, policies and reference values again. Exit codes: 0 after SIGTERM or SIGINT, 1 when the start failed, 2
//! for wrong arguments.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod config;
mod daemon;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kata_cc_daemon::telemetry::LogFormat;
use kata_cc_daemon::{MiMalloc, hardening};

use crate::config::{Config, Simulated, Tls};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Attestation service: verifies and appraises evidence, answers with signed EAR tokens.
#[derive(Debug, Parser)]
#[command(name = "attestation-service", version)]
struct Arguments {
    /// Configuration file (TOML, or JSON when it ends in .json); arguments win over it.
    #[arg(short, long, env = "ATTESTATION_SERVICE_CONFIG_FILE", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Address of the REST interface [default: 127.0.0.1:8080].
    #[arg(short, long, env = "ATTESTATION_SERVICE_SOCKET")]
    socket: Option<SocketAddr>,
    /// Address of the gRPC interface; none without it (Trustee's is port 50004).
    #[arg(long, env = "ATTESTATION_SERVICE_GRPC_SOCKET")]
    grpc_socket: Option<SocketAddr>,
    /// Public key (PEM) of the administrator, who may set policies and reference values.
    #[arg(long, value_name = "FILE")]
    admin_key: Option<PathBuf>,
    /// TLS certificate chain (PEM); plain HTTP without.
    #[arg(short = 't', long, requires = "https_prikey")]
    https_pubkey_cert: Option<PathBuf>,
    /// TLS private key (PEM).
    #[arg(short = 'k', long, requires = "https_pubkey_cert")]
    https_prikey: Option<PathBuf>,
    /// Folder for the store and the keys; made when absent [default: /var/lib/kata-cc/attestation-service].
    #[arg(short, long, env = "ATTESTATION_SERVICE_WORK_DIR")]
    work_dir: Option<PathBuf>,
    /// Root of a simulated platform (ark.pem) that is trusted. Simulated evidence protects nothing.
    #[arg(long, value_name = "ARK")]
    simulated_trust_anchor: Option<PathBuf>,
    /// Where endorsements come from that evidence does not bring (TOML, as the section [endorsements] of the KBS).
    #[arg(long, value_name = "FILE")]
    endorsements: Option<PathBuf>,
    /// Algorithm of the token key that is made at the first start [default: ES256].
    #[arg(long, value_parser = ["ES256", "ES384", "EdDSA"])]
    token_algorithm: Option<String>,
    /// Minutes that a token is valid [default: 5].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1440))]
    token_minutes: Option<u32>,
    /// Log lines as JSON.
    #[arg(long)]
    json_log: bool,
    /// Check configuration, keys and stored policies, then exit.
    #[arg(long)]
    check: bool,
}

impl Arguments {
    /// The file, and over it the arguments.
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = match &self.config_file {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        // Paths of arguments are relative to where we are, not to the file.
        let here = std::env::current_dir().unwrap_or_default();
        let absolute = |path: &PathBuf| here.join(path);
        config.socket = self.socket.unwrap_or(config.socket);
        config.grpc_socket = self.grpc_socket.or(config.grpc_socket);
        if let Some(dir) = &self.work_dir {
            config.work_dir = absolute(dir);
        }
        if let Some(key) = &self.admin_key {
            config.admin.public_key = Some(absolute(key));
        }
        if let (Some(certificate), Some(key)) = (&self.https_pubkey_cert, &self.https_prikey) {
            config.tls = Some(Tls { certificate: absolute(certificate), private_key: absolute(key) });
        }
        if let Some(anchor) = &self.simulated_trust_anchor {
            config.simulated = Some(Simulated { trust_anchor: absolute(anchor) });
        }
        if let Some(file) = &self.endorsements {
            config.endorsements = Some(absolute(file));
        }
        if let Some(algorithm) = &self.token_algorithm {
            config.token.algorithm.clone_from(algorithm);
        }
        config.token.minutes = self.token_minutes.unwrap_or(config.token.minutes);
        if self.json_log {
            config.log.format = LogFormat::Json;
        }
        config.check()?;
        Ok(config)
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    hardening::protect_memory()?;
    // Fails only where it was done before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = arguments.config()?;
    tokio::runtime::Runtime::new()?.block_on(daemon::serve(&config, arguments.check))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attestation-service: {error:#}");
            ExitCode::FAILURE
        }
    }
}
