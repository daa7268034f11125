#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::test_utils::FakeThread;
use super::*;

const BASE: u64 = 0x10_0000_0000;
const PAGES: u64 = 48;

fn space_at(base: u64) -> AddressSpace {
    let space = AddressSpace::new(base..base + PAGES * PAGE, 0, None, Arc::default());
    space.layout().mmap_base = base + PAGES * PAGE;
    space
}

fn anonymous(address: u64, pages: u64, protection: u32, flags: i32) -> MapRequest {
    MapRequest {
        address,
        length: pages * PAGE,
        protection: Protection::from_bits_truncate(protection),
        flags: flags | libc::MAP_ANONYMOUS,
        source: Source::Anonymous,
    }
}

/// One call of a random sequence. Pages are counted from the start of the region.
#[derive(Debug, Clone)]
enum Op {
    Map { page: u64, pages: u64, protection: u32, shared: bool, keep: bool },
    Unmap { page: u64, pages: u64 },
    Protect { page: u64, pages: u64, protection: u32 },
    Move { page: u64, old: u64, new: u64, to: u64, flags: i32 },
    Advise { page: u64, pages: u64, advice: i32 },
    Lock { page: u64, pages: u64, locked: bool },
    Resident { page: u64, pages: u64 },
    Sync { page: u64, pages: u64, invalidate: bool },
}

/// Advice, among it some that there is not. Not what splits areas of the host alone: populating, and hints about order and huge pages.
const ADVICE: [i32; 20] = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18, 19, 20, 21, 24, 26, -1];

/// Calls that look at areas, or mark them.
fn looks() -> impl Strategy<Value = Op> {
    let range = || (0..PAGES, 0..9u64);
    prop_oneof![
        3 => (range(), prop::sample::select(ADVICE.to_vec()))
            .prop_map(|((page, pages), advice)| Op::Advise { page, pages, advice }),
        1 => (range(), any::<bool>()).prop_map(|((page, pages), locked)| Op::Lock { page, pages, locked }),
        1 => range().prop_map(|(page, pages)| Op::Resident { page, pages }),
        1 => (range(), any::<bool>())
            .prop_map(|((page, pages), invalidate)| Op::Sync { page, pages, invalidate }),
    ]
}

fn all_ops() -> impl Strategy<Value = Vec<Op>> {
    (ops(), prop::collection::vec(looks(), 40))
        .prop_map(|(ops, looks)| ops.into_iter().zip(looks).flat_map(|(op, look)| [op, look]).collect())
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let page = 0..PAGES;
    let pages = 0..9u64;
    let protection = prop_oneof![Just(0u32), Just(1), Just(3), Just(5)];
    let flags = prop_oneof![
        Just(0),
        Just(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED),
        Just(7),
        Just(libc::MREMAP_FIXED)
    ];
    let op = prop_oneof![
        3 => (page.clone(), 1..9u64, protection.clone(), any::<bool>(), any::<bool>()).prop_map(
            |(page, pages, protection, shared, keep)| Op::Map { page, pages, protection, shared, keep }),
        2 => (page.clone(), pages.clone()).prop_map(|(page, pages)| Op::Unmap { page, pages }),
        2 => (page.clone(), pages.clone(), protection)
            .prop_map(|(page, pages, protection)| Op::Protect { page, pages, protection }),
        2 => (page.clone(), pages.clone(), pages, page, flags)
            .prop_map(|(page, old, new, to, flags)| Op::Move { page, old, new, to, flags }),
    ];
    prop::collection::vec(op, 1..40)
}

