//! The exchange with the simulated security processor, against the function that the VMM serves.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use kata_cc_attester::sim::exchange;
use kata_cc_attester::{AttestError, RawReport};
use kata_cc_sim_tee::{SimLaunch, SimPlatform, SimService};
use kata_cc_snp::{CertTable, Report};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Serves one exchange with a fixed answer or that of the service.
async fn served(answer: impl FnOnce(&[u8]) -> Vec<u8>, vmpl: u32) -> Result<RawReport, AttestError> {
    let (guest, mut host) = tokio::io::duplex(64);
    let serve = async move {
        let mut request = [0; 96];
        host.read_exact(&mut request).await.unwrap();
        // The guest may stop reading when it refuses the answer.
        host.write_all(&answer(&request)).await.ok();
        drop(host);
    };
    tokio::join!(exchange(guest, &[4; 64], vmpl), serve).0
}

#[tokio::test]
async fn a_report_comes_from_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Arc::new(SimPlatform::create(&dir.path().join("sim")).unwrap());
    let service = SimService::new(platform, SimLaunch::new([1; 48], [2; 32]).unwrap());
    let raw = served(|request| service.respond(request), 0).await.unwrap();
    let report = Report::parse(&raw.report).unwrap();
    assert_eq!((report.report_data, report.host_data), ([4; 64], [2; 32]));
    assert_eq!(CertTable::parse(&raw.certificates).unwrap().entries.len(), 3);
    let refused = served(|request| service.respond(request), 4).await.unwrap_err();
    assert!(matches!(refused, AttestError::Status { status: 0x16 }), "{refused}");
}

fn header(status: u32, report: u32, certificates: u32) -> Vec<u8> {
    [status, report, certificates].into_iter().flat_map(u32::to_le_bytes).collect()
}

#[tokio::test]
async fn a_hostile_host_gets_no_further_than_an_error() {
    let refused = served(|_| header(0, u32::MAX, 0), 0).await.unwrap_err();
    assert!(matches!(refused, AttestError::Length { what: "the report", .. }), "{refused}");
    let refused = served(|_| header(0, 1184, u32::MAX), 0).await.unwrap_err();
    assert!(matches!(refused, AttestError::Length { what: "the certificate table", .. }), "{refused}");
    for cut in [0, 5, 12, 100] {
        let mut answer = header(0, 1184, 10);
        answer.resize(200, 0);
        answer.truncate(cut);
        let refused = served(move |_| answer, 0).await.unwrap_err();
        assert!(matches!(refused, AttestError::Sim { .. }), "cut at {cut}: {refused}");
    }
}
