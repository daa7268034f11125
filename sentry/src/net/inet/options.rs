//! Options of levels `IPPROTO_IP`, `IPPROTO_IPV6`, `IPPROTO_TCP` and `IPPROTO_UDP`: most are but stored.

use super::super::options::{CAP_NET_ADMIN, number, told};
use std::net::IpAddr;
use std::time::Duration;

use super::super::socket::Context;
use super::super::stack::{Measures, Settings};
use super::super::{Common, lock};
use crate::error::Errno;

/// An option that is a number: level, name, what it is unless set, its range.
struct Known(i32, i32, i32, std::ops::RangeInclusive<i32>);

const ANY: std::ops::RangeInclusive<i32> = i32::MIN..=i32::MAX;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;

/// From `include/uapi/linux/in.h`, `in6.h`, `tcp.h`, `udp.h`; ranges from `do_ip_setsockopt`, `do_ipv6_setsockopt`, `do_tcp_setsockopt`.
const KNOWN: &[Known] = &[
    Known(IP, libc::IP_TOS, 0, ANY),
    Known(IP, libc::IP_TTL, 64, -1..=255),
    Known(IP, libc::IP_HDRINCL, 0, ANY),
    Known(IP, libc::IP_RECVOPTS, 0, ANY),
    Known(IP, libc::IP_RETOPTS, 0, ANY),
    Known(IP, libc::IP_PKTINFO, 0, ANY),
    Known(IP, libc::IP_MTU_DISCOVER, 1, 0..=5),
    Known(IP, libc::IP_RECVERR, 0, ANY),
    Known(IP, libc::IP_RECVTTL, 0, ANY),
    Known(IP, libc::IP_RECVTOS, 0, ANY),
    Known(IP, libc::IP_FREEBIND, 0, ANY),
    Known(IP, libc::IP_RECVORIGDSTADDR, 0, ANY),
    Known(IP, libc::IP_MINTTL, 0, 0..=255),
    Known(IP, libc::IP_BIND_ADDRESS_NO_PORT, 0, ANY),
    Known(IP, libc::IP_MULTICAST_TTL, 1, -1..=255),
    Known(IP, libc::IP_MULTICAST_LOOP, 1, ANY),
    Known(IP, libc::IP_MULTICAST_ALL, 1, 0..=1),
    Known(IP, libc::IP_CHECKSUM, 0, ANY),
    Known(IPV6, libc::IPV6_UNICAST_HOPS, 64, -1..=255),
    Known(IPV6, libc::IPV6_MULTICAST_HOPS, 1, -1..=255),
    Known(IPV6, libc::IPV6_MULTICAST_LOOP, 1, 0..=1),
    Known(IPV6, libc::IPV6_MULTICAST_IF, 0, 0..=1),
    Known(IPV6, libc::IPV6_MTU_DISCOVER, 1, 0..=5),
    Known(IPV6, libc::IPV6_RECVERR, 0, ANY),
    Known(IPV6, libc::IPV6_V6ONLY, 0, ANY),
    Known(IPV6, libc::IPV6_RECVPKTINFO, 0, ANY),
    Known(IPV6, libc::IPV6_RECVHOPLIMIT, 0, ANY),
    Known(IPV6, libc::IPV6_RECVTCLASS, 0, ANY),
    Known(IPV6, libc::IPV6_TCLASS, 0, -1..=255),
    Known(IPV6, libc::IPV6_DONTFRAG, 0, ANY),
    Known(IPV6, libc::IPV6_FREEBIND, 0, ANY),
    Known(IPV6, 70, 1, ANY),
    Known(TCP, libc::TCP_NODELAY, 0, ANY),
    Known(TCP, libc::TCP_CORK, 0, ANY),
    Known(TCP, libc::TCP_MAXSEG, 65_483, 88..=32_767),
    Known(TCP, libc::TCP_KEEPIDLE, 7200, 1..=32_767),
    Known(TCP, libc::TCP_KEEPINTVL, 75, 1..=32_767),
    Known(TCP, libc::TCP_KEEPCNT, 9, 1..=127),
    Known(TCP, libc::TCP_SYNCNT, 6, 1..=127),
    Known(TCP, libc::TCP_LINGER2, 60, ANY),
    Known(TCP, libc::TCP_DEFER_ACCEPT, 0, ANY),
    Known(TCP, libc::TCP_WINDOW_CLAMP, 0, ANY),
    Known(TCP, libc::TCP_QUICKACK, 1, ANY),
    Known(TCP, libc::TCP_USER_TIMEOUT, 0, 0..=i32::MAX),
    Known(TCP, libc::TCP_FASTOPEN, 0, 0..=i32::MAX),
    Known(TCP, libc::TCP_FASTOPEN_CONNECT, 0, 0..=1),
    Known(TCP, libc::TCP_NOTSENT_LOWAT, -1, ANY),
    Known(TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 0, 0..=1),
    Known(TCP, libc::TCP_THIN_DUPACK, 0, 0..=1),
    Known(TCP, libc::TCP_SAVE_SYN, 0, 0..=1),
    Known(UDP, 1, 0, ANY),
    Known(UDP, 103, 0, 0..=65_535),
    Known(UDP, 104, 0, ANY),
];