fn apply(space: &AddressSpace, thread: &mut FakeThread, base: u64, op: &Op) -> Result<u64, Errno> {
    let limits = Limits::default();
    let at = |page: u64| base + page * PAGE;
    match *op {
        Op::Map { page, pages, protection, shared, keep } => {
            let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
            let place = if keep { libc::MAP_FIXED_NOREPLACE } else { libc::MAP_FIXED };
            space.map(thread, &anonymous(at(page), pages, protection, kind | place), &limits)
        }
        Op::Unmap { page, pages } => space.unmap(thread, at(page), pages * PAGE).map(|()| 0),
        Op::Protect { page, pages, protection } => {
            let protection = Protection::from_bits_truncate(protection);
            space.protect(thread, at(page), pages * PAGE, protection, 0, &limits).map(|()| 0)
        }
        Op::Move { page, old, new, to, flags } => {
            let request = RemapRequest {
                address: at(page),
                old_length: old * PAGE,
                new_length: new * PAGE,
                flags,
                new_address: at(to),
            };
            space.remap(thread, &request, &limits)
        }
        Op::Advise { page, pages, advice } => {
            space.advise(thread, at(page), pages * PAGE, advice).map(|()| 0)
        }
        Op::Lock { page, pages, locked: true } => {
            let limits = Limits { may_lock: true, ..limits };
            space.lock(thread, at(page), pages * PAGE, true, &limits).map(|()| 0)
        }
        Op::Lock { page, pages, .. } => space.unlock(at(page), pages * PAGE).map(|()| 0),
        Op::Resident { page, pages } => space.resident(at(page), pages * PAGE).map(|_| 0),
        Op::Sync { page, pages, invalidate } => {
            let (files, whole) = space.files_in(at(page), pages * PAGE, invalidate)?;
            assert!(files.is_empty());
            if whole { Ok(0) } else { Err(Errno::ENOMEM) }
        }
    }
}

fn coverage(space: &AddressSpace) -> BTreeMap<u64, (u32, bool)> {
    let layout = space.layout();
    let mut pages = BTreeMap::new();
    for area in layout.areas.iter() {
        for page in (area.start..area.end).step_by(PAGE as usize) {
            let shared = area.flags.contains(AreaFlags::SHARED);
            assert_eq!(pages.insert(page, (area.protection.bits(), shared)), None, "overlap at {page:#x}");
        }
    }
    pages
}

fn check_invariants(space: &AddressSpace) {
    let layout = space.layout();
    // What a search remembers changes nothing of what it finds.
    for length in [3 * PAGE, PAGE, 5 * PAGE] {
        let mut fresh = Areas::default();
        layout.areas.iter().for_each(|area| fresh.insert(area.clone()));
        let found = layout.areas.highest_gap(&layout.range, length);
        assert_eq!(found, fresh.highest_gap(&layout.range, length));
    }
    let areas: Vec<_> = layout.areas.iter().collect();
    for area in &areas {
        assert!(area.start < area.end && area.start % PAGE == 0 && area.end % PAGE == 0);
        assert!(layout.range.start <= area.start && area.end <= layout.range.end);
    }
    for pair in areas.windows(2) {
        assert!(pair[0].end <= pair[1].start, "overlap");
        assert!(!pair[0].merges_with(pair[1]), "unmerged neighbours");
    }
    assert_eq!(layout.areas.total(), areas.iter().map(|area| area.length()).sum::<u64>());
    assert_eq!(
        layout.areas.data(),
        areas.iter().filter(|area| area.is_data()).map(|area| area.length()).sum::<u64>()
    );
}

