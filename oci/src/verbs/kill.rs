//! `kill`: a signal for a container.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::{Context, pause, ps, signal};
use crate::agent::Agent;
use crate::arguments::Kill;
use crate::error::OciError;
use crate::store::{State, Status};

const SIGKILL: u32 = 9;
/// How long a container whose program does not run yet may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The verb.
pub(super) fn kill(context: &Context, arguments: &Kill) -> Result<u8, OciError> {
    let number = signal::parse(&arguments.signal)?;
    let (_, state) = context.store.load(&arguments.id)?;
    let status = state.status();
    if status == Status::Stopped {
        // runc: to all of none is no failure.
        return if arguments.all { Ok(0) } else { Err(OciError::NotRunning { id: state.id, status }) };
    }
    match send(context, &state, number, arguments.all) {
        // It ended meanwhile.
        Err(_) if !state.process.alive() => Ok(0),
        Err(_) if number == SIGKILL && state.sandbox == state.id => {
            // A sentry that does not answer is no reason to let it be.
            state.process.kill();
            Ok(0)
        }
        Err(error) => Err(error),
        Ok(()) => {
            if status == Status::Paused && number == SIGKILL {
                pause::resume(context, &state.id)?;
            }
            // A program that waits for its start takes no signal; it would never end.
            let ends = matches!(number, 1..=3 | 6 | SIGKILL | 15);
            if matches!(status, Status::Created | Status::Creating) && ends && !state.process.wait(PATIENCE) {
                state.process.kill();
            }
            Ok(0)
        }
    }
}

fn send(context: &Context, state: &State, number: u32, all: bool) -> Result<(), OciError> {
    let folder = context.store.folder_of(&state.sandbox);
    let mut agent = Agent::connect(folder.path())?;
    if all && number != SIGKILL {
        for exec in execs(&ps::processes(&mut agent, &state.id)?) {
            // One that ended meanwhile needs none.
            let _ = agent.signal(&state.id, &exec, number);
        }
    }
    Ok(agent.signal(&state.id, "", number)?)
}

/// Processes of `exec` among those of a container.
fn execs(processes: &[Value]) -> BTreeSet<String> {
    let names = processes.iter().filter_map(|one| one["exec"].as_str());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn execs_are_told_once() {
        let list = [json!({"pid": 1, "exec": ""}), json!({"exec": "a"}), json!({"exec": "a"}), json!({})];
        assert_eq!(execs(&list).into_iter().collect::<Vec<_>>(), ["a"]);
    }
}
