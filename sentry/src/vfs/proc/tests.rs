#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::open::open;
use super::super::{
    Caller, Content, FileKind, Flags, FsContext, Mount, MountFlags, OpenFile, Place, Resolve, Walk, names,
};
use super::{Proc, machine};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::task::{Capabilities, Credentials, Limits, NewProcess, Task};
use crate::vfs::tmpfs::Tmpfs;

/// A kernel with one process, whose root is the top of `/proc` on a `tmpfs`.
struct Machine {
    kernel: Arc<Kernel>,
    task: Arc<Task>,
    root: Place,
}

fn machine() -> Machine {
    let kernel = Kernel::for_test();
    let root = Mount::namespace(Tmpfs::tree(None)).root_place();
    let caller = Caller::root();
    let mut walk = Walk::new(&caller, &root, &root, b"/proc", Resolve::default()).unwrap();
    let place = names::create(&caller, &mut walk, Content::Folder, 0o755).unwrap();
    Mount::add(&place, Proc::tree(&kernel), MountFlags::NO_EXEC).unwrap();
    let task = kernel
        .new_process(NewProcess {
            credentials: Credentials::root(),
            limits: Limits::default(),
            files: Arc::default(),
            fs: Arc::new(FsContext::new(root.clone())),
            space: Arc::default(),
            namespaces: None,
            container: 0,
        })
        .unwrap();
    task.set_comm(b"a) (b c");
    Machine { kernel, task, root }
}

fn user(process: i32) -> Caller {
    let none = Capabilities::default();
    let credentials = Credentials {
        uid: 7,
        euid: 7,
        suid: 7,
        fsuid: 7,
        effective: none,
        permitted: none,
        ..Credentials::root()
    };
    Caller { credentials: Arc::new(credentials), process, umask: 0o022 }
}

impl Machine {
    fn walk(&self, caller: &Caller, path: &str, follow: bool) -> Result<Place, Errno> {
        Walk::new(caller, &self.root, &self.root, path.as_bytes(), Resolve::default())?.finish(follow)
    }

    fn open(&self, caller: &Caller, path: &str, flags: i32) -> Result<Arc<OpenFile>, Errno> {
        let mut walk = Walk::new(caller, &self.root, &self.root, path.as_bytes(), Resolve::default())?;
        open(caller, &mut walk, Flags(flags.cast_unsigned()), 0)
    }

    fn text_as(&self, caller: &Caller, path: &str) -> Result<String, Errno> {
        let file = self.open(caller, path, libc::O_RDONLY)?;
        let (mut text, mut part) = (Vec::new(), [0; 1000]);
        loop {
            match file.read(&mut part)? {
                0 => return Ok(String::from_utf8(text).unwrap()),
                count => text.extend_from_slice(&part[..count]),
            }
        }
    }

    fn text(&self, path: &str) -> String {
        self.text_as(&Caller::root(), path).unwrap_or_else(|errno| panic!("{path}: {errno}"))
    }

    fn write(&self, caller: &Caller, path: &str, text: &str) -> Result<usize, Errno> {
        self.open(caller, path, libc::O_WRONLY | libc::O_TRUNC)?.write(caller, text.as_bytes())
    }

    fn link(&self, path: &str) -> String {
        let caller = Caller::root();
        let link = self.walk(&caller, path, false).unwrap();
        String::from_utf8(link.dentry.inode().readlink(&caller).unwrap()).unwrap()
    }

    fn list(&self, path: &str) -> Vec<String> {
        let place = self.walk(&Caller::root(), path, true).unwrap();
        let entries = place.dentry.inode().list().unwrap();
        entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect()
    }
}

fn host(path: &str) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Keys of lines with a colon.
fn keys(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.ends_with("[rollup]"));
    lines.filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

#[test]
fn stat_has_the_fields_of_the_hosts() {
    let machine = machine();
    let text = machine.text("/proc/self/stat");
    assert!(text.starts_with("1 (a) (b c) R 0 1 1 0 -1 "), "{text}");
    let fields = |text: &str| text.rsplit_once(") ").unwrap().1.split_whitespace().count();
    assert_eq!(fields(&text), fields(&host("/proc/self/stat")));
    assert_eq!(fields(&text), 50);
    assert!(
        text.ends_with('\n')
            && text.rsplit_once(") ").unwrap().1[2..]
                .trim()
                .split(' ')
                .all(|field| { field.parse::<i128>().is_ok() })
    );
    assert_eq!(machine.text("/proc/self/statm").split_whitespace().count(), 7);
}

