//! How large a sandbox's VM is: the pod's limits plus what the guest itself needs.
//!
//! The user does no arithmetic: a pod with a memory limit of 256 MiB gets 256 MiB for its containers, and the guest's
//! kernel and agent get [`Overhead::memory_mib`] beside it. Without a limit the node's defaults apply.

use serde::{Deserialize, Serialize};

/// A pod's limits, as far as they are known when its VM starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time in thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
}

impl Limits {
    /// From an OCI quota and period, and a memory limit; zero and negative values mean "no limit".
    #[must_use]
    pub fn from_oci(quota: Option<i64>, period: Option<u64>, memory: Option<i64>) -> Self {
        let quota = quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0);
        let period = period.filter(|period| *period > 0).unwrap_or(100_000);
        Self {
            cpu_millis: quota.map(|quota| quota.saturating_mul(1000) / period),
            memory_bytes: memory.and_then(|memory| u64::try_from(memory).ok()).filter(|memory| *memory > 0),
        }
    }

    /// `other` where this one has no limit.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.or(other.cpu_millis),
            memory_bytes: self.memory_bytes.or(other.memory_bytes),
        }
    }
}

/// What the guest needs beside its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overhead {
    /// MiB for the guest's kernel, page tables and agent. Measured: an idle guest of 256 MiB has some 190 MiB free.
    pub memory_mib: u64,
    /// MiB for containers when the pod has no limit.
    pub default_memory_mib: u64,
    /// vCPUs when the pod has no limit.
    pub default_vcpus: u8,
}

impl Default for Overhead {
    fn default() -> Self {
        Self { memory_mib: 96, default_memory_mib: 256, default_vcpus: 1 }
    }
}

/// Size of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// vCPUs, 1 to 64.
    pub vcpus: u8,
    /// MiB of guest memory, a multiple of 2.
    pub memory_mib: u64,
}

/// The size for these limits.
#[must_use]
pub fn size(limits: Limits, overhead: &Overhead) -> Size {
    const MIB: u64 = 1 << 20;
    let vcpus = limits.cpu_millis.map_or(u64::from(overhead.default_vcpus), |millis| millis.div_ceil(1000));
    let containers = limits.memory_bytes.map_or(overhead.default_memory_mib, |bytes| bytes.div_ceil(MIB));
    let memory_mib = containers.saturating_add(overhead.memory_mib).clamp(128, 1 << 20).next_multiple_of(2);
    Size { vcpus: u8::try_from(vcpus.clamp(1, 64)).unwrap_or(64), memory_mib }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_a_size_with_no_arithmetic_left_to_the_user() {
        let overhead = Overhead::default();
        let of = |limits| size(limits, &overhead);
        assert_eq!(of(Limits::default()), Size { vcpus: 1, memory_mib: 352 });
        let limits = Limits::from_oci(Some(150_000), Some(100_000), Some(256 << 20));
        assert_eq!(of(limits), Size { vcpus: 2, memory_mib: 352 });
        // one byte more than a MiB costs a MiB, never less than the limit
        let limits = Limits::from_oci(None, None, Some((256 << 20) + 1));
        assert_eq!(of(limits).memory_mib, 354);
    }

    #[test]
    fn no_limit_is_not_a_limit_of_zero() {
        assert_eq!(Limits::from_oci(Some(-1), Some(0), Some(0)), Limits::default());
        assert_eq!(Limits::from_oci(Some(0), None, Some(-1)), Limits::default());
    }

    #[test]
    fn absurd_limits_stay_in_range() {
        let limits = Limits { cpu_millis: Some(u64::MAX), memory_bytes: Some(u64::MAX) };
        assert_eq!(size(limits, &Overhead::default()), Size { vcpus: 64, memory_mib: 1 << 20 });
        let tiny = Limits { cpu_millis: Some(1), memory_bytes: Some(1) };
        assert_eq!(size(tiny, &Overhead::default()).memory_mib, 128);
    }
}
