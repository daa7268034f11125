//! The text of `/proc/PID/maps` and `/proc/PID/smaps` (`fs/proc/task_mmu.c`).

use std::fmt::Write as _;
use std::ops::Range;

use super::area::{Area, AreaFlags, Backing, Protection};
use super::{AddressSpace, Layout, PAGE};

/// Column at which names begin.
const NAME_COLUMN: usize = 73;

/// Sizes and places of an address space, as `/proc/PID/stat`, `statm` and `status` tell them; sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// All areas.
    pub total: u64,
    /// Locked ones.
    pub locked: u64,
    /// Private and writable ones but the stack.
    pub data: u64,
    /// The first thread's stack.
    pub stack: u64,
    /// Code of the program.
    pub code: u64,
    /// Other code.
    pub library: u64,
    /// Where the program's code lies.
    pub code_range: Range<u64>,
    /// Where the program's data lies.
    pub data_range: Range<u64>,
    /// End of the first thread's stack.
    pub stack_end: u64,
    /// The heap.
    pub heap: Range<u64>,
}

impl AddressSpace {
    /// Sizes and places.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let program = self.program().map(|program| program.identity());
        let layout = self.layout();
        let mut summary = Summary {
            total: layout.areas.total(),
            locked: layout.areas.locked(),
            heap: layout.heap.clone(),
            ..Summary::default()
        };
        let add = |sum: &mut u64, area: &Area| *sum = sum.saturating_add(area.length());
        for area in layout.areas.iter() {
            let own = match &area.backing {
                Backing::File { file, .. } => program.is_some() && program == Some(file.identity()),
                _ => false,
            };
            if area.flags.contains(AreaFlags::MAIN_STACK) {
                add(&mut summary.stack, area);
                summary.stack_end = area.end;
            } else if area.is_private_code() {
                add(if own { &mut summary.code } else { &mut summary.library }, area);
                if own && summary.code_range.is_empty() {
                    summary.code_range = area.range();
                }
            } else if area.is_data() {
                add(&mut summary.data, area);
                if own && summary.data_range.is_empty() {
                    summary.data_range = area.range();
                }
            }
        }
        summary
    }

    /// `/proc/PID/maps`.
    #[must_use]
    pub fn maps(&self) -> Vec<u8> {
        let layout = self.layout();
        let mut text = Vec::new();
        for area in layout.areas.iter() {
            layout.line(area, &mut text);
        }
        text
    }

    /// `/proc/PID/smaps`. How much of an area is in memory the host alone knows: those lines tell 0.
    #[must_use]
    pub fn smaps(&self) -> Vec<u8> {
        let layout = self.layout();
        let mut text = Vec::new();
        for area in layout.areas.iter() {
            layout.line(area, &mut text);
            text.extend_from_slice(details(area).as_bytes());
        }
        text
    }
}

impl Layout {
    fn line(&self, area: &Area, text: &mut Vec<u8>) {
        let letter = |flag, letter| if area.protection.contains(flag) { letter } else { '-' };
        let identity = match &area.backing {
            Backing::File { file, .. } => Some(file.identity()),
            _ => None,
        };
        let (major, minor, inode) = match (identity, &area.backing) {
            (Some(identity), _) => (identity.major, identity.minor, identity.inode),
            // Shared memory is a file of the kernel's own.
            (None, Backing::SharedAnonymous { id, .. }) => (0, 1, *id),
            (None, _) => (0, 0, 0),
        };
        let line = format!(
            "{:08x}-{:08x} {}{}{}{} {:08x} {major:02x}:{minor:02x} {inode} ",
            area.start,
            area.end,
            letter(Protection::READ, 'r'),
            letter(Protection::WRITE, 'w'),
            letter(Protection::EXEC, 'x'),
            if area.flags.contains(AreaFlags::SHARED) { 's' } else { 'p' },
            area.backing.offset(),
        );
        text.extend_from_slice(line.as_bytes());
        let name = self.name(area);
        if !name.is_empty() {
            text.resize(text.len() + NAME_COLUMN.saturating_sub(line.len()), b' ');
            for byte in name {
                // As `seq_path` does it: a name never breaks the line.
                if byte == b'\n' { text.extend_from_slice(b"\\012") } else { text.push(byte) }
            }
        }
        text.push(b'\n');
    }

    fn name(&self, area: &Area) -> Vec<u8> {
        match &area.backing {
            Backing::File { file, .. } => file.name(),
            Backing::SharedAnonymous { .. } => b"/dev/zero (deleted)".to_vec(),
            Backing::Special(name) => name.as_bytes().to_vec(),
            Backing::Anonymous if area.flags.contains(AreaFlags::MAIN_STACK) => b"[stack]".to_vec(),
            Backing::Anonymous if area.start < self.heap.end && self.heap.start < area.end => {
                b"[heap]".to_vec()
            }
            Backing::Anonymous => Vec::new(),
        }
    }
}

fn details(area: &Area) -> String {
    let mut text = String::new();
    let mut line = |name: &str, kilobytes: u64| {
        // A string takes all that is written to it.
        let _ = writeln!(text, "{:<16}{kilobytes:8} kB", format!("{name}:"));
    };
    line("Size", area.length() / 1024);
    line("KernelPageSize", PAGE / 1024);
    line("MMUPageSize", PAGE / 1024);
    for name in [
        "Rss",
        "Pss",
        "Pss_Dirty",
        "Shared_Clean",
        "Shared_Dirty",
        "Private_Clean",
        "Private_Dirty",
        "Referenced",
        "Anonymous",
        "KSM",
        "LazyFree",
        "AnonHugePages",
        "ShmemPmdMapped",
        "FilePmdMapped",
        "Shared_Hugetlb",
        "Private_Hugetlb",
        "Swap",
        "SwapPss",
        "Locked",
    ] {
        line(name, 0);
    }
    text.push_str("THPeligible:           0\nVmFlags:");
    for (set, name) in [
        (area.protection.contains(Protection::READ), "rd"),
        (area.protection.contains(Protection::WRITE), "wr"),
        (area.protection.contains(Protection::EXEC), "ex"),
        (area.flags.contains(AreaFlags::SHARED), "sh"),
        (!area.flags.contains(AreaFlags::NEVER_READ), "mr"),
        (!area.flags.contains(AreaFlags::NEVER_WRITE), "mw"),
        (!area.flags.contains(AreaFlags::NEVER_EXEC), "me"),
        (area.flags.contains(AreaFlags::GROWS_DOWN), "gd"),
        (area.flags.contains(AreaFlags::LOCKED), "lo"),
        (area.flags.contains(AreaFlags::DONT_FORK), "dc"),
        (area.flags.contains(AreaFlags::DONT_DUMP), "dd"),
        (area.flags.contains(AreaFlags::NO_RESERVE), "nr"),
        (area.flags.contains(AreaFlags::WIPE_ON_FORK), "wf"),
    ] {
        if set {
            text.push(' ');
            text.push_str(name);
        }
    }
    text.push_str(" \n");
    text
}