#[test]
fn status_limits_and_meminfo_have_the_keys_of_the_hosts() {
    let machine = machine();
    // What depends on how the host's kernel was built.
    let optional =
        |key: &str| key.starts_with("x86_Thread") || key.starts_with("Cma") || key == "GPReclaimable";
    for path in ["/proc/self/status", "/proc/meminfo", "/proc/self/io", "/proc/self/smaps_rollup"] {
        let (ours, theirs) = (keys(&machine.text(path)), keys(&host(path)));
        let missing: Vec<_> = theirs.difference(&ours).filter(|key| !optional(key)).collect();
        let known = ["DirectMap1G", "Balloon", "MemoryLocked"];
        let missing: Vec<_> = missing.into_iter().filter(|key| !known.contains(&key.as_str())).collect();
        assert!(missing.is_empty(), "{path}: {missing:?}");
    }
    let heads = |text: &str| text.lines().map(|line| line[..25].to_owned()).collect::<Vec<_>>();
    let (ours, theirs) = (machine.text("/proc/self/limits"), host("/proc/self/limits"));
    assert_eq!(heads(&ours), heads(&theirs));
    let widths = |text: &str| text.lines().map(str::len).collect::<Vec<_>>();
    assert_eq!(widths(&ours), widths(&theirs));
}

#[test]
fn mounts_are_told_in_the_form_of_the_hosts() {
    let machine = machine();
    let text = machine.text("/proc/self/mountinfo");
    let line = text.lines().find(|line| line.contains(" /proc ")).unwrap();
    let (left, right) = line.split_once(" - ").unwrap();
    assert_eq!(left.split(' ').count(), 6, "{line}");
    assert_eq!(right, "proc proc rw");
    assert!(left.ends_with("/ /proc rw,noexec,relatime"), "{line}");
    assert!(machine.text("/proc/mounts").contains("proc /proc proc rw,noexec,relatime 0 0\n"));
    assert!(
        machine.text("/proc/self/mountstats").contains("device proc mounted on /proc with fstype proc\n")
    );
}

#[test]
fn every_file_can_be_read_or_says_why_not() {
    let machine = machine();
    let caller = Caller::root();
    let mut left = vec!["/proc".to_owned()];
    let mut files = 0;
    while let Some(path) = left.pop() {
        for name in machine.list(&path) {
            let below = format!("{path}/{name}");
            let place = machine.walk(&caller, &below, false).unwrap();
            place.dentry.inode().attributes().unwrap();
            match place.dentry.inode().kind() {
                FileKind::Folder => left.push(below),
                FileKind::Symlink => drop(place.dentry.inode().readlink(&caller)),
                _ => {
                    files += 1;
                    let unreadable = machine.text_as(&caller, &below).is_err();
                    let allowed = ["/mem", "/pagemap", "/clear_refs", "/attr/", "/compact_memory"];
                    assert!(!unreadable || allowed.iter().any(|part| below.contains(part)), "{below}");
                }
            }
        }
    }
    assert!(files > 400, "{files}");
}

#[test]
fn what_is_read_in_parts_is_one_text() {
    let machine = machine();
    let file = machine.open(&Caller::root(), "/proc/sys/kernel/random/uuid", libc::O_RDONLY).unwrap();
    let (mut first, mut whole) = ([0; 10], [0; 64]);
    assert_eq!(file.read(&mut first), Ok(10));
    assert_eq!(file.read(&mut whole), Ok(27));
    assert_eq!(file.read(&mut whole), Ok(0));
    assert_eq!(file.read_at(&mut whole, 0), Ok(37));
    assert_ne!(first, whole[..10]);
    let boot = machine.text("/proc/sys/kernel/random/boot_id");
    assert_eq!(boot, machine.text("/proc/sys/kernel/random/boot_id"));
}

