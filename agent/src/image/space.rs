//! How much space images get, and from where.

use std::fs;

use kata_cc_causes::causes;

/// Sets up space with the disk of `disk_size` bytes, else in memory alone.
///
/// Why a disk that fails does not end the guest, in no tier: nothing can reach the host that way. Swap header
/// and pages are written to the dm-crypt device, never to the disk itself, so each failing step (opening, keying, header,
/// swapon) leaves a disk without plaintext, and the tmpfs that follows keeps to the
/// guest's memory, which the TEE encrypts. A host that breaks the disk on purpose gains what it has anyhow: it can stop the
/// guest. What is lost is room, and that must not be silent: it is an error with its reason, and the tmpfs is no larger
/// than memory, so that an image which no longer fits fails as "no space left on device", not by a guest out of memory. It
/// is no `refused` stage: no decision was taken, and the start goes on.
pub(super) fn prefer_disk<T, E: std::error::Error>(
    memory_size: u64,
    disk_size: u64,
    setup: impl Fn(bool, u64) -> Result<T, E>,
) -> Result<T, E> {
    setup(true, memory_size.saturating_add(disk_size)).or_else(|e| {
        tracing::error!(
            reason = %causes(&e),
            lost_mib = disk_size >> 20,
            left_mib = memory_size >> 20,
            what_to_do = "images that do not fit in memory will not be pulled: give the pod more memory, or see why the \
                          scratch disk fails (dm-crypt in the guest's kernel, the host's disk)",
            "the scratch disk failed: images go to memory alone"
        );
        setup(false, memory_size)
    })
}

pub(super) fn disk_size() -> u64 {
    let sectors = fs::read_to_string("/sys/class/block/vdb/size");
    let sectors: u64 = sectors.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    sectors.saturating_mul(512)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const MEMORY: u64 = 100 << 20;
    const DISK: u64 = 4 << 30;

    fn tried(disk_works: bool) -> Vec<(bool, u64)> {
        let tried = RefCell::new(Vec::new());
        let made = prefer_disk(MEMORY, DISK, |disk, size| {
            tried.borrow_mut().push((disk, size));
            if disk && !disk_works { Err(std::io::Error::other("no dm-crypt")) } else { Ok(()) }
        });
        made.unwrap();
        tried.into_inner()
    }

    #[test]
    fn without_its_disk_the_space_is_no_larger_than_memory() {
        assert_eq!(tried(true), [(true, MEMORY + DISK)]);
        assert_eq!(tried(false), [(true, MEMORY + DISK), (false, MEMORY)]);
    }

    #[test]
    fn a_disk_that_fails_is_an_error_with_its_reason_and_no_refusal() {
        use tracing_subscriber::fmt::MakeWriter;
        #[derive(Clone, Default)]
        struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        impl MakeWriter<'_> for Lines {
            type Writer = Self;
            fn make_writer(&self) -> Self {
                self.clone()
            }
        }
        let lines = Lines::default();
        let log = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(log, || tried(false));
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.contains("ERROR") && text.contains("reason=no dm-crypt") && text.contains("lost_mib=4096")
        );
        assert!(!text.contains("stage="), "{text}");
    }
}
