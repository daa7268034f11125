//! A processor and a host for tests: the RMP as the processor keeps it, the host as a test wants it.
//!
//! The processor notes what a correct guest never does (`wrong`): validating a page twice or one that was not
//! assigned, sharing a page that is still valid, reading a word of shared memory twice for one answer, touching
//! shared memory as private.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::instructions::{
    Instructions, MSR_GHCB, MSR_SEV_STATUS, PageSize, Pvalidate, RMPADJUST_VMPL1, RMPADJUST_VMSA,
};

const SMALL: u64 = 4096;
const LARGE: u64 = 2 << 20;

/// An entry of the RMP.
#[derive(Clone, Copy, Default)]
pub(crate) struct Entry {
    pub(crate) assigned: bool,
    pub(crate) valid: bool,
    large: bool,
    pub(crate) vmsa: bool,
}

/// What the host sees of an exit by the GHCB page, and answers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exit {
    pub(crate) code: u64,
    pub(crate) info1: u64,
    pub(crate) info2: u64,
    pub(crate) rax: u64,
    /// Header of a page state change.
    pub(crate) header: u64,
}

type MsrHook = Box<dyn FnMut(u64, u64) -> u64>;
type ExitHook = Box<dyn FnMut(Exit, &mut Exit)>;
type PageHook = Box<dyn FnMut(u64) -> bool>;

/// The host. All hooks are honest at first.
pub(crate) struct Host {
    pub(crate) status: u64,
    pub(crate) vmpl: u32,
    /// Request and honest answer to what is answered.
    pub(crate) msr: MsrHook,
    /// Called after the exit was served.
    pub(crate) exit: ExitHook,
    /// Entries of a page state change that are done at a time.
    pub(crate) at_a_time: u64,
    /// Whether a 2 MiB page is entered as one.
    pub(crate) large: PageHook,
    /// Called for each page before it is validated: true exchanges it for one that was valid already.
    pub(crate) replay: PageHook,
}

pub(crate) struct State {
    pub(crate) rmp: BTreeMap<u64, Entry>,
    pub(crate) shared: BTreeMap<u64, u64>,
    pub(crate) private: BTreeMap<u64, u64>,
    msr: u64,
    registered: Option<u64>,
    read: BTreeSet<u64>,
    pub(crate) host: Host,
    pub(crate) wrong: Vec<String>,
    pub(crate) aps: Vec<(u64, u64, u64)>,
    pub(crate) large_validations: u64,
    pub(crate) exits: u64,
}

pub(crate) struct Fake(pub(crate) RefCell<State>);

impl Fake {
    /// With these ranges assigned and valid, as after the launch.
    pub(crate) fn new(launched: &[(u64, u64)]) -> Self {
        let host = Host {
            status: 0b111,
            vmpl: 0,
            msr: Box::new(|_, honest| honest),
            exit: Box::new(|_, _| ()),
            at_a_time: 253,
            large: Box::new(|_| true),
            replay: Box::new(|_| false),
        };
        let entry = Entry { assigned: true, valid: true, ..Entry::default() };
        let rmp =
            launched.iter().flat_map(|(start, end)| (*start..*end).step_by(4096)).map(|page| (page, entry));
        Self(RefCell::new(State {
            rmp: rmp.collect(),
            shared: BTreeMap::new(),
            private: BTreeMap::new(),
            msr: 0,
            registered: None,
            read: BTreeSet::new(),
            host,
            wrong: Vec::new(),
            aps: Vec::new(),
            large_validations: 0,
            exits: 0,
        }))
    }

    pub(crate) fn host(&self, change: impl FnOnce(&mut Host)) {
        change(&mut self.0.borrow_mut().host);
    }

    pub(crate) fn assert_correct(&self) {
        assert_eq!(self.0.borrow().wrong, Vec::<String>::new());
    }

