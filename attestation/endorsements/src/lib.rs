//! Gets endorsements (AMD KDS, Intel PCS) and keeps them.
#![forbid(unsafe_code)]
