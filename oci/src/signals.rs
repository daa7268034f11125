//! Signals that this process gets are meant for the one of the sandbox that it stands for.

use std::io::IsTerminal;
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};

use crate::agent::Agent;
use crate::error::{OciError, io, sys};

/// Those that are about this process itself: faults, and ends of children.
const OWN: [Signal; 6] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGABRT, Signal::SIGCHLD];

/// Blocks signals in all threads, and has one that takes them and sends them on; with a terminal, a new size of it as well. Called while there is one thread.
pub(crate) fn hand_on(folder: &Path, container: &str, exec: &str, terminal: bool) -> Result<(), OciError> {
    let mut signals = SigSet::all();
    for own in OWN {
        signals.remove(own);
    }
    signals.thread_block().map_err(sys("cannot block signals"))?;
    let (folder, container, exec) = (folder.to_owned(), container.to_owned(), exec.to_owned());
    let thread = std::thread::Builder::new().name("signals".into()).stack_size(128 << 10);
    let take = move || {
        while let Ok(signal) = signals.wait() {
            let Ok(mut agent) = Agent::connect(&folder) else { continue };
            // The process may have ended: then who waits for it knows.
            let _ = match (signal, size()) {
                (Signal::SIGWINCH, Some((rows, columns))) if terminal => {
                    agent.resize(&container, &exec, rows, columns)
                }
                (Signal::SIGWINCH | Signal::SIGURG | Signal::SIGCONT | Signal::SIGTSTP, _) => Ok(()),
                (other, _) => {
                    agent.signal(&container, &exec, u32::try_from(other as i32).unwrap_or_default())
                }
            };
        }
    };
    thread.spawn(take).map(drop).map_err(io("cannot start a thread"))
}

/// Rows and columns of our terminal.
fn size() -> Option<(u32, u32)> {
    let stdin = std::io::stdin();
    let size = stdin.is_terminal().then(|| crate::console::size(&stdin)).flatten()?;
    Some((size.ws_row.into(), size.ws_col.into()))
}
