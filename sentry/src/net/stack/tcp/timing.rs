//! What a connection does by itself, at a time: repeats, probes, gives up (RFC 6298, 9293 3.8; bounds of `net/ipv4/tcp_timer.c`).

use std::time::{Duration, Instant};

use super::congestion::{LONGEST, Rounds};
use super::machine::{Machine, Output, Phase};
use crate::error::Errno;

/// How often an answer to a SYN, and anything else, is repeated (`net.ipv4.tcp_synack_retries`, `tcp_retries2`); for who closed
/// (`tcp_orphan_retries`).
const ANSWERS: u32 = 5;
const REPEATS: u32 = 15;
const ORPHAN_REPEATS: u32 = 8;
/// How long less than a segment is held back for what was announced (`TCP_CORK`).
const CORK: Duration = Duration::from_millis(200);
/// What a probe of the tail waits for at least, and for an ACK that is delayed.
const PROBE: Duration = Duration::from_millis(10);
const PROBE_ALONE: Duration = Duration::from_millis(200);

/// Times of a connection.
pub(super) struct Timing {
    repeat: Option<Instant>,
    persist: Option<Instant>,
    probe: Option<Instant>,
    cork: Option<Instant>,
    end: Option<Instant>,
    heard: Instant,
    last_sent: Option<Instant>,
    /// Since when nothing was acknowledged.
    silent: Option<Instant>,
    tries: u32,
    /// Probes of a shut window since anything came.
    unanswered: u32,
    alive_probes: u32,
    /// A probe of the tail was sent.
    pub(super) probed: bool,
    /// Segments that were sent more than once.
    pub(super) repeated: u32,
}

fn after(now: Instant, time: Duration) -> Option<Instant> {
    now.checked_add(time)
}

impl Timing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            repeat: None,
            persist: None,
            probe: None,
            cork: None,
            end: None,
            heard: now,
            last_sent: None,
            silent: None,
            tries: 0,
            unanswered: 0,
            alive_probes: 0,
            probed: false,
            repeated: 0,
        }
    }

    /// Something came from the other side.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        (self.alive_probes, self.unanswered) = (0, 0);
    }

    /// The connection is there.
    pub(super) fn settled(&mut self) {
        (self.repeat, self.tries, self.silent) = (None, 0, None);
    }

    pub(super) fn sent(&mut self, now: Instant) {
        self.last_sent = Some(now);
        self.cork = None;
    }

    /// Whether nothing was sent for longer than an answer takes.
    pub(super) fn is_quiet(&self, rounds: &Rounds, now: Instant) -> bool {
        self.last_sent.is_some_and(|sent| now.saturating_duration_since(sent) > rounds.timeout())
    }

    /// Something was acknowledged.
    pub(super) fn progress(&mut self, more: bool, rounds: &Rounds, now: Instant) {
        (self.tries, self.probed, self.probe, self.persist) = (0, false, None, None);
        self.silent = more.then_some(now);
        self.repeat = if more { after(now, rounds.timeout()) } else { None };
    }

    fn wait(&self, rounds: &Rounds) -> Duration {
        rounds.timeout().saturating_mul(1 << self.tries.min(16)).min(LONGEST)
    }

    /// After sending: nothing is on its way (`idle`), and something cannot be sent (`waiting`).
    pub(super) fn arrange(&mut self, idle: bool, waiting: bool, rounds: &Rounds, now: Instant) {
        if idle {
            (self.repeat, self.probe) = (None, None);
        } else {
            if self.persist.take().is_some() {
                self.tries = 0;
            }
            self.silent = self.silent.or(Some(now));
            if self.repeat.is_none() {
                self.repeat = after(now, self.wait(rounds));
            }
        }
        if !waiting {
            self.persist = None;
        } else if self.persist.is_none() {
            self.persist = after(now, self.wait(rounds));
        }
    }

    /// A probe of the tail comes before anything is repeated.
    pub(super) fn arrange_probe(&mut self, alone: bool, rounds: &Rounds, now: Instant) {
        if self.probed || self.probe.is_some() || self.tries > 0 {
            return;
        }
        let wait = rounds.smooth().saturating_mul(2).saturating_add(if alone { PROBE_ALONE } else { PROBE });
        let at = after(now, wait);
        if at < self.repeat {
            self.probe = at;
        }
    }

    pub(super) fn arrange_cork(&mut self, held: bool, now: Instant) {
        if !held {
            self.cork = None;
        } else if self.cork.is_none() {
            self.cork = after(now, CORK);
        }
    }

    /// The other side has so long to end.
    pub(super) fn wait_for_end(&mut self, now: Instant, time: Duration) {
        if self.end.is_none() {
            self.end = after(now, time);
        }
    }
}

