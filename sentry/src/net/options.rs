//! Options of level `SOL_SOCKET` (`man 7 socket`, `net/core/sock.c`).

use std::time::Duration;

use super::{Common, lock};
use crate::error::Errno;

/// `CAP_NET_ADMIN`.
pub(crate) const CAP_NET_ADMIN: u32 = 12;
/// `CAP_NET_RAW`.
pub(crate) const CAP_NET_RAW: u32 = 13;
/// `net.core.wmem_max` and `rmem_max`.
const BUFFER_MAX: usize = 212_992;
/// Most that anybody can have.
const BUFFER_FORCED: usize = 16 << 20;
/// `SOCK_MIN_SNDBUF`, `SOCK_MIN_RCVBUF`.
const BUFFER_MIN: [usize; 2] = [4608, 2304];

/// Options that are but numbers: set, and told as they were set. Number, whether it is a flag.
const STORED: &[(i32, bool)] = &[
    (libc::SO_DEBUG, true),
    (libc::SO_DONTROUTE, true),
    (libc::SO_NO_CHECK, true),
    (libc::SO_PRIORITY, false),
    (libc::SO_PASSSEC, true),
    (libc::SO_MARK, false),
    (libc::SO_RXQ_OVFL, true),
    (libc::SO_WIFI_STATUS, true),
    (libc::SO_BUSY_POLL, false),
    (libc::SO_INCOMING_CPU, false),
    (libc::SO_MAX_PACING_RATE, false),
    (libc::SO_ZEROCOPY, true),
    (libc::SO_NOFCS, true),
    (libc::SO_LOCK_FILTER, true),
    (libc::SO_SELECT_ERR_QUEUE, true),
];

/// Options of a socket.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Options {
    pub(crate) reuse_address: bool,
    pub(crate) reuse_port: bool,
    pub(crate) broadcast: bool,
    pub(crate) keep_alive: bool,
    pub(crate) urgent_inline: bool,
    pub(crate) pass_credentials: bool,
    pub(crate) timestamps: Option<bool>,
    pub(crate) linger: (bool, i32),
    pub(crate) send_buffer: usize,
    pub(crate) receive_buffer: usize,
    /// Set by somebody: not grown by itself.
    pub(crate) fixed: [bool; 2],
    pub(crate) low_water: i32,
    pub(crate) receive_timeout: Option<Duration>,
    pub(crate) send_timeout: Option<Duration>,
    /// What is only stored, of all levels.
    pub(crate) stored: Vec<(i32, i32, i32)>,
}

impl Options {
    pub(crate) fn new(domain: i32, kind: i32) -> Self {
        let tcp = matches!(domain, libc::AF_INET | libc::AF_INET6) && kind == libc::SOCK_STREAM;
        let [send_buffer, receive_buffer] = if tcp { [16_384, 131_072] } else { [BUFFER_MAX; 2] };
        Self {
            reuse_address: false,
            reuse_port: false,
            broadcast: false,
            keep_alive: false,
            urgent_inline: false,
            pass_credentials: false,
            timestamps: None,
            linger: (false, 0),
            send_buffer,
            receive_buffer,
            fixed: [false; 2],
            low_water: 1,
            receive_timeout: None,
            send_timeout: None,
            stored: Vec::new(),
        }
    }

    /// Those of an image, within what a guest could have set.
    pub(crate) fn bounded(mut self) -> Self {
        self.send_buffer = self.send_buffer.clamp(BUFFER_MIN[0], BUFFER_FORCED);
        self.receive_buffer = self.receive_buffer.clamp(BUFFER_MIN[1], BUFFER_FORCED);
        self.stored.truncate(64);
        self
    }

    /// What was stored.
    pub(crate) fn stored(&self, level: i32, name: i32) -> Option<i32> {
        self.stored.iter().find(|entry| (entry.0, entry.1) == (level, name)).map(|entry| entry.2)
    }

    /// Stores a number.
    pub(crate) fn store(&mut self, level: i32, name: i32, value: i32) {
        match self.stored.iter_mut().find(|entry| (entry.0, entry.1) == (level, name)) {
            Some(entry) => entry.2 = value,
            None => self.stored.push((level, name, value)),
        }
    }
}

/// A number of an option.
///
/// # Errors
/// EINVAL where there are too few bytes.
pub(crate) fn number(value: &[u8]) -> Result<i32, Errno> {
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)
}

/// A number as an option tells it.
pub(crate) fn told(value: i32) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

fn timeout(value: &[u8]) -> Result<Option<Duration>, Errno> {
    let (seconds, rest) = value.split_first_chunk::<8>().ok_or(Errno::EINVAL)?;
    let micros = rest.first_chunk::<8>().ok_or(Errno::EINVAL)?;
    let (seconds, micros) = (i64::from_ne_bytes(*seconds), i64::from_ne_bytes(*micros));
    if !(0..1_000_000).contains(&micros) {
        return Err(Errno::EDOM);
    }
    // A negative time is not waited for at all, none is waited for without end.
    let Ok(seconds) = u64::try_from(seconds) else { return Ok(Some(Duration::ZERO)) };
    let time = Duration::from_secs(seconds).saturating_add(Duration::from_micros(micros.unsigned_abs()));
    Ok(if time.is_zero() { None } else { Some(time) })
}

