//! The firmware image; see the library.
#![no_std]
#![no_main]
