//! Guest policy: what the VMM refuses to launch with, whatever the host would accept.

use kata_cc_snp::policy::GuestPolicy;

use crate::tee::TeeError;

/// Refuses policies that would take the protection away, or that no firmware takes.
///
/// # Errors
/// [`TeeError::Policy`] with the reason.
pub fn check_policy(policy: GuestPolicy, allow_debug: bool) -> Result<(), TeeError> {
    let refuse = |reason| Err(TeeError::Policy { policy: policy.0, reason });
    if policy.unknown_bits() != 0 {
        return refuse("it has bits that the ABI does not define");
    }
    if !policy.reserved_one() {
        return refuse("bit 17 must be set");
    }
    if policy.debug_allowed() && !allow_debug {
        return refuse(
            "bit 19 lets the host read the guest's memory: allow debugging by name to try things out",
        );
    }
    if policy.migration_agent_allowed() {
        return refuse("bit 18 gives the guest's keys to a migration agent, and there is none");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_off_unless_asked_for() {
        let reason = |bits, debug| check_policy(GuestPolicy(bits), debug).map_err(|error| error.to_string());
        assert_eq!(reason(0x3_0000, false), Ok(()));
        // no SMT, one socket
        assert_eq!(reason(0x12_0000, false), Ok(()));
        assert_eq!(reason(0xB_0000, true), Ok(()));
        for (bits, word) in [
            (0xB_0000, "bit 19"),
            (0x1_0000, "bit 17"),
            (0x7_0000, "bit 18"),
            (1 << 40 | 0x3_0000, "not define"),
        ] {
            let seen = reason(bits, false).unwrap_err();
            assert!(seen.contains(word), "{bits:#x}: {seen}");
        }
    }
}
