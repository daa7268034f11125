//! Reports of the simulated security processor: one exchange on a vsock connection to the host.
//!
//! Request: the 96 bytes of `struct snp_report_req`. Answer: u32 status, u32 report length, u32 length of the
//! certificate table, report, table; little-endian (`docs/design.md`).

use std::ops::RangeInclusive;

use kata_cc_snp::REPORT_LEN;
use kata_cc_snp::cert_table::MAX_TABLE;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use crate::{AttestError, RawReport};

/// vsock port of the simulated security processor (`port::SIM_TEE` of the VMM's interface).
pub const PORT: u32 = 1027;

/// Asks the host's simulated security processor.
pub(crate) async fn report(report_data: &[u8; 64]) -> Result<RawReport, AttestError> {
    exchange(connect().await?, report_data, 0).await
}

/// A connection to what the monitor simulates.
pub(crate) async fn connect() -> Result<VsockStream, AttestError> {
    VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, PORT))
        .await
        .map_err(|source| AttestError::Sim { action: "connect to", source })
}

/// One exchange over any connection.
///
/// # Errors
/// [`AttestError`] when the connection breaks, the request is refused or lengths are out of bounds.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    report_data: &[u8; 64],
    vmpl: u32,
) -> Result<RawReport, AttestError> {
    let limits = Limits {
        first: ("the report", REPORT_LEN..=REPORT_LEN),
        second: ("the certificate table", MAX_TABLE),
    };
    let (report, certificates) = ask(stream, &request(report_data, vmpl), &limits).await?;
    Ok(RawReport { report, certificates })
}

/// What an answer's two parts are, and how long they may be.
pub(crate) struct Limits {
    pub(crate) first: (&'static str, RangeInclusive<usize>),
    pub(crate) second: (&'static str, usize),
}

/// Asks, and reads an answer within its limits.
pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    request: &[u8; REQUEST_LEN],
    limits: &Limits,
) -> Result<(Vec<u8>, Vec<u8>), AttestError> {
    stream.write_all(request).await.map_err(|source| AttestError::Sim { action: "ask", source })?;
    let status = read_u32(&mut stream).await?;
    let first_len = read_u32(&mut stream).await? as usize;
    let second_len = read_u32(&mut stream).await? as usize;
    if status != 0 {
        return Err(AttestError::Status { status });
    }
    let (what, lengths) = &limits.first;
    if !lengths.contains(&first_len) {
        return Err(AttestError::Length { what, seen: first_len, expected: *lengths.end() });
    }
    let (what, most) = limits.second;
    if second_len > most {
        return Err(AttestError::Length { what, seen: second_len, expected: most });
    }
    let first = read_vec(&mut stream, first_len).await?;
    let second = read_vec(&mut stream, second_len).await?;
    Ok((first, second))
}

/// Bytes of a request.
const REQUEST_LEN: usize = 96;

/// `struct snp_report_req`: 64 user data, u32 VMPL (SNP) or operation (TDX), 28 zero.
pub(crate) fn request(data: &[u8; 64], word: u32) -> [u8; REQUEST_LEN] {
    let mut request = [0; REQUEST_LEN];
    request[..64].copy_from_slice(data);
    request[64..68].copy_from_slice(&word.to_le_bytes());
    request
}

async fn read_u32<S: AsyncRead + Unpin>(stream: &mut S) -> Result<u32, AttestError> {
    stream.read_u32_le().await.map_err(broken)
}

async fn read_vec<S: AsyncRead + Unpin>(stream: &mut S, len: usize) -> Result<Vec<u8>, AttestError> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await.map_err(broken)?;
    Ok(bytes)
}

const fn broken(source: std::io::Error) -> AttestError {
    AttestError::Sim { action: "read the answer of", source }
}
