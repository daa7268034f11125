//! Files of the host in a sandbox, by the real binary: whose they are, what may be done to them, and who sees what was done.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn sentry(options: &[&str], program: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry"));
    command.arg("do").args(options).arg("--").args(program);
    command.env("KATA_CC_LOG", "warn").stdin(Stdio::null()).output().unwrap()
}

fn shell(options: &[&str], script: &str) -> String {
    let output = sentry(options, &["/bin/bash", "-c", script]);
    assert!(output.stderr.is_empty(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn volume(folder: &Path, options: &str) -> String {
    format!("{}:/volume{options}", folder.display())
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("only root has files of others");
    }
    root
}

#[test]
fn files_of_other_users_are_read_by_who_may() {
    if !is_root() {
        return;
    }
    // Not below /tmp, which is the sandbox's own.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let secret = folder.path().join("of/secret");
    fs::create_dir(folder.path().join("of")).unwrap();
    fs::write(&secret, "contents").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (path, mode) in [(secret.clone(), 0o600), (folder.path().join("of"), 0o700)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(4321), Some(4321)).unwrap();
    }
    let path = secret.to_str().unwrap();
    assert_eq!(shell(&[], &format!("cat {path}")), "contents");
    assert_eq!(shell(&["--user", "4321:4321"], &format!("cat {path}")), "contents");
    let script = format!("cat {path} 2>/dev/null || echo refused");
    assert_eq!(shell(&["--user", "4322:4321"], &script), "refused\n");
    // It can be changed, in memory, with all that belongs to it.
    let script = format!("echo more >> {path}; stat -c '%u %a %s' {path}");
    assert_eq!(shell(&[], &script), "4321 600 13\n");
    assert_eq!(fs::read(&secret).unwrap(), b"contents");
}

#[test]
fn volumes_are_written_through() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("from-host"), "hello").unwrap();
    let script = "cd /volume; cat from-host; echo made > made; mkdir -p a/b; ln -s b a/c; ln made a/hard; mkfifo a/pipe; \
                  mv made a/b/moved; chmod 640 a/b/moved; truncate -s 100 from-host; touch -d @1000 from-host; \
                  rmdir a/b 2>/dev/null || echo not empty; cat a/c/moved; stat -c '%s %Y %h' from-host a/hard | tr '\\n' ' '";
    assert_eq!(
        shell(&["--volume", &volume(folder.path(), "")], script),
        "hellonot empty\nmade\n100 1000 1 5 \
        STAMP 2 "
            .replace("STAMP", &fs::metadata(at("a/hard")).unwrap().mtime().to_string())
    );
    let moved = fs::metadata(at("a/b/moved")).unwrap();
    assert_eq!((moved.mode() & 0o7777, moved.nlink(), moved.len()), (0o640, 2, 5));
    assert_eq!(fs::read_link(at("a/c")).unwrap(), Path::new("b"));
    assert_eq!(fs::metadata(at("from-host")).unwrap().len(), 100);
    if is_root() {
        let script =
            "cd /volume; install -o 1234 -g 4321 -m 4711 /bin/true set-id; stat -c '%u %g %a' set-id";
        assert_eq!(shell(&["--volume", &volume(folder.path(), ":exclusive")], script), "1234 4321 4711\n");
        let host = fs::metadata(at("set-id")).unwrap();
        assert_eq!((host.uid(), host.gid(), host.mode() & 0o7777), (1234, 4321, 0o4711));
        let script = "cd /volume; umask 027; touch mine; mkdir own; stat -c '%u %g %a' mine own";
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let options = ["--volume", &volume(folder.path(), ""), "--user", "77:88"];
        assert_eq!(shell(&options, script), "77 88 640\n77 88 750\n");
        assert_eq!(fs::metadata(at("mine")).unwrap().uid(), 77);
    }
}

