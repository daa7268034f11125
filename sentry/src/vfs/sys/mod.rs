//! `/sys` (`man 5 sysfs`): what programs look for in a machine without devices of its own. Nothing in it can be changed.
//!
//! CPUs have the numbers that they have on the host, so that `sched_getaffinity` and these files agree; how they hang together
//! (`topology`, `cache`) is what the host says.

mod cpu;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use super::generated::{Branch, Node, Shared};
use super::{
    Attributes, Caller, Dentry, DirEntry, FileKind, FileSystem, FsStatus, Inode, NewNode, Tree, generated,
};
use crate::error::Errno;

/// `SYSFS_MAGIC`.
const MAGIC: u64 = 0x6265_6572;

/// The file system.
pub struct Sysfs {
    root: Arc<Root>,
}

impl Sysfs {
    /// One more, ready to be mounted.
    #[must_use]
    pub fn tree() -> Arc<Dentry> {
        let root = Root { shared: Arc::new(Shared::new()), branch: OnceLock::new() };
        Tree::of(Box::new(Self { root: Arc::new(root) }))
    }
}

impl FileSystem for Sysfs {
    fn name(&self) -> &'static str {
        "sysfs"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.root) as Arc<dyn Inode>
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        Ok(FsStatus { magic: MAGIC, block_size: 4096, ..FsStatus::default() })
    }

    fn read_only(&self) -> bool {
        true
    }
}

/// The top folder, put together when somebody first looks into it.
struct Root {
    shared: Arc<Shared>,
    branch: OnceLock<Arc<Branch>>,
}

impl Root {
    fn branch(&self) -> &Arc<Branch> {
        self.branch.get_or_init(|| Arc::new(build()))
    }
}

impl Inode for Root {
    fn kind(&self) -> FileKind {
        FileKind::Folder
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        Ok(Attributes { inode: 1, ..self.shared.attributes(b"", FileKind::Folder, 0o555) })
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let branch = Arc::clone(self.branch().child(name).ok_or(Errno::ENOENT)?);
        Ok(Arc::new(Node { shared: Arc::clone(&self.shared), path: generated::join(b"", name), branch }))
    }

    fn create(&self, _name: &[u8], new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        Err(generated::cannot_create(new))
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        Ok(self.branch().list(b""))
    }

    fn readlink(&self, _caller: &Caller) -> Result<Vec<u8>, Errno> {
        Err(Errno::EINVAL)
    }
}

/// Folders with nothing in them.
const FOLDERS: &[&str] = &[
    "block",
    "bus/cpu/devices",
    "bus/node/devices",
    "bus/pci/devices",
    "bus/pci/drivers",
    "bus/usb/devices",
    "class/block",
    "class/dmi",
    "class/drm",
    "class/hwmon",
    "class/input",
    "class/power_supply",
    "class/thermal",
    "class/tty",
    "dev/block",
    "dev/char",
    "firmware",
    "fs/cgroup",
    "fs/bpf",
    "fs/pstore",
    "hypervisor",
    "kernel/debug",
    "kernel/iommu_groups",
    "kernel/security",
    "kernel/slab",
    "kernel/tracing",
    "module",
];

/// Files that say the same always.
const FILES: &[(&str, &str)] = &[
    ("kernel/address_bits", "64\n"),
    ("kernel/cpu_byteorder", "little\n"),
    ("kernel/fscaps", "1\n"),
    ("kernel/kexec_crash_loaded", "0\n"),
    ("kernel/kexec_loaded", "0\n"),
    ("kernel/profiling", "0\n"),
    ("kernel/rcu_expedited", "0\n"),
    ("kernel/rcu_normal", "0\n"),
    ("kernel/uevent_seqnum", "0\n"),
    ("kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n"),
    ("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n"),
    ("kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages", "0\n"),
    ("kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "0\n"),
    ("kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages", "0\n"),
    ("kernel/mm/ksm/run", "0\n"),
    ("kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never\n"),
    ("kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ("kernel/mm/transparent_hugepage/hpage_pmd_size", "2097152\n"),
    ("kernel/mm/transparent_hugepage/khugepaged/defrag", "1\n"),
    ("kernel/mm/transparent_hugepage/shmem_enabled", "always within_size advise [never] deny force\n"),
    ("kernel/mm/transparent_hugepage/use_zero_page", "1\n"),
    ("power/state", "\n"),
];

/// Files of the loopback device.
const LOOPBACK: &[(&str, &str)] = &[
    ("addr_assign_type", "0\n"),
    ("addr_len", "6\n"),
    ("address", "00:00:00:00:00:00\n"),
    ("broadcast", "00:00:00:00:00:00\n"),
    ("carrier", "1\n"),
    ("carrier_changes", "0\n"),
    ("dev_id", "0x0\n"),
    ("dev_port", "0\n"),
    ("dormant", "0\n"),
    ("flags", "0x9\n"),
    ("ifalias", "\n"),
    ("ifindex", "1\n"),
    ("iflink", "1\n"),
    ("link_mode", "0\n"),
    ("mtu", "65536\n"),
    ("name_assign_type", "2\n"),
    ("netdev_group", "0\n"),
    ("operstate", "unknown\n"),
    ("proto_down", "0\n"),
    ("tx_queue_len", "1000\n"),
    ("type", "772\n"),
    ("uevent", "INTERFACE=lo\nIFINDEX=1\n"),
];

/// What is counted of a network device.
const COUNTERS: &[&str] = &[
    "collisions",
    "multicast",
    "rx_bytes",
    "rx_compressed",
    "rx_crc_errors",
    "rx_dropped",
    "rx_errors",
    "rx_fifo_errors",
    "rx_frame_errors",
    "rx_length_errors",
    "rx_missed_errors",
    "rx_nohandler",
    "rx_over_errors",
    "rx_packets",
    "tx_aborted_errors",
    "tx_bytes",
    "tx_carrier_errors",
    "tx_compressed",
    "tx_dropped",
    "tx_errors",
    "tx_fifo_errors",
    "tx_heartbeat_errors",
    "tx_packets",
    "tx_window_errors",
];

fn build() -> Branch {
    let mut root = Branch::folder();
    for path in FOLDERS {
        root.put_folder(path);
    }
    for (path, text) in FILES {
        root.put(path, Branch::fixed(*text));
    }
    let lo = "devices/virtual/net/lo";
    for (name, text) in LOOPBACK {
        root.put(&format!("{lo}/{name}"), Branch::fixed(*text));
    }
    for name in COUNTERS {
        root.put(&format!("{lo}/statistics/{name}"), Branch::fixed("0\n"));
    }
    root.put_folder(&format!("{lo}/queues/rx-0"));
    root.put_folder(&format!("{lo}/queues/tx-0"));
    root.put(&format!("{lo}/subsystem"), Branch::Link(b"../../../../class/net".to_vec()));
    root.put("class/net/lo", Branch::Link(b"../../devices/virtual/net/lo".to_vec()));
    cpu::build(&mut root);
    root
}
