//! CPUs and the one node of memory (`Documentation/ABI/testing/sysfs-devices-system-cpu`, `…/sysfs-devices-node`).

use std::fmt::Write as _;

use super::super::generated::{Branch, cpus, mask, ranges};
use super::super::proc::MachineMemory;

const CPU: &str = "devices/system/cpu";
const NODE: &str = "devices/system/node";

/// Most levels and kinds of caches that are looked for.
const CACHES: usize = 8;

/// Files of a cache.
const CACHE: [&str; 10] = [
    "coherency_line_size",
    "id",
    "level",
    "number_of_sets",
    "physical_line_partition",
    "shared_cpu_list",
    "shared_cpu_map",
    "size",
    "type",
    "ways_of_associativity",
];

/// A file of the host about its CPUs.
fn host(path: &str) -> Option<String> {
    crate::outside::cpu_file(path)
}

/// Numbers that a text like `0-3,8` names, as far as the sandbox has them.
pub(super) fn own(list: &str) -> Vec<usize> {
    let parts = list.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let parts: Vec<_> = parts.collect();
    let has = |cpu: &&usize| parts.iter().any(|(first, last)| (first..=last).contains(cpu));
    cpus().iter().filter(has).copied().collect()
}

/// CPUs that are one thing together, for a file of the host that lists them; else the CPU alone.
fn together(path: &str, alone: usize) -> Vec<usize> {
    let list = host(path).map(|list| own(&list)).unwrap_or_default();
    if list.is_empty() { vec![alone] } else { list }
}

fn line(text: &str) -> String {
    format!("{text}\n")
}

/// Puts CPUs and memory into a tree.
pub(super) fn build(root: &mut Branch) {
    let all = line(&ranges(cpus()));
    for name in ["online", "possible", "present"] {
        root.put(&format!("{CPU}/{name}"), Branch::fixed(all.clone()));
    }
    for (name, text) in [("offline", "\n"), ("isolated", "\n"), ("kernel_max", "8191\n"), ("modalias", "\n")]
    {
        root.put(&format!("{CPU}/{name}"), Branch::fixed(text));
    }
    root.put(&format!("{CPU}/nohz_full"), Branch::fixed("\n"));
    let threads = cpus().iter().any(|cpu| siblings(*cpu).len() > 1);
    root.put(&format!("{CPU}/smt/active"), Branch::fixed(line(if threads { "1" } else { "0" })));
    root.put(&format!("{CPU}/smt/control"), Branch::fixed(if threads { "on\n" } else { "notsupported\n" }));
    for cpu in cpus() {
        one(root, *cpu);
    }
    node(root);
}

fn siblings(cpu: usize) -> Vec<usize> {
    together(&format!("cpu{cpu}/topology/thread_siblings_list"), cpu)
}

/// A CPU.
fn one(root: &mut Branch, cpu: usize) {
    let at = format!("{CPU}/cpu{cpu}");
    if cpu != 0 {
        // The first cannot be switched off, so it has no such file.
        root.put(&format!("{at}/online"), Branch::fixed("1\n"));
    }
    root.put(&format!("{at}/node0"), Branch::Link(b"../../node/node0".to_vec()));
    root.put(&format!("{at}/subsystem"), Branch::Link(b"../../../../bus/cpu".to_vec()));
    root.put(&format!("bus/cpu/devices/cpu{cpu}"), Branch::Link(format!("../../../{at}").into_bytes()));
    let numbers = ["core_id", "physical_package_id", "die_id", "cluster_id"];
    for name in numbers {
        let text = host(&format!("cpu{cpu}/topology/{name}"));
        root.put(&format!("{at}/topology/{name}"), Branch::fixed(text.unwrap_or_else(|| "0\n".to_owned())));
    }
    for (file, names) in [
        ("thread_siblings_list", ["thread_siblings", "core_cpus"]),
        ("core_siblings_list", ["core_siblings", "package_cpus"]),
        ("die_cpus_list", ["die_cpus", "cluster_cpus"]),
    ] {
        let cpus = together(&format!("cpu{cpu}/topology/{file}"), cpu);
        for name in names {
            root.put(&format!("{at}/topology/{name}"), Branch::fixed(line(&mask(&cpus))));
            root.put(&format!("{at}/topology/{name}_list"), Branch::fixed(line(&ranges(&cpus))));
        }
    }
    for index in 0..CACHES {
        cache(root, cpu, index);
    }
}

/// One of the caches of a CPU, where the host tells of it.
fn cache(root: &mut Branch, cpu: usize, index: usize) {
    let shared = format!("cpu{cpu}/cache/index{index}/shared_cpu_list");
    if host(&shared).is_none() {
        return;
    }
    let sharing = together(&shared, cpu);
    for name in CACHE {
        let path = format!("cpu{cpu}/cache/index{index}/{name}");
        let text = match name {
            "shared_cpu_list" => Some(line(&ranges(&sharing))),
            "shared_cpu_map" => Some(line(&mask(&sharing))),
            _ => host(&path),
        };
        if let Some(text) = text {
            root.put(&format!("{CPU}/{path}"), Branch::fixed(text));
        }
    }
}

/// The node.
fn node(root: &mut Branch) {
    for name in ["has_cpu", "has_memory", "has_normal_memory", "online", "possible"] {
        root.put(&format!("{NODE}/{name}"), Branch::fixed("0\n"));
    }
    let at = format!("{NODE}/node0");
    root.put(&format!("{at}/cpulist"), Branch::fixed(line(&ranges(cpus()))));
    root.put(&format!("{at}/cpumap"), Branch::fixed(line(&mask(cpus()))));
    root.put(&format!("{at}/distance"), Branch::fixed("10\n"));
    root.put(&format!("{at}/meminfo"), Branch::text(|| Ok(memory())));
    root.put(&format!("{at}/vmstat"), Branch::fixed("nr_free_pages 0\n"));
    root.put(
        &format!("{at}/numastat"),
        Branch::fixed(
            "numa_hit 0\nnuma_miss 0\nnuma_foreign 0\ninterleave_hit 0\nlocal_node 0\nother_node 0\n",
        ),
    );
    for cpu in cpus() {
        root.put(&format!("{at}/cpu{cpu}"), Branch::Link(format!("../../cpu/cpu{cpu}").into_bytes()));
    }
}

/// `meminfo` of the node: lines of the machine's, as all memory is the node's.
fn memory() -> Vec<u8> {
    let memory = MachineMemory::now();
    let mut text = String::new();
    for (key, value) in [
        ("MemTotal", memory.total),
        ("MemFree", memory.free),
        ("MemUsed", memory.total.saturating_sub(memory.free)),
    ] {
        let _ = writeln!(text, "Node 0 {:<15} {value:8} kB", format!("{key}:"));
    }
    let wanted = ["Active", "Inactive", "Dirty", "AnonPages", "Shmem", "Slab", "SReclaimable"];
    for (key, value) in memory.lines().into_iter().filter(|(key, _)| wanted.contains(key)) {
        let _ = writeln!(text, "Node 0 {:<15} {value:8} kB", format!("{key}:"));
    }
    text.into_bytes()
}
