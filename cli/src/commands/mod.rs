//! One file per command of `kata-cc`, and what they share: sizes, input files, the runtime.

pub(crate) mod audit;
pub(crate) mod broker;
pub(crate) mod doctor;
pub(crate) mod endorsements;
pub(crate) mod evidence;
pub(crate) mod explain;
pub(crate) mod image;
pub(crate) mod logs;
pub(crate) mod measure;
pub(crate) mod policy;
pub(crate) mod ps;
mod records;
pub(crate) mod run;
mod sealed;
pub(crate) mod secret;
mod size;
pub(crate) mod token;

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use zeroize::Zeroizing;

/// Run a future to its end on a runtime of its own.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(future)
}

/// Bytes of a file, or of standard input when there is none (or it is `-`), at most `limit`.
fn read_input(file: Option<&Path>, limit: u64) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = match file.filter(|file| file.as_os_str() != "-") {
        Some(file) => {
            let opened =
                std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
            opened
                .take(limit + 1)
                .read_to_end(&mut bytes)
                .with_context(|| format!("cannot read {}", file.display()))
        }
        None => std::io::stdin()
            .lock()
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .context("cannot read standard input"),
    }?;
    anyhow::ensure!(read as u64 <= limit, "the input has more than {limit} bytes");
    Ok(bytes)
}

/// Text of a file, named when it is not UTF-8.
fn read_text(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
