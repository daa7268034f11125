//! Exchanges with the simulated TDX module, against the function that the VMM serves.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kata_cc_attester::AttestError;
use kata_cc_attester::measure::{Register, extended};
use kata_cc_attester::quote::Quote;
use kata_cc_attester::sim_tdx::{SimQuote, SimRtmr, exchange};
use kata_cc_sim_tee::tdx::{Quoter, TdxLaunch, TdxService};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn service() -> Arc<TdxService> {
    let dir = tempfile::tempdir().unwrap();
    let quoter = Quoter::create(&dir.path().join("tdx"), 1_767_225_600).unwrap();
    Arc::new(TdxService::new(Arc::new(quoter), TdxLaunch { mr_td: [1; 48], mr_config_id: [2; 48] }))
}

async fn served(answer: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<SimQuote, AttestError> {
    let (guest, mut host) = tokio::io::duplex(64);
    let serve = async move {
        let mut request = [0; 96];
        host.read_exact(&mut request).await.unwrap();
        // The guest may stop reading when it refuses the answer.
        host.write_all(&answer(&request)).await.ok();
    };
    tokio::join!(exchange(guest, &[4; 64]), serve).0
}

#[tokio::test]
async fn a_quote_comes_with_its_collateral() {
    let service = service();
    let got = served(|request| service.respond(request)).await.unwrap();
    let quote = Quote::parse(&got.quote).unwrap();
    assert_eq!((quote.report_data, quote.mr_config_id), ([4; 64], [2; 48]));
    let evidence = got.evidence_json(Some(b"log"));
    assert!(evidence["quote"].is_string() && evidence["collateral"].is_object());
    assert_eq!(evidence["cc_eventlog"], "bG9n");
}

fn header(status: u32, first: u32, second: u32) -> Vec<u8> {
    [status, first, second].into_iter().flat_map(u32::to_le_bytes).collect()
}

#[tokio::test]
async fn a_hostile_host_gets_no_further_than_an_error() {
    for (answer, part) in [
        (header(0, u32::MAX, 0), "the quote has 4294967295 bytes"),
        (header(0, 0, 0), "the quote has 0 bytes"),
        (header(0, 100, u32::MAX), "the collateral has 4294967295 bytes"),
        (header(0x16, 0, 0), "status 0x16"),
        ([header(0, 3, 0), vec![4, 0, 0]].concat(), "truncated"),
        (header(0, 3, 0), "cannot read the answer"),
    ] {
        let error = served(|_| answer).await.unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    // A genuine quote for another request.
    let service = service();
    let replayed = served(|_| service.respond(&[[9; 64].as_slice(), &[0; 32]].concat())).await.unwrap_err();
    assert!(matches!(replayed, AttestError::OtherReport), "{replayed}");
}

/// A register whose exchanges are answered so.
fn register(index: u8, answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> io::Result<SimRtmr> {
    let answer = Arc::new(answer);
    SimRtmr::over(
        index,
        Box::new(move || {
            let (guest, mut host) = UnixStream::pair()?;
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let mut request = [0; 96];
                host.read_exact(&mut request).unwrap();
                host.write_all(&answer(&request)).ok();
            });
            Ok(Box::new(guest))
        }),
    )
}

#[test]
fn a_register_is_extended_and_read_back() {
    let service = service();
    let mut rtmr = register(3, move |request| service.respond(request)).unwrap();
    assert_eq!((rtmr.number(), rtmr.is_hardware(), rtmr.value().unwrap()), (4, true, [0; 48]));
    rtmr.extend(&[7; 48]).unwrap();
    assert_eq!(rtmr.value().unwrap(), extended(&[0; 48], &[7; 48]));
}

#[test]
fn registers_of_the_firmware_and_modules_that_refuse_are_no_registers() {
    let refused = register(1, |_| unreachable!("nothing is asked")).unwrap_err().to_string();
    assert!(refused.contains("RTMR1 is the firmware's"), "{refused}");
    let refused = register(2, |_| header(0x13, 0, 0)).unwrap_err().to_string();
    assert!(refused.contains("refused operation 0x1"), "{refused}");
    assert!(register(2, |_| header(0, 192, 0)).is_err(), "cut");
}
