//! The tracer's side: what it asks of a tracee that stands still (`ptrace_request` in `kernel/ptrace.c`).

use std::sync::Arc;

use super::super::signal::{SignalInfo, SignalSet, Target, is_signal};
use super::super::{Pid, Task, Tree};
use super::stop::Shown;
use super::{Options, Resume, Stop, Trace, event, event_code};
use crate::error::Errno;

impl Task {
    /// The thread that this one means by a number, which it traces; `still`: it has to stand still.
    ///
    /// # Errors
    /// ESRCH.
    pub fn tracee(&self, number: Pid, still: bool) -> Result<Arc<Self>, Errno> {
        let other = self.find(number).ok_or(Errno::ESRCH)?;
        let tree = self.tasks.tree();
        let trace = tree.trace(other.pid()).filter(|trace| trace.tracer == self.pid()).ok_or(Errno::ESRCH)?;
        let stands = trace.stop.as_ref().is_some_and(|stop| !stop.listening);
        drop(tree);
        if stands || !still { Ok(other) } else { Err(Errno::ESRCH) }
    }

    /// Does something with what the tree knows of a tracee that stands still.
    fn with_stop<T>(
        &self,
        other: &Self,
        with: impl FnOnce(&mut Trace) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut tree = self.tasks.tree();
        let trace = tree.trace_mut(other.pid()).filter(|trace| trace.tracer == self.pid());
        with(trace.filter(|trace| trace.stop.is_some()).ok_or(Errno::ESRCH)?)
    }

    /// Lets a tracee go on, with a signal or without (0).
    ///
    /// # Errors
    /// EIO: no signal. ESRCH.
    pub fn resume_tracee(&self, other: &Self, how: Resume, signal: i32) -> Result<(), Errno> {
        if signal != 0 && !is_signal(signal) {
            return Err(Errno::EIO);
        }
        self.with_stop(other, |trace| {
            trace.resume = how;
            trace.code = 0;
            let stop = trace.stop.take().ok_or(Errno::ESRCH)?;
            other.shared.let_go(signal, stop);
            Ok(())
        })?;
        other.waiter.set();
        Ok(())
    }

    /// Lets a tracee alone, with a signal or without (0).
    ///
    /// # Errors
    /// EIO: no signal. ESRCH.
    pub fn detach(&self, other: &Self, signal: i32) -> Result<(), Errno> {
        if signal != 0 && !is_signal(signal) {
            return Err(Errno::EIO);
        }
        let mut tree = self.tasks.tree();
        tree.trace(other.pid()).filter(|trace| trace.tracer == self.pid()).ok_or(Errno::ESRCH)?;
        tree.unlink(other.pid(), signal);
        Ok(())
    }

    /// PTRACE_KILL: as SIGKILL for one that stands still.
    pub fn kill_tracee(&self, other: &Self) {
        if self.with_stop(other, |_| Ok(())).is_ok() {
            let _ = self.tasks.tree().send(
                Target::Group(other.group.pid()),
                SignalInfo::kernel(libc::SIGKILL),
                true,
            );
        }
    }

    /// PTRACE_INTERRUPT.
    ///
    /// # Errors
    /// EIO where it was not seized. ESRCH.
    pub fn interrupt_tracee(&self, other: &Self) -> Result<(), Errno> {
        let mut tree = self.tasks.tree();
        let trace = tree.trace_mut(other.pid()).filter(|trace| trace.tracer == self.pid());
        let trace = trace.ok_or(Errno::ESRCH)?;
        if !trace.seized {
            return Err(Errno::EIO);
        }
        trace.trap = true;
        other.poke();
        Ok(())
    }

    /// PTRACE_LISTEN: it stays as it is, but is heard of when its process goes on or stops again.
    ///
    /// # Errors
    /// EIO where it does not stand still for such a stop.
    pub fn listen_to_tracee(&self, other: &Self) -> Result<(), Errno> {
        self.with_stop(other, |trace| {
            let stops = |code: i32| code >> 8 == event::STOP.cast_signed();
            let seized = trace.seized;
            let stop = trace.stop.as_mut().filter(|stop| seized && stops(stop.code)).ok_or(Errno::EIO)?;
            stop.listening = true;
            trace.code = 0;
            Ok(())
        })?;
        other.waiter.set();
        Ok(())
    }

