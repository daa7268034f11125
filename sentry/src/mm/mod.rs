//! What lies where in an address space.

/// An address space: areas, `brk`, limits. The memory itself is the stub's ([`crate::platform`]).
#[derive(Default)]
pub struct AddressSpace {}
