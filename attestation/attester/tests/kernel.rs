//! The kernel's interfaces, played by fakes that give recorded evidence of real machines: what comes out is that evidence,
//! and each way in which an answer can be wrong is told apart.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod fake;

use std::cell::RefCell;
use std::time::Duration;

use fake::{FakeTsm, Script};
use kata_cc_attester::qgs::{self, QgsError};
use kata_cc_attester::quote::{Quote, QuoteError, TD_REPORT_LEN};
use kata_cc_attester::sev_guest::{
    self, CERTS_LEN, DeviceError, GuestDevice, RESPONSE_LEN, VMM_BUSY, VMM_INVALID_LEN,
};
use kata_cc_attester::tdx::{self, TdDevice};
use kata_cc_attester::tsm::{self, Provider, Request};
use kata_cc_attester::{AttestError, RawReport, snp_evidence};
use kata_cc_snp::Report;
use kata_cc_snp::evidence::SnpEvidence;

const REPORTS: [&str; 4] = ["milan-v2-a", "milan-v3-a", "genoa-v5", "turin-v5"];
const QUOTES: [&str; 4] = ["v4-a", "v4-gcp-cos113", "v5-td15", "v5-gcollateral"];

fn report_data_of(report: &[u8]) -> [u8; 64] {
    Report::parse(report).unwrap().report_data
}

#[test]
fn recorded_snp_reports_come_through_configfs() {
    for name in REPORTS {
        let Some(report) = kata_cc_test_vectors::read(&format!("snp/reports/{name}/report.bin")) else {
            return;
        };
        let report_data = report_data_of(&report);
        let tsm = FakeTsm::new("sev_guest", report.clone(), Some(Vec::new()));
        let answer = tsm::ask(&tsm, &Request::new(Provider::SevGuest, report_data)).unwrap();
        assert!(tsm.entry.borrow().is_none(), "the entry is removed");
        assert_eq!(*tsm.written.borrow(), [("inblob".to_owned(), report_data.to_vec())]);
        let raw = RawReport { report: answer.outblob, certificates: answer.auxblob };
        let evidence = snp_evidence(&raw, &report_data, None).unwrap();
        assert!(evidence.get("runtime_measurements").is_none());
        // What the verifier puts together again is what was signed.
        let read: SnpEvidence = serde_json::from_value(evidence).unwrap();
        assert_eq!(read.attestation_report.to_report().unwrap().to_bytes().as_slice(), report, "{name}");
        assert!(matches!(snp_evidence(&raw, &[9; 64], None), Err(AttestError::OtherReport)));
    }
}

#[test]
fn recorded_quotes_come_through_configfs() {
    for name in QUOTES {
        let Some(quote) = kata_cc_test_vectors::read(&format!("tdx/quotes/{name}/quote.bin")) else { return };
        let report_data = Quote::parse(&quote).unwrap().report_data;
        let tsm = FakeTsm::new("tdx_guest", quote.clone(), None);
        assert_eq!(tdx::quote_by_tsm(&tsm, &report_data).unwrap(), quote, "{name}");
        assert!(matches!(tdx::quote_by_tsm(&tsm, &[9; 64]), Err(AttestError::OtherReport)));
        // Some were recorded with the zeros of the kernel's buffer after them.
        let end = quote.iter().rposition(|byte| *byte != 0).unwrap();
        for cut in [0, 47, 48, 600, 632, end] {
            let tsm = FakeTsm::new("tdx_guest", quote[..cut].to_vec(), None);
            let refused = tdx::quote_by_tsm(&tsm, &report_data).err().unwrap();
            let truncated = matches!(refused, AttestError::Quote(QuoteError::Truncated { .. }));
            assert!(truncated, "{name} cut at {cut}: {refused}");
        }
        let longer = [quote.as_slice(), b"x"].concat();
        assert!(matches!(Quote::parse(&longer), Err(QuoteError::Trailing(_))), "{name}");
        let json = tdx::evidence_json(&quote, Some(b"log"));
        assert_eq!(json["cc_eventlog"], "bG9n");
        assert_eq!(tdx::evidence_json(&quote, None)["cc_eventlog"], serde_json::Value::Null);
    }
}

