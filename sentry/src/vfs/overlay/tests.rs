//! An overlay is what a folder of the host with the same files is, but that it does not rename folders of lower layers.

use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::*;
use crate::gofer::{self, Client};
use crate::vfs::host::{HostFs, Sharing};
use crate::vfs::model::{Host, Op, Sentry, op};

/// What the lower layer holds.
fn fill(host: &Host) {
    let at = |path: &str| path.to_owned();
    let ops = [
        Op::Mkdir(at("a"), 0o755),
        Op::Mkdir(at("a/b"), 0o2775),
        Op::Mkdir(at("c"), 0o755),
        Op::Write(at("a/a"), libc::O_CREAT, 0, 10),
        Op::Write(at("a/b/c"), libc::O_CREAT, 5000, 5000),
        Op::Write(at("c/a"), libc::O_CREAT, 0, 1),
        Op::Symlink(at("a/b"), at("b")),
        Op::Fifo(at("c/c")),
    ];
    for op in &ops {
        host.apply(op).unwrap();
    }
}

fn over(lower: &Host) -> Sentry {
    let root = OwnedFd::from(std::fs::File::open(lower.root()).unwrap());
    let client = Client::connect(gofer::within(root, false).unwrap()).unwrap();
    let lower = HostFs::new(client, 0, false, Sharing::Exclusive).unwrap();
    Sentry::new(Overlay::in_memory(vec![lower.root()], None).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn does_what_the_host_does(ops in prop::collection::vec(op(), 1..50)) {
        let (lower, host) = (Host::new(), Host::new());
        fill(&lower);
        fill(&host);
        let before = lower.tree();
        let sentry = over(&lower);
        for op in &ops {
            let ours = sentry.apply(op);
            if ours != Err(Errno::EXDEV) {
                prop_assert_eq!(ours, host.apply(op), "{:?}", op);
            }
        }
        prop_assert_eq!(sentry.tree(), host.tree());
        prop_assert_eq!(lower.tree(), before);
    }
}

#[test]
fn a_folder_made_anew_shows_nothing_of_the_old_one() {
    let lower = Host::new();
    fill(&lower);
    let sentry = over(&lower);
    let at = |path: &str| path.to_owned();
    for path in ["c/a", "c/c"] {
        sentry.apply(&Op::Unlink(at(path))).unwrap();
    }
    sentry.apply(&Op::Rmdir(at("c"))).unwrap();
    assert_eq!(sentry.apply(&Op::Read(at("c"), 0)), Err(Errno::ENOENT));
    sentry.apply(&Op::Mkdir(at("c"), 0o755)).unwrap();
    assert_eq!(sentry.apply(&Op::Read(at("c/a"), 0)), Err(Errno::ENOENT));
    assert_eq!(
        sentry.apply(&Op::Rename(at("a"), at("n"), crate::vfs::RenameMode::Replace)),
        Err(Errno::EXDEV)
    );
    sentry.apply(&Op::Rename(at("c"), at("n"), crate::vfs::RenameMode::Replace)).unwrap();
}

#[test]
fn many_at_once_neither_hang_nor_break_anything() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let lower = Host::new();
    fill(&lower);
    let before = lower.tree();
    let sentry = over(&lower);
    let mut runner = TestRunner::deterministic();
    let mut some =
        || -> Vec<Op> { (0..3000).map(|_| op().new_tree(&mut runner).unwrap().current()).collect() };
    let work: Vec<_> = (0..4).map(|_| some()).collect();
    std::thread::scope(|scope| {
        for ops in &work {
            scope.spawn(|| ops.iter().for_each(|op| drop(sentry.apply(op))));
        }
    });
    sentry.tree();
    assert_eq!(lower.tree(), before);
}
