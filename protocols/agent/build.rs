//! Generates the agent's messages and ttrpc services.

fn main() -> std::io::Result<()> {
    kata_cc_protocol_codegen::generate(&["agent", "csi", "health", "oci", "types"])
}
