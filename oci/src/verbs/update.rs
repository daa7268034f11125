//! `update`: other limits for a container that runs.

use std::io::Read;

use kata_cc_agent_protocol::agent as api;
use protobuf::well_known_types::empty::Empty;
use serde_json::{Map, Value, json};

use super::Context;
use crate::agent::{Agent, AgentError};
use crate::arguments::Update;
use crate::bundle::read_object;
use crate::cgroup::for_the_host;
use crate::error::{OciError, io};
use crate::store::Status;
use crate::wire;

/// Largest text on standard input.
const MOST: u64 = 1 << 20;
/// gRPC's UNIMPLEMENTED.
const UNIMPLEMENTED: i32 = 12;

/// The verb.
pub(super) fn update(context: &Context, arguments: &Update) -> Result<u8, OciError> {
    let (_locked, state) = context.store.lock(&arguments.id)?;
    let status = state.status();
    if status == Status::Stopped {
        return Err(OciError::NotRunning { id: state.id, status });
    }
    let resources = match &arguments.resources {
        Some(file) if file.as_os_str() == "-" => from_stdin()?,
        Some(file) => read_object(file)?.1,
        None => of_options(arguments)?,
    };
    match &state.groups {
        Some(groups) => groups.limit(&for_the_host(&resources))?,
        None => context.log.warn("the container has no control groups: its limits are not changed"),
    }
    let mut request = api::UpdateContainerRequest::new();
    request.container_id.clone_from(&state.id);
    request.resources = Some(wire::resources(&resources)).into();
    let told = Agent::connect(context.store.folder_of(&state.sandbox).path())
        .and_then(|mut agent| agent.call::<Empty>("UpdateContainer", &request));
    match told {
        // The groups limit it; the sentry would only show it to programs.
        Err(AgentError::Refused { code: UNIMPLEMENTED, .. }) | Ok(_) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn from_stdin() -> Result<Value, OciError> {
    let mut text = String::new();
    std::io::stdin().take(MOST).read_to_string(&mut text).map_err(io("cannot read standard input"))?;
    let value: Option<Value> = serde_json::from_str(&text).ok().filter(Value::is_object);
    value.ok_or_else(|| OciError::Usage("standard input is no JSON object of resources".into()))
}

fn of_options(arguments: &Update) -> Result<Value, OciError> {
    if arguments.l3_cache_schema.is_some() || arguments.mem_bw_schema.is_some() {
        return Err(OciError::Usage("Intel RDT is not there for sandboxes of the sentry".into()));
    }
    if arguments.kernel_memory.is_some() || arguments.kernel_memory_tcp.is_some() {
        let reason = "limits of the kernel's memory mean nothing for a sandbox: use --memory";
        return Err(OciError::Usage(reason.into()));
    }
    let object = |pairs: Vec<(&str, Value)>| -> Value {
        let set = pairs.into_iter().filter(|(_, value)| !value.is_null());
        set.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
    };
    Ok(json!({
        "memory": object(vec![
            ("limit", json!(arguments.memory)),
            ("reservation", json!(arguments.memory_reservation)),
            ("swap", json!(arguments.memory_swap)),
        ]),
        "cpu": object(vec![
            ("shares", json!(arguments.cpu_share)),
            ("quota", json!(arguments.cpu_quota)),
            ("period", json!(arguments.cpu_period)),
            ("realtimePeriod", json!(arguments.cpu_rt_period)),
            ("realtimeRuntime", json!(arguments.cpu_rt_runtime)),
            ("cpus", json!(arguments.cpuset_cpus)),
            ("mems", json!(arguments.cpuset_mems)),
        ]),
        "pids": object(vec![("limit", json!(arguments.pids_limit))]),
        "blockIO": object(vec![("weight", json!(arguments.blkio_weight))]),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Verb};
    use clap::Parser;

    fn of(line: &str) -> Result<Value, OciError> {
        let Verb::Update(update) = Arguments::try_parse_from(line.split(' ')).unwrap().verb else { panic!() };
        of_options(&update)
    }

    #[test]
    fn options_become_resources() {
        let made = of("runc update --memory 5 --cpu-quota -1 --cpuset-cpus 0-1 --pids-limit 9 c").unwrap();
        assert_eq!(
            made,
            json!({"memory": {"limit": 5}, "cpu": {"quota": -1, "cpus": "0-1"}, "pids": {"limit": 9}, "blockIO": {}})
        );
        assert!(of("runc update --l3-cache-schema x c").unwrap_err().to_string().contains("RDT"));
        assert!(of("runc update --kernel-memory 1 c").unwrap_err().to_string().contains("use --memory"));
    }
}
