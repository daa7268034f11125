//! The vDSO in this very process: mapped as a program gets it, with the host's as it lies here.

use std::time::Duration;

use super::*;
use crate::mm::test_utils::FakeThread;
use crate::time::Clocks;

/// A vDSO that is mapped here, and its functions.
struct Here {
    space: AddressSpace,
    thread: FakeThread,
    header: u64,
}

type ClockCall = extern "C" fn(i32, *mut [i64; 2]) -> i32;

impl Here {
    fn new(vdso: &Vdso, at: u64) -> Self {
        let space = AddressSpace::new(at..at + 0x100_0000, 0, None, Arc::default());
        let mut thread = FakeThread::on_host();
        let header = vdso.map(&space, &mut thread, &Limits::default()).unwrap();
        Self { space, thread, header }
    }

    fn function(&self, name: &str) -> ClockCall {
        let code = Code::linked();
        let function = code.functions.iter().find(|function| function.name == name).unwrap();
        let place =
            std::ptr::with_exposed_provenance::<()>((self.header + image::TEXT + function.start) as usize);
        // SAFETY: the function was mapped there just now, and has two arguments at most that are used.
        unsafe { std::mem::transmute::<*const (), ClockCall>(place) }
    }

    fn clock(&self, number: i32) -> (i32, [i64; 2]) {
        let mut time = [-7, -7];
        (self.function("clock_gettime")(number, &raw mut time), time)
    }
}

fn duration([seconds, nanoseconds]: [i64; 2]) -> Duration {
    assert!((0..1_000_000_000).contains(&nanoseconds), "{seconds} {nanoseconds}");
    Duration::new(u64::try_from(seconds).unwrap(), nanoseconds as u32)
}

const CLOCKS: [i32; 7] = [
    libc::CLOCK_REALTIME,
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_MONOTONIC_RAW,
    libc::CLOCK_REALTIME_COARSE,
    libc::CLOCK_MONOTONIC_COARSE,
    libc::CLOCK_BOOTTIME,
    libc::CLOCK_TAI,
];

#[test]
fn it_shows_what_the_sandbox_clocks_show() {
    let clocks = Clocks::new();
    let host = HostVdso::of_host().unwrap();
    let vdso = Vdso::new(Some(&host), clocks.coarse(), clocks.differences()).unwrap();
    let here = Here::new(&vdso, 0x3000_0000_0000);
    for number in CLOCKS {
        let mut last = Duration::ZERO;
        for _ in 0..20_000 {
            let (result, time) = here.clock(number);
            let (now, after) = (duration(time), clocks.of_number(number, false).unwrap());
            // Never backwards from one way to the other.
            assert_eq!(result, 0);
            assert!(last <= now && now <= after, "{number}: {last:?} {now:?} {after:?}");
            last = after;
        }
    }
    // What has no address is the program's own fault; what is no clock of the wall is a call, here of the host's.
    assert_eq!(here.clock(libc::CLOCK_THREAD_CPUTIME_ID).0, 0);
    assert_eq!((here.clock(99).0, here.clock(-1_000_000).0), (-libc::EINVAL, -libc::EINVAL));
    let mut resolution = [0; 2];
    for number in CLOCKS {
        let coarse = [libc::CLOCK_REALTIME_COARSE, libc::CLOCK_MONOTONIC_COARSE].contains(&number);
        let expected = if coarse { clocks.coarse() } else { Duration::from_nanos(1) };
        assert_eq!(here.function("clock_getres")(number, &raw mut resolution), 0);
        assert_eq!(duration(resolution), expected);
        assert_eq!(here.function("clock_getres")(number, std::ptr::null_mut()), 0);
    }
    assert_eq!(here.function("clock_getres")(99, &raw mut resolution), -libc::EINVAL);
}

#[test]
fn differences_are_added_with_their_carry() {
    let host = HostVdso::of_host().unwrap();
    for (n, more) in [0, 1, 999_999_999, -1, -999_999_999, 1_500_000_000, 1 << 60].into_iter().enumerate() {
        let differences = Differences { monotonic: more, raw: more };
        let vdso = Vdso::new(Some(&host), Duration::from_millis(4), differences).unwrap();
        let here = Here::new(&vdso, 0x3100_0000_0000 + ((n as u64) << 32));
        let shown = |number| {
            let time: [i64; 2] = here.clock(number).1;
            duration(time);
            i128::from(time[0]) * 1_000_000_000 + i128::from(time[1]) - i128::from(more)
        };
        for number in [libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_RAW, libc::CLOCK_BOOTTIME] {
            for _ in 0..1000 {
                let id = if number == libc::CLOCK_BOOTTIME { libc::CLOCK_MONOTONIC } else { number };
                let read = || {
                    let now = nix::time::clock_gettime(nix::time::ClockId::from_raw(id)).unwrap();
                    i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec())
                };
                let (before, now, after) = (read(), shown(number), read());
                assert!(before <= now && now <= after, "{more} {number}: {before} {now} {after}");
            }
        }
    }
}

