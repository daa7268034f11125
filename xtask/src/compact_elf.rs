//! A `vmlinux` without what no boot reads: symbols, section headers, gaps for alignment, zeros at the end of segments.
//!
//! Why: stage0 copies and hashes the whole file at every start of a confidential guest. Linux's linker script aligns segments to
//! 2 MiB, and makes the zeros of `.bss` part of the file wherever a section follows it (`.init.scratch` of AMD_MEM_ENCRYPT): half
//! of the file is neither code nor data. What lies in memory after loading is the same to the byte.
//!
//! Source: System V ABI, chapters 4 and 5. Offsets stay equal to addresses modulo the alignment that is written (4 KiB).

use anyhow::{Context, ensure};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const PAGE: usize = 4096;

/// An entry of the program header table: where its fields lie (ELF-64).
#[derive(Clone)]
struct Segment {
    /// The entry's bytes.
    entry: [u8; PROGRAM_HEADER],
}

const OFFSET: usize = 8;
const FILE_SIZE: usize = 32;
const ALIGN: usize = 48;

impl Segment {
    fn field(&self, at: usize) -> usize {
        self.entry[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes) as usize)
    }

    fn set(&mut self, at: usize, value: usize) {
        self.entry[at..at + 8].copy_from_slice(&(value as u64).to_le_bytes());
    }

    fn is_load(&self) -> bool {
        self.entry[..4] == PT_LOAD.to_le_bytes()
    }

    fn content<'a>(&self, file: &'a [u8]) -> anyhow::Result<&'a [u8]> {
        let (start, length) = (self.field(OFFSET), self.field(FILE_SIZE));
        let end = start.checked_add(length).context("a segment has no end")?;
        file.get(start..end).context("a segment lies outside of the file")
    }
}

/// The same kernel in fewer bytes.
///
/// # Errors
/// When it is no 64-bit ELF file, or its parts lie outside of it.
pub(crate) fn compact(file: &[u8]) -> anyhow::Result<Vec<u8>> {
    let header: &[u8; HEADER] = file.first_chunk().context("shorter than an ELF header")?;
    ensure!(header.starts_with(b"\x7fELF\x02\x01"), "no 64-bit little-endian ELF file");
    let old = segments(file, header)?;
    let mut out = header.to_vec();
    out[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
    // no section headers: e_shoff, and e_shentsize, e_shnum, e_shstrndx
    out[40..48].fill(0);
    out[58..64].fill(0);
    out.resize(HEADER + old.len() * PROGRAM_HEADER, 0);
    let mut new = old.clone();
    for (from, to) in old.iter().zip(&mut new).filter(|(from, _)| from.is_load()) {
        let content = from.content(file)?;
        let not_zero = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        // a note may end in zeros, and is read from the file
        let parts = old.iter().filter(|part| !part.is_load() && part.field(FILE_SIZE) > 0);
        let ends = parts.filter_map(|part| {
            let within = part.field(OFFSET).checked_sub(from.field(OFFSET))?;
            within.checked_add(part.field(FILE_SIZE)).filter(|end| *end <= content.len())
        });
        let used = ends.fold(not_zero, usize::max);
        out.resize(out.len().next_multiple_of(PAGE), 0);
        to.set(OFFSET, out.len());
        to.set(FILE_SIZE, used);
        to.set(ALIGN, PAGE);
        out.extend_from_slice(&content[..used]);
    }
    for index in (0..new.len()).filter(|index| !old[*index].is_load() && old[*index].field(FILE_SIZE) > 0) {
        let place = moved(&old[index], &old, &new)?;
        new[index].set(OFFSET, place);
    }
    for (place, segment) in out[HEADER..].chunks_exact_mut(PROGRAM_HEADER).zip(&new) {
        place.copy_from_slice(&segment.entry);
    }
    Ok(out)
}

fn segments(file: &[u8], header: &[u8; HEADER]) -> anyhow::Result<Vec<Segment>> {
    let table = header[32..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes) as usize);
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    let entries = table.checked_add(count * PROGRAM_HEADER).and_then(|end| file.get(table..end));
    let entries = entries.context("the program headers lie outside of the file")?;
    let (entries, _) = entries.as_chunks();
    Ok(entries.iter().map(|entry| Segment { entry: *entry }).collect())
}

