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
            reason: error.map(|error| reason(*kind, error)),
        };
        println!("{}", serde_json::to_string(&tried.iter().map(row).collect::<Vec<_>>())?);
        return Ok(());
    }
    for (kind, error) in tried {
        match error {
            None => println!("{kind}: runs here"),
            Some(error) => println!("{kind}: does not run here: {}", reason(kind, error)),
        }
    }
    Ok(())
}

/// In words.
pub(crate) fn reason(kind: Kind, error: Errno) -> String {
    match (kind, error) {
        (Kind::Kvm, Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => {
            "there is no /dev/kvm: the processor's virtualisation is off, or its module (kvm_intel, kvm_amd) is not loaded".to_owned()
        }
        (Kind::Kvm, Errno::EPERM | Errno::EACCES) => {
            "/dev/kvm may not be opened: its group is usually `kvm`, and a container needs the device".to_owned()
        }
        (Kind::Kvm, Errno::ENOSYS) => {
            "/dev/kvm is there and did not run a guest of this platform (the processor must have FSGSBASE, the host's kernel be 5.16 or newer)".to_owned()
        }
        (Kind::Kvm, other) => format!("the host says {other} to a virtual machine"),
        (_, Errno::EPERM | Errno::EACCES) => {
            "the host does not let a process trace its children (see /proc/sys/kernel/yama/ptrace_scope, and the filter \
             of system calls of what this runs in)"
                .to_owned()
        }
        (_, Errno::ENOSYS) => "the host has no vDSO, or lacks a call".to_owned(),
        (_, other) => format!("the host says {other} to a stub process"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_that_of_the_platform() {
        assert!(reason(Kind::Kvm, Errno::ENOENT).contains("there is no /dev/kvm"));
        assert!(reason(Kind::Kvm, Errno::EACCES).contains("may not be opened"));
        assert!(reason(Kind::Kvm, Errno::ENOSYS).contains("did not run a guest"));
        assert!(reason(Kind::Kvm, Errno::ENOMEM).contains("ENOMEM"));
        assert!(reason(Kind::Ptrace, Errno::EPERM).contains("ptrace_scope"));
        assert!(reason(Kind::Systrap, Errno::EAGAIN).contains("a stub process"));
    }
}
