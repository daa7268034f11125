//! Random sequences of system calls of one process, in a kernel without a platform.

use std::sync::Arc;

use super::Bytes;
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::mm::AddressSpace;
use crate::platform::Thread;
use crate::sandbox::{Changes, Config, Sandbox};
use crate::task::{self, Credentials, Limits, NewProcess, Resource, Task, capability};
use crate::testing::{BASE, FlatThread, flat};
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::{FdTable, FsContext, leases};

/// Bytes of the guest's memory.
const SIZE: usize = 256 << 10;
/// Calls of one sequence.
const CALLS: usize = 48;
/// Largest file that the guest may make: what is in memory is the fuzzer's.
const FILE_SIZE: u64 = 4 << 20;

/// Where in memory what lies: bytes of the fuzzer's, names, structures that point to these.
const RAW: u64 = BASE + 0x1000;
const NAMES: u64 = BASE + 0x4000;
const VECTORS: u64 = BASE + 0x6000;
const SCRIPT: u64 = BASE + 0x8000;
const PROGRAM: u64 = BASE + 0x9000;
/// Apart of names.
const NAME_STEP: u64 = 64;

/// Names that lead somewhere, or nowhere.
const TEXTS: [&str; 32] = [
    "/",
    ".",
    "..",
    "",
    "a",
    "b",
    "folder",
    "folder/a",
    "folder/../link",
    "link",
    "loop",
    "file",
    "/tmp/x",
    "/tmp/y",
    "/tmp/x/z",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/ptmx",
    "/dev/pts/0",
    "/dev/urandom",
    "/proc",
    "/proc/self/fd/3",
    "/proc/self/maps",
    "/proc/self/mem",
    "/proc/1/task/1/stat",
    "/proc/sys/kernel/hostname",
    "/sys/devices/system/cpu/online",
    "program",
    "script",
    "user.attribute",
    "/proc/self/ns/mnt",
];

/// Numbers at the edges of something.
const EDGES: [u64; 24] = [
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    63,
    64,
    255,
    0xfff,
    0x1000,
    0x1_0000,
    0xff_ffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_f000,
    i64::MAX as u64,
    i64::MIN as u64,
    u64::MAX - 99,
    u64::MAX - 1,
    u64::MAX,
];

/// These do not wait for anything that does not come by itself but for holders of leases, and do nothing where a signal is there.
const WITHOUT_ATTENTION: [i64; 6] = [
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
];

/// An ELF file of one segment.
fn tiny_program() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let halves =
        |file: &mut Vec<u8>, all: &[u16]| all.iter().for_each(|half| file.extend(half.to_le_bytes()));
    let longs = |file: &mut Vec<u8>, all: &[u64]| all.iter().for_each(|long| file.extend(long.to_le_bytes()));
    halves(&mut file, &[2, 62, 1, 0]);
    longs(&mut file, &[BASE + 0x2_0000, 64, 0]);
    halves(&mut file, &[0, 0, 64, 56, 1, 0, 0, 0]);
    // PT_LOAD, read and execute
    halves(&mut file, &[1, 0, 5, 0]);
    longs(&mut file, &[0, BASE + 0x2_0000, 0, 4096, 4096, 4096]);
    file.resize(4096, 0x90);
    file
}

/// Where one of [`TEXTS`] lies.
fn name(text: &str) -> u64 {
    let number = (0..).zip(TEXTS).find(|(_, known)| *known == text).map_or(0, |(number, _)| number);
    NAMES + number * NAME_STEP
}

struct Guest {
    sandbox: Sandbox,
    task: Arc<Task>,
    thread: Box<dyn Thread>,
    last: u64,
}

impl Guest {
    fn new(raw: &[u8]) -> Option<Self> {
        let config = Config { changes: Changes::Direct, hostname: "fuzz".into() };
        let sandbox = Sandbox::new(flat(), Box::new(Tmpfs::new(Some(FILE_SIZE))), &config).ok()?;
        let thread: Box<dyn Thread> = Box::new(FlatThread::new(SIZE));
        let kernel = sandbox.kernel();
        let mut limits = Limits::default();
        limits.set_by_number(Resource::FileSize as u64, task::Limit { soft: FILE_SIZE, hard: FILE_SIZE });
        limits.set_by_number(Resource::OpenFiles as u64, task::Limit { soft: 64, hard: 64 });
        let stack = limits.of(Resource::Stack).soft;
        let futexes = Arc::clone(&kernel.futexes);
        let space = AddressSpace::new(kernel.platform.guest_range(), stack, Some(thread.remote()), futexes);
        let mut credentials = Credentials::root();
        // whoever has it may lift the limits
        let raises = 1 << capability::SYS_RESOURCE;
        credentials.effective.0 &= !raises;
        credentials.permitted.0 &= !raises;
        credentials.bounding.0 &= !raises;
        let files = Arc::new(FdTable::default());
        files.set_limit(64);
        let fs = Arc::new(FsContext::new(sandbox.root().clone()));
        let new = NewProcess {
            credentials,
            limits,
            files,
            fs,
            space: Arc::new(space),
            namespaces: None,
            container: 0,
        };
        let task = kernel.new_process(new).ok()?;
        let mut guest = Self { sandbox, task, thread, last: 0 };
        guest.fill(raw);
        guest.make_files().ok()?;
        Some(guest)
    }