fn told_timeout(time: Option<Duration>) -> Vec<u8> {
    let time = time.unwrap_or_default();
    [time.as_secs().to_ne_bytes(), u64::from(time.subsec_micros()).to_ne_bytes()].concat()
}

fn buffer(value: i32, most: usize, least: usize) -> usize {
    // As an unsigned number: a negative one is very large (`sock_setsockopt`).
    let wanted = usize::try_from(value.cast_unsigned()).unwrap_or(usize::MAX);
    wanted.min(most).saturating_mul(2).max(least)
}

/// `setsockopt` of level `SOL_SOCKET`.
///
/// # Errors
/// ENOPROTOOPT for what is not known; EINVAL, EDOM, EPERM.
pub(crate) fn set(common: &Common, name: i32, value: &[u8], admin: bool) -> Result<(), Errno> {
    match name {
        libc::SO_RCVTIMEO | libc::SO_SNDTIMEO | 66 | 67 => {
            let time = timeout(value)?;
            let mut options = lock(&common.options);
            if matches!(name, libc::SO_RCVTIMEO | 66) {
                options.receive_timeout = time;
            } else {
                options.send_timeout = time;
            }
            return Ok(());
        }
        libc::SO_BINDTODEVICE => return bind_to_device(common, value),
        libc::SO_ATTACH_FILTER | libc::SO_DETACH_FILTER if common.domain == libc::AF_NETLINK => return Ok(()),
        _ => {}
    }
    let number = number(value)?;
    let on = number != 0;
    let mut options = lock(&common.options);
    match name {
        libc::SO_REUSEADDR => options.reuse_address = on,
        libc::SO_REUSEPORT => {
            if on && !matches!(common.domain, libc::AF_INET | libc::AF_INET6) {
                return Err(Errno::EOPNOTSUPP);
            }
            options.reuse_port = on;
        }
        libc::SO_BROADCAST => options.broadcast = on,
        libc::SO_KEEPALIVE => options.keep_alive = on,
        libc::SO_OOBINLINE => options.urgent_inline = on,
        libc::SO_PASSCRED => {
            if !matches!(common.domain, libc::AF_UNIX | libc::AF_NETLINK) {
                return Err(Errno::EOPNOTSUPP);
            }
            options.pass_credentials = on;
        }
        libc::SO_TIMESTAMP | 63 => options.timestamps = on.then_some(false),
        libc::SO_TIMESTAMPNS | 64 => options.timestamps = on.then_some(true),
        libc::SO_LINGER => {
            let seconds = value.get(4..).and_then(<[u8]>::first_chunk).ok_or(Errno::EINVAL)?;
            options.linger = (on, i32::from_ne_bytes(*seconds));
        }
        libc::SO_RCVLOWAT => options.low_water = if number < 0 { i32::MAX } else { number.max(1) },
        libc::SO_SNDBUF => {
            options.send_buffer = buffer(number, BUFFER_MAX, BUFFER_MIN[0]);
            options.fixed[0] = true;
        }
        libc::SO_RCVBUF => {
            options.receive_buffer = buffer(number, BUFFER_MAX, BUFFER_MIN[1]);
            options.fixed[1] = true;
        }
        libc::SO_SNDBUFFORCE | libc::SO_RCVBUFFORCE if !admin => return Err(Errno::EPERM),
        libc::SO_SNDBUFFORCE => {
            options.send_buffer = buffer(number.max(0), BUFFER_FORCED / 2, BUFFER_MIN[0]);
            options.fixed[0] = true;
        }
        libc::SO_RCVBUFFORCE => {
            options.receive_buffer = buffer(number.max(0), BUFFER_FORCED / 2, BUFFER_MIN[1]);
            options.fixed[1] = true;
        }
        libc::SO_MARK if !admin => return Err(Errno::EPERM),
        libc::SO_PRIORITY if !admin && !(0..=6).contains(&number) => return Err(Errno::EPERM),
        libc::SO_TYPE | libc::SO_PROTOCOL | libc::SO_DOMAIN | libc::SO_ERROR | libc::SO_SNDLOWAT => {
            return Err(Errno::ENOPROTOOPT);
        }
        _ => {
            let (_, flag) = STORED.iter().find(|entry| entry.0 == name).ok_or(Errno::ENOPROTOOPT)?;
            options.store(libc::SOL_SOCKET, name, if *flag { i32::from(on) } else { number });
        }
    }
    Ok(())
}

/// A name of an interface is looked at, no more: which one packets take is decided by their destination.
fn bind_to_device(common: &Common, name: &[u8]) -> Result<(), Errno> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    match name.get(..end).unwrap_or_default() {
        b"" | b"lo" => Ok(()),
        name if common.net.interfaces().iter().any(|link| link.name().as_bytes() == name) => Ok(()),
        _ => Err(Errno::ENODEV),
    }
}

