//! What Rust's standard library makes of the kernel: files, threads, processes, sockets, time.

use std::fs;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

fn say(name: &str, result: impl std::fmt::Display) {
    println!("{name}: {}", result.to_string().trim_end());
}

/// "ok" or the kind and number of the error.
fn ok<T>(name: &str, result: io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => {
            say(name, "ok");
            Some(value)
        }
        Err(error) => {
            say(name, format!("{:?} {:?}", error.kind(), error.raw_os_error()));
            None
        }
    }
}

fn files() -> io::Result<()> {
    ok("files.create", fs::write("file", "0123456789"));
    ok("files.create-new-existing", fs::File::create_new("file"));
    ok("files.absent", fs::read("absent"));
    ok("files.create-dir", fs::create_dir("dir"));
    ok("files.create-dir-again", fs::create_dir("dir"));
    ok("files.create-dir-all", fs::create_dir_all("dir/a/b/c"));
    ok("files.read-dir-as-file", fs::read("dir"));
    ok("files.remove-full", fs::remove_dir("dir"));
    let mut file = fs::OpenOptions::new().read(true).write(true).open("file")?;
    say("files.seek", file.seek(SeekFrom::End(-3))?);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    say("files.read", &text);
    let mut four = [0; 4];
    file.read_exact_at(&mut four, 2)?;
    say("files.read-at", String::from_utf8_lossy(&four));
    ok("files.read-exact-beyond", file.read_exact_at(&mut four, 8));
    ok("files.write-at", file.write_all_at(b"AB", 0));
    ok("files.set-len", file.set_len(4));
    ok("files.sync", file.sync_all());
    say("files.content", fs::read_to_string("file")?);
    let about = file.metadata()?;
    say(
        "files.metadata",
        format!("{} {} {:o} {}", about.len(), about.nlink(), about.mode(), about.is_file()),
    );
    ok("files.lock", file.lock());
    let other = fs::File::open("file")?;
    say("files.try-lock", other.try_lock().is_err());
    ok("files.unlock", file.unlock());
    ok("files.set-times", file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)));
    say("files.mtime", fs::metadata("file")?.mtime());
    ok("files.symlink", symlink("file", "link"));
    say("files.read-link", fs::read_link("link")?.display());
    say("files.symlink-metadata", fs::symlink_metadata("link")?.is_symlink());
    ok("files.hard-link", fs::hard_link("file", "hard"));
    ok("files.copy", fs::copy("file", "copy"));
    ok("files.rename", fs::rename("copy", "dir/renamed"));
    ok("files.permissions", fs::set_permissions("file", fs::Permissions::from_mode(0o400)));
    say("files.canonicalize", fs::canonicalize("./dir/../link")?.ends_with("file"));
    let mut names: Vec<_> = fs::read_dir(".")?.map_while(Result::ok).map(|entry| entry.file_name()).collect();
    names.sort();
    say("files.read-dir", format!("{names:?}"));
    ok("files.nofollow", fs::OpenOptions::new().read(true).custom_flags(0o400000).open("link"));
    ok("files.remove-dir-all", fs::remove_dir_all("dir"));
    ok("files.io-copy", io::copy(&mut fs::File::open("file")?, &mut fs::File::create("copied")?));
    say("files.copied", fs::read_to_string("copied")?);
    Ok(())
}

fn threads() {
    let counter = Arc::new(Mutex::new(0));
    let all: Vec<_> = (0..8)
        .map(|_| {
            let counter = Arc::clone(&counter);
            std::thread::spawn(move || (0..1000).for_each(|_| *counter.lock().unwrap() += 1))
        })
        .collect();
    all.into_iter().for_each(|thread| thread.join().unwrap());
    say("threads.mutex", counter.lock().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || (0..100).for_each(|number| sender.send(number).unwrap()));
    say("threads.channel", receiver.iter().sum::<i32>());
    let barrier = Arc::new(Barrier::new(4));
    let leaders = std::thread::scope(|scope| {
        let waits: Vec<_> = (0..4).map(|_| scope.spawn(|| barrier.wait().is_leader())).collect();
        waits.into_iter().filter_map(|wait| wait.join().ok()).filter(|leader| *leader).count()
    });
    say("threads.barrier-leaders", leaders);
    let pair = (Mutex::new(false), Condvar::new());
    let (_guard, timeout) = pair.1.wait_timeout(pair.0.lock().unwrap(), Duration::from_millis(5)).unwrap();
    say("threads.condvar-timeout", timeout.timed_out());
    say("threads.panic", std::thread::spawn(|| std::panic::resume_unwind(Box::new(1))).join().is_err());
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(5));
    say("threads.sleep", start.elapsed() >= Duration::from_millis(5));
    std::thread::park_timeout(Duration::from_millis(1));
    say("threads.parallelism", std::thread::available_parallelism().is_ok());
}

