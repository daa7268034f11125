//! Joins a VM to the pod's network namespace.
//!
//! The namespace has [`NETWORK_SLOTS`] tap interfaces before the VMM starts. An interface that is there (or appears
//! later: Docker, nerdctl and ctr add it after create) is tied to a free tap by two `tc` redirects, and the guest is told its
//! addresses and routes. A sandbox without a namespace of its own gets an empty one, so that every VM has the same devices.
//!
//! `ip` and `tc` (iproute2) do the work, inside the namespace: they are on every node, and their JSON is stable. None of
//! them may take longer than [`LIMIT`]: a kernel that is stuck on a lock must not hold a pod's start or end for ever.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kata_cc_agent_protocol::types::{IPAddress, IPFamily, Interface, Route};
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::vm_shape::{NETWORK_SLOTS, Tap};

const TAP_PREFIX: &str = "kcc-tap";
/// How long one command may take; they need some 10 ms.
const LIMIT: Duration = Duration::from_secs(15);

/// What went wrong with the network.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A program is missing.
    #[error("{program} cannot be started ({source}): install iproute2")]
    Missing {
        /// The program.
        program: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A command failed.
    #[error("{command} failed: {message}")]
    Failed {
        /// What was run.
        command: String,
        /// What it printed.
        message: String,
    },
    /// A command did not end.
    #[error("{command} did not end within {limit:?} and was killed")]
    Slow {
        /// What was run.
        command: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Its output was not understood.
    #[error("{command} printed what was not expected: {source}")]
    Output {
        /// What was run.
        command: &'static str,
        /// Where.
        source: serde_json::Error,
    },
}

/// The network of one sandbox.
#[derive(Debug)]
pub struct Network {
    netns: PathBuf,
    own: Option<String>,
    taps: Vec<Tap>,
    /// Interface name → its slot.
    tied: BTreeMap<String, usize>,
}

/// What the guest is to be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuestNetwork {
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Routes.
    pub routes: Vec<Route>,
}

#[derive(Debug, Deserialize)]
struct Link {
    ifname: String,
    #[serde(default)]
    link_type: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    mtu: u64,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    family: String,
    local: String,
    prefixlen: u8,
    #[serde(default)]
    scope: String,
}

#[derive(Debug, Deserialize)]
struct RouteLine {
    dst: String,
    #[serde(default)]
    gateway: Option<String>,
    dev: String,
    #[serde(default)]
    prefsrc: Option<String>,
    #[serde(default)]
    scope: Option<String>,
}

impl Network {
    /// Where a sandbox has its taps: the pod's namespace, or one of its own, whose name is given as well.
    #[must_use]
    pub fn place(netns: Option<&Path>, id: &str) -> (PathBuf, Option<String>) {
        match netns {
            Some(path) => (path.to_owned(), None),
            None => {
                let name = own_namespace(id);
                (Path::new("/run/netns").join(&name), Some(name))
            }
        }
    }

    /// Prepare the taps in `netns`, or in a new, empty namespace named after the sandbox.
    ///
    /// # Errors
    /// When a command fails; what was made is removed again.
    pub async fn prepare(netns: Option<&Path>, id: &str) -> Result<Self, NetworkError> {
        let (path, own) = Self::place(netns, id);
        if let Some(name) = &own {
            run(None, &["ip", "netns", "add", name]).await?;
        }
        let mut network = Self { netns: path, own, taps: Vec::new(), tied: BTreeMap::new() };
        match network.make_taps().await {
            Ok(()) => Ok(network),
            Err(error) => {
                network.remove().await;
                Err(error)
            }
        }
    }

    async fn make_taps(&mut self) -> Result<(), NetworkError> {
        let links = self.links().await?;
        for slot in 0..NETWORK_SLOTS {
            let name = format!("{TAP_PREFIX}{slot}");
            let netns = Some(self.netns.as_path());
            run(netns, &["ip", "tuntap", "add", "dev", &name, "mode", "tap"]).await?;
            // The first interfaces of the pod lend the guest their MAC from the start; a spare takes it on later.
            let mac = links.get(slot).map_or_else(|| spare_mac(slot), |link| link.address.clone());
            self.taps.push(Tap { name: name.clone(), mac });
            run(netns, &["ip", "link", "set", "dev", &name, "up"]).await?;
        }
        Ok(())
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The taps for the VMM.
    #[must_use]
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        pod_links(&self.netns).await
    }