#[test]
fn links_lead_to_what_they_show() {
    let machine = machine();
    assert_eq!(machine.link("/proc/self"), "1");
    assert_eq!(machine.link("/proc/thread-self"), "1/task/1");
    assert_eq!(machine.link("/proc/self/cwd"), "/");
    assert_eq!(machine.link("/proc/self/ns/pid"), "pid:[4026531836]");
    let space = machine.walk(&Caller::root(), "/proc/self/ns/pid", true).unwrap();
    assert_eq!(space.dentry.inode().attributes().unwrap().inode, 4_026_531_836);
    let files = machine.task.files();
    let [reader, writer] = super::super::pipe::Pipe::pair(Flags(0)).unwrap();
    let fd = files.insert(reader, false).unwrap();
    files.insert(writer, true).unwrap();
    assert!(machine.link(&format!("/proc/self/fd/{fd}")).starts_with("pipe:["));
    let again = machine.open(&Caller::root(), "/proc/self/fd/1", libc::O_WRONLY).unwrap();
    assert_eq!(again.write(&Caller::root(), b"news"), Ok(4));
    let mut bytes = [0; 8];
    assert_eq!(files.get(0).unwrap().read(&mut bytes), Ok(4));
    assert!(machine.text("/proc/self/fdinfo/1").contains("flags:\t02100001\n"));
    assert_eq!(machine.list("/proc/self/fd"), ["0", "1"]);
    // What is closed is gone, and a pipe that was opened again still ends.
    drop(again);
    files.close(1).unwrap();
    assert_eq!(machine.walk(&Caller::root(), "/proc/self/fd/1", false).err(), Some(Errno::ENOENT));
    assert_eq!(files.get(0).unwrap().read(&mut bytes), Ok(0));
}

#[test]
fn a_file_that_tells_of_itself_does_not_wait_for_itself() {
    let machine = machine();
    let file = machine.open(&Caller::root(), "/proc/self/fdinfo", libc::O_RDONLY).unwrap();
    machine.task.files().insert(file, false).unwrap();
    let itself = machine.open(&Caller::root(), "/proc/self/fdinfo/0", libc::O_RDONLY).unwrap();
    machine.task.files().replace(0, Arc::clone(&itself), false).unwrap();
    let mut bytes = [0; 256];
    assert!(itself.read(&mut bytes).unwrap() > 0);
}

#[test]
fn who_may_look_into_a_process() {
    let machine = machine();
    let stranger = user(99);
    for name in ["environ", "auxv", "mem", "io"] {
        let path = format!("/proc/1/{name}");
        assert_eq!(machine.text_as(&stranger, &path).err(), Some(Errno::EACCES), "{name}");
    }
    for name in ["maps", "smaps", "numa_maps"] {
        let path = format!("/proc/1/{name}");
        assert_eq!(machine.text_as(&stranger, &path).err(), Some(Errno::EACCES), "{name}");
    }
    assert_eq!(machine.walk(&stranger, "/proc/1/exe", true).err(), Some(Errno::EACCES));
    assert_eq!(machine.walk(&stranger, "/proc/1/fd/0", true).err(), Some(Errno::EACCES));
    assert!(machine.text_as(&stranger, "/proc/1/stat").is_ok());
    assert_eq!(machine.text_as(&Caller::root(), "/proc/1/pagemap").err(), Some(Errno::EPERM));
    // Of its own.
    assert!(machine.text_as(&user(1), "/proc/1/maps").is_ok());
}

#[test]
fn what_can_be_written() {
    let machine = machine();
    let (root, stranger) = (Caller::root(), user(99));
    assert_eq!(machine.write(&root, "/proc/self/comm", "0123456789abcdefgh\n"), Ok(19));
    assert_eq!(machine.text("/proc/self/comm"), "0123456789abcde\n");
    assert_eq!(machine.write(&root, "/proc/self/oom_score_adj", "-500"), Ok(4));
    assert_eq!(machine.text("/proc/self/oom_score_adj"), "-500\n");
    assert_eq!(machine.text("/proc/self/oom_adj"), "-8\n");
    assert_eq!(machine.write(&root, "/proc/self/oom_score_adj", "1001"), Err(Errno::EINVAL));
    assert_eq!(machine.write(&stranger, "/proc/1/oom_score_adj", "0"), Err(Errno::EACCES));
    assert_eq!(machine.write(&root, "/proc/sys/kernel/hostname", "pod-7\n"), Ok(6));
    assert_eq!(crate::task::lock(machine.kernel.tasks.first_namespaces().names.uts()).host, b"pod-7");
    assert_eq!(machine.text("/proc/sys/kernel/hostname"), "pod-7\n");
    assert_eq!(machine.write(&stranger, "/proc/sys/kernel/hostname", "x"), Err(Errno::EACCES));
    assert_eq!(machine.write(&root, "/proc/sys/kernel/osrelease", "x"), Err(Errno::EACCES));
    assert_eq!(machine.write(&root, "/proc/sys/vm/swappiness", "201"), Err(Errno::EINVAL));
    assert_eq!(machine.write(&root, "/proc/sys/vm/swappiness", "10\n"), Ok(3));
    assert_eq!(machine.text("/proc/sys/vm/swappiness"), "10\n");
    assert_eq!(machine.write(&root, "/proc/sys/net/ipv4/tcp_rmem", "1 2"), Ok(3));
    assert_eq!(machine.text("/proc/sys/net/ipv4/tcp_rmem"), "1\t2\t6291456\n");
    let create = libc::O_CREAT | libc::O_WRONLY;
    assert_eq!(machine.open(&root, "/proc/new", create).err(), Some(Errno::ENOENT));
    assert_eq!(machine.open(&root, "/proc/self/new", create).err(), Some(Errno::ENOENT));
}

