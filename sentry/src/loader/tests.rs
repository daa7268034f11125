#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::mm::test_utils::FakeThread;
use crate::mm::{AddressSpace, FileIdentity, Limits, PAGE, Protection};
use crate::platform::{Memory as _, Thread as _};

/// A file of the host.
struct HostProgram {
    file: File,
    name: Vec<u8>,
}

impl MappedFile for HostProgram {
    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        Ok((Arc::new(self.file.try_clone().unwrap().into()), 0))
    }

    fn name(&self) -> Vec<u8> {
        self.name.clone()
    }

    fn identity(&self) -> FileIdentity {
        FileIdentity { major: 0, minor: 0, inode: 1 }
    }

    fn readable(&self) -> bool {
        true
    }

    fn writable(&self) -> bool {
        false
    }

    fn executable(&self) -> bool {
        true
    }
}

impl Program for HostProgram {
    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        self.file
            .read_at(to, offset)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

struct Host;

impl Opener for Host {
    fn open_program(&self, path: &[u8]) -> Result<Arc<dyn Program>, Errno> {
        let file = File::open(Path::new(std::ffi::OsStr::from_bytes(path))).map_err(|_| Errno::ENOENT)?;
        Ok(Arc::new(HostProgram { file, name: path.to_vec() }))
    }
}

fn strings(arguments: &[&str], environment: &[&str]) -> Strings {
    let owned = |list: &[&str]| list.iter().map(|text| text.as_bytes().to_vec()).collect();
    Strings { arguments: owned(arguments), environment: owned(environment) }
}

fn prepare_path(path: &str, told: Strings) -> Result<Prepared, Errno> {
    let program = Host.open_program(path.as_bytes())?;
    prepare(&Host, program, path.as_bytes(), true, told, 8 << 20)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn text_at(stack: &stack::Stack, address: u64) -> Vec<u8> {
    let start = (address - stack.pointer) as usize;
    stack.bytes[start..].iter().copied().take_while(|byte| *byte != 0).collect()
}

#[test]
fn the_first_stack_is_as_the_abi_has_it() {
    for count in 0..5 {
        let mut told = strings(&["name", "", "argument"], &["A=1", "B=22"]);
        told.environment.truncate(count);
        let random = [7; stack::RANDOM_BYTES];
        let contents = stack::Contents {
            strings: &told,
            name: b"/bin/name",
            random,
            auxiliary: &[(6, PAGE), (9, 0x1234)],
        };
        let top = 0x7fff_0000_0000;
        let stack = stack::build(top, &contents).unwrap();
        assert_eq!(stack.pointer % 16, 0);
        assert_eq!(stack.pointer + stack.bytes.len() as u64, top);
        let bytes = &stack.bytes;
        assert_eq!(word(bytes, 0), 3);
        let argument = |index: usize| text_at(&stack, word(bytes, 8 + index * 8));
        assert_eq!([argument(0), argument(1), argument(2)], [&b"name"[..], b"", b"argument"]);
        assert_eq!(word(bytes, 32), 0);
        for (index, text) in told.environment.iter().enumerate() {
            assert_eq!(&text_at(&stack, word(bytes, 40 + index * 8)), text);
        }
        let mut at = 40 + told.environment.len() * 8;
        assert_eq!(word(bytes, at), 0);
        at += 8;
        assert_eq!(stack.places.auxiliary.start, stack.pointer + at as u64);
        let mut auxiliary = BTreeMap::new();
        while word(bytes, at) != 0 {
            auxiliary.insert(word(bytes, at), word(bytes, at + 8));
            at += 16;
        }
        assert_eq!((auxiliary[&6], auxiliary[&9]), (PAGE, 0x1234));
        assert_eq!(text_at(&stack, auxiliary[&31]), b"/bin/name");
        assert_eq!(text_at(&stack, auxiliary[&15]), b"x86_64");
        assert_eq!(text_at(&stack, auxiliary[&25])[..16], random);
        assert_eq!(stack.places.auxiliary.end, stack.pointer + at as u64 + 16);
    }
}

#[test]
fn scripts_name_an_interpreter_and_one_argument() {
    let parse = |text: &[u8]| {
        script::parse(text).map(|script| script.map(|script| (script.interpreter, script.argument)))
    };
    let told = |name: &[u8], argument: Option<&[u8]>| Ok(Some((name.to_vec(), argument.map(<[u8]>::to_vec))));
    assert_eq!(parse(b"\x7fELF"), Ok(None));
    assert_eq!(parse(b""), Ok(None));
    assert_eq!(parse(b"#!/bin/sh\nx"), told(b"/bin/sh", None));
    assert_eq!(parse(b"#!/bin/sh"), told(b"/bin/sh", None));
    assert_eq!(parse(b"#! \t/bin/sh  -e  -x \t\n"), told(b"/bin/sh", Some(b"-e  -x")));
    assert_eq!(parse(b"#!/bin/sh\0-e\n"), told(b"/bin/sh", None));
    for nothing in [&b"#!"[..], b"#!\n", b"#!  \t \n/bin/sh"] {
        assert_eq!(parse(nothing), Err(Errno::ENOEXEC), "{nothing:?}");
    }
    let long = [b"#!/", &[b'a'; 300][..]].concat();
    assert_eq!(parse(&long[..256]), Err(Errno::ENOEXEC));
    let argument = [b"#!/bin/sh ", &[b'a'; 300][..]].concat();
    assert_eq!(parse(&argument[..256]).unwrap().unwrap().1.unwrap().len(), 245);
}

#[test]
fn scripts_of_scripts_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = |index: usize| format!("{}/{index}", folder.path().display());
    std::fs::write(path(0), b"#!/bin/echo zero\n").unwrap();
    for index in 1..8 {
        std::fs::write(path(index), format!("#!{} {index}\n", path(index - 1))).unwrap();
    }
    let prepared = prepare_path(&path(1), strings(&["dropped", "last"], &[])).unwrap();
    let told = strings(&["/bin/echo", "zero", &path(0), "1", &path(1), "last"], &[]);
    assert_eq!(prepared.strings(), &told);
    assert!(prepare_path(&path(4), Strings::default()).is_ok());
    assert_eq!(prepare_path(&path(5), Strings::default()).err(), Some(Errno::ELOOP));
    // Linux draws the line at the same place.
    let on_linux = |index: usize| {
        std::fs::set_permissions(path(index), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::process::Command::new(path(index)).output().map_err(|error| error.raw_os_error())
    };
    for index in 0..4 {
        on_linux(index).unwrap();
    }
    assert!(on_linux(4).is_ok_and(|output| output.stdout.starts_with(b"zero")));
    assert_eq!(on_linux(5).err(), Some(Some(libc::ELOOP)));
    std::fs::write(path(0), b"neither").unwrap();
    assert_eq!(prepare_path(&path(0), Strings::default()).err(), Some(Errno::ENOEXEC));
    std::fs::write(path(0), b"#!/nowhere/at/all\n").unwrap();
    assert_eq!(prepare_path(&path(0), Strings::default()).err(), Some(Errno::ENOENT));
    let program = Host.open_program(path(1).as_bytes()).unwrap();
    assert_eq!(
        prepare(&Host, program, b"/dev/fd/3", false, Strings::default(), 0).err(),
        Some(Errno::ENOENT)
    );
}

#[test]
fn arguments_have_bounds() {
    let of = |length: usize| Strings { arguments: vec![vec![b'a'; length]], environment: Vec::new() };
    assert_eq!(of(MAX_STRING - 1).check(8 << 20), Ok(()));
    assert_eq!(of(MAX_STRING).check(8 << 20), Err(Errno::E2BIG));
    let many = Strings { arguments: Vec::new(), environment: vec![vec![b'a'; 991]; 2100] };
    assert_eq!(many.check(8 << 20), Err(Errno::E2BIG));
    assert_eq!(many.check(16 << 20), Ok(()));
    assert_eq!(many.check(0), Err(Errno::E2BIG));
}

/// A header with these program headers: kind, flags, offset, address, bytes in the file and in memory, alignment.
fn file(kind: u16, rows: &[(u32, u32, u64, u64, u64, u64, u64)]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([kind.to_le_bytes(), 62u16.to_le_bytes()].concat());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend([0x40_1000u64, 64, 0].iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend(0u32.to_le_bytes());
    for number in [64, 56, rows.len() as u16, 64, 0, 0] {
        bytes.extend(number.to_le_bytes());
    }
    for (kind, flags, offset, address, file_bytes, memory_bytes, alignment) in rows {
        bytes.extend([kind.to_le_bytes(), flags.to_le_bytes()].concat());
        for number in [*offset, *address, *address, *file_bytes, *memory_bytes, *alignment] {
            bytes.extend(number.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let good = (1, 5, 0, 0x40_0000, 0x2000, 0x2000, 0x1000);
    let parse = |rows: &[_]| elf::parse(&file(2, rows));
    let image =
        parse(&[good, (1, 6, 0x2100, 0x40_2100, 0x10, 0x5000, 1 << 21), (0x6474_e551, 7, 0, 0, 0, 0, 0)])
            .unwrap();
    assert_eq!((image.pages(), image.alignment), (0x40_0000..0x40_8000, 2 << 20));
    assert!(image.executable_stack && !image.moves);
    assert_eq!(image.table, (0x40_0040, 3));
    assert_eq!(image.segments[1].protection, Protection::READ | Protection::WRITE);
    assert_eq!(parse(&[]), Err(Errno::ENOEXEC));
    assert_eq!(parse(&[good; 74]), Err(Errno::ENOEXEC));
    assert_eq!(parse(&[(4, 0, 0, 0, 0, 0, 0)]), Err(Errno::EINVAL));
    for (bad, errno) in [
        ((1, 5, 0, 0x40_0000, 0x2000, 0x1fff, 0), Errno::EINVAL),
        ((1, 5, 0, 0x40_0000, 0, u64::MAX, 0), Errno::EINVAL),
        ((1, 5, 0, u64::MAX - 10, 0, 0x1000, 0), Errno::ENOMEM),
        ((1, 5, 0, 0x7fff_ffff_f000, 0, 0x1000, 0), Errno::ENOMEM),
        ((1, 5, 1, 0x40_0000, 0x10, 0x10, 0), Errno::EINVAL),
        ((1, 5, !0xfff, 0x40_0000, 0x2000, 0x2000, 0), Errno::EINVAL),
        ((3, 4, 0, 0, 1, 1, 0), Errno::ENOEXEC),
        ((3, 4, 0, 0, 4097, 4097, 0), Errno::ENOEXEC),
    ] {
        assert_eq!(parse(&[bad, good]), Err(errno), "{bad:?}");
    }
    assert_eq!(parse(&[good, good]), Err(Errno::EINVAL));
    let mut other = file(2, &[good]);
    other[18] = 3;
    assert_eq!(elf::parse(&other), Err(Errno::ENOEXEC));
    assert_eq!(elf::parse(&file(4, &[good])), Err(Errno::ENOEXEC));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        changes in prop::collection::vec((0..400usize, any::<u8>()), 0..6),
        kind in 2..4u16,
    ) {
        let _ = elf::parse(&bytes);
        let _ = script::parse(&bytes);
        let _ = script::parse(&[b"#!", &bytes[..]].concat());
        let rows = [(3, 4, 0x200, 0x200, 28, 28, 1), (1, 5, 0, 0, 0x2000, 0x2000, 0x1000), (1, 6, 0x2000, 0x3000, 8, 0x2000, 0x1000)];
        let mut bytes = file(kind, &rows);
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        // What is taken for a program is mapped, or refused, without harm.
        if let Ok(mut image) = elf::parse(&bytes) {
            image.interpreter = None;
            let program = Host.open_program(b"/proc/self/exe").unwrap();
            let prepared = Prepared { program, image, interpreter: None, strings: Strings::default(), name: Vec::new() };
            let space = AddressSpace::default();
            let _ = prepared.load(&space, &mut FakeThread::noting(), &Limits::default(), &Identity::default());
        }
    }
}

/// Puts a program into this very process and jumps to it: what the loader made runs on the host's kernel.
fn become_program(path: &str, arguments: &[&str]) -> ! {
    let told = strings(arguments, &["LC_ALL=C", "WITH=environment"]);
    let prepared = prepare_path(path, told).unwrap();
    let space = AddressSpace::new(0x2000_0000_0000..0x2100_0000_0000, 8 << 20, None, Arc::default());
    let mut thread = FakeThread::on_host();
    prepared.load(&space, &mut thread, &Limits::default(), &Identity::default()).unwrap();
    // The stack pointer leads to the number of arguments.
    let mut count = [0; 8];
    let (rip, rsp) = (thread.regs().rip, thread.regs().rsp);
    assert_eq!(thread.read(rsp, &mut count), 8);
    assert_eq!(u64::from_le_bytes(count), prepared.strings().arguments.len() as u64);
    // SAFETY: this process becomes the program, whose code and stack were mapped just now; nothing of it goes on.
    unsafe {
        std::arch::asm!("mov rsp, {stack}", "xor edx, edx", "xor ebp, ebp", "jmp {entry}",
            stack = in(reg) rsp, entry = in(reg) rip, options(noreturn));
    }
}

#[test]
fn what_was_loaded_runs() {
    let name = "loader::tests::what_was_loaded_runs";
    if let Ok(path) = std::env::var("SENTRY_LOAD") {
        become_program(&path, &["first", "second", "third"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/bin/echo of a script\n").unwrap();
    let script = script.to_str().unwrap();
    for (path, expected) in [
        ("/bin/echo", "second third\n".to_owned()),
        ("/usr/bin/env", String::new()),
        (script, format!("of a script {script} second third\n")),
    ] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1", "--nocapture"])
            .env("SENTRY_LOAD", path)
            .output()
            .unwrap();
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(said.ends_with(&expected), "{path}: {:?} {said} {complained}", output.status);
        if path == "/usr/bin/env" {
            // There is no program "second": env was told its arguments and looked for it.
            assert_eq!(output.status.code(), Some(127), "{said} {complained}");
            assert!(complained.contains("second"), "{complained}");
        } else {
            assert!(output.status.success(), "{path}");
        }
    }
}
