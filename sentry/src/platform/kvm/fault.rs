//! What exceptions of the processor are to a guest (Linux' `arch/x86/kernel/traps.c`).

use super::shim::{Shim, place};
use crate::platform::Trap;
use crate::platform::systrap::layout::context_address;
use crate::platform::systrap::thread::StubThread;

/// Number of a page fault.
pub(super) const PAGE_FAULT: u64 = 14;

/// Error code of a page fault: an instruction of ring 3 that ring 3 does not have.
const FETCH_OF_RING_0: u64 = 0x15;

// `si_code` (`include/uapi/asm-generic/siginfo.h`).
const FPE_INTDIV: i32 = 1;
const FPE_FLTDIV: i32 = 3;
const FPE_FLTOVF: i32 = 4;
const FPE_FLTUND: i32 = 5;
const FPE_FLTRES: i32 = 6;
const FPE_FLTINV: i32 = 7;
const ILL_ILLOPN: i32 = 2;
const TRAP_TRACE: i32 = 2;
const BUS_ADRALN: i32 = 1;
const BUS_ADRERR: i32 = 2;
const SI_KERNEL: i32 = libc::SI_KERNEL;

/// Whether a fault is a system call: `kvm_pvm` has the processor go to where calls lead and stay in ring 3. A guest that jumps there by itself
/// makes one, too.
pub(super) fn is_call(stub: &StubThread, rip: u64, number: u64, error: u64) -> bool {
    let call = context_address(stub.slot) + place::CODE as u64 + Shim::linked().call;
    number == PAGE_FAULT && error == FETCH_OF_RING_0 && rip == call
}

/// What an address that no program can have does.
pub(super) fn general_protection() -> Trap {
    Trap::Fault { signal: libc::SIGSEGV, code: SI_KERNEL, address: 0, exception: (13, 0) }
}

/// Memory that the host has for a stub and not for its machine.
pub(super) fn no_memory() -> Trap {
    let exception = (PAGE_FAULT, 0);
    Trap::Fault { signal: libc::SIGBUS, code: BUS_ADRERR, address: 0, exception }
}

/// Whether an address is one of the processor's, of 48 bits.
pub(super) fn is_canonical(address: u64) -> bool {
    ((address << 16).cast_signed() >> 16).cast_unsigned() == address
}

/// The signal of an exception other than a page fault. `vector`: vector state in the form of FXSAVE, where that matters. `None` where the guest
/// goes on: nobody has anything to say to it.
pub(super) fn trap(number: u64, error: u64, rip: u64, vector: impl Fn() -> Vec<u8>) -> Option<Trap> {
    let (signal, code, address) = match number {
        0 => (libc::SIGFPE, FPE_INTDIV, rip),
        1 => (libc::SIGTRAP, TRAP_TRACE, rip),
        3 => (libc::SIGTRAP, SI_KERNEL, 0),
        6 => (libc::SIGILL, ILL_ILLOPN, rip),
        4 | 5 | 9 | 10 | 13 => (libc::SIGSEGV, SI_KERNEL, 0),
        11 | 12 => (libc::SIGBUS, SI_KERNEL, 0),
        16 | 19 => (libc::SIGFPE, floating(number, &vector()), rip),
        17 => (libc::SIGBUS, BUS_ADRALN, 0),
        // An interrupt that nobody waits for any more.
        32 => return None,
        _ => (libc::SIGILL, ILL_ILLOPN, rip),
    };
    Some(Trap::Fault { signal, code, address, exception: (number, error) })
}

/// Which of the errors that are not masked it was.
fn floating(number: u64, vector: &[u8]) -> i32 {
    let word = |place: usize| {
        let bytes = vector.get(place..place + 2).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u16::from_le_bytes)
    };
    let pending = if number == 16 {
        word(2) & !word(0)
    } else {
        let mxcsr = word(24);
        mxcsr & !(mxcsr >> 7)
    };
    match pending & 0x3f {
        bits if bits & 0x01 != 0 => FPE_FLTINV,
        bits if bits & 0x04 != 0 => FPE_FLTDIV,
        bits if bits & 0x08 != 0 => FPE_FLTOVF,
        bits if bits & 0x12 != 0 => FPE_FLTUND,
        bits if bits & 0x20 != 0 => FPE_FLTRES,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal_of(number: u64, vector: &[u8]) -> (i32, i32) {
        let Some(Trap::Fault { signal, code, .. }) = trap(number, 0, 7, || vector.to_vec()) else { panic!() };
        (signal, code)
    }

    #[test]
    fn addresses_have_48_bits() {
        for good in [0, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
            assert!(is_canonical(good), "{good:#x}");
        }
        assert!(!is_canonical(0x8000_0000_0000) && !is_canonical(1 << 63));
    }

    #[test]
    fn exceptions_are_signals() {
        assert_eq!(signal_of(0, &[]), (libc::SIGFPE, FPE_INTDIV));
        assert_eq!(signal_of(6, &[]), (libc::SIGILL, ILL_ILLOPN));
        assert_eq!(signal_of(13, &[]), (libc::SIGSEGV, SI_KERNEL));
        assert_eq!(signal_of(17, &[]), (libc::SIGBUS, BUS_ADRALN));
        assert_eq!(trap(32, 0, 7, Vec::new), None);
        let mut state = vec![0; 512];
        // All masked but division by zero, which came.
        state[24..26].copy_from_slice(&(0x1f80_u16 & !(4 << 7) | 4 | 0x20).to_le_bytes());
        assert_eq!(signal_of(19, &state), (libc::SIGFPE, FPE_FLTDIV));
        state[..4].copy_from_slice(&[0x77, 3, 0x28, 0]);
        assert_eq!(signal_of(16, &state), (libc::SIGFPE, FPE_FLTOVF));
        assert_eq!(signal_of(19, &[]), (libc::SIGFPE, 0));
    }
}