/// What is a flag, told as 0 or 1.
const FLAGS: &[(i32, i32)] = &[
    (IP, libc::IP_HDRINCL),
    (IP, libc::IP_PKTINFO),
    (IP, libc::IP_RECVERR),
    (IP, libc::IP_RECVTTL),
    (IP, libc::IP_RECVTOS),
    (IP, libc::IP_MULTICAST_LOOP),
    (IPV6, libc::IPV6_V6ONLY),
    (IPV6, libc::IPV6_RECVPKTINFO),
    (TCP, libc::TCP_NODELAY),
    (TCP, libc::TCP_CORK),
    (TCP, libc::TCP_QUICKACK),
    (UDP, 1),
];

fn fits(common: &Common, level: i32) -> bool {
    match level {
        IP => true,
        IPV6 => common.domain == libc::AF_INET6,
        _ if common.kind == libc::SOCK_RAW => false,
        TCP => common.kind == libc::SOCK_STREAM,
        UDP => common.kind == libc::SOCK_DGRAM && common.protocol == libc::IPPROTO_UDP,
        _ => false,
    }
}

fn known(level: i32, name: i32) -> Option<&'static Known> {
    KNOWN.iter().find(|known| (known.0, known.1) == (level, name))
}

/// `setsockopt`.
///
/// # Errors
/// ENOPROTOOPT for what is not known; EINVAL out of range; EPERM.
pub(super) fn set(
    context: &Context,
    common: &Common,
    [level, name]: [i32; 2],
    value: &[u8],
) -> Result<(), Errno> {
    if !fits(common, level) {
        return Err(Errno::ENOPROTOOPT);
    }
    match (level, name) {
        (IP, libc::IP_HDRINCL) if common.kind != libc::SOCK_RAW => return Err(Errno::ENOPROTOOPT),
        (IP, libc::IP_TRANSPARENT) | (IPV6, libc::IPV6_TRANSPARENT) => {
            return if context.capable(CAP_NET_ADMIN) { Ok(()) } else { Err(Errno::EPERM) };
        }
        (IP, libc::IP_MULTICAST_IF) if value.len() >= 4 => return Ok(()),
        (TCP, libc::TCP_CONGESTION) => return congestion(value),
        (TCP, libc::TCP_ULP) => return Err(Errno::ENOENT),
        _ => {}
    }
    let Known(_, _, default, range) = known(level, name).ok_or(Errno::ENOPROTOOPT)?;
    let number = match value {
        [byte, ..] if value.len() < 4 && level == IP => i32::from(*byte),
        _ => number(value)?,
    };
    if !range.contains(&number) || (level, name) == (IP, libc::IP_TTL) && number == 0 {
        return Err(Errno::EINVAL);
    }
    let number = match (level, name) {
        pair if FLAGS.contains(&pair) => i32::from(number != 0),
        // The bits of congestion are TCP's own (`INET_ECN_MASK`).
        (IP, libc::IP_TOS) if common.kind == libc::SOCK_STREAM => number & 0xfc,
        (IP, libc::IP_TOS) => number & 0xff,
        _ if number == -1 && range.start() == &-1 => *default,
        _ => number,
    };
    lock(&common.options).store(level, name, number);
    Ok(())
}

