//! The image as others read it: a reader of its own, which knows nothing of how it was made.

use std::ops::Range;

use super::*;

fn image() -> Vec<u8> {
    build(&Code::linked())
}

/// A number of `size` bytes.
fn number(image: &[u8], at: u64, size: usize) -> u64 {
    image[at as usize..at as usize + size].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn text(image: &[u8], at: u64) -> String {
    let bytes = image[at as usize..].iter().copied().take_while(|byte| *byte != 0).collect();
    String::from_utf8(bytes).unwrap()
}

/// Type, flags, place and size of each program header.
fn programs(image: &[u8]) -> Vec<(u64, u64, Range<u64>)> {
    let (at, count) = (number(image, 32, 8), number(image, 56, 2));
    let header = |n: u64| {
        let at = at + 56 * n;
        let [offset, address, size] = [8, 16, 32].map(|field| number(image, at + field, 8));
        assert_eq!(offset, address);
        (number(image, at, 4), number(image, at + 4, 4), offset..offset + size)
    };
    (0..count).map(header).collect()
}

/// Entries of `PT_DYNAMIC` by tag.
fn dynamic(image: &[u8], tag: u64) -> u64 {
    let (_, _, range) = programs(image).into_iter().find(|(kind, ..)| *kind == 2).unwrap();
    let at = range.step_by(16).find(|at| number(image, *at, 8) == tag).unwrap();
    number(image, at + 8, 8)
}

/// Name, value, size and version of a symbol.
fn symbol(image: &[u8], n: u64) -> (String, u64, u64, u64) {
    let at = dynamic(image, 6) + 24 * n;
    let name = text(image, dynamic(image, 5) + number(image, at, 4));
    let version = number(image, dynamic(image, 0x6fff_fff0) + 2 * n, 2);
    (name, number(image, at + 8, 8), number(image, at + 16, 8), version)
}

/// As musl and Go look a name up: by the hash of System V.
fn by_hash(image: &[u8], name: &str) -> Option<u64> {
    let mut sum: u64 = 0;
    for byte in name.bytes() {
        sum = (sum * 16 + u64::from(byte)) & 0xffff_ffff;
        sum ^= (sum >> 24) & 0xf0;
        sum &= 0x0fff_ffff;
    }
    let at = dynamic(image, 4);
    let buckets = number(image, at, 4);
    let mut n = number(image, at + 8 + 4 * (sum % buckets), 4);
    while n != 0 && symbol(image, n).0 != name {
        n = number(image, at + 8 + 4 * buckets + 4 * n, 4);
    }
    (n != 0).then_some(n)
}

/// As glibc and Go do: by GNU's.
fn by_gnu_hash(image: &[u8], name: &str) -> Option<u64> {
    let sum = name.bytes().fold(5381_u64, |sum, byte| (sum * 33 + u64::from(byte)) & 0xffff_ffff);
    let at = dynamic(image, 0x6fff_fef5);
    let [buckets, first, words, shift] = [0, 4, 8, 12].map(|field| number(image, at + field, 4));
    let filter = number(image, at + 16 + 8 * (sum / 64 % words), 8);
    if filter >> (sum % 64) & 1 == 0 || filter >> ((sum >> shift) % 64) & 1 == 0 {
        return None;
    }
    let chains = at + 16 + 8 * words + 4 * buckets;
    let mut n = number(image, at + 16 + 8 * words + 4 * (sum % buckets), 4);
    loop {
        if n < first {
            return None;
        }
        let hash = number(image, chains + 4 * (n - first), 4);
        if hash | 1 == sum | 1 && symbol(image, n).0 == name {
            return Some(n);
        }
        if hash & 1 == 1 {
            return None;
        }
        n += 1;
    }
}

#[test]
fn it_is_a_shared_object_of_one_page() {
    let image = image();
    assert_eq!((image.len() as u64, &image[..4]), (PAGE, &b"\x7fELF"[..]));
    assert_eq!((number(&image, 16, 2), number(&image, 18, 2), number(&image, 20, 4)), (3, 62, 1));
    let programs = programs(&image);
    let (kind, flags, range) = &programs[0];
    assert_eq!((*kind, *flags, range.start), (1, 5, 0));
    assert!(range.end <= PAGE);
    // All that is loaded lies in it.
    assert!(programs.iter().all(|(_, _, part)| part.end <= range.end));
    assert_eq!(text(&image, dynamic(&image, 5) + dynamic(&image, 14)), "linux-vdso.so.1");
}

#[test]
fn sections_lie_one_behind_the_other() {
    let image = image();
    let (at, count, names) = (number(&image, 40, 8), number(&image, 60, 2), number(&image, 62, 2));
    let header = |n: u64, field: u64, size| number(&image, at + 64 * n + field, size);
    let mut end = 64 + 56 * programs(&image).len() as u64;
    let mut seen = Vec::new();
    for n in 1..count {
        let (offset, size) = (header(n, 24, 8), header(n, 32, 8));
        assert!(offset >= end && size > 0, "{n}: {offset:#x} {end:#x}");
        end = offset + size;
        seen.push(text(&image, header(names, 24, 8) + header(n, 0, 4)));
        // Of those that are loaded the address is the place.
        let loaded = header(n, 8, 8) & 2 != 0;
        assert_eq!(header(n, 16, 8), if loaded { offset } else { 0 });
    }
    assert!(end <= at && at + 64 * count <= PAGE);
    for name in [".dynsym", ".dynstr", ".hash", ".gnu.hash", ".gnu.version", ".eh_frame", ".text"] {
        assert!(seen.iter().any(|other| other == name), "{name} {seen:?}");
    }
}

#[test]
fn functions_are_found_by_both_tables_and_by_version() {
    let image = image();
    let code = Code::linked();
    // The version by its name, as Go looks it up.
    let first = dynamic(&image, 0x6fff_fffc);
    assert_eq!((dynamic(&image, 0x6fff_fffd), number(&image, first + 2, 2)), (2, 1));
    let second = first + number(&image, first + 16, 4);
    let name = number(&image, second + number(&image, second + 12, 4), 4);
    assert_eq!(text(&image, dynamic(&image, 5) + name), "LINUX_2.6");
    assert_eq!((number(&image, second + 8, 4), number(&image, second + 16, 4)), (0x3ae_75f6, 0));
    let version = number(&image, second + 4, 2);
    for function in &code.functions {
        for name in [format!("__vdso_{}", function.name), function.name.to_owned()] {
            let n = by_hash(&image, &name).unwrap();
            assert_eq!(by_gnu_hash(&image, &name), Some(n), "{name}");
            let (_, value, size, its) = symbol(&image, n);
            assert_eq!((value, size, its), (TEXT + function.start, function.end - function.start, version));
            // endbr64
            assert_eq!(image[value as usize..][..4], [0xf3, 0x0f, 0x1e, 0xfa], "{name}");
        }
    }
    for name in ["__vdso_getrandom", "", "clock", "__vdso_clock_gettime64"] {
        assert_eq!((by_hash(&image, name), by_gnu_hash(&image, name)), (None, None), "{name}");
    }
    assert!(by_hash(&image, "LINUX_2.6").is_some());
}

/// What unwinds the stack at an address: how far up the caller's stack begins.
fn frame_at(image: &[u8], address: u64) -> Option<u64> {
    let (_, _, header) = programs(image).into_iter().find(|(kind, ..)| *kind == 0x6474_e550).unwrap();
    let signed = |at: u64| i64::from(number(image, at, 4) as i32);
    let relative = |at: u64, base: u64| base.wrapping_add_signed(signed(at));
    assert_eq!(image[header.start as usize..][..4], [1, 0x1b, 3, 0x3b]);
    let mut rows = (0..number(image, header.start + 8, 4)).map(|n| header.start + 12 + 8 * n);
    let row = rows.rfind(|row| relative(*row, header.start) <= address)?;
    let entry = relative(row + 4, header.start);
    let start = relative(entry + 8, entry + 8);
    if address >= start + number(image, entry + 12, 4) {
        return None;
    }
    // What all have in common: version, augmentation, alignments, where to return to; the stack is 8 bytes up.
    let common = entry + 4 - number(image, entry + 4, 4);
    let all = &image[common as usize + 8..][..14];
    assert_eq!(all, [1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1]);
    let (mut at, end) = (entry + 17, entry + 4 + number(image, entry, 4));
    let (mut place, mut up) = (start, 8);
    while at < end {
        let argument = number(image, at + 1, 1);
        match image[at as usize] {
            0 => break,
            2 if place + argument > address => break,
            2 => place += argument,
            0x0e => up = argument,
            other => panic!("{other:#x}"),
        }
        at += 2;
    }
    Some(up)
}

#[test]
fn stacks_are_unwound_in_every_function() {
    let image = image();
    let code = Code::linked();
    for function in &code.functions {
        let inside = |place: &u64| match function.frame {
            Some([begin, end, again]) => (begin..end).contains(place) || *place >= again,
            None => false,
        };
        for place in function.start..function.end {
            let up = if inside(&place) { 64 } else { 8 };
            assert_eq!(frame_at(&image, TEXT + place), Some(up), "{} {place:#x}", function.name);
        }
    }
    assert_eq!(frame_at(&image, 0), None);
    assert_eq!(frame_at(&image, TEXT + code.bytes.len() as u64 + 16), None);
}

#[test]
fn hashes_are_those_of_the_abi() {
    // From the LSB, and what Go has for this version.
    assert_eq!((hash(""), hash("printf"), hash("LINUX_2.6")), (0, 0x077_905a6, 0x3ae_75f6));
    assert_eq!((gnu_hash(""), gnu_hash("printf")), (5381, 0x156b_2bb8));
}
