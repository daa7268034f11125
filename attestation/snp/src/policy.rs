//! Bit fields of a report: guest policy, platform information, key information.
//!
//! Source: firmware ABI, GUEST_POLICY, PLATFORM_INFO and ATTESTATION_REPORT (offset 0x48).

/// What the guest's owner allows the host to do (GUEST_POLICY).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestPolicy(pub u64);

impl GuestPolicy {
    /// The usual policy: SMT allowed, reserved bit set, all else forbidden.
    pub const DEFAULT: Self = Self(0x3_0000);

    /// Bits that the ABI defines: versions, flags 16 to 25.
    pub const KNOWN_BITS: u64 = 0x3FF_FFFF;

    /// Bits that are set and that this software does not know.
    #[must_use]
    pub const fn unknown_bits(self) -> u64 {
        self.0 & !Self::KNOWN_BITS
    }

    /// Lowest acceptable minor version of the firmware's ABI.
    #[must_use]
    pub const fn abi_minor(self) -> u8 {
        (self.0 & 0xFF) as u8
    }

    /// Lowest acceptable major version of the firmware's ABI.
    #[must_use]
    pub const fn abi_major(self) -> u8 {
        (self.0 >> 8 & 0xFF) as u8
    }

    /// Hyper-threading may be on.
    #[must_use]
    pub const fn smt_allowed(self) -> bool {
        self.bit(16)
    }

    /// Bit 17, which has to be one.
    #[must_use]
    pub const fn reserved_one(self) -> bool {
        self.bit(17)
    }

    /// A migration agent may be associated with the guest.
    #[must_use]
    pub const fn migration_agent_allowed(self) -> bool {
        self.bit(18)
    }

    /// The host may read and write the guest's memory through the firmware.
    #[must_use]
    pub const fn debug_allowed(self) -> bool {
        self.bit(19)
    }

    /// The guest runs on one socket only.
    #[must_use]
    pub const fn single_socket(self) -> bool {
        self.bit(20)
    }

    /// CXL devices may be present.
    #[must_use]
    pub const fn cxl_allowed(self) -> bool {
        self.bit(21)
    }

    /// Memory has to be encrypted with AES-256-XTS.
    #[must_use]
    pub const fn aes_256_xts_required(self) -> bool {
        self.bit(22)
    }

    /// Running average power limit has to be off.
    #[must_use]
    pub const fn rapl_disabled_required(self) -> bool {
        self.bit(23)
    }

    /// Ciphertext hiding has to be on.
    #[must_use]
    pub const fn ciphertext_hiding_required(self) -> bool {
        self.bit(24)
    }

    /// The host may not swap guest pages.
    #[must_use]
    pub const fn page_swap_disabled(self) -> bool {
        self.bit(25)
    }

    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }
}

/// What the platform runs with (PLATFORM_INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlatformInfo(pub u64);

impl PlatformInfo {
    /// Hyper-threading is on.
    #[must_use]
    pub const fn smt_enabled(self) -> bool {
        self.bit(0)
    }

    /// Transparent SME is on.
    #[must_use]
    pub const fn tsme_enabled(self) -> bool {
        self.bit(1)
    }

    /// Memory has error correction.
    #[must_use]
    pub const fn ecc_enabled(self) -> bool {
        self.bit(2)
    }

    /// Running average power limit is off.
    #[must_use]
    pub const fn rapl_disabled(self) -> bool {
        self.bit(3)
    }

    /// Ciphertext hiding is on.
    #[must_use]
    pub const fn ciphertext_hiding(self) -> bool {
        self.bit(4)
    }

    /// The firmware checked that no two addresses name the same memory.
    #[must_use]
    pub const fn alias_check_complete(self) -> bool {
        self.bit(5)
    }

    /// SEV-TIO is on.
    #[must_use]
    pub const fn tio_enabled(self) -> bool {
        self.bit(7)
    }

    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }
}

/// The key that signed a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SigningKey {
    /// Chip endorsement key.
    Vcek,
    /// Endorsement key loaded by the cloud provider.
    Vlek,
    /// The report is not signed.
    None,
    /// A value the ABI does not define.
    Reserved(u8),
}

/// How the report was keyed (offset 0x48).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyInfo(pub u32);

impl KeyInfo {
    /// Bits that the ABI defines.
    pub const KNOWN_BITS: u32 = 0x1F;

    /// The author key digest is valid.
    #[must_use]
    pub const fn author_key_enabled(self) -> bool {
        self.0 & 1 == 1
    }

    /// The chip id is masked.
    #[must_use]
    pub const fn chip_key_masked(self) -> bool {
        self.0 >> 1 & 1 == 1
    }

    /// The signing key.
    #[must_use]
    pub const fn signing_key(self) -> SigningKey {
        match (self.0 >> 2 & 7) as u8 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::None,
            other => SigningKey::Reserved(other),
        }
    }
}
