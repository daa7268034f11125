//! Generates the containerd messages and ttrpc services from `proto/` (no `protoc` needed).

use std::path::PathBuf;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    Codegen::new()
        .out_dir(&out)
        .include("proto")
        .inputs(
            [
                "bootstrap",
                "cgroups_v1",
                "cgroups_v2",
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
            ]
            .map(|name| format!("proto/{name}.proto")),
        )
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, gen_mod: false, ..Default::default() })
        .run()?;
    // `include!` takes no inner attributes: `lib.rs` sets them on the modules instead.
    for file in std::fs::read_dir(&out)? {
        let path = file?.path();
        let text = std::fs::read_to_string(&path)?;
        let kept: Vec<&str> =
            text.lines().filter(|l| !l.starts_with("#![") && !l.starts_with("//!")).collect();
        std::fs::write(&path, kept.join("\n"))?;
    }
    Ok(())
}
