//! Hooks `startContainer`: programs of the container that run in it just before its own (runtime-spec, runtime.md "Lifecycle", step 7). Each is a
//! process in the sandbox beside the first one, which waits.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use kata_cc_agent_protocol::agent as api;
use protobuf::well_known_types::empty::Empty;
use serde_json::{Value, json};

use crate::agent::{Agent, AgentError};
use crate::error::OciError;
use crate::hooks::{self, HookError, Inside};
use crate::store::{Folder, State};
use crate::streams::{self, Streams};
use crate::wire;

/// How much of what a hook says is told.
const TOLD: u64 = 4096;

/// Runs them in order, until one fails.
///
/// # Errors
/// The first that failed.
pub(super) fn run(folder: &Folder, state: &State, spec: &Value) -> Result<(), OciError> {
    let all = hooks::inside(spec)?;
    let shown = serde_json::to_vec(&state.shown("")).unwrap_or_default();
    for (index, hook) in all.iter().enumerate() {
        let failed = |reason: String| -> HookError { hooks::failed_inside(index, &hook.path, reason) };
        let process = process(&spec["process"], hook);
        match one(folder, &state.id, &format!("hook{index}"), &process, hook, &shown) {
            Ok(said) if said.0 == 0 => {}
            Ok((code, said)) => {
                let said = String::from_utf8_lossy(&said).trim().to_owned();
                return Err(failed(format!("exit status: {code}, stderr: {said}")).into());
            }
            Err(error) => return Err(failed(error.to_string()).into()),
        }
    }
    Ok(())
}

/// The container's own process with another program, no terminal, and nothing of its environment.
fn process(own: &Value, hook: &Inside) -> Value {
    let mut process = own.clone();
    // The program is looked for by its first argument: a name of its own would not be found.
    let mut arguments = hook.arguments.clone();
    if let Some(first) = arguments.first_mut() {
        first.clone_from(&hook.path);
    }
    process["args"] = json!(arguments);
    process["env"] = json!(hook.environment);
    process["cwd"] = json!("/");
    process["terminal"] = json!(false);
    process
}

/// Exit code, and what it said.
fn one(
    folder: &Folder,
    id: &str,
    exec: &str,
    process: &Value,
    hook: &Inside,
    state: &[u8],
) -> Result<(u8, Vec<u8>), AgentError> {
    let unreachable = |what| move |source: std::io::Error| AgentError::Unreachable { what, source };
    let (input, mut to) = std::io::pipe().map_err(unreachable("a pipe for a hook"))?;
    let (from, errors) = std::io::pipe().map_err(unreachable("a pipe for a hook"))?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null");
    let null: OwnedFd = null.map_err(unreachable("/dev/null"))?.into();
    streams::hand_over(
        folder.path(),
        id,
        exec,
        Streams::Pipes([input.as_fd(), null.as_fd(), errors.as_fd()]),
    )?;
    drop((input, errors));
    let mut request = api::ExecProcessRequest::new();
    request.container_id = id.to_owned();
    request.exec_id = exec.to_owned();
    request.process = Some(wire::process(process)).into();
    let mut agent = Agent::connect(folder.path())?;
    agent.call::<Empty>("ExecProcess", &request)?;
    // A state is shorter than a pipe holds, and who does not read it is none the worse for it.
    let _ = to.write_all(state);
    drop(to);
    let (tell, told) = mpsc::channel();
    let (waited_id, waited_exec) = (id.to_owned(), exec.to_owned());
    let waits = std::thread::spawn(move || {
        // Who asked may have given up.
        let _ = tell.send(agent.wait(&waited_id, &waited_exec));
    });
    let said = std::thread::spawn(move || {
        let (mut said, mut from) = (Vec::new(), from);
        let _ = from.by_ref().take(TOLD).read_to_end(&mut said);
        let _ = std::io::copy(&mut from, &mut std::io::sink());
        said
    });
    let code = told.recv_timeout(hook.limit).unwrap_or_else(|_| {
        // SIGKILL.
        Agent::connect(folder.path())?.signal(id, exec, 9)?;
        let reason = format!("no end within {} s", hook.limit.as_secs());
        Err(AgentError::Refused { code: 4, message: reason })
    })?;
    let _ = waits.join();
    Ok((code, said.join().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_the_containers_process_with_another_program() {
        let own = json!({"args": ["sh"], "env": ["A=b"], "cwd": "/x", "terminal": true, "user": {"uid": 5}});
        let spec =
            json!({"hooks": {"startContainer": [{"path": "/bin/h", "args": ["h", "1"], "env": ["C=d"]}]}});
        let hook = hooks::inside(&spec).unwrap().remove(0);
        let wanted = json!({"args": ["/bin/h", "1"], "env": ["C=d"], "cwd": "/", "terminal": false, "user": {"uid": 5}});
        assert_eq!(process(&own, &hook), wanted);
    }
}
