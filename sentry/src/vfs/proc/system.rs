//! Files of the whole system that tell of tasks, times and the kernel (`fs/proc/{stat,loadavg,uptime,version,…}.c`).

use std::fmt::Write as _;
use std::time::Duration;

use super::super::generated::cpus;
use super::super::lock_list;
use super::super::sync::lock;
use super::status::ticks;
use super::{State, SystemText};
use crate::kernel::Kernel;
use crate::task::current;

/// Release of the kernel that programs see, as `uname` tells it.
pub(super) const RELEASE: &str = "6.12.0";
/// Its version.
pub(super) const VERSION: &str = "#1 SMP PREEMPT_DYNAMIC";

/// Path, mode, text.
pub(super) static FILES: &[(&str, u32, SystemText)] = &[
    ("cgroups", 0o444, |_| CGROUPS.into()),
    ("cmdline", 0o444, |_| format!("BOOT_IMAGE=/vmlinuz-{RELEASE} quiet\n").into_bytes()),
    ("consoles", 0o444, |_| Vec::new()),
    ("crypto", 0o444, |_| Vec::new()),
    ("devices", 0o444, |_| DEVICES.into()),
    ("execdomains", 0o444, |_| b"0-0\tLinux           \t[kernel]\n".to_vec()),
    ("fb", 0o444, |_| Vec::new()),
    ("filesystems", 0o444, |_| FILE_SYSTEMS.into()),
    ("kallsyms", 0o444, |_| Vec::new()),
    ("key-users", 0o444, |_| b"    0:     2 2/2 2/1000000 10/25000000\n".to_vec()),
    ("keys", 0o444, |_| Vec::new()),
    ("loadavg", 0o444, loadavg),
    ("locks", 0o444, |_| lock_list::all(current().as_deref())),
    ("misc", 0o444, |_| b"  1 psaux\n".to_vec()),
    ("modules", 0o444, |_| Vec::new()),
    ("pressure/cpu", 0o644, pressure),
    ("pressure/io", 0o644, pressure),
    ("pressure/memory", 0o644, pressure),
    ("stat", 0o444, stat),
    ("sysvipc/msg", 0o444, |_| SYSVIPC_MSG.into()),
    ("sysvipc/sem", 0o444, |_| SYSVIPC_SEM.into()),
    ("sysvipc/shm", 0o444, |_| SYSVIPC_SHM.into()),
    ("tty/drivers", 0o444, |_| TTY_DRIVERS.into()),
    ("tty/ldiscs", 0o444, |_| b"n_tty       0\n".to_vec()),
    ("uptime", 0o444, uptime),
    ("version", 0o444, version),
];

const CGROUPS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
    cpuset\t0\t1\t1\ncpu\t0\t1\t1\ncpuacct\t0\t1\t1\nblkio\t0\t1\t1\nmemory\t0\t1\t1\ndevices\t0\t1\t1\n\
    freezer\t0\t1\t1\nnet_cls\t0\t1\t1\nperf_event\t0\t1\t1\nnet_prio\t0\t1\t1\nhugetlb\t0\t1\t1\npids\t0\t1\t1\n";

const DEVICES: &str = "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n 10 misc\n\
    128 ptm\n136 pts\n\nBlock devices:\n";

const FILE_SYSTEMS: &str = "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tdevtmpfs\nnodev\tdevpts\n\
    nodev\tsockfs\nnodev\tpipefs\nnodev\tramfs\nnodev\toverlay\nnodev\t9p\nnodev\tmqueue\n";

const TTY_DRIVERS: &str = "/dev/tty             /dev/tty        5       0 system:/dev/tty\n\
    /dev/console         /dev/console    5       1 system:console\n\
    /dev/ptmx            /dev/ptmx       5       2 system\n\
    pty_slave            /dev/pts      136 0-1048575 pty:slave\n\
    pty_master           /dev/ptm      128 0-1048575 pty:master\n";

const SYSVIPC_MSG: &str = "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      \
    stime      rtime      ctime\n";
const SYSVIPC_SEM: &str =
    "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n";
const SYSVIPC_SHM: &str = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  \
    cgid      atime      dtime      ctime                   rss                  swap\n";