impl Machine {
    fn alive_at(&self) -> Option<Instant> {
        let (idle, interval, _) = self.settings.keep_alive?;
        if !matches!(self.phase, Phase::Established | Phase::CloseWait | Phase::FinWait2)
            || self.sending.outstanding() > 0
        {
            return None;
        }
        let wait = idle.saturating_add(interval.saturating_mul(self.timing.alive_probes));
        self.timing.heard.checked_add(wait)
    }

    /// When something is to be done, if nothing comes before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let timing = &self.timing;
        if self.phase == Phase::Closed {
            return None;
        }
        let all = [
            timing.repeat,
            timing.persist,
            timing.probe,
            timing.cork,
            timing.end,
            self.receiving.delayed,
            self.alive_at(),
        ];
        all.into_iter().flatten().min()
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant, output: &mut dyn Output) {
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        if self.phase == Phase::Closed {
            return;
        }
        if due(&mut self.receiving.delayed) {
            self.receiving.acknowledge_now();
        }
        if due(&mut self.timing.cork) {
            self.sending.force = true;
        }
        if due(&mut self.timing.end) && self.phase == Phase::FinWait2 && self.end.outgoing().flags().gone {
            return self.finish();
        }
        if due(&mut self.timing.probe) && self.sending.outstanding() > 0 {
            self.timing.probed = true;
            self.timing.repeated = self.timing.repeated.saturating_add(1);
            self.probe_tail(now, output);
        }
        if due(&mut self.timing.repeat) {
            self.repeat(now);
        } else if due(&mut self.timing.persist) {
            self.persist(now, output);
        }
        if self.alive_at().is_some_and(|at| at <= now) {
            self.ask_whether_alive(now, output);
        }
        if self.phase != Phase::Closed {
            self.pump(now, output);
        }
    }

    fn gives_up(&self, now: Instant) -> bool {
        let gone = self.end.outgoing().flags().gone;
        let most = match self.phase {
            Phase::SynSent => self.settings.syn_retries,
            Phase::SynReceived => ANSWERS,
            _ if gone => ORPHAN_REPEATS,
            _ => REPEATS,
        };
        let silent = self.timing.silent.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        match self.settings.patience {
            Some(patience) if self.phase != Phase::SynReceived => silent >= patience,
            _ => self.timing.tries >= most,
        }
    }

    /// No answer came.
    fn repeat(&mut self, now: Instant) {
        if self.gives_up(now) {
            let errno = self.soft.unwrap_or(Errno::ETIMEDOUT);
            return self.fail(errno);
        }
        self.timing.repeated = self.timing.repeated.saturating_add(1);
        if matches!(self.phase, Phase::SynSent | Phase::SynReceived) {
            self.sending.nxt = self.sending.una;
        } else {
            if self.timing.tries == 0 {
                self.congestion.lost(false);
            }
            self.sending.lose_all();
        }
        self.timing.tries = self.timing.tries.saturating_add(1);
        self.timing.probe = None;
    }

    /// The window has been shut for long.
    fn persist(&mut self, now: Instant, output: &mut dyn Output) {
        let orphan = self.end.outgoing().flags().gone && self.timing.tries >= ORPHAN_REPEATS;
        if orphan || self.timing.unanswered >= REPEATS {
            let errno = self.soft.unwrap_or(Errno::ETIMEDOUT);
            return self.fail(errno);
        }
        self.timing.unanswered = self.timing.unanswered.saturating_add(1);
        self.timing.tries = self.timing.tries.saturating_add(1);
        self.sending.force = true;
        self.probe(now, output);
    }

    fn ask_whether_alive(&mut self, now: Instant, output: &mut dyn Output) {
        let Some((_, _, most)) = self.settings.keep_alive else { return };
        let silent = now.saturating_duration_since(self.timing.heard);
        let over = match self.settings.patience {
            Some(patience) => silent >= patience && self.timing.alive_probes > 0,
            None => self.timing.alive_probes >= most,
        };
        if over {
            // It may be there after all: it is told.
            self.sending.abort = true;
            self.pump(now, output);
            return self.fail(Errno::ETIMEDOUT);
        }
        self.timing.alive_probes = self.timing.alive_probes.saturating_add(1);
        self.probe(now, output);
    }
}
