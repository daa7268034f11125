//! Searches the host for what must never be there: files, and the memory of processes outside the guest's RAM.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

const BLOCK: usize = 4 << 20;

/// Byte strings that are looked for, each with the name it is reported by.
#[derive(Debug)]
pub struct Patterns(Vec<(String, Vec<u8>)>);

/// A place where a pattern was found.
pub type Found = String;

impl Patterns {
    /// A text and a key; the key in the forms in which it would leak: raw, hex and base64.
    #[must_use]
    pub fn new(text: &str, key: &[u8]) -> Self {
        let mut patterns = vec![
            ("the plaintext marker".to_owned(), text.as_bytes().to_vec()),
            ("the raw key".to_owned(), key.to_vec()),
            ("the key in hex".to_owned(), hex::encode(key).into_bytes()),
        ];
        // without the last characters, which differ with padding and what follows
        for (name, letters) in [("base64", b'+'), ("base64url", b'-')] {
            let text = base64(key, letters).into_bytes();
            // A key without the two letters in which the alphabets differ reads the same in both.
            if patterns.iter().all(|(_, pattern)| *pattern != text) {
                patterns.push((format!("the key in {name}"), text));
            }
        }
        Self(patterns)
    }

    fn longest(&self) -> usize {
        self.0.iter().map(|(_, bytes)| bytes.len()).max().unwrap_or(1)
    }

    fn within(&self, block: &[u8], place: &dyn Fn() -> String, found: &mut Vec<Found>) {
        for (name, pattern) in &self.0 {
            if contains(block, pattern) {
                found.push(format!("{name} in {}", place()));
            }
        }
    }

    /// Search every regular file below a folder, except those in `except`.
    pub fn in_files(&self, root: &Path, except: &[PathBuf], found: &mut Vec<Found>) -> u64 {
        let mut queue = vec![root.to_owned()];
        let mut bytes = 0;
        while let Some(path) = queue.pop() {
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if except.contains(&path) {
                continue;
            }
            if metadata.is_dir() {
                let entries = std::fs::read_dir(&path).into_iter().flatten().filter_map(Result::ok);
                queue.extend(entries.map(|entry| entry.path()));
            } else if metadata.is_file() {
                bytes += self.in_file(&path, found);
            }
        }
        bytes
    }

    fn in_file(&self, path: &Path, found: &mut Vec<Found>) -> u64 {
        let Ok(mut file) = File::open(path) else { return 0 };
        let mut block = Vec::new();
        let mut total = 0;
        loop {
            let keep = self.longest().min(block.len());
            block.drain(..block.len() - keep);
            let read = (&mut file).take(BLOCK as u64).read_to_end(&mut block).unwrap_or(0);
            if read == 0 {
                return total;
            }
            total += read as u64;
            self.within(&block, &|| path.display().to_string(), found);
        }
    }

    /// Search the memory of a process, without the one mapping that is a guest's RAM (the largest, when `guest`).
    pub fn in_process(&self, pid: u32, guest: bool, found: &mut Vec<Found>) -> anyhow::Result<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
            .with_context(|| format!("no process {pid}"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let mut ranges: Vec<(u64, u64, &str)> = maps.lines().filter_map(readable_range).collect();
        if guest {
            let largest = ranges.iter().map(|(start, end, _)| end - start).max().unwrap_or_default();
            ranges.retain(|(start, end, _)| end - start < largest);
        }
        let mut total = 0;
        let mut block = vec![0; BLOCK];
        for (start, end, line) in ranges {
            let mut at = start;
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
                let Ok(count @ 1..) = memory.read_at(&mut block[..want], at) else { break };
                total += count as u64;
                self.within(&block[..count], &|| format!("memory of process {pid}: {line}"), found);
                // overlap, so that nothing hides on a border
                let step =
                    if count == want && at + (count as u64) < end { count - self.longest() } else { count };
                at += step as u64;
            }
        }
        Ok(total)
    }
}

fn readable_range(line: &str) -> Option<(u64, u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let special = line.ends_with("[vvar]") || line.ends_with("[vsyscall]") || line.ends_with("[vvar_vclock]");
    let range = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?, line);
    (rights.starts_with('r') && !special).then_some(range)
}

fn contains(block: &[u8], pattern: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return false };
    let mut from = 0;
    while let Some(at) = block[from..].iter().position(|byte| byte == first) {
        let next = from + at + 1;
        if block[next..].starts_with(rest) {
            return true;
        }
        from = next;
    }
    false
}

/// Base64 of all whole groups; `plus` tells the alphabet.
fn base64(bytes: &[u8], plus: u8) -> String {
    let slash = if plus == b'+' { b'/' } else { b'_' };
    let letter = |value: u8| match value {
        0..26 => b'A' + value,
        26..52 => b'a' + value - 26,
        52..62 => b'0' + value - 52,
        62 => plus,
        _ => slash,
    };
    let mut text = String::new();
    for group in bytes.chunks_exact(3) {
        let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
        for shift in [18, 12, 6, 0] {
            text.push(char::from(letter(u8::try_from(bits >> shift & 63).unwrap_or(0))));
        }
    }
    text
}

/// Ids of the processes of a program.
#[must_use]
pub fn processes(name: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |pid: &u32| {
        std::fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|exe| exe.file_name().is_some_and(|file| file == name))
    };
    pids.filter(is_it).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there_in_every_form() {
        let key: Vec<u8> = (0..32).map(|n| n * 7 + 3).collect();
        let patterns = Patterns::new("marker", &key);
        let dir = tempfile::tempdir().expect("temporary folder");
        std::fs::write(dir.path().join("a"), [&[0; 100][..], &key].concat()).expect("written");
        std::fs::write(dir.path().join("b"), base64(&key, b'+')).expect("written");
        std::fs::write(dir.path().join("c"), "nothing").expect("written");
        let mut found = Vec::new();
        patterns.in_files(dir.path(), &[], &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(base64(b"Man", b'+'), "TWFu");
    }

    #[test]
    fn finds_its_own_memory() {
        let text = format!("own-{}", std::process::id());
        let patterns = Patterns::new(&text, &[1; 32]);
        let mut found = Vec::new();
        patterns.in_process(std::process::id(), false, &mut found).expect("own memory");
        assert!(found.iter().any(|place| place.contains("marker")), "{found:?}");
    }
}
