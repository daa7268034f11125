//! Two machines with a bad line between them, in a time of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::machine::Settings;
use super::*;
use crate::events::Events;
use crate::net::{Identity, Net};
use segment::Seq;

/// What the line does to segments, in percent, and how long they take.
#[derive(Debug, Clone, Copy)]
struct Line {
    lost: u64,
    twice: u64,
    late: u64,
    delay: Duration,
    most: usize,
}

const GOOD: Line = Line { lost: 0, twice: 0, late: 0, delay: Duration::from_millis(1), most: 0 };

struct Sent(Vec<(Header, Vec<u8>)>, usize);

impl Output for Sent {
    fn send(&mut self, header: &Header, bytes: Bytes<'_>) -> bool {
        let mut payload = vec![0; bytes.count];
        assert_eq!(bytes.queue.copy_at(bytes.start, &mut payload), bytes.count);
        assert!(self.1 > 0 || bytes.count <= bytes.mss);
        self.0.push((*header, payload));
        true
    }

    fn most(&self) -> usize {
        self.1
    }
}

struct Side {
    machine: Option<Machine>,
    guest: End<ByteQueue>,
    wire: Option<End<ByteQueue>>,
    news: News,
    to_send: Vec<u8>,
    received: Vec<u8>,
    closes: bool,
    reads: bool,
}

struct World {
    sides: [Side; 2],
    now: Instant,
    began: Instant,
    line: Line,
    on_way: BTreeMap<(Instant, u64), (usize, Header, Vec<u8>)>,
    count: u64,
    random: u64,
    dropped: fn(u64) -> bool,
}

fn side(net: &Arc<Net>, bytes: &[u8]) -> Side {
    let common = Common::new(net, [libc::AF_INET, libc::SOCK_STREAM, 0], Identity::default()).unwrap();
    let queues = [100_000, 80_000].map(|limit| ByteQueue::new(limit, &net.bytes));
    let [guest, wire] = End::pair([&common, &common], queues);
    Side {
        machine: None,
        guest,
        wire: Some(wire),
        news: News::default(),
        to_send: bytes.to_vec(),
        received: Vec::new(),
        closes: true,
        reads: true,
    }
}

fn begin(first: u32, now: Instant) -> Begin {
    Begin { first: Seq(first), stamp: first, mss: 1460, settings: Settings::default(), now }
}

impl World {
    fn new(line: Line, bytes: [&[u8]; 2], seed: u64) -> Self {
        let net = Net::new();
        let now = Instant::now();
        let mut sides = bytes.map(|bytes| side(&net, bytes));
        // The first numbers are near the end of what there are.
        let machine = Machine::connect(sides[0].wire.take().unwrap(), &begin(u32::MAX - 5000, now));
        sides[0].machine = Some(machine);
        let on_way = BTreeMap::new();
        Self { sides, now, began: now, line, on_way, count: 0, random: seed | 1, dropped: |_| false }
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100 < percent
    }

    fn drive(&mut self, at: usize, act: impl FnOnce(&mut Machine, Instant, &mut dyn Output)) {
        let mut sent = Sent(Vec::new(), self.line.most);
        let side = &mut self.sides[at];
        let Some(machine) = &mut side.machine else { return };
        act(machine, self.now, &mut sent);
        let news = machine.take_news();
        side.news.events |= news.events;
        side.news.established |= news.established;
        side.news.failed = side.news.failed.or(news.failed);
        side.news.over |= news.over;
        for (header, payload) in sent.0 {
            let (line, number) = (self.line, self.count);
            self.count += 1;
            if self.chance(line.lost) || (self.dropped)(number) {
                continue;
            }
            let copies = 1 + u64::from(self.chance(line.twice));
            for copy in 0..copies {
                let late = if self.chance(line.late) { line.delay * 3 } else { Duration::ZERO };
                let at_time = self.now + line.delay + late;
                self.on_way.insert((at_time, number * 2 + copy), (1 - at, header, payload.clone()));
            }
        }
    }

    fn programs(&mut self) {
        for at in 0..2 {
            let side = &mut self.sides[at];
            if !side.to_send.is_empty() && side.machine.is_some() {
                let mut source = side.to_send.as_slice();
                let put = side.guest.outgoing().put(&mut source, &mut Default::default()).unwrap_or(0);
                side.to_send.drain(..put);
                if put > 0 {
                    self.drive(at, Machine::pump);
                }
            }
            let side = &mut self.sides[at];
            if side.to_send.is_empty()
                && side.closes
                && side.machine.is_some()
                && !side.guest.outgoing().flags().ended
            {
                side.guest.outgoing().change(|flags| flags.ended = true);
                self.drive(at, |machine, now, output| {
                    machine.kicked(now);
                    machine.pump(now, output);
                });
            }
            let side = &mut self.sides[at];
            if side.reads {
                let mut bytes = vec![0; 50_000];
                let taken =
                    side.guest.incoming().take(&mut bytes.as_mut_slice(), Default::default()).unwrap();
                side.received.extend_from_slice(&bytes[..taken.count]);
                if taken.count > 0 {
                    self.drive(at, Machine::window_opened);
                }
            }
        }
    }

