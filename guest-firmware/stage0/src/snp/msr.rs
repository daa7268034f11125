//! The GHCB MSR protocol: one request and one answer in 64 bits, without a page in common with the host (GHCB
//! specification, section 2.3.1).
//!
//! Bits 11:0 say what the value is. The answer to a request has one code only; with any other one the host either
//! does not know the request or hopes that the guest will take it for something else.

use kata_cc_stage0_abi::Termination;

use super::error::Error;
use super::instructions::{Instructions, MSR_GHCB};

const SEV_INFO_REQUEST: u64 = 0x002;
const SEV_INFO_RESPONSE: u16 = 0x001;
const REGISTER_REQUEST: u64 = 0x012;
const REGISTER_RESPONSE: u16 = 0x013;
const PAGE_STATE_REQUEST: u64 = 0x014;
const PAGE_STATE_RESPONSE: u16 = 0x015;
const FEATURES_REQUEST: u64 = 0x080;
const FEATURES_RESPONSE: u16 = 0x081;
const TERMINATE_REQUEST: u64 = 0x100;

/// The reason set of stage0's own numbers in a termination request; 0 is the specification's, 1 is Linux's.
pub const TERMINATION_SET: u64 = crate::platform::REASON_SET;

/// The version of the protocol that stage0 speaks: the first with SNP.
pub const PROTOCOL_VERSION: u16 = 2;

/// The host supports SNP guests.
pub const FEATURE_SNP: u64 = 1 << 0;
/// The host starts further vCPUs from a state that the guest made.
pub const FEATURE_AP_CREATION: u64 = 1 << 1;

/// What a page is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageState {
    /// The guest's alone.
    Private = 1,
    /// The host's too.
    Shared = 2,
}

fn exchange(hardware: &impl Instructions, request: u64, code: u16) -> Result<u64, Error> {
    hardware.write_msr(MSR_GHCB, request);
    hardware.vmgexit();
    let value = hardware.read_msr(MSR_GHCB);
    if value & 0xFFF == u64::from(code) {
        Ok(value)
    } else {
        Err(Error::MsrResponse { expected: code, value })
    }
}

/// Agrees upon the version of the protocol. The C-bit that the host names is compared with the measured one: a host
/// that names another has not launched this guest as it was told to.
pub fn negotiate(hardware: &impl Instructions, c_bit: u8) -> Result<(), Error> {
    let value = exchange(hardware, SEV_INFO_REQUEST, SEV_INFO_RESPONSE)?;
    let [_, _, _, named, min_low, min_high, max_low, max_high] = value.to_le_bytes();
    let (min, max) = (u16::from_le_bytes([min_low, min_high]), u16::from_le_bytes([max_low, max_high]));
    if !(min..=max).contains(&PROTOCOL_VERSION) {
        return Err(Error::Protocol { min, max });
    }
    if named == c_bit { Ok(()) } else { Err(Error::CBit(named)) }
}

/// The host's features; SNP must be among them.
pub fn features(hardware: &impl Instructions) -> Result<u64, Error> {
    let features = exchange(hardware, FEATURES_REQUEST, FEATURES_RESPONSE)? >> 12;
    if features & FEATURE_SNP != 0 { Ok(features) } else { Err(Error::HypervisorFeatures(features)) }
}

/// Tells the host which page is the GHCB of this vCPU. The host may name another in its answer; a guest that took it
/// would write its requests to a page of the host's choice.
pub fn register(hardware: &impl Instructions, ghcb: u64) -> Result<(), Error> {
    let value = exchange(hardware, ghcb | REGISTER_REQUEST, REGISTER_RESPONSE)?;
    let registered = value & !0xFFF;
    if registered == ghcb { Ok(()) } else { Err(Error::GhcbAddress(registered)) }
}

/// Has the host change one 4 KiB page.
pub fn change_page(hardware: &impl Instructions, page: u64, state: PageState) -> Result<(), Error> {
    let request = (state as u64) << 52 | page | PAGE_STATE_REQUEST;
    let value = exchange(hardware, request, PAGE_STATE_RESPONSE)?;
    // Bits 63:32 are the host's error; those below have to be zero.
    if value >> 12 == 0 { Ok(()) } else { Err(Error::PageStateMsr((value >> 32) as u32)) }
}

/// Has the host end this guest, and never goes on if it does not.
pub fn terminate(hardware: &impl Instructions, why: Termination) -> ! {
    let request = u64::from(why.code()) << 16 | TERMINATION_SET << 12 | TERMINATE_REQUEST;
    loop {
        hardware.write_msr(MSR_GHCB, request);
        hardware.vmgexit();
        hardware.halt();
    }
}
