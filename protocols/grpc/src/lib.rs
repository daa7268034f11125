//! gRPC contracts of Trustee: attestation, reference.
#![forbid(unsafe_code)]
