#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::mm::{AddressSpace, MapRequest, Protection, Source};
use crate::testing::{BASE, FlatThread};

struct World {
    table: Arc<Table>,
    space: AddressSpace,
}

impl World {
    fn new() -> (Arc<Self>, Box<dyn Thread>) {
        let space = AddressSpace::default();
        let world = Self { table: Arc::clone(space.futexes()), space };
        (Arc::new(world), Box::new(FlatThread::new(1 << 16)))
    }

    fn key(&self, address: u64) -> (Key, u64) {
        (Key::of(&self.space, address, true).unwrap(), address)
    }

    fn wait_until(&self, count: usize) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.table.waiting() != count {
            assert!(Instant::now() < end, "{} wait", self.table.waiting());
            std::thread::yield_now();
        }
    }
}

fn with_sleeper<T>(task: Pid, timeout: Option<Duration>, body: impl FnOnce(&Sleeper<'_>) -> T) -> T {
    let waiter = Waiter::new();
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    body(&Sleeper { task, space: 1, waiter: &waiter, interrupted: &|| false, deadline })
}

fn wait_at(
    table: &Table,
    thread: &dyn Thread,
    sleeper: &Sleeper<'_>,
    (mut key, address): (Key, u64),
    value: u32,
    bitset: u32,
) -> Result<(), Ended> {
    table.wait(thread, sleeper, (&mut key, address), value, bitset)
}

const WORD: u64 = BASE + 64;
const OTHER: u64 = BASE + 128;

#[test]
fn a_wait_ends_by_value_deadline_signal_or_wake() {
    let (world, thread) = World::new();
    let place = world.key(WORD);
    let short = Some(Duration::from_millis(2));
    let wait = |value, bits| {
        with_sleeper(7, short, |s| wait_at(&world.table, thread.as_ref(), s, place, value, bits))
    };
    assert_eq!(wait(1, ANY), Err(Ended::Errno(Errno::EAGAIN)));
    assert_eq!(wait(0, 0), Err(Ended::Errno(Errno::EINVAL)));
    assert_eq!(wait(0, ANY), Err(Ended::Unready(Unready::TimedOut)));
    let waiter = Waiter::new();
    let sleeper = Sleeper { task: 7, space: 1, waiter: &waiter, interrupted: &|| true, deadline: None };
    let signal = wait_at(&world.table, thread.as_ref(), &sleeper, place, 0, ANY);
    assert_eq!(signal, Err(Ended::Unready(Unready::Interrupted)));
    let nowhere = world.key(BASE - 64);
    let fault = with_sleeper(7, short, |s| wait_at(&world.table, thread.as_ref(), s, nowhere, 0, ANY));
    assert_eq!(fault, Err(Ended::Errno(Errno::EFAULT)));
    assert_eq!(world.table.waiting(), 0);
    assert_eq!(world.table.wake(place.0, 1, ANY), Ok(0));
}

#[test]
fn keys_meet_where_memory_is_shared() {
    let space = AddressSpace::default();
    let mut thread = FlatThread::new(0);
    let mut map = |kind| {
        let request = MapRequest {
            address: 0,
            length: 8192,
            protection: Protection::READ,
            flags: kind | libc::MAP_ANONYMOUS,
            source: Source::Anonymous,
        };
        space.map(&mut thread, &request, &crate::mm::Limits::default()).unwrap()
    };
    let (private, shared) = (map(libc::MAP_PRIVATE), map(libc::MAP_SHARED));
    let (child, _) = space.fork(&mut thread).unwrap();
    let same = |address, flag| Key::of(&space, address, flag) == Key::of(&child, address, flag);
    assert!(same(shared + 4, false));
    assert!(!same(shared + 4, true) && !same(private, false) && !same(private, true));
    assert_eq!(Key::of(&space, 1, true), Err(Errno::EINVAL));
    assert_eq!(Key::of(&space, 1 << 63, true), Err(Errno::EFAULT));
    assert_eq!(Key::of(&space, 0x2_0000, false), Err(Errno::EFAULT));
}

#[test]
fn requeued_threads_are_woken_where_they_went() {
    let (world, mut thread) = World::new();
    let (from, to) = (world.key(WORD), world.key(OTHER));
    std::thread::scope(|scope| {
        for task in 0..10 {
            let (world, mine) = (&world, thread.spawn().unwrap());
            scope.spawn(move || {
                with_sleeper(task, None, |s| wait_at(&world.table, mine.as_ref(), s, from, 0, ANY)).unwrap()
            });
        }
        world.wait_until(10);
        let keys = (from.0, to.0);
        let stale = world.table.requeue(thread.as_ref(), keys, (1, 5), Some((WORD, 1)));
        assert_eq!(stale, Err(Errno::EAGAIN));
        assert_eq!(world.table.requeue(thread.as_ref(), keys, (2, 5), Some((WORD, 0))), Ok((2, 5)));
        assert_eq!(world.table.wake(from.0, 100, ANY), Ok(3));
        let operation = Operation::decode((1 << 28) | (4 << 24) | (3 << 12) | 0xfff).unwrap();
        let woken = world.table.wake_op(thread.as_mut(), from.0, to, (1, 4), operation);
        assert_eq!(woken, Ok((0, Some(4))));
        assert_eq!(word(thread.as_ref(), OTHER), Ok(3));
        assert_eq!(world.table.wake(to.0, 100, ANY), Ok(1));
    });
    assert_eq!(world.table.waiting(), 0);
}

/// A lock as libc makes it of a futex: 0 free, 1 taken, 2 taken and waited for. A lost wake-up hangs it.
#[test]
fn no_wake_up_is_lost() {
    let (world, mut thread) = World::new();
    let (place, inside, total) = (world.key(WORD), AtomicU32::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for task in 0..4 {
            let (world, inside, total) = (&world, &inside, &total);
            let mut mine = thread.spawn().unwrap();
            scope.spawn(move || {
                for _ in 0..3000 {
                    if mine.compare_exchange(WORD, 0, 1).unwrap() != 0 {
                        while exchange(mine.as_mut(), WORD, |_| Ok(2)).unwrap() != 0 {
                            let end = with_sleeper(task, None, |s| {
                                wait_at(&world.table, mine.as_ref(), s, place, 2, ANY)
                            });
                            assert!(matches!(end, Ok(()) | Err(Ended::Errno(Errno::EAGAIN))));
                        }
                    }
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    total.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                    if exchange(mine.as_mut(), WORD, |_| Ok(0)).unwrap() == 2 {
                        world.table.wake(place.0, 1, ANY).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(total.load(Ordering::SeqCst), 12_000);
    assert_eq!(world.table.waiting(), 0);
}

#[test]
fn locks_with_owners_are_handed_over() {
    let (world, mut thread) = World::new();
    let (place, inside) = (world.key(WORD), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for task in 1..5 {
            let (world, inside) = (&world, &inside);
            let mut mine = thread.spawn().unwrap();
            scope.spawn(move || {
                for _ in 0..1000 {
                    with_sleeper(task, None, |s| world.table.lock(mine.as_mut(), s, place, false, &|_| true))
                        .unwrap();
                    assert_eq!(word(mine.as_ref(), WORD).unwrap() & TID_MASK, task.unsigned_abs());
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    world.table.unlock(mine.as_mut(), task, place).unwrap();
                }
            });
        }
    });
    assert_eq!(word(thread.as_ref(), WORD), Ok(0));
    assert_eq!(world.table.lock_waiters.load(Ordering::SeqCst), 0);
}

#[test]
fn locks_say_whose_they_are() {
    let (world, mut thread) = World::new();
    let place = world.key(WORD);
    let mut lock = |task, only_try, alive: bool| {
        let short = Some(Duration::from_millis(2));
        with_sleeper(task, short, |s| world.table.lock(thread.as_mut(), s, place, only_try, &|_| alive))
    };
    assert_eq!(lock(5, false, true), Ok(()));
    assert_eq!(lock(5, false, true), Err(Ended::Errno(Errno::EDEADLK)));
    assert_eq!(lock(6, true, true), Err(Ended::Errno(Errno::EAGAIN)));
    assert_eq!(lock(6, false, false), Err(Ended::Errno(Errno::ESRCH)));
    assert_eq!(lock(6, false, true), Err(Ended::Unready(Unready::TimedOut)));
    assert_eq!(world.table.lock_waiters.load(Ordering::SeqCst), 0);
    assert_eq!(world.table.unlock(thread.as_mut(), 6, place), Err(Errno::EPERM));
    assert_eq!(world.table.unlock(thread.as_mut(), 5, place), Ok(()));
}

#[test]
fn who_is_moved_to_a_lock_gets_it() {
    let (world, mut thread) = World::new();
    let (from, lock) = (world.key(WORD), world.key(OTHER));
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for task in 1..4 {
            let (world, done) = (&world, &done);
            let mut mine = thread.spawn().unwrap();
            scope.spawn(move || {
                with_sleeper(task, None, |s| {
                    world.table.wait_for_lock(mine.as_mut(), s, from, (0, ANY), lock)
                })
                .unwrap();
                assert_eq!(word(mine.as_ref(), OTHER).unwrap() & TID_MASK, task.unsigned_abs());
                done.fetch_add(1, Ordering::SeqCst);
                world.table.unlock(mine.as_mut(), task, lock).unwrap();
            });
        }
        world.wait_until(3);
        assert_eq!(world.table.wake(from.0, 1, ANY), Err(Errno::EINVAL));
        let keys = (from.0, lock.0);
        let moved = world.table.requeue_to_lock(thread.as_mut(), keys, OTHER, 9, (WORD, 0), &|_| true);
        assert_eq!(moved, Ok(3));
    });
    assert_eq!(done.load(Ordering::SeqCst), 3);
    assert_eq!(world.table.lock_waiters.load(Ordering::SeqCst), 0);
}

#[test]
fn the_locks_of_the_dead_are_marked_and_handed_on() {
    let (world, mut thread) = World::new();
    // A shared mapping stands where the words are, so that the robust list's shared keys are known.
    let request = MapRequest {
        address: BASE,
        length: 1 << 16,
        protection: Protection::READ,
        flags: libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_ANONYMOUS,
        source: Source::Anonymous,
    };
    world.space.map(thread.as_mut(), &request, &crate::mm::Limits::default()).unwrap();
    let key = |address| (Key::of(&world.space, address, false).unwrap(), address);
    let (head, node, pi_node) = (BASE + 0x1000, BASE + 0x2000, BASE + 0x3000);
    let put = |thread: &mut Box<dyn Thread>, address: u64, value: u64| {
        thread.write(address, &value.to_le_bytes());
    };
    // head -> node -> pi_node (with its bit) -> head; the words lie 32 bytes behind their nodes.
    for (address, value) in
        [(head, node), (head + 8, 32), (head + 16, 0), (node, pi_node | 1), (pi_node, head)]
    {
        put(&mut thread, address, value);
    }
    thread.write(node + 32, &(9 | WAITERS).to_le_bytes());
    thread.write(pi_node + 32, &9u32.to_le_bytes());
    world.space.set_robust_list(9, head);
    let woken = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (plain, lock) = (key(node + 32), key(pi_node + 32));
        let (world, woken) = (&world, &woken);
        let (mine, mut other) = (thread.spawn().unwrap(), thread.spawn().unwrap());
        scope.spawn(move || {
            with_sleeper(1, None, |s| wait_at(&world.table, mine.as_ref(), s, plain, 9 | WAITERS, ANY))
                .unwrap();
            woken.store(true, Ordering::SeqCst);
        });
        scope.spawn(move || {
            with_sleeper(2, None, |s| world.table.lock(other.as_mut(), s, lock, false, &|_| true)).unwrap();
            assert_eq!(word(other.as_ref(), lock.1), Ok(2 | OWNER_DIED | WAITERS));
        });
        world.wait_until(2);
        exit_robust_list(&world.space, thread.as_mut(), (9, 9, 1));
    });
    assert!(woken.load(Ordering::SeqCst));
    assert_eq!(word(thread.as_ref(), node + 32), Ok(OWNER_DIED | WAITERS));
    // A list that is a ring, or that leads nowhere, ends.
    for first in [node, 1 << 63, BASE - 8, u64::MAX] {
        put(&mut thread, head, first);
        put(&mut thread, node, node);
        world.space.set_robust_list(9, head);
        exit_robust_list(&world.space, thread.as_mut(), (9, 9, 1));
    }
}

#[test]
fn one_of_several_words_is_told() {
    let (world, mut thread) = World::new();
    let (keys, words): (Vec<_>, Vec<_>) =
        (0..4u64).map(|at| world.key(WORD + at * 4)).map(|(key, at)| (key, (at, 0))).unzip();
    let other = world.key(OTHER);
    std::thread::scope(|scope| {
        let (mine, table, words) = (thread.spawn().unwrap(), &world.table, &words);
        let mut at_last = keys.clone();
        let waits = scope.spawn(move || {
            let woken = with_sleeper(1, None, |s| table.wait_any(mine.as_ref(), s, &mut at_last, words));
            (woken, at_last)
        });
        world.wait_until(4);
        // One who was moved elsewhere is told where.
        assert_eq!(world.table.requeue(thread.as_ref(), (keys[1], other.0), (0, 9), None), Ok((0, 1)));
        assert_eq!(world.table.wake(keys[2], 1, ANY), Ok(1));
        assert_eq!(waits.join().unwrap(), (Ok(2), vec![keys[0], other.0, keys[2], keys[3]]));
    });
    assert_eq!(world.table.waiting(), 0);
    thread.write(WORD + 8, &[1]);
    let end = with_sleeper(1, None, |s| world.table.wait_any(thread.as_ref(), s, &mut keys.clone(), &words));
    assert_eq!(end, Err(Ended::Errno(Errno::EAGAIN)));
    assert_eq!(world.table.waiting(), 0);
}

#[test]
fn operations_are_decoded() {
    let operation = |code: u32| Operation::decode(code);
    assert_eq!(operation(5 << 28).err(), Some(Errno::ENOSYS));
    assert_eq!(operation(6 << 24).err(), Some(Errno::ENOSYS));
    // SET to -1 if the old value is less than -1; OR with 1 << 31.
    let set = operation((2 << 24) | (0xfff << 12) | 0xfff).unwrap();
    assert_eq!(set.apply(3), u32::MAX);
    assert!(set.compare((-2i32).cast_unsigned()) && !set.compare(0));
    assert_eq!(operation((1 << 31) | (2 << 28) | (31 << 12)).unwrap().apply(1), (1 << 31) | 1);
}

/// Waits that end at their deadline, are moved, and are woken, all at once: each wake-up that is counted reaches one who waits.
#[test]
fn every_wake_up_reaches_somebody() {
    let (world, _) = World::new();
    let thread = FlatThread::new(1 << 12);
    let (one, other) = (world.key(WORD), world.key(OTHER));
    let (slept, woken, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (table, slept, woken, over) = (&world.table, &slept, &woken, &over);
        let mut waits = Vec::new();
        for task in 0..3u64 {
            let mine = thread.share();
            waits.push(scope.spawn(move || {
                for turn in 0..2000 {
                    let timeout = Some(Duration::from_micros((turn * 7 + task * 13) % 150));
                    let place = if turn % 3 == 0 { other } else { one };
                    let end = with_sleeper(1, timeout, |s| wait_at(table, &mine, s, place, 0, ANY));
                    slept.fetch_add(usize::from(end.is_ok()), Ordering::SeqCst);
                    assert!(matches!(end, Ok(()) | Err(Ended::Unready(Unready::TimedOut))), "{end:?}");
                }
            }));
        }
        for (from, to) in [(one, other), (other, one)] {
            let mine = thread.share();
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    table.requeue(&mine, (from.0, to.0), (0, 2), Some((from.1, 0))).unwrap();
                    woken.fetch_add(table.wake(from.0, 1, ANY).unwrap(), Ordering::SeqCst);
                    std::thread::yield_now();
                }
            });
        }
        waits.into_iter().for_each(|wait| wait.join().unwrap());
        over.store(true, Ordering::SeqCst);
    });
    assert_eq!(slept.load(Ordering::SeqCst), woken.load(Ordering::SeqCst));
    assert_eq!(world.table.waiting(), 0);
}
