//! The interfaces of a pod: taken over as they are found in its network namespace, followed, and given back.
//!
//! **Whole or not at all.** Each interface is taken over by itself: where a step is refused, or the sandbox does not want what comes of it
//! ([`Pod::undo`]), that interface is as it was before, and the others are not concerned. What was undone is left alone until it changes or is asked
//! for again: putting it back is news, too.

use super::before::Mark;
use super::look::{self, Link, Seen};
use super::netlink::Netlink;
use super::users::{self, Users};
use super::{Before, LinkError, Opened, packet, refused};
use crate::net::stack::{LinkConfig, Prefix};

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

/// What a look found.
#[derive(Debug, Default)]
pub struct Found {
    /// What is new, in its order.
    pub changes: Vec<Change>,
    /// Why interfaces are not taken over, or not followed.
    pub failed: Vec<LinkError>,
}

/// An interface that was taken over.
#[derive(Debug)]
struct Held {
    index: u32,
    config: LinkConfig,
    before: Before,
    /// What it was like when it was looked at last.
    like: Like,
    /// Before the latest change; none where that is that it was taken over.
    earlier: Option<(LinkConfig, Mark)>,
}

/// What an interface is like for the host's side, as far as somebody gave it that.
#[derive(Debug, Clone)]
struct Like {
    index: u32,
    mtu: u32,
    given: Vec<Prefix>,
}

impl Like {
    fn new(link: &Link, seen: &Seen) -> Self {
        Self { index: link.index, mtu: link.mtu, given: seen.given().copied().collect() }
    }
}

impl PartialEq for Like {
    fn eq(&self, other: &Self) -> bool {
        let within = |one: &Self, other: &Self| one.given.iter().all(|prefix| other.given.contains(prefix));
        (self.index, self.mtu) == (other.index, other.mtu) && within(self, other) && within(other, self)
    }
}

/// What was taken over of the network namespace of the calling thread.
#[derive(Debug, Default)]
pub struct Pod {
    held: Vec<Held>,
    /// What was undone, as it was then.
    undone: Vec<Like>,
    /// Whether the namespace is taken from processes outside the sandbox, too.
    seize: bool,
}

fn asked(errno: crate::error::Errno) -> LinkError {
    refused("of the pod", "asking by netlink")(errno)
}

impl Pod {
    /// From now on interfaces are taken from processes outside the sandbox, too.
    pub fn seize(&mut self) {
        self.seize = true;
    }

    /// Looks what there is. Every Ethernet interface that is up and has an address is taken over, and so is what those that were taken over have
    /// got since. Unless the network is known to be `complete`, one whose addresses are still being tried is left for a later look:
    /// whoever gives them has not ended.
    ///
    /// # Errors
    /// The host does not say what there is. Whatever concerns one interface is among what was found.
    pub fn look(&mut self, complete: bool) -> Result<Found, LinkError> {
        let mut netlink = Netlink::open().map_err(asked)?;
        let links = look::links(&mut netlink).map_err(asked)?;
        let mut found = Found::default();
        if complete {
            self.undone.clear();
        }
        self.undone.retain(|like| links.iter().any(|link| link.index == like.index));
        self.held.retain(|held| {
            let there = links.iter().any(|link| link.index == held.index);
            if !there {
                found.changes.push(Change::Gone(held.config.name.clone()));
            }
            there
        });
        let mut users = None;
        for link in links.iter().filter(|link| link.ethernet && link.up) {
            match self.look_at(&mut netlink, link, complete, &mut users) {
                Ok(change) => found.changes.extend(change),
                Err(error) => found.failed.push(error),
            }
        }
        Ok(found)
    }

    fn look_at(
        &mut self,
        netlink: &mut Netlink,
        link: &Link,
        complete: bool,
        users: &mut Option<Users>,
    ) -> Result<Option<Change>, LinkError> {
        let seen = look::seen(netlink, link.index).map_err(asked)?;
        let like = Like::new(link, &seen);
        self.undone.retain(|other| other.index != like.index || *other == like);
        if self.undone.contains(&like) {
            return Ok(None);
        }
        let ready = seen.is_given() && (complete || !seen.tentative);
        if let Some(held) = self.held.iter_mut().find(|held| held.index == link.index) {
            return if ready || held.config.mtu != link.mtu {
                held.follow(netlink, link, seen, like.clone()).inspect_err(|_| self.undone.push(like))
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
        self.may_take(link, users)?;
        let (opened, before) = packet::take(netlink, link).inspect_err(|_| self.undone.push(like.clone()))?;
        let config = opened.config.clone();
        self.held.push(Held { index: link.index, config, before, like, earlier: None });
        Ok(Some(Change::Taken(opened)))
    }

    /// Whether an interface may be taken over: nobody else uses the namespace, or that was allowed. It is looked once for all interfaces.
    fn may_take(&self, link: &Link, users: &mut Option<Users>) -> Result<(), LinkError> {
        if self.seize {
            return Ok(());
        }
        let looked = || {
            let users = users::look();
            users.say_unknown();
            users
        };
        match &users.get_or_insert_with(looked).other {
            None => Ok(()),
            Some(other) => {
                let (interface, pid, name) = (link.name.clone(), other.pid, other.name.clone());
                Err(LinkError::Used { interface, pid, name })
            }
        }
    }

    /// Undoes the latest change of an interface: what it had got since is the host's again, or, where it had just been taken over, all of it.
    pub fn undo(&mut self, name: &str) {
        let Some(at) = self.held.iter().position(|held| held.config.name == name) else { return };
        let Some(held) = self.held.get_mut(at) else { return };
        self.undone.push(held.like.clone());
        match held.earlier.take() {
            None => give_back(&[self.held.swap_remove(at)]),
            Some((config, mark)) => {
                held.config = config;
                match Netlink::open() {
                    Ok(mut netlink) => held.before.put_back_since(&mut netlink, mark),
                    Err(errno) => tracing::warn!(%errno, interface = name, "a change is not put back"),
                }
            }
        }
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
        like: Like,
    ) -> Result<Option<Change>, LinkError> {
        fn add<T: PartialEq>(to: &mut Vec<T>, from: Vec<look::Told<T>>) {
            for (one, _) in from {
                if !to.contains(&one) {
                    to.push(one);
                }
            }
        }
        let step = refused(&link.name, "taking an address off it");
        let earlier = (self.config.clone(), self.before.mark());
        self.before.strip(netlink, &seen).map_err(step)?;
        (self.earlier, self.like) = (Some(earlier), like);
        self.config.mtu = link.mtu;
        add(&mut self.config.addresses, seen.addresses);
        add(&mut self.config.routes, seen.routes);
        add(&mut self.config.neighbours, seen.neighbours);
        Ok(Some(Change::Changed(self.config.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn like(mtu: u32, given: &[u8]) -> Like {
        let prefix = |last: &u8| Prefix { ip: [10, 0, 0, *last].into(), length: 24 };
        Like { index: 2, mtu, given: given.iter().map(prefix).collect() }
    }

    /// The host tells addresses in another order once they were put back.
    #[test]
    fn what_was_put_back_is_known_again() {
        assert_eq!(like(1500, &[1, 2]), like(1500, &[2, 1]));
        assert_ne!(like(1500, &[1, 2]), like(1500, &[1]));
        assert_ne!(like(1500, &[1]), like(1500, &[1, 2]));
        assert_ne!(like(1500, &[1]), like(1400, &[1]));
    }
}
