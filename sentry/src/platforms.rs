//! Which platforms run on this machine.

use kata_cc_sentry::error::Errno;
use kata_cc_sentry::platform::Kind;

#[derive(serde::Serialize)]
struct Row {
    name: String,
    available: bool,
    reason: Option<String>,
}

/// Starts each once, and says how that went, the one that is taken by default first.
pub(crate) fn print(json: bool) -> anyhow::Result<()> {
    let tried: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, kind.start().err())).collect();
    if json {
        let row = |(kind, error): &(Kind, Option<Errno>)| Row {
            name: kind.to_string(),
            available: error.is_none(),
            reason: error.map(reason),
        };
        println!("{}", serde_json::to_string(&tried.iter().map(row).collect::<Vec<_>>())?);
        return Ok(());
    }
    for (kind, error) in tried {
        match error {
            None => println!("{kind}: runs here"),
            Some(error) => println!("{kind}: does not run here: {}", reason(error)),
        }
    }
    Ok(())
}

/// In words.
fn reason(error: Errno) -> String {
    match error {
        Errno::EPERM | Errno::EACCES => {
            "the host does not let a process trace its children (see /proc/sys/kernel/yama/ptrace_scope, and the filter \
             of system calls of what this runs in)"
                .to_owned()
        }
        Errno::ENOSYS => "the host has no vDSO, or lacks a call".to_owned(),
        other => format!("the host says {other} to a stub process"),
    }
}
