//! What is read out of a process' memory, and what is known about that (`fs/proc/base.c`, `fs/proc/task_mmu.c`).

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, Weak};

use super::super::{Caller, File};
use super::process::View;
use crate::error::Errno;
use crate::mm::AddressSpace;
use crate::platform::Thread;
use crate::task::Task;

type Read = Result<Vec<u8>, Errno>;

/// Most bytes of arguments or environment that are shown: more than an `execve` takes.
const STRINGS_MAX: u64 = 8 << 20;

/// What lies in a range; up to what cannot be read.
fn bytes(space: &AddressSpace, range: &Range<u64>) -> Vec<u8> {
    let length = range.end.saturating_sub(range.start).min(STRINGS_MAX);
    let Some(memory) = space.memory() else { return Vec::new() };
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let got = memory.read(range.start, &mut bytes);
    bytes.truncate(got);
    bytes
}

/// The address space of a process that lives.
fn space(view: &View) -> Option<Arc<AddressSpace>> {
    view.task.as_ref().map(|task| task.space())
}

/// `cmdline`: arguments, each with its 0. A program that wrote over them (`setproctitle`) may have gone on in its environment
/// (`get_mm_proctitle`).
pub(super) fn cmdline(view: &View, _: &Caller) -> Read {
    let Some(space) = space(view) else { return Ok(Vec::new()) };
    let strings = space.strings();
    let arguments = bytes(&space, &strings.arguments);
    if arguments.last().is_none_or(|last| *last == 0) {
        return Ok(arguments);
    }
    let mut title = bytes(&space, &(strings.arguments.start..strings.environment.end));
    let end = title.iter().position(|byte| *byte == 0).unwrap_or(title.len());
    title.truncate(end);
    Ok(title)
}

pub(super) fn environ(view: &View, _: &Caller) -> Read {
    Ok(space(view).map_or_else(Vec::new, |space| bytes(&space, &space.strings().environment)))
}

pub(super) fn auxv(view: &View, _: &Caller) -> Read {
    Ok(space(view).map_or_else(Vec::new, |space| bytes(&space, &space.strings().auxiliary)))
}

pub(super) fn maps(view: &View, _: &Caller) -> Read {
    Ok(space(view).map_or_else(Vec::new, |space| space.maps()))
}

pub(super) fn smaps(view: &View, _: &Caller) -> Read {
    Ok(space(view).map_or_else(Vec::new, |space| space.smaps()))
}

/// First and last address of a line of `maps`, and its name.
fn line_parts(line: &str) -> Option<(&str, &str, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let name = rest.splitn(5, ' ').nth(4).unwrap_or_default().trim_start();
    Some((start, end, name))
}

/// `smaps_rollup`: what the host says of the whole.
pub(super) fn smaps_rollup(view: &View, _: &Caller) -> Read {
    let Some(space) = space(view) else { return Err(Errno::ESRCH) };
    let maps = String::from_utf8_lossy(&space.maps()).into_owned();
    let first = maps.lines().next().and_then(line_parts).map_or("00000000", |parts| parts.0);
    let last = maps.lines().next_back().and_then(line_parts).map_or("00000000", |parts| parts.1);
    let (resident, file) = resident(&space);
    let anonymous = resident.saturating_sub(file);
    let locked = space.sizes().1;
    let mut text = format!("{first}-{last} ---p 00000000 00:00 0 {:>26}[rollup]\n", "");
    for (key, bytes) in [
        ("Rss", resident),
        ("Pss", resident),
        ("Pss_Dirty", anonymous),
        ("Pss_Anon", anonymous),
        ("Pss_File", file),
        ("Pss_Shmem", 0),
        ("Shared_Clean", 0),
        ("Shared_Dirty", 0),
        ("Private_Clean", file),
        ("Private_Dirty", anonymous),
        ("Referenced", resident),
        ("Anonymous", anonymous),
        ("KSM", 0),
        ("LazyFree", 0),
        ("AnonHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", 0),
        ("Swap", 0),
        ("SwapPss", 0),
        ("Locked", locked),
    ] {
        let _ = writeln!(text, "{:<16}{:8} kB", format!("{key}:"), bytes / 1024);
    }
    Ok(text.into_bytes())
}

