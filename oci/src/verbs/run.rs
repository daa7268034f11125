//! `run`: create, start, wait and delete.

use super::create::{Created, Terminal, create_of, open_bundle};
use super::{Context, check_terminal, delete, start};
use crate::arguments::Run;
use crate::console::Own;
use crate::error::{OciError, io};
use crate::signals;

/// The verb.
pub(super) fn run(context: &Context, arguments: &Run) -> Result<u8, OciError> {
    let create = &arguments.create;
    let bundle = open_bundle(create)?;
    check_terminal(bundle.terminal(), arguments.detach, create.console_socket.is_some())?;
    let own = if bundle.terminal() && !arguments.detach { Some(Own::of_stdin()?) } else { None };
    let terminal = match &own {
        Some(own) => Terminal::Own(own),
        None => Terminal::Engine(create.console_socket.as_deref()),
    };
    let Created { locked, mut state, mut child } = create_of(context, create, &bundle, terminal)?;
    let folder = context.store.folder_of(&state.sandbox);
    let started = if arguments.detach {
        start::start_locked(context, &locked, &mut state)
    } else {
        signals::hand_on(folder.path(), &state.id, "", own.is_some())
            .and_then(|()| start::start_locked(context, &locked, &mut state))
    };
    drop(locked);
    if let Err(error) = started {
        let _ = delete::delete(context, &state.id, true);
        let _ = child.wait();
        return Err(error);
    }
    if arguments.detach {
        return Ok(0);
    }
    let status = child.wait().map_err(io("cannot wait for the container"))?;
    drop(own);
    if !arguments.keep {
        delete::delete(context, &state.id, true)?;
    }
    Ok(exit_code(status))
}

/// As shells give it.
pub(super) fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}
