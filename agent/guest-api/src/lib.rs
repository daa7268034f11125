//! APIs of guest components, as CoCo names them.
#![forbid(unsafe_code)]
