//! ttrpc contracts of the guest components: attestation agent, confidential data hub.
#![forbid(unsafe_code)]
