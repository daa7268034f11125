//! Talks to a PKCS#11 module in a process of its own.
#![forbid(unsafe_code)]
