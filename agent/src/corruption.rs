//! Tells which block of which sealed image was not what the root hash vouches for.
//!
//! A program that reads such a block gets EIO and no more. The kernel names the block in its log (Linux 6.12, `dm-verity-target.c`,
//! `verity_handle_err`): `device-mapper: verity: 254:32: data block 17 is corrupted`. That log is read here, and what it says told on, with
//! the image, in the guest's log, which the host and the pod's events get.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, PoisonError};

use kata_cc_image::digest::Digest;
use kata_cc_sealed_image::SealManifest;
use kata_cc_sealed_image::verity::{BLOCK, DIGEST, leaf_offset};
use nix::sys::stat::{major, minor};
use tracing::{error, warn};

/// The kernel's log: each read gives one record (Documentation/ABI/testing/dev-kmsg).
const KERNEL_LOG: &str = "/dev/kmsg";
/// Longest record (`PRINTKRB_RECORD_MAX`, with room for its continuation lines).
const RECORD: usize = 8192;
/// Most blocks that are told of one image: the host could change them all.
const MOST: usize = 16;

/// A sealed image that is in use.
#[derive(Debug)]
struct Watched {
    /// Its device as the kernel's log names it.
    numbers: String,
    device: String,
    image: String,
    seal: SealManifest,
    told: BTreeSet<(String, u64)>,
}

/// What reads the kernel's log, from the first sealed image on.
#[derive(Debug, Default)]
pub(crate) struct CorruptionWatch {
    watched: Arc<Mutex<Vec<Watched>>>,
}

impl CorruptionWatch {
    /// Tells from now on of blocks of `image` on `device`. A log that cannot be read fails no container: its reads fail as they would.
    pub(crate) fn add(&self, image: &str, device: &str, seal: &SealManifest) {
        let numbers = match std::fs::metadata(device) {
            Ok(found) => format!("{}:{}", major(found.rdev()), minor(found.rdev())),
            Err(error) => return warn!(device, %error, "changed blocks of the image will not be named"),
        };
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = watched.is_empty();
        // What was on a device before is gone from there.
        watched.retain(|one| one.numbers != numbers);
        let (device, image) = (device.to_owned(), image.to_owned());
        watched.push(Watched { numbers, device, image, seal: seal.clone(), told: BTreeSet::new() });
        if is_first && let Err(error) = self.read_log() {
            warn!(%error, "the kernel's log cannot be read: changed blocks of images will not be named");
        }
    }

    fn read_log(&self) -> io::Result<()> {
        let mut log = File::open(KERNEL_LOG)?;
        // behind what is there already
        log.seek(SeekFrom::End(0))?;
        let watched = Arc::clone(&self.watched);
        std::thread::Builder::new().name("kernel-log".into()).spawn(move || {
            let mut record = vec![0; RECORD];
            loop {
                match log.read(&mut record) {
                    Ok(0) => return,
                    Ok(length) => tell(&watched, record.get(..length).unwrap_or_default()),
                    // EPIPE: records were overwritten before they were read; the next read goes on behind them
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EINTR)) => {}
                    Err(error) => return warn!(%error, "the kernel's log ends"),
                }
            }
        })?;
        Ok(())
    }
}

/// Tells of a record that names a block.
fn tell(watched: &Mutex<Vec<Watched>>, record: &[u8]) {
    let record = String::from_utf8_lossy(record);
    let Some((numbers, kind, block)) = corrupted(&record) else { return };
    let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(one) = watched.iter_mut().find(|one| one.numbers == numbers) else { return };
    if one.told.len() >= MOST || !one.told.insert((kind.to_owned(), block)) {
        return;
    }
    let digests = if kind == "data" { digests(&one.device, &one.seal, block).ok() } else { None };
    let (expected, seen) =
        digests.unwrap_or_else(|| ("one that leads to the root hash".to_owned(), "another".to_owned()));
    error!(
        stage = "refused",
        by = "image",
        image = one.image,
        device = one.device,
        block,
        kind,
        expected,
        seen,
        root_hash = one.seal.root_hash,
        what_to_do = "the node's copy of the image was changed: remove it from the node, `kata-cc image seal` makes it again",
        "{kind} block {block} of image {} is not what its root hash vouches for: reading it failed",
        one.image
    );
}

/// Device, kind (`data`, `metadata`) and number of the block that a record says is corrupted.
fn corrupted(record: &str) -> Option<(&str, &str, u64)> {
    let (_, message) = record.split_once(';')?;
    let message = message.lines().next()?.strip_prefix("device-mapper: verity: ")?;
    let (numbers, rest) = message.split_once(": ")?;
    let (kind, rest) = rest.split_once(" block ")?;
    let block = rest.strip_suffix(" is corrupted")?.parse().ok()?;
    Some((numbers, kind, block))
}

/// Digest that the tree has of a data block, and that of what is on the device now.
fn digests(device: &str, seal: &SealManifest, block: u64) -> io::Result<(String, String)> {
    let place = leaf_offset(seal.data_blocks, block).ok_or(io::ErrorKind::InvalidInput)?;
    let file = File::open(device)?;
    let (mut expected, mut content) = ([0; DIGEST], vec![0; BLOCK]);
    file.read_exact_at(&mut expected, place)?;
    file.read_exact_at(&mut content, block * BLOCK as u64)?;
    Ok((format!("sha256:{}", hex::encode(expected)), Digest::sha256(&content).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_corrupted_blocks_are_read_and_no_others() {
        let data =
            "3,512,1234567,-;device-mapper: verity: 254:32: data block 17 is corrupted\n SUBSYSTEM=block\n";
        assert_eq!(corrupted(data), Some(("254:32", "data", 17)));
        let tree = "3,513,1234567,-;device-mapper: verity: 254:32: metadata block 301 is corrupted\n";
        assert_eq!(corrupted(tree), Some(("254:32", "metadata", 301)));
        for other in [
            "",
            ";",
            "6,1,1,-;erofs: (device dm-0): mounted",
            "3,1,1,-;device-mapper: verity: 254:32: reached maximum errors",
            "3,1,1,-;device-mapper: verity: 254:32: data block x is corrupted",
            "3,1,1,-;say device-mapper: verity: 254:32: data block 1 is corrupted",
        ] {
            assert_eq!(corrupted(other), None, "{other}");
        }
    }

    #[test]
    fn the_trees_digest_and_the_blocks_own_are_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let blocks: Vec<Vec<u8>> = (0..300_u32).map(|number| vec![number as u8; BLOCK]).collect();
        let leaves: Vec<[u8; DIGEST]> = blocks
            .iter()
            .map(|block| hex::decode(Digest::sha256(block).hex()).unwrap().try_into().unwrap())
            .collect();
        let tree = kata_cc_sealed_image::verity::tree(&leaves);
        let mut bytes = [blocks.concat(), tree.blocks.concat()].concat();
        bytes[200 * BLOCK] ^= 1;
        std::fs::write(file.path(), &bytes).unwrap();
        let seal = kata_cc_sealed_image::Seal {
            data_blocks: 300,
            tree_blocks: tree.blocks.len() as u64,
            root_hash: tree.root,
        };
        let seal = SealManifest::new("sha256:", "sha256:", &seal);
        let device = file.path().display().to_string();
        let told = |block| digests(&device, &seal, block).unwrap();
        let (expected, seen) = told(200);
        assert_eq!(expected, Digest::sha256(&blocks[200]).to_string());
        assert_ne!(seen, expected);
        let (expected, seen) = told(299);
        assert_eq!(seen, expected);
        assert!(digests(&device, &seal, 300).is_err());
    }
}
