//! One request: parsed from a chain, checked against the disk, carried out.

use std::io;
use std::os::fd::AsFd;

use super::SECTOR;
use super::slot::{Backing, Contents};
use crate::GuestRam;
use crate::queue::{Chain, Segment, slice};
use crate::sys;

const HEADER: u64 = 16;
const ID_BYTES: u64 = 20;

/// The status byte (VIRTIO 1.2, section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Id,
    Other,
}

/// Outcome of a request: its status, and the bytes put into the chain including the status byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) kind: Kind,
    pub(super) status: Status,
    pub(super) data: u64,
    pub(super) used: u32,
}

/// Carries out the request in `chain`. `None` when it is too short to hold even a header and a status byte.
pub(super) fn handle(
    ram: &GuestRam,
    chain: &Chain,
    contents: &Contents,
    id: &str,
    read_only: bool,
    parts: &mut Vec<Segment>,
) -> Option<Outcome> {
    let mut header = [0; HEADER as usize];
    chain.read_at(ram, 0, &mut header)?;
    let status_at = chain.writable_len().checked_sub(1)?;
    let header = u128::from_le_bytes(header);
    let (kind, sector) = (header as u32, (header >> 64) as u64);

    let (kind, result) = match kind {
        0 => (Kind::Read, {
            slice(chain.writable(), 0, status_at, parts)?;
            transfer(contents, sector, status_at, |backing, at| {
                fill(parts, at, |part, at| sys::read_into(backing.file.as_fd(), ram, part, Some(at)))
            })
        }),
        1 => (Kind::Write, {
            let len = chain.readable_len() - HEADER;
            slice(chain.readable(), HEADER, len, parts)?;
            if read_only {
                Err(Status::IoError)
            } else {
                transfer(contents, sector, len, |backing, at| {
                    fill(parts, at, |part, at| sys::write_from(backing.file.as_fd(), ram, part, Some(at)))
                })
            }
        }),
        4 => (
            Kind::Flush,
            match &contents.backing {
                Some(backing) => backing.file.sync_data().map(|()| 0).map_err(|_| Status::IoError),
                None => Err(Status::IoError),
            },
        ),
        8 => (Kind::Id, {
            if status_at < ID_BYTES {
                Err(Status::IoError)
            } else {
                let mut serial = [0; ID_BYTES as usize];
                serial.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
                chain.write_at(ram, 0, &serial).map(|()| ID_BYTES).ok_or(Status::IoError)
            }
        }),
        _ => (Kind::Other, Err(Status::Unsupported)),
    };
    let (status, data) = match result {
        Ok(data) => (Status::Ok, data),
        Err(status) => (status, 0),
    };
    chain.write_at(ram, status_at, &[status as u8])?;
    // A reader's buffer may have been filled in part; the driver must look at the status first. Up to the status byte,
    // `used` must count everything, or the driver would not see the byte.
    let used = match kind {
        Kind::Read | Kind::Id => u32::try_from(status_at + 1).unwrap_or(u32::MAX),
        _ => 1,
    };
    Some(Outcome { kind, status, data, used })
}

/// Checks the range, then runs `io`: whole sectors, inside the capacity, no overflow.
fn transfer(
    contents: &Contents,
    sector: u64,
    len: u64,
    io: impl FnOnce(&Backing, u64) -> io::Result<()>,
) -> Result<u64, Status> {
    let backing = contents.backing.as_ref().ok_or(Status::IoError)?;
    if !len.is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    match sector.checked_add(len / SECTOR) {
        Some(end) if end <= backing.sectors => {}
        _ => return Err(Status::IoError),
    }
    // No overflow: below a capacity that came from a file's length.
    match io(backing, sector * SECTOR) {
        Ok(()) => Ok(len),
        Err(_) => Err(Status::IoError),
    }
}

/// Repeats `io` over what is left of `parts` until all is done. A short transfer goes on where it ended (FC #5485);
/// one of nothing is an error: the file was truncated under us.
fn fill(
    parts: &mut Vec<Segment>,
    mut at: u64,
    mut io: impl FnMut(&[Segment], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut rest: u64 = parts.iter().map(|part| u64::from(part.len)).sum();
    let mut next = Vec::new();
    while rest > 0 {
        let done = match io(parts, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => done as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        rest = rest.saturating_sub(done);
        at += done;
        if rest > 0 {
            slice(parts, done, rest, &mut next).ok_or(io::ErrorKind::InvalidData)?;
            std::mem::swap(parts, &mut next);
        }
    }
    Ok(())
}
