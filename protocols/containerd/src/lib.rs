//! Wire contract, generated at build time: see `proto/`.
#![allow(
    missing_docs,
    unreachable_pub,
    nonstandard_style,
    unused_imports,
    unused_mut,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::cast_lossless
)]

#[rustfmt::skip]
pub mod bootstrap {
    include!(concat!(env!("OUT_DIR"), "/bootstrap.rs"));
}
#[rustfmt::skip]
pub mod cgroups_v1 {
    include!(concat!(env!("OUT_DIR"), "/cgroups_v1.rs"));
}
#[rustfmt::skip]
pub mod cgroups_v2 {
    include!(concat!(env!("OUT_DIR"), "/cgroups_v2.rs"));
}
#[rustfmt::skip]
pub mod descriptor {
    include!(concat!(env!("OUT_DIR"), "/descriptor.rs"));
}
#[rustfmt::skip]
pub mod envelope {
    include!(concat!(env!("OUT_DIR"), "/envelope.rs"));
}
#[rustfmt::skip]
pub mod events_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/events_ttrpc.rs"));
}
#[rustfmt::skip]
pub mod events_ttrpc_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/events_ttrpc_ttrpc.rs"));
}
#[rustfmt::skip]
pub mod introspection {
    include!(concat!(env!("OUT_DIR"), "/introspection.rs"));
}
#[rustfmt::skip]
pub mod mount {
    include!(concat!(env!("OUT_DIR"), "/mount.rs"));
}
#[rustfmt::skip]
pub mod runc_options {
    include!(concat!(env!("OUT_DIR"), "/runc_options.rs"));
}
#[rustfmt::skip]
pub mod runtime_options {
    include!(concat!(env!("OUT_DIR"), "/runtime_options.rs"));
}
#[rustfmt::skip]
pub mod task_events {
    include!(concat!(env!("OUT_DIR"), "/task_events.rs"));
}
#[rustfmt::skip]
pub mod task_types {
    include!(concat!(env!("OUT_DIR"), "/task_types.rs"));
}
#[rustfmt::skip]
pub mod task_v2_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/task_v2_ttrpc.rs"));
}
#[rustfmt::skip]
pub mod task_v3 {
    include!(concat!(env!("OUT_DIR"), "/task_v3.rs"));
}
#[rustfmt::skip]
pub mod task_v3_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/task_v3_ttrpc.rs"));
}
