//! Real event logs: parsed as Trustee does, replayed to the registers that are known.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Case, read};
use kata_cc_tdx::aael::RuntimeEvent;
use kata_cc_tdx::event_log::{EV_NO_ACTION, EventLog, EventLogError, extend};
use kata_cc_tdx::quote::Trailing;
use kata_cc_tdx::{Quote, event_details};
use serde_json::{Value, json};

/// Events and registers; `""` stands for zeros.
const LOGS: [(&str, usize, [&str; 4]); 5] = [
    (
        "ccel-a",
        5,
        [
            "2dc712306a963eadb894ad47dbaa17df44814151555aee11cbb843becca88950ffd079664902e6f22c66f7c8213543f4",
            "0fa3be56af61208bbd179dc7b124988eb929319154663c539d6f46445ecac2fec287075047ff7bd1922829fec28cd3cf",
            "",
            "",
        ],
    ),
    (
        "ccel-ovmf",
        20,
        [
            "8566f998798db09443b244c62de9a3041fb02e2e6936c4396d784bba2e90177329ec5aba3bb484404f2ab9cc90abe193",
            "775b9f6bfe99f8a31396f0d0218e67ffa796d3b96ccf961cbb0deba48c79c00f082cda1a5567c1c16305f1fc210c13c6",
            "94eaf7a7bf398ed8d888c91057ae0261802e4f3df084213a76ca7f0b5055ac9d2241de43cd58d9e8b49c503bbf25f34a",
            "",
        ],
    ),
    (
        "ccel-grub",
        37,
        [
            "cec0a104f691f60da2387fea3c2de00c4ac035e2bb479ff02edcce69039d9e9907f0b3e55031da3dc7038f423adebd79",
            "6c289e0c62182d41ebe97bdbc9872d10998a08eaa86adcdc684001a363207ee72942c7522cdf00a4bbc3d784bed7b670",
            "08919d017ba0e52cd6d966351c7de16fe76c1d3d3d3da4554239e4c7d16cb8b82a94e7eaea3a0e6e18eb690b999fd31e",
            "",
        ],
    ),
    (
        "ccel-aael-alibaba",
        87,
        [
            "b796e1c11396c198ae88794def4cb8e24fa9b35468287c298087f00d4de7433e4e31a297a4e5a03d4300fa6f3a96d47c",
            "3b0b906140fcea689c8774ac1eafcf0fef8e22ba81a047fd750ebd7df3235c2704df6106a758e31e5645e9838ff37406",
            "35f2801338c1b5fce96518f058c37e0fe9ed247a12dcd5f50d9c18fe4b6c71311bb63fca2640c7915817b6aa412a8480",
            "5e4ecd49d3c7983d6f9ca36755b5cee0b423d7fa8c5a88aeb0681bd4698772bc37b4463dc5f722efe352a66417257dad",
        ],
    ),
    (
        "ccel-gcp-cos113",
        43,
        [
            "3fa2f61f395b7f5feefb4ec2df61297f109ad8abcd6410c1b7df60f21f37b19297fc35e544039c7e1edece752afd17f6",
            "f62dbc072bd5d3f3438b7b35c39a727f5aea2ffc2473f43723953f530daf62504f0a7944aa62c41a86e8a878c2b122c1",
            "4969684dc87381fc3b3134176c8d8806eaf0a901859f5f70cfae8d17714b46c10a8de219048c9fc09f11f381a6fbe7c1",
            "",
        ],
    ),
];

#[test]
fn logs_lead_to_their_registers() {
    let Some(dir) = kata_cc_test_vectors::path("tdx/eventlogs") else { return };
    for (name, events, registers) in LOGS {
        let log = EventLog::parse(&read(&dir, &format!("{name}.bin"))).unwrap();
        assert_eq!(log.events.len(), events, "{name}");
        let expected = registers.map(|text| if text.is_empty() { "0".repeat(96) } else { text.to_owned() });
        assert_eq!(log.replay().unwrap().map(hex::encode), expected, "{name}");
    }
}

#[test]
fn events_are_told_in_the_words_of_trustee() {
    let Some(dir) = kata_cc_test_vectors::path("tdx/eventlogs") else { return };
    for name in ["ccel-a", "ccel-ovmf", "ccel-grub", "ccel-aael-alibaba"] {
        let log = EventLog::parse(&read(&dir, &format!("{name}.bin"))).unwrap();
        let expected: Value = serde_json::from_slice(&read(&dir, &format!("{name}.out.json"))).unwrap();
        let expected = expected["uefi_event_logs"].as_array().unwrap();
        assert_eq!(log.events.len(), expected.len());
        for (index, (event, expected)) in log.events.iter().zip(expected).enumerate() {
            assert_eq!(event_details::claim(event), *expected, "{name} event {index}");
        }
    }
}

#[test]
fn a_log_is_compared_with_its_quote() {
    let Some(dir) = kata_cc_test_vectors::path("tdx/eventlogs") else { return };
    let case = Case::load("v4-gcp-cos113").unwrap();
    let quote = Quote::parse(&case.quote, Trailing::Zeros).unwrap();
    let log = EventLog::parse(&read(&dir, "ccel-gcp-cos113.bin")).unwrap();
    assert_eq!(log.check(&quote.body.rtmr), Ok(Ok(())));
    // Of each event that is measured, the digest counts; leaving one out is found, too.
    let mut measured = 0;
    for index in 0..log.events.len() {
        let mut shorter = log.clone();
        let event = shorter.events.remove(index);
        let counts = (1..=4).contains(&event.register) && event.event_type != EV_NO_ACTION;
        assert_eq!(shorter.check(&quote.body.rtmr).unwrap().is_err(), counts, "event {index}");
        measured += usize::from(counts);
        if counts {
            let mut changed = log.clone();
            changed.events[index].digests[0].1[47] ^= 1;
            let error = changed.check(&quote.body.rtmr).unwrap().unwrap_err();
            assert_eq!(u32::from(error.register) + 1, event.register);
        }
    }
    assert!(measured > 30);
}

