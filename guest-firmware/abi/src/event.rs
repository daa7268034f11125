//! What stage0 measures into the runtime registers of TDX: which register, and the data of the event, from which
//! the digest follows. The firmware writes by this and the measurement code predicts by this.
//!
//! | what | register | `MrIndex` in the log | data of the event |
//! |---|---|---|---|
//! | boot block | RTMR0 | 1 | the block's 152 bytes that are not reserved |
//! | kernel | RTMR1 | 2 | `kata-cc kernel sha256:` and 64 hexadecimal digits |
//! | command line | RTMR2 | 3 | `kata-cc command line sha256:` and 64 digits |
//! | initramfs | RTMR2 | 3 | `kata-cc initramfs sha256:` and 64 digits; no event without one |
//!
//! Registers as in OVMF: configuration in RTMR0, what is booted in RTMR1, what it is given in RTMR2 (UEFI 2.10, 38.4.1).
//! All events are `EV_EVENT_TAG`: u32 tag, u32 length, data (TCG PC Client Platform Firmware Profile, 10.4.2.1). The
//! digest that extends the register is SHA-384 over all of it, tag and length included, so that the log can be checked by
//! itself. The order is the table's.

/// Type of all of stage0's events.
pub const EV_EVENT_TAG: u32 = 6;
/// Tag of all of stage0's events: `KCC0`.
const TAG: u32 = u32::from_le_bytes(*b"KCC0");
/// Bytes of a boot block that are not reserved.
const BLOCK: usize = 152;
const HEADER: usize = 8;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measured {
    /// The boot block.
    BootBlock,
    /// The kernel.
    Kernel,
    /// The command line.
    CommandLine,
    /// The initramfs.
    Initramfs,
}

/// Data of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventData {
    bytes: [u8; HEADER + BLOCK],
    length: usize,
}

impl EventData {
    fn new() -> Self {
        let mut data = Self { bytes: [0; HEADER + BLOCK], length: 0 };
        data.push(&TAG.to_le_bytes());
        data.push(&[0; 4]);
        data
    }

    /// Everything that is pushed fits: the longest text is shorter than a block.
    fn push(&mut self, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.length).zip(bytes) {
            *to = *from;
        }
        self.length += bytes.len();
    }

    fn finish(mut self) -> Self {
        let length = (self.length.saturating_sub(HEADER) as u32).to_le_bytes();
        for (to, from) in self.bytes.iter_mut().skip(4).zip(length) {
            *to = from;
        }
        self
    }

    /// The bytes, tag and length included.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Measured {
    /// Number of the runtime register.
    #[must_use]
    pub const fn register(self) -> u32 {
        match self {
            Self::BootBlock => 0,
            Self::Kernel => 1,
            Self::Initramfs | Self::CommandLine => 2,
        }
    }

    /// The register's number in the event log, where 0 is MRTD.
    #[must_use]
    pub const fn log_index(self) -> u32 {
        self.register() + 1
    }

    const fn name(self) -> &'static str {
        match self {
            Self::BootBlock => "boot block",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::CommandLine => "command line",
        }
    }

    /// Data of the event for a payload.
    #[must_use]
    pub fn payload_event(self, sha256: &[u8; 32]) -> EventData {
        let mut data = EventData::new();
        for text in ["kata-cc ", self.name(), " sha256:"] {
            data.push(text.as_bytes());
        }
        for byte in sha256 {
            for digit in [byte >> 4, byte & 0xF] {
                data.push(HEX.get(usize::from(digit)..).and_then(<[u8]>::first_chunk::<1>).unwrap_or(b"?"));
            }
        }
        data.finish()
    }

    /// Data of the event for a boot block.
    #[must_use]
    pub fn block_event(page: &[u8; 4096]) -> EventData {
        let mut data = EventData::new();
        data.push(page.get(..BLOCK).unwrap_or_default());
        data.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_named_with_its_hash() {
        let event = Measured::CommandLine.payload_event(&[0xA5; 32]);
        assert_eq!(event.bytes()[..8], [b'K', b'C', b'C', b'0', 92, 0, 0, 0]);
        assert_eq!(event.bytes()[8..36], *b"kata-cc command line sha256:");
        assert_eq!(event.bytes()[36..40], *b"a5a5");
        assert_eq!(event.bytes().len(), 100);
    }

    #[test]
    fn a_boot_block_is_there_as_it_is() {
        let mut page = [0; 4096];
        page[151] = 7;
        page[152] = 9;
        let event = Measured::block_event(&page);
        assert_eq!(event.bytes()[4..8], [152, 0, 0, 0]);
        assert_eq!(event.bytes()[8 + 151..], [7]);
    }

    #[test]
    fn registers_are_those_of_uefi() {
        let all = [Measured::BootBlock, Measured::Kernel, Measured::CommandLine, Measured::Initramfs];
        assert_eq!(all.map(Measured::register), [0, 1, 2, 2]);
        assert_eq!(all.map(Measured::log_index), [1, 2, 3, 3]);
    }
}
