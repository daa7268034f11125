//! Generates the client of the Container Runtime Interface from the part of it that recordings of pods are made with.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../policy/tests/recordings";
    println!("cargo::rerun-if-changed={folder}/cri.proto");
    let descriptors = protox::compile(["cri.proto"], [folder])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
