//! `pause` and `resume`.

use kata_cc_agent_protocol::agent as api;
use protobuf::well_known_types::empty::Empty;

use super::Context;
use crate::agent::Agent;
use crate::error::OciError;
use crate::store::Status;

/// `pause`.
pub(super) fn pause(context: &Context, id: &str) -> Result<u8, OciError> {
    let (locked, mut state) = context.store.lock(id)?;
    match state.status() {
        Status::Running | Status::Created => {}
        status => return Err(OciError::NotRunning { id: state.id, status }),
    }
    let mut request = api::PauseContainerRequest::new();
    request.container_id.clone_from(&state.id);
    Agent::connect(context.store.folder_of(&state.sandbox).path())?
        .call::<Empty>("PauseContainer", &request)?;
    state.paused = true;
    locked.write(&state)?;
    Ok(0)
}

/// `resume`.
pub(super) fn resume(context: &Context, id: &str) -> Result<u8, OciError> {
    let (locked, mut state) = context.store.lock(id)?;
    if state.status() != Status::Paused {
        return Err(OciError::NotPaused(state.id));
    }
    let mut request = api::ResumeContainerRequest::new();
    request.container_id.clone_from(&state.id);
    Agent::connect(context.store.folder_of(&state.sandbox).path())?
        .call::<Empty>("ResumeContainer", &request)?;
    state.paused = false;
    locked.write(&state)?;
    Ok(0)
}
