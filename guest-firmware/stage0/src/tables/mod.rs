//! Tables that the guest finds: they are made here, in private memory, from the measured boot block and
//! the checked boot info. None of the host's own is passed on, so none of its AML is run.

pub mod acpi;
pub mod cc_blob;
pub mod dsdt;
pub mod efi;
pub mod mptable;

/// Appends to a place of fixed size.
#[derive(Debug)]
pub struct Writer<'a> {
    place: &'a mut [u8],
    length: usize,
}

impl<'a> Writer<'a> {
    /// Begins at the start of `place`.
    pub fn new(place: &'a mut [u8]) -> Self {
        Self { place, length: 0 }
    }

    /// Bytes so far.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Appends.
    ///
    /// # Errors
    /// When the place is full.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), crate::platform::Termination> {
        let place = self.place.get_mut(self.length..).and_then(|rest| rest.get_mut(..bytes.len()));
        place.ok_or(crate::platform::Termination::TablesTooLarge)?.copy_from_slice(bytes);
        self.length += bytes.len();
        Ok(())
    }

    /// Appends zeros up to a multiple of `alignment`.
    ///
    /// # Errors
    /// When the place is full.
    pub fn align(&mut self, alignment: usize) -> Result<(), crate::platform::Termination> {
        while !self.length.is_multiple_of(alignment) {
            self.put(&[0])?;
        }
        Ok(())
    }

    /// What was written from `start` on.
    pub fn written(&mut self, start: usize) -> &mut [u8] {
        self.place.get_mut(start..self.length).unwrap_or_default()
    }

    /// Sets the byte at `at` so that all bytes from `start` to `end` sum up to zero.
    pub fn checksum(&mut self, start: usize, end: usize, at: usize) {
        let sum = self.place.get(start..end).unwrap_or_default();
        let sum = sum.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        if let Some(byte) = self.place.get_mut(at) {
            *byte = byte.wrapping_sub(sum);
        }
    }
}