#[test]
fn a_process_that_has_gone_is_gone() {
    let machine = machine();
    let other = Task::for_test(&machine.kernel);
    let path = format!("/proc/{}", other.pid());
    let file = machine.open(&Caller::root(), &format!("{path}/stat"), libc::O_RDONLY).unwrap();
    let mut bytes = [0; 512];
    assert!(file.read(&mut bytes).unwrap() > 0);
    assert_eq!(machine.list("/proc").iter().filter(|name| pid(name)).count(), 2);
    assert_eq!(machine.list(&format!("{path}/task")), [other.pid().to_string()]);
    assert!(machine.walk(&Caller::root(), "/proc/self/task/2", true).is_err());
    for strange in ["0", "01", "-1", "4194305", "99999999999"] {
        let path = format!("/proc/{strange}");
        assert_eq!(machine.walk(&Caller::root(), &path, true).err(), Some(Errno::ENOENT), "{strange}");
    }
}

fn pid(name: &str) -> bool {
    name.parse::<u32>().is_ok()
}

#[test]
fn cpu_time_adds_up() {
    let machine = machine();
    let text = machine.text("/proc/stat");
    let numbers = |line: &str| line.split_whitespace().skip(1).map(|n| n.parse::<u64>().unwrap()).collect();
    let all: Vec<u64> = numbers(text.lines().next().unwrap());
    assert_eq!(all.len(), 10);
    let mut sum = vec![0; 10];
    for line in text.lines().skip(1).take_while(|line| line.starts_with("cpu")) {
        let cpu: Vec<u64> = numbers(line);
        sum.iter_mut().zip(cpu).for_each(|(sum, cpu)| *sum += cpu);
    }
    assert_eq!(all, sum);
    let keys = |text: &str| {
        let words = text.lines().map(|line| line.split(' ').next().unwrap().to_owned());
        words.filter(|word| !word.starts_with("cpu")).collect::<Vec<_>>()
    };
    assert_eq!(keys(&text), keys(&host("/proc/stat")));
}

#[test]
fn cpuinfo_has_the_cpus_that_there_are() {
    let host = "processor\t: 0\nflags\t\t: fpu\n\nprocessor\t: 1\nflags\t\t: fpu\n\nprocessor\t: 2\n\n";
    assert_eq!(machine::cpuinfo(host, &[0, 2]), "processor\t: 0\nflags\t\t: fpu\n\nprocessor\t: 2\n\n");
    assert!(machine().text("/proc/cpuinfo").contains("\nflags\t\t: "));
}

#[test]
fn heads_of_tables_are_those_of_the_hosts() {
    let machine = machine();
    for name in ["net/dev", "net/unix", "net/netlink", "net/packet", "net/arp", "net/tcp", "net/udp", "swaps"]
    {
        let path = format!("/proc/{name}");
        let head = |text: &str| text.lines().next().unwrap().trim_end().to_owned();
        assert_eq!(head(&machine.text(&path)), head(&host(&path)), "{name}");
    }
    let words = |text: &str| text.split_whitespace().count();
    assert_eq!(words(&machine.text("/proc/loadavg")), 5);
    assert_eq!(words(&machine.text("/proc/uptime")), 2);
}