/// What every page is after each call, told page by page.
fn model(pages: &mut BTreeMap<u64, (u32, bool)>, base: u64, op: &Op, result: Result<u64, Errno>) {
    let range = |page: u64, count: u64| (page..page + count).map(move |page| base + page * PAGE);
    match *op {
        Op::Map { page, pages: count, protection, shared, .. } => {
            if result.is_ok() {
                pages.extend(range(page, count).map(|page| (page, (protection, shared))));
            }
        }
        Op::Unmap { page, pages: count } => {
            if result.is_ok() {
                pages.retain(|at, _| !range(page, count).any(|gone| gone == *at));
            }
        }
        Op::Protect { page, pages: count, protection } => {
            for page in range(page, count) {
                let Some(entry) = pages.get_mut(&page) else {
                    assert_eq!(result, Err(Errno::ENOMEM));
                    break;
                };
                entry.0 = protection;
            }
        }
        Op::Move { page, old, new, flags, .. } => {
            let Ok(to) = result else { return };
            let keep = flags & libc::MREMAP_DONTUNMAP != 0;
            let what = pages.get(&(base + page * PAGE)).copied();
            if !keep && old > 0 {
                let gone = if flags & libc::MREMAP_FIXED != 0 { 0 } else { new };
                pages.retain(|at, _| !range(page, old).skip(gone as usize).any(|gone| gone == *at));
            }
            if flags & libc::MREMAP_FIXED != 0 || new > old {
                let what = what.unwrap();
                pages.extend((0..new).map(|page| (to + page * PAGE, what)));
            }
        }
        Op::Advise { .. } | Op::Lock { .. } | Op::Resident { .. } | Op::Sync { .. } => {}
    }
}

fn host_coverage(base: u64) -> BTreeMap<u64, (u32, bool)> {
    let region: Range<u64> = base..base + PAGES * PAGE;
    let mut pages = BTreeMap::new();
    for line in std::fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap().max(region.start);
        let end = u64::from_str_radix(end, 16).unwrap().min(region.end);
        let rights = rest.as_bytes();
        let bits = [(b'r', 1), (b'w', 2), (b'x', 4)];
        let bits =
            bits.iter().zip(rights).filter(|((letter, _), had)| letter == *had).map(|(bit, _)| bit.1).sum();
        for page in (start..end.max(start)).step_by(PAGE as usize) {
            pages.insert(page, (bits, rights[3] == b's'));
        }
    }
    pages
}

/// The same call, made directly: what Linux says.
fn on_linux(base: u64, op: &Op) -> Result<u64, Errno> {
    let at = |page: u64| (base + page * PAGE) as *mut libc::c_void;
    let size = |pages: u64| (pages * PAGE) as usize;
    // SAFETY: all addresses are within the test's own region or just behind it, where nothing is.
    let result = unsafe {
        match *op {
            Op::Map { page, pages, protection, shared, keep } => {
                let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
                let place = if keep { libc::MAP_FIXED_NOREPLACE } else { libc::MAP_FIXED };
                let flags = kind | place | libc::MAP_ANONYMOUS;
                libc::mmap(at(page), size(pages), protection.cast_signed(), flags, -1, 0) as i64
            }
            Op::Unmap { page, pages } => i64::from(libc::munmap(at(page), size(pages))),
            Op::Protect { page, pages, protection } => {
                i64::from(libc::mprotect(at(page), size(pages), protection.cast_signed()))
            }
            Op::Move { page, old, new, to, flags } => {
                libc::mremap(at(page), size(old), size(new), flags, at(to)) as i64
            }
            Op::Advise { page, pages, advice } => i64::from(libc::madvise(at(page), size(pages), advice)),
            Op::Lock { page, pages, locked: true } => {
                i64::from(libc::mlock2(at(page), size(pages), libc::MLOCK_ONFAULT))
            }
            Op::Lock { page, pages, .. } => i64::from(libc::munlock(at(page), size(pages))),
            Op::Resident { page, pages } => {
                let mut told = [0u8; PAGES as usize];
                i64::from(libc::mincore(at(page), size(pages), told.as_mut_ptr()))
            }
            Op::Sync { page, pages, invalidate } => {
                let flags = if invalidate { libc::MS_INVALIDATE } else { 0 };
                i64::from(libc::msync(at(page), size(pages), flags | libc::MS_ASYNC))
            }
        }
    };
    if result == -1 { Err(Errno::last()) } else { Ok(result.cast_unsigned()) }
}