    /// Tie interfaces that are new, and tell what the guest is to be told now.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn scan(&mut self) -> Result<GuestNetwork, NetworkError> {
        let links = self.links().await?;
        for link in &links {
            if !self.tied.contains_key(&link.ifname)
                && let Some(slot) =
                    (0..self.taps.len()).find(|slot| !self.tied.values().any(|used| used == slot))
            {
                // Noted first: whatever becomes of this call, `remove` then knows of it.
                self.tied.insert(link.ifname.clone(), slot);
                if let Err(error) = self.tie(link, slot).await {
                    self.tied.remove(&link.ifname);
                    return Err(error);
                }
            }
        }
        let tied = |name: &str| self.tied.get(name).copied();
        let interfaces =
            links.iter().filter_map(|link| Some(guest_interface(link, tied(&link.ifname)?))).collect();
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            let text = run(Some(&self.netns), &["ip", "-j", family, "route", "show"]).await?;
            let lines: Vec<RouteLine> =
                if text.trim().is_empty() { Vec::new() } else { parse("ip -j route", &text)? };
            let of_guest = lines.into_iter().filter(|line| tied(&line.dev).is_some());
            routes.extend(of_guest.filter_map(|line| guest_route(line, family == "-6")));
        }
        Ok(GuestNetwork { interfaces, routes })
    }

    async fn tie(&self, link: &Link, slot: usize) -> Result<(), NetworkError> {
        let tap = &self.taps[slot].name;
        let netns = Some(self.netns.as_path());
        if link.mtu > 0 {
            run(netns, &["ip", "link", "set", "dev", tap, "mtu", &link.mtu.to_string()]).await?;
        }
        let interface = link.ifname.as_str();
        // An ingress qdisc that is there already is somebody else's: this fails, and it stays.
        run(netns, &["tc", "qdisc", "add", "dev", interface, "ingress"]).await?;
        let both_ways = async {
            redirect(netns, interface, tap).await?;
            run(netns, &["tc", "qdisc", "add", "dev", tap, "ingress"]).await?;
            redirect(netns, tap, interface).await
        };
        let tied = both_ways.await;
        if tied.is_err() {
            // From here on both are ours: a second try must not find them.
            remove_redirect(&self.netns, interface).await;
            remove_redirect(&self.netns, tap).await;
        }
        tied
    }

    /// A process that prints a line whenever something changes in the namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn watch(&self) -> Result<Changes, NetworkError> {
        let mut command = command(Some(&self.netns), &["ip", "monitor", "link", "address", "route"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| NetworkError::Missing { program: "ip", source })?;
        let lines = child.stdout.take().map(|out| BufReader::new(out).lines());
        Ok(Changes { _child: child, lines })
    }

    /// Remove taps and redirects; the pod's own interfaces stay as they were.
    pub async fn remove(&mut self) {
        if let Some(name) = self.own.take() {
            // The taps go with it.
            let _ = run(None, &["ip", "netns", "delete", &name]).await;
            self.taps.clear();
            return;
        }
        for name in self.tied.keys() {
            remove_redirect(&self.netns, name).await;
        }
        self.tied.clear();
        for tap in self.taps.drain(..) {
            let _ = run(Some(&self.netns), &["ip", "link", "delete", "dev", &tap.name]).await;
        }
    }
}

/// Wakes when something changes in the namespace.
#[derive(Debug)]
pub struct Changes {
    _child: Child,
    lines: Option<tokio::io::Lines<BufReader<tokio::process::ChildStdout>>>,
}

impl Changes {
    /// Waits for the next change; `false` at once when the watch has ended.
    pub async fn next(&mut self) -> bool {
        if let Some(lines) = &mut self.lines
            && let Ok(Some(_)) = lines.next_line().await
        {
            return true;
        }
        self.lines = None;
        false
    }
}

