//! Policies in Rego.
//!
//! [`engine`] compiles and evaluates any Rego text with limits; the modules beside it give it a meaning.

#![forbid(unsafe_code)]

pub mod agent;
pub mod engine;

pub use agent::{AgentPolicy, Denial};
