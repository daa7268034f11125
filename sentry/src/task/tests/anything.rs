//! Whatever a program hands over, the sentry does not panic.

use proptest::prelude::*;

use super::*;
use crate::call::Call;
use crate::task::signal::SignalInfo;

const MEMORY: usize = 16 << 10;

fn argument() -> impl Strategy<Value = u64> {
    let edges =
        [0, 1, 2, 8, 48, 64, 88, 128, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX, u64::MAX - 8];
    let place = (0..MEMORY as u64).prop_map(|at| BASE + at);
    prop_oneof![
        proptest::sample::select(edges.to_vec()),
        0..70_u64,
        (0..64_u32).prop_map(|bit| 1 << bit),
        place.clone(),
        place.prop_map(|at| at & !7),
        any::<u64>(),
        any::<i32>().prop_map(|value| i64::from(value).cast_unsigned()),
    ]
}

/// `sigsuspend` may block the signal that is to end it; `fallocate` takes as much of the machine's memory as files in memory may have.
const ENDLESS: [i64; 2] = [libc::SYS_rt_sigsuspend, libc::SYS_fallocate];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_call_panics(
        calls in prop::collection::vec((0..470_usize, prop::array::uniform6(argument())), 100..400),
        memory in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], MEMORY),
    ) {
        let kernel = Kernel::for_test();
        let first = Task::for_test(&kernel);
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(MEMORY);
        thread.write(BASE, &memory);
        let action = SigAction { handler: HANDLER, ..SigAction::default() };
        let ours = kernel.calls.iter().flatten().filter(|entry| !ENDLESS.contains(&(entry.number as i64)));
        let ours = ours.copied().collect::<Vec<_>>();
        for (number, arguments) in calls {
            // A signal is always there: nothing waits for long.
            task.set_action(libc::SIGUSR1, action).unwrap();
            task.set_signal_mask(SignalSet::EMPTY);
            let _ = task.send_signal(SignalInfo::kernel(libc::SIGUSR1));
            let entry = ours[number % ours.len()];
            let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
            let _ = (entry.handler)(&mut call, arguments);
        }
        first.exit_group(0);
        task.exit_group(0);
    }

    #[test]
    fn no_memory_is_a_frame_that_panics(memory in prop::collection::vec(any::<u8>(), 1024), rsp in argument()) {
        let mut thread = FlatThread::new(MEMORY);
        thread.write(BASE, &memory);
        thread.regs().rsp = rsp;
        let _ = crate::task::signal::pop_frame(&mut thread);
    }
}
