//! A TDX module and a host for tests: secure EPT entries and registers as the module keeps them, the host as a test
//! wants it. What a correct guest never does is noted in `wrong`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use core::arch::x86_64::CpuidResult;

use super::instructions::{AlignedDigest, Instructions, Registers};
use super::sha384::sha384;

const SMALL: u64 = 4096;
const LARGE: u64 = 2 << 20;
pub(crate) const SHARED: u64 = 1 << 51;

/// A page as the secure EPT has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Page {
    #[default]
    Shared,
    /// Added by the host, not accepted.
    Pending {
        large: bool,
    },
    Accepted,
}

/// Status and next address of a MapGPA.
pub(crate) type MapAnswer = (u64, u64);
type MapHook = Box<dyn FnMut(u64, u64, MapAnswer) -> MapAnswer>;
type PageHook = Box<dyn FnMut(u64) -> bool>;
type StatusHook = Box<dyn FnMut(u64) -> u64>;

/// The host, and what the module tells. All hooks are honest at first.
pub(crate) struct Host {
    pub(crate) info: Registers,
    pub(crate) exit_reason: u64,
    /// Address, size and honest answer to what is answered.
    pub(crate) map: MapHook,
    /// Bytes that are mapped at a time.
    pub(crate) at_a_time: u64,
    /// Whether a 2 MiB range is mapped as one page.
    pub(crate) large: PageHook,
    /// Whether a page is accepted already, without the guest's doing.
    pub(crate) replay: PageHook,
    /// Status of a leaf that would succeed.
    pub(crate) status: StatusHook,
}

pub(crate) struct State {
    pub(crate) pages: BTreeMap<u64, Page>,
    pub(crate) rtmr: [[u8; 48]; 4],
    pub(crate) host: Host,
    pub(crate) wrong: Vec<String>,
    pub(crate) fatal: Option<Registers>,
    pub(crate) large_accepts: u64,
    pub(crate) host_calls: u64,
    pub(crate) private: BTreeMap<u64, u64>,
}

pub(crate) struct Fake(pub(crate) RefCell<State>);

impl Fake {
    /// With these ranges accepted, as after the launch.
    pub(crate) fn new(launched: &[(u64, u64)]) -> Self {
        let info = Registers { rcx: 52, rdx: 1 << 28, r8: 2 | 2 << 32, ..Registers::default() };
        let host = Host {
            info,
            exit_reason: 0,
            map: Box::new(|_, _, honest| honest),
            at_a_time: u64::MAX,
            large: Box::new(|_| true),
            replay: Box::new(|_| false),
            status: Box::new(|_| 0),
        };
        let pages = launched.iter().flat_map(|(start, end)| (*start..*end).step_by(4096));
        Self(RefCell::new(State {
            pages: pages.map(|page| (page, Page::Accepted)).collect(),
            rtmr: [[0; 48]; 4],
            host,
            wrong: Vec::new(),
            fatal: None,
            large_accepts: 0,
            host_calls: 0,
            private: BTreeMap::new(),
        }))
    }

    pub(crate) fn host(&self, change: impl FnOnce(&mut Host)) {
        change(&mut self.0.borrow_mut().host);
    }

    pub(crate) fn page(&self, page: u64) -> Page {
        self.0.borrow().pages.get(&page).copied().unwrap_or_default()
    }

    pub(crate) fn assert_correct(&self) {
        assert_eq!(self.0.borrow().wrong, Vec::<String>::new());
    }
}

impl State {
    fn map_gpa(&mut self, start: u64, size: u64) -> MapAnswer {
        let (shared, start) = (start & SHARED != 0, start & !SHARED);
        let done = size.min(self.host.at_a_time);
        if !start.is_multiple_of(SMALL) || !size.is_multiple_of(SMALL) || size == 0 {
            self.wrong.push(format!("MapGPA {start:#x} {size:#x}"));
        }
        for page in (start..start + done).step_by(SMALL as usize) {
            let large = (self.host.large)(page - page % LARGE);
            let state = if shared { Page::Shared } else { Page::Pending { large } };
            // Mapping private what is private changes nothing.
            if shared || self.pages.get(&page).copied().unwrap_or_default() == Page::Shared {
                self.pages.insert(page, state);
            }
        }
        let bit = if shared { SHARED } else { 0 };
        if done == size { (0, 0) } else { (1, (start + done) | bit) }
    }

    fn accept(&mut self, operand: u64) -> u64 {
        let (level, page) = (operand & 7, operand & !0xFFF);
        let pages: Vec<u64> = (page..page + if level == 1 { LARGE } else { SMALL }).step_by(4096).collect();
        let states: Vec<Page> =
            pages.iter().map(|page| self.pages.get(page).copied().unwrap_or_default()).collect();
        if pages.iter().any(|page| (self.host.replay)(*page)) {
            return 0x0000_0B0A << 32;
        }
        if states.contains(&Page::Accepted) {
            self.wrong.push(format!("{page:#x} accepted twice"));
            return 0x0000_0B0A << 32;
        }
        if states.contains(&Page::Shared) {
            self.wrong.push(format!("{page:#x} accepted while shared"));
        }
        if level == 1 && states.iter().any(|state| *state != Page::Pending { large: true }) {
            return 0xC000_0B0B << 32;
        }
        self.large_accepts += level;
        self.pages.extend(pages.into_iter().map(|page| (page, Page::Accepted)));
        0
    }

    fn host_call(&mut self, registers: &mut Registers) {
        self.host_calls += 1;
        match registers.r11 {
            0x1_0001 => {
                if registers.rcx != 0xFC00 {
                    self.wrong.push("exposes more registers than needed".to_owned());
                }
                let (start, size) = (registers.r12, registers.r13);
                let honest = self.map_gpa(start, size);
                let mut hook = std::mem::replace(&mut self.host.map, Box::new(|_, _, honest| honest));
                (registers.r10, registers.r11) = hook(start, size, honest);
                self.host.map = hook;
            }
            0x1_0003 => self.fatal = Some(*registers),
            other => self.wrong.push(format!("host call {other:#x}")),
        }
    }
}

impl Instructions for Fake {
    fn tdcall(&self, leaf: u64, registers: &mut Registers) -> u64 {
        let mut state = self.0.borrow_mut();
        let status = (state.host.status)(leaf);
        if status != 0 {
            return status;
        }
        match leaf {
            0 => state.host_call(registers),
            1 => *registers = state.host.info,
            3 => registers.rcx = state.host.exit_reason,
            6 => return state.accept(registers.rcx),
            other => panic!("leaf {other}"),
        }
        0
    }

    fn extend(&self, register: u32, digest: &AlignedDigest) -> u64 {
        let mut state = self.0.borrow_mut();
        let status = (state.host.status)(2);
        if status == 0 {
            let rtmr = &mut state.rtmr[register as usize];
            *rtmr = sha384(&[*rtmr, digest.0].concat());
        }
        status
    }

    fn cpuid(&self, leaf: u32, _subleaf: u32) -> CpuidResult {
        CpuidResult { eax: leaf, ebx: 0, ecx: 0, edx: 0 }
    }

    fn halt(&self) {
        panic!("halted");
    }

    fn write_private(&self, address: u64, value: u64) {
        assert_eq!(self.page(address & !0xFFF), Page::Accepted);
        self.0.borrow_mut().private.insert(address, value);
    }
}
