//! Policies in Rego.
//!
//! [`engine`] compiles and evaluates any Rego text with limits; the modules beside it give it a meaning. [`agent`] is the guest agent's
//! policy as it is enforced. [`manifest`] and [`generate`] make one from a pod's YAML, [`annotate`] puts it there; [`lint`], [`diff`],
//! [`replay`] and [`advice`] are for whoever has to review one.

#![forbid(unsafe_code)]

pub mod advice;
pub mod agent;
pub mod annotate;
mod constants;
pub mod contrast;
pub mod diff;
pub mod engine;
pub mod generate;
pub mod lint;
pub mod manifest;
pub mod replay;

pub use agent::{AgentPolicy, Denial};