#[test]
fn other_writers_are_noticed() {
    let ask = |script: Script| {
        let tsm = FakeTsm::new("sev_guest", vec![3; 1184], Some(vec![7; 100])).with(script);
        tsm::ask(&tsm, &Request::new(Provider::SevGuest, [3; 64]))
    };
    assert_eq!(ask(Script { interfering: 2, ..Script::default() }).unwrap().auxblob, [7; 100]);
    let raced = ask(Script { interfering: 99, ..Script::default() }).unwrap_err();
    assert!(matches!(raced, AttestError::Raced { .. }), "{raced}");
    // The kernel's own word for it.
    ask(Script { failing: (2, libc::EWOULDBLOCK), ..Script::default() }).unwrap();
    let raced = ask(Script { failing: (99, libc::EWOULDBLOCK), ..Script::default() }).unwrap_err();
    assert!(matches!(raced, AttestError::Raced { .. }), "{raced}");
}

#[test]
fn the_kernels_errors_are_told_in_words() {
    let ask = |script: Script| {
        let tsm = FakeTsm::new("sev_guest", vec![3; 1184], None).with(script);
        let refused = tsm::ask(&tsm, &Request::new(Provider::SevGuest, [3; 64])).unwrap_err().to_string();
        assert!(tsm.entry.borrow().is_none(), "the entry is removed");
        refused
    };
    for (code, words) in [
        (libc::EFBIG, "larger than the kernel passes on"),
        (libc::EINVAL, "must have 64 bytes"),
        (libc::EIO, "gave no answer"),
    ] {
        let refused = ask(Script { failing: (99, code), ..Script::default() });
        assert!(refused.contains("outblob") && refused.contains(words), "{refused}");
    }
    let refused = ask(Script { refusing: Some(libc::EINVAL), ..Script::default() });
    assert!(refused.contains("write") && refused.contains("inblob"), "{refused}");
    let refused = ask(Script { no_entry: Some(libc::ENXIO), ..Script::default() });
    assert!(refused.contains("no driver of a TEE"), "{refused}");
}

#[test]
fn other_providers_and_oversize_answers_are_refused() {
    let ask = |tsm: &FakeTsm| tsm::ask(tsm, &Request::new(Provider::SevGuest, [3; 64]));
    let refused = ask(&FakeTsm::new("tdx_guest", vec![3; 1184], None)).unwrap_err();
    assert!(refused.to_string().contains("'tdx_guest', expected 'sev_guest'"), "{refused}");
    assert!(matches!(ask(&FakeTsm::new("sev_guest", vec![3; 1185], None)), Err(AttestError::Tsm { .. })));
    let table = Some(vec![0; kata_cc_snp::cert_table::MAX_TABLE + 1]);
    assert!(matches!(ask(&FakeTsm::new("sev_guest", vec![3; 1184], table)), Err(AttestError::Tsm { .. })));
    // A report that is cut is no report.
    let answer = ask(&FakeTsm::new("sev_guest", vec![3; 1183], None)).unwrap();
    let raw = RawReport { report: answer.outblob, certificates: answer.auxblob };
    assert!(matches!(snp_evidence(&raw, &[3; 64], None), Err(AttestError::Report(_))));
}

#[test]
fn a_privilege_level_is_written_unless_it_is_below_the_floor() {
    let ask = |level, floor| {
        let script = Script { floor, ..Script::default() };
        let tsm = FakeTsm::new("sev_guest", vec![3; 1184], None).with(script);
        let request = Request { privilege_level: level, ..Request::new(Provider::SevGuest, [3; 64]) };
        tsm::ask(&tsm, &request).map(|_| tsm.written.into_inner())
    };
    assert_eq!(ask(None, Some(2)).unwrap().len(), 1);
    assert_eq!(ask(Some(2), Some(2)).unwrap()[0], ("privlevel".to_owned(), b"2".to_vec()));
    assert_eq!(ask(Some(0), None).unwrap()[0], ("privlevel".to_owned(), b"0".to_vec()));
    for (level, floor) in [(1, Some(2)), (4, None), (255, Some(0))] {
        let refused = ask(Some(level), floor).unwrap_err();
        assert!(matches!(refused, AttestError::PrivilegeLevel { .. }), "{refused}");
    }
}

