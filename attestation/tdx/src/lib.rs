//! Intel TDX quotes and their collateral: parse, verify. Pure.
#![forbid(unsafe_code)]
