//! A container's `config.json` to the agent's request: what is made can be sent, and reads back the same.
#![no_main]

use kata_cc_agent_protocol::oci::Spec;
use kata_cc_sandbox::oci::convert;
use libfuzzer_sys::fuzz_target;
use protobuf::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(spec) = serde_json::from_slice(data) else { return };
    let Ok(converted) = convert("fuzz", &spec, "/run/kata-containers/fuzz/rootfs") else { return };
    for copy in &converted.copies {
        assert!(!copy.to.split('/').any(|part| part == ".."), "{}", copy.to);
    }
    let bytes = converted.spec.write_to_bytes().expect("the message can be written");
    assert_eq!(Spec::parse_from_bytes(&bytes).expect("what was written can be read"), converted.spec);
});
