//! The host's vDSO (`man 7 vdso`): code by which a program reads the host's clocks without a call, and the pages with their data.
//!
//! Stubs keep it, at a place of ours: where the host put it in the sentry says something of where the sentry's stack lies, and a program that is
//! restored was perhaps stopped in it. Guests do not see it. The code of the vDSO that they see ([`crate::loader::vdso`]) calls it. Where its
//! code makes a system call after all, that is a call of the guest's like any other: it lies outside the stub's code, and traps.

use std::ops::Range;

use nix::errno::Errno;

use super::systrap::layout;

/// Where stubs have it. Not where the same entry of a virtual machine's first page table leads to the stub's code, which guests do not have
/// ([`super::kvm`]).
pub(in crate::platform) const PLACE: u64 = layout::CODE + (1 << 39);

const _: () = assert!(layout::END <= PLACE && layout::CODE.is_multiple_of(1 << 39));

/// Most symbols that are looked at.
const SYMBOLS_MAX: u64 = 256;

/// The host's vDSO, as stubs have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostVdso {
    /// Its mappings, one behind the other: its data first, its code last. They move as wholes only.
    parts: Vec<Range<u64>>,
    /// Where its code lies in this process.
    here: Range<u64>,
}

impl HostVdso {
    /// As the host's kernel tells it, where it lies in this process.
    ///
    /// # Errors
    /// ENOSYS when the host has none.
    pub(crate) fn of_host() -> Result<Self, Errno> {
        let maps = std::fs::read_to_string("/proc/self/maps").map_err(|_| Errno::ENOSYS)?;
        Self::find(&maps).ok_or(Errno::ENOSYS)
    }

    /// In the text of `/proc/PID/maps`: `[vdso]`, and what lies right before it and is its data (`[vvar]`, `[vvar_vclock]`).
    fn find(maps: &str) -> Option<Self> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        for line in maps.lines() {
            let (addresses, _) = line.split_once(' ')?;
            let (start, end) = addresses.split_once('-')?;
            let here = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
            if parts.last().is_some_and(|last| last.end != here.start) {
                parts.clear();
            }
            let name = line.rsplit(' ').next().unwrap_or("");
            if name == "[vdso]" {
                parts.push(here.clone());
                return Some(Self { parts, here });
            }
            if name.starts_with("[vvar") {
                parts.push(here);
            } else {
                parts.clear();
            }
        }
        None
    }

    /// The same at [`PLACE`].
    pub(in crate::platform) fn placed(&self) -> Self {
        let start = self.range().start;
        let place = |part: &Range<u64>| PLACE + (part.start - start)..PLACE + (part.end - start);
        Self { parts: self.parts.iter().map(place).collect(), here: self.here.clone() }
    }

    /// Which of both a new stub has: the host may not let it be moved (`CONFIG_MSEAL_SYSTEM_MAPPINGS`). `word` reads the stub's memory.
    pub(in crate::platform) fn found(self, word: impl Fn(u64) -> Option<u64>) -> Self {
        let placed = self.placed();
        let magic = |word: u64| word.to_le_bytes().starts_with(b"\x7fELF");
        if word(placed.code().start).is_some_and(magic) { placed } else { self }
    }

    /// From the first page of its data to the end of its code.
    pub(in crate::platform) fn range(&self) -> Range<u64> {
        let first = self.parts.first().map_or(0, |part| part.start);
        first..self.code().end
    }

    /// Its mappings, its data first.
    #[must_use]
    pub fn parts(&self) -> &[Range<u64>] {
        &self.parts
    }

    /// Where its code lies in stubs.
    #[must_use]
    pub fn code(&self) -> Range<u64> {
        self.parts.last().cloned().unwrap_or(0..0)
    }

    /// Its code, which is read where it lies in this process.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let (Ok(start), Ok(end)) = (usize::try_from(self.here.start), usize::try_from(self.here.end)) else {
            return Vec::new();
        };
        let mut bytes = vec![0; end.saturating_sub(start)];
        let from = std::ptr::with_exposed_provenance::<u8>(start);
        // SAFETY: the host mapped these pages readable when the process began, and they are neither changed nor taken away.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Where stubs have its functions of these names; `None` for what it does not have.
    #[must_use]
    pub fn functions<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        let bytes = self.bytes();
        let (image, code) = (Image(&bytes), self.code());
        names.map(|name| {
            let address = code.start.checked_add(image.function(name.as_bytes())?)?;
            code.contains(&address).then_some(address)
        })
    }
}