fn processes() -> io::Result<()> {
    let own = || Command::new("/proc/self/exe");
    say("processes.exit", own().arg("--exit").status()?);
    say("processes.signal", format!("{:?}", own().arg("--abort").stderr(Stdio::null()).status()?.signal()));
    say("processes.output", String::from_utf8_lossy(&own().args(["--echo", "a", "b c"]).output()?.stdout));
    ok("processes.absent", Command::new("/absent").status());
    ok("processes.no-path", Command::new("absent-program").status());
    let mut cat = own().arg("--cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    cat.stdin.take().unwrap().write_all(b"through a pipe")?;
    say("processes.cat", String::from_utf8_lossy(&cat.wait_with_output()?.stdout));
    let mut sleeper = own().arg("--sleep").process_group(0).spawn()?;
    say("processes.running", sleeper.try_wait()?.is_none());
    sleeper.kill()?;
    say("processes.killed", sleeper.wait()?);
    say(
        "processes.environment",
        String::from_utf8_lossy(&own().arg("--env").env_clear().env("X", "y").output()?.stdout),
    );
    fs::create_dir_all("inside")?;
    say(
        "processes.folder",
        String::from_utf8_lossy(&own().arg("--folder").current_dir("inside").output()?.stdout),
    );
    ok("processes.folder-absent", own().arg("--exit").current_dir("nowhere").status());
    Ok(())
}

fn sockets() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let server = std::thread::spawn(move || -> io::Result<usize> {
        let (mut stream, _) = listener.accept()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)?;
        Ok(all.len())
    });
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    client.write_all(&vec![7; 300_000])?;
    client.shutdown(std::net::Shutdown::Write)?;
    let mut back = Vec::new();
    client.read_to_end(&mut back)?;
    say("sockets.tcp", format!("{} {}", server.join().unwrap()?, back.len()));
    client.set_read_timeout(Some(Duration::from_millis(5)))?;
    ok("sockets.refused", TcpStream::connect("127.0.0.1:9"));
    let timed = UdpSocket::bind("127.0.0.1:0")?;
    timed.set_read_timeout(Some(Duration::from_millis(5)))?;
    say("sockets.timeout", timed.recv(&mut [0; 4]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    let peer = UdpSocket::bind("127.0.0.1:0")?;
    peer.send_to(b"hello", timed.local_addr()?)?;
    say("sockets.udp", timed.recv(&mut [0; 10])?);
    let (mut left, mut right) = UnixStream::pair()?;
    left.write_all(b"pair")?;
    drop(left);
    let mut text = String::new();
    right.read_to_string(&mut text)?;
    say("sockets.pair", text);
    let unix = UnixListener::bind("socket")?;
    unix.set_nonblocking(true)?;
    ok("sockets.accept-none", unix.accept());
    ok("sockets.connect", UnixStream::connect("socket"));
    ok("sockets.bind-again", UnixListener::bind("socket"));
    let (one, two) = UnixDatagram::pair()?;
    one.send(b"datagram")?;
    say("sockets.datagram", two.recv(&mut [0; 4])?);
    Ok(())
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("--exit") => std::process::exit(5),
        Some("--abort") => std::process::abort(),
        Some("--echo") => println!("{:?}", &arguments[2..]),
        Some("--cat") => drop(io::copy(&mut io::stdin(), &mut io::stdout())?),
        Some("--sleep") => std::thread::sleep(Duration::from_secs(60)),
        Some("--env") => println!("{:?}", std::env::vars().collect::<Vec<_>>()),
        Some("--folder") => println!("{}", std::env::current_dir()?.ends_with("inside")),
        _ => {
            let folder = std::env::temp_dir().join(format!("abi-{}", std::process::id()));
            fs::create_dir(&folder)?;
            std::env::set_current_dir(&folder)?;
            ok("files", files());
            threads();
            ok("processes", processes());
            ok("sockets", sockets());
            fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}
