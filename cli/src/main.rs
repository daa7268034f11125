//! `kata-cc`: the user's command.
//!
//! `--tier sentry` before the verb makes it an OCI runtime, as the names `kata-cc-runc` and `kata-cc-oci` do (crate `kata-cc-oci`).
//!
//! Exit codes: 0 done; 1 failed or refused (the last line of standard error says what, why and what to do);
//! 2 wrong usage; `run` gives the container's own exit code. `--json` prints one JSON document (or one object a
//! line for streams) on standard output and nothing else there. Colour and progress only on a terminal.
#![forbid(unsafe_code)]
// `println!` panics when the reader goes away; all printing is in `output`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod commands;
mod output;

use clap::{CommandFactory, Parser, Subcommand};

use crate::output::Output;

/// Run containers in confidential microVMs.
#[derive(Parser)]
#[command(name = "kata-cc", version, about, max_term_width = 100)]
struct Arguments {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Say more on standard error; `RUST_LOG` sets it finer.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run an image in a microVM, without containerd.
    Run(commands::run::Arguments),
    /// Tell what this machine can do, with the reason and what to change.
    Doctor,
    /// Predict the launch digest of a guest, offline.
    Measure(Box<commands::measure::Arguments>),
    /// Encrypt, inspect and verify images.
    #[command(subcommand)]
    Image(commands::image::Command),
    /// Keep secrets in a key broker.
    #[command(subcommand)]
    Secret(commands::secret::Command),
    /// Set and show the policies of a key broker.
    #[command(subcommand)]
    Policy(commands::policy::Command),
    /// Look at attestation tokens, offline.
    #[command(subcommand)]
    Token(commands::token::Command),
    /// Print and verify attestation evidence from a file, offline.
    #[command(subcommand)]
    Evidence(commands::evidence::Command),
    /// Show certificates, revocation lists and collateral, and take them to where there is no network.
    #[command(subcommand)]
    Endorsements(commands::endorsements::Command),
    /// Check the audit log of a key broker.
    #[command(subcommand)]
    Audit(commands::audit::Command),
    /// List sandboxes, running and ended.
    Ps(commands::ps::Arguments),
    /// Print the log of a sandbox.
    Logs(commands::logs::Arguments),
    /// Say why: how a sandbox started, or what of a token or of evidence is not as it should be.
    Explain(Box<commands::explain::Arguments>),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> std::process::ExitCode {
    let words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(words) = kata_cc_oci::command_line(&words) {
        return std::process::ExitCode::from(kata_cc_oci::verbs::main(words));
    }
    let arguments = Arguments::parse_from(words);
    let output = Output::new(arguments.json);
    output::start_log(arguments.verbose);
    // Every TLS connection of this process uses the one provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let result = match arguments.command {
        Command::Run(arguments) => commands::run::run(arguments, &output),
        Command::Doctor => commands::doctor::doctor(&output),
        Command::Measure(arguments) => commands::measure::measure(&arguments, &output),
        Command::Image(command) => commands::image::run(command, &output),
        Command::Secret(command) => commands::secret::run(command, &output),
        Command::Policy(command) => commands::policy::run(command, &output),
        Command::Token(command) => commands::token::run(command, &output),
        Command::Evidence(command) => commands::evidence::run(&command, &output),
        Command::Audit(command) => commands::audit::run(command, &output),
        Command::Ps(arguments) => commands::ps::ps(&arguments, &output),
        Command::Logs(arguments) => commands::logs::logs(&arguments, &output),
        Command::Explain(arguments) => commands::explain::explain(&arguments, &output),
        Command::Endorsements(command) => commands::endorsements::run(&command, &output),
        Command::Completions { shell } => {
            // Not to standard output at once: the generator panics when that is closed.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "kata-cc", &mut script);
            output.text(&String::from_utf8_lossy(&script)).map(|()| 0)
        }
    };
    match result {
        Ok(code) => std::process::ExitCode::from(code),
        Err(error) => {
            output.error(&error);
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
