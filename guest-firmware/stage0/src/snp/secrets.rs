//! The secrets page: keys with which the guest speaks to the security processor (Firmware ABI, SECRETS_PAGE).
//!
//! The page is filled by the security processor into private memory at launch and stays where it is: Linux asks for
//! attestation reports with VMPCK0. stage0 uses none of the keys and makes no copy.

use core::fmt;

const PAGE_SIZE: usize = 4096;
/// First version with the fields that are read here. Later ones add to it: the security processor, which can be
/// believed, writes the page.
const OLDEST_VERSION: u32 = 2;
const FLAGS: usize = 0x04;
/// FLAGS: the guest was started from the image of a migration agent.
const FLAG_IMI: u32 = 1;
const VMPCK0: usize = 0x20;
const VMPCK_SIZE: usize = 32;
/// Message counters of the operating system, first thing in the area that is left to it.
const COUNTERS: usize = 0xA0;
const COUNTERS_SIZE: usize = 16;
const SVSM_SIZE: usize = 0x148;
const GUEST_VMPL: usize = 0x15C;

/// Why a secrets page is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretsRefusal {
    /// older than what is known, as a page is that nobody filled
    Version(u32),
    /// the guest was started from an image of a migration agent, not by this launch
    Flags(u32),
    /// there is no key for privilege level 0: the page is not one that the security processor filled
    NoKey,
    /// messages were exchanged with these keys before: numbers of messages would be used twice
    Counters,
    /// an SVSM is there, or the guest is not at privilege level 0
    Vmpl(u8),
}

impl fmt::Display for SecretsRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version} is too old"),
            Self::Flags(flags) => {
                write!(f, "flags {flags:#x}: the guest comes from a migration agent's image")
            }
            Self::NoKey => f.write_str("no key for privilege level 0"),
            Self::Counters => f.write_str("messages were exchanged with these keys before"),
            Self::Vmpl(level) => write!(f, "an SVSM is there, or the guest is at level {level}"),
        }
    }
}

/// Checks the page.
///
/// # Errors
/// The first rule that it breaks.
pub fn check(page: &[u8; PAGE_SIZE]) -> Result<(), SecretsRefusal> {
    let word = |offset: usize| {
        page.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let zero = |offset: usize, size: usize| page.iter().skip(offset).take(size).all(|byte| *byte == 0);
    if word(0) < OLDEST_VERSION {
        return Err(SecretsRefusal::Version(word(0)));
    }
    if word(FLAGS) & FLAG_IMI != 0 {
        return Err(SecretsRefusal::Flags(word(FLAGS)));
    }
    if zero(VMPCK0, VMPCK_SIZE) {
        return Err(SecretsRefusal::NoKey);
    }
    if !zero(COUNTERS, COUNTERS_SIZE) {
        return Err(SecretsRefusal::Counters);
    }
    let level = page.get(GUEST_VMPL).copied().unwrap_or_default();
    if level != 0 || !zero(SVSM_SIZE, 8) {
        return Err(SecretsRefusal::Vmpl(level));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        page[0] = 3;
        page[VMPCK0..VMPCK0 + 128].fill(0x5A);
        page
    }

    fn changed(offset: usize, value: u8) -> Result<(), SecretsRefusal> {
        let mut page = page();
        page[offset] = value;
        check(&page)
    }

    #[test]
    fn a_page_as_the_security_processor_fills_it_passes() {
        assert_eq!(check(&page()), Ok(()));
    }

    #[test]
    fn is_refused_by_name() {
        assert_eq!(changed(0, 1), Err(SecretsRefusal::Version(1)));
        assert_eq!(changed(0, 9), Ok(()), "later versions add to it");
        assert_eq!(
            check(&[0; PAGE_SIZE]),
            Err(SecretsRefusal::Version(0)),
            "a page that the host left empty"
        );
        assert_eq!(changed(FLAGS, 1), Err(SecretsRefusal::Flags(1)));
        assert_eq!(changed(COUNTERS + 4, 2), Err(SecretsRefusal::Counters));
        assert_eq!(changed(GUEST_VMPL, 2), Err(SecretsRefusal::Vmpl(2)));
        assert_eq!(changed(SVSM_SIZE + 1, 1), Err(SecretsRefusal::Vmpl(0)));
        let mut page = page();
        page[VMPCK0..VMPCK0 + VMPCK_SIZE].fill(0);
        assert_eq!(check(&page), Err(SecretsRefusal::NoKey));
    }
}
