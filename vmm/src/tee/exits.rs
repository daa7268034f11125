//! What a confidential guest comes out for: changes of pages, certificates, quotes, and the end.
//!
//! Arguments come from the guest and are untrusted. Each request is answered in the form that the guest's side
//! of the interface knows (GHCB, GHCI), and refused without effect when it makes no sense.
//!
//! Sources: `include/uapi/linux/kvm.h` (`kvm_run`), GHCB 2.3.1 (termination), GHCI (status codes of TDVMCALL).

use kata_cc_stage0_abi::{REASON_SET, Termination};

use super::ioctls::TeeIoctls;
use super::memory::{Conversion, MapError, MemoryBook};
use super::tdx::quote::{QuoteError, QuoteStatus, QuotingService};
use super::tdx::vmcall::EventNotify;
use super::{TeeError, convert};

/// `KVM_SYSTEM_EVENT_SEV_TERM`.
const EVENT_SEV_TERM: u32 = 6;
/// `KVM_SYSTEM_EVENT_TDX_FATAL`.
const EVENT_TDX_FATAL: u32 = 7;
/// GHCB MSR protocol: termination request in bits 11:0.
const GHCB_TERMINATE: u64 = 0x100;
/// R12 among the registers of a fatal error, which are in the processor's order.
const R12: usize = 12;

/// `-KVM_ENOSYS`.
pub const NO_SUCH_HYPERCALL: u64 = (-1000_i64) as u64;

/// `TDVMCALL_STATUS_SUCCESS`.
pub const TDVMCALL_SUCCESS: u64 = 0;
/// `TDVMCALL_STATUS_RETRY`.
pub const TDVMCALL_RETRY: u64 = 1;
/// `TDVMCALL_STATUS_INVALID_OPERAND`.
pub const TDVMCALL_INVALID_OPERAND: u64 = 0x8000_0000_0000_0000;
/// `TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED`.
pub const TDVMCALL_UNSUPPORTED: u64 = 0x8000_0000_0000_0003;

/// TDVMCALL leaf numbers that come out as `KVM_EXIT_TDX`.
const LEAF_GET_QUOTE: u64 = 0x1_0002;

/// Largest quote buffer that is taken over.
const QUOTE_BUFFER_MAX: u64 = 1 << 20;

/// Serves `KVM_EXIT_HYPERCALL`; the value for `kvm_run.hypercall.ret`. What went wrong is told beside it, for the
/// log.
pub fn hypercall(
    number: u64,
    arguments: [u64; 6],
    io: &dyn TeeIoctls,
    book: &mut MemoryBook,
) -> (u64, Option<TeeError>) {
    let served = Conversion::from_hypercall(number, arguments)
        .map_err(TeeError::from)
        .and_then(|change| convert(io, book, &change));
    match served {
        Ok(()) => (0, None),
        // KVM_EINVAL and KVM_ENOSYS, negated as the interface wants them
        Err(TeeError::Memory(error @ MapError::Hypercall(_))) => {
            (NO_SUCH_HYPERCALL, Some(TeeError::Memory(error)))
        }
        Err(error) => ((-i64::from(libc::EINVAL)) as u64, Some(error)),
    }
}

/// Why a guest ended, when its platform has a way to say so; `None` for other system events.
#[must_use]
pub fn end(event: u32, data: &[u64]) -> Option<String> {
    match event {
        EVENT_SEV_TERM => Some(sev_termination(data.first().copied().unwrap_or_default())),
        EVENT_TDX_FATAL => Some(tdx_fatal(data.get(R12).copied().unwrap_or_default())),
        _ => None,
    }
}

fn sev_termination(msr: u64) -> String {
    let (set, reason) = (msr >> 12 & 0xF, (msr >> 16) as u8);
    if msr & 0xFFF != GHCB_TERMINATE {
        return format!("the guest was ended by SNP, GHCB {msr:#x}");
    }
    match Termination::from_code(reason).filter(|_| set == REASON_SET) {
        Some(why) => why.to_string(),
        None => format!("the guest asked to be ended: reason {reason:#x} of set {set} (0 GHCB, 1 Linux)"),
    }
}

