//! Who may speak to the agent's API: over vsock only the host.
//!
//! AF_VSOCK belongs to no network namespace and connecting needs no privilege, so with a loopback transport every program
//! of a container could reach the port. The guest's kernel has none (`guest-image/kernel/microvm.config`); should it have one,
//! peers that are not the host are dropped here, before a byte of theirs is read.

use std::io;

use futures::stream::{Stream, unfold};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::transport::Listener;

/// Listens on an address in Kata's form: `vsock://CID:PORT`, or `unix://` and `tcp://` for tests.
pub(crate) fn listen(address: &str) -> io::Result<Listener> {
    let Some(rest) = address.strip_prefix("vsock://") else { return Listener::bind(address) };
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} is no vsock address"));
    let (cid, port) = rest.split_once(':').ok_or_else(wrong)?;
    let cid = match cid {
        "-1" => VMADDR_CID_ANY,
        number => number.parse().map_err(|_| wrong())?,
    };
    let port = port.parse().map_err(|_| wrong())?;
    Ok(Listener::new(of_host(VsockListener::bind(VsockAddr::new(cid, port))?)))
}

fn of_host(listener: VsockListener) -> impl Stream<Item = io::Result<VsockStream>> + Send + 'static {
    unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) if is_host(&peer) => return Some((Ok(stream), listener)),
                // The connection ends with the stream.
                Ok((_, peer)) => tracing::warn!(cid = peer.cid(), "a peer that is not the host was dropped"),
                Err(e) => return Some((Err(e), listener)),
            }
        }
    })
}

fn is_host(peer: &VsockAddr) -> bool {
    peer.cid() == VMADDR_CID_HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_is_served() {
        for cid in [0, 1, 3, 4, VMADDR_CID_ANY] {
            assert!(!is_host(&VsockAddr::new(cid, 5000)), "{cid}");
        }
        assert!(is_host(&VsockAddr::new(VMADDR_CID_HOST, 5000)));
    }

    #[tokio::test]
    async fn a_peer_inside_is_dropped_unheard() {
        const LOCAL: u32 = 1;
        // Where the loopback transport exists (not in the guest, nor in every build machine).
        let Ok(listener) = VsockListener::bind(VsockAddr::new(LOCAL, 51_024)) else {
            eprintln!("skipped: no vsock here");
            return;
        };
        let mut served = Box::pin(of_host(listener));
        let Ok(mut client) = VsockStream::connect(VsockAddr::new(LOCAL, 51_024)).await else {
            eprintln!("skipped: no vsock loopback here");
            return;
        };
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read(&mut client, &mut byte);
        let next = futures::StreamExt::next(&mut served);
        tokio::select! {
            read = read => assert!(matches!(read, Ok(0) | Err(_)), "{read:?}"),
            _ = next => panic!("a peer inside was served"),
        }
    }
}
