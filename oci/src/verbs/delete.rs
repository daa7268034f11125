//! `delete`: nothing of a container is left.

use kata_cc_agent_protocol::agent as api;
use protobuf::well_known_types::empty::Empty;

use super::{Context, kept_spec};
use crate::agent::Agent;
use crate::error::OciError;
use crate::hooks::{self, When};
use crate::store::{State, Status};

/// The verb.
pub(super) fn delete(context: &Context, id: &str, force: bool) -> Result<u8, OciError> {
    let (locked, state) = match context.store.lock(id) {
        Ok(found) => found,
        Err(OciError::Missing { .. } | OciError::State { .. }) if force => {
            return remove_remains(context, id);
        }
        Err(error) => return Err(error),
    };
    let status = state.status();
    match status {
        Status::Running | Status::Paused if !force => {
            return Err(OciError::StillThere { id: state.id, status });
        }
        _ => end(context, &state),
    }
    if let Some(groups) = &state.groups
        && !groups.remove()
    {
        context.log.warn(&format!("control groups of {id} stay: they are in use"));
    }
    // The file goes with the folder, and the hooks come after it.
    let spec = kept_spec(&locked.folder).unwrap_or_default();
    locked.folder.remove()?;
    let shown = serde_json::to_value(state.shown("")).unwrap_or_default();
    hooks::run_all(When::Poststop, &spec, &shown, |error| context.log.warn(&error.to_string()));
    Ok(0)
}

/// Ends what still runs. A sandbox is ended by its monitor's end, a container of another's by its sentry.
fn end(context: &Context, state: &State) {
    if state.sandbox != state.id {
        let folder = context.store.folder_of(&state.sandbox);
        let mut request = api::RemoveContainerRequest::new();
        request.container_id.clone_from(&state.id);
        let removed = Agent::connect(folder.path()).and_then(|mut agent| {
            let _ = agent.signal(&state.id, "", 9);
            agent.call::<Empty>("RemoveContainer", &request)
        });
        if let Err(error) = removed {
            context.log.debug(&format!("container {} was not removed from its sandbox: {error}", state.id));
        }
        if state.process.wait(std::time::Duration::from_secs(1)) {
            return;
        }
        return state.process.kill();
    }
    // With the container its monitor ends, and gives the interfaces of the network namespace back; so it does when it is asked to.
    let second = std::time::Duration::from_secs(1);
    let folder = context.store.folder_of(&state.id);
    let killed = Agent::connect(folder.path()).and_then(|mut agent| agent.signal(&state.id, "", 9));
    if killed.is_err() || !state.process.wait(second) {
        state.process.end(second);
    }
}

/// What cannot be understood any more goes with `--force`.
fn remove_remains(context: &Context, id: &str) -> Result<u8, OciError> {
    if let Some(folder) = context.store.remains(id)? {
        folder.remove()?;
    }
    Ok(0)
}
