//! `kata-cc-runc`: an OCI runtime for engines that want a program of its own (`podman --runtime`, `BinaryName` of containerd).
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(kata_cc_oci::verbs::main(std::env::args_os()))
}
