//! Which platforms run on this machine.

use kata_cc_sentry::error::Errno;
use kata_cc_sentry::platform::Kind;

/// Starts each once, and says how that went, the one that is taken by default first.
pub(crate) fn print(json: bool) {
    let tried: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, kind.start().err())).collect();
    if json {
        let rows = tried.iter().map(|(kind, error)| {
            let reason = error.map_or("null".to_owned(), |error| format!("\"{}\"", reason(error)));
            format!("{{\"name\":\"{kind}\",\"available\":{},\"reason\":{reason}}}", error.is_none())
        });
        println!("[{}]", rows.collect::<Vec<_>>().join(","));
        return;
    }
    for (kind, error) in tried {
        match error {
            None => println!("{kind}: runs here"),
            Some(error) => println!("{kind}: does not run here: {}", reason(error)),
        }
    }
}

/// In words; they have no character that JSON would want escaped.
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
