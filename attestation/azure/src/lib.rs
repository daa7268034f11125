//! Evidence behind Azure vTPMs: parse, verify. Pure.
#![forbid(unsafe_code)]
