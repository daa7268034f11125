//! The vDSO as a shared object (`man 5 elf`; `man 7 vdso` says what programs look for): one page, made of the code by the sentry.
//!
//! Programs find functions by either table of hashes, and by name and version `LINUX_2.6`; debuggers by sections, which lie in the page, too.

use super::code::{Code, Function};
use super::unwind;
use crate::mm::PAGE;

/// Where in the image the code lies.
pub(super) const TEXT: u64 = 0x700;

const SONAME: &str = "linux-vdso.so.1";
const VERSION: &str = "LINUX_2.6";
/// The version's number among those of the image; 1 is the image itself.
const VERSION_INDEX: u16 = 2;
const BUCKETS: u32 = 4;

const HEADER: u64 = 64;
const PROGRAM_HEADERS: u64 = 3;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u16 = 64;
const SYMBOL: u64 = 24;

/// Bytes that grow, numbers with their lowest byte first.
#[derive(Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.u32(*word));
    }

    fn halves(&mut self, halves: &[u16]) {
        halves.iter().for_each(|half| self.u16(*half));
    }

    fn longs(&mut self, longs: &[u64]) {
        longs.iter().for_each(|long| self.u64(*long));
    }

    /// Goes on at an offset.
    fn until(&mut self, offset: u64) {
        self.0.resize(offset.max(self.len()) as usize, 0);
    }
}

/// Names, each with its 0 behind it.
struct Names(Vec<u8>);

impl Names {
    fn new() -> Self {
        Self(vec![0])
    }

    /// Where a name lies, which is added where it is not there yet.
    fn place(&mut self, name: &str) -> u32 {
        let wanted = [name.as_bytes(), &[0]].concat();
        let known = self.0.windows(wanted.len()).position(|part| part == wanted);
        let place = known.unwrap_or_else(|| {
            self.0.extend_from_slice(&wanted);
            self.0.len() - wanted.len()
        });
        place as u32
    }
}

/// The hash of System V.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0_u32, |sum, byte| {
        let sum = (sum << 4).wrapping_add(u32::from(byte));
        let high = sum & 0xf000_0000;
        (sum ^ (high >> 24)) & !high
    })
}

/// The hash of `DT_GNU_HASH`.
fn gnu_hash(name: &str) -> u32 {
    name.bytes().fold(5381_u32, |sum, byte| sum.wrapping_mul(33).wrapping_add(u32::from(byte)))
}

/// A symbol that can be looked up.
struct Symbol {
    name: String,
    info: u8,
    section: u16,
    value: u64,
    size: u64,
}

/// All, in the order in which the second table of hashes wants them.
fn symbols(functions: &[Function], section: u16) -> Vec<Symbol> {
    const GLOBAL: u8 = 1 << 4;
    const WEAK: u8 = 2 << 4;
    const OBJECT: u8 = 1;
    const FUNC: u8 = 2;
    const ABSOLUTE: u16 = 0xfff1;
    let mut all = Vec::new();
    for function in functions {
        for (name, binding) in
            [(format!("__vdso_{}", function.name), GLOBAL), (function.name.to_owned(), WEAK)]
        {
            let (value, size) = (TEXT + function.start, function.end - function.start);
            all.push(Symbol { name, info: binding | FUNC, section, value, size });
        }
    }
    let version = (VERSION.to_owned(), GLOBAL | OBJECT, ABSOLUTE);
    all.push(Symbol { name: version.0, info: version.1, section: version.2, value: 0, size: 0 });
    all.sort_by_key(|symbol| gnu_hash(&symbol.name) % BUCKETS);
    all
}

/// `DT_HASH`: buckets, and chains that end with symbol 0, which is none.
fn hash_table(symbols: &[Symbol]) -> Bytes {
    let mut buckets = [0; BUCKETS as usize];
    let mut chains = vec![0; symbols.len() + 1];
    for (number, symbol) in (1_u32..).zip(symbols) {
        let bucket = (hash(&symbol.name) % BUCKETS) as usize;
        if let (Some(bucket), Some(chain)) = (buckets.get_mut(bucket), chains.get_mut(number as usize)) {
            *chain = std::mem::replace(bucket, number);
        }
    }
    let mut out = Bytes::default();
    out.words(&[BUCKETS, chains.len() as u32]);
    out.words(&buckets);
    out.words(&chains);
    out
}