    pub(crate) fn valid(&self, page: u64) -> bool {
        self.0.borrow().rmp.get(&page).is_some_and(|entry| entry.valid)
    }

    pub(crate) fn assigned(&self, page: u64) -> bool {
        self.0.borrow().rmp.get(&page).is_some_and(|entry| entry.assigned)
    }
}

impl State {
    fn entry(&mut self, page: u64) -> &mut Entry {
        self.rmp.entry(page).or_default()
    }

    fn wrong(&mut self, what: impl Into<String>) {
        self.wrong.push(what.into());
    }

    fn change(&mut self, page: u64, large: bool, private: bool) {
        let entered_large = large && (self.host.large)(page);
        let pages = if large { LARGE / SMALL } else { 1 };
        for page in (page..).step_by(SMALL as usize).take(pages as usize) {
            let entry = self.entry(page);
            let still_valid = !private && entry.valid;
            *entry =
                Entry { assigned: private, large: entered_large, valid: entry.valid && private, vmsa: false };
            if still_valid {
                self.wrong(format!("{page:#x} shared while valid"));
            }
        }
    }

    fn answer_msr(&mut self, request: u64) -> u64 {
        let data = request & !0xFFF;
        match request & 0xFFF {
            0x002 => 2 << 48 | 1 << 32 | 51 << 24 | 0x001,
            0x012 => {
                self.registered = Some(data);
                data | 0x013
            }
            0x014 => {
                self.change(data & ((1 << 52) - 1), false, data >> 52 == 1);
                0x015
            }
            0x080 => 0b11 << 12 | 0x081,
            0x100 => request,
            other => panic!("MSR request {other:#x}"),
        }
    }

    fn word(&self, address: u64) -> u64 {
        self.shared.get(&address).copied().unwrap_or_default()
    }

    fn serve(&mut self, ghcb: u64) {
        if self.registered != Some(ghcb) {
            self.wrong("GHCB not registered");
        }
        let word = |offset| self.word(ghcb + offset);
        let exit = Exit {
            code: word(0x390),
            info1: word(0x398),
            info2: word(0x3A0),
            rax: word(0x1F8),
            header: word(0x800),
        };
        let valid = u128::from(word(0x3F0)) | u128::from(word(0x3F8)) << 64;
        let (scratch, version) = (word(0x3A8), word(0xFF8));
        let needed: u128 = if exit.code == 0x8000_0010 { 1 << 117 } else { 1 << 63 };
        if valid != 0b111 << 114 | needed || version != 2 << 16 {
            self.wrong(format!("valid bitmap {valid:#x}, version {version:#x}"));
        }
        let mut answer = Exit::default();
        match exit.code {
            0x8000_0010 => {
                if scratch != ghcb + 0x800 {
                    self.wrong("scratch");
                }
                answer.header = self.change_batch(ghcb, exit.header);
            }
            0x8000_0013 => {
                self.aps.push((exit.info1, exit.info2, exit.rax));
                if !self.rmp.get(&exit.info2).is_some_and(|entry| entry.vmsa) {
                    self.wrong("AP without a VMSA page");
                }
                answer.info2 = exit.info2;
            }
            other => self.wrong(format!("exit {other:#x}")),
        }
        let mut hook = std::mem::replace(&mut self.host.exit, Box::new(|_, _| ()));
        hook(exit, &mut answer);
        self.host.exit = hook;
        self.shared.extend([(ghcb + 0x398, answer.info1), (ghcb + 0x3A0, answer.info2)]);
        self.shared.insert(ghcb + 0x800, answer.header);
    }

    fn change_batch(&mut self, ghcb: u64, header: u64) -> u64 {
        let (cursor, end) = (header & 0xFFFF, header >> 16 & 0xFFFF);
        let reached = (end + 1).min(cursor + self.host.at_a_time);
        for index in cursor..reached {
            let entry = self.word(ghcb + 0x808 + index * 8);
            let page = entry & ((1 << 52) - 1) & !0xFFF;
            self.change(page, entry >> 56 == 1, entry >> 52 & 0xF == 1);
        }
        end << 16 | reached
    }