#[test]
fn without_the_hosts_all_are_calls() {
    let vdso = Vdso::new(None, Duration::from_millis(4), Differences { monotonic: 5 << 40, raw: 0 }).unwrap();
    let here = Here::new(&vdso, 0x3200_0000_0000);
    // The call is this process' own: of the host, which has nothing to add.
    for number in CLOCKS {
        assert_eq!(here.clock(number).0, 0);
    }
    let mut time = [0; 2];
    assert_eq!(here.function("gettimeofday")(0, std::ptr::null_mut()), 0);
    assert_eq!(here.function("getcpu")(0, std::ptr::null_mut()), 0);
    assert_eq!(here.function("clock_gettime")(1, &raw mut time), 0);
    assert!(Duration::from_secs(time[0].cast_unsigned()) < Duration::from_nanos(5 << 40) * 100);
}

/// A host whose clock always shows the same, after a while.
extern "C" fn host<const SECONDS: i64>(_clock: i32, time: *mut [i64; 2]) -> i32 {
    for _ in 0..50 {
        std::hint::spin_loop();
    }
    // SAFETY: the vDSO has room for it on its stack.
    unsafe { time.write([SECONDS, 5]) };
    0
}

/// Data of a host whose clock shows so much, and of a sandbox where that is 7 seconds.
fn data_of(number: u64, seconds: i64, clock: ClockCall) -> Vec<u8> {
    let differences = Differences { monotonic: (7 - seconds) * 1_000_000_000, raw: 0 };
    let mut page = data::page(None, number, Duration::from_millis(4), differences);
    page[data::CLOCK_GETTIME..][..8].copy_from_slice(&(clock as usize).to_le_bytes());
    page
}

/// A thread runs its functions while all its data is exchanged beneath it, as it is when a container is restored.
#[test]
fn who_is_stopped_in_it_goes_on_with_other_data() {
    let make = |round: u64| {
        let page = match round % 3 {
            0 => data_of(round, 1000, host::<1000>),
            1 => data_of(round, 50_000, host::<50_000>),
            _ => data_of(round, 3, host::<3>),
        };
        Vdso::with_data(page).unwrap()
    };
    let mut here = Here::new(&make(0), 0x3300_0000_0000);
    let call = here.function("clock_gettime");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = std::collections::BTreeSet::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let mut time = [0; 2];
                assert_eq!(call(libc::CLOCK_MONOTONIC, &raw mut time), 0);
                seen.insert(time);
            }
            seen
        });
        for round in 1..4000 {
            let source = Source::File(make(round).part(VdsoPart::Data), 0);
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
            let (address, protection) = (here.header - PAGE, Protection::READ);
            let request = MapRequest { address, length: PAGE, protection, flags, source };
            here.space.map(&mut here.thread, &request, &Limits::default()).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // One host's time with the difference of another would be another time.
        assert_eq!(reader.join().unwrap().into_iter().collect::<Vec<_>>(), [[7, 5]]);
    });
}

#[test]
fn nobody_can_change_it() {
    let vdso = Vdso::new(None, Duration::ZERO, Differences::default()).unwrap();
    let (file, offset) = vdso.part(VdsoPart::Data).host_file().unwrap();
    assert_eq!(offset, 0);
    assert_eq!(nix::sys::uio::pwrite(&file, b"x", 0), Err(nix::errno::Errno::EPERM));
    assert!(nix::unistd::ftruncate(&file, 0).is_err());
    let shared = MapRequest {
        address: 0,
        length: PAGE,
        protection: Protection::READ | Protection::WRITE,
        flags: libc::MAP_SHARED,
        source: Source::File(vdso.part(VdsoPart::Image), 0),
    };
    let space = AddressSpace::new(0x3400_0000_0000..0x3400_0100_0000, 0, None, Arc::default());
    let mut thread = FakeThread::on_host();
    assert!(space.map(&mut thread, &shared, &Limits::default()).is_err());
    // A guest's own page of code can be changed by it, as for breakpoints; that of the data not even so.
    let header = vdso.map(&space, &mut thread, &Limits::default()).unwrap();
    let write = Protection::READ | Protection::WRITE;
    let mut protect = |at| space.protect(&mut thread, at, PAGE, write, 0, &Limits::default());
    assert_eq!((protect(header), protect(header - PAGE)), (Ok(()), Err(Errno::EACCES)));
    let maps = String::from_utf8(space.maps()).unwrap();
    let names: Vec<_> = maps.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(names, ["[vvar]", "[vdso]"], "{maps}");
    assert!(maps.lines().all(|line| line.contains(" 00000000 00:00 0 ")), "{maps}");
    // It is as long as it is.
    let grow = crate::mm::RemapRequest {
        address: header - PAGE,
        old_length: PAGE,
        new_length: 2 * PAGE,
        flags: libc::MREMAP_MAYMOVE,
        new_address: 0,
    };
    assert_eq!(space.remap(&mut thread, &grow, &Limits::default()), Err(Errno::EFAULT));
}