#[test]
fn a_report_by_the_svsm_binds_its_manifest() {
    let mut tsm = FakeTsm::new("sev_guest", vec![3; 1184], None);
    tsm.manifest = Some(b"services".to_vec());
    let request = Request { svsm: true, ..Request::new(Provider::SevGuest, [3; 64]) };
    let answer = tsm::ask(&tsm, &request).unwrap();
    assert_eq!(tsm.written.borrow()[0], ("service_provider".to_owned(), b"svsm".to_vec()));
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, &[&[3; 64][..], b"services"].concat());
    assert!(answer.binds(&[3; 64], digest.as_ref().try_into().unwrap()));
    assert!(!answer.binds(&[3; 64], &[3; 64]));
    let plain = tsm::Answer { manifest: None, ..answer };
    assert!(plain.binds(&[3; 64], &[3; 64]) && !plain.binds(&[3; 64], &[4; 64]));
}

/// `/dev/sev-guest` with a recorded report and what goes wrong before it comes.
struct FakeSev {
    report: Vec<u8>,
    /// VMM errors of the coming extended requests, with the length they ask for.
    troubles: RefCell<Vec<(u32, usize)>>,
    status: u32,
    len: u32,
    calls: RefCell<Vec<usize>>,
}

impl FakeSev {
    fn new(report: Vec<u8>, troubles: &[(u32, usize)]) -> Self {
        let troubles = RefCell::new(troubles.iter().rev().copied().collect());
        Self { report, troubles, status: 0, len: 1184, calls: RefCell::default() }
    }

    fn answer(&self, request: &[u8; 96], response: &mut [u8; RESPONSE_LEN]) {
        response[..4].copy_from_slice(&self.status.to_le_bytes());
        response[4..8].copy_from_slice(&self.len.to_le_bytes());
        response[32..32 + self.report.len()].copy_from_slice(&self.report);
        assert_eq!(request[64..], [0; 32]);
    }

    fn trouble(&self) -> Result<(), DeviceError> {
        let Some((vmm, certs_len)) = self.troubles.borrow_mut().pop() else { return Ok(()) };
        let source = std::io::Error::from_raw_os_error(libc::EIO);
        Err(DeviceError { firmware: 0, vmm, certs_len, source })
    }
}

impl GuestDevice for FakeSev {
    fn report(&self, request: &[u8; 96], response: &mut [u8; RESPONSE_LEN]) -> Result<(), DeviceError> {
        self.calls.borrow_mut().push(0);
        self.trouble()?;
        self.answer(request, response);
        Ok(())
    }

    fn extended_report(
        &self,
        request: &[u8; 96],
        response: &mut [u8; RESPONSE_LEN],
        certificates: &mut [u8],
    ) -> Result<(), DeviceError> {
        self.calls.borrow_mut().push(certificates.len());
        self.trouble()?;
        certificates.fill(5);
        self.answer(request, response);
        Ok(())
    }
}

const NO_PAUSE: Duration = Duration::ZERO;

#[test]
fn recorded_reports_come_through_the_device() {
    for name in REPORTS {
        let Some(report) = kata_cc_test_vectors::read(&format!("snp/reports/{name}/report.bin")) else {
            return;
        };
        let report_data = report_data_of(&report);
        let raw = sev_guest::report(&FakeSev::new(report.clone(), &[]), &report_data, NO_PAUSE).unwrap();
        assert_eq!((raw.report, raw.certificates), (report, vec![5; CERTS_LEN]), "{name}");
    }
}

#[test]
fn room_for_certificates_grows_to_what_is_needed() {
    let calls = |troubles: &[(u32, usize)]| {
        let device = FakeSev::new(vec![1; 1184], troubles);
        let raw = sev_guest::report(&device, &[6; 64], NO_PAUSE).unwrap();
        (device.calls.into_inner(), raw.certificates.len())
    };
    assert_eq!(calls(&[(VMM_INVALID_LEN, 0x5001)]), (vec![CERTS_LEN, 0x6000], 0x6000));
    // A host that wants more still, or more than is sane, or says nothing: the report alone.
    assert_eq!(
        calls(&[(VMM_INVALID_LEN, 0x5000), (VMM_INVALID_LEN, 0x9000)]),
        (vec![CERTS_LEN, 0x5000, 0], 0)
    );
    assert_eq!(calls(&[(VMM_INVALID_LEN, 1 << 30)]), (vec![CERTS_LEN, 0], 0));
    assert_eq!(calls(&[(VMM_INVALID_LEN, 0)]), (vec![CERTS_LEN, 0], 0));
    // A kernel that does not take so much room.
    assert_eq!(calls(&[(VMM_INVALID_LEN, 0x5000), (0, 0)]), (vec![CERTS_LEN, 0x5000, 0], 0));
}

