//! A signal with what it tells.

use super::super::Pid;
use super::is_signal;

/// What a signal tells besides its number and code: the union in `siginfo_t` (`include/uapi/asm-generic/siginfo.h`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Who sent it: `kill`, `tgkill`, a terminal (pid 0).
    Kill {
        /// Sender.
        pid: Pid,
        /// Its user.
        uid: u32,
    },
    /// A timer of `timer_create`.
    Timer {
        /// Its number.
        id: i32,
        /// Expirations that made no signal of their own.
        overrun: i32,
        /// `sigev_value`.
        value: u64,
    },
    /// `sigqueue`.
    Queue {
        /// Sender.
        pid: Pid,
        /// Its user.
        uid: u32,
        /// `si_value`.
        value: u64,
    },
    /// A child.
    Child {
        /// Which.
        pid: Pid,
        /// Its user.
        uid: u32,
        /// Exit code or signal.
        status: i32,
        /// User time, in ticks of 10 ms.
        user: i64,
        /// System time, in ticks of 10 ms.
        system: i64,
    },
    /// A fault.
    Fault {
        /// Where.
        address: u64,
    },
    /// A file became ready (SIGIO).
    Poll {
        /// `si_band`.
        band: i64,
        /// Descriptor.
        fd: i32,
    },
    /// Whatever a program put in (`rt_sigqueueinfo` with a code of its own).
    Raw(Box<[u8; 112]>),
}

/// A signal that is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalInfo {
    /// Its number, 1 to 64.
    pub signal: i32,
    /// `si_errno`.
    pub errno: i32,
    /// `si_code`: where it comes from.
    pub code: i32,
    /// The rest.
    pub payload: Payload,
}

/// `SI_USER`.
pub const SI_USER: i32 = 0;
/// `SI_KERNEL`.
pub const SI_KERNEL: i32 = 0x80;
/// `SI_QUEUE`.
pub const SI_QUEUE: i32 = -1;
/// `SI_TIMER`.
pub const SI_TIMER: i32 = -2;
/// `SI_TKILL`.
pub const SI_TKILL: i32 = -6;

impl SignalInfo {
    /// From the kernel, for no task's sake (`SEND_SIG_PRIV`).
    #[must_use]
    pub fn kernel(signal: i32) -> Self {
        Self { signal, errno: 0, code: SI_KERNEL, payload: Payload::Kill { pid: 0, uid: 0 } }
    }

    /// As `kill` sends it.
    #[must_use]
    pub fn user(signal: i32, pid: Pid, uid: u32) -> Self {
        Self { signal, errno: 0, code: SI_USER, payload: Payload::Kill { pid, uid } }
    }

    /// As `tkill` and `tgkill` send it.
    #[must_use]
    pub fn thread(signal: i32, pid: Pid, uid: u32) -> Self {
        Self { signal, errno: 0, code: SI_TKILL, payload: Payload::Kill { pid, uid } }
    }

    /// A fault of the guest's code.
    #[must_use]
    pub fn fault(signal: i32, code: i32, address: u64) -> Self {
        Self { signal, errno: 0, code, payload: Payload::Fault { address } }
    }

    /// What a signal is of which only the bit could be kept.
    #[must_use]
    pub fn lost(signal: i32) -> Self {
        Self { signal, errno: 0, code: SI_USER, payload: Payload::Kill { pid: 0, uid: 0 } }
    }

    /// Whether the kernel made it (`SI_FROMKERNEL`).
    #[must_use]
    pub fn from_kernel(&self) -> bool {
        self.code > 0
    }

