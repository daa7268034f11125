//! Limits of a process (`man 2 getrlimit`).

/// What is limited, with the numbers of `include/uapi/asm-generic/resource.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "names as the manual has them")]
pub enum Resource {
    Cpu = 0,
    FileSize = 1,
    Data = 2,
    Stack = 3,
    Core = 4,
    Resident = 5,
    Processes = 6,
    OpenFiles = 7,
    LockedMemory = 8,
    AddressSpace = 9,
    Locks = 10,
    PendingSignals = 11,
    MessageQueues = 12,
    Nice = 13,
    RealtimePriority = 14,
    RealtimeTime = 15,
}

/// How many there are.
const RESOURCES: usize = 16;
/// No limit (`RLIM_INFINITY`).
pub(super) const INFINITY: u64 = u64::MAX;

/// A limit: what is in force, and how high a program may raise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// In force.
    pub soft: u64,
    /// The highest that may be set without a privilege.
    pub hard: u64,
}

/// All limits of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits([Limit; RESOURCES]);

impl Default for Limits {
    /// As Linux gives them to its first process (`INIT_RLIMITS`), with the usual high bound of open files.
    fn default() -> Self {
        let both = |value| Limit { soft: value, hard: value };
        let mut limits = [both(INFINITY); RESOURCES];
        limits[Resource::Stack as usize].soft = 8 << 20;
        limits[Resource::Core as usize].soft = 0;
        limits[Resource::OpenFiles as usize] = Limit { soft: 1 << 10, hard: 1 << 20 };
        limits[Resource::LockedMemory as usize] = both(8 << 20);
        limits[Resource::PendingSignals as usize] = both(31_000);
        limits[Resource::MessageQueues as usize] = both(819_200);
        limits[Resource::Nice as usize] = both(0);
        limits[Resource::RealtimePriority as usize] = both(0);
        Self(limits)
    }
}

impl Limits {
    /// One of them.
    #[must_use]
    pub fn of(&self, resource: Resource) -> Limit {
        self.0[resource as usize]
    }

    /// By its number; `None` where there is no such limit.
    #[must_use]
    pub fn by_number(&self, number: u64) -> Option<Limit> {
        self.0.get(usize::try_from(number).ok()?).copied()
    }

    /// Sets one by its number; nothing where there is no such limit.
    pub fn set_by_number(&mut self, number: u64, limit: Limit) {
        if let Some(place) = usize::try_from(number).ok().and_then(|number| self.0.get_mut(number)) {
            *place = limit;
        }
    }
}
