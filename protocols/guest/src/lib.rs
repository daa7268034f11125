//! ttrpc contracts of CoCo's guest components: attestation agent, confidential data hub, key provider. Generated at build
//! time: see `proto/`. Names and numbers are those of guest-components 0.21, so that its clients work unchanged.
#![allow(
    missing_docs,
    unreachable_pub,
    nonstandard_style,
    unused_imports,
    unused_mut,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used
)]

#[rustfmt::skip]
pub mod attestation_agent {
    include!(concat!(env!("OUT_DIR"), "/attestation_agent.rs"));
}
#[rustfmt::skip]
pub mod attestation_agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/attestation_agent_ttrpc.rs"));
}
#[rustfmt::skip]
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}
#[rustfmt::skip]
pub mod api_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/api_ttrpc.rs"));
}
#[rustfmt::skip]
pub mod keyprovider {
    include!(concat!(env!("OUT_DIR"), "/keyprovider.rs"));
}
#[rustfmt::skip]
pub mod keyprovider_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/keyprovider_ttrpc.rs"));
}
