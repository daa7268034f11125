//! Bit fields of a trust domain (TDX module base architecture, "TD attributes").

/// `ATTRIBUTES` of a trust domain, fixed before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TdAttributes(pub u64);

impl TdAttributes {
    /// Bits 7:0, the group for which any set bit means that the domain is not to be trusted.
    pub const UNTRUSTED: u64 = 0xFF;

    /// From the bytes of the report (little-endian).
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }

    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// The host may read and change the domain's state.
    #[must_use]
    pub const fn debug(self) -> bool {
        self.bit(0)
    }

    /// Any bit of the untrusted group is set: debugged or profiled by the host.
    #[must_use]
    pub const fn untrusted(self) -> bool {
        self.0 & Self::UNTRUSTED != 0
    }

    /// Violations of the secure page table are no exception in the guest: needed to be safe from page remapping.
    #[must_use]
    pub const fn septve_disable(self) -> bool {
        self.bit(28)
    }

    /// The domain may be migrated to another platform.
    #[must_use]
    pub const fn migratable(self) -> bool {
        self.bit(29)
    }

    /// Supervisor protection keys may be used.
    #[must_use]
    pub const fn protection_keys(self) -> bool {
        self.bit(30)
    }

    /// Key locker may be used.
    #[must_use]
    pub const fn key_locker(self) -> bool {
        self.bit(31)
    }

    /// Performance monitoring may be used.
    #[must_use]
    pub const fn perfmon(self) -> bool {
        self.bit(63)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_specification_says() {
        let usual = TdAttributes::from_bytes([0, 0, 0, 0x10, 0, 0, 0, 0]);
        assert!(usual.septve_disable() && !usual.debug() && !usual.untrusted() && !usual.migratable());
        assert!(TdAttributes(1).debug() && TdAttributes(0x20).untrusted());
        assert!(TdAttributes(1 << 29).migratable() && TdAttributes(1 << 30).protection_keys());
        assert!(TdAttributes(1 << 31).key_locker() && TdAttributes(1 << 63).perfmon());
    }
}