#[test]
fn a_volume_to_be_read_refuses_changes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "contents").unwrap();
    symlink("/etc/passwd", folder.path().join("link")).unwrap();
    let script = "cd /volume; exec 2>&1; LC_ALL=C; for c in 'touch new' 'rm file' 'mv file other' 'chmod 600 file' 'mkdir d' \
                  'ln file hard' 'truncate -s 0 file'; do $c || true; done; cat file";
    let text = shell(&["--volume", &volume(folder.path(), ":ro")], script);
    assert_eq!(text.matches("Read-only file system").count(), 7, "{text}");
    assert!(text.ends_with("contents"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// A file alone, mapped and shared: what either writes the other sees.
#[test]
fn a_mapped_file_is_the_hosts() {
    if !Path::new("/usr/bin/python3").exists() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "a".repeat(8192)).unwrap();
    let script = "import mmap, os, fcntl\n\
        f = open('/data/file', 'r+b'); m = mmap.mmap(f.fileno(), 0)\n\
        m[4096:4101] = b'guest'; f.seek(4096); print(f.read(5))\n\
        os.pwrite(f.fileno(), b'write', 0); print(m[0:5])\n\
        fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX)\n\
        os.posix_fallocate(f.fileno(), 0, 20000); os.fsync(f.fileno()); os.fsync(os.open('/data', os.O_RDONLY)) if os.path.isdir('/data') else 0\n\
        os.ftruncate(f.fileno(), 1 << 20); print(os.lseek(f.fileno(), 0, os.SEEK_HOLE) <= 20480)\n\
        t = os.open('/data', os.O_TMPFILE | os.O_RDWR); os.write(t, b'later')\n\
        os.link(f'/proc/self/fd/{t}', '/data/later', src_dir_fd=os.open('/', os.O_RDONLY))\n\
        os.setxattr('/data/later', 'user.test', b'value'); print(os.listxattr('/data/later'))\n";
    let mount = format!("{}:/data", folder.path().display());
    let output = sentry(&["--volume", &mount], &["/usr/bin/python3", "-c", script]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "b'guest'\nb'write'\nTrue\n['user.test']\n", "{output:?}");
    let bytes = fs::read(&file).unwrap();
    assert_eq!((&bytes[..5], &bytes[4096..4101], bytes.len()), (&b"write"[..], &b"guest"[..], 1 << 20));
    assert_eq!(fs::read(folder.path().join("later")).unwrap(), b"later");
    let one = format!("{}:/etc/one-file:ro", file.display());
    assert_eq!(shell(&["--volume", &one], "head -c 5 /etc/one-file"), "write");
}

/// Without an overlay the root itself is written.
#[test]
fn a_root_without_an_overlay_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for part in ["bin", "lib", "lib64", "usr", "etc"] {
        let from = Path::new("/").join(part);
        if from.is_symlink() {
            symlink(fs::read_link(&from).unwrap(), folder.path().join(part)).unwrap();
        } else {
            fs::create_dir(folder.path().join(part)).unwrap();
        }
    }
    let root = folder.path().to_str().unwrap();
    let usr = ["--rootfs", root, "--overlay", "none", "--volume", "/usr:/usr:ro,exclusive"];
    assert_eq!(shell(&usr, "mkdir -p /var; echo kept > /var/kept; cat /var/kept"), "kept\n");
    assert_eq!(fs::read(folder.path().join("var/kept")).unwrap(), b"kept\n");
    let usr = ["--rootfs", root, "--volume", "/usr:/usr:ro,exclusive"];
    assert_eq!(shell(&usr, "rm /var/kept; echo gone > /var/gone; ls /var"), "gone\n");
    assert_eq!(fs::read_dir(folder.path().join("var")).unwrap().count(), 1);
}

#[test]
fn what_is_not_there_is_named() {
    for options in [&["--rootfs", "/no/such/root"][..], &["--volume", "/no/such/volume:/volume"]] {
        let output = sentry(options, &["/bin/true"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(text.contains("/no/such/") && text.contains("ENOENT"), "{text}");
    }
    let output = sentry(&["--volume", "/usr:usr"], &["/bin/true"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no absolute path"), "{output:?}");
}

/// An image of our own writer as root, with programs of this machine in it.
#[test]
fn an_image_is_a_root() {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sealed.erofs");
    let mut options = vec!["--erofs", image.to_str().unwrap()];
    for folder in ["/usr:/usr:ro,exclusive", "/lib:/lib:ro,exclusive", "/lib64:/lib64:ro,exclusive"] {
        options.extend(["--volume", folder]);
    }
    let run = |script: &str| {
        let output = sentry(&options, &["/usr/bin/bash", "-c", script]);
        assert!(output.stderr.is_empty(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        run("cat /short; stat -c '%a %u %h %F' /short /tail /fifo"),
        "short contents\n\
        4755 1000 1 regular file\n644 0 2 regular file\n666 0 1 fifo\n"
    );
    assert_eq!(
        run(
            "echo more >> /short; rm /many/name-00*; cat /short; ls /many | wc -l; md5sum < /tail | cut -c1-8"
        ),
        format!("short contents\nmore\n391\n{}", run("md5sum < /link | cut -c1-8"))
    );
    // A root that is an image alone has no programs of ours.
    let output = sentry(&["--erofs", image.to_str().unwrap()], &["/bin/true"]);
    assert_eq!(output.status.code(), Some(127), "{output:?}");
    let output = sentry(&["--erofs", "/etc/passwd"], &["/bin/true"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no EROFS image"), "{output:?}");
}

/// Programs and libraries are mapped from an image.
#[test]
fn programs_run_from_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let libraries = Command::new("ldd").arg("/bin/bash").output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in paths.chain(["/bin/bash", "/bin/cat"]) {
        let to = folder.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
    fs::write(folder.path().join("secret"), "secret").unwrap();
    fs::set_permissions(folder.path().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let image = tempfile::NamedTempFile::new().unwrap();
    let made = Command::new("mkfs.erofs").arg("--all-root").arg(image.path()).arg(folder.path()).output();
    if made.is_err() {
        eprintln!("there is no mkfs.erofs");
        return;
    }
    assert!(made.unwrap().status.success());
    let image = image.path().to_str().unwrap();
    let script =
        "echo hello; (cat /secret 2>/dev/null || echo refused); x=$(cat /proc/mounts); echo ${x%% *}";
    assert_eq!(shell(&["--erofs", image], script), "hello\nsecretoverlay\n");
    // Who may not read everything has copies of what is mapped.
    assert_eq!(shell(&["--erofs", image, "--user", "1000:1000"], script), "hello\nrefused\noverlay\n");
}
