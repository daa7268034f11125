//! The simulated security processor or TDX module: measures the launch and signs evidence, under a throw-away root.
//! It protects nothing; everything it says is labelled `sim-snp` or `sim-tdx`.
//!
//! It answers on vsock port 1027 without any socket on the host: the vsock device hands each of the
//! guest's connections to the thread `sim-tee`. One exchange per connection (`docs/design.md`). A guest that
//! is slow or silent only makes its own next exchange wait, and for [`GUEST_TIMEOUT`] at most.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use kata_cc_boot::LaunchPlan;
use kata_cc_devices::vsock::LocalPort;
use kata_cc_sim_tee::service::REQUEST_LEN;
use kata_cc_sim_tee::tdx::{Quoter, TdxLaunch, TdxService};
use kata_cc_sim_tee::{SimLaunch, SimPlatform, SimService};
use kata_cc_vmm_api::{TeeConfig, VmConfig};

use crate::config::{DEFAULT_POLICY, hex_bytes};
use crate::error::VmmError;

/// How long one exchange may take on the guest's side.
const GUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that may wait for their turn.
const QUEUE: usize = 16;

/// A simulated security processor for one launch.
pub struct Processor {
    launch_digest: [u8; 48],
    connections: SyncSender<UnixStream>,
}

fn failed(error: impl std::fmt::Display) -> VmmError {
    VmmError::SimTee(error.to_string())
}

impl Processor {
    /// Measures the plan and starts to answer, when the configuration asks for the simulated TEE.
    ///
    /// # Errors
    /// When the throw-away platform cannot be loaded.
    pub fn create(config: &VmConfig, plan: &LaunchPlan<'_>) -> Result<Option<Self>, VmmError> {
        if !config.tee.is_simulated() {
            return Ok(None);
        }
        let launch_digest = plan
            .launch_digest()
            .ok_or_else(|| failed("the firmware's boot block is for another platform"))?;
        let Some(respond) = responder(&config.tee, launch_digest)? else { return Ok(None) };
        let (connections, waiting) = sync_channel(QUEUE);
        // not joined: it ends with the last sender, which the vsock device owns, or with the process
        std::thread::Builder::new()
            .name("sim-tee".into())
            .spawn(move || serve(&respond, &waiting))
            .map_err(VmmError::system("sim-tee thread"))?;
        Ok(Some(Self { launch_digest, connections }))
    }

    /// Launch digest or MRTD.
    #[must_use]
    pub const fn launch_digest(&self) -> &[u8; 48] {
        &self.launch_digest
    }

    /// What the vsock device calls for each of the guest's connections.
    #[must_use]
    pub fn local_port(&self) -> LocalPort {
        let connections = self.connections.clone();
        Box::new(move || {
            let (guest, ours) = UnixStream::pair()?;
            connections.try_send(ours).map_err(|error| match error {
                TrySendError::Full(_) => io::Error::from(io::ErrorKind::WouldBlock),
                TrySendError::Disconnected(_) => io::Error::from(io::ErrorKind::BrokenPipe),
            })?;
            Ok(guest)
        })
    }
}

/// Answers a request of [`REQUEST_LEN`] bytes.
type Respond = Box<dyn Fn(&[u8]) -> Vec<u8> + Send>;

/// What answers guests under the environment; `None` under one that is not simulated.
fn responder(tee: &TeeConfig, launch_digest: [u8; 48]) -> Result<Option<Respond>, VmmError> {
    Ok(Some(match tee {
        TeeConfig::SimSnp { platform, host_data, policy } => {
            let platform = SimPlatform::load(platform).map_err(failed)?;
            let host_data = hex_bytes("tee.host_data", host_data)?;
            let mut launch = SimLaunch::new(launch_digest, host_data).map_err(failed)?;
            launch.policy = policy.unwrap_or(DEFAULT_POLICY);
            let service = SimService::new(Arc::new(platform), launch);
            Box::new(move |request| service.respond(request))
        }
        TeeConfig::SimTdx { platform, mrconfigid } => {
            let quoter = Quoter::load(platform).map_err(failed)?;
            let mr_config_id = hex_bytes("tee.mrconfigid", mrconfigid)?;
            let launch = TdxLaunch { mr_td: launch_digest, mr_config_id };
            let service = TdxService::new(Arc::new(quoter), launch);
            Box::new(move |request| service.respond(request))
        }
        TeeConfig::None | TeeConfig::Snp(_) | TeeConfig::Tdx(_) => return Ok(None),
    }))
}

fn serve(respond: &Respond, connections: &Receiver<UnixStream>) {
    for mut connection in connections {
        if let Err(error) = exchange(respond, &mut connection) {
            tracing::warn!(device = "sim-tee", %error, "exchange with the guest failed");
        }
    }
}

fn exchange(respond: &Respond, connection: &mut UnixStream) -> io::Result<()> {
    connection.set_read_timeout(Some(GUEST_TIMEOUT))?;
    connection.set_write_timeout(Some(GUEST_TIMEOUT))?;
    let mut request = [0; REQUEST_LEN];
    connection.read_exact(&mut request)?;
    connection.write_all(&respond(&request))
}