fn congestion(value: &[u8]) -> Result<(), Errno> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    match value.get(..end).unwrap_or_default() {
        b"cubic" | b"reno" => Ok(()),
        b"" => Err(Errno::EINVAL),
        _ => Err(Errno::ENOENT),
    }
}

/// `getsockopt`.
///
/// # Errors
/// ENOPROTOOPT for what is not known; ENOTCONN.
pub(super) fn get(common: &Common, level: i32, name: i32, connected: bool) -> Result<Vec<u8>, Errno> {
    if !fits(common, level) {
        return Err(Errno::ENOPROTOOPT);
    }
    match (level, name) {
        (TCP, libc::TCP_CONGESTION) => return Ok(b"cubic\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
        (TCP, libc::TCP_ULP) => return Ok(Vec::new()),
        (IP, libc::IP_MTU) | (IPV6, libc::IPV6_MTU) => {
            return if connected { Ok(told(65_536)) } else { Err(Errno::ENOTCONN) };
        }
        (IP, libc::IP_MULTICAST_IF) => return Ok(vec![0; 4]),
        (IP, libc::IP_TRANSPARENT) | (IPV6, libc::IPV6_TRANSPARENT) => return Ok(told(0)),
        _ => {}
    }
    let known = known(level, name).ok_or(Errno::ENOPROTOOPT)?;
    Ok(told(lock(&common.options).stored(level, name).unwrap_or(known.2)))
}

/// Whether a flag is set.
pub(super) fn has(common: &Common, level: i32, name: i32) -> bool {
    number_of(common, level, name) != 0
}

/// The number that an option is.
pub(super) fn number_of(common: &Common, level: i32, name: i32) -> i32 {
    let default = known(level, name).map_or(0, |known| known.2);
    lock(&common.options).stored(level, name).unwrap_or(default)
}

/// What a connection to outside is told of the options of its socket.
pub(crate) fn settings(common: &Common) -> Settings {
    let flag = |name| has(common, TCP, name);
    let stored = |name| lock(&common.options).stored(TCP, name);
    let seconds = |name| Duration::from_secs(u64::from(number_of(common, TCP, name).max(0).unsigned_abs()));
    let alive = lock(&common.options).keep_alive;
    let patience = number_of(common, TCP, libc::TCP_USER_TIMEOUT).max(0).unsigned_abs();
    let [linger, probes, syns] =
        [libc::TCP_LINGER2, libc::TCP_KEEPCNT, libc::TCP_SYNCNT].map(|name| number_of(common, TCP, name));
    Settings {
        no_delay: flag(libc::TCP_NODELAY),
        cork: flag(libc::TCP_CORK),
        keep_alive: alive.then(|| {
            (seconds(libc::TCP_KEEPIDLE), seconds(libc::TCP_KEEPINTVL), probes.max(0).unsigned_abs())
        }),
        patience: (patience > 0).then(|| Duration::from_millis(patience.into())),
        syn_retries: syns.max(0).unsigned_abs(),
        most: stored(libc::TCP_MAXSEG).and_then(|most| usize::try_from(most).ok()),
        fixed: lock(&common.options).fixed,
        linger: Duration::from_secs(u64::from(linger.clamp(0, 60).unsigned_abs())),
    }
}

/// Hops and class that a socket wants in headers of what it sends to an address.
pub(crate) fn header_of(common: &Common, to: IpAddr) -> (Option<u8>, u8) {
    let [hops, group_hops, class] = if to.is_ipv4() {
        [(IP, libc::IP_TTL), (IP, libc::IP_MULTICAST_TTL), (IP, libc::IP_TOS)]
    } else {
        [(IPV6, libc::IPV6_UNICAST_HOPS), (IPV6, libc::IPV6_MULTICAST_HOPS), (IPV6, libc::IPV6_TCLASS)]
    };
    let (level, name) = if to.is_multicast() { group_hops } else { hops };
    let hops = u8::try_from(number_of(common, level, name)).ok();
    (hops, u8::try_from(number_of(common, class.0, class.1)).unwrap_or(0))
}

/// Whether packets of a socket to an address must stay whole; `None`: as is best (`ip_sk_use_pmtu` and its like).
pub(super) fn stays_whole(common: &Common, to: IpAddr) -> Option<bool> {
    let discovers = if to.is_ipv4() {
        number_of(common, IP, libc::IP_MTU_DISCOVER)
    } else if has(common, IPV6, libc::IPV6_DONTFRAG) {
        libc::IP_PMTUDISC_DO
    } else {
        number_of(common, IPV6, libc::IPV6_MTU_DISCOVER)
    };
    match discovers {
        libc::IP_PMTUDISC_DONT | libc::IP_PMTUDISC_OMIT => Some(false),
        libc::IP_PMTUDISC_WANT => None,
        _ => Some(true),
    }
}

/// `struct tcp_info` of a connection to outside.
pub(super) fn tcp_info_outside(state: u8, measures: &Measures, mtu: usize) -> Vec<u8> {
    let mut info = tcp_info(state, 0);
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    // TCPI_OPT_TIMESTAMPS, TCPI_OPT_SACK, TCPI_OPT_WSCALE; then both scales.
    let [theirs, ours] = measures.scales;
    let flags = u8::from(measures.stamps) | u8::from(measures.sack) << 1 | u8::from(ours > 0) << 2;
    for (at, byte) in [(5, flags), (6, theirs & 0xf | ours << 4)] {
        if let Some(place) = info.get_mut(at) {
            *place = byte;
        }
    }
    for (at, value) in [
        (8, micros(measures.timeout)),
        (16, number(measures.mss)),
        (20, number(measures.mss)),
        // tcpi_unacked, in segments.
        (24, number(measures.outstanding.div_ceil(measures.mss.max(1)))),
        (60, number(mtu)),
        (68, micros(measures.round)),
        (72, micros(measures.deviation)),
        (76, measures.threshold),
        (80, measures.window),
        (84, number(measures.mss)),
        (100, measures.repeated),
    ] {
        if let Some(place) = info.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) {
            *place = value.to_ne_bytes();
        }
    }
    info
}

/// `struct tcp_info` as far as it means something here (`include/uapi/linux/tcp.h`): state, options, maximal segment, window.
pub(super) fn tcp_info(state: u8, room: usize) -> Vec<u8> {
    let mut info = vec![0; 232];
    let mut put = |at: usize, value: u32| {
        if let Some(place) = info.get_mut(at..at.saturating_add(4)) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    };
    let (mss, rtt) = (65_483, 20);
    // tcpi_rto, tcpi_ato, tcpi_snd_mss, tcpi_rcv_mss.
    put(8, 201_000);
    put(12, 40_000);
    put(16, mss);
    put(20, 536);
    // tcpi_pmtu, tcpi_rcv_ssthresh, tcpi_rtt, tcpi_rttvar, tcpi_snd_ssthresh, tcpi_snd_cwnd, tcpi_advmss, tcpi_reordering.
    put(60, 65_535);
    put(64, 65_483);
    put(68, rtt);
    put(72, rtt / 2);
    put(76, i32::MAX.unsigned_abs());
    put(80, 10);
    put(84, mss);
    put(88, 3);
    put(96, u32::try_from(room).unwrap_or(u32::MAX));
    if let Some(first) = info.first_mut() {
        *first = state;
    }
    info
}
