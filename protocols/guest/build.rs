//! Generates the messages and ttrpc services of the guest components.

fn main() -> std::io::Result<()> {
    kata_cc_protocol_codegen::generate(&["attestation_agent", "api", "keyprovider"])
}
