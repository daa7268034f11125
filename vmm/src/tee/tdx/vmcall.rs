//! TDVMCALLs beside GetQuote that come out to user space: what there is (GetTdVmCallInfo), and an interrupt when a quote is
//! ready (SetupEventNotifyInterrupt).
//!
//! A vector is the guest's word and harms nobody else: it is delivered to the vCPU that named it, by the message that a
//! device of its would send.
//!
//! Sources: Intel GHCI 1.5, sections 3.1 (GetTdVmCallInfo) and 3.5 (SetupEventNotifyInterrupt); Linux
//! `Documentation/virt/kvm/api.rst`, `KVM_EXIT_TDX`, and `arch/x86/kvm/vmx/tdx.c` (leaf 0 is answered by KVM itself).

use std::sync::{Mutex, PoisonError};

use super::launch::capabilities;
use crate::tee::TeeError;
use crate::tee::exits::{TDVMCALL_INVALID_OPERAND, TDVMCALL_SUCCESS, TDVMCALL_UNSUPPORTED};
use crate::tee::ioctls::TeeIoctls;

const LEAF_INFO: u64 = 0x1_0000;
const LEAF_EVENT_NOTIFY: u64 = 0x1_0004;

/// GetTdVmCallInfo: all of GHCI's base calls are there.
const INFO_BASE: u64 = 0;
/// GetTdVmCallInfo: which calls beyond are there, as bits of R11 and R12.
const INFO_CALLS: u64 = 1;
/// Bit of R11: SetupEventNotifyInterrupt. (GetQuote, bit 0, is a base call and told by no bit.)
const CALL_EVENT_NOTIFY: u64 = 1 << 1;

/// Vectors below are exceptions (SDM volume 3, 7.2).
const FIRST_VECTOR: u8 = 32;
/// Where messages to local APICs go; the APIC's id stands in bits 19:12 (SDM volume 3, 12.11).
const MESSAGE_BASE: u32 = 0xFEE0_0000;

/// Who is to be interrupted.
#[derive(Clone, Copy, Debug)]
struct Target {
    vector: u8,
    vcpu: u8,
}

/// The guest's wish to be told by an interrupt; the last one counts.
#[derive(Debug, Default)]
pub struct EventNotify(Mutex<Option<Target>>);

impl EventNotify {
    fn set_up(&self, vector: u64, vcpu: u8) -> u64 {
        let Some(vector) = u8::try_from(vector).ok().filter(|vector| *vector >= FIRST_VECTOR) else {
            return TDVMCALL_INVALID_OPERAND;
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Target { vector, vcpu });
        TDVMCALL_SUCCESS
    }

    /// Interrupts the guest, if it asked for that: fixed delivery, edge-triggered, to the vCPU that asked.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn send(&self, io: &dyn TeeIoctls) -> Result<(), TeeError> {
        let target = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Target { vector, vcpu }) = target else { return Ok(()) };
        io.signal_msi(MESSAGE_BASE | u32::from(vcpu) << 12, vector.into())
            .map_err(TeeError::refused("KVM_SIGNAL_MSI"))
    }
}

/// Serves an exit of vCPU `vcpu`, when it is one of these; false: another call. `words` are `kvm_run.tdx`: flags, leaf,
/// status, then of GetTdVmCallInfo its leaf and R11 to R14, of SetupEventNotifyInterrupt the vector.
pub fn serve(words: &mut [u64], vcpu: u8, io: &dyn TeeIoctls, notify: &EventNotify) -> bool {
    let [_, leaf, status, argument, answer @ ..] = words else { return false };
    *status = match *leaf {
        LEAF_INFO => match info(*argument, io) {
            Ok(registers) => {
                answer.iter_mut().zip(registers).for_each(|(to, value)| *to = value);
                TDVMCALL_SUCCESS
            }
            Err(status) => status,
        },
        LEAF_EVENT_NOTIFY => notify.set_up(*argument, vcpu),
        _ => return false,
    };
    true
}