    /// PTRACE_SETOPTIONS.
    ///
    /// # Errors
    /// ESRCH.
    pub fn set_trace_options(&self, other: &Self, options: Options) -> Result<(), Errno> {
        self.with_stop(other, |trace| {
            trace.options = options;
            Ok(())
        })
    }

    /// PTRACE_GETEVENTMSG.
    ///
    /// # Errors
    /// ESRCH.
    pub fn trace_message(&self, other: &Self) -> Result<u64, Errno> {
        self.with_stop(other, |trace| Ok(trace.message))
    }

    /// PTRACE_GETSIGINFO.
    ///
    /// # Errors
    /// EINVAL in a stop of the process. ESRCH.
    pub fn stop_info(&self, other: &Self) -> Result<SignalInfo, Errno> {
        self.with_stop(other, |trace| {
            trace.stop.as_ref().and_then(|stop| stop.info.clone()).ok_or(Errno::EINVAL)
        })
    }

    /// PTRACE_SETSIGINFO.
    ///
    /// # Errors
    /// As [`stop_info`](Self::stop_info).
    pub fn set_stop_info(&self, other: &Self, info: SignalInfo) -> Result<(), Errno> {
        self.with_stop(other, |trace| match trace.stop.as_mut() {
            Some(Stop { info: place @ Some(_), .. }) => {
                *place = Some(info);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        })
    }

    /// Whether it stands still for a call, or for a filter's word about one: the event's message then tells before or after.
    ///
    /// # Errors
    /// ESRCH.
    pub fn call_stop_of(&self, other: &Self) -> Result<(u8, u64), Errno> {
        self.with_stop(other, |trace| {
            let code = trace.stop.as_ref().and_then(|stop| stop.info.as_ref()).map_or(0, |info| info.code);
            let operation = match (code, trace.message) {
                (code, 1) if code == libc::SIGTRAP | 0x80 => 1,
                (code, 2) if code == libc::SIGTRAP | 0x80 => 2,
                (code, _) if code == event_code(libc::SIGTRAP, event::SECCOMP) => 3,
                _ => 0,
            };
            Ok((operation, trace.message))
        })
    }

    /// Registers of a tracee that stands still, which may be changed.
    ///
    /// # Errors
    /// ESRCH.
    pub fn with_registers<T>(&self, other: &Self, look: impl FnOnce(&mut Shown) -> T) -> Result<T, Errno> {
        self.with_stop(other, |_| Ok(()))?;
        other.shared.with(look)
    }

    /// PTRACE_PEEKSIGINFO: signals that wait for a tracee, or for its process, from one on.
    ///
    /// # Errors
    /// ESRCH.
    pub fn peek_signals(
        &self,
        other: &Self,
        shared: bool,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<SignalInfo>, Errno> {
        self.with_stop(other, |_| Ok(()))?;
        let tree = self.tasks.tree();
        let pending = if shared {
            tree.groups.get(&other.group.pid()).map(|state| &state.pending)
        } else {
            tree.threads.get(&other.pid()).map(|thread| &thread.pending)
        };
        let length = range.end.saturating_sub(range.start);
        Ok(pending.ok_or(Errno::ESRCH)?.iter().skip(range.start).take(length).cloned().collect())
    }

    /// PTRACE_GETSIGMASK.
    ///
    /// # Errors
    /// ESRCH.
    pub fn tracee_mask(&self, other: &Self) -> Result<SignalSet, Errno> {
        self.with_stop(other, |_| Ok(()))?;
        let tree = self.tasks.tree();
        let thread = tree.threads.get(&other.pid()).ok_or(Errno::ESRCH)?;
        Ok(thread.saved_mask.unwrap_or(thread.mask))
    }

    /// PTRACE_SETSIGMASK.
    ///
    /// # Errors
    /// ESRCH.
    pub fn set_tracee_mask(&self, other: &Self, mask: SignalSet) -> Result<(), Errno> {
        self.with_stop(other, |_| Ok(()))?;
        other.set_signal_mask(mask.without(SignalSet::UNBLOCKABLE));
        Ok(())
    }
}

impl Tree {
    /// Whether a signal is to be heard of by a tracer, though nothing would come of it.
    pub(in super::super) fn is_heard(&self, pid: Pid, signal: i32) -> bool {
        signal != libc::SIGKILL && self.trace(pid).is_some()
    }
}
