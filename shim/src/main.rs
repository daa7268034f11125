//! `containerd-shim-kata-cc-v2`: the program that containerd runs. One binary under three names, one for each class.
//!
//! The flags decide what it does (see `kata_cc_shim::flags`): answer an address and start the server, be the server,
//! clean up, or describe itself. All but the server print an answer for containerd and nothing else.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use kata_cc_sandbox::Class;
use kata_cc_shim::flags::{Action, Flags};
use kata_cc_shim::logging::Logrus;
use kata_cc_shim::vm::VmLauncher;
use kata_cc_shim::{daemon, delete, info, start};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the shim ends");
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let flags = Flags::parse(std::env::args().skip(1))?;
    match flags.action {
        Action::Version => {
            println!("containerd-shim-kata-cc-v2:\n  Version:  {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Action::Info => answer(&info::info(&format!("io.containerd.{}.v2", class().name()))?),
        Action::Start => answer(&start::start(&flags)?),
        Action::Delete => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start the runtime")?;
            answer(&delete::delete(&flags, |id| {
                runtime.block_on(kata_cc_sandbox::cleanup_leftovers(id));
                Ok(())
            })?)
        }
        Action::Serve => serve(&flags),
    }
}

/// The class that the program's name promises. An unknown name promises the most, so that no renaming weakens a pod.
fn class() -> Class {
    let name = std::env::args().next().unwrap_or_default();
    Class::from_program(&name).unwrap_or(Class::KataCc)
}

fn serve(flags: &Flags) -> anyhow::Result<()> {
    let level = if flags.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let fifo = Logrus::open(Path::new("log"), &flags.id);
    tracing_subscriber::registry().with(fifo.with_filter(level)).init();
    let listener = daemon::prepare()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_name("shim")
        .build()
        .context("cannot start the runtime")?;
    let launcher = Arc::new(VmLauncher { class: class() });
    let served = runtime.block_on(daemon::serve(flags, listener, launcher));
    runtime.shutdown_background();
    served
}

fn answer(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).context("cannot answer containerd")
}
