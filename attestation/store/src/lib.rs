//! The store behind key broker and attestation service.
#![forbid(unsafe_code)]