/// `DT_GNU_HASH`: a filter of one word, buckets, and hashes whose lowest bit says that the bucket ends.
fn gnu_hash_table(symbols: &[Symbol]) -> Bytes {
    const SHIFT: u32 = 6;
    let hashes: Vec<u32> = symbols.iter().map(|symbol| gnu_hash(&symbol.name)).collect();
    let filter =
        hashes.iter().fold(0_u64, |bits, hash| bits | 1 << (hash % 64) | 1 << ((hash >> SHIFT) % 64));
    let mut out = Bytes::default();
    out.words(&[BUCKETS, 1, 1, SHIFT]);
    out.u64(filter);
    for bucket in 0..BUCKETS {
        let first = (1_u32..).zip(&hashes).find(|(_, hash)| *hash % BUCKETS == bucket);
        out.u32(first.map_or(0, |(number, _)| number));
    }
    for (place, hash) in hashes.iter().enumerate() {
        let last = hashes.get(place + 1).is_none_or(|next| next % BUCKETS != hash % BUCKETS);
        out.u32(hash & !1 | u32::from(last));
    }
    out
}

/// The table of symbols, and the number of each one's version.
fn symbol_table(symbols: &[Symbol], names: &mut Names) -> (Bytes, Bytes) {
    let (mut table, mut versions) = (Bytes(vec![0; SYMBOL as usize]), Bytes::default());
    versions.u16(0);
    for symbol in symbols {
        table.u32(names.place(&symbol.name));
        table.bytes(&[symbol.info, 0]);
        table.u16(symbol.section);
        table.u64(symbol.value);
        table.u64(symbol.size);
        versions.u16(VERSION_INDEX);
    }
    (table, versions)
}

/// `DT_VERDEF`: the image's own name, and the version.
fn versions(names: &mut Names) -> Bytes {
    const BASE: u16 = 1;
    const ENTRY: u32 = 20;
    const WITH_NAME: u32 = 28;
    let mut out = Bytes::default();
    for (flags, number, name, next) in [(BASE, 1, SONAME, WITH_NAME), (0, VERSION_INDEX, VERSION, 0)] {
        out.halves(&[1, flags, number, 1]);
        out.words(&[hash(name), ENTRY, next, names.place(name), 0]);
    }
    out
}

/// A part of the image.
struct Part {
    name: &'static str,
    kind: u32,
    flags: u64,
    /// Which part it belongs to.
    link: u32,
    info: u32,
    align: u64,
    entry: u64,
    bytes: Vec<u8>,
    at: u64,
}

// Numbers of parts.
const DYNSYM: u32 = 3;
const DYNSTR: u32 = 4;
const TEXT_PART: u32 = 10;

const ALLOC: u64 = 2;
const EXECUTED: u64 = 4;

impl Part {
    fn new(name: &'static str, kind: u32, (link, align, entry): (u32, u64, u64), bytes: Bytes) -> Self {
        Self { name, kind, flags: ALLOC, link, info: 0, align, entry, bytes: bytes.0, at: 0 }
    }
}

/// All parts but the last, each at its place.
fn parts(code: &Code) -> Vec<Part> {
    let mut names = Names::new();
    let symbols = symbols(&code.functions, TEXT_PART as u16);
    let (table, of_symbols) = symbol_table(&symbols, &mut names);
    let versions = versions(&mut names);
    let functions = code.functions.len();
    // Their bytes follow from where parts lie.
    let (dynamic, header) = (vec![0; 16 * 11], vec![0; unwind::header_size(functions) as usize]);
    let mut parts = vec![
        Part::new(".hash", 5, (DYNSYM, 8, 4), hash_table(&symbols)),
        Part::new(".gnu.hash", 0x6fff_fff6, (DYNSYM, 8, 0), gnu_hash_table(&symbols)),
        Part { info: 1, ..Part::new(".dynsym", 11, (DYNSTR, 8, SYMBOL), table) },
        Part::new(".dynstr", 3, (0, 1, 0), Bytes(names.0)),
        Part::new(".gnu.version", 0x6fff_ffff, (DYNSYM, 2, 2), of_symbols),
        Part { info: 2, ..Part::new(".gnu.version_d", 0x6fff_fffd, (DYNSTR, 8, 0), versions) },
        Part::new(".dynamic", 6, (DYNSTR, 8, 16), Bytes(dynamic)),
        Part::new(".eh_frame_hdr", 1, (0, 4, 0), Bytes(header)),
        Part::new(".eh_frame", 1, (0, 8, 0), Bytes::default()),
    ];
    let mut at = HEADER + PROGRAM_HEADERS * PROGRAM_HEADER;
    for part in &mut parts {
        part.at = at.next_multiple_of(part.align);
        at = part.at + part.bytes.len() as u64;
    }
    let dynamic = dynamic_table(&parts);
    let place =
        |parts: &[Part], name: &str| parts.iter().find(|part| part.name == name).map_or(0, |part| part.at);
    let (header_at, frames_at) = (place(&parts, ".eh_frame_hdr"), place(&parts, ".eh_frame"));
    let (frames, places) = unwind::frames(frames_at, TEXT, &code.functions);
    let header = unwind::header(header_at, frames_at, TEXT, &code.functions, &places);
    for (name, bytes) in [(".dynamic", dynamic.0), (".eh_frame_hdr", header), (".eh_frame", frames)] {
        parts.iter_mut().filter(|part| part.name == name).for_each(|part| part.bytes.clone_from(&bytes));
    }
    let text = Part::new(".text", 1, (0, 16, 0), Bytes(code.bytes.to_vec()));
    parts.push(Part { flags: ALLOC | EXECUTED, at: TEXT, ..text });
    parts
}

