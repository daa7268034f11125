//! Controlling terminals: which terminal a session has, and which of its process groups is in front (`drivers/tty/tty_jobctrl.c`).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use super::pair::Pair;
use crate::error::{Errno, Restart, SysError};
use crate::task::signal::SignalInfo;
use crate::task::{Pid, Task, Tasks};
use crate::vfs::sync::lock;

/// A terminal that a session can have.
#[derive(Clone)]
pub enum Terminal {
    /// One of ours.
    Pair(Weak<Pair>),
    /// The host's, which is this container's standard input.
    Host(Arc<OwnedFd>),
}

impl Terminal {
    /// Whether both are the same terminal.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pair(one), Self::Pair(other)) => Weak::ptr_eq(one, other),
            (Self::Host(_), Self::Host(_)) => true,
            _ => false,
        }
    }
}

#[derive(Clone)]
struct Controlling {
    terminal: Terminal,
    foreground: Pid,
}

/// Which session has which terminal. Its lock is a leaf.
#[derive(Default)]
pub struct Sessions {
    of: Mutex<BTreeMap<Pid, Controlling>>,
}

impl Sessions {
    /// The terminal of a session.
    #[must_use]
    pub fn terminal(&self, session: Pid) -> Option<Terminal> {
        lock(&self.of).get(&session).map(|controlling| controlling.terminal.clone())
    }

    /// The session that has a terminal, and the process group in front.
    #[must_use]
    pub fn of(&self, terminal: &Terminal) -> Option<(Pid, Pid)> {
        let of = lock(&self.of);
        let mut all = of.iter();
        all.find(|(_, has)| has.terminal.same(terminal)).map(|(session, has)| (*session, has.foreground))
    }

    /// Gives a session a terminal, taking it from who has it.
    pub fn set(&self, session: Pid, foreground: Pid, terminal: Terminal) {
        let mut of = lock(&self.of);
        of.retain(|_, has| !has.terminal.same(&terminal));
        of.insert(session, Controlling { terminal, foreground });
    }

    /// Puts a process group in front.
    pub fn set_foreground(&self, session: Pid, foreground: Pid) {
        if let Some(controlling) = lock(&self.of).get_mut(&session) {
            controlling.foreground = foreground;
        }
    }

    /// A session has no terminal any more. The process group that was in front.
    pub fn forget(&self, session: Pid) -> Option<Pid> {
        let gone = lock(&self.of).remove(&session);
        gone.map(|gone| gone.foreground)
    }
}

/// The leader of a session ended (`disassociate_ctty`): who is in front hears of it.
pub fn session_ended(tasks: &Tasks, session: Pid) {
    if let Some(foreground) = tasks.terminals().forget(session) {
        tasks.signal_process_group(foreground, &SignalInfo::kernel(libc::SIGHUP));
    }
}

/// A terminal hangs up (`tty_signal_session_leader`): the leader of its session hears of it, which has no terminal from then on.
pub(super) fn hang_up(tasks: &Tasks, terminal: &Terminal) {
    let Some((session, _)) = tasks.terminals().of(terminal) else { return };
    let leader = tasks.find_group(session);
    tasks.terminals().forget(session);
    if let Some(leader) = leader {
        for signal in [libc::SIGHUP, libc::SIGCONT] {
            // Who ended hears nothing.
            let _ = leader.send_signal(SignalInfo::kernel(signal));
        }
    }
}

/// Whether a task may use its terminal now (`__tty_check_change`): from the background it gets `signal`, if it would stop by it.
///
/// # Errors
/// EIO where it would not; else the call is made again after the signal.
pub(super) fn check(task: &Task, terminal: &Terminal, signal: i32) -> Result<(), SysError> {
    let tasks = task.tasks();
    let (session, pgid) = (task.session(), task.process_group());
    match tasks.terminals().of(terminal) {
        Some((owner, foreground)) if owner == session && foreground != pgid => {}
        _ => return Ok(()),
    }
    if task.signal_mask().has(signal) || task.action(signal).handler == 1 {
        return if signal == libc::SIGTTIN { Err(Errno::EIO.into()) } else { Ok(()) };
    }
    if tasks.is_orphaned_group(pgid) {
        return Err(Errno::EIO.into());
    }
    tasks.signal_process_group(pgid, &SignalInfo::kernel(signal));
    Err(SysError::Interrupted(Restart::IfAsked))
}

/// `TIOCSCTTY`: the leader of a session takes a terminal; with `steal` and CAP_SYS_ADMIN from another session.
///
/// # Errors
/// EPERM.
pub(super) fn take(task: &Task, terminal: &Terminal, steal: bool, readable: bool) -> Result<(), Errno> {
    let tasks = task.tasks();
    let (session, pgid) = (task.session(), task.process_group());
    let owner = tasks.terminals().of(terminal);
    if session == task.group().pid() && owner.is_some_and(|(owner, _)| owner == session) {
        return Ok(());
    }
    if session != task.group().pid() || tasks.terminals().terminal(session).is_some() {
        return Err(Errno::EPERM);
    }
    let privileged = task.credentials().capable(crate::task::capability::SYS_ADMIN);
    if owner.is_some() && !(steal && privileged) || !readable && !privileged {
        return Err(Errno::EPERM);
    }
    tasks.terminals().set(session, pgid, terminal.clone());
    Ok(())
}

/// `TIOCNOTTY`: a task gives its terminal up; with the leader of the session all of it do.
///
/// # Errors
/// ENOTTY where it is not its terminal.
pub(super) fn give_up(task: &Task, terminal: &Terminal) -> Result<(), Errno> {
    let (tasks, session) = (task.tasks(), task.session());
    if !tasks.terminals().terminal(session).is_some_and(|own| own.same(terminal)) {
        return Err(Errno::ENOTTY);
    }
    if session == task.group().pid()
        && let Some(foreground) = tasks.terminals().forget(session)
    {
        for signal in [libc::SIGHUP, libc::SIGCONT] {
            tasks.signal_process_group(foreground, &SignalInfo::kernel(signal));
        }
    }
    Ok(())
}

/// `TIOCGPGRP` and `TIOCGSID`: session and process group in front.
///
/// # Errors
/// ENOTTY where it is not the task's terminal, unless `any`.
pub(super) fn owner(task: &Task, terminal: &Terminal, any: bool) -> Result<(Pid, Pid), Errno> {
    let owner = task.tasks().terminals().of(terminal);
    match owner {
        Some(owner) if any || owner.0 == task.session() => Ok(owner),
        None if any => Ok((0, 0)),
        _ => Err(Errno::ENOTTY),
    }
}

/// `TIOCSPGRP`.
///
/// # Errors
/// ENOTTY, EINVAL, ESRCH, EPERM, and what [`check`] says.
pub(super) fn set_foreground(task: &Task, terminal: &Terminal, pgid: Pid) -> Result<(), SysError> {
    check(task, terminal, libc::SIGTTOU)?;
    let session = task.session();
    owner(task, terminal, false)?;
    if pgid < 0 {
        return Err(Errno::EINVAL.into());
    }
    let pgid = task.named(pgid).ok_or(Errno::ESRCH)?;
    let members = task.tasks().select(|member, group| (group == pgid).then(|| member.group().pid()));
    let first = members.first().copied().ok_or(Errno::ESRCH)?;
    if task.tasks().session_of(first) != Some(session) {
        return Err(Errno::EPERM.into());
    }
    task.tasks().terminals().set_foreground(session, pgid);
    Ok(())
}
