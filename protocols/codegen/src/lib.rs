//! What the build scripts of the wire contracts have in common: messages and ttrpc services from `proto/`, with no
//! `protoc` needed.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

/// Generates `proto/{name}.proto` of the crate that is built, for each of `names`, into its `OUT_DIR`: a file `{name}.rs`
/// with the messages and, when the file has services, `{name}_ttrpc.rs`.
///
/// # Errors
/// When a file cannot be read, is no proto3, or the result cannot be written.
///
/// # Panics
/// Outside of a build script.
pub fn generate(names: &[&str]) -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    Codegen::new()
        .out_dir(&out)
        .include("proto")
        .inputs(names.iter().map(|name| format!("proto/{name}.proto")))
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, gen_mod: false, ..Default::default() })
        .run()?;
    for file in std::fs::read_dir(&out)? {
        without_inner_attributes(&file?.path())?;
    }
    Ok(())
}

/// `include!` takes no inner attributes: the crate's `lib.rs` sets them for all its modules instead.
fn without_inner_attributes(path: &Path) -> std::io::Result<()> {
    let text = std::fs::read_to_string(path)?;
    let kept: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("//!")).collect();
    std::fs::write(path, kept.join("\n"))
}