    fn validate_small(&mut self, page: u64, valid: bool) -> bool {
        let replayed = valid && (self.host.replay)(page);
        let entry = self.entry(page);
        let (assigned, twice) = (entry.assigned, entry.valid == valid);
        entry.large = false;
        entry.valid = valid;
        if !assigned {
            self.wrong(format!("{page:#x} validated without being assigned"));
        }
        if twice {
            self.wrong(format!("{page:#x} validated ({valid}) twice"));
        }
        replayed || twice
    }
}

impl Instructions for Fake {
    fn pvalidate(&self, page: u64, size: PageSize, validate: bool) -> Pvalidate {
        let mut state = self.0.borrow_mut();
        let state = &mut *state;
        let step = if size == PageSize::Large { LARGE } else { SMALL };
        if !page.is_multiple_of(step) {
            return Pvalidate { status: 1, unchanged: false };
        }
        if size == PageSize::Large && !state.entry(page).large {
            return Pvalidate { status: 6, unchanged: false };
        }
        let pages: Vec<u64> = (page..page + step).step_by(4096).collect();
        let unchanged =
            pages.iter().map(|page| state.validate_small(*page, validate)).filter(|twice| *twice).count() > 0;
        if size == PageSize::Large {
            state.large_validations += 1;
            pages.iter().for_each(|page| state.entry(*page).large = true);
        }
        Pvalidate { status: 0, unchanged }
    }

    fn rmpadjust(&self, page: u64, attributes: u64) -> u32 {
        let mut state = self.0.borrow_mut();
        if state.host.vmpl > 0 {
            return 2;
        }
        let known = attributes & !RMPADJUST_VMSA == RMPADJUST_VMPL1;
        let entry = state.entry(page);
        entry.vmsa = attributes & RMPADJUST_VMSA != 0;
        if known && entry.valid { 0 } else { 1 }
    }

    fn read_msr(&self, msr: u32) -> u64 {
        let state = self.0.borrow();
        match msr {
            MSR_GHCB => state.msr,
            MSR_SEV_STATUS => state.host.status,
            other => panic!("MSR {other:#x}"),
        }
    }

    fn write_msr(&self, msr: u32, value: u64) {
        assert_eq!(msr, MSR_GHCB);
        self.0.borrow_mut().msr = value;
    }

    fn vmgexit(&self) {
        let mut state = self.0.borrow_mut();
        state.exits += 1;
        state.read.clear();
        let request = state.msr;
        if request & 0xFFF == 0 {
            state.serve(request);
        } else {
            let honest = state.answer_msr(request);
            let mut hook = std::mem::replace(&mut state.host.msr, Box::new(|_, honest| honest));
            state.msr = hook(request, honest);
            state.host.msr = hook;
        }
    }

    fn halt(&self) {
        panic!("halted");
    }

    fn read_shared(&self, address: u64) -> u64 {
        let mut state = self.0.borrow_mut();
        if !state.read.insert(address) {
            state.wrong(format!("{address:#x} read twice"));
        }
        if state.entry(address & !0xFFF).assigned {
            state.wrong(format!("{address:#x} read as shared"));
        }
        state.word(address)
    }

    fn write_shared(&self, address: u64, value: u64) {
        let mut state = self.0.borrow_mut();
        if state.entry(address & !0xFFF).assigned {
            state.wrong(format!("{address:#x} written as shared"));
        }
        state.shared.insert(address, value);
    }

    fn write_private(&self, address: u64, value: u64) {
        let mut state = self.0.borrow_mut();
        if !state.entry(address & !0xFFF).valid {
            state.wrong(format!("{address:#x} written without being valid"));
        }
        state.private.insert(address, value);
    }
}
