//! What `tests/tests/volumes.rs` runs inside of a guest, on the guest's own kernel: encrypted volumes on real block devices.
//!
//! `/dev/vda` is empty, `/dev/vdb` was encrypted outside by cryptsetup and holds a file system. What worked is printed, line by line; the
//! first thing that did not is printed too, and ends it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kata_cc_volumes::device::{BlockDevice, Mapped};
use nix::mount::{MsFlags, mount, umount};
use zeroize::Zeroizing;

const POINT: &str = "/mnt";
const MARKER: &str = "/mnt/folder/marker";
/// Of the file that is written: more than the page cache of an instant.
const COPIES: usize = 200_000;

fn main() -> Result<()> {
    let key = || -> Result<_> { Ok(Some(Zeroizing::new(std::fs::read("/key")?))) };
    let marker = std::fs::read("/marker")?;
    let (empty, foreign) = (Path::new("/dev/vda"), Path::new("/dev/vdb"));

    let wrong = BlockDevice::at(foreign)?.map(false, Some(Zeroizing::new(b"wrong".to_vec())), None);
    let words = wrong.err().context("a wrong key opened it")?.to_string();
    ensure!(words.contains("no keyslot matches"), "{words}");
    println!("PASSED a wrong key");

    let volume = BlockDevice::at(foreign)?.map(false, key()?, Some("foreign"))?;
    attach(&volume, MsFlags::MS_RDONLY)?;
    ensure!(std::fs::read(MARKER)? == marker, "the volume of cryptsetup's reads otherwise");
    let again = BlockDevice::at(foreign)?.map(false, key()?, None).err().context("opened twice")?.to_string();
    ensure!(again.contains("in use"), "{again}");
    let other =
        BlockDevice::at(empty)?.map(true, key()?, Some("foreign")).err().context("one name for two")?;
    println!("PASSED cryptsetup's volume; twice: {again}; same name: {other}");
    detach(volume)?;

    let numbers = std::fs::metadata(empty)?.rdev();
    let (major, minor) = (nix::sys::stat::major(numbers), nix::sys::stat::minor(numbers));
    let device = BlockDevice::numbered(u32::try_from(major)?, u32::try_from(minor)?)?;
    let volume = device.map(true, key()?, None)?;
    volume.make_file_system()?;
    attach(&volume, MsFlags::empty())?;
    std::fs::create_dir("/mnt/folder")?;
    std::fs::write(MARKER, &marker)?;
    std::fs::write("/mnt/large", marker.repeat(COPIES))?;
    detach(volume)?;
    println!("PASSED a volume was made");

    let volume = device.map(false, key()?, None)?;
    volume.make_node(Path::new("/dev/plain"))?;
    attach(&volume, MsFlags::empty())?;
    ensure!(std::fs::read("/mnt/large")? == marker.repeat(COPIES), "it reads otherwise");
    std::fs::remove_file("/mnt/large")?;
    detach(volume)?;
    println!("PASSED it was opened again");

    let one_use = device.map(true, None, None);
    println!("PASSED {}", if one_use.is_ok() { "a key that nobody has" } else { "nothing" });
    drop(one_use?);
    let words = device.map(false, key()?, None).err().context("it opens by an old key")?.to_string();
    ensure!(words.contains("no keyslot matches"), "{words}");
    // And back to what is looked at from outside.
    let volume = device.map(true, key()?, None)?;
    volume.make_file_system()?;
    attach(&volume, MsFlags::empty())?;
    std::fs::create_dir("/mnt/folder")?;
    std::fs::write(MARKER, &marker)?;
    detach(volume)?;
    println!("PASSED all");
    Ok(())
}

fn attach(volume: &Mapped, flags: MsFlags) -> Result<()> {
    let node = Some(volume.node());
    mount(node, POINT, Some("ext4"), flags, Some("errors=remount-ro")).context("mount")
}

fn detach(volume: Mapped) -> Result<()> {
    umount(POINT).context("unmount")?;
    let node = volume.node().to_owned();
    drop(volume);
    ensure!(!node.exists(), "{} is still there", node.display());
    let left = std::fs::read_dir("/sys/class/block")?.filter_map(Result::ok);
    let left: Vec<_> = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("dm-")).collect();
    ensure!(left.is_empty(), "mapped devices are left: {left:?}");
    Ok(())
}