fn dynamic_table(parts: &[Part]) -> Bytes {
    let part = |name: &str| parts.iter().find(|part| part.name == name);
    let place = |name: &str| part(name).map_or(0, |part| part.at);
    let strings = part(".dynstr").map_or(&[][..], |part| &part.bytes);
    let soname = strings.windows(SONAME.len()).position(|part| part == SONAME.as_bytes());
    let mut out = Bytes::default();
    for (tag, value) in [
        (14, soname.unwrap_or(0) as u64),
        (4, place(".hash")),
        (0x6fff_fef5, place(".gnu.hash")),
        (5, place(".dynstr")),
        (6, place(".dynsym")),
        (10, strings.len() as u64),
        (11, SYMBOL),
        (0x6fff_fffc, place(".gnu.version_d")),
        (0x6fff_fffd, 2),
        (0x6fff_fff0, place(".gnu.version")),
        (0, 0),
    ] {
        out.u64(tag);
        out.u64(value);
    }
    out
}

/// The image of this code: whole pages.
pub(super) fn build(code: &Code) -> Vec<u8> {
    let mut parts = parts(code);
    let mut names = Names::new();
    let mut places: Vec<u32> = parts.iter().map(|part| names.place(part.name)).collect();
    places.push(names.place(".shstrtab"));
    let end = TEXT + code.bytes.len() as u64;
    parts.push(Part { flags: 0, at: end, ..Part::new(".shstrtab", 3, (0, 1, 0), Bytes(names.0)) });
    let mut out = Bytes::default();
    out.until(HEADER + PROGRAM_HEADERS * PROGRAM_HEADER);
    for part in &parts {
        out.until(part.at);
        out.bytes(&part.bytes);
    }
    out.until(out.len().next_multiple_of(8));
    let sections = out.len();
    out.until(sections + u64::from(SECTION_HEADER));
    for (part, name) in parts.iter().zip(places) {
        out.words(&[name, part.kind]);
        let address = if part.flags & ALLOC == 0 { 0 } else { part.at };
        out.longs(&[part.flags, address, part.at, part.bytes.len() as u64]);
        out.words(&[part.link, part.info]);
        out.longs(&[part.align, part.entry]);
    }
    let headers = headers(&parts, sections, out.len());
    out.0.iter_mut().zip(headers.0).for_each(|(place, byte)| *place = byte);
    out.until(out.len().next_multiple_of(PAGE));
    out.0
}

/// The file's header and those of what is loaded.
fn headers(parts: &[Part], sections: u64, length: u64) -> Bytes {
    const READ: u32 = 4;
    const EXECUTE: u32 = 1;
    let mut out = Bytes::default();
    out.bytes(b"\x7fELF\x02\x01\x01");
    out.until(16);
    out.halves(&[3, 62]); // ET_DYN, EM_X86_64
    out.u32(1);
    out.longs(&[0, HEADER, sections]);
    out.u32(0);
    let count = parts.len() as u16 + 1;
    let (one, programs) = (PROGRAM_HEADER as u16, PROGRAM_HEADERS as u16);
    out.halves(&[HEADER as u16, one, programs, SECTION_HEADER, count, count - 1]);
    let of = |name: &str| {
        let part = parts.iter().find(|part| part.name == name);
        part.map_or((0, 0, 0), |part| (part.at, part.bytes.len() as u64, part.align))
    };
    for (kind, flags, (at, size, align)) in [
        (1, READ | EXECUTE, (0, length, PAGE)),
        (2, READ, of(".dynamic")),
        (0x6474_e550, READ, of(".eh_frame_hdr")),
    ] {
        out.words(&[kind, flags]);
        out.longs(&[at, at, at, size, size, align]);
    }
    out
}

#[cfg(test)]
mod tests;
