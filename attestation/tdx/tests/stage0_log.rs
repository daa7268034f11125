//! The event log that the guest firmware writes, as the verifier reads it.
#![allow(clippy::unwrap_used, missing_docs)]

use aws_lc_rs::digest::{SHA384, digest};
use kata_cc_stage0::tdx::event_log::EventLog as Writer;
use kata_cc_stage0::tdx::sha384::sha384;
use kata_cc_stage0_abi::{EV_EVENT_TAG, EventData, Measured};
use kata_cc_tdx::event_details;
use kata_cc_tdx::event_log::{EventLog, extend};

fn events() -> Vec<(Measured, EventData)> {
    let payload = |what: Measured, hash| (what, what.payload_event(&[hash; 32]));
    vec![
        (Measured::BootBlock, Measured::block_event(&[7; 4096])),
        payload(Measured::Kernel, 1),
        payload(Measured::CommandLine, 2),
        payload(Measured::Initramfs, 3),
    ]
}

fn log(place: &mut [u8]) {
    let mut log = Writer::new(place).unwrap();
    for (what, data) in events() {
        log.event(what.log_index(), EV_EVENT_TAG, &sha384(data.bytes()), data.bytes()).unwrap();
    }
}

#[test]
fn the_verifier_reads_it_and_each_digest_is_that_of_its_data() {
    let mut place = [0xFF; 4096];
    log(&mut place);
    let log = EventLog::parse(&place).unwrap();
    let measured = &log.events;
    assert_eq!(measured.iter().map(|event| event.register).collect::<Vec<_>>(), [1, 2, 3, 3]);
    assert!(measured.iter().all(kata_cc_tdx::event_log::Event::digests_match));
    let kernel = event_details::claim(&measured[1]);
    assert_eq!(kernel["details"]["string"], format!("kata-cc kernel sha256:{}", "01".repeat(32)));
    assert_eq!(kernel["type_name"], "EV_EVENT_TAG");
}

#[test]
fn replay_leads_to_registers_that_can_be_predicted() {
    let mut place = [0; 4096];
    log(&mut place);
    let mut expected = [[0; 48]; 4];
    for (what, data) in events() {
        let register = &mut expected[what.register() as usize];
        *register = extend(register, digest(&SHA384, data.bytes()).as_ref().try_into().unwrap());
    }
    assert_eq!(EventLog::parse(&place).unwrap().replay().unwrap(), expected);
}

#[test]
fn the_firmwares_sha384_is_the_verifiers() {
    let message: Vec<u8> = (0..1000_u32).map(|number| (number * 7) as u8).collect();
    for length in 0..message.len() {
        assert_eq!(
            sha384(&message[..length])[..],
            *digest(&SHA384, &message[..length]).as_ref(),
            "{length} bytes"
        );
    }
}
