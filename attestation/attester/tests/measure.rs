//! Runtime measurements: the recorded events, logs of real firmware, and what breaks between register and log.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code)]

mod fake;

use std::path::Path;
use std::sync::{Arc, Mutex};

use kata_cc_attester::measure::tcg::{self, TcgError};
use kata_cc_attester::measure::{
    Asker, Digest, Event, LogError, MAX_ASKED, Register, Rtmr, RuntimeLog, SoftwareRegister, extended,
};
use kata_cc_attester::{LogSnapshot, RawReport, snp_evidence};
use serde_json::Value;

fn software(log: &[u8]) -> Result<Box<dyn Register>, TcgError> {
    Ok(Box::new(SoftwareRegister::new(4, tcg::replay(log, 4)?)))
}

#[test]
fn the_recorded_events_give_these_entries_and_values() {
    let Some(bytes) = kata_cc_test_vectors::read("coco/aael/events.json") else { return };
    let cases: Value = serde_json::from_slice(&bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut log = RuntimeLog::open(dir.path(), None, software).unwrap();
    let mut expected = tcg::header();
    for case in cases["events"].as_array().unwrap() {
        let text = |name: &str| case[name].as_str().unwrap();
        let event = Event::new(text("domain"), text("operation"), text("content")).unwrap();
        let (entry, digest) = event.entry(4);
        assert_eq!(hex::encode(&entry), text("entry_hex"));
        assert_eq!(hex::encode(digest), text("digest_hex"));
        let recorded = log.record(&event, Asker::Agent).unwrap();
        assert_eq!(hex::encode(recorded.value), text("register_after_hex"));
        expected.extend(entry);
    }
    assert_eq!(log.bytes(), expected);
    assert_eq!(std::fs::read(dir.path().join("eventlog")).unwrap(), expected);
    for case in cases["refuse"].as_array().unwrap() {
        let text = |name: &str| case[name].as_str().unwrap();
        Event::new(text("domain"), text("operation"), text("content")).unwrap_err();
    }
    let first = &cases["events"][0];
    let content: Value = serde_json::from_str(first["content"].as_str().unwrap()).unwrap();
    let event =
        Event::pull_image(content["image"].as_str().unwrap(), content["digest"].as_str().unwrap()).unwrap();
    assert_eq!(event.content(), first["content"].as_str().unwrap(), "members in CoCo's order");
}

#[test]
fn logs_of_real_firmware_are_read_and_continued() {
    for name in ["ccel-a", "ccel-grub", "ccel-ovmf", "ccel-gcp-cos113", "ccel-aael-alibaba"] {
        let Some(bytes) = kata_cc_test_vectors::read(&format!("tdx/eventlogs/{name}.bin")) else { return };
        let used = tcg::used_length(&bytes).unwrap_or_else(|| panic!("{name} is not read"));
        assert!(bytes[used..].iter().all(|b| *b == 0xFF) || bytes[used..].iter().all(|b| *b == 0), "{name}");
        let dir = tempfile::tempdir().unwrap();
        let before = tcg::replay(&bytes, 4).unwrap();
        let mut log = RuntimeLog::open(dir.path(), Some(&bytes[..used]), software).unwrap();
        let event = Event::new("example.com", "start", "x").unwrap();
        let recorded = log.record(&event, Asker::Agent).unwrap();
        assert_eq!(recorded.value, extended(&before, &event.entry(4).1), "{name}");
        assert_eq!(tcg::replay(log.bytes(), 4).unwrap(), recorded.value, "{name}");
        assert!(log.bytes().starts_with(&bytes[..used]));
    }
    let Some(bytes) = kata_cc_test_vectors::read("tdx/eventlogs/ccel-aael-alibaba.bin") else { return };
    let events: Vec<_> = tcg::events(&bytes).map(Result::unwrap).filter_map(|e| Event::of(&e)).collect();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!((events[0].domain(), events[0].content()), ("coco.com", "some-content"));
}

#[test]
fn the_firmwares_log_is_read_without_its_filling() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(kata_cc_attester::tdx::firmware_log(root.path()).unwrap(), None);
    let Some(bytes) = kata_cc_test_vectors::read("tdx/eventlogs/ccel-gcp-cos113.bin") else { return };
    let path = root.path().join(kata_cc_attester::tdx::CCEL);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let log = kata_cc_attester::tdx::firmware_log(root.path()).unwrap().unwrap();
    assert!(log.len() < bytes.len() && bytes.starts_with(&log));
    std::fs::write(&path, vec![0; (1 << 20) + 1]).unwrap();
    assert!(kata_cc_attester::tdx::firmware_log(root.path()).is_err(), "larger than any log");
    std::fs::write(&path, &bytes[..100]).unwrap();
    assert!(kata_cc_attester::tdx::firmware_log(root.path()).is_err(), "cut");
}