/// Where a part of a loaded segment (a note) lies now.
fn moved(part: &Segment, old: &[Segment], new: &[Segment]) -> anyhow::Result<usize> {
    let (start, length) = (part.field(OFFSET), part.field(FILE_SIZE));
    old.iter()
        .zip(new)
        .filter(|(from, _)| from.is_load())
        .find_map(|(from, to)| {
            let within = start.checked_sub(from.field(OFFSET))?;
            (within + length <= to.field(FILE_SIZE)).then(|| to.field(OFFSET) + within)
        })
        .context("a segment that is not loaded is no part of one that is")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(kind: u32, offset: u64, address: u64, bytes: [u64; 2]) -> Vec<u8> {
        let words = [offset, address, address, bytes[0], bytes[1], 0x20_0000];
        [kind.to_le_bytes(), 5_u32.to_le_bytes()]
            .into_iter()
            .flatten()
            .chain(words.map(u64::to_le_bytes).into_iter().flatten())
            .collect()
    }

    /// Two loaded segments with a gap between them, the second with zeros at its end; a note within the first.
    fn kernel() -> Vec<u8> {
        let mut file = vec![0; 0x6000];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (file[32], file[40], file[54], file[56], file[58], file[60]) = (64, 0x99, 56, 4, 64, 9);
        let table = [
            segment(1, 0x2000, 0x10_0000, [0x1000, 0x1000]),
            segment(1, 0x4000, 0x20_0000, [0x2000, 0x3000]),
            segment(4, 0x2FF0, 0x10_0FF0, [0x10, 0x10]),
            // of the stack: nothing in the file
            segment(0x6474_E551, 0, 0, [0, 0]),
        ]
        .concat();
        file[64..64 + table.len()].copy_from_slice(&table);
        file[0x2000..0x2100].fill(0x90);
        file[0x2FF0..0x2FF4].copy_from_slice(b"note");
        file[0x4000..0x4011].fill(7);
        file.extend([0xEE; 500]); // symbols
        file
    }

    /// Address, content with its zeros, bytes in memory.
    fn loaded(file: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let header = file.first_chunk().unwrap();
        let all = segments(file, header).unwrap();
        all.iter()
            .map(|segment| {
                let mut content = segment.content(file).unwrap().to_vec();
                content.resize(segment.field(40), 0);
                (segment.field(16), content)
            })
            .collect()
    }

    #[test]
    fn memory_is_the_same_and_the_file_is_shorter() {
        let file = kernel();
        let compacted = compact(&file).unwrap();
        assert_eq!(loaded(&compacted), loaded(&file));
        assert_eq!(compacted.len(), 0x2011, "a page of headers, a page of code, 17 bytes of data");
        assert_eq!(compacted[24..32], file[24..32], "entry");
        assert!(compacted[40..48].iter().chain(&compacted[58..64]).all(|byte| *byte == 0), "no sections");
        assert_eq!(compact(&compacted).unwrap(), compacted, "nothing is left to do");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let mut elsewhere = kernel();
        elsewhere[64 + 2 * 56 + 8..][..8].copy_from_slice(&0x3F00_u64.to_le_bytes());
        for (file, part) in [
            (vec![0; 20], "shorter"),
            (vec![0; 100], "no 64-bit"),
            (kernel()[..0x5000].to_vec(), "outside of the file"),
            (kernel()[..100].to_vec(), "program headers"),
            (elsewhere, "no part of one"),
        ] {
            let error = compact(&file).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