/// Bytes of it that are in memory, and of these the ones of files, as the host counts them.
pub(super) fn resident(space: &AddressSpace) -> (u64, u64) {
    space.memory().and_then(|memory| memory.resident()).unwrap_or((0, 0))
}

/// `numa_maps`: there is one node.
pub(super) fn numa_maps(view: &View, _: &Caller) -> Read {
    let Some(space) = space(view) else { return Ok(Vec::new()) };
    let maps = String::from_utf8_lossy(&space.maps()).into_owned();
    let mut text = String::new();
    for (start, _, name) in maps.lines().filter_map(line_parts) {
        let what = match name {
            "" => String::new(),
            "[heap]" => " heap".to_owned(),
            "[stack]" => " stack".to_owned(),
            special if special.starts_with('[') => String::new(),
            file => format!(" file={}", file.replace(' ', "\\040")),
        };
        let _ = writeln!(text, "{start} default{what}");
    }
    Ok(text.into_bytes())
}

/// Most bytes that are read or written at once where the guest itself may not.
const FORCED_MAX: usize = 1 << 20;

/// `mem`: the memory as a file. What was opened is that of the program that ran then.
pub(super) struct Mem {
    space: Weak<AddressSpace>,
    task: Weak<Task>,
}

impl Mem {
    pub(super) fn of(view: &View) -> Result<Self, Errno> {
        let task = view.living()?;
        Ok(Self { space: Arc::downgrade(&task.space()), task: Arc::downgrade(task) })
    }

    /// Has a thread do something that stands still for its tracer: it can do more than the guest's own code. `None` where there is none.
    fn by_force<T: Send + 'static>(
        &self,
        job: impl Fn(&AddressSpace, &mut dyn Thread) -> T + Send + Sync + 'static,
    ) -> Option<T> {
        let (space, task) = (self.space.upgrade()?, self.task.upgrade()?);
        let job = Arc::new(job);
        task.threads().into_iter().filter(|thread| thread.space().id() == space.id()).find_map(|thread| {
            let (space, job) = (Arc::clone(&space), Arc::clone(&job));
            thread.ask_tracee(move |thread| job(&space, thread)).ok()
        })
    }
}

impl File for Mem {
    fn read(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let Some(space) = self.space.upgrade() else { return Ok(0) };
        let mut got = space.memory().map_or(0, |memory| memory.read(offset, to));
        if got < to.len() {
            let length = to.len().min(FORCED_MAX);
            let forced = self.by_force(move |space, thread| {
                let mut bytes = vec![0; length];
                let got = space.read_by_force(thread, offset, &mut bytes);
                bytes.truncate(got);
                bytes
            });
            if let Some(bytes) = forced.filter(|bytes| bytes.len() > got) {
                got = bytes.len();
                to[..got].copy_from_slice(&bytes);
            }
        }
        if got == 0 && !to.is_empty() { Err(Errno::EIO) } else { Ok(got) }
    }

    fn write(&self, from: &[u8], offset: u64) -> Result<usize, Errno> {
        let Some(space) = self.space.upgrade() else { return Ok(0) };
        let mut got = space.memory().map_or(0, |memory| memory.write(offset, from));
        if got < from.len() {
            let bytes = from[..from.len().min(FORCED_MAX)].to_vec();
            let forced = self.by_force(move |space, thread| space.write_by_force(thread, offset, &bytes));
            got = got.max(forced.unwrap_or(0));
        }
        if got == 0 && !from.is_empty() { Err(Errno::EIO) } else { Ok(got) }
    }

    fn append(&self, _from: &[u8]) -> Result<(usize, u64), Errno> {
        Err(Errno::EIO)
    }

    fn seekable(&self) -> bool {
        true
    }
}