#[test]
fn evidence_of_a_tee_without_registers_shows_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = RuntimeLog::open(dir.path(), None, software).unwrap();
    let recorded = log.record(&Event::pull_image("r/i:1", "sha256:00").unwrap(), Asker::Agent).unwrap();
    let mut report = vec![0; 1184];
    report[0] = 2;
    let raw = RawReport { report, certificates: Vec::new() };
    let snapshot = LogSnapshot::take(&log).unwrap();
    let evidence = snp_evidence(&raw, &[0; 64], Some(&snapshot)).unwrap();
    let shown = &evidence["runtime_measurements"];
    assert_eq!(shown["kept_by"], "agent");
    assert_eq!(shown["value"], hex::encode(recorded.value));
    let sent = kata_cc_kbs_protocol::from_base64_standard(shown["cc_eventlog"].as_str().unwrap()).unwrap();
    assert_eq!(tcg::replay(&sent, 4).unwrap(), recorded.value);
}

#[test]
fn the_log_is_bounded_and_the_agent_keeps_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = RuntimeLog::open(dir.path(), None, software).unwrap();
    let big = Event::new("example.com", "fill", &"x".repeat(8000)).unwrap();
    let mut count = 0;
    let refused = loop {
        match log.record(&big, Asker::Api) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, LogError::Full { most: MAX_ASKED, .. }), "{refused}");
    assert!(count * 8000 <= MAX_ASKED && count > 60, "{count}");
    log.record(&big, Asker::Agent).unwrap();
    let posing = Event::pull_image("evil", "sha256:00").unwrap();
    assert!(matches!(log.record(&posing, Asker::Api), Err(LogError::Reserved)));
}

/// A register outside of the process, as the processor's is, that may fail.
#[derive(Clone, Default)]
struct Outside(Arc<Mutex<(Option<Digest>, bool)>>);

impl Register for Outside {
    fn number(&self) -> u32 {
        4
    }
    fn is_hardware(&self) -> bool {
        true
    }
    fn value(&self) -> std::io::Result<Digest> {
        Ok(self.0.lock().unwrap().0.unwrap_or([0; 48]))
    }
    fn extend(&mut self, by: &Digest) -> std::io::Result<()> {
        let value = extended(&self.value()?, by);
        let mut state = self.0.lock().unwrap();
        if state.1 {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        state.0 = Some(value);
        Ok(())
    }
}

fn open(dir: &Path, register: &Outside) -> RuntimeLog {
    let register = register.clone();
    RuntimeLog::open(dir, None, move |_| Ok(Box::new(register))).unwrap()
}

/// The write-ahead entry as it lies there between the two steps.
fn pending(dir: &Path, log: &RuntimeLog, event: &Event) -> Digest {
    let value = extended(&log.value().unwrap(), &event.entry(4).1);
    let bytes = [&(log.bytes().len() as u64).to_be_bytes()[..], &value, event.text().as_bytes()].concat();
    std::fs::write(dir.join(".wal_event_entry"), bytes).unwrap();
    value
}

#[test]
fn a_crash_between_register_and_log_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let register = Outside::default();
    let mut log = open(dir.path(), &register);
    let (one, two) = (Event::new("a", "one", "1").unwrap(), Event::new("a", "two", "2").unwrap());
    log.record(&one, Asker::Agent).unwrap();
    let before = log.bytes().to_vec();