    /// Some files to begin with.
    fn make_files(&mut self) -> Result<(), SysError> {
        let mut call = |number: i64, [a, b, c]: [u64; 3]| {
            self.call(usize::try_from(number).unwrap_or_default(), [a, b, c, 0, 0, 0])
        };
        call(libc::SYS_mkdir, [name("folder"), 0o755, 0])?;
        call(libc::SYS_symlink, [name("folder/a"), name("link"), 0])?;
        call(libc::SYS_symlink, [name("loop"), name("loop"), 0])?;
        for (path, bytes, length) in
            [("a", RAW, 100), ("folder/a", RAW, 3000), ("script", SCRIPT, 12), ("program", PROGRAM, 4096)]
        {
            let file = call(libc::SYS_creat, [name(path), 0o755, 0])?;
            call(libc::SYS_write, [file, bytes, length])?;
            call(libc::SYS_close, [file, 0, 0])?;
        }
        Ok(())
    }

    /// Memory as the arguments of calls expect it.
    fn fill(&self, raw: &[u8]) {
        self.thread.write(RAW, raw);
        self.thread.write(SCRIPT, b"#!program x\n");
        self.thread.write(PROGRAM, &tiny_program());
        for (number, text) in (0..).zip(TEXTS) {
            self.thread.write(NAMES + number * NAME_STEP, text.as_bytes());
        }
        // pointers and lengths: struct iovec, argv, struct msghdr by its fields
        for number in 0..64_u64 {
            let pair = match number {
                0..16 => [RAW + number * 256, 256],
                16..24 => [NAMES + number * NAME_STEP, NAMES + NAME_STEP],
                // an end of a vector of pointers
                24 => [0, 0],
                _ => [VECTORS, number],
            };
            let bytes = pair.map(u64::to_le_bytes).concat();
            self.thread.write(VECTORS + number * 16, &bytes);
        }
    }

    fn argument(&self, data: &mut Bytes<'_>) -> u64 {
        match data.u8() % 16 {
            0..4 => u64::from(data.u8() % 16),
            4 => data.one_of(&EDGES),
            5 | 6 => RAW + u64::from(data.u8()) * 16,
            7 | 8 => NAMES + u64::from(data.u8() % 32) * NAME_STEP,
            9 => VECTORS + u64::from(data.u8() % 64) * 16,
            10 => self.last,
            11 => 1 << (data.u8() % 64),
            12 => u64::from(data.u16()),
            // the end of memory
            13 => BASE + SIZE as u64 - u64::from(data.u8() % 32),
            14 => (i64::from(libc::AT_FDCWD)).cast_unsigned(),
            _ => data.u64(),
        }
    }

    fn call(&mut self, number: usize, arguments: [u64; 6]) -> SysResult {
        let kernel = Arc::clone(self.sandbox.kernel());
        let entry = kernel.calls.get(number).copied().flatten().ok_or(Errno::ENOSYS)?;
        // What would wait does not: a signal seems to be there.
        let without = WITHOUT_ATTENTION.contains(&(number as i64)) && !leases::any();
        self.task.set_attention(!without);
        let mut call = Call { kernel: &kernel, task: &self.task, thread: self.thread.as_mut() };
        (entry.handler)(&mut call, arguments)
    }
}

/// A sequence of calls of the first process of a sandbox, and its end: no task is left.
///
/// # Panics
/// Where a promise of the kernel is broken.
pub fn calls(data: &[u8]) {
    let mut data = Bytes::new(data);
    let raw = data.take(64).repeat(8);
    let Some(mut guest) = Guest::new(&raw) else { return };
    for _ in 0..CALLS {
        if data.is_empty() {
            break;
        }
        let number = usize::from(data.u16() % 470);
        let arguments = std::array::from_fn(|_| guest.argument(&mut data));
        match guest.call(number, arguments) {
            Ok(value) => guest.last = value,
            Err(SysError::Exit) => break,
            Err(_) => {}
        }
        if let Some(next) = guest.task.take_next_thread() {
            guest.thread = next;
        }
    }
    let Guest { sandbox, task, thread, .. } = guest;
    let kernel = Arc::clone(sandbox.kernel());
    task::run(&kernel, &task, thread);
}
