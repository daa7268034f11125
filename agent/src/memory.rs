//! How much of the guest's memory files may take: all that the pod may use, and never the half that is the kernel's default for a tmpfs.

use std::fs;

/// The guest's memory in bytes, less a fifth for programs and the kernel.
pub(crate) fn for_files() -> u64 {
    field("MemTotal").unwrap_or(256 << 20) / 10 * 8
}

/// The same and the swap, which is encrypted where there is any.
pub(crate) fn with_swap() -> u64 {
    for_files().saturating_add(field("SwapTotal").unwrap_or(0))
}

/// A field of `/proc/meminfo` in bytes.
fn field(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
}

/// Options of a tmpfs (Linux, `Documentation/filesystems/tmpfs.rst`) with a size of at most `most` bytes, whatever they say.
pub(crate) fn bounded<'o>(options: impl Iterator<Item = &'o String>, most: u64) -> Vec<String> {
    let (sizes, mut others): (Vec<&String>, Vec<&String>) = options
        .filter(|option| !option.starts_with("nr_blocks="))
        .partition(|option| option.starts_with("size="));
    let asked = sizes.last().and_then(|size| bytes(size.trim_start_matches("size=")));
    let size = format!("size={}", asked.filter(|bytes| (1..=most).contains(bytes)).unwrap_or(most));
    others.push(&size);
    others.into_iter().cloned().collect()
}

/// A number of bytes with the suffixes that the kernel knows; shares of the memory are left to our own bound.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_kept_when_it_is_within_what_there_is() {
        let of = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
            bounded(options.iter(), 1 << 20).join(",")
        };
        assert_eq!(of(&["mode=0700", "size=4096"]), "mode=0700,size=4096");
        assert_eq!(of(&["size=8k"]), "size=8192");
        for more in
            ["size=2m", "size=50%", "size=-1", "size=0", "size=99999999999999999999", "size=16E", "size="]
        {
            assert_eq!(of(&[more]), "size=1048576", "{more}");
        }
        assert_eq!(of(&["nr_blocks=9999999", "noexec"]), "noexec,size=1048576");
        assert_eq!(of(&["size=1k", "size=2k"]), "size=2048", "the last one counts");
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(for_files() > 1 << 20 && with_swap() >= for_files());
    }
}
