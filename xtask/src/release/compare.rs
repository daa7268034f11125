//! Comparing bytes: what differs is told by file and offset.

use std::path::Path;

pub(super) use crate::guest_image::Files;

use anyhow::Context;

/// What differs between two sets of files, a line for each file.
pub(super) fn files(first: &Files, second: &Files) -> Vec<String> {
    let only = |one: &Files, other: &Files, which: &str| -> Vec<String> {
        let missing = one.keys().filter(|name| !other.contains_key(*name));
        missing.map(|name| format!("{name} is only in the {which}")).collect()
    };
    let both = first.iter().filter_map(|(name, a)| Some((name, a, second.get(name)?)));
    let mut different: Vec<String> = both.filter_map(|(name, a, b)| bytes(name, a, b)).collect();
    different.extend(only(first, second, "first"));
    different.extend(only(second, first, "second"));
    different
}

/// What differs between two versions of a file.
pub(super) fn bytes(name: &str, first: &[u8], second: &[u8]) -> Option<String> {
    if first == second {
        return None;
    }
    let offset = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    let at = |bytes: &[u8]| bytes.get(offset).map_or_else(|| "the end".to_owned(), |b| format!("{b:02x}"));
    Some(format!(
        "{name} differs from offset {offset} ({offset:#x}): {} and {}; {} and {} bytes",
        at(first),
        at(second),
        first.len(),
        second.len()
    ))
}

/// What a folder holds under these names.
pub(super) fn read_beside<'a>(
    folder: &Path,
    names: impl IntoIterator<Item = &'a String>,
) -> anyhow::Result<Files> {
    let mut found = Files::new();
    for name in names {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => drop(found.insert(name.clone(), bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Files {
        [("root.erofs".to_owned(), vec![7; 5000]), ("stage0".to_owned(), vec![1, 2, 3])].into()
    }

    #[test]
    fn equal_files_do_not_differ() {
        assert!(files(&two(), &two()).is_empty());
    }

    #[test]
    fn a_changed_byte_is_told_with_file_and_offset() {
        let mut changed = two();
        changed.get_mut("root.erofs").unwrap()[4097] ^= 0x10;
        assert_eq!(
            files(&two(), &changed),
            ["root.erofs differs from offset 4097 (0x1001): 07 and 17; 5000 and 5000 bytes"]
        );
    }

    #[test]
    fn a_shorter_or_missing_file_is_told() {
        let mut shorter = two();
        shorter.get_mut("stage0").unwrap().pop();
        shorter.remove("root.erofs");
        assert_eq!(
            files(&two(), &shorter),
            [
                "stage0 differs from offset 2 (0x2): 03 and the end; 3 and 2 bytes",
                "root.erofs is only in the first"
            ]
        );
        assert_eq!(files(&shorter, &two()).last().unwrap(), "root.erofs is only in the second");
    }
}
