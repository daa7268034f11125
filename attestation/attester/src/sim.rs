//! Reports of the simulated security processor: one exchange on a vsock connection to the host.
//!
//! Request: the 96 bytes of `struct snp_report_req`. Answer: u32 status, u32 report length, u32 length of the
//! certificate table, report, table; little-endian (`docs/design.md`).

use kata_cc_snp::REPORT_LEN;
use kata_cc_snp::cert_table::MAX_TABLE;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use crate::{AttestError, RawReport};

/// vsock port of the simulated security processor (`port::SIM_TEE` of the VMM's interface).
pub const PORT: u32 = 1027;

/// Asks the host's simulated security processor.
pub(crate) async fn report(report_data: &[u8; 64]) -> Result<RawReport, AttestError> {
    let stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, PORT))
        .await
        .map_err(|source| AttestError::Sim { action: "connect to", source })?;
    exchange(stream, report_data, 0).await
}

/// One exchange over any connection.
///
/// # Errors
/// [`AttestError`] when the connection breaks, the request is refused or lengths are out of bounds.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    report_data: &[u8; 64],
    vmpl: u32,
) -> Result<RawReport, AttestError> {
    let request = report_request(report_data, vmpl);
    stream.write_all(&request).await.map_err(|source| AttestError::Sim { action: "ask", source })?;
    let status = read_u32(&mut stream).await?;
    let report_len = read_u32(&mut stream).await? as usize;
    let certificates_len = read_u32(&mut stream).await? as usize;
    if status != 0 {
        return Err(AttestError::Status { status });
    }
    if report_len != REPORT_LEN {
        return Err(AttestError::Length { what: "the report", seen: report_len, expected: REPORT_LEN });
    }
    if certificates_len > MAX_TABLE {
        let what = "the certificate table";
        return Err(AttestError::Length { what, seen: certificates_len, expected: MAX_TABLE });
    }
    let report = read_vec(&mut stream, report_len).await?;
    let certificates = read_vec(&mut stream, certificates_len).await?;
    Ok(RawReport { report, certificates })
}

/// `struct snp_report_req`: 64 user data, u32 VMPL, 28 zero.
pub(crate) fn report_request(report_data: &[u8; 64], vmpl: u32) -> [u8; 96] {
    let mut request = [0; 96];
    request[..64].copy_from_slice(report_data);
    request[64..68].copy_from_slice(&vmpl.to_le_bytes());
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
