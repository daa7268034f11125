//! What `./x` runs, after it has installed the Debian packages.
//!
//! Every step prints one line that says what it does; a step whose result is cached says so and takes no
//! time. Paths: see [`paths`]. Exit code 0 when all went well, 1 when a step failed (the last line names it); `release --check` has a 2.
#![forbid(unsafe_code)]

mod bench;
mod binaries;
mod checks;
mod compact_elf;
mod fuzz;
mod guest_image;
mod guest_root;
mod images;
mod lab;
mod openapi;
mod paths;
mod place;
mod programs;
mod release;
mod run;
mod shell;
mod stage0;
mod suites;
mod tiers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "x", about = "Build, show, test and measure kata-cc", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything, then show an encrypted image run after attestation, and be refused.
    Run,
    /// Format, lint and unit checks, then the end-to-end tests.
    Test {
        /// Run only the tests whose name contains this.
        name: Option<String>,
        /// Leave out what needs a virtual machine.
        #[arg(long)]
        no_vm: bool,
    },
    /// Measure against a peer in the same run.
    Bench {
        /// Which benchmark; without it the names are listed.
        name: Option<String>,
        /// Options of that benchmark (`./x bench tiers --help`).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Run real programs in the sentry (tests/programs), and python's own tests.
    Programs {
        /// Only these of the table; `python-tests` is python's own, module by module.
        names: Vec<String>,
    },
    /// Fuzz the parsers of untrusted bytes.
    Fuzz {
        /// Which target, or `all`; without it the names are listed.
        target: Option<String>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
    /// Format the sources.
    Fmt,
    /// Remove what was built and cached.
    Clean,
    /// Build the binaries only.
    Build,
    /// Build the binaries and the guest image.
    Image,
    /// Build the container images of the key broker and the attestation service, and try them.
    Images,
    /// Put requests made from the served OpenAPI documents to the key broker and the attestation service (also a part of `test`).
    Openapi,
    /// Build the guest firmware only.
    Stage0,
    /// Build stage0, guest kernel and root image twice from nothing, in folders that have nothing in common, compare the bytes, and write
    /// them with a reference manifest; or check such a manifest (docs/releases.md).
    Release(release::Arguments),
    /// As `release`, of the working tree with its changes, and nothing is kept.
    Reproduce {
        /// Build the guest kernel from nothing in both folders too: 10 to 15 minutes each.
        #[arg(long)]
        kernel: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run => run::run(),
        Command::Test { name, no_vm } => suites::test(name.as_deref(), no_vm),
        Command::Bench { name, options } => bench::bench(name.as_deref(), &options),
        Command::Programs { names } => programs::in_the_sentry(&names),
        Command::Fuzz { target, seconds } => fuzz::fuzz(target.as_deref(), seconds),
        Command::Fmt => checks::format(),
        Command::Clean => paths::clean(),
        Command::Build => binaries::build(),
        Command::Image => binaries::build().and_then(|()| guest_image::build().map(drop)),
        Command::Openapi => binaries::build().and_then(|()| openapi::check()),
        Command::Images => binaries::build().and_then(|()| images::build()),
        Command::Stage0 => {
            std::fs::create_dir_all(paths::share())?;
            stage0::build().map(drop)
        }
        Command::Release(arguments) => return release::release(&arguments).map(ExitCode::from),
        Command::Reproduce { kernel } => return release::reproduce(kernel).map(ExitCode::from),
    }
    .map(|()| ExitCode::SUCCESS)
}