/// Remove what a sandbox that died left in the network; for the shim's `delete`.
pub(crate) async fn remove_leftovers(own: Option<&str>, netns: &Path) {
    if let Some(name) = own {
        // The taps go with it.
        let _ = run(None, &["ip", "netns", "delete", name]).await;
        return;
    }
    if !netns.exists() {
        return;
    }
    // Which interfaces were tied died with the shim; the redirects themselves say it, as long as the taps exist.
    for link in pod_links(netns).await.unwrap_or_default() {
        remove_redirect(netns, &link.ifname).await;
    }
    for slot in 0..NETWORK_SLOTS {
        let tap = format!("{TAP_PREFIX}{slot}");
        let _ = run(Some(netns), &["ip", "link", "delete", "dev", &tap]).await;
    }
}

/// Ethernet interfaces that are neither loopback nor our taps.
async fn pod_links(netns: &Path) -> Result<Vec<Link>, NetworkError> {
    let text = run(Some(netns), &["ip", "-j", "address", "show"]).await?;
    let links: Vec<Link> = parse("ip -j address", &text)?;
    let is_pods = |link: &Link| link.link_type == "ether" && !link.ifname.starts_with(TAP_PREFIX);
    Ok(links.into_iter().filter(is_pods).collect())
}

/// Pass all that comes in at `from` on to `to`. `matchall` is the cheaper classifier; kernels without it have `u32`.
async fn redirect(netns: Option<&Path>, from: &str, to: &str) -> Result<(), NetworkError> {
    let filter = ["tc", "filter", "add", "dev", from, "parent", "ffff:", "protocol", "all"];
    let action = ["action", "mirred", "egress", "redirect", "dev", to];
    if run(netns, &[&filter[..], &["matchall"], &action[..]].concat()).await.is_ok() {
        return Ok(());
    }
    run(netns, &[&filter[..], &["u32", "match", "u32", "0", "0"], &action[..]].concat()).await.map(drop)
}

/// Remove the ingress qdisc of an interface if it is ours: its filters lead to or from a tap of ours, or it has none (we
/// were broken off between the two steps; without filters it does nothing for anybody).
async fn remove_redirect(netns: &Path, interface: &str) {
    let show = ["tc", "filter", "show", "dev", interface, "parent", "ffff:"];
    let ours = interface.starts_with(TAP_PREFIX)
        || run(Some(netns), &show)
            .await
            .is_ok_and(|text| text.trim().is_empty() || text.contains(TAP_PREFIX));
    if ours {
        // Fails where there is none.
        let _ = run(Some(netns), &["tc", "qdisc", "delete", "dev", interface, "ingress"]).await;
    }
}

/// A namespace's name for a sandbox id: short, since interface tools limit names.
fn own_namespace(id: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, id.as_bytes());
    format!("kata-cc-{}", hex::encode(&digest.as_ref()[..8]))
}

/// MAC of a tap that no interface lends one: locally administered.
fn spare_mac(slot: usize) -> String {
    format!("02:6b:63:63:00:{slot:02x}")
}

fn guest_interface(link: &Link, slot: usize) -> Interface {
    let addresses =
        link.addr_info.iter().filter(|address| address.scope != "link").map(|address| IPAddress {
            family: if address.family == "inet6" { IPFamily::v6.into() } else { IPFamily::v4.into() },
            address: address.local.clone(),
            mask: address.prefixlen.to_string(),
            ..Default::default()
        });
    Interface {
        // the guest's own name of the device, by which it is found when its MAC is still the spare one
        device: format!("eth{slot}"),
        name: link.ifname.clone(),
        IPAddresses: addresses.collect(),
        mtu: link.mtu,
        hwAddr: link.address.clone(),
        ..Default::default()
    }
}

