//! Signals that tell of files (`send_sigio` in `fs/fcntl.c`; `man 2 fcntl`, "Managing signals").

use super::super::{Tasks, Tree};
use super::{Payload, SignalInfo, Target};
use crate::vfs::{IoSignal, SignalOwner};

/// `POLL_MSG`: something happened that is neither room nor bytes.
const POLL_MSG: i32 = 3;
/// `si_band` of that: POLLIN, POLLRDNORM and POLLMSG.
const BAND_MSG: i64 = 0x441;
/// `SI_SIGIO`: the code where the signal's own codes mean something else.
const SI_SIGIO: i32 = -5;
/// Signals whose codes mean something else (`SIG_SPECIFIC_SICODES_MASK`), but for SIGIO itself.
const WITH_CODES: [i32; 7] =
    [libc::SIGILL, libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGTRAP, libc::SIGCHLD, libc::SIGSYS];

impl Tasks {
    /// Tells the owner of an open file that something happened to it, by the descriptor through which it asked for that.
    pub(crate) fn tell_owner(&self, told: &IoSignal, fd: i32) {
        let mut tree = self.tree();
        match told.owner {
            nobody if nobody.is_nobody() => {}
            SignalOwner::Thread(pid) => tree.tell_one(Target::Thread(pid), told, fd),
            SignalOwner::Process(pid) => {
                let group = tree.threads.get(&pid).map_or(pid, |thread| thread.group);
                tree.tell_one(Target::Group(group), told, fd);
            }
            SignalOwner::Group(pgid) => {
                for group in tree.members(pgid) {
                    tree.tell_one(Target::Group(group), told, fd);
                }
            }
        }
    }
}

impl Tree {
    fn tell_one(&mut self, target: Target, told: &IoSignal, fd: i32) {
        let group = match target {
            Target::Thread(pid) => self.threads.get(&pid).map(|thread| thread.group),
            Target::Group(pid) => Some(pid),
        };
        let Some(state) = group.and_then(|group| self.groups.get(&group)) else { return };
        // As `sigio_perm`: who asked must be able to send them one.
        let (uid, suid) = (state.credentials.uid, state.credentials.suid);
        if told.euid != 0 && ![told.uid, told.euid].iter().any(|own| [uid, suid].contains(own)) {
            return;
        }
        if told.signal != 0 {
            let code = if WITH_CODES.contains(&told.signal) { SI_SIGIO } else { POLL_MSG };
            let payload = Payload::Poll { band: BAND_MSG, fd };
            let info = SignalInfo { signal: told.signal, errno: 0, code, payload };
            if self.send(target, info, false).is_ok() {
                return;
            }
        }
        // Also where too many are queued: one of SIGIO there is always room for. Who is gone needs none.
        let _ = self.send(target, SignalInfo::kernel(libc::SIGIO), false);
    }
}
