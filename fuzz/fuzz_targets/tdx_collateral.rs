//! TDX collateral from a service or a file: parsed or refused; none of it leads to Intel's root unless it is Intel's.
#![no_main]

use kata_cc_tdx::tcb::{QeIdentity, TcbInfo};
use kata_cc_tdx::{Collateral, TrustAnchor, TrustedCollateral};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The documents, which are read only when their signature is right.
    if let Ok(info) = serde_json::from_slice::<TcbInfo>(data) {
        let _ =
            (info.level(&[255; 16], u16::MAX, &[255; 16]), info.level(&[0; 16], 0, &[0; 16]), info.module(1));
    }
    let _ = serde_json::from_slice::<QeIdentity>(data);
    // The same bytes as each file of the service.
    let _ = Collateral::from_files(|_| Some(data.to_vec()));
    if let Ok(collateral) = Collateral::from_bundle(data) {
        let written = serde_json::to_vec(&collateral.to_value()).unwrap_or_default();
        assert_eq!(Collateral::from_bundle(&written), Ok(collateral.clone()));
        let _ = TrustedCollateral::new(&collateral, &TrustAnchor::Intel);
    }
});
