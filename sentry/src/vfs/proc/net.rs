//! `net`: what there is of it in a sandbox: its loopback and the interfaces that are attached (`net/**/proc.c`; `man 5 proc_pid_net`).

use std::sync::Arc;

use super::SystemText;
use crate::kernel::Kernel;
use crate::net::{Net, proc};
use crate::task::current;

const UDP: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops             \n";
const UDP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n";
const PTYPE: &str =
    "Type Device      Function\n0800          ip_rcv\n0806          arp_rcv\n86dd          ipv6_rcv\n";
const WIRELESS: &str = "Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE\n face | tus | link level \
    noise |  nwid  crypt   frag  retry   misc | beacon | 22\n";
const PROTOCOLS: &str = "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re sp bi \
    br ha uh gp em\nUNIX-STREAM 1088      0      -1   NI       0   yes  kernel      y  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  \
    y  n  n\nUNIX      1088      0      -1   NI       0   yes  kernel      y  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n\n\
    UDP       1216      0       0   NI       0   yes  kernel      y  y  y  n  y  y  y  n  y  y  y  y  y  n  n  y  y  y  n\n\
    TCP       2304      0       0   no     320   yes  kernel      y  y  y  y  y  y  y  y  y  y  y  y  y  n  y  y  y  y  y\n";
const SNMP: &str = "Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos InDiscards \
    InDelivers OutRequests OutDiscards OutNoRoutes ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs FragFails FragCreates \
    OutTransmits\nIp: 2 64 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n\
    Icmp: InMsgs InErrors InCsumErrors InDestUnreachs InTimeExcds InParmProbs InSrcQuenchs InRedirects InEchos InEchoReps \
    InTimestamps InTimestampReps InAddrMasks InAddrMaskReps OutMsgs OutErrors OutRateLimitGlobal OutRateLimitHost \
    OutDestUnreachs OutTimeExcds OutParmProbs OutSrcQuenchs OutRedirects OutEchos OutEchoReps OutTimestamps OutTimestampReps \
    OutAddrMasks OutAddrMaskReps\nIcmp: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\nIcmpMsg:\nIcmpMsg:\n\
    Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs \
    RetransSegs InErrs OutRsts InCsumErrors\nTcp: 1 200 120000 -1 0 0 0 0 0 0 0 0 0 0 0\n\
    Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors\n\
    Udp: 0 0 0 0 0 0 0 0 0\n\
    UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors\n\
    UdpLite: 0 0 0 0 0 0 0 0 0\n";
const NETSTAT: &str = "TcpExt: SyncookiesSent SyncookiesRecv SyncookiesFailed ListenOverflows ListenDrops TCPTimeouts\n\
    TcpExt: 0 0 0 0 0 0\n\
    IpExt: InNoRoutes InTruncatedPkts InMcastPkts OutMcastPkts InBcastPkts OutBcastPkts InOctets OutOctets\n\
    IpExt: 0 0 0 0 0 0 0 0\n";
const SNMP6: [&str; 14] = [
    "Ip6InReceives",
    "Ip6InHdrErrors",
    "Ip6InDiscards",
    "Ip6InDelivers",
    "Ip6OutRequests",
    "Ip6OutDiscards",
    "Ip6InOctets",
    "Ip6OutOctets",
    "Icmp6InMsgs",
    "Icmp6OutMsgs",
    "Udp6InDatagrams",
    "Udp6NoPorts",
    "Udp6InErrors",
    "Udp6OutDatagrams",
];
const SOCKSTAT6: &str =
    "TCP6: inuse 0\nUDP6: inuse 0\nUDPLITE6: inuse 0\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n";
const IGMP: &str = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 \
    0:00000000\t\t0\n";
const IGMP6: &str = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
const FIB_TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     +-- 127.0.0.0/8 2 0 2\n        +-- 127.0.0.0/31 1 0 0\n           |-- \
    127.0.0.0\n              /8 host LOCAL\n           |-- 127.0.0.1\n              /32 host LOCAL\n        |-- 127.255.255.255\n           \
    /32 link BROADCAST\n";

/// The network that whoever asks is in.
fn net(kernel: &Kernel) -> Arc<Net> {
    let task = current();
    Arc::clone(
        task.map_or_else(|| Arc::clone(kernel.tasks.first_namespaces()), |task| task.namespaces()).net.net(),
    )
}

/// Path, mode, text.
pub(super) static FILES: &[(&str, u32, SystemText)] = &[
    ("net/anycast6", 0o444, |_| Vec::new()),
    ("net/arp", 0o444, |kernel| proc::arp(&net(kernel))),
    ("net/dev", 0o444, |kernel| proc::dev(&net(kernel))),
    ("net/dev_mcast", 0o444, |_| Vec::new()),
    ("net/fib_trie", 0o444, |_| FIB_TRIE.into()),
    ("net/icmp", 0o444, |_| UDP.into()),
    ("net/icmp6", 0o444, |_| UDP6.into()),
    ("net/if_inet6", 0o444, |kernel| proc::if_inet6(&net(kernel))),
    ("net/igmp", 0o444, |_| IGMP.into()),
    ("net/igmp6", 0o444, |_| IGMP6.into()),
    ("net/ipv6_route", 0o444, |kernel| proc::ipv6_route(&net(kernel))),
    ("net/mcfilter", 0o444, |_| Vec::new()),
    ("net/netlink", 0o444, |kernel| proc::netlink(&net(kernel))),
    ("net/netstat", 0o444, |_| NETSTAT.into()),
    ("net/packet", 0o444, |kernel| proc::packet(&net(kernel))),
    ("net/protocols", 0o444, |_| PROTOCOLS.into()),
    ("net/psched", 0o444, |_| b"000003e8 00000040 000f4240 3b9aca00\n".to_vec()),
    ("net/ptype", 0o444, |_| PTYPE.into()),
    ("net/raw", 0o444, |kernel| proc::raw(&net(kernel))),
    ("net/raw6", 0o444, |_| UDP6.into()),
    ("net/route", 0o444, |kernel| proc::route(&net(kernel))),
    ("net/rt_cache", 0o444, |_| Vec::new()),
    ("net/snmp", 0o444, |_| SNMP.into()),
    ("net/snmp6", 0o444, |_| SNMP6.map(|key| format!("{key:<32}\t0\n")).concat().into_bytes()),
    ("net/sockstat", 0o444, |kernel| proc::sockstat(&net(kernel))),
    ("net/sockstat6", 0o444, |_| SOCKSTAT6.into()),
    ("net/softnet_stat", 0o444, |_| softnet()),
    ("net/tcp", 0o444, |kernel| proc::tcp(&net(kernel))),
    ("net/tcp6", 0o444, |kernel| proc::tcp6(&net(kernel))),
    ("net/udp", 0o444, |kernel| proc::udp(&net(kernel))),
    ("net/udp6", 0o444, |kernel| proc::udp6(&net(kernel))),
    ("net/udplite", 0o444, |_| UDP.into()),
    ("net/udplite6", 0o444, |_| UDP6.into()),
    ("net/unix", 0o444, |kernel| proc::unix(&net(kernel))),
    ("net/wireless", 0o444, |_| WIRELESS.into()),
];

/// Fifteen numbers for each CPU, of which the 13th is its own.
fn softnet() -> Vec<u8> {
    let one = |cpu: &usize| {
        let zeros = |count| "00000000 ".repeat(count);
        format!("{}{cpu:08x} {}\n", zeros(12), zeros(2).trim_end())
    };
    super::super::generated::cpus().iter().map(one).collect::<String>().into_bytes()
}
