//! Certificates and revocation lists: parse, check signatures. Pure.
#![forbid(unsafe_code)]
