//! The event log that Linux and verifiers read (TCG PC Client Platform Firmware Profile, chapter 10; UEFI 2.10, 38.4).
//!
//! First an event of the old form that names the one algorithm, SHA-384; then one crypto-agile event for each thing that
//! extended a register. The log lies in private memory that the guest's memory map reserves; it proves nothing by
//! itself: replayed, it has to lead to the registers in the quote.

use super::error::Error;

const EV_NO_ACTION: u32 = 3;
const SHA384: u16 = 0xC;
const SHA384_SIZE: u16 = 48;

/// The log in the memory that was given for it.
#[derive(Debug)]
pub struct EventLog<'a> {
    place: &'a mut [u8],
    used: usize,
}

impl<'a> EventLog<'a> {
    /// An empty log: the header event only, zeros behind.
    ///
    /// # Errors
    /// When not even that has room.
    pub fn new(place: &'a mut [u8]) -> Result<Self, Error> {
        place.fill(0);
        let mut log = Self { place, used: 0 };
        log.append(&[
            &0_u32.to_le_bytes(),
            &EV_NO_ACTION.to_le_bytes(),
            &[0; 20],
            &33_u32.to_le_bytes(),
            b"Spec ID Event03\0",
            &0_u32.to_le_bytes(), // platform class: client
            &[0, 2, 0],           // version of the specification: 2.0, errata 0
            &[2],                 // size of UINTN: 2 × 4 bytes
            &1_u32.to_le_bytes(), // algorithms
            &SHA384.to_le_bytes(),
            &SHA384_SIZE.to_le_bytes(),
            &[0], // bytes of the vendor's own
        ])?;
        Ok(log)
    }

    /// Adds an event; a log without room for the whole of it stays as it is.
    ///
    /// # Errors
    /// When there is no room.
    pub fn event(
        &mut self,
        index: u32,
        event_type: u32,
        digest: &[u8; 48],
        data: &[u8],
    ) -> Result<(), Error> {
        let length = u32::try_from(data.len()).map_err(|_| Error::LogFull)?;
        self.append(&[
            &index.to_le_bytes(),
            &event_type.to_le_bytes(),
            &1_u32.to_le_bytes(),
            &SHA384.to_le_bytes(),
            digest,
            &length.to_le_bytes(),
            data,
        ])
    }

    fn append(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let room =
            self.place.get_mut(self.used..).and_then(|room| room.get_mut(..length)).ok_or(Error::LogFull)?;
        for (to, from) in room.iter_mut().zip(parts.iter().copied().flatten()) {
            *to = *from;
        }
        self.used += length;
        Ok(())
    }

    /// Where the log lies, and how much memory is set aside for it.
    #[must_use]
    pub fn place(&self) -> (u64, usize) {
        (self.place.as_ptr() as u64, self.place.len())
    }
}
