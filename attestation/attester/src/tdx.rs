//! TDX: TD reports from `/dev/tdx_guest`, quotes through `configfs` or the quote generation service, and the event log.
//!
//! A TD report comes from the TDX module and never leaves the machine unsigned: what the guest wants to know of itself
//! (init-data digest, runtime registers) it reads there, and not in a quote, which the host hands over and which nobody in
//! the guest verifies. Evidence in Trustee's form: `{"quote": b64, "cc_eventlog": b64 | null}`.
//!
//! Tested against fakes of device, configfs and service with recorded answers; not yet run on hardware.

use std::io;
use std::path::{Path, PathBuf};

use kata_cc_kbs_protocol::base64_standard;
use serde_json::{Value, json};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use crate::quote::{Quote, TD_REPORT_LEN, TdReport};
use crate::tsm::{self, Provider, TsmFs};
use crate::{AttestError, qgs};

/// The device, from the root.
pub const DEVICE: &str = "dev/tdx_guest";

/// The firmware's event log, from the root.
pub const CCEL: &str = "sys/firmware/acpi/tables/data/CCEL";

/// Intel's file that names the port of the quote generation service, from the root.
pub const QGS_CONFIG: &str = "etc/tdx-attest.conf";

/// Most bytes of the firmware's log.
pub const MAX_CCEL: usize = 1 << 20;

/// The one request that is needed of the device.
pub trait TdDevice {
    /// `TDX_CMD_GET_REPORT0`.
    ///
    /// # Errors
    /// As the kernel says.
    fn report(&self, report_data: &[u8; 64]) -> io::Result<Box<[u8; TD_REPORT_LEN]>>;
}

/// The report of this TD, which holds `report_data`.
///
/// # Errors
/// When the device fails or its answer is no such report.
pub fn td_report<D: TdDevice>(
    device: &D,
    report_data: &[u8; 64],
) -> Result<(Box<[u8; TD_REPORT_LEN]>, TdReport), AttestError> {
    let bytes = device
        .report(report_data)
        .map_err(|source| AttestError::TdxDevice { action: "get a report from", source })?;
    let report = TdReport::parse(bytes.as_slice())?;
    if report.report_data != *report_data {
        return Err(AttestError::OtherReport);
    }
    Ok((bytes, report))
}

/// A quote through the kernel's TSM interface.
///
/// # Errors
/// [`AttestError`] says which step failed.
pub fn quote_by_tsm<F: TsmFs>(fs: &F, report_data: &[u8; 64]) -> Result<Vec<u8>, AttestError> {
    let answer = tsm::ask(fs, &tsm::Request::new(Provider::TdxGuest, *report_data))?;
    checked(answer.outblob, report_data)
}

/// A quote from the quote generation service, over vsock.
pub(crate) async fn quote_by_qgs(
    td_report: &[u8; TD_REPORT_LEN],
    report_data: &[u8; 64],
    port: u32,
) -> Result<Vec<u8>, AttestError> {
    let address = format!("vsock {VMADDR_CID_HOST}:{port}");
    let stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port))
        .await
        .map_err(|source| AttestError::Qgs { action: "connect to", address: address.clone(), source })?;
    checked(qgs::exchange(stream, &address, td_report).await?, report_data)
}

/// A quote that is whole and answers our request.
///
/// # Errors
/// When it is cut, of another kind, or holds other report data.
pub fn checked(quote: Vec<u8>, report_data: &[u8; 64]) -> Result<Vec<u8>, AttestError> {
    if Quote::parse(&quote)?.report_data != *report_data {
        return Err(AttestError::OtherReport);
    }
    Ok(quote)
}

/// The firmware's event log, without the filling after its end; `None` where the firmware has none.
///
/// # Errors
/// When it is there and cannot be read, or is larger than [`MAX_CCEL`].
pub fn firmware_log(root: &Path) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    let file = match std::fs::File::open(root.join(CCEL)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut log = Vec::new();
    file.take(MAX_CCEL as u64 + 1).read_to_end(&mut log)?;
    if log.len() > MAX_CCEL {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let used = crate::measure::tcg::used_length(&log).ok_or(io::ErrorKind::InvalidData)?;
    log.truncate(used);
    Ok(Some(log))
}

/// Port of the quote generation service, where the guest's image names one.
pub(crate) fn qgs_port(root: &Path) -> Option<u32> {
    const MOST: u64 = 16 << 10;
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(root.join(QGS_CONFIG)).ok()?.take(MOST).read_to_string(&mut text).ok()?;
    qgs::configured_port(&text)
}

/// Trustee's form.
#[must_use]
pub fn evidence_json(quote: &[u8], log: Option<&[u8]>) -> Value {
    json!({"quote": base64_standard(quote), "cc_eventlog": log.map(base64_standard)})
}

/// Path of the device below `root`.
pub(crate) fn device(root: &Path) -> PathBuf {
    root.join(DEVICE)
}
