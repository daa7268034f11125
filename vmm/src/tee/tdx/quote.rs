//! GetQuote: the guest's TD report goes to the host's quoting service (QGS), the quote comes back.
//!
//! Guest side (GHCI, TDG.VP.VMCALL<GetQuote>): a shared buffer, page-aligned, that starts with {u64 version 1,
//! u64 status, u32 in_len, u32 out_len}. Service side (`qgs_msg_lib`): messages of {u16 major, u16 minor, u32
//! type, u32 size, u32 error}, each after its length as four big-endian bytes, over vsock or a Unix socket.
//!
//! Both sides are untrusted here: the guest chooses the buffer, and the service's answer goes to the guest only
//! when it is whole and fits. The quote itself is checked by whoever verifies it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;

/// Bytes of the header of the guest's buffer.
const HEADER: usize = 24;
/// Bytes of a TDREPORT.
const REPORT: usize = 1024;
/// Largest buffer that is served.
const BUFFER_MAX: usize = 1 << 20;
/// Largest answer of the service.
const ANSWER_MAX: u32 = 1 << 20;
/// How long the service may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Header of the service's messages.
const MESSAGE_HEADER: usize = 16;
const VERSION: (u16, u16) = (1, 1);
const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;

/// Status that the guest reads (GHCI, table "TDG.VP.VMCALL<GetQuote> status code").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum QuoteStatus {
    /// The quote is in the buffer.
    Success = 0,
    /// The service is at work.
    InFlight = u64::MAX,
    /// It failed.
    Error = 0x8000_0000_0000_0000,
    /// There is no service.
    Unavailable = 0x8000_0000_0000_0001,
}