/// R11 to R14. What the kernel does not pass on is not told, and what it serves by itself is.
fn info(leaf: u64, io: &dyn TeeIoctls) -> Result<[u64; 4], u64> {
    match leaf {
        INFO_BASE => Ok([0; 4]),
        INFO_CALLS => {
            let known = capabilities(io).map_err(|error| {
                tracing::warn!(%error, "the guest's calls cannot be told");
                TDVMCALL_UNSUPPORTED
            })?;
            let [kernel_r11, user_r11, kernel_r12, _] = known.tdvmcall_info;
            Ok([kernel_r11 | user_r11 & CALL_EVENT_NOTIFY, kernel_r12, 0, 0])
        }
        _ => Err(TDVMCALL_INVALID_OPERAND),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::fake::{FakeKernel, Host};

    fn kernel(tdvmcalls: [u64; 4]) -> FakeKernel {
        FakeKernel::new(5, Host { tdvmcalls, ..Host::default() })
    }

    /// Status and registers.
    fn asked(io: &FakeKernel, leaf: u64) -> (u64, [u64; 4]) {
        let mut words = [0, LEAF_INFO, 9, leaf, 7, 7, 7, 7, 5];
        assert!(serve(&mut words, 0, io, &EventNotify::default()));
        let [_, _, status, _, r11, r12, r13, r14, behind] = words;
        assert_eq!(behind, 5, "what is behind is not the answer's");
        (status, [r11, r12, r13, r14])
    }

    #[test]
    fn what_there_is_is_what_kernel_and_monitor_serve() {
        let both = kernel([0b1000, 0b0110, 0b10, 0b1]);
        assert_eq!(asked(&both, 0), (TDVMCALL_SUCCESS, [0; 4]), "the base");
        assert_eq!(asked(&both, 1), (TDVMCALL_SUCCESS, [0b1010, 0b10, 0, 0]));
        // a kernel that does not pass the call on
        assert_eq!(asked(&kernel([0; 4]), 1), (TDVMCALL_SUCCESS, [0; 4]));
        assert_eq!(asked(&both, 2), (TDVMCALL_INVALID_OPERAND, [7; 4]));
        assert_eq!(asked(&both, u64::MAX), (TDVMCALL_INVALID_OPERAND, [7; 4]));
    }

    #[test]
    fn a_vector_of_an_exception_or_beyond_is_refused() {
        let (io, notify) = (kernel([0; 4]), EventNotify::default());
        let set_up = |vector| {
            let mut words = [0, LEAF_EVENT_NOTIFY, 9, vector, 0];
            assert!(serve(&mut words, 3, &io, &notify));
            words[2]
        };
        for vector in [0, 14, 31, 256, 0x1_0000_0020, u64::MAX] {
            assert_eq!(set_up(vector), TDVMCALL_INVALID_OPERAND, "{vector}");
        }
        notify.send(&io).expect("nothing to do");
        assert!(io.state().messages.is_empty(), "none was set up");
        for vector in [32, 255] {
            assert_eq!(set_up(vector), TDVMCALL_SUCCESS);
            notify.send(&io).expect("sent");
        }
        assert_eq!(
            io.state().messages,
            [(0xFEE0_3000, 32), (0xFEE0_3000, 255)],
            "to vCPU 3; the last counts"
        );
    }

    #[test]
    fn other_calls_are_left_alone() {
        for leaf in [0x1_0001, 0x1_0002, 0x1_0003, 0x1_0005] {
            let mut words = [0, leaf, 9, 40, 7];
            assert!(!serve(&mut words, 0, &kernel([0; 4]), &EventNotify::default()));
            assert_eq!(words, [0, leaf, 9, 40, 7]);
        }
        assert!(!serve(&mut [], 0, &kernel([0; 4]), &EventNotify::default()));
    }
}