    /// Goes on until nothing more happens, or this much time has gone by.
    fn run(&mut self, limit: Duration) {
        self.drive(0, Machine::pump);
        loop {
            self.programs();
            let first = self.on_way.keys().next().map(|key| key.0);
            let due = self.sides.iter().filter_map(|side| side.machine.as_ref()?.deadline()).min();
            let Some(next) = first.into_iter().chain(due).min() else { return };
            if next.duration_since(self.began) > limit {
                return;
            }
            self.now = self.now.max(next);
            if first.is_some_and(|first| first <= self.now) {
                let (_, (to, header, payload)) = self.on_way.pop_first().unwrap();
                let segment = Segment { header, payload: &payload };
                if self.sides[to].machine.is_none() {
                    if header.syn {
                        let wire = self.sides[to].wire.take().unwrap();
                        self.sides[to].machine = Some(Machine::accept(wire, &begin(7, self.now), &segment));
                        self.drive(to, Machine::pump);
                    }
                    continue;
                }
                self.drive(to, |machine, now, output| match machine.phase() {
                    // What the table of the past does.
                    Phase::TimeWait if header.fin || !payload.is_empty() => machine.acknowledge(now, output),
                    Phase::TimeWait => {}
                    _ => {
                        machine.arrive(&segment, now);
                        machine.pump(now, output);
                    }
                });
            } else {
                for at in 0..2 {
                    let now = self.now;
                    if self.sides[at]
                        .machine
                        .as_ref()
                        .is_some_and(|machine| machine.deadline().is_some_and(|due| due <= now))
                    {
                        self.drive(at, Machine::tick);
                    }
                }
            }
        }
    }

    fn phases(&self) -> [Phase; 2] {
        [0, 1].map(|at| self.sides[at].machine.as_ref().map_or(Phase::Closed, Machine::phase))
    }

    fn time(&self) -> Duration {
        self.now.duration_since(self.began)
    }
}

fn content(count: usize, step: usize) -> Vec<u8> {
    (0..count).map(|at| ((at * 31 + step) % 251) as u8).collect()
}

#[test]
fn bytes_go_both_ways_and_both_sides_end() {
    for most in [0, CUT] {
        let (one, other) = (content(1_000_000, 1), content(300_000, 2));
        let mut world = World::new(Line { most, ..GOOD }, [&one, &other], 1);
        world.run(Duration::from_secs(30));
        assert!(world.sides[1].received == one && world.sides[0].received == other);
        assert!(world.sides.iter().all(|side| side.news.over && side.news.failed.is_none()));
        let mut phases = world.phases();
        phases.sort_unstable_by_key(|phase| *phase as u8);
        assert!(matches!(phases, [Phase::TimeWait, Phase::Closed | Phase::TimeWait]), "{phases:?}");
        assert!(world.time() < Duration::from_secs(1), "{:?}", world.time());
    }
}

#[test]
fn one_lost_segment_costs_a_round_and_not_a_timeout() {
    let bytes = content(400_000, 1);
    let mut world = World::new(GOOD, [&bytes, &[]], 1);
    world.dropped = |number| number == 60;
    world.run(Duration::from_secs(30));
    assert!(world.sides[1].received == bytes);
    assert!(world.time() < Duration::from_millis(180), "{:?}", world.time());
}

#[test]
fn the_last_segment_lost_costs_a_probe() {
    let bytes = content(30_000, 1);
    let mut world = World::new(GOOD, [&bytes, &[]], 1);
    world.sides[0].closes = false;
    // SYN, SYN+ACK, ACK, then 21 segments, the last of which carries no FIN.
    world.dropped = |number| number == 23;
    world.run(Duration::from_secs(1));
    assert!(world.sides[1].received == bytes, "{}", world.sides[1].received.len());
}

#[test]
fn a_shut_window_is_probed_until_it_opens() {
    let bytes = content(300_000, 1);
    let mut world = World::new(GOOD, [&bytes, &[]], 1);
    world.sides[1].reads = false;
    world.run(Duration::from_secs(5));
    let unread = world.sides[1].guest.incoming().len();
    assert!((60_000..=100_128).contains(&unread), "{unread}");
    // The segment that opens the window is lost, too: a probe finds out.
    world.sides[1].reads = true;
    let next = world.count;
    assert!(next < 500, "{next}");
    world.run(Duration::from_secs(600));
    assert!(world.sides[1].received == bytes);
}

#[test]
fn nobody_answers() {
    let mut world = World::new(Line { lost: 100, ..GOOD }, [&[1], &[]], 1);
    world.run(Duration::from_secs(1000));
    assert_eq!(world.sides[0].news.failed, Some(Errno::ETIMEDOUT));
    // 1, 2, 4, 8, 16, 32, 64 seconds.
    assert_eq!(world.time().as_secs(), 127);
    assert_eq!(world.count, 7);
}