fn tdx_fatal(code: u64) -> String {
    let known = u8::try_from(code).ok().and_then(Termination::from_code);
    known.map_or_else(|| format!("the TD reported a fatal error, code {code:#x}"), |why| why.to_string())
}

/// A quote that is being made. The exchange takes up to half a minute and belongs on a thread of its own.
#[derive(Debug)]
pub struct QuoteJob {
    gpa: u64,
    buffer: Vec<u8>,
}

/// Serves `KVM_EXIT_TDX` in part: the status for the guest at once, and a job when it asked for a quote.
///
/// `arguments` are the two words after `ret` in `kvm_run.tdx` (GetQuote: address and size of the buffer).
pub fn tdvmcall(
    leaf: u64,
    arguments: [u64; 2],
    io: &dyn TeeIoctls,
    book: &MemoryBook,
) -> (u64, Option<QuoteJob>) {
    let [gpa, size] = arguments;
    if leaf != LEAF_GET_QUOTE {
        return (TDVMCALL_UNSUPPORTED, None);
    }
    match QuoteJob::begin(gpa, size, io, book) {
        Ok(job) => (TDVMCALL_SUCCESS, Some(job)),
        Err(error) => {
            tracing::warn!(%error, "the guest's request for a quote was refused");
            (TDVMCALL_INVALID_OPERAND, None)
        }
    }
}

impl QuoteJob {
    /// Copies the guest's buffer and marks it as being worked on.
    fn begin(gpa: u64, size: u64, io: &dyn TeeIoctls, book: &MemoryBook) -> Result<Self, TeeError> {
        if size == 0 || size > QUOTE_BUFFER_MAX || !size.is_multiple_of(4096) || !gpa.is_multiple_of(4096) {
            return Err(MapError::NotPages { gpa, size }.into());
        }
        book.check_shared(gpa, size)?;
        let mut buffer = vec![0; usize::try_from(size).unwrap_or_default()];
        io.read_shared(gpa, &mut buffer).map_err(TeeError::refused("reading a quote buffer"))?;
        let in_flight = (QuoteStatus::InFlight as u64).to_le_bytes();
        io.write_shared(gpa + 8, &in_flight).map_err(TeeError::refused("writing a quote buffer"))?;
        Ok(Self { gpa, buffer })
    }

    /// Gets the quote; may take long.
    ///
    /// # Errors
    /// Why there is none; [`Self::complete`] tells the guest all the same.
    pub fn run(&mut self, service: Option<&QuotingService>) -> Result<(), QuoteError> {
        match service {
            Some(service) => service.serve(&mut self.buffer),
            None => {
                let none = QuoteError::Unreachable(std::io::ErrorKind::NotFound.into());
                super::tdx::quote::answer_into(&mut self.buffer, &Err(none));
                Err(QuoteError::Unreachable(std::io::ErrorKind::NotFound.into()))
            }
        }
    }