/// Why there is no quote.
#[derive(Debug, thiserror::Error)]
pub enum QuoteError {
    /// The guest's buffer makes no sense.
    #[error("the guest's quote buffer is refused: {0}")]
    Buffer(&'static str),
    /// No service is configured or it does not answer the door.
    #[error("the quoting service cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    /// The service broke off or took too long.
    #[error("the quoting service did not answer: {0}")]
    Io(#[source] io::Error),
    /// The answer is not of the protocol.
    #[error("the quoting service's answer is refused: {0}")]
    Answer(&'static str),
    /// The service says that it failed.
    #[error("the quoting service failed with {0:#x}")]
    Service(u32),
    /// The quote does not fit into the guest's buffer.
    #[error("the quote of {quote} bytes does not fit into the guest's buffer of {buffer}")]
    TooLarge {
        /// Bytes of the quote.
        quote: usize,
        /// Bytes of the buffer.
        buffer: usize,
    },
}

impl QuoteError {
    /// What the guest is told.
    #[must_use]
    pub const fn status(&self) -> QuoteStatus {
        match self {
            Self::Unreachable(_) => QuoteStatus::Unavailable,
            _ => QuoteStatus::Error,
        }
    }
}

/// Where the quoting service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuotingService {
    /// Unix socket, `/var/run/tdx-qgs/qgs.socket` usually.
    Unix(PathBuf),
    /// vsock, context 2 (the host) and port 4050 usually.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
}

/// The TD report in the guest's buffer.
///
/// # Errors
/// When the buffer is none of GHCI's version 1 with a report in it.
pub fn report_in(buffer: &[u8]) -> Result<&[u8; REPORT], QuoteError> {
    if buffer.len() < HEADER + REPORT || buffer.len() > BUFFER_MAX {
        return Err(QuoteError::Buffer("its size is not that of a report to a megabyte"));
    }
    if buffer.first_chunk().map(|version| u64::from_le_bytes(*version)) != Some(1) {
        return Err(QuoteError::Buffer("its version is not 1"));
    }
    let length = buffer.get(16..).and_then(<[u8]>::first_chunk);
    if length.map(|length| u32::from_le_bytes(*length)) != Some(REPORT as u32) {
        return Err(QuoteError::Buffer("its input is not a report of 1024 bytes"));
    }
    buffer.get(HEADER..).and_then(<[u8]>::first_chunk).ok_or(QuoteError::Buffer("its report is cut off"))
}

/// Puts the answer into the guest's buffer: status, length and the quote.
pub fn answer_into(buffer: &mut [u8], answer: &Result<Vec<u8>, QuoteError>) {
    let room = buffer.len().saturating_sub(HEADER);
    let (status, quote) = match answer {
        Ok(quote) if quote.len() <= room => (QuoteStatus::Success, quote.as_slice()),
        Ok(_) => (QuoteStatus::Error, &[][..]),
        Err(error) => (error.status(), &[][..]),
    };
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = buffer.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(HEADER, quote);
    put(20, &(quote.len() as u32).to_le_bytes());
    // the guest waits for the status: it comes last
    put(8, &(status as u64).to_le_bytes());
}

/// The request as it goes over the wire.
#[must_use]
pub fn request(report: &[u8; REPORT]) -> Vec<u8> {
    let size = (MESSAGE_HEADER + 8 + REPORT) as u32;
    let mut out = size.to_be_bytes().to_vec();
    out.extend(VERSION.0.to_le_bytes());
    out.extend(VERSION.1.to_le_bytes());
    for word in [GET_QUOTE_REQUEST, size, 0, REPORT as u32, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(report);
    out
}

/// The quote in an answer, without the length before it.
///
/// # Errors
/// When the answer is not whole or says that the service failed.
pub fn quote_in(answer: &[u8]) -> Result<&[u8], QuoteError> {
    let short = QuoteError::Answer("it is cut off");
    let half = |at: usize| answer.get(at..).and_then(<[u8]>::first_chunk).map(|w| u16::from_le_bytes(*w));
    let word = |at: usize| answer.get(at..).and_then(<[u8]>::first_chunk).map(|w| u32::from_le_bytes(*w));
    let (Some(major), Some(minor)) = (half(0), half(2)) else { return Err(short) };
    let (Some(kind), Some(size), Some(error)) = (word(4), word(8), word(12)) else { return Err(short) };
    if major != VERSION.0 || minor > VERSION.1 {
        return Err(QuoteError::Answer("its version is not 1.0 or 1.1"));
    }
    if kind != GET_QUOTE_RESPONSE {
        return Err(QuoteError::Answer("it is not an answer to GET_QUOTE"));
    }
    if error != 0 {
        return Err(QuoteError::Service(error));
    }
    if size as usize != answer.len() {
        return Err(QuoteError::Answer("its size is not the one it states"));
    }
    let (Some(id), Some(quote)) = (word(16), word(20)) else { return Err(short) };
    if id != 0 {
        return Err(QuoteError::Answer("it selects an identity, and none was offered"));
    }
    let body = answer.get(24..).unwrap_or_default();
    if quote == 0 || quote as usize != body.len() {
        return Err(QuoteError::Answer("its quote is not as long as it states"));
    }
    Ok(body)
}

/// One exchange over an open connection.
///
/// # Errors
/// As [`quote_in`], and what the connection says.
pub fn exchange(connection: &mut (impl Read + Write), report: &[u8; REPORT]) -> Result<Vec<u8>, QuoteError> {
    connection.write_all(&request(report)).map_err(QuoteError::Io)?;
    let mut length = [0; 4];
    connection.read_exact(&mut length).map_err(QuoteError::Io)?;
    let length = u32::from_be_bytes(length);
    if length > ANSWER_MAX {
        return Err(QuoteError::Answer("it has more than a megabyte"));
    }
    let mut answer = vec![0; length as usize];
    connection.read_exact(&mut answer).map_err(QuoteError::Io)?;
    quote_in(&answer).map(<[u8]>::to_vec)
}

impl QuotingService {
    /// Gets a quote for a report. Takes up to 30 seconds a step: not for a vCPU's thread.
    ///
    /// # Errors
    /// [`QuoteError`].
    pub fn quote(&self, report: &[u8; REPORT]) -> Result<Vec<u8>, QuoteError> {
        match self {
            Self::Unix(path) => {
                let mut stream = UnixStream::connect(path).map_err(QuoteError::Unreachable)?;
                stream.set_read_timeout(Some(TIMEOUT)).map_err(QuoteError::Io)?;
                stream.set_write_timeout(Some(TIMEOUT)).map_err(QuoteError::Io)?;
                exchange(&mut stream, report)
            }
            Self::Vsock { cid, port } => {
                let socket = vsock(*cid, *port).map_err(|error| QuoteError::Unreachable(error.into()))?;
                exchange(&mut std::fs::File::from(socket), report)
            }
        }
    }

    /// Serves one GetQuote: reads the report out of a copy of the guest's buffer and puts the answer into it.
    ///
    /// # Errors
    /// [`QuoteError`], which the guest was told by the status in its buffer.
    pub fn serve(&self, buffer: &mut [u8]) -> Result<(), QuoteError> {
        let quote = report_in(buffer).copied().and_then(|report| self.quote(&report));
        let room = buffer.len().saturating_sub(HEADER);
        let answer = quote.and_then(|quote| {
            let length = quote.len();
            if length > room { Err(QuoteError::TooLarge { quote: length, buffer: room }) } else { Ok(quote) }
        });
        answer_into(buffer, &answer);
        answer.map(|_| ())
    }
}

fn vsock(cid: u32, port: u32) -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::new(TIMEOUT.as_secs() as i64, 0);
    setsockopt(&fd.as_fd(), sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&fd.as_fd(), sockopt::SendTimeout, &limit)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &VsockAddr::new(cid, port))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(name: &str) -> Option<Vec<u8>> {
        kata_cc_test_vectors::read(&format!("tdx/{name}"))
    }

    fn answer(quote: &[u8]) -> Vec<u8> {
        let size = 24 + quote.len() as u32;
        let mut out = vec![1, 0, 1, 0];
        for word in [1, size, 0, 0, quote.len() as u32] {
            out.extend(word.to_le_bytes());
        }
        out.extend(quote);
        out
    }

    #[test]
    fn the_request_is_the_one_that_qemu_sends() {
        let (Some(report), Some(expected)) =
            (vector("tdreport/report-a.bin"), vector("qgs/get-quote-req.bin"))
        else {
            return;
        };
        assert_eq!(request(report.as_slice().try_into().unwrap()), expected);
    }

    #[test]
    fn the_services_error_is_told() {
        let Some(bytes) = vector("qgs/get-quote-resp-error.bin") else { return };
        // the vector has its length before it, as on the wire
        assert!(matches!(quote_in(&bytes[4..]), Err(QuoteError::Service(code)) if code != 0));
    }

    #[test]
    fn broken_answers_are_refused_by_what_is_broken() {
        let good = answer(&[7; 100]);
        assert_eq!(quote_in(&good).unwrap(), [7; 100]);
        for length in 0..good.len() {
            assert!(quote_in(&good[..length]).is_err(), "{length}");
        }
        for (at, value, word) in [
            (0, 2, "version"),
            (2, 2, "version"),
            (4, 3, "GET_QUOTE"),
            (8, 99, "size"),
            (16, 1, "identity"),
            (20, 99, "as long"),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            let seen = quote_in(&bad).unwrap_err().to_string();
            assert!(seen.contains(word), "{at}: {seen}");
        }
    }

    fn buffer(len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        buffer[0] = 1;
        buffer[16..20].copy_from_slice(&1024u32.to_le_bytes());
        buffer[24] = 0xAB;
        buffer
    }

    /// A service that answers once.
    fn service(reply: Vec<u8>) -> (tempfile::TempDir, QuotingService, std::thread::JoinHandle<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qgs.socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 1052];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&(reply.len() as u32).to_be_bytes()).unwrap();
            stream.write_all(&reply).unwrap();
            request
        });
        (dir, QuotingService::Unix(path), thread)
    }

    #[test]
    fn a_quote_reaches_the_guests_buffer() {
        let (_dir, service, thread) = service(answer(&[9; 5000]));
        let mut memory = buffer(8192);
        service.serve(&mut memory).unwrap();
        assert_eq!(thread.join().unwrap()[28], 0xAB);
        assert_eq!(memory[8..16], [0; 8]);
        assert_eq!(memory[20..24], 5000u32.to_le_bytes());
        assert_eq!(memory[24..5024], [9; 5000]);
    }

    #[test]
    fn what_fails_is_a_status_for_the_guest() {
        let status = |memory: &[u8]| u64::from_le_bytes(memory[8..16].try_into().unwrap());
        let (_dir, full, thread) = service(answer(&[9; 8192]));
        let mut memory = buffer(8192);
        assert!(matches!(full.serve(&mut memory), Err(QuoteError::TooLarge { quote: 8192, buffer: 8168 })));
        assert_eq!(status(&memory), QuoteStatus::Error as u64);
        thread.join().unwrap();

        let gone = QuotingService::Unix("/nonexistent/qgs.socket".into());
        let mut memory = buffer(8192);
        assert!(matches!(gone.serve(&mut memory), Err(QuoteError::Unreachable(_))));
        assert_eq!(status(&memory), QuoteStatus::Unavailable as u64);

        for (change, word) in [(0, "version"), (16, "report of 1024")] {
            let mut memory = buffer(8192);
            memory[change] ^= 2;
            assert!(gone.serve(&mut memory).unwrap_err().to_string().contains(word));
            assert_eq!(status(&memory), QuoteStatus::Error as u64);
        }
        assert!(gone.serve(&mut buffer(1047)).unwrap_err().to_string().contains("size"));
    }
}
