//! Files of the whole system that tell of the machine: CPUs, memory, disks (`fs/proc/{cpuinfo,meminfo}.c`, `mm/vmstat.c`).
//!
//! CPUs and memory are the host's, as far as the sandbox may use them; its other numbers do not show.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use super::super::generated::cpus;
use super::SystemText;
use crate::kernel::Kernel;

/// Path, mode, text.
pub(super) static FILES: &[(&str, u32, SystemText)] = &[
    ("buddyinfo", 0o444, buddyinfo),
    ("cpuinfo", 0o444, |_| CPUINFO.clone()),
    ("diskstats", 0o444, |_| Vec::new()),
    ("interrupts", 0o444, interrupts),
    ("iomem", 0o400, |_| Vec::new()),
    ("ioports", 0o400, |_| Vec::new()),
    ("meminfo", 0o444, |_| meminfo()),
    ("mtrr", 0o444, |_| Vec::new()),
    ("pagetypeinfo", 0o400, |_| Vec::new()),
    ("partitions", 0o444, |_| b"major minor  #blocks  name\n\n".to_vec()),
    ("schedstat", 0o444, schedstat),
    ("slabinfo", 0o400, |_| SLABINFO.into()),
    ("softirqs", 0o444, softirqs),
    ("swaps", 0o444, |_| b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".to_vec()),
    ("vmallocinfo", 0o400, |_| Vec::new()),
    ("vmstat", 0o444, vmstat),
    ("zoneinfo", 0o444, zoneinfo),
];

const SLABINFO: &str = "slabinfo - version: 2.1\n# name            <active_objs> <num_objs> <objsize> <objperslab> \
    <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> \
    <sharedavail>\n";

/// The host's, without CPUs that are not the sandbox's. It is read once: on machines with many CPUs it takes long.
static CPUINFO: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let host = crate::outside::cpuinfo().unwrap_or_default();
    let text = cpuinfo(&host, cpus());
    if text.is_empty() { plain_cpuinfo(cpus()) } else { text }.into_bytes()
});

/// The parts of a `cpuinfo` that are about these CPUs.
pub(super) fn cpuinfo(host: &str, cpus: &[usize]) -> String {
    let number = |block: &str| {
        let (key, value) = block.lines().next()?.split_once(':')?;
        if key.trim() == "processor" { value.trim().parse::<usize>().ok() } else { None }
    };
    let blocks = host.split_inclusive("\n\n");
    blocks.filter(|block| number(block).is_some_and(|cpu| cpus.contains(&cpu))).collect()
}

/// Where the host's cannot be read.
fn plain_cpuinfo(cpus: &[usize]) -> String {
    let one = |cpu: &usize| {
        format!(
            "processor\t: {cpu}\nvendor_id\t: unknown\ncpu family\t: 6\nmodel\t\t: 0\nmodel name\t: unknown\n\
             stepping\t: 0\nphysical id\t: 0\nsiblings\t: {0}\ncore id\t\t: {cpu}\ncpu cores\t: {0}\nfpu\t\t: yes\n\
             wp\t\t: yes\nflags\t\t: fpu sse sse2\n\n",
            cpus.len()
        )
    };
    cpus.iter().map(one).collect()
}

