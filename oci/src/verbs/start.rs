//! `start`: the program of a created container runs.

use kata_cc_agent_protocol::agent as api;
use protobuf::well_known_types::empty::Empty;

use super::{Context, inside, kept_spec};
use crate::agent::Agent;
use crate::error::OciError;
use crate::hooks::{self, When};
use crate::store::{Locked, State, Status};

/// The verb.
pub(super) fn start(context: &Context, id: &str) -> Result<u8, OciError> {
    let (locked, mut state) = context.store.lock(id)?;
    start_locked(context, &locked, &mut state)?;
    Ok(0)
}

/// Of a container whose lock is held.
pub(super) fn start_locked(context: &Context, locked: &Locked, state: &mut State) -> Result<(), OciError> {
    match state.status() {
        Status::Created => {}
        Status::Stopped => return Err(OciError::Stopped(state.id.clone())),
        Status::Running | Status::Paused => return Err(OciError::Running(state.id.clone())),
        status @ Status::Creating => return Err(OciError::NotRunning { id: state.id.clone(), status }),
    }
    let folder = context.store.folder_of(&state.sandbox);
    let spec = kept_spec(&locked.folder)?;
    inside::run(&folder, state, &spec)?;
    let mut request = api::StartContainerRequest::new();
    request.container_id.clone_from(&state.id);
    // Noted first: a program may be done before its start is answered.
    state.started = true;
    locked.write(state)?;
    let started =
        Agent::connect(folder.path()).and_then(|mut agent| agent.call::<Empty>("StartContainer", &request));
    if let Err(error) = started {
        state.started = false;
        locked.write(state)?;
        return Err(error.into());
    }
    let shown = serde_json::to_value(state.shown("")).unwrap_or_default();
    // runtime-spec, runtime.md "Lifecycle", step 9: a hook that fails here is told and passed over.
    hooks::run_all(When::Poststart, &spec, &shown, |error| {
        context.log.warn(&error.to_string());
    });
    Ok(())
}
