//! What usually makes the calls that are not there, and what comes of it: for whoever reads a log.

/// Name, and who calls it.
const USUAL: &[(&str, &str)] = &[
    ("acct", "accounting daemons"),
    ("bpf", "tools that load programs into the kernel (bpftrace, cilium); they do not work"),
    ("cachestat", "tools that look at the page cache"),
    ("fanotify_init", "scanners of files; they do not work, inotify is there"),
    ("file_getattr", "recent xfsprogs; they take the ioctl then"),
    ("futex_requeue", "recent C libraries; they take futex then"),
    ("io_uring_setup", "databases and servers that try io_uring, and take epoll or threads then"),
    ("kcmp", "checkpoint tools, systemd and Mesa, which can do without"),
    ("landlock_create_ruleset", "programs that confine themselves where they can; they go on"),
    ("listmount", "recent util-linux; it reads /proc/self/mountinfo then"),
    ("lookup_dcookie", "old profilers"),
    ("map_shadow_stack", "C libraries with shadow stacks, which go on without"),
    ("memfd_secret", "programs that hide keys; they take ordinary memory then"),
    ("migrate_pages", "tools for NUMA, which have one node here"),
    ("modify_ldt", "Wine and old 32-bit programs; they do not work"),
    ("move_pages", "libraries for NUMA, which have one node here"),
    ("mseal", "recent C libraries and browsers, which go on without"),
    ("perf_event_open", "profilers (perf); they do not work, language runtimes go on"),
    ("process_madvise", "memory managers of systems, which go on"),
    ("process_mrelease", "userspace killers of processes, which go on"),
    ("ptrace", "debuggers and tracers (gdb, strace); they do not work"),
    ("quotactl", "tools for quotas"),
    ("statmount", "recent util-linux; it reads /proc/self/mountinfo then"),
    ("swapon", "set-up of a machine"),
    ("uselib", "very old C libraries"),
    ("userfaultfd", "virtual machine monitors, checkpoint tools and some collectors of garbage, which go on"),
    ("vhangup", "login and getty"),
];

/// What usually makes a call that is not there; empty where nobody knows.
pub(crate) fn usual(name: &str) -> &'static str {
    USUAL.iter().find(|(known, _)| *known == name).map_or("", |(_, usual)| usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_exist_are_told_of() {
        for (name, _) in USUAL {
            let number = (0..500).find(|number| crate::syscalls::names::name(*number) == Some(name));
            assert!(number.is_some(), "{name}");
        }
        assert!(usual("ptrace").contains("gdb"));
        assert_eq!(usual("read"), "");
    }
}
