//! A confidential guest while it runs: what its vCPUs come out for besides devices.
//!
//! Everything here is asked by the guest or done to it by KVM on its behalf; [`crate::tee::exits`] says what is
//! served and what is refused. All vCPUs share one book of pages, so a change by one is seen by the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_cc_vmm_api::TeeConfig;
use kvm_ioctls::VcpuFd;

use crate::error::VmmError;
use crate::launch;
use crate::tee::abi::{EXIT_SNP_REQ_CERTS, EXIT_TDX, SnpReqCerts};
use crate::tee::convert;
use crate::tee::exits::{self, QuoteJob, TDVMCALL_RETRY};
use crate::tee::kernel::KernelIoctls;
use crate::tee::memory::{Conversion, MemoryBook};
use crate::tee::snp::certificates;
use crate::tee::tdx::quote::QuotingService;
use crate::tee::tdx::vmcall::{self, EventNotify};

/// `KVM_MEMORY_EXIT_FLAG_PRIVATE`: the guest took the page for private.
const FAULT_PRIVATE: u64 = 1 << 3;
/// Quotes that may be in the making at the same time; a guest that asks for more is told to try again.
const QUOTES: usize = 4;
/// Words of `kvm_run` that an exit describes itself by (`include/uapi/linux/kvm.h`: 256 bytes).
const WORDS: usize = 32;

/// What the vCPUs of one guest share.
pub(crate) struct Confidential {
    io: Arc<KernelIoctls>,
    book: Mutex<MemoryBook>,
    certificates: Vec<u8>,
    quoting: Option<QuotingService>,
    quotes: AtomicUsize,
    notify: EventNotify,
}

impl Confidential {
    /// Of a launched guest; none when the host can reach all of its memory.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub(crate) fn new(
        tee: &TeeConfig,
        io: Arc<KernelIoctls>,
        book: MemoryBook,
    ) -> Result<Option<Arc<Self>>, VmmError> {
        if !launch::kind(tee).has_private_memory() {
            return Ok(None);
        }
        let (mut certificates, mut quoting) = (Vec::new(), None);
        match tee {
            TeeConfig::Snp(options) => {
                if let Some(path) = &options.certificates {
                    certificates = launch::read("certificates", path)?;
                }
            }
            TeeConfig::Tdx(options) => {
                let socket = options.quoting_socket.clone().map(QuotingService::Unix);
                let port = options.quoting_vsock_port.map(|port| QuotingService::Vsock { cid: 2, port });
                quoting = socket.or(port);
            }
            TeeConfig::None | TeeConfig::SimSnp { .. } | TeeConfig::SimTdx { .. } => {}
        }
        let (book, quotes, notify) = (Mutex::new(book), AtomicUsize::new(0), EventNotify::default());
        Ok(Some(Arc::new(Self { io, book, certificates, quoting, quotes, notify })))
    }

    /// Serves `KVM_EXIT_HYPERCALL`; the value for the guest.
    pub(crate) fn hypercall(&self, number: u64, arguments: [u64; 6]) -> u64 {
        let (answer, error) = exits::hypercall(number, arguments, self.io.as_ref(), &mut lock(&self.book));
        if let Some(error) = error {
            tracing::warn!(number, %error, "the guest's hypercall was refused");
        }
        answer
    }

    /// Serves `KVM_EXIT_MEMORY_FAULT`: the guest used a page as the other kind than it is, which is a request to
    /// change it. Not an error of the host's: a guest that did not mean it finds its page empty.
    ///
    /// # Errors
    /// Why the guest cannot go on.
    pub(crate) fn memory_fault(&self, flags: u64, gpa: u64, size: u64) -> Result<(), String> {
        if flags & !FAULT_PRIVATE != 0 {
            return Err(format!("memory fault at {gpa:#x} with unknown flags {flags:#x}"));
        }
        let change = Conversion { gpa, size, private: flags & FAULT_PRIVATE != 0 };
        convert(self.io.as_ref(), &mut lock(&self.book), &change)
            .map_err(|error| format!("memory fault at {gpa:#x}: {error}"))
    }

    /// Serves an exit of vCPU `id` that `kvm-ioctls` does not know; false when this module does not either.
    pub(crate) fn other(self: &Arc<Self>, reason: u32, id: u8, vcpu: &mut VcpuFd) -> bool {
        let words = words(vcpu);
        match reason {
            EXIT_SNP_REQ_CERTS => self.certificates(words),
            EXIT_TDX => self.tdvmcall(id, words),
            _ => return false,
        }
        true
    }

    /// `kvm_run.snp_req_certs`: address, pages, answer.
    fn certificates(&self, words: &mut [u64; WORDS]) {
        let [gpa, npages, ..] = *words;
        let mut request = SnpReqCerts { gpa, npages, ret: 0 };
        if let Err(error) =
            certificates::serve(&mut request, &self.certificates, self.io.as_ref(), &lock(&self.book))
        {
            tracing::warn!(%error, "the guest's request for certificates was refused");
        }
        (words[1], words[2]) = (request.npages, request.ret);
    }

    /// `kvm_run.tdx`: flags, leaf, answer, then by leaf.
    fn tdvmcall(self: &Arc<Self>, id: u8, words: &mut [u64; WORDS]) {
        if vmcall::serve(words, id, self.io.as_ref(), &self.notify) {
            return;
        }
        let [_, leaf, _, first, second, ..] = *words;
        let (status, job) = exits::tdvmcall(leaf, [first, second], self.io.as_ref(), &lock(&self.book));
        let refused = job.is_some_and(|job| !self.quote(job));
        words[2] = if refused { TDVMCALL_RETRY } else { status };
    }

    /// Has a quote made on a thread of its own, unless there are as many as may be.
    fn quote(self: &Arc<Self>, mut job: QuoteJob) -> bool {
        if self.quotes.fetch_add(1, Ordering::SeqCst) >= QUOTES {
            self.quotes.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        let own = Arc::clone(self);
        let work = move || {
            if let Err(error) = job.run(own.quoting.as_ref()) {
                tracing::warn!(%error, "there is no quote for the guest");
            }
            if let Err(error) = job.complete(own.io.as_ref(), &lock(&own.book), &own.notify) {
                tracing::warn!(%error, "the guest's quote could not be handed over");
            }
            own.quotes.fetch_sub(1, Ordering::SeqCst);
        };
        // not joined: the service's time limit ends it, and it holds what it uses
        let started = std::thread::Builder::new().name("quote".into()).spawn(work);
        if started.is_err() {
            self.quotes.fetch_sub(1, Ordering::SeqCst);
        }
        started.is_ok()
    }
}

/// What the exit says of itself.
#[allow(unsafe_code)]
fn words(vcpu: &mut VcpuFd) -> &mut [u64; WORDS] {
    let run = vcpu.get_kvm_run();
    // SAFETY: the union has 256 bytes (`padding` in `struct kvm_run`), is aligned to 8, and every bit pattern is a
    // valid word; the reference borrows the vCPU, so nobody else uses the page meanwhile.
    unsafe { &mut *(&raw mut run.__bindgen_anon_1).cast::<[u64; WORDS]>() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const _: () = {
    use kvm_bindings::kvm_run__bindgen_ty_1 as Exit;
    assert!(size_of::<Exit>() == WORDS * 8 && align_of::<Exit>() == 8);
};
