//! How the real `kbs` ends: requests that run are answered, connections that idle do not hold it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::Server;

fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[test]
fn running_requests_finish_and_idle_connections_do_not_hold_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[http_server]\nsockets = [\"127.0.0.1:0\"]\ninsecure_http = true\n";
    std::fs::write(folder.path().join("kbs.toml"), config).unwrap();
    let server = Server::start(folder.path());
    let connect = || {
        let stream = TcpStream::connect(server.endpoint.url.trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    };
    let mut idle = connect();
    idle.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(answer(&mut idle).starts_with("HTTP/1.1 4"));
    let mut running = connect();
    running.write_all(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{").unwrap();
    // Until its head has been read, a connection is not running a request.
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    let stopped = std::thread::spawn(move || server.stop());
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "an idle connection is closed");
    running.write_all(b"}").unwrap();
    let answered = answer(&mut running);
    assert!(answered.starts_with("HTTP/1.1 400"), "{answered}");
    let (code, log) = stopped.join().unwrap();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("draining") && !log.contains("cut off"), "{log}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