    /// Out of a program's `siginfo_t` with `signal` for its number. `None` where there is no such signal.
    #[must_use]
    pub fn from_bytes(signal: i32, bytes: &[u8; 128]) -> Option<Self> {
        if !is_signal(signal) {
            return None;
        }
        let number = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[at..at + 4]);
            i32::from_le_bytes(four)
        };
        let mut rest = Box::new([0; 112]);
        rest.copy_from_slice(&bytes[16..]);
        Some(Self { signal, errno: number(4), code: number(8), payload: Payload::Raw(rest) })
    }

    /// As `siginfo_t`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.signal.to_le_bytes());
        put(4, &self.errno.to_le_bytes());
        put(8, &self.code.to_le_bytes());
        match &self.payload {
            Payload::Kill { pid, uid } => {
                put(16, &pid.to_le_bytes());
                put(20, &uid.to_le_bytes());
            }
            Payload::Timer { id, overrun, value } => {
                put(16, &id.to_le_bytes());
                put(20, &overrun.to_le_bytes());
                put(24, &value.to_le_bytes());
            }
            Payload::Queue { pid, uid, value } => {
                put(16, &pid.to_le_bytes());
                put(20, &uid.to_le_bytes());
                put(24, &value.to_le_bytes());
            }
            Payload::Child { pid, uid, status, user, system } => {
                put(16, &pid.to_le_bytes());
                put(20, &uid.to_le_bytes());
                put(24, &status.to_le_bytes());
                put(32, &user.to_le_bytes());
                put(40, &system.to_le_bytes());
            }
            Payload::Fault { address } => put(16, &address.to_le_bytes()),
            Payload::Poll { band, fd } => {
                put(16, &band.to_le_bytes());
                put(24, &fd.to_le_bytes());
            }
            Payload::Raw(rest) => put(16, &rest[..]),
        }
        bytes
    }

    /// As `struct signalfd_siginfo` (`include/uapi/linux/signalfd.h`).
    #[must_use]
    pub fn to_signalfd(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.signal.to_le_bytes());
        put(4, &self.errno.to_le_bytes());
        put(8, &self.code.to_le_bytes());
        match &self.payload {
            Payload::Kill { pid, uid } => {
                put(12, &pid.to_le_bytes());
                put(16, &uid.to_le_bytes());
            }
            Payload::Timer { id, overrun, value } => {
                put(24, &id.to_le_bytes());
                put(32, &overrun.to_le_bytes());
                put(44, &value.to_le_bytes()[..4]);
                put(48, &value.to_le_bytes());
            }
            Payload::Queue { pid, uid, value } => {
                put(12, &pid.to_le_bytes());
                put(16, &uid.to_le_bytes());
                put(44, &value.to_le_bytes()[..4]);
                put(48, &value.to_le_bytes());
            }
            Payload::Child { pid, uid, status, user, system } => {
                put(12, &pid.to_le_bytes());
                put(16, &uid.to_le_bytes());
                put(40, &status.to_le_bytes());
                put(56, &user.to_le_bytes());
                put(64, &system.to_le_bytes());
            }
            Payload::Fault { address } => put(72, &address.to_le_bytes()),
            Payload::Poll { band, fd } => {
                put(28, &band.to_le_bytes()[..4]);
                put(20, &fd.to_le_bytes());
            }
            // Of `sigqueue`, in nearly all cases: pid, uid, value.
            Payload::Raw(rest) => {
                put(12, &rest[..8]);
                put(44, &rest[8..12]);
                put(48, &rest[8..16]);
            }
        }
        bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_child_tells_where_linux_puts_it() {
        let payload = Payload::Child { pid: 7, uid: 1000, status: 3, user: 2, system: 1 };
        let bytes =
            SignalInfo { signal: libc::SIGCHLD, errno: 0, code: libc::CLD_EXITED, payload }.to_bytes();
        assert_eq!(bytes[..4], 17_i32.to_le_bytes());
        assert_eq!(bytes[8..12], 1_i32.to_le_bytes());
        assert_eq!((bytes[16], bytes[20], bytes[21], bytes[24], bytes[32], bytes[40]), (7, 232, 3, 3, 2, 1));
    }

    #[test]
    fn what_a_program_queues_comes_back_as_it_is() {
        let mut bytes = [7; 128];
        bytes[..4].copy_from_slice(&40_i32.to_le_bytes());
        bytes[12..16].fill(0);
        assert_eq!(SignalInfo::from_bytes(40, &bytes).unwrap().to_bytes(), bytes);
        assert_eq!(SignalInfo::from_bytes(65, &bytes), None);
        assert_eq!(SignalInfo::from_bytes(0, &bytes), None);
    }
}