#[test]
fn a_busy_host_is_asked_again_and_not_for_ever() {
    let device = FakeSev::new(vec![1; 1184], &[(VMM_BUSY, 0); 3]);
    sev_guest::report(&device, &[6; 64], NO_PAUSE).unwrap();
    assert_eq!(device.calls.borrow().len(), 4);
    let device = FakeSev::new(vec![1; 1184], &[(VMM_BUSY, 0); 100]);
    let refused = sev_guest::report(&device, &[6; 64], NO_PAUSE).unwrap_err();
    assert!(refused.to_string().contains("host is busy"), "{refused}");
    assert_eq!(device.calls.borrow().len(), 6);
}

#[test]
fn refusals_of_the_firmware_and_wrong_lengths_are_told() {
    let device = FakeSev { status: 0x16, ..FakeSev::new(vec![1; 1184], &[]) };
    let refused = sev_guest::report(&device, &[6; 64], NO_PAUSE).unwrap_err();
    assert!(refused.to_string().contains("a parameter is invalid"), "{refused}");
    for len in [0, 1183, 1185, u32::MAX] {
        let device = FakeSev { len, ..FakeSev::new(vec![1; 1184], &[]) };
        let refused = sev_guest::report(&device, &[6; 64], NO_PAUSE);
        assert!(matches!(refused, Err(AttestError::Length { .. })), "{len}");
    }
}

struct FakeTd(Vec<u8>);

impl TdDevice for FakeTd {
    fn report(&self, _: &[u8; 64]) -> std::io::Result<Box<[u8; TD_REPORT_LEN]>> {
        let report = <[u8; TD_REPORT_LEN]>::try_from(self.0.clone());
        report.map(Box::new).map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))
    }
}

#[test]
fn a_recorded_td_report_is_read() {
    let Some(bytes) = kata_cc_test_vectors::read("tdx/tdreport/report-a.bin") else { return };
    let (raw, report) = tdx::td_report(&FakeTd(bytes.clone()), &[0; 64]).unwrap();
    assert_eq!(raw.as_slice(), bytes);
    assert_eq!(report.mrconfigid, [0; 48]);
    assert!(hex::encode(report.rtmr[0]).starts_with("f4ec1a04670fe792"));
    assert!(matches!(tdx::td_report(&FakeTd(bytes.clone()), &[1; 64]), Err(AttestError::OtherReport)));
    let other = [&[0][..], &bytes[1..]].concat();
    assert!(matches!(tdx::td_report(&FakeTd(other), &[0; 64]), Err(AttestError::Quote(_))));
    let refused = tdx::td_report(&FakeTd(Vec::new()), &[0; 64]).unwrap_err();
    assert!(refused.to_string().contains("/dev/tdx_guest"), "{refused}");
}

#[tokio::test]
async fn a_quote_comes_from_the_quote_generation_service() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (Some(report), Some(request), Some(refusal), Some(quote)) = (
        kata_cc_test_vectors::read("tdx/tdreport/report-a.bin"),
        kata_cc_test_vectors::read("tdx/qgs/get-quote-req.bin"),
        kata_cc_test_vectors::read("tdx/qgs/get-quote-resp-error.bin"),
        kata_cc_test_vectors::read("tdx/quotes/v4-a/quote.bin"),
    ) else {
        return;
    };
    let report: [u8; TD_REPORT_LEN] = report.try_into().unwrap();
    assert_eq!(qgs::get_quote_request(&report), request, "the form that QEMU sends");
    assert_eq!(qgs::quote_of(qgs::framed(&refusal).unwrap()), Err(QgsError::Refused { code: 0x0001_2003 }));
    let size = (24 + quote.len()) as u32;
    let mut answer = size.to_be_bytes().to_vec();
    for word in [0x0001_0001, 1, size, 0, 0, quote.len() as u32] {
        answer.extend(u32::to_le_bytes(word));
    }
    answer.extend(&quote);
    // Over a real socket, as the service listens.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qgs.socket");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let serve = async {
        for reply in [answer, refusal] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; request.len()];
            stream.read_exact(&mut seen).await.unwrap();
            assert_eq!(seen, request);
            stream.write_all(&reply).await.unwrap();
        }
    };
    let ask = async {
        let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        let got = qgs::exchange(stream, "test", &report).await.unwrap();
        assert_eq!(got, quote);
        let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        let refused = qgs::exchange(stream, "test", &report).await.unwrap_err();
        assert!(refused.to_string().contains("invalid parameter"), "{refused}");
    };
    tokio::join!(serve, ask);
}