/// Whether a call stays in the region, and is not one that newer kernels do better (moves of several areas since 6.17).
fn comparable(space: &AddressSpace, base: u64, op: &Op) -> bool {
    let inside = |page: u64, pages: u64| page + pages <= PAGES;
    match *op {
        // KSM is not in every kernel.
        Op::Advise { advice: libc::MADV_MERGEABLE | libc::MADV_UNMERGEABLE, .. } => false,
        Op::Map { page, pages, .. }
        | Op::Unmap { page, pages }
        | Op::Protect { page, pages, .. }
        | Op::Advise { page, pages, .. }
        | Op::Lock { page, pages, .. }
        | Op::Resident { page, pages }
        | Op::Sync { page, pages, .. } => inside(page, pages),
        Op::Move { page, old, new, to, flags } => {
            let range = base + page * PAGE..base + (page + old) * PAGE;
            let one = space.area_at(range.start).is_some_and(|area| range.end <= area.end);
            let moves = flags & libc::MREMAP_FIXED != 0;
            inside(page, old.max(new)) && inside(to, new.max(old)) && (!moves || (one && old > 0))
        }
    }
}

proptest! {
    #[test]
    fn the_tree_is_what_each_page_is(ops in all_ops()) {
        let space = space_at(BASE);
        let mut thread = FakeThread::noting();
        let mut pages = BTreeMap::new();
        for op in &ops {
            let result = apply(&space, &mut thread, BASE, op);
            model(&mut pages, BASE, op, result);
            check_invariants(&space);
            prop_assert_eq!(&coverage(&space), &pages, "after {:?} -> {:?}", op, result);
        }
    }

    #[test]
    fn what_the_host_refuses_did_not_happen(ops in ops(), errnos in prop::collection::vec(any::<bool>(), 40)) {
        let space = space_at(BASE);
        let mut thread = FakeThread::noting();
        for (op, fail) in ops.iter().zip(errnos) {
            let before = coverage(&space);
            thread.failures = if fail { vec![Errno::EACCES] } else { Vec::new() };
            let result = apply(&space, &mut thread, BASE, op);
            check_invariants(&space);
            if fail && result == Err(Errno::EACCES) {
                prop_assert_eq!(coverage(&space), before);
            }
        }
    }
}

