//! Locks as `/proc/locks` and `/proc/PID/fdinfo` tell them (`lock_get_status` in `fs/locks.c`, `man 5 proc_locks`). Who waits for one is
//! not shown.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};

use super::leases::Kind;
use super::locks::{Owner, Record};
use super::sync::lock;
use super::{Inode, OpenFile, device_parts};
use crate::task::{Pid, Task};

/// Files that somebody locked once.
static FILES: Mutex<Vec<Weak<dyn Inode>>> = Mutex::new(Vec::new());

/// Lets `/proc/locks` look at a file from now on.
pub(crate) fn enter(inode: &Arc<dyn Inode>) {
    let Some(locks) = inode.locks() else { return };
    if locks.listed.load(Ordering::Relaxed) || locks.listed.swap(true, Ordering::AcqRel) {
        return;
    }
    let mut files = lock(&FILES);
    if files.len() >= 64 && files.len().is_power_of_two() {
        files.retain(|file| file.strong_count() > 0);
    }
    files.push(Arc::downgrade(inode));
}

/// One lock, in words.
struct Line {
    owner: Owner,
    process: Pid,
    sort: &'static str,
    mode: &'static str,
    range: String,
}

fn mode(exclusive: bool) -> &'static str {
    if exclusive { "WRITE" } else { "READ" }
}

fn of_record(record: &Record) -> Line {
    let sort = if record.process < 0 { "OFDLCK ADVISORY " } else { "POSIX  ADVISORY " };
    let range = match record.last {
        u64::MAX => format!("{} EOF", record.start),
        last => format!("{} {last}", record.start),
    };
    Line { owner: record.owner, process: record.process, sort, mode: mode(record.exclusive), range }
}

fn lines(inode: &dyn Inode) -> Vec<Line> {
    let Some(locks) = inode.locks() else { return Vec::new() };
    let (records, whole) = locks.all();
    let all = || "0 EOF".to_owned();
    let of_whole = whole.iter().map(|lock| Line {
        owner: lock.owner,
        process: lock.process,
        sort: "FLOCK  ADVISORY ",
        mode: mode(lock.exclusive),
        range: all(),
    });
    let leases = locks.shown_leases();
    let of_leases = leases.iter().map(|lease| Line {
        owner: Owner::Description(lease.description),
        process: lease.process,
        sort: if lease.breaking { "LEASE  BREAKING " } else { "LEASE  ACTIVE   " },
        mode: lease.target.map_or("UNLCK", |kind| mode(kind == Kind::Write)),
        range: all(),
    });
    of_whole.chain(records.iter().map(of_record)).chain(of_leases).collect()
}

/// Writes lines of a file as `reader` sees them, numbered on from `number`; who has no number for a process sees none of its locks.
fn write(
    text: &mut String,
    inode: &dyn Inode,
    lines: &[Line],
    (number, start): (&mut u64, &str),
    reader: Option<&Task>,
) {
    let Ok(attributes) = inode.attributes() else { return };
    let (major, minor) = device_parts(attributes.device);
    for line in lines {
        let process = match reader {
            Some(reader) if line.process > 0 => reader.shown(line.process),
            _ => line.process,
        };
        if process == 0 {
            continue;
        }
        *number = number.saturating_add(1);
        let (Line { sort, mode, range, .. }, inode) = (line, attributes.inode);
        // A text takes all.
        let _ = writeln!(
            text,
            "{start}{number}: {sort} {mode} {process} {major:02x}:{minor:02x}:{inode} {range}"
        );
    }
}

/// All locks of the sandbox.
pub(super) fn all(reader: Option<&Task>) -> Vec<u8> {
    let files: Vec<_> = lock(&FILES).iter().filter_map(Weak::upgrade).collect();
    let (mut text, mut number) = (String::new(), 0);
    for file in files {
        write(&mut text, &*file, &lines(&*file), (&mut number, ""), reader);
    }
    text.into_bytes()
}

/// Those of an open file, and of the process that `files` is of.
pub(super) fn of(open: &OpenFile, files: Owner, reader: Option<&Task>) -> String {
    let own = |line: &Line| [files, Owner::Description(open.id())].contains(&line.owner);
    let lines: Vec<_> = lines(&**open.inode()).into_iter().filter(own).collect();
    let (mut text, mut number) = (String::new(), 0);
    write(&mut text, &**open.inode(), &lines, (&mut number, "lock:\t"), reader);
    text
}
