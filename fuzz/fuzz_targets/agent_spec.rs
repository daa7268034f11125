//! What the host asks the agent to run: protobuf bytes to the plan of a container, as in `agent/src/container/spec.rs`.
//!
//! The agent is a program, not a library: its modules are taken in by path.
#![no_main]
#![allow(dead_code)]

#[path = "../../agent/src/mounts.rs"]
mod mounts;
#[path = "../../agent/src/stage"]
mod stage {
    pub(crate) mod message;
}
#[path = "../../agent/src/container"]
mod container {
    pub(crate) mod seccomp;
    pub(crate) mod spec;
}

use std::path::Path;

use container::spec::{Surroundings, check_id, create, process};
use kata_cc_agent_protocol::agent::CreateContainerRequest;
use libfuzzer_sys::fuzz_target;
use protobuf::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(request) = CreateContainerRequest::parse_from_bytes(data) else { return };
    let _ = check_id(&request.container_id);
    let Some(spec) = request.OCI.as_ref() else { return };
    let around = Surroundings { confidential: true, ..Surroundings::default() };
    if let Ok(plan) = create(spec, Path::new("/r"), &around) {
        // No namespace of the guest is joined, and no path leads upwards.
        assert!(plan.namespaces.iter().all(|namespace| namespace.join.is_none()));
        for device in &plan.devices {
            assert!(device.path.starts_with('/') && !device.path.split('/').any(|part| part == ".."));
        }
    }
    if let Some(of) = spec.Process.as_ref() {
        let _ = process(of, spec.Linux.as_ref(), request.string_user.as_ref());
    }
});
