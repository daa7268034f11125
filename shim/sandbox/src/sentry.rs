//! The sentry's program as a sandbox: how it is called, and what its end means.

use std::path::Path;

use tokio::process::Command;

use crate::sandbox::SandboxSpec;

/// Exit codes of `kata-cc-sentry serve` (docs/sentry.md).
const NOT_STARTED: i32 = 125;
const FORBIDDEN_CALL: i32 = 159;
const LOST: i32 = 70;

/// `kata-cc-sentry serve`.
pub(crate) fn command(program: &Path, agent: &Path, streams: &Path, spec: &SandboxSpec) -> Command {
    let mut command = Command::new(program);
    command.arg("serve").arg("--agent-socket").arg(agent).arg("--streams-socket").arg(streams);
    command.args(["--id", &spec.id]);
    if !spec.hostname.is_empty() {
        command.args(["--hostname", &spec.hostname]);
    }
    // Of the pod's namespace, or of a new one that hooks may put interfaces into.
    command.args(["--network", "sandbox"]);
    command
}

/// What an exit of it means, in words.
pub(crate) fn exit_reason(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    if let Some(signal) = status.signal() {
        return format!("the sentry was killed by signal {signal}");
    }
    match status.code().unwrap_or(LOST) {
        0 => "the sentry has ended".into(),
        NOT_STARTED => "the sentry did not start: see `kata-cc doctor`".into(),
        FORBIDDEN_CALL => {
            "the sentry was about to make a call of the host that is not its own, and was ended".into()
        }
        LOST => "the sentry is gone".into(),
        code => format!("the sentry failed with exit code {code}"),
    }
}