/// Keys and values in kB of the host's `meminfo`.
fn host_memory() -> BTreeMap<String, u64> {
    let text = crate::outside::meminfo().unwrap_or_default();
    let line = |line: &str| {
        let (key, value) = line.split_once(':')?;
        Some((key.to_owned(), value.split_whitespace().next()?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Memory of the machine, in kB.
pub(in crate::vfs) struct MachineMemory {
    pub(in crate::vfs) total: u64,
    pub(in crate::vfs) free: u64,
    available: u64,
    buffers: u64,
    cached: u64,
    anonymous: u64,
    shared: u64,
    slab: u64,
}

impl MachineMemory {
    /// As it is now.
    pub(in crate::vfs) fn now() -> Self {
        let host = host_memory();
        let system = nix::sys::sysinfo::sysinfo().ok();
        let of = |key: &str| host.get(key).copied();
        let total = system.as_ref().map(|system| system.ram_total() / 1024).or_else(|| of("MemTotal"));
        let free = system.as_ref().map(|system| system.ram_unused() / 1024).or_else(|| of("MemFree"));
        let (total, free) = (total.unwrap_or(0), free.unwrap_or(0));
        let all = Self {
            total,
            free,
            available: of("MemAvailable").unwrap_or(free).min(total),
            buffers: of("Buffers").unwrap_or(0),
            cached: of("Cached").unwrap_or(0),
            anonymous: of("AnonPages").unwrap_or(0),
            shared: of("Shmem").unwrap_or(0),
            slab: of("SReclaimable").unwrap_or(0),
        };
        match crate::task::current() {
            Some(task) => all.within(task.control_group().memory_left(task.tasks())),
            None => all,
        }
    }

    /// Where a container has a bound: the machine is as large as that. What the host has cached is no concern of it.
    fn within(self, left: Option<(u64, u64)>) -> Self {
        let Some((most, left)) = left.map(|(most, left)| (most / 1024, left / 1024)) else { return self };
        if most >= self.total {
            return self;
        }
        let free = left.min(self.free);
        Self {
            total: most,
            free,
            available: left.min(self.available),
            buffers: 0,
            cached: 0,
            anonymous: most.saturating_sub(left),
            shared: 0,
            slab: 0,
        }
    }

    /// All lines of `meminfo`, in its order.
    pub(in crate::vfs) fn lines(&self) -> Vec<(&'static str, u64)> {
        let file = self.cached.saturating_add(self.buffers).saturating_sub(self.shared);
        let commit = (self.total / 2, self.anonymous.saturating_add(self.shared));
        vec![
            ("MemTotal", self.total),
            ("MemFree", self.free),
            ("MemAvailable", self.available),
            ("Buffers", self.buffers),
            ("Cached", self.cached),
            ("SwapCached", 0),
            ("Active", file / 2),
            ("Inactive", (file - file / 2).saturating_add(self.anonymous).saturating_add(self.shared)),
            ("Active(anon)", 0),
            ("Inactive(anon)", self.anonymous.saturating_add(self.shared)),
            ("Active(file)", file / 2),
            ("Inactive(file)", file - file / 2),
            ("Unevictable", 0),
            ("Mlocked", 0),
            ("SwapTotal", 0),
            ("SwapFree", 0),
            ("Zswap", 0),
            ("Zswapped", 0),
            ("Dirty", 0),
            ("Writeback", 0),
            ("AnonPages", self.anonymous),
            ("Mapped", 0),
            ("Shmem", self.shared),
            ("KReclaimable", self.slab),
            ("Slab", self.slab),
            ("SReclaimable", self.slab),
            ("SUnreclaim", 0),
            ("KernelStack", 0),
            ("PageTables", 0),
            ("SecPageTables", 0),
            ("NFS_Unstable", 0),
            ("Bounce", 0),
            ("WritebackTmp", 0),
            ("CommitLimit", commit.0),
            ("Committed_AS", commit.1),
            ("VmallocTotal", 34_359_738_367),
            ("VmallocUsed", 0),
            ("VmallocChunk", 0),
            ("Percpu", 0),
            ("HardwareCorrupted", 0),
            ("AnonHugePages", 0),
            ("ShmemHugePages", 0),
            ("ShmemPmdMapped", 0),
            ("FileHugePages", 0),
            ("FilePmdMapped", 0),
            ("CmaTotal", 0),
            ("CmaFree", 0),
            ("Unaccepted", 0),
        ]
    }
}

fn meminfo() -> Vec<u8> {
    let memory = MachineMemory::now();
    let mut text = String::new();
    for (key, value) in memory.lines() {
        let _ = writeln!(text, "{:<15} {value:8} kB", format!("{key}:"));
    }
    for key in ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp"] {
        let _ = writeln!(text, "{:<15} {:>7}", format!("{key}:"), 0);
    }
    for (key, value) in
        [("Hugepagesize", 2048), ("Hugetlb", 0), ("DirectMap4k", 0), ("DirectMap2M", memory.total)]
    {
        let _ = writeln!(text, "{:<15} {value:8} kB", format!("{key}:"));
    }
    text.into_bytes()
}

/// A head of one column for each CPU, each `width` wide.
fn cpu_heads(indent: usize, width: usize) -> String {
    let columns: String = cpus().iter().map(|cpu| format!("{:<width$}", format!("CPU{cpu}"))).collect();
    format!("{:indent$}{columns}\n", "")
}

fn interrupts(_: &Kernel) -> Vec<u8> {
    let mut text = cpu_heads(12, 11);
    for (name, what) in [
        ("NMI", "Non-maskable interrupts"),
        ("LOC", "Local timer interrupts"),
        ("RES", "Rescheduling interrupts"),
        ("CAL", "Function call interrupts"),
        ("TLB", "TLB shootdowns"),
    ] {
        let zeros: String = cpus().iter().map(|_| format!("{:10} ", 0)).collect();
        let _ = writeln!(text, "{name:>4}: {zeros}  {what}");
    }
    let _ = write!(text, " ERR:          0\n MIS:          0\n");
    text.into_bytes()
}

fn softirqs(_: &Kernel) -> Vec<u8> {
    let mut text = cpu_heads(20, 11);
    for name in ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"]
    {
        let zeros: String = cpus().iter().map(|_| format!(" {:10}", 0)).collect();
        let _ = writeln!(text, "{name:>12}:{zeros}");
    }
    text.into_bytes()
}

/// Version 17: no domains, as of a kernel without `CONFIG_SCHEDSTATS` switched on.
fn schedstat(kernel: &Kernel) -> Vec<u8> {
    let mut text = format!("version 17\ntimestamp {}\n", kernel.clocks.monotonic().as_millis());
    for cpu in cpus() {
        let _ = writeln!(text, "cpu{cpu} 0 0 0 0 0 0 0 0 0");
    }
    text.into_bytes()
}

/// Pages of all sizes: what is free, in the largest blocks.
fn buddyinfo(_: &Kernel) -> Vec<u8> {
    let blocks = MachineMemory::now().free / 4096;
    let zeros: String = (0..10).map(|_| format!("{:6} ", 0)).collect();
    format!("Node 0, zone   Normal {zeros}{blocks:6} \n").into_bytes()
}

fn vmstat(_: &Kernel) -> Vec<u8> {
    let memory = MachineMemory::now();
    let pages = |kilobytes: u64| kilobytes / 4;
    let file = memory.cached.saturating_add(memory.buffers).saturating_sub(memory.shared);
    let known = [
        ("nr_free_pages", pages(memory.free)),
        ("nr_zone_inactive_anon", pages(memory.anonymous)),
        ("nr_zone_active_anon", 0),
        ("nr_zone_inactive_file", pages(file) / 2),
        ("nr_zone_active_file", pages(file) / 2),
        ("nr_inactive_anon", pages(memory.anonymous)),
        ("nr_active_anon", 0),
        ("nr_inactive_file", pages(file) / 2),
        ("nr_active_file", pages(file) / 2),
        ("nr_slab_reclaimable", pages(memory.slab)),
        ("nr_anon_pages", pages(memory.anonymous)),
        ("nr_file_pages", pages(memory.cached.saturating_add(memory.buffers))),
        ("nr_shmem", pages(memory.shared)),
    ];
    let zeros = [
        "nr_unevictable",
        "nr_mlock",
        "nr_slab_unreclaimable",
        "nr_mapped",
        "nr_dirty",
        "nr_writeback",
        "nr_dirtied",
        "nr_written",
        "nr_kernel_stack",
        "nr_page_table_pages",
        "numa_hit",
        "numa_miss",
        "numa_foreign",
        "numa_local",
        "numa_other",
        "pgpgin",
        "pgpgout",
        "pswpin",
        "pswpout",
        "pgalloc_normal",
        "pgfree",
        "pgactivate",
        "pgdeactivate",
        "pgfault",
        "pgmajfault",
        "pgrefill",
        "pgreuse",
        "pgsteal_kswapd",
        "pgsteal_direct",
        "pgscan_kswapd",
        "pgscan_direct",
        "allocstall_normal",
        "drop_pagecache",
        "drop_slab",
        "oom_kill",
        "compact_stall",
        "compact_fail",
        "compact_success",
        "thp_fault_alloc",
        "thp_collapse_alloc",
        "unevictable_pgs_culled",
        "swap_ra",
        "swap_ra_hit",
    ];
    let mut text = String::new();
    for (key, value) in known.into_iter().chain(zeros.map(|key| (key, 0))) {
        let _ = writeln!(text, "{key} {value}");
    }
    text.into_bytes()
}

fn zoneinfo(_: &Kernel) -> Vec<u8> {
    let memory = MachineMemory::now();
    let (free, all) = (memory.free / 4, memory.total / 4);
    format!(
        "Node 0, zone   Normal\n  pages free     {free}\n        boost    0\n        min      1024\n        \
         low      2048\n        high     3072\n        promo    4096\n        spanned  {all}\n        present  \
         {all}\n        managed  {all}\n        cma      0\n        protection: (0, 0, 0, 0, 0)\n      \
         nr_free_pages {free}\n  node_unreclaimable:  0\n  start_pfn:           0\n"
    )
    .into_bytes()
}
