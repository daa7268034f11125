//! The vDSO of guests (`man 7 vdso`): functions by which a program asks for the time without a system call.
//!
//! It is a shared object of one page that the sentry makes ([`image`]) of a few functions ([`code`]), and a page with their data before it
//! ([`data`]). The functions call the host's vDSO, which every stub has, and add what the sandbox' clocks show more than the host's. So a clock is
//! as right as the host's at every moment, and what a system call tells, which adds the same to the same clock, lies between what
//! is read before and after it (decision 0035).
//!
//! Both pages are a file in memory that nobody can change any more. Each program gets them mapped as any file ([`Vdso::map`]); a sandbox
//! whose clocks differ otherwise, since a container was restored into it, gets others.
//!
//! `unsafe` is in [`code`] (the assembler's symbols).

mod code;
mod data;
mod image;
mod unwind;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use self::code::Code;
pub use self::data::Differences;
use crate::error::Errno;
use crate::mm::{
    AddressSpace, FileIdentity, Limits, MapRequest, MappedFile, PAGE, Protection, Source, VdsoPart,
};
use crate::platform::{HostVdso, Thread};

/// The vDSO of a sandbox' programs.
#[derive(Debug, Clone)]
pub struct Vdso {
    data: Arc<Mapped>,
    image: Arc<Mapped>,
}

/// One of its pages, as a mapping shows it.
#[derive(Debug)]
struct Mapped {
    file: Arc<OwnedFd>,
    part: VdsoPart,
}

/// The image, by which builds are told apart: programs that go on in another sandbox know addresses in it.
pub(crate) fn image_bytes() -> Vec<u8> {
    image::build(&Code::linked())
}

impl Vdso {
    /// For clocks that differ so much from the host's, and coarse ones that change so often.
    ///
    /// # Errors
    /// What the host says when it has no memory or random numbers.
    pub fn new(host: Option<&HostVdso>, coarse: Duration, differences: Differences) -> Result<Self, Errno> {
        Self::with_data(data::page(host, crate::random::number()?, coarse, differences))
    }

    /// With this page of data.
    fn with_data(data: Vec<u8>) -> Result<Self, Errno> {
        let file = memfd_create(c"vdso", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let mut file = std::fs::File::from(file);
        file.write_all(&[data, image_bytes()].concat()).map_err(|_| Errno::ENOMEM)?;
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let file = Arc::new(OwnedFd::from(file));
        let part = |part| Arc::new(Mapped { file: Arc::clone(&file), part });
        Ok(Self { data: part(VdsoPart::Data), image: part(VdsoPart::Image) })
    }

    /// Whether somebody else has it: an address space, or who loads a program.
    pub(crate) fn is_used(&self) -> bool {
        Arc::strong_count(&self.data) > 1
    }

    /// One of its pages.
    pub(crate) fn part(&self, part: VdsoPart) -> Arc<dyn MappedFile> {
        match part {
            VdsoPart::Data => Arc::clone(&self.data) as Arc<dyn MappedFile>,
            VdsoPart::Image => Arc::clone(&self.image) as Arc<dyn MappedFile>,
        }
    }

    /// Maps it where there is room. Where its ELF header lies (`AT_SYSINFO_EHDR`).
    ///
    /// # Errors
    /// ENOMEM; what the host says.
    pub(super) fn map(
        &self,
        space: &AddressSpace,
        thread: &mut dyn Thread,
        limits: &Limits,
    ) -> Result<u64, Errno> {
        let place = space.free_place(2 * PAGE)?;
        let image = place.checked_add(PAGE).ok_or(Errno::ENOMEM)?;
        let run = Protection::READ | Protection::EXEC;
        for (part, address, protection) in
            [(VdsoPart::Data, place, Protection::READ), (VdsoPart::Image, image, run)]
        {
            let source = Source::File(self.part(part), 0);
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
            space.map(thread, &MapRequest { address, length: PAGE, protection, flags, source }, limits)?;
        }
        Ok(image)
    }
}

impl MappedFile for Mapped {
    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        let offset = match self.part {
            VdsoPart::Data => 0,
            VdsoPart::Image => PAGE,
        };
        Ok((Arc::clone(&self.file), offset))
    }

    fn name(&self) -> Vec<u8> {
        match self.part {
            VdsoPart::Data => b"[vvar]".to_vec(),
            VdsoPart::Image => b"[vdso]".to_vec(),
        }
    }

    fn identity(&self) -> FileIdentity {
        FileIdentity { major: 0, minor: 0, inode: 0 }
    }

    fn readable(&self) -> bool {
        true
    }

    /// Breakpoints are set in a copy of the image's page; that of the data is read alone, as Linux has it.
    fn writable(&self) -> bool {
        self.part == VdsoPart::Image
    }

    fn executable(&self) -> bool {
        true
    }

    fn vdso_part(&self) -> Option<VdsoPart> {
        Some(self.part)
    }
}
