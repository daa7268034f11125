//! `ps`: as JSON the processes of the host (engines look at them there), as columns those of the sentry.

use kata_cc_agent_protocol::agent as api;
use serde_json::Value;

use super::list::table;
use super::{Context, say};
use crate::agent::{Agent, AgentError};
use crate::arguments::{Form, Ps};
use crate::error::OciError;
use crate::store::{State, Status};

/// The verb.
pub(super) fn ps(context: &Context, arguments: &Ps) -> Result<u8, OciError> {
    let (_, state) = context.store.load(&arguments.id)?;
    let status = state.status();
    if status == Status::Stopped {
        return Err(OciError::NotRunning { id: state.id, status });
    }
    if arguments.format == Form::Json {
        return say(&(serde_json::to_string(&of_host(&state)).unwrap_or_default() + "\n"));
    }
    let folder = context.store.folder_of(&state.sandbox);
    let processes = processes(&mut Agent::connect(folder.path())?, &state.id)?;
    let head = ["UID", "PID", "PPID", "STATE", "TIME", "CMD"].map(str::to_owned);
    say(&table(std::iter::once(head).chain(processes.iter().map(row)).collect()))
}

/// Processes of the host that belong to a container.
fn of_host(state: &State) -> Vec<u32> {
    let found = state.groups.as_ref().map(crate::cgroup::Groups::processes).unwrap_or_default();
    if found.is_empty() { vec![state.process.pid] } else { found }
}

/// Processes of a container as the sentry has them.
pub(super) fn processes(agent: &mut Agent, container: &str) -> Result<Vec<Value>, AgentError> {
    let mut request = api::GetDiagnosticDataRequest::new();
    "processes".clone_into(&mut request.log_type);
    container.clone_into(&mut request.container_id);
    let answer: api::GetDiagnosticDataResponse = agent.call("GetDiagnosticData", &request)?;
    let parsed: Result<Vec<Value>, _> = serde_json::from_str(&answer.data);
    parsed.map_err(|error| AgentError::Answer { method: "GetDiagnosticData", reason: error.to_string() })
}

fn row(process: &Value) -> [String; 6] {
    let number = |name: &str| process[name].as_u64().unwrap_or_default();
    let words = process["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut line = words.collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        line = format!("[{}]", process["name"].as_str().unwrap_or("?"));
    }
    // What a program calls itself must not move the user's cursor.
    let line: String = line.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let seconds = number("cpu_ns") / 1_000_000_000;
    let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let state = process["state"].as_str().unwrap_or("?").to_owned();
    [number("uid").to_string(), number("pid").to_string(), number("ppid").to_string(), state, time, line]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_shows_a_process() {
        let process = json!({"pid": 2, "ppid": 1, "uid": 0, "args": ["sh", "-c", "\u{1b}x"], "cpu_ns": 61_000_000_000u64, "state": "S"});
        assert_eq!(row(&process), ["0", "2", "1", "S", "00:01:01", "sh -c ?x"]);
        assert_eq!(row(&json!({"name": "x"}))[5], "[x]");
    }
}