#[test]
fn runtime_events_are_written_as_the_agent_writes_them() {
    let Some(dir) = kata_cc_test_vectors::path("coco/aael") else { return };
    let cases: Value = serde_json::from_slice(&read(&dir, "events.json")).unwrap();
    let text = |case: &Value, name: &str| case[name].as_str().unwrap().to_owned();
    let mut register = [0; 48];
    for case in cases["events"].as_array().unwrap() {
        let event =
            RuntimeEvent::new(&text(case, "domain"), &text(case, "operation"), &text(case, "content"))
                .unwrap();
        assert_eq!(hex::encode(event.entry()), text(case, "entry_hex"));
        assert_eq!(hex::encode(event.digest()), text(case, "digest_hex"));
        register = extend(&register, &event.digest());
        assert_eq!(hex::encode(register), text(case, "register_after_hex"));
    }
    for case in cases["refuse"].as_array().unwrap() {
        RuntimeEvent::new(&text(case, "domain"), &text(case, "operation"), &text(case, "content"))
            .unwrap_err();
    }
}

/// A header that names SHA-384 only.
fn header() -> Vec<u8> {
    let mut data = b"Spec ID Event03\0".to_vec();
    data.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    data.extend(1u32.to_le_bytes());
    data.extend([0x0C, 0, 48, 0, 0]);
    let mut out = 0u32.to_le_bytes().to_vec();
    out.extend(EV_NO_ACTION.to_le_bytes());
    out.extend([0; 20]);
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}

fn log() -> Vec<u8> {
    let mut log = header();
    for content in ["a", "b"] {
        log.extend(RuntimeEvent::new("test", "Event", content).unwrap().entry());
    }
    log
}

#[test]
fn a_log_ends_where_it_is_not_written() {
    let whole = EventLog::parse(&log()).unwrap();
    assert_eq!(whole.events.len(), 2);
    for fill in [0, 0xFF] {
        for padding in [1, 7, 8, 100] {
            let padded = [log(), vec![fill; padding]].concat();
            assert_eq!(EventLog::parse(&padded), Ok(whole.clone()), "{padding} times {fill}");
        }
    }
    assert_eq!(EventLog::parse(&header()), Ok(EventLog::default()));
    assert_eq!(EventLog::default().replay(), Ok([[0; 48]; 4]));
}

#[test]
fn broken_logs_are_refused() {
    let good = log();
    let whole = EventLog::parse(&good).unwrap();
    let entry = (good.len() - header().len()) / 2;
    for len in 0..good.len() {
        match EventLog::parse(&good[..len]) {
            // Cut between two events it is a shorter log, and leads to other registers.
            Ok(shorter) => {
                assert!((len - header().len()).is_multiple_of(entry), "{len}");
                assert!(shorter.check(&whole.replay().unwrap()).unwrap().is_err());
            }
            Err(error) => assert!(
                matches!(error, EventLogError::Truncated { .. } | EventLogError::Header),
                "{len}: {error}"
            ),
        }
    }
    let at = |offset: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[offset..offset + bytes.len()].copy_from_slice(bytes);
        EventLog::parse(&changed)
    };
    assert_eq!(at(4, &[1]), Err(EventLogError::Header));
    assert_eq!(at(32, b"Spec ID Event02\0"), Err(EventLogError::Header));
    assert_eq!(at(56, &[17]), Err(EventLogError::TooManyDigests { index: 0, seen: 17 }));
    let size = EventLogError::DigestSize { algorithm: 0xC, seen: 32, expected: 48 };
    assert_eq!(at(62, &[32]), Err(size));
    let event = header().len();
    assert_eq!(at(event + 8, &[255]), Err(EventLogError::TooManyDigests { index: 1, seen: 255 }));
    assert_eq!(at(event + 12, &[0xB]), Err(EventLogError::Algorithm { index: 1, seen: 0xB }));
    // Said to be measured, but without a digest.
    let mut bare = header();
    bare.extend([1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(EventLog::parse(&bare).unwrap().replay(), Err(EventLogError::NoSha384 { index: 1 }));
}

#[test]
fn data_out_of_form_has_no_details() {
    let mut event = EventLog::parse(&log()).unwrap().events.remove(0);
    assert_eq!(event_details::claim(&event)["details"]["data"]["operation"], "Event");
    let kinds = [0x1, 0x6, 0xA, 0xD, 0x8000_0001, 0x8000_0003, 0x8000_000A, 0x8000_00E0, 0x1234]
        .map(|kind: u32| kind);
    for kind in kinds {
        event.event_type = kind;
        for data in [vec![], vec![0xFF], vec![0xFF; 40], vec![0x18; 60]] {
            event.data = data;
            let claim = event_details::claim(&event);
            assert!(claim["details"].is_object() && claim["digest_matches_event"] == json!(false));
        }
    }
    assert_eq!(event_details::claim(&event)["type_name"], "0x1234");
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        for bytes in [bytes.clone(), [header(), bytes].concat()] {
            if let Ok(log) = EventLog::parse(&bytes) {
                let _ = log.replay();
                for event in &log.events {
                    let _ = event_details::claim(event);
                }
            }
        }
    }
}
