//! Somebody between a guest and a server of this machine who lets bytes through slowly when told to.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes that are passed on at once.
const PIECE: usize = 4096;
/// Between two pieces, when it is slow: 2 KiB in a second.
const PAUSE: Duration = Duration::from_secs(2);

/// A relay; its threads end with the test's process.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens, on the loopback.
    pub port: u16,
    slow: Arc<AtomicBool>,
}

impl Relay {
    /// In front of the server at `port` of the loopback.
    pub fn start(port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let relay = Self { port: listener.local_addr()?.port(), slow: Arc::default() };
        let slow = Arc::clone(&relay.slow);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let _ = both_ways(client, server, &slow);
            }
        });
        Ok(relay)
    }

    /// From now on what the server sends comes slowly, or no longer does.
    pub fn slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::SeqCst);
    }
}

fn both_ways(client: TcpStream, server: TcpStream, slow: &Arc<AtomicBool>) -> std::io::Result<()> {
    let (to_server, to_client) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || pass(client, to_server, || ()));
    let slow = Arc::clone(slow);
    std::thread::spawn(move || {
        pass(server, to_client, || {
            if slow.load(Ordering::SeqCst) {
                std::thread::sleep(PAUSE);
            }
        });
    });
    Ok(())
}

fn pass(mut from: TcpStream, mut to: TcpStream, before: impl Fn()) {
    let mut piece = [0; PIECE];
    while let Ok(count) = from.read(&mut piece)
        && count > 0
    {
        before();
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
