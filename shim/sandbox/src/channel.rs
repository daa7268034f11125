//! The way to the agent: a Unix socket of its own, or the vsock device's with its `CONNECT port` handshake; and ttrpc on top.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_cc_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_cc_agent_protocol::health::CheckRequest;
use kata_cc_agent_protocol::health_ttrpc::HealthClient;
use kata_cc_vmm_api::port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

/// How often an agent that does not answer yet is asked again.
const PAUSE: Duration = Duration::from_millis(10);
/// How long one handshake may take: a guest that is not listening yet may leave it unanswered.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Connect to a port of the guest.
pub(crate) async fn connect(uds: &Path, port: u32) -> std::io::Result<UnixStream> {
    let handshake = async {
        let mut stream = UnixStream::connect(uds).await?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
        // Byte by byte: what follows the line is the guest's.
        let mut line = Vec::with_capacity(32);
        while line.last() != Some(&b'\n') {
            if line.len() >= 32 {
                return Err(std::io::Error::other("the vsock device's answer is longer than a line"));
            }
            line.push(stream.read_u8().await?);
        }
        if !line.starts_with(b"OK ") {
            let line = String::from_utf8_lossy(&line).into_owned();
            return Err(std::io::Error::other(format!("the vsock device answered {line:?}")));
        }
        Ok(stream)
    };
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(result) => result,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// Where an agent is.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// Behind the vsock device whose socket this is.
    Vsock(PathBuf),
    /// At a Unix socket of its own.
    Unix(PathBuf),
}

impl Address {
    async fn connect(&self) -> std::io::Result<UnixStream> {
        match self {
            Self::Vsock(uds) => connect(uds, port::AGENT).await,
            Self::Unix(socket) => UnixStream::connect(socket).await,
        }
    }
}

/// The agent's API, as soon as it answers. Never gives up: the caller sets the limit.
pub(crate) async fn agent(address: &Address) -> AgentServiceClient {
    loop {
        if let Ok(stream) = address.connect().await {
            let client = Client::new(Socket::new(stream));
            let context = ttrpc::context::with_timeout(5_000_000_000);
            let check = HealthClient::new(client.clone()).check(context, &CheckRequest::new()).await;
            // Any answer shows that the agent serves; a policy may refuse the check itself.
            if !matches!(
                check,
                Err(ttrpc::Error::Socket(_)
                    | ttrpc::Error::Others(_)
                    | ttrpc::Error::LocalClosed
                    | ttrpc::Error::RemoteClosed)
            ) {
                return AgentServiceClient::new(client);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
