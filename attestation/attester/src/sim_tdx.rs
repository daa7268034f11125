//! Quotes and registers of the simulated TDX module: one exchange on a vsock connection to the host.
//!
//! Request: 96 bytes, 64 of data, u32 operation, 28 zero. Answer: u32 status, u32 length, u32 length of the collateral, both;
//! little-endian. Operations: 0 quote over report data, 1 read the registers, 0x12 and 0x13 extend RTMR2 and RTMR3.

use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use kata_cc_kbs_protocol::base64_standard;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_vsock::VMADDR_CID_HOST;

use crate::AttestError;
use crate::measure::{DIGEST_LEN, Digest, Register, check_run_time};
use crate::quote::MAX_QUOTE;
use crate::sim::{self, Limits, PORT, request};
use crate::tdx;

const QUOTE: u32 = 0;
const READ_REGISTERS: u32 = 1;
const EXTEND: u32 = 0x10;

/// Most bytes of collateral: what Intel publishes about a platform has some 20 KiB.
const MAX_COLLATERAL: usize = 256 << 10;

/// Bytes of all registers.
const REGISTERS: usize = 4 * DIGEST_LEN;

/// How long the monitor may take for a register.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// A quote that answers our request, and the collateral that the host gave beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct SimQuote {
    /// The quote.
    pub quote: Vec<u8>,
    /// Collateral in the evidence's form.
    pub collateral: Value,
}

impl SimQuote {
    /// Trustee's form, with the collateral that only simulated platforms may bring themselves.
    #[must_use]
    pub fn evidence_json(&self, log: Option<&[u8]>) -> Value {
        json!({
            "quote": base64_standard(&self.quote),
            "cc_eventlog": log.map(base64_standard),
            "collateral": self.collateral,
        })
    }
}

/// Asks the host's simulated TDX module.
pub(crate) async fn quote(report_data: &[u8; 64]) -> Result<SimQuote, AttestError> {
    exchange(sim::connect().await?, report_data).await
}

/// One exchange over any connection.
///
/// # Errors
/// [`AttestError`] when the connection breaks, the request is refused, lengths are out of bounds, or the quote answers
/// another request.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    report_data: &[u8; 64],
) -> Result<SimQuote, AttestError> {
    let limits = Limits { first: ("the quote", 1..=MAX_QUOTE), second: ("the collateral", MAX_COLLATERAL) };
    let (quote, collateral) = sim::ask(stream, &request(report_data, QUOTE), &limits).await?;
    let quote = tdx::checked(quote, report_data)?;
    Ok(SimQuote { quote, collateral: serde_json::from_slice(&collateral)? })
}

/// A run-time register of the simulated TDX module. It is as hardware's to a verifier, who sees it in quotes that say that they are
/// simulated.
pub struct SimRtmr {
    index: u8,
    connect: Connect,
}

/// Makes a connection to the simulated TDX module.
pub type Connect = Box<dyn Fn() -> io::Result<Box<dyn Connection>> + Send>;

/// A connection that blocks.
pub trait Connection: io::Read + io::Write {}

impl<T: io::Read + io::Write> Connection for T {}

impl std::fmt::Debug for SimRtmr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimRtmr").field("index", &self.index).finish_non_exhaustive()
    }
}

impl SimRtmr {
    /// Register 2 or 3 of this guest's module.
    ///
    /// # Errors
    /// When the module does not answer, or the register is not one for run time.
    pub fn open(index: u8) -> io::Result<Self> {
        Self::over(index, Box::new(connect))
    }

    /// The same over other connections.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn over(index: u8, connect: Connect) -> io::Result<Self> {
        check_run_time(index)?;
        let register = Self { index, connect };
        register.value()?;
        Ok(register)
    }

    /// One exchange whose answer has `N` bytes.
    fn ask<const N: usize>(&self, data: &[u8; 64], operation: u32) -> io::Result<[u8; N]> {
        let mut stream = (self.connect)()?;
        stream.write_all(&request(data, operation))?;
        let mut header = [0; 12];
        stream.read_exact(&mut header)?;
        let expected = [0, N as u32, 0].map(u32::to_le_bytes).concat();
        if header.as_slice() != expected {
            let why =
                format!("the simulated TDX module refused operation {operation:#x}: answer {header:x?}");
            return Err(io::Error::other(why));
        }
        let mut answer = [0; N];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }
}

impl Register for SimRtmr {
    fn number(&self) -> u32 {
        u32::from(self.index) + 1
    }

    fn is_hardware(&self) -> bool {
        true
    }

    fn value(&self) -> io::Result<Digest> {
        let all: [u8; REGISTERS] = self.ask(&[0; 64], READ_REGISTERS)?;
        let (registers, _) = all.as_chunks::<DIGEST_LEN>();
        registers.get(usize::from(self.index)).copied().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn extend(&mut self, by: &Digest) -> io::Result<()> {
        let mut data = [0; 64];
        for (to, from) in data.iter_mut().zip(by) {
            *to = *from;
        }
        self.ask::<DIGEST_LEN>(&data, EXTEND + u32::from(self.index)).map(drop)
    }
}

fn connect() -> io::Result<Box<dyn Connection>> {
    let stream = vsock::VsockStream::connect_with_cid_port(VMADDR_CID_HOST, PORT)?;
    stream.set_read_timeout(Some(REGISTER_TIMEOUT))?;
    stream.set_write_timeout(Some(REGISTER_TIMEOUT))?;
    Ok(Box::new(stream))
}
