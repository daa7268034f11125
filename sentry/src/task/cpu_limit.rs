//! `RLIMIT_CPU`: SIGXCPU once a process has used its seconds, and again each second; SIGKILL at the hard limit
//! (`check_process_timers` in `kernel/time/posix-cpu-timers.c`).

use std::sync::Arc;
use std::time::Duration;

use super::limits::INFINITY;
use super::signal::SignalInfo;
use super::{Limit, Resource, ThreadGroup};
use crate::kernel::Kernel;
use crate::time::Setting;

/// Sets the alarm for the limit that is in force, or calls it off. After each change of the limit, and for each new process.
pub(crate) fn watch_cpu_limit(kernel: &Kernel, group: &Arc<ThreadGroup>) {
    let limit = group.limits().of(Resource::Cpu);
    let timer = {
        let mut timers = group.timers();
        timers.cpu_limit((&kernel.timers, kernel.clocks.clone()), group, another_second)
    };
    let setting = if limit.soft == INFINITY {
        Setting::default()
    } else {
        // 0 stands for 1 (`update_rlimit_cpu`).
        Setting { value: Duration::from_secs(limit.soft.max(1)), interval: Duration::from_secs(1) }
    };
    timer.set(setting, true);
}

/// What a process gets that has used so much, and its soft limit from then on.
fn due(limit: Limit, used: Duration) -> Option<(i32, u64)> {
    let reached = |seconds: u64| seconds != INFINITY && used >= Duration::from_secs(seconds);
    if reached(limit.hard) {
        Some((libc::SIGKILL, limit.soft))
    } else if reached(limit.soft) {
        Some((libc::SIGXCPU, limit.soft.saturating_add(1)))
    } else {
        None
    }
}

fn another_second(group: &ThreadGroup) {
    let used = group.cpu_times().total();
    let signal = group.change_limits(|limits| {
        let limit = limits.of(Resource::Cpu);
        let (signal, soft) = due(limit, used)?;
        limits.set_by_number(Resource::Cpu as u64, Limit { soft: soft.min(limit.hard), ..limit });
        Some(signal)
    });
    if let Some(signal) = signal {
        // A process that is gone needs none.
        let _ = group.send_signal(SignalInfo::kernel(signal));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_past_the_soft_limit_is_told_and_the_hard_one_ends_it() {
        let limit = |soft, hard| Limit { soft, hard };
        let at = Duration::from_secs;
        assert_eq!(due(limit(1, 3), Duration::from_millis(999)), None);
        assert_eq!(due(limit(1, 3), at(1)), Some((libc::SIGXCPU, 2)));
        assert_eq!(due(limit(2, 3), at(2)), Some((libc::SIGXCPU, 3)));
        assert_eq!(due(limit(3, 3), at(3)), Some((libc::SIGKILL, 3)));
        assert_eq!(due(limit(1, INFINITY), at(9)), Some((libc::SIGXCPU, 2)));
        assert_eq!(due(limit(INFINITY, INFINITY), at(9)), None);
    }
}
