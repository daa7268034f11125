//! Generates containerd's messages and ttrpc services.

fn main() -> std::io::Result<()> {
    kata_cc_protocol_codegen::generate(&[
        "bootstrap",
        "cgroups_v1",
        "cgroups_v2",
        "descriptor",
        "envelope",
        "events_ttrpc",
        "introspection",
        "mount",
        "runc_options",
        "runtime_options",
        "task_events",
        "task_types",
        "task_v2",
        "task_v3",
    ])
}
