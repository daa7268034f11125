//! The host's vDSO (`man 7 vdso`): code by which a program reads the host's clocks without a call, and the pages with their data.
//!
//! Stubs keep it, so a guest's clock costs what the host's does. Where its code makes a system call after all, that is a call of the guest's
//! like any other: it lies outside the stub's code, and traps.

use std::ops::Range;

use nix::errno::Errno;

/// Where it lies in this process, and so in every stub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::platform) struct Vdso {
    /// From the first page of its data to the end of its code.
    pub(in crate::platform) range: Range<u64>,
    /// Its ELF header.
    pub(in crate::platform) header: u64,
    /// The same as the host keeps it, one mapping after the other: they move as wholes only.
    pub(in crate::platform) parts: Vec<Range<u64>>,
}

impl Vdso {
    /// As the host's kernel tells it.
    ///
    /// # Errors
    /// ENOSYS when the host has none.
    pub(in crate::platform) fn of_host() -> Result<Self, Errno> {
        let maps = std::fs::read_to_string("/proc/self/maps").map_err(|_| Errno::ENOSYS)?;
        Self::find(&maps).ok_or(Errno::ENOSYS)
    }

    /// In the text of `/proc/PID/maps`: `[vdso]`, and what lies right before it and is its data (`[vvar]`, `[vvar_vclock]`).
    fn find(maps: &str) -> Option<Self> {
        let mut before: Option<Range<u64>> = None;
        let mut data: Vec<Range<u64>> = Vec::new();
        for line in maps.lines() {
            let (addresses, _) = line.split_once(' ')?;
            let (start, end) = addresses.split_once('-')?;
            let here = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
            let name = line.rsplit(' ').next().unwrap_or("");
            if name == "[vdso]" {
                let begin =
                    before.filter(|data| data.end == here.start).map_or(here.start, |data| data.start);
                data.retain(|part| part.start >= begin);
                data.push(here.clone());
                return Some(Self { range: begin..here.end, header: here.start, parts: data });
            }
            if name.starts_with("[vvar") {
                data.push(here.clone());
            }
            before = match before {
                Some(data) if name.starts_with("[vvar") && data.end == here.start => {
                    Some(data.start..here.end)
                }
                _ => name.starts_with("[vvar").then_some(here),
            };
        }
        None
    }
}

impl Vdso {
    /// Its code, as it lies in this process.
    pub(in crate::platform) fn code(&self) -> Vec<u8> {
        let (Ok(start), Ok(end)) = (usize::try_from(self.header), usize::try_from(self.range.end)) else {
            return Vec::new();
        };
        let mut bytes = vec![0; end.saturating_sub(start)];
        let from = std::ptr::with_exposed_provenance::<u8>(start);
        // SAFETY: the host mapped these pages readable when the process began, and they are neither changed nor taken away.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_with_its_data() {
        let maps = "7ffe41a5c000-7ffe41a7d000 rw-p 00000000 00:00 0                          [stack]\n\
                    7ffe41af6000-7ffe41afa000 r--p 00000000 00:00 0                          [vvar]\n\
                    7ffe41afa000-7ffe41afc000 r--p 00000000 00:00 0                          [vvar_vclock]\n\
                    7ffe41afc000-7ffe41afe000 r-xp 00000000 00:00 0                          [vdso]\n";
        let parts = vec![
            0x7ffe_41af_6000..0x7ffe_41af_a000,
            0x7ffe_41af_a000..0x7ffe_41af_c000,
            0x7ffe_41af_c000..0x7ffe_41af_e000,
        ];
        let expected = Vdso { range: 0x7ffe_41af_6000..0x7ffe_41af_e000, header: 0x7ffe_41af_c000, parts };
        assert_eq!(Vdso::find(maps), Some(expected));
        assert_eq!(Vdso::find("00400000-00401000 r-xp 00000000 00:00 0 \n"), None);
    }
}
