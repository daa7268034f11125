//! A machine for tests: memory whose pages are unaccepted, private or shared, as a TEE keeps them, and a
//! host that changes each byte of shared memory as soon as it has been read once.

use core::arch::x86_64::CpuidResult;
use std::cell::RefCell;
use std::rc::Rc;

use crate::memory::GuestMemory;
use crate::platform::{
    BootBlock, Handover, Payload, PhysRange, Platform, PlatformError, Termination, layout,
};

const PAGE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Unaccepted,
    Private,
    Shared,
}

/// What each page is.
pub(crate) type Pages = Rc<RefCell<Vec<State>>>;

pub(crate) struct FakeMemory {
    pub(crate) private: Vec<u8>,
    pub(crate) shared: Vec<u8>,
    /// How often each byte was read.
    pub(crate) reads: Vec<u8>,
    pub(crate) pages: Pages,
}

fn pages_of(start: u64, length: u64) -> std::ops::Range<usize> {
    start as usize / PAGE..(start + length).div_ceil(PAGE as u64) as usize
}

impl FakeMemory {
    /// Memory as a launch leaves it, its content what the test likes.
    pub(crate) fn new(bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> Self {
        let mut filled = || {
            let mut all = vec![0; bytes];
            all.chunks_exact_mut(PAGE).for_each(&mut *fill);
            all
        };
        let memory = Self {
            private: filled(),
            shared: filled(),
            reads: vec![0; bytes],
            pages: Rc::new(RefCell::new(vec![State::Unaccepted; bytes / PAGE])),
        };
        memory.set(layout::IMAGE, 0x3_0000, State::Private);
        memory.set(layout::SECRETS, 0x3000, State::Private);
        memory.set(layout::COMMAND_LINE, 0x5000, State::Shared);
        memory
    }

    pub(crate) fn set(&self, start: u64, length: u64, state: State) {
        self.pages.borrow_mut()[pages_of(start, length)].fill(state);
    }

    /// What the host writes into shared memory.
    pub(crate) fn host_writes(&mut self, start: u64, bytes: &[u8]) {
        self.shared[start as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn bytes(&self, start: u64, length: u64) -> &[u8] {
        &self.private[start as usize..][..length as usize]
    }

    fn require(&self, start: u64, length: u64, state: State) {
        let pages = self.pages.borrow();
        let wrong = pages_of(start, length).find(|page| pages[*page] != state);
        assert_eq!(wrong, None, "page is not {state:?}: access to {start:#x} + {length:#x}");
    }
}

impl GuestMemory for FakeMemory {
    fn read_shared(&mut self, from: u64, into: &mut [u8]) {
        self.require(from, into.len() as u64, State::Shared);
        for (at, to) in (from as usize..).zip(into) {
            *to = self.shared[at];
            self.reads[at] += 1;
            assert_eq!(self.reads[at], 1, "shared memory is read again at {at:#x}");
            self.shared[at] ^= 0xff;
        }
    }

    fn copy_in(&mut self, shared: u64, private: u64, length: u64) {
        self.require(private, length, State::Private);
        let mut copy = vec![0; length as usize];
        self.read_shared(shared, &mut copy);
        self.private[private as usize..][..copy.len()].copy_from_slice(&copy);
    }

    fn wipe_shared(&mut self, from: u64, length: u64) {
        self.require(from, length, State::Shared);
        self.shared[from as usize..][..length as usize].fill(0);
    }

    fn private(&mut self, start: u64, length: u64) -> &mut [u8] {
        self.require(start, length, State::Private);
        &mut self.private[start as usize..][..length as usize]
    }

    fn copy_private(&mut self, from: u64, to: u64, length: u64) {
        self.require(from, length, State::Private);
        self.require(to, length, State::Private);
        self.private.copy_within(from as usize..(from + length) as usize, to as usize);
    }
}

pub(crate) struct FakePlatform {
    pub(crate) pages: Pages,
    pub(crate) handover: Handover,
    pub(crate) measured: Vec<Payload>,
    pub(crate) left: bool,
    /// Addresses whose acceptance the host refuses.
    pub(crate) refused: Option<u64>,
}

impl FakePlatform {
    pub(crate) fn new(memory: &FakeMemory, handover: Handover) -> Self {
        let pages = Rc::clone(&memory.pages);
        Self { pages, handover, measured: Vec::new(), left: false, refused: None }
    }

    fn change(&mut self, range: PhysRange, from: State, to: State) -> Result<(), PlatformError> {
        if self.refused.is_some_and(|at| range.start() <= at && at < range.end()) {
            return Err(PlatformError::ValidationFailed);
        }
        for page in &mut self.pages.borrow_mut()[pages_of(range.start(), range.length())] {
            assert_eq!(*page, from, "a page changes its state twice: {range:x?}");
            *page = to;
        }
        Ok(())
    }
}

impl Platform for FakePlatform {
    fn init(&mut self, _: &BootBlock) -> Result<(), PlatformError> {
        Ok(())
    }

    fn accept(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        self.change(range, State::Unaccepted, State::Private)
    }

    fn share(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        self.change(range, State::Private, State::Shared)
    }

    fn unshare(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        self.change(range, State::Shared, State::Private)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        std::arch::x86_64::__cpuid_count(leaf, subleaf)
    }

    fn measured(&mut self, payload: Payload, _: &[u8; 32]) -> Result<(), PlatformError> {
        self.measured.push(payload);
        Ok(())
    }

    fn handover(&self) -> Handover {
        self.handover
    }

    fn leave(&mut self) -> Result<(), PlatformError> {
        self.left = true;
        Ok(())
    }

    fn terminate(&self, why: Termination) -> ! {
        panic!("{why}")
    }
}
