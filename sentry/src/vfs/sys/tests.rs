#![allow(clippy::unwrap_used)]

use super::super::generated::{cpus, mask, ranges};
use super::super::open::open;
use super::super::{Caller, FileKind, Flags, Mount, Place, Resolve, Walk};
use super::{Sysfs, cpu};
use crate::error::Errno;

fn root() -> Place {
    Mount::namespace(Sysfs::tree()).root_place()
}

fn text(root: &Place, path: &str) -> Result<String, Errno> {
    let caller = Caller::root();
    let mut walk = Walk::new(&caller, root, root, path.as_bytes(), Resolve::default())?;
    let file = open(&caller, &mut walk, Flags::READ, 0)?;
    let mut bytes = vec![0; 65_536];
    let count = file.read(&mut bytes)?;
    bytes.truncate(count);
    Ok(String::from_utf8(bytes).unwrap())
}

#[test]
fn every_file_can_be_read_and_none_written() {
    let root = root();
    let caller = Caller::root();
    let mut left = vec![String::new()];
    let mut files = 0;
    while let Some(path) = left.pop() {
        let at = if path.is_empty() { "/" } else { &path };
        let walk = |path: &str| Walk::new(&caller, &root, &root, path.as_bytes(), Resolve::default());
        let folder = walk(at).unwrap().finish(true).unwrap();
        for entry in folder.dentry.inode().list().unwrap() {
            let below = format!("{path}/{}", String::from_utf8(entry.name).unwrap());
            match entry.kind {
                FileKind::Folder => left.push(below),
                FileKind::Symlink => drop(walk(&below).unwrap().finish(true).unwrap()),
                _ => {
                    files += 1;
                    text(&root, &below).unwrap();
                    let write = open(&caller, &mut walk(&below).unwrap(), Flags(1), 0).err();
                    assert_eq!(write, Some(Errno::EROFS), "{below}");
                }
            }
        }
    }
    assert!(files > 80, "{files}");
}

#[test]
fn cpus_agree_with_the_hosts() {
    let root = root();
    let online = text(&root, "/devices/system/cpu/online").unwrap();
    assert_eq!(online, text(&root, "/devices/system/node/node0/cpulist").unwrap());
    assert_eq!(cpu::own(&online), cpus());
    let first = cpus()[0];
    let siblings =
        text(&root, &format!("/devices/system/cpu/cpu{first}/topology/thread_siblings_list")).unwrap();
    assert!(cpu::own(&siblings).contains(&first));
    assert_eq!(text(&root, "/class/net/lo/mtu").unwrap(), "65536\n");
    assert!(text(&root, "/devices/system/node/node0/meminfo").unwrap().starts_with("Node 0 MemTotal: "));
}

#[test]
fn lists_and_masks() {
    assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    assert_eq!(ranges(&[]), "");
    assert_eq!(mask(&[0, 1]), "3");
    assert_eq!(mask(&[0, 33]), "2,00000001");
    assert_eq!(mask(&[]), "0");
}
