//! The interfaces of a pod: taken over as they are found in its network namespace, followed, and given back.

use super::look::{self, Link, Seen};
use super::netlink::Netlink;
use super::{Before, LinkError, Opened, packet, refused};
use crate::net::stack::LinkConfig;

/// Something that a look found.
#[derive(Debug)]
pub enum Change {
    /// An interface was taken over.
    Taken(Opened),
    /// One that was has got further addresses or routes, or another MTU.
    Changed(LinkConfig),
    /// One that was is there no more.
    Gone(String),
}

/// An interface that was taken over.
#[derive(Debug)]
struct Held {
    index: u32,
    config: LinkConfig,
    before: Before,
}

/// What was taken over of the network namespace of the calling thread.
#[derive(Debug, Default)]
pub struct Pod {
    held: Vec<Held>,
}

fn asked(errno: crate::error::Errno) -> LinkError {
    refused("of the pod", "asking by netlink")(errno)
}

impl Pod {
    /// Looks what there is. Every Ethernet interface that is up and has an address is taken over, and so is what those that were taken over have
    /// got since. Unless the network is known to be `complete`, one whose addresses are still being tried is left for a later look:
    /// whoever gives them has not ended.
    ///
    /// # Errors
    /// See [`LinkError`]. What was taken over before the error is given back.
    pub fn look(&mut self, complete: bool) -> Result<Vec<Change>, LinkError> {
        let mut netlink = Netlink::open().map_err(asked)?;
        let links = look::links(&mut netlink).map_err(asked)?;
        let mut changes = Vec::new();
        self.held.retain(|held| {
            let there = links.iter().any(|link| link.index == held.index);
            if !there {
                changes.push(Change::Gone(held.config.name.clone()));
            }
            there
        });
        for link in links.iter().filter(|link| link.ethernet && link.up) {
            match self.look_at(&mut netlink, link, complete) {
                Ok(change) => changes.extend(change),
                Err(error) => {
                    for change in changes {
                        if let Change::Taken(Opened { config, .. }) = change {
                            self.give_back(&config.name);
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(changes)
    }

    fn look_at(
        &mut self,
        netlink: &mut Netlink,
        link: &Link,
        complete: bool,
    ) -> Result<Option<Change>, LinkError> {
        let seen = look::seen(netlink, link.index).map_err(asked)?;
        let ready = seen.is_given() && (complete || !seen.tentative);
        if let Some(held) = self.held.iter_mut().find(|held| held.index == link.index) {
            return if ready || held.config.mtu != link.mtu {
                held.follow(netlink, link, seen)
            } else {
                Ok(None)
            };
        }
        if !ready {
            if complete && !seen.is_given() {
                tracing::warn!(
                    interface = link.name,
                    "the interface has no address and stays the host's: has another sandbox taken it over?"
                );
            }
            return Ok(None);
        }
        let (opened, before) = packet::take(netlink, link)?;
        self.held.push(Held { index: link.index, config: opened.config.clone(), before });
        Ok(Some(Change::Taken(opened)))
    }

    /// Gives an interface back to the host's kernel, as it was.
    pub fn give_back(&mut self, name: &str) {
        if let Some(at) = self.held.iter().position(|held| held.config.name == name) {
            give_back(&[self.held.swap_remove(at)]);
        }
    }

    /// Gives all of them back.
    pub fn give_all_back(&mut self) {
        give_back(&std::mem::take(&mut self.held));
    }
}

fn give_back(held: &[Held]) {
    if held.is_empty() {
        return;
    }
    match Netlink::open() {
        Ok(mut netlink) => held.iter().for_each(|held| held.before.put_back(&mut netlink)),
        Err(errno) => tracing::warn!(%errno, "the interfaces of the pod are not given back"),
    }
}

impl Held {
    /// Takes over what it has got since.
    fn follow(
        &mut self,
        netlink: &mut Netlink,
        link: &Link,
        seen: Seen,
    ) -> Result<Option<Change>, LinkError> {
        fn add<T: PartialEq>(to: &mut Vec<T>, from: Vec<look::Told<T>>) {
            for (one, _) in from {
                if !to.contains(&one) {
                    to.push(one);
                }
            }
        }
        let step = refused(&link.name, "taking an address off it");
        self.before.strip(netlink, &seen).map_err(step)?;
        self.config.mtu = link.mtu;
        add(&mut self.config.addresses, seen.addresses);
        add(&mut self.config.routes, seen.routes);
        add(&mut self.config.neighbours, seen.neighbours);
        Ok(Some(Change::Changed(self.config.clone())))
    }
}