/// A shared object as the host's kernel has it in memory (`man 5 elf`), whose addresses begin at 0.
struct Image<'a>(&'a [u8]);

impl Image<'_> {
    fn number<const N: usize>(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.0.get(at..at.checked_add(N)?)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// The value of an entry of `PT_DYNAMIC`.
    fn dynamic(&self, wanted: u64) -> Option<u64> {
        const PT_DYNAMIC: u64 = 2;
        let (headers, count) = (self.number::<8>(32)?, self.number::<2>(56)?);
        let headers = (0..count).filter_map(|n| headers.checked_add(n * 56));
        let header = headers.into_iter().find(|at| self.number::<4>(*at) == Some(PT_DYNAMIC))?;
        let field = |offset| self.number::<8>(header.saturating_add(offset));
        let (start, size) = (field(16)?, field(32)?);
        let entries = (0..(size / 16).min(SYMBOLS_MAX)).filter_map(|n| start.checked_add(n * 16));
        let entry = entries.into_iter().find(|at| self.number::<8>(*at) == Some(wanted))?;
        self.number::<8>(entry.saturating_add(8))
    }

    /// Where a function begins.
    fn function(&self, name: &[u8]) -> Option<u64> {
        const DT_HASH: u64 = 4;
        const DT_STRTAB: u64 = 5;
        const DT_SYMTAB: u64 = 6;
        const STT_FUNC: u64 = 2;
        let (symbols, strings) = (self.dynamic(DT_SYMTAB)?, self.dynamic(DT_STRTAB)?);
        // Without that table strings follow symbols.
        let counted = self.dynamic(DT_HASH).and_then(|table| self.number::<4>(table.saturating_add(4)));
        let count = counted.unwrap_or(strings.saturating_sub(symbols) / 24);
        (1..count.min(SYMBOLS_MAX)).find_map(|n| {
            let at = symbols.checked_add(n * 24)?;
            let text = usize::try_from(strings.checked_add(self.number::<4>(at)?)?).ok()?;
            let text = self.0.get(text..)?;
            let same = text.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0));
            let defined = self.number::<1>(at.saturating_add(4))? & 15 == STT_FUNC
                && self.number::<2>(at.saturating_add(6))? != 0;
            (same && defined).then(|| self.number::<8>(at.saturating_add(8))).flatten()
        })
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
        let found = HostVdso::find(maps).unwrap();
        let parts = [
            0x7ffe_41af_6000..0x7ffe_41af_a000,
            0x7ffe_41af_a000..0x7ffe_41af_c000,
            0x7ffe_41af_c000..0x7ffe_41af_e000,
        ];
        assert_eq!((found.parts(), found.code()), (&parts[..], parts[2].clone()));
        assert_eq!(HostVdso::find("00400000-00401000 r-xp 00000000 00:00 0 \n"), None);
        // Moved, it lies together as it did.
        let placed = found.placed();
        assert_eq!((placed.range(), placed.code()), (PLACE..PLACE + 0x8000, PLACE + 0x6000..PLACE + 0x8000));
        assert_eq!(placed.placed(), placed);
        let elf = |at| (at == PLACE + 0x6000).then_some(u64::from_le_bytes(*b"\x7fELF\x02\x01\x01\0"));
        assert_eq!((found.clone().found(elf), found.clone().found(|_| None)), (placed, found));
    }

    #[test]
    fn its_functions_are_found_by_name() {
        let host = HostVdso::of_host().unwrap();
        let [clock, none, part] = host.functions(["__vdso_clock_gettime", "__vdso_nothing", "__vdso_clock"]);
        assert!(host.code().contains(&clock.unwrap()));
        assert_eq!((none, part), (None, None));
        let [moved] = host.placed().functions(["__vdso_clock_gettime"]);
        assert_eq!(moved.unwrap() - host.placed().code().start, clock.unwrap() - host.code().start);
    }

    #[test]
    fn what_is_no_object_has_no_functions() {
        let bytes = HostVdso::of_host().unwrap().bytes();
        for end in [0, 1, 63, 64, 200, 0x300] {
            assert_eq!(Image(&bytes[..end]).function(b"__vdso_clock_gettime"), None, "{end}");
        }
        for at in (0..0x600.min(bytes.len())).step_by(3) {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 0xff;
            let _ = Image(&spoilt).function(b"__vdso_clock_gettime");
            spoilt[at..at + 8].fill(0xff);
            let _ = Image(&spoilt).function(b"__vdso_clock_gettime");
        }
    }
}