fn pressure(_: &Kernel) -> Vec<u8> {
    let line = |what| format!("{what} avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
    [line("some"), line("full")].concat().into_bytes()
}

fn version(_: &Kernel) -> Vec<u8> {
    format!("Linux version {RELEASE} (kata@kata) (gcc (GCC) 14.2.0, GNU ld (GNU Binutils) 2.43) {VERSION}\n")
        .into_bytes()
}

impl State {
    /// User and system time of all processes, also of those that were waited for: it never gets less.
    fn cpu_times(&self, kernel: &Kernel) -> (Duration, Duration) {
        let (mut user, mut system) = (Duration::ZERO, Duration::ZERO);
        for pid in kernel.tasks.processes() {
            let Some(group) = kernel.tasks.find_group(pid) else { continue };
            let times = group.cpu_times().plus(&group.children_cpu_times());
            user = user.saturating_add(times.user);
            system = system.saturating_add(times.system);
        }
        let mut most = lock(&self.cpu);
        *most = (most.0.max(user), most.1.max(system));
        *most
    }

    /// The second of real time at which the sandbox began.
    fn boot_time(&self, kernel: &Kernel) -> u64 {
        let began = || kernel.clocks.realtime().saturating_sub(kernel.clocks.monotonic()).as_secs();
        *self.boot_time.get_or_init(began)
    }

    /// How many processes there have been, as far as their numbers tell.
    fn processes(&self, kernel: &Kernel) -> u64 {
        let last = kernel.tasks.processes().last().map_or(0, |pid| u64::from(pid.unsigned_abs()));
        let mut most = lock(&self.processes);
        *most = last.max(*most);
        *most
    }
}

/// Time in which no CPU did anything, of all together.
fn idle(kernel: &Kernel, busy: Duration) -> Duration {
    let all = kernel.clocks.monotonic().saturating_mul(u32::try_from(cpus().len()).unwrap_or(u32::MAX));
    all.saturating_sub(busy)
}

/// Tasks whose own code runs; whoever asks counts.
fn running(kernel: &Kernel) -> usize {
    kernel.tasks.select(|task, _| task.runs().then_some(())).len().saturating_add(1)
}

fn stat(kernel: &Kernel) -> Vec<u8> {
    let (user, system) = kernel.proc.cpu_times(kernel);
    let idle = idle(kernel, user.saturating_add(system));
    let line = |name: &str, user, system, idle| format!("{name} {user} 0 {system} {idle} 0 0 0 0 0 0\n");
    let all = [ticks(user), ticks(system), ticks(idle)];
    let mut text = line("cpu ", all[0], all[1], all[2]);
    let count = cpus().len() as u128;
    for (number, cpu) in (0..).zip(cpus()) {
        // Who ran where is not known: each CPU has its share, the first ones what is over.
        let share = |all: u128| all / count + u128::from(number < all % count);
        text.push_str(&line(&format!("cpu{cpu}"), share(all[0]), share(all[1]), share(all[2])));
    }
    let _ = write!(
        text,
        "intr 0\nctxt 0\nbtime {}\nprocesses {}\nprocs_running {}\nprocs_blocked 0\n\
         softirq 0 0 0 0 0 0 0 0 0 0 0\n",
        kernel.proc.boot_time(kernel),
        kernel.proc.processes(kernel),
        running(kernel),
    );
    text.into_bytes()
}

/// Seconds with two digits behind the point.
fn hundredths(time: Duration) -> String {
    format!("{}.{:02}", time.as_secs(), time.subsec_millis() / 10)
}

fn uptime(kernel: &Kernel) -> Vec<u8> {
    let (user, system) = kernel.proc.cpu_times(kernel);
    let idle = idle(kernel, user.saturating_add(system));
    format!("{} {}\n", hundredths(kernel.clocks.monotonic()), hundredths(idle)).into_bytes()
}

/// Loads are the host's, as in `sysinfo`.
fn loadavg(kernel: &Kernel) -> Vec<u8> {
    let (one, five, fifteen) =
        nix::sys::sysinfo::sysinfo().map_or((0.0, 0.0, 0.0), |host| host.load_average());
    let (running, all) = (running(kernel), kernel.tasks.count());
    let last = kernel.proc.processes(kernel);
    format!("{one:.2} {five:.2} {fifteen:.2} {running}/{all} {last}\n").into_bytes()
}
