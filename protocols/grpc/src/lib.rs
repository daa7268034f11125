//! gRPC contracts of Trustee's attestation service: [`attestation`], [`reference`] (the reference value provider), gRPC's own
//! [`health`] checks, and [`keyprovider`] of ocicrypt. Messages, clients and servers; generated from `proto/`, which is written from the wire facts.
//!
//! Only here, in the attestation service and in the command line is prost used; ttrpc stays with rust-protobuf.
#![forbid(unsafe_code)]

/// Package `attestation`: evidence in, token out.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::get_unwrap,
    clippy::unwrap_used,
    reason = "generated"
)]
pub mod attestation {
    tonic::include_proto!("attestation");
}

/// Package `reference`: reference values.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::get_unwrap,
    clippy::unwrap_used,
    reason = "generated"
)]
pub mod reference {
    tonic::include_proto!("reference");
}

/// Package `grpc.health.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::get_unwrap,
    clippy::unwrap_used,
    reason = "generated"
)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// Package `keyprovider`: layer keys of encrypted images (ocicrypt).
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::get_unwrap,
    clippy::unwrap_used,
    reason = "generated"
)]
pub mod keyprovider {
    tonic::include_proto!("keyprovider");
}
