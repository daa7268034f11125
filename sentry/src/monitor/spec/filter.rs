//! The profile of system calls of a specification (`linux.seccomp`), as a program for the sentry.

use kata_cc_agent_protocol::oci;

use super::{Options, SpecError, invalid, unsupported};

/// Actions that leave a call to somebody else.
const ASKING: [&str; 2] = ["SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY"];

/// Compiles it. `None`: there is none, it allows everything, or it is not to be applied.
pub(super) fn program(linux: &oci::Linux, options: &Options) -> Result<Option<Vec<u64>>, SpecError> {
    let Some(profile) = linux.Seccomp.as_ref() else { return Ok(None) };
    if !options.seccomp {
        tracing::info!("linux.seccomp is not applied, as the annotation asks for");
        return Ok(None);
    }
    let actions =
        std::iter::once(&profile.DefaultAction).chain(profile.Syscalls.iter().map(|call| &call.Action));
    for action in actions {
        if ASKING.contains(&action.as_str()) {
            let why = format!("nobody on the host can be asked about a call ({action})");
            return unsupported("linux.seccomp", why);
        }
    }
    match kata_cc_seccomp::compile_with(profile, options.seccomp_errno) {
        Ok(filter) => Ok(filter.map(|filter| filter.program)),
        Err(error) => invalid("linux.seccomp", error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn compiled(change: impl FnOnce(&mut oci::LinuxSeccomp), apply: bool) -> Result<Option<usize>, String> {
        let mut linux = oci::Linux::new();
        let profile = linux.Seccomp.mut_or_insert_default();
        profile.DefaultAction = "SCMP_ACT_ERRNO".to_owned();
        let mut call = oci::LinuxSyscall::new();
        call.Names = vec!["read".to_owned(), "no_such_call".to_owned()];
        call.Action = "SCMP_ACT_ALLOW".to_owned();
        profile.Syscalls.push(call);
        change(profile);
        let options =
            Options { overlay: true, seccomp: apply, seccomp_errno: None, network: None, umask: 0o022 };
        let program = program(&linux, &options).map_err(|error| error.to_string())?;
        Ok(program.map(|program| program.len()))
    }

    #[test]
    fn a_profile_is_compiled_unless_it_is_not_wanted() {
        assert!(compiled(|_| {}, true).unwrap().is_some());
        assert_eq!(compiled(|_| {}, false), Ok(None));
        assert_eq!(compiled(|profile| profile.DefaultAction = "SCMP_ACT_MAGIC".into(), false), Ok(None));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for action in ["SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY", "SCMP_ACT_MAGIC"] {
            let error = compiled(|profile| profile.Syscalls[0].Action = action.to_owned(), true).unwrap_err();
            assert!(error.contains("linux.seccomp") && error.contains(action), "{error}");
        }
        let error =
            compiled(|profile| profile.Architectures.push("SCMP_ARCH_MIPS".into()), true).unwrap_err();
        assert!(error.contains("SCMP_ARCH_MIPS"), "{error}");
    }
}