#[test]
fn the_line_breaks() {
    let bytes = content(50_000, 1);
    let mut world = World::new(GOOD, [&bytes, &[]], 1);
    world.dropped = |number| number > 10;
    world.run(Duration::from_secs(3000));
    assert_eq!(world.sides[0].news.failed, Some(Errno::ETIMEDOUT));
    assert!((800..1100).contains(&world.time().as_secs()), "{:?}", world.time());
    assert!(world.sides[0].guest.incoming().flags().broken);
}

#[test]
fn keep_alive_finds_out_who_is_gone() {
    let mut world = World::new(GOOD, [&[1], &[]], 1);
    world.sides[0].closes = false;
    world.sides[1].closes = false;
    world.run(Duration::from_secs(100));
    let alive = (Duration::from_secs(10), Duration::from_secs(1), 3);
    let settings = Settings { keep_alive: Some(alive), ..Settings::default() };
    world.drive(0, |machine, now, _| machine.set(settings, now));
    world.run(Duration::from_secs(200));
    assert_eq!(world.sides[0].news.failed, None);
    world.line.lost = 100;
    world.run(Duration::from_secs(400));
    assert_eq!(world.sides[0].news.failed, Some(Errno::ETIMEDOUT));
}

#[test]
fn an_rst_ends_it_where_it_is_expected_alone() {
    for (offset, failed) in [(0, Some(Errno::ECONNRESET)), (1, None), (u32::MAX, None)] {
        let mut world = World::new(GOOD, [&[1], &[]], 1);
        world.sides.iter_mut().for_each(|side| side.closes = false);
        world.run(Duration::from_secs(1));
        let [_, expected] = world.sides[0].machine.as_ref().unwrap().sequences();
        let header = Header { seq: Seq(expected.0.wrapping_add(offset)), rst: true, ..Header::default() };
        let rst = Segment { header, payload: &[] };
        world.drive(0, |machine, now, _| machine.arrive(&rst, now));
        assert_eq!(world.sides[0].news.failed, failed, "{offset}");
    }
}

#[test]
fn who_closes_with_bytes_unread_resets() {
    let mut world = World::new(GOOD, [&content(1000, 1), &[]], 1);
    world.sides.iter_mut().for_each(|side| (side.closes, side.reads) = (false, false));
    world.run(Duration::from_secs(1));
    let end = &world.sides[1].guest;
    assert!(end.incoming().close() > 0);
    end.outgoing().change(|flags| flags.broken = true);
    world.drive(1, |machine, now, output| {
        machine.kicked(now);
        machine.pump(now, output);
    });
    world.run(Duration::from_secs(2));
    assert_eq!(world.sides[0].news.failed, Some(Errno::ECONNRESET));
    assert!(world.sides[0].news.events.contains(Events::HUP));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_line(
        (lost, twice, late) in (0u64..12, 0u64..10, 0u64..30),
        delay in 0u64..60,
        (one, other) in (0usize..400_000, 0usize..200_000),
        seed: u64,
        cut: bool,
    ) {
        let line = Line { lost, twice, late, delay: Duration::from_millis(delay), most: if cut { CUT } else { 0 } };
        let (one, other) = (content(one, 3), content(other, 4));
        let mut world = World::new(line, [&one, &other], seed);
        world.run(Duration::from_secs(4000));
        prop_assert_eq!(world.sides[0].news.failed, None);
        prop_assert!(world.sides[1].received == one, "{} of {}", world.sides[1].received.len(), one.len());
        prop_assert!(world.sides[0].received == other, "{} of {}", world.sides[0].received.len(), other.len());
        prop_assert!(world.sides.iter().all(|side| side.news.over), "{:?}", world.phases());
    }

    #[test]
    fn any_segments(
        segments in proptest::collection::vec(
            (any::<bool>(), -3000i32..3000, -3000i32..3000, any::<u16>(), 0u8..16, 0usize..2000, any::<[i32; 4]>()), 0..60)
    ) {
        let mut world = World::new(GOOD, [&content(5000, 1), &content(100, 1)], 9);
        world.sides.iter_mut().for_each(|side| side.closes = false);
        world.run(Duration::from_millis(50));
        let payload = content(2000, 5);
        for (side, seq, ack, window, flags, count, blocks) in segments {
            let at = usize::from(side);
            let Some(machine) = &world.sides[at].machine else { continue };
            let [sent, expected] = machine.sequences();
            let near = |base: Seq, offset: i32| Seq(base.0.wrapping_add_signed(offset % 5000));
            let blocks = [Some((near(sent, blocks[0]), near(sent, blocks[1]))), Some((near(sent, blocks[2]), near(sent, blocks[3]))), None];
            let header = Header {
                seq: near(expected, seq),
                ack: (flags & 8 == 0).then(|| near(sent, ack)),
                window,
                syn: flags & 7 == 7,
                fin: flags & 7 == 6,
                rst: flags & 7 == 5,
                urgent: (flags & 7 == 4).then_some(window),
                blocks,
                ..Header::default()
            };
            let segment = Segment { header, payload: &payload[..count] };
            world.drive(at, |machine, now, output| {
                machine.arrive(&segment, now);
                machine.pump(now, output);
            });
            world.now += Duration::from_millis(300);
            world.drive(at, Machine::tick);
        }
    }
}
