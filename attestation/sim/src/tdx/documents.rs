//! TCB info and QE identity of the simulated platform, as Intel's service would write them.

use serde_json::{Value, json};

use super::{COMPONENTS, FMSPC, PCE_SVN, QE_MRSIGNER, QE_PROD_ID, QE_SVN, TEE_TCB_SVN};

/// How long collateral is current: 30 days, as Intel's.
pub(super) const LIFE: u64 = 30 * 24 * 3600;

/// Day of the levels.
const LEVEL_DATE: &str = "2024-11-13T00:00:00Z";

fn time(seconds: u64) -> String {
    kata_cc_tdx::tcb::Timestamp(seconds).to_string()
}

fn components(versions: &[u8; 16]) -> Vec<Value> {
    versions.iter().map(|svn| json!({"svn": svn})).collect()
}

/// A level that the platform has, and below it one that is out of date and demands less.
pub(super) fn tcb_info(issued: u64, life: u64) -> Value {
    let signer = json!({
        "mrsigner": "0".repeat(96), "attributes": "0".repeat(16), "attributesMask": "F".repeat(16),
    });
    let [module_svn, ..] = TEE_TCB_SVN;
    let mut module = signer.clone();
    module["id"] = "TDX_01".into();
    module["tcbLevels"] = json!([
        {"tcb": {"isvsvn": module_svn}, "tcbDate": LEVEL_DATE, "tcbStatus": "UpToDate"},
        {"tcb": {"isvsvn": 2}, "tcbDate": LEVEL_DATE, "tcbStatus": "OutOfDate", "advisoryIDs": ["SIM-SA-00001"]},
    ]);
    let older = COMPONENTS.map(|svn: u8| svn.saturating_sub(1));
    let older_tdx = TEE_TCB_SVN.map(|svn: u8| svn.saturating_sub(1));
    json!({
        "id": "TDX",
        "version": 3,
        "issueDate": time(issued),
        "nextUpdate": time(issued + life),
        "fmspc": hex::encode_upper(FMSPC),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 18,
        "tdxModule": signer,
        "tdxModuleIdentities": [module],
        "tcbLevels": [
            {
                "tcb": {
                    "sgxtcbcomponents": components(&COMPONENTS),
                    "pcesvn": PCE_SVN,
                    "tdxtcbcomponents": components(&TEE_TCB_SVN),
                },
                "tcbDate": LEVEL_DATE,
                "tcbStatus": "UpToDate",
            },
            {
                "tcb": {
                    "sgxtcbcomponents": components(&older),
                    "pcesvn": PCE_SVN - 1,
                    "tdxtcbcomponents": components(&older_tdx),
                },
                "tcbDate": LEVEL_DATE,
                "tcbStatus": "OutOfDate",
                "advisoryIDs": ["SIM-SA-00002"],
            },
        ],
    })
}

pub(super) fn qe_identity(issued: u64, life: u64) -> Value {
    json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": time(issued),
        "nextUpdate": time(issued + life),
        "tcbEvaluationDataNumber": 18,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(QE_MRSIGNER),
        "isvprodid": QE_PROD_ID,
        "tcbLevels": [{"tcb": {"isvsvn": QE_SVN}, "tcbDate": LEVEL_DATE, "tcbStatus": "UpToDate"}],
    })
}