fn guest_route(line: RouteLine, v6: bool) -> Option<Route> {
    // The kernel makes link-local and on-link IPv6 routes itself.
    if v6 && (line.dst.starts_with("fe80") || line.dst.starts_with("ff00") || line.gateway.is_none()) {
        return None;
    }
    Some(Route {
        dest: if line.dst == "default" { String::new() } else { line.dst },
        gateway: line.gateway.unwrap_or_default(),
        device: line.dev,
        source: line.prefsrc.unwrap_or_default(),
        scope: match line.scope.as_deref() {
            Some("link") => 253,
            Some("host") => 254,
            _ => 0,
        },
        family: if v6 { IPFamily::v6.into() } else { IPFamily::v4.into() },
        ..Default::default()
    })
}

fn parse<T: serde::de::DeserializeOwned>(command: &'static str, text: &str) -> Result<T, NetworkError> {
    serde_json::from_str(text).map_err(|source| NetworkError::Output { command, source })
}

fn command(netns: Option<&Path>, arguments: &[&str]) -> Command {
    let mut command = match netns {
        Some(netns) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", netns.display())).args(arguments);
            command
        }
        None => {
            let mut command = Command::new(arguments[0]);
            command.args(&arguments[1..]);
            command
        }
    };
    command.stdin(Stdio::null());
    command
}

async fn run(netns: Option<&Path>, arguments: &[&str]) -> Result<String, NetworkError> {
    run_within(LIMIT, netns, arguments).await
}

async fn run_within(
    limit: Duration,
    netns: Option<&Path>,
    arguments: &[&str],
) -> Result<String, NetworkError> {
    // Dropped at the limit, which kills it.
    let output = command(netns, arguments).kill_on_drop(true).output();
    let output = match tokio::time::timeout(limit, output).await {
        Ok(output) => output.map_err(|source| NetworkError::Missing { program: "ip or nsenter", source })?,
        Err(_) => return Err(NetworkError::Slow { command: arguments.join(" "), limit }),
    };
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(NetworkError::Failed { command: arguments.join(" "), message });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: &str = r#"[{"ifindex":2,"ifname":"eth0","link_type":"ether","address":"aa:bb:cc:00:00:01","mtu":1450,
        "addr_info":[{"family":"inet","local":"10.0.0.5","prefixlen":24,"scope":"global"},
                     {"family":"inet6","local":"fe80::1","prefixlen":64,"scope":"link"}]}]"#;

    #[test]
    fn an_interface_reaches_the_guest_with_mac_addresses_and_mtu() {
        let links: Vec<Link> = parse("test", ADDRESSES).unwrap();
        let interface = guest_interface(&links[0], 1);
        assert_eq!(
            (interface.device.as_str(), interface.name.as_str(), interface.mtu),
            ("eth1", "eth0", 1450)
        );
        assert_eq!(interface.hwAddr, "aa:bb:cc:00:00:01");
        assert_eq!(interface.IPAddresses.len(), 1, "the guest makes its own link-local address");
        assert_eq!(
            (interface.IPAddresses[0].address.as_str(), interface.IPAddresses[0].mask.as_str()),
            ("10.0.0.5", "24")
        );
    }

    #[test]
    fn routes_reach_the_guest() {
        let text = r#"[{"dst":"default","gateway":"10.0.0.1","dev":"eth0"},{"dst":"10.0.0.0/24","dev":"eth0","scope":"link","prefsrc":"10.0.0.5"}]"#;
        let lines: Vec<RouteLine> = parse("test", text).unwrap();
        let routes: Vec<Route> = lines.into_iter().filter_map(|line| guest_route(line, false)).collect();
        assert_eq!((routes[0].dest.as_str(), routes[0].gateway.as_str()), ("", "10.0.0.1"));
        assert_eq!((routes[1].scope, routes[1].source.as_str()), (253, "10.0.0.5"));
    }

    #[test]
    fn names_of_namespaces_are_short_and_distinct() {
        assert_eq!(own_namespace("a").len(), 24);
        assert_ne!(own_namespace("a"), own_namespace("b"));
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_is_killed_and_named() {
        let unique = format!("{}.0871", 3600 + std::process::id());
        let begun = std::time::Instant::now();
        let error = run_within(Duration::from_millis(200), None, &["sleep", &unique]).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(error.to_string(), format!("sleep {unique} did not end within 200ms and was killed"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let alive = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&unique))
        });
        assert!(!alive, "it still runs");
    }
}