/// `getsockopt` of level `SOL_SOCKET`. `listening` and `peer` are what the socket says about itself.
///
/// # Errors
/// ENOPROTOOPT for what is not known.
pub(crate) fn get(
    common: &Common,
    name: i32,
    listening: bool,
    peer: Option<super::Identity>,
) -> Result<Vec<u8>, Errno> {
    if name == libc::SO_ERROR {
        return Ok(told(common.take_error().err().map_or(0, |errno| errno as i32)));
    }
    let options = lock(&common.options);
    let size = |bytes: usize| i32::try_from(bytes).unwrap_or(i32::MAX);
    Ok(told(match name {
        libc::SO_TYPE => common.kind,
        libc::SO_DOMAIN => common.domain,
        libc::SO_PROTOCOL => common.protocol,
        libc::SO_ACCEPTCONN => i32::from(listening),
        libc::SO_REUSEADDR => i32::from(options.reuse_address),
        libc::SO_REUSEPORT => i32::from(options.reuse_port),
        libc::SO_BROADCAST => i32::from(options.broadcast),
        libc::SO_KEEPALIVE => i32::from(options.keep_alive),
        libc::SO_OOBINLINE => i32::from(options.urgent_inline),
        libc::SO_PASSCRED => i32::from(options.pass_credentials),
        libc::SO_TIMESTAMP | 63 => i32::from(options.timestamps == Some(false)),
        libc::SO_TIMESTAMPNS | 64 => i32::from(options.timestamps == Some(true)),
        libc::SO_LINGER => {
            let (on, seconds) = options.linger;
            return Ok([told(i32::from(on)), told(seconds)].concat());
        }
        libc::SO_RCVLOWAT => options.low_water,
        libc::SO_SNDLOWAT => 1,
        libc::SO_SNDBUF => size(options.send_buffer),
        libc::SO_RCVBUF => size(options.receive_buffer),
        libc::SO_RCVTIMEO | 66 => return Ok(told_timeout(options.receive_timeout)),
        libc::SO_SNDTIMEO | 67 => return Ok(told_timeout(options.send_timeout)),
        libc::SO_PEERCRED => return Ok(peer.unwrap_or(super::Identity::NOBODY).bytes().to_vec()),
        libc::SO_PEERGROUPS => return if peer.is_some() { Ok(Vec::new()) } else { Err(Errno::ENODATA) },
        libc::SO_COOKIE => return Ok(common.id().to_ne_bytes().to_vec()),
        libc::SO_BINDTODEVICE => return Ok(Vec::new()),
        libc::SO_INCOMING_CPU => options.stored(libc::SOL_SOCKET, name).unwrap_or(-1),
        _ if STORED.iter().any(|entry| entry.0 == name) => {
            options.stored(libc::SOL_SOCKET, name).unwrap_or(0)
        }
        _ => return Err(Errno::ENOPROTOOPT),
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Identity, Net};
    use super::*;

    fn common() -> std::sync::Arc<Common> {
        let kind = [libc::AF_UNIX, libc::SOCK_STREAM, 0];
        Common::new(&Net::new(), kind, Identity::default()).unwrap()
    }

    #[test]
    fn buffers_are_doubled_within_limits() {
        let common = common();
        for (value, expected) in [(10_000, 20_000), (1, 4608), (1 << 30, 425_984), (-1, 425_984)] {
            set(&common, libc::SO_SNDBUF, &told(value), false).unwrap();
            assert_eq!(get(&common, libc::SO_SNDBUF, false, None), Ok(told(expected)));
        }
        assert_eq!(set(&common, libc::SO_SNDBUFFORCE, &told(1), false), Err(Errno::EPERM));
    }

    #[test]
    fn timeouts() {
        let common = common();
        let time = |seconds: i64, micros: i64| [seconds.to_ne_bytes(), micros.to_ne_bytes()].concat();
        assert_eq!(set(&common, libc::SO_RCVTIMEO, &time(0, 1_000_000), false), Err(Errno::EDOM));
        set(&common, libc::SO_RCVTIMEO, &time(1, 5), false).unwrap();
        assert_eq!(common.timeouts(), [Some(Duration::from_micros(1_000_005)), None]);
        assert_eq!(get(&common, libc::SO_RCVTIMEO, false, None), Ok(time(1, 5)));
        set(&common, libc::SO_RCVTIMEO, &time(-1, 5), false).unwrap();
        assert_eq!(common.timeouts()[0], Some(Duration::ZERO));
        assert_eq!(set(&common, libc::SO_RCVTIMEO, &[0; 15], false), Err(Errno::EINVAL));
    }

    #[test]
    fn what_is_not_known() {
        let common = common();
        for name in [libc::SO_TYPE, libc::SO_ERROR, 77, 76, 999, -1] {
            assert_eq!(set(&common, name, &told(1), true), Err(Errno::ENOPROTOOPT), "{name}");
        }
        assert_eq!(set(&common, libc::SO_KEEPALIVE, &[1, 0], true), Err(Errno::EINVAL));
        assert_eq!(get(&common, 77, false, None), Err(Errno::ENOPROTOOPT));
        assert_eq!(get(&common, libc::SO_TYPE, false, None), Ok(told(libc::SOCK_STREAM)));
    }
}
