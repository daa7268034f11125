//! Wire contract, generated at build time: see `proto/`.
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

pub mod json;

#[rustfmt::skip]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}
#[rustfmt::skip]
pub mod agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}
#[rustfmt::skip]
pub mod csi {
    include!(concat!(env!("OUT_DIR"), "/csi.rs"));
}
#[rustfmt::skip]
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/health.rs"));
}
#[rustfmt::skip]
pub mod health_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/health_ttrpc.rs"));
}
#[rustfmt::skip]
pub mod oci {
    include!(concat!(env!("OUT_DIR"), "/oci.rs"));
}
#[rustfmt::skip]
pub mod types {
    include!(concat!(env!("OUT_DIR"), "/types.rs"));
}
