//! The kernel of one sandbox: what all its tasks share.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Noted;
use std::sync::{Arc, Mutex};

use crate::error::Errno;
use crate::loader::Vdso;
use crate::net::Net;
use crate::platform::Platform;
use crate::syscalls::{self, Entry, NUMBERS};
use crate::task::{Tasks, Workers, lock};
use crate::time::{Clocks, Reading, Timers};

/// Programs and calls that are noted as unknown; more are not told apart.
const NOTED: usize = 4096;

/// The kernel of one sandbox.
pub struct Kernel {
    /// How guest code runs.
    pub platform: Box<dyn Platform>,
    /// Every task.
    pub tasks: Arc<Tasks>,
    /// What time it is.
    pub clocks: Clocks,
    /// Everything that goes off at a time.
    pub timers: Timers,
    /// Threads that serve guest threads.
    pub workers: Workers,
    /// What `/proc` shows the same wherever it is mounted.
    pub(crate) proc: crate::vfs::proc::State,
    /// System calls by number.
    pub(crate) calls: Box<[Option<Entry>; NUMBERS]>,
    unknown_calls: Mutex<BTreeMap<(Vec<u8>, u64), u64>>,
    /// The network that the sandbox began with.
    pub net: Arc<Net>,
    /// Who waits for words of guest memory.
    pub futexes: Arc<crate::mm::futex::Table>,
    /// What programs get that are run from now on.
    vdso: Mutex<Option<Vdso>>,
}

impl Kernel {
    /// With no task yet.
    #[must_use]
    pub fn new(platform: Box<dyn Platform>) -> Arc<Self> {
        Self::with_tasks(platform, Tasks::default())
    }

    /// With this room for tasks.
    #[must_use]
    pub fn with_tasks(platform: Box<dyn Platform>, tasks: Tasks) -> Arc<Self> {
        let net = Arc::clone(tasks.first_namespaces().net.net());
        let clocks = Clocks::new();
        let vdso = new_vdso(platform.as_ref(), &clocks).inspect_err(|errno| {
            tracing::warn!(%errno, "programs get no vDSO: each look at a clock is a system call");
        });
        Arc::new(Self {
            platform,
            tasks: Arc::new(tasks),
            clocks,
            timers: Timers::default(),
            workers: Workers::default(),
            futexes: Arc::default(),
            net,
            proc: crate::vfs::proc::State::default(),
            calls: Box::new(syscalls::table()),
            unknown_calls: Mutex::default(),
            vdso: Mutex::new(vdso.ok()),
        })
    }

    /// The vDSO of programs that are run now.
    pub(crate) fn vdso(&self) -> Option<Vdso> {
        lock(&self.vdso).clone()
    }

    /// Lets clocks go on from what they showed elsewhere ([`Clocks::go_on_from`]). `false` where a program has them as they are.
    ///
    /// # Errors
    /// EINVAL: no clock shows that. What the host says when it has no memory for a vDSO.
    pub(crate) fn go_on_from(&self, saved: Reading) -> Result<bool, Errno> {
        let mut vdso = lock(&self.vdso);
        if vdso.as_ref().is_some_and(Vdso::is_used) {
            return Ok(false);
        }
        self.clocks.go_on_from(saved)?;
        *vdso = Some(new_vdso(self.platform.as_ref(), &self.clocks)?);
        Ok(true)
    }

    /// Names the machine.
    pub fn set_host_name(&self, name: &[u8]) {
        lock(self.tasks.first_namespaces().names.uts()).host = name.to_vec();
    }

    /// Says, for each program and call, that a call is not there: the first time, the tenth, the hundredth and so on (`kata-cc explain --calls`
    /// reads these lines).
    pub(crate) fn note_unknown_call(&self, program: &[u8], number: u64) {
        let Some(count) = self.count_unknown_call(program, number) else { return };
        if count.checked_ilog10().is_some_and(|digits| 10_u64.pow(digits) == count) {
            // The name is a guest's: with quotes and escapes it cannot look like another line.
            let program = &*String::from_utf8_lossy(program);
            let name = syscalls::names::name(number).unwrap_or("?");
            let usual = syscalls::absent::usual(name);
            tracing::info!(target: "kata_cc_sentry::calls", program, number, name, count, usual, "system call that is not there");
        }
    }

    /// How often a program made a call that is not there; `None` where as many are counted as may be.
    fn count_unknown_call(&self, program: &[u8], number: u64) -> Option<u64> {
        let mut noted = lock(&self.unknown_calls);
        let room = noted.len() < NOTED;
        match noted.entry((program.to_vec(), number)) {
            Noted::Vacant(_) if !room => None,
            entry => {
                let count = entry.or_insert(0);
                *count = count.saturating_add(1);
                Some(*count)
            }
        }
    }
}

fn new_vdso(platform: &dyn Platform, clocks: &Clocks) -> Result<Vdso, Errno> {
    Vdso::new(platform.host_vdso(), clocks.coarse(), clocks.differences())
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.timers.close();
    }
}

mod for_test {
    use std::sync::Arc;

    use super::Kernel;
    use crate::task::{Credentials, Limits, NewProcess, Task};
    use crate::testing::flat;

    impl Kernel {
        /// A kernel whose guests have no code, for tests and fuzzing.
        #[must_use]
        pub fn for_test() -> Arc<Self> {
            Self::new(flat())
        }

        /// One with room for so many tasks.
        #[must_use]
        pub fn with_tasks_for_test(limit: usize) -> Arc<Self> {
            Self::with_tasks(flat(), crate::task::Tasks::new(limit))
        }
    }

    impl Task {
        /// A process of root without files, for tests and fuzzing; the first one of a kernel is number 1. It is not run.
        ///
        /// # Panics
        /// When the kernel has as many tasks as it may.
        #[must_use]
        #[allow(clippy::unwrap_used, reason = "of tests")]
        pub fn for_test(kernel: &Kernel) -> Arc<Self> {
            let new = NewProcess {
                credentials: Credentials::root(),
                limits: Limits::default(),
                files: Arc::default(),
                fs: Arc::default(),
                space: Arc::default(),
                namespaces: None,
                container: 0,
            };
            kernel.new_process(new).unwrap()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clocks_are_set_as_long_as_no_program_has_them() {
        let kernel = Kernel::for_test();
        let saved = Reading { monotonic: Duration::from_secs(1000), raw: Duration::from_secs(1000) };
        assert_eq!(kernel.go_on_from(saved), Ok(true));
        assert!(kernel.clocks.monotonic() > saved.monotonic);
        // One that is about to be loaded, or runs.
        let loaded = kernel.vdso();
        assert_eq!(kernel.go_on_from(Reading::default()), Ok(false));
        assert!(kernel.clocks.monotonic() > saved.monotonic);
        drop(loaded);
        assert_eq!(kernel.go_on_from(saved), Ok(true));
    }

    #[test]
    fn calls_that_are_not_there_are_counted_for_each_program() {
        let kernel = Kernel::for_test();
        let count = |program: &str, number| kernel.count_unknown_call(program.as_bytes(), number);
        assert_eq!(
            [count("a", 101), count("a", 101), count("b", 101), count("a", 321)]
                .map(Option::unwrap_or_default),
            [1, 2, 1, 1]
        );
        for number in 0..NOTED as u64 {
            let _ = count("c", number);
        }
        assert_eq!((count("d", 1), count("a", 101)), (None, Some(3)));
    }
}