/// In a process of its own, at addresses where the host puts nothing by itself.
#[test]
fn linux_says_the_same() {
    let name = "mm::tests::linux_says_the_same";
    if std::env::var_os("SENTRY_MM_ALONE").is_none() {
        let program = std::env::current_exe().unwrap();
        let status = std::process::Command::new(program)
            .args(["--exact", name, "--test-threads=1", "--nocapture"])
            .env("SENTRY_MM_ALONE", "1")
            .env("MALLOC_ARENA_MAX", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    // One region for Linux alone, one for the tree with the host calls that it makes.
    let (linux, ours) = (0x2000_0000_0000, 0x2100_0000_0000);
    let mut runner = proptest::test_runner::TestRunner::default();
    runner
        .run(&all_ops(), |ops| {
            for base in [linux, ours] {
                on_linux(base, &Op::Unmap { page: 0, pages: PAGES }).unwrap();
            }
            let space = space_at(ours);
            let mut thread = FakeThread::on_host();
            for op in &ops {
                if !comparable(&space, ours, op) {
                    continue;
                }
                let said = apply(&space, &mut thread, ours, op).map(|address| address.saturating_sub(ours));
                let linux_said = on_linux(linux, op).map(|address| address.saturating_sub(linux));
                prop_assert_eq!(said, linux_said, "{:?}", op);
                let ours_there = coverage(&space);
                let shifted = |pages: BTreeMap<u64, (u32, bool)>, base: u64| -> Vec<_> {
                    pages.into_iter().map(|(page, what)| (page - base, what)).collect()
                };
                prop_assert_eq!(
                    shifted(host_coverage(ours), ours),
                    shifted(ours_there.clone(), ours),
                    "{:?}",
                    op
                );
                prop_assert_eq!(shifted(host_coverage(linux), linux), shifted(ours_there, ours), "{:?}", op);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn places_go_down_and_fill_gaps() {
    let space = space_at(BASE);
    let (mut thread, limits) = (FakeThread::noting(), Limits::default());
    let mut map = |pages, hint| {
        space
            .map(&mut thread, &anonymous(hint, pages, 3, libc::MAP_PRIVATE), &limits)
            .map(|at| (at - BASE) / PAGE)
    };
    assert_eq!(map(8, 0), Ok(40));
    assert_eq!(map(8, 0), Ok(32));
    assert_eq!(map(4, BASE + 4 * PAGE), Ok(4));
    assert_eq!(map(4, BASE + 4 * PAGE), Ok(28));
    assert_eq!(map(20, 0), Ok(8));
    assert_eq!(map(5, 0), Err(Errno::ENOMEM));
    assert_eq!(map(4, 0), Ok(0));
    assert_eq!(map(1, 0), Err(Errno::ENOMEM));
    assert_eq!(space.layout().areas.count(), 1);
}

#[test]
fn limits_hold() {
    let space = space_at(BASE);
    let mut thread = FakeThread::noting();
    let private = anonymous(0, 4, 3, libc::MAP_PRIVATE);
    let tight = Limits { address_space: 3 * PAGE, ..Limits::default() };
    assert_eq!(space.map(&mut thread, &private, &tight), Err(Errno::ENOMEM));
    let tight = Limits { data: 3 * PAGE, ..Limits::default() };
    assert_eq!(space.map(&mut thread, &private, &tight), Err(Errno::ENOMEM));
    assert!(space.map(&mut thread, &anonymous(0, 4, 1, libc::MAP_PRIVATE), &tight).is_ok());
    let locks = Limits { locked: 4 * PAGE, ..Limits::default() };
    let at = space.map(&mut thread, &private, &locks).unwrap();
    assert_eq!(space.lock(&mut thread, at, 4 * PAGE, false, &locks), Ok(()));
    assert_eq!(space.lock(&mut thread, at, 4 * PAGE, false, &locks), Ok(()));
    let locked = anonymous(0, 1, 3, libc::MAP_PRIVATE | libc::MAP_LOCKED);
    assert_eq!(space.map(&mut thread, &locked, &locks), Err(Errno::EAGAIN));
    assert_eq!(space.map(&mut thread, &locked, &Limits { locked: 0, ..locks }), Err(Errno::EPERM));
    assert!(space.map(&mut thread, &locked, &Limits { may_lock: true, ..locks }).is_ok());
    assert_eq!(space.sizes().1, 5 * PAGE);
    assert_eq!(space.advise(&mut thread, at, PAGE, libc::MADV_DONTNEED), Err(Errno::EINVAL));
    space.unlock_all();
    assert_eq!(space.sizes().1, 0);
}

#[test]
fn the_heap_grows_and_shrinks() {
    let space = space_at(BASE);
    let (mut thread, limits) = (FakeThread::noting(), Limits::default());
    space.start_heap(BASE + 100, 0);
    assert_eq!(space.set_break(&mut thread, 0, &limits), BASE + 100);
    assert_eq!(space.set_break(&mut thread, BASE + 2 * PAGE + 1, &limits), BASE + 2 * PAGE + 1);
    assert_eq!(space.sizes().0, 2 * PAGE);
    assert!(String::from_utf8(space.maps()).unwrap().ends_with(" [heap]\n"));
    let small = Limits { data: 3 * PAGE, ..limits };
    assert_eq!(space.set_break(&mut thread, BASE + 9 * PAGE, &small), BASE + 2 * PAGE + 1);
    let other = anonymous(BASE + 5 * PAGE, 1, 3, libc::MAP_PRIVATE | libc::MAP_FIXED);
    space.map(&mut thread, &other, &limits).unwrap();
    assert_eq!(space.set_break(&mut thread, BASE + 9 * PAGE, &limits), BASE + 2 * PAGE + 1);
    assert_eq!(space.set_break(&mut thread, BASE + 101, &limits), BASE + 101);
    assert_eq!(space.sizes().0, PAGE);
    assert_eq!(space.set_break(&mut thread, u64::MAX, &limits), BASE + 101);
}

#[test]
fn a_stack_grows_at_a_fault() {
    let space = AddressSpace::default();
    let (mut thread, limits) = (FakeThread::noting(), Limits::default());
    let fixed = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_GROWSDOWN;
    space.map(&mut thread, &anonymous(BASE, 1, 3, fixed), &limits).unwrap();
    assert!(space.grow(&mut thread, BASE - 3 * PAGE + 5, &limits));
    assert_eq!(space.area_at(BASE).unwrap().start, BASE - 3 * PAGE);
    assert!(!space.grow(&mut thread, BASE, &limits));
    assert!(!space.grow(&mut thread, BASE - (9 << 20), &limits));
    space
        .map(&mut thread, &anonymous(BASE - (1 << 20), 1, 3, libc::MAP_PRIVATE | libc::MAP_FIXED), &limits)
        .unwrap();
    assert!(!space.grow(&mut thread, BASE - 8 * PAGE, &limits));
}

#[test]
fn numbers_at_the_edge_are_refused() {
    let space = AddressSpace::default();
    let (mut thread, limits) = (FakeThread::noting(), Limits::default());
    for number in [1, PAGE - 1, PAGE, TASK_SIZE - PAGE, TASK_SIZE, 1 << 63, u64::MAX - PAGE + 1, u64::MAX] {
        for other in [0, 1, PAGE, TASK_SIZE, 1 << 63, u64::MAX] {
            for flags in [0, libc::MAP_FIXED, libc::MAP_FIXED_NOREPLACE, libc::MAP_32BIT] {
                let mut request = anonymous(number, 0, 3, libc::MAP_PRIVATE | flags);
                request.length = other;
                let _ = space.map(&mut thread, &request, &limits);
            }
            let _ = space.unmap(&mut thread, number, other);
            let _ = space.protect(&mut thread, number, other, Protection::READ, 0, &limits);
            let _ = space.advise(&mut thread, number, other, libc::MADV_DONTNEED);
            let _ = space.lock(&mut thread, number, other, true, &limits);
            let _ = space.unlock(number, other);
            let _ = space.resident(number, other);
            let _ = space.files_in(number, other, true);
            let _ = space.grow(&mut thread, number, &limits);
            for flags in 0..8 {
                let request = RemapRequest {
                    address: number,
                    old_length: other,
                    new_length: number,
                    flags,
                    new_address: other,
                };
                let _ = space.remap(&mut thread, &request, &limits);
            }
        }
    }
    check_invariants_of_range(&space);
}

fn check_invariants_of_range(space: &AddressSpace) {
    check_invariants(space);
    let _ = Arc::new(space.smaps());
}

#[test]
fn room_that_was_freed_is_found_again() {
    let space = AddressSpace::default();
    let (mut thread, limits) = (FakeThread::noting(), Limits::default());
    let map = |thread: &mut FakeThread, index: u64| {
        let protection = if index.is_multiple_of(2) { 1 } else { 3 };
        let grows = if index.is_multiple_of(7) { libc::MAP_GROWSDOWN } else { 0 };
        space
            .map(thread, &anonymous(0, 1 + index % 3, protection, libc::MAP_PRIVATE | grows), &limits)
            .unwrap()
    };
    let places: Vec<u64> = (0..3000).map(|index| map(&mut thread, index)).collect();
    for index in (0..3000).step_by(11) {
        space.unmap(&mut thread, places[index as usize], (1 + index % 3) * PAGE).unwrap();
        check_invariants_once(&space);
        assert_eq!(map(&mut thread, index), places[index as usize], "{index}");
    }
}

fn check_invariants_once(space: &AddressSpace) {
    let layout = space.layout();
    let mut fresh = Areas::default();
    layout.areas.iter().for_each(|area| fresh.insert(area.clone()));
    let range = layout.range.start..layout.mmap_base;
    assert_eq!(layout.areas.highest_gap(&range, PAGE), fresh.highest_gap(&range, PAGE));
}
