//! Evidence of Azure's vTPM, as JSON and as its parts: read or refused, and what is refused is refused whatever follows.
#![no_main]

use kata_cc_azure_vtpm::{Attest, AzureEvidence, Hardware, HclReport, VariableData, Vtpm, quote};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = (Attest::parse(data), VariableData::parse(data), quote::rsassa_signature(data));
    if let Ok(hcl) = HclReport::parse(data) {
        let _ = (hcl.snp_report(), VariableData::parse(hcl.variable_data()));
        let mut longer = data.to_vec();
        longer.push(1);
        assert!(HclReport::parse(&longer).is_err(), "what follows the variable data is zeros");
    }
    if let Ok(value) = serde_json::from_slice(data) {
        for hardware in [Hardware::Snp, Hardware::Tdx] {
            if let Ok(evidence) = AzureEvidence::from_json(hardware, &value) {
                assert_eq!(evidence.hardware.kind(), hardware);
                let _ = Vtpm::check(&evidence);
            }
        }
    }
});