    // It was measured, and a part of it written.
    let value = pending(dir.path(), &log, &two);
    register.clone().extend(&two.entry(4).1).unwrap();
    let part = [before.clone(), two.entry(4).0[..20].to_vec()].concat();
    std::fs::write(dir.path().join("eventlog"), part).unwrap();
    let log = open(dir.path(), &register);
    assert_eq!(tcg::replay(log.bytes(), 4).unwrap(), value);
    assert_eq!(std::fs::read(dir.path().join("eventlog")).unwrap(), log.bytes());
    assert!(!dir.path().join(".wal_event_entry").exists());

    // It was not measured.
    let before = log.bytes().to_vec();
    pending(dir.path(), &log, &one);
    let log = open(dir.path(), &register);
    assert_eq!(log.bytes(), before);

    // The entry itself was cut: nothing had been done yet.
    for cut in [0, 7, 56] {
        std::fs::write(dir.path().join(".wal_event_entry"), vec![1; cut]).unwrap();
        assert_eq!(open(dir.path(), &register).bytes(), before);
    }
}

#[test]
fn a_register_or_a_file_that_fails_is_told_and_made_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let register = Outside::default();
    let mut log = open(dir.path(), &register);
    let event = Event::new("a", "one", "1").unwrap();
    register.0.lock().unwrap().1 = true;
    let refused = log.record(&event, Asker::Agent).unwrap_err();
    assert!(refused.to_string().contains("extend the register"), "{refused}");
    register.0.lock().unwrap().1 = false;
    assert_eq!(tcg::replay(log.bytes(), 4).unwrap(), [0; 48]);

    // The log cannot be written after the register was extended.
    let path = dir.path().join("eventlog");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(log.record(&event, Asker::Agent).is_err());
    std::fs::remove_dir(&path).unwrap();
    let recorded = log.record(&event, Asker::Agent).unwrap();
    assert_eq!(tcg::replay(log.bytes(), 4).unwrap(), recorded.value);
    assert_eq!(tcg::events(log.bytes()).count(), 3, "header, the first, the second");
    assert_eq!(std::fs::read(path).unwrap(), log.bytes());
}

#[test]
fn a_log_of_before_is_continued_and_a_damaged_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let event = Event::new("a", "one", "1").unwrap();
    let recorded = RuntimeLog::open(dir.path(), None, software).unwrap().record(&event, Asker::Api).unwrap();
    let mut log = RuntimeLog::open(dir.path(), None, software).unwrap();
    assert_eq!(log.value().unwrap(), recorded.value);
    log.record(&event, Asker::Agent).unwrap();
    let mut bytes = std::fs::read(dir.path().join("eventlog")).unwrap();
    bytes.truncate(bytes.len() - 1);
    std::fs::write(dir.path().join("eventlog"), &bytes).unwrap();
    let refused = RuntimeLog::open(dir.path(), None, software).unwrap_err();
    assert!(matches!(refused, LogError::Damaged(TcgError::Truncated { .. })), "{refused}");
}

#[test]
fn registers_of_tdx_are_files_of_the_kernel() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("sys/devices/virtual/misc/tdx_guest/measurements");
    std::fs::create_dir_all(&dir).unwrap();
    assert!(Rtmr::open(root.path(), 3).is_err(), "an older kernel has none");
    std::fs::write(dir.join("rtmr3:sha384"), [0; 48]).unwrap();
    let mut rtmr = Rtmr::open(root.path(), 3).unwrap();
    assert_eq!((rtmr.number(), rtmr.is_hardware()), (4, true));
    // The fake takes the write for the value; the kernel extends.
    rtmr.extend(&[7; 48]).unwrap();
    assert_eq!(rtmr.value().unwrap(), [7; 48]);
    std::fs::write(dir.join("rtmr3:sha384"), [0; 47]).unwrap();
    assert!(rtmr.value().is_err());
    for index in [0, 1, 4] {
        let refused = Rtmr::open(root.path(), index).unwrap_err();
        assert!(refused.to_string().contains("2 and 3"), "{refused}");
    }
}