    /// Hands the answer to the guest: contents first, then the status that it waits for, then the interrupt that it may have
    /// asked for.
    ///
    /// # Errors
    /// When the guest has made its buffer private meanwhile; it is not interrupted then.
    pub fn complete(
        self,
        io: &dyn TeeIoctls,
        book: &MemoryBook,
        notify: &EventNotify,
    ) -> Result<(), TeeError> {
        book.check_shared(self.gpa, self.buffer.len() as u64)?;
        let write = |at: u64, bytes: &[u8]| {
            io.write_shared(self.gpa + at, bytes).map_err(TeeError::refused("writing a quote buffer"))
        };
        write(16, self.buffer.get(16..).unwrap_or_default())?;
        write(8, self.buffer.get(8..16).unwrap_or_default())?;
        notify.send(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::fake::{FakeKernel, Host};
    use crate::tee::tdx::vmcall;

    const PAGE: u64 = 4096;

    fn book() -> MemoryBook {
        let mut book = MemoryBook::new(&[(0, 1 << 20)]);
        book.convert(&Conversion { gpa: 0, size: 16 * PAGE, private: true }).unwrap();
        book
    }

    fn kernel() -> FakeKernel {
        FakeKernel::new(4, Host::default())
    }

    #[test]
    fn hypercalls_are_served_or_refused_with_a_number() {
        let (io, mut book) = (kernel(), book());
        assert_eq!(hypercall(12, [0, 4, 0, 0, 0, 0], &io, &mut book).0, 0);
        assert_eq!(book.check_shared(0, 4 * PAGE), Ok(()));
        let (ret, error) = hypercall(12, [1, 4, 0, 0, 0, 0], &io, &mut book);
        assert_eq!((ret as i64, error.is_some()), (-22, true));
        let (ret, error) = hypercall(5, [0; 6], &io, &mut book);
        assert_eq!(ret as i64, -1000);
        assert!(error.unwrap().to_string().contains("hypercall 5"));
    }

    #[test]
    fn the_end_is_told_in_words() {
        let kernel_hash = u64::from(Termination::KernelHash.code());
        let words = Termination::KernelHash.to_string();
        assert_eq!(end(6, &[kernel_hash << 16 | REASON_SET << 12 | 0x100]), Some(words.clone()));
        let mut registers = [0; 16];
        registers[12] = kernel_hash;
        assert_eq!(end(7, &registers), Some(words));
        let linux = end(6, &[2 << 16 | 1 << 12 | 0x100]).unwrap();
        assert!(linux.contains("reason 0x2 of set 1"), "{linux}");
        assert!(end(6, &[0x12]).unwrap().contains("0x12"));
        assert!(end(7, &[]).unwrap().contains("code 0x0"));
        assert_eq!(end(1, &[]), None);
    }

    #[test]
    fn a_quote_is_asked_for_in_shared_memory_only() {
        let (io, book) = (kernel(), book());
        let ask = |leaf, gpa, size| tdvmcall(leaf, [gpa, size], &io, &book);
        assert_eq!(ask(0x1_0005, 0, 0).0, TDVMCALL_UNSUPPORTED);
        for (gpa, size) in [
            (0, PAGE),
            (16 * PAGE + 1, PAGE),
            (16 * PAGE, 100),
            (16 * PAGE, 0),
            (16 * PAGE, 2 << 20),
            (255 * PAGE, 2 * PAGE),
        ] {
            assert_eq!(ask(LEAF_GET_QUOTE, gpa, size).0, TDVMCALL_INVALID_OPERAND, "{gpa:#x} {size:#x}");
        }
        assert!(io.state().memory.shared.is_empty(), "nothing was written");
        let (status, job) = ask(LEAF_GET_QUOTE, 32 * PAGE, 2 * PAGE);
        assert_eq!(status, TDVMCALL_SUCCESS);
        assert_eq!(io.state().memory.shared[&(32 * PAGE + 8)], [0xFF; 8]);
        let mut job = job.unwrap();
        assert!(job.run(None).is_err());
        let notify = EventNotify::default();
        assert!(vmcall::serve(&mut [0, 0x1_0004, 0, 0x50, 0], 1, &io, &notify));
        job.complete(&io, &book, &notify).unwrap();
        assert_eq!(io.state().messages, [(0xFEE0_1000, 0x50)]);
        assert_eq!(io.state().calls.last(), Some(&"SIGNAL_MSI"), "when the guest finds the status");
        // an empty buffer, no service: the guest is told so by the status, which comes last
        let status = io.state().memory.shared[&(32 * PAGE + 8)].clone();
        assert_eq!(status, (QuoteStatus::Unavailable as u64).to_le_bytes());
    }

    #[test]
    fn a_buffer_that_became_private_is_left_alone() {
        let (io, mut book) = (kernel(), book());
        let (_, job) = tdvmcall(LEAF_GET_QUOTE, [32 * PAGE, PAGE], &io, &book);
        book.convert(&Conversion { gpa: 32 * PAGE, size: PAGE, private: true }).unwrap();
        let notify = EventNotify::default();
        assert!(vmcall::serve(&mut [0, 0x1_0004, 0, 0x50, 0], 1, &io, &notify));
        let refused = job.unwrap().complete(&io, &book, &notify).unwrap_err().to_string();
        assert!(refused.contains("private"), "{refused}");
        assert!(io.state().messages.is_empty(), "there is nothing to be told of");
    }
}
