//! OCI hooks that belong to the host: Docker's and nerdctl's way of giving a container its network.
//!
//! `prestart` and `createRuntime` run when the pod's network namespace exists and before the container is created,
//! `poststop` after it is gone. They get the runtime's state on stdin; its `pid` is a process in the pod's network
//! namespace. Hooks that would run inside the container never leave the host (and never reach a confidential guest).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::TaskError;

/// For hooks without a time limit of their own.
const LIMIT: Duration = Duration::from_secs(60);

/// At which point of the container's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before it is created.
    Create,
    /// After it is gone.
    Stopped,
}

/// Run the hooks of that point, in order. The first that fails ends it.
pub async fn run(when: When, spec: &Spec, id: &str, bundle: &Path, pid: u32) -> Result<(), TaskError> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    #[allow(deprecated, reason = "Docker still uses prestart")]
    let lists = match when {
        When::Create => [hooks.prestart(), hooks.create_runtime()],
        When::Stopped => [hooks.poststop(), &None],
    };
    let status = if when == When::Create { "creating" } else { "stopped" };
    let state = json!({
        "ociVersion": "1.1.0", "id": id, "status": status, "bundle": bundle,
        "pid": if when == When::Create { pid } else { 0 },
        "annotations": spec.annotations().clone().unwrap_or_default(),
    });
    let state = state.to_string();
    for hook in lists.into_iter().flatten().flatten() {
        one(hook, state.as_bytes())
            .await
            .map_err(|reason| TaskError::Hook(format!("hook {} failed: {reason}", hook.path().display())))?;
    }
    Ok(())
}

async fn one(hook: &Hook, state: &[u8]) -> Result<(), String> {
    let limit =
        hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map_or(LIMIT, Duration::from_secs);
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(arguments);
    }
    let environment = hook.env().iter().flatten().filter_map(|pair| pair.split_once('='));
    command.env_clear().envs(environment);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin.take() {
            // A hook that does not read its state is none the worse for it.
            let _ = stdin.write_all(state).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(limit, work)
        .await
        .map_err(|_| format!("no end within {} s", limit.as_secs()))?;
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(script: &str) -> Spec {
        let hooks = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
        serde_json::from_value(json!({"ociVersion": "1.0.2", "hooks": hooks})).unwrap()
    }

    #[tokio::test]
    async fn a_hook_gets_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("state");
        let spec = spec(&format!("cat >{}", out.display()));
        run(When::Create, &spec, "c1", folder.path(), 42).await.unwrap();
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
        assert_eq!((&state["id"], &state["pid"]), (&json!("c1"), &json!(42)));
    }

    #[tokio::test]
    async fn a_failing_hook_says_why() {
        let spec = spec("echo no network >&2; exit 3");
        let error = run(When::Create, &spec, "c1", Path::new("/"), 1).await.unwrap_err().to_string();
        assert!(error.contains("no network") && error.contains("exit status: 3"), "{error}");
        run(When::Stopped, &spec, "c1", Path::new("/"), 1).await.unwrap();
    }
}
