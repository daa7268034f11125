//! The vTPM's links of real Azure evidence: accepted as recorded, refused with any bit changed.
#![allow(clippy::unwrap_used, missing_docs)]

use kata_cc_azure_vtpm::{
    AzureEvidence, Hardware, HardwareEvidence, HclError, HclReport, Pcrs, QuoteError, TpmQuote, VariableData,
    Vtpm, VtpmError,
};
use serde_json::{Value, json};

fn evidence(hardware: Hardware, name: &str) -> Option<AzureEvidence> {
    let value: Value = serde_json::from_slice(&kata_cc_test_vectors::read(name)?).unwrap();
    assert_eq!(AzureEvidence::hardware_of(&value), Some(hardware), "{name}");
    Some(AzureEvidence::from_json(hardware, &value).unwrap())
}

const RECORDED: [(Hardware, u8, &str); 3] = [
    (Hardware::Snp, 0, "snp/evidence/az-snp-vtpm-evidence-v0.json"),
    (Hardware::Snp, 1, "snp/evidence/az-snp-vtpm-evidence-v1.json"),
    (Hardware::Tdx, 1, "tdx/evidence/az-tdx-vtpm-evidence-v1.json"),
];

#[test]
fn recorded_evidence_holds_together() {
    for (hardware, version, name) in RECORDED {
        let Some(evidence) = evidence(hardware, name) else { return };
        assert_eq!(evidence.version, version);
        let vtpm = Vtpm::check(&evidence).unwrap();
        assert_eq!(vtpm.attest.extra_data, b"challenge", "{name}");
        assert_eq!(vtpm.hcl.hardware(), hardware);
        assert_eq!(vtpm.variable.user_data, Some(vec![0; 64]));
        assert_eq!(vtpm.variable.vm_configuration["secure-boot"], json!(true));
        if hardware == Hardware::Snp {
            let (bytes, report) = vtpm.hcl.snp_report().unwrap();
            assert_eq!((bytes.len(), report.vmpl), (1184, 0));
            vtpm.hcl.check_report_data(&report.report_data).unwrap();
        }
    }
}

#[test]
fn a_report_of_version_2_is_read() {
    let Some(bytes) = kata_cc_test_vectors::read("snp/evidence/az-snp-hcl-report.bin") else { return };
    let hcl = HclReport::parse(&bytes).unwrap();
    let (_, report) = hcl.snp_report().unwrap();
    assert_eq!(report.version, 2);
    hcl.check_report_data(&report.report_data).unwrap();
}

/// The quote of the machine of that report, as Trustee's tests keep it: signature, message and values, each after its length.
#[test]
fn a_recorded_quote_is_signed_by_the_key_of_its_report() {
    let Some(bytes) = kata_cc_test_vectors::read("snp/evidence/az-snp-tpm-quote.bin") else { return };
    let hcl = kata_cc_test_vectors::read("snp/evidence/az-snp-hcl-report.bin").unwrap();
    let hcl = HclReport::parse(&hcl).unwrap();
    let key = VariableData::parse(hcl.variable_data()).unwrap().attestation_key;
    fn counted(bytes: &[u8]) -> (usize, &[u8]) {
        let (count, rest) = bytes.split_first_chunk::<8>().unwrap();
        (usize::try_from(u64::from_le_bytes(*count)).unwrap(), rest)
    }
    let (length, rest) = counted(&bytes);
    let (signature, rest) = rest.split_at(length);
    let (length, rest) = counted(rest);
    let (message, rest) = rest.split_at(length);
    let (count, values) = counted(rest);
    assert_eq!((signature.len(), count, values.len()), (256, 24, 24 * 32));
    let values: Vec<[u8; 32]> = values.chunks(32).map(|value| value.try_into().unwrap()).collect();
    let pcrs = Pcrs::from_slice(&values).unwrap();
    let quote = TpmQuote { message: message.to_vec(), signature: signature.to_vec(), pcrs };
    quote.verify(&key).unwrap();
    let mut other = quote.clone();
    *other.signature.last_mut().unwrap() ^= 1;
    assert_eq!(other.verify(&key), Err(QuoteError::Signature));
    let mut values = values;
    values[11][0] ^= 1;
    let other = TpmQuote { pcrs: Pcrs::from_slice(&values).unwrap(), ..quote };
    assert!(matches!(other.verify(&key), Err(QuoteError::PcrDigest { .. })));
}

/// Messages, signatures and PCR values have no bit that is free; in the HCL report only the hardware's own report has, which is
/// verified elsewhere (SNP) or not believed at all (the TD report).
#[test]
fn every_changed_bit_is_refused() {
    let hardware_report = 32..1216;
    for (hardware, _, name) in RECORDED {
        let Some(good) = evidence(hardware, name) else { return };
        // What the hardware vouches for; that it does is not looked at here.
        let report_data: [u8; 64] = match &good.hardware {
            HardwareEvidence::Vcek(_) => {
                HclReport::parse(&good.hcl_report).unwrap().snp_report().unwrap().1.report_data
            }
            HardwareEvidence::TdQuote(quote) => quote[568..632].try_into().unwrap(),
        };
        let whole = |evidence: &AzureEvidence| -> Result<Vtpm, VtpmError> {
            let vtpm = Vtpm::check(evidence)?;
            vtpm.hcl.check_report_data(&report_data)?;
            Ok(vtpm)
        };
        let original = whole(&good).unwrap();
        let mut changed = good.clone();
        for bit in 0..good.quote.message.len() * 8 {
            changed.quote.message[bit / 8] ^= 1 << (bit % 8);
            assert!(whole(&changed).is_err(), "{name}: message bit {bit}");
            changed.quote.message[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in 0..good.quote.signature.len() * 8 {
            changed.quote.signature[bit / 8] ^= 1 << (bit % 8);
            assert!(whole(&changed).is_err(), "{name}: signature bit {bit}");
            changed.quote.signature[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in (0..good.hcl_report.len() * 8).filter(|bit| !hardware_report.contains(&(bit / 8))) {
            changed.hcl_report[bit / 8] ^= 1 << (bit % 8);
            assert!(whole(&changed).is_err(), "{name}: bit {bit} of the HCL report");
            changed.hcl_report[bit / 8] ^= 1 << (bit % 8);
        }
        let mut values = *good.quote.pcrs.values();
        for bit in 0..24 * 256 {
            values.as_flattened_mut()[bit / 8] ^= 1 << (bit % 8);
            changed.quote.pcrs = kata_cc_azure_vtpm::Pcrs::new(values);
            let refused = whole(&changed).unwrap_err();
            assert!(matches!(refused, VtpmError::Quote(QuoteError::PcrDigest { .. })), "{refused}");
            values.as_flattened_mut()[bit / 8] ^= 1 << (bit % 8);
        }
        changed.quote.pcrs = good.quote.pcrs.clone();
        assert_eq!(whole(&changed).unwrap(), original);
    }
}

#[test]
fn parts_of_two_machines_do_not_mix() {
    let Some(snp) = evidence(RECORDED[1].0, RECORDED[1].2) else { return };
    let Some(tdx) = evidence(RECORDED[2].0, RECORDED[2].2) else { return };
    let mixed = AzureEvidence { quote: tdx.quote.clone(), ..snp.clone() };
    assert_eq!(Vtpm::check(&mixed), Err(VtpmError::Quote(QuoteError::Signature)));
    let mixed = AzureEvidence { hcl_report: tdx.hcl_report, ..snp };
    assert!(matches!(Vtpm::check(&mixed), Err(VtpmError::Hcl(HclError::Field { .. }))));
}
