//! Writes a cpio archive in the "newc" form that Linux unpacks as its initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The bytes depend on nothing but the entries and their order: owner 0:0, time 0, inode numbers
//! counted from 1.

/// What an entry is.
pub(crate) enum Kind<'a> {
    /// A directory.
    Directory,
    /// A regular file with these bytes.
    File(&'a [u8]),
    /// A character device with its major and minor number.
    CharacterDevice(u32, u32),
    /// A symbolic link to this path.
    Link(&'a str),
}

/// An archive under construction.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Add one entry; `path` has no leading slash, `mode` is the permission bits.
    pub(crate) fn add(&mut self, path: &str, mode: u32, kind: &Kind<'_>) {
        let (file_type, data, device) = match *kind {
            Kind::Directory => (0o040_000, &[][..], (0, 0)),
            Kind::File(data) => (0o100_000, data, (0, 0)),
            Kind::CharacterDevice(major, minor) => (0o020_000, &[][..], (major, minor)),
            Kind::Link(to) => (0o120_000, to.as_bytes(), (0, 0)),
        };
        self.entries += 1;
        self.put(self.entries, file_type | mode, path, data, device);
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.put(0, 0, "TRAILER!!!", &[], (0, 0));
        self.bytes
    }

    fn put(&mut self, inode: u32, mode: u32, path: &str, data: &[u8], device: (u32, u32)) {
        let size = u32::try_from(data.len()).expect("an initramfs file is smaller than 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        // inode mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_what_is_written() {
        let mut archive = Archive::default();
        archive.add("dir", 0o755, &Kind::Directory);
        archive.add("dir/file", 0o640, &Kind::File(b"hello"));
        archive.add("link", 0o777, &Kind::Link("dir/file"));
        archive.add("console", 0o600, &Kind::CharacterDevice(5, 1));
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);

        let mut cpio = Command::new("cpio")
            .args(["-tv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed by ./x");
        cpio.stdin.take().expect("piped").write_all(&bytes).expect("cpio reads");
        let listing = String::from_utf8(cpio.wait_with_output().expect("cpio ends").stdout).expect("text");
        let lines: Vec<&str> = listing.lines().collect();
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" dir"), "{listing}");
        assert!(
            lines[1].starts_with("-rw-r-----") && lines[1].contains(" 5 ") && lines[1].ends_with(" dir/file")
        );
        assert!(lines[2].ends_with("link -> dir/file"));
        assert!(lines[3].starts_with("crw-------") && lines[3].contains("5,   1"));
    }
}
