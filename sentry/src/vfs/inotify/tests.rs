#![allow(clippy::unwrap_used)]

use super::*;
use crate::vfs::open::open;
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::{Caller, Content, Mount, Place, RenameMode, Resolve, Walk, names};

struct World {
    root: Place,
    caller: Caller,
}

impl World {
    fn new() -> Self {
        Self { root: Mount::namespace(Tmpfs::tree(None)).root_place(), caller: Caller::root() }
    }

    fn walk<'a>(&'a self, path: &'a [u8]) -> Walk<'a> {
        Walk::new(&self.caller, &self.root, &self.root, path, Resolve::default()).unwrap()
    }

    fn open(&self, path: &[u8], flags: i32) -> Arc<OpenFile> {
        open(&self.caller, &mut self.walk(path), Flags(flags.cast_unsigned()), 0o644).unwrap()
    }

    fn dentry(&self, path: &[u8]) -> Arc<Dentry> {
        self.walk(path).finish(true).unwrap().dentry
    }
}

/// Watch, mask, cookie is set, name.
fn take(file: &OpenFile) -> Vec<(i32, u32, bool, String)> {
    let mut bytes = [0; 4096];
    let Ok(count) = file.read(&mut bytes) else { return Vec::new() };
    let (mut at, mut found) = (0, Vec::new());
    while at < count {
        let word = |n: usize| u32::from_ne_bytes(bytes[at + n * 4..at + n * 4 + 4].try_into().unwrap());
        let length = word(3) as usize;
        let name = &bytes[at + 16..at + 16 + length];
        let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
        found.push((word(0).cast_signed(), word(1), word(2) != 0, name));
        at += 16 + length;
    }
    found
}

fn event(watch: i32, mask: u32, name: &str) -> (i32, u32, bool, String) {
    (watch, mask, false, name.to_owned())
}

#[test]
fn a_folder_tells_of_what_is_in_it() {
    let world = World::new();
    let file = Inotify::open(0, true).unwrap();
    let inotify = file.downcast::<Inotify>().unwrap();
    let watch = inotify.watch(&world.dentry(b"/"), mask::EVENTS & !mask::ACCESS).unwrap();
    let open = world.open(b"a", libc::O_CREAT | libc::O_RDWR);
    open.write(&world.caller, b"x").unwrap();
    open.write(&world.caller, b"y").unwrap();
    drop(open);
    drop(world.open(b"a", libc::O_WRONLY | libc::O_TRUNC));
    names::create(&world.caller, &mut world.walk(b"d"), Content::Folder, 0o755).unwrap();
    let on = |mask, name| event(watch, mask, name);
    assert_eq!(
        take(&file),
        [
            on(mask::CREATE, "a"),
            on(mask::OPEN, "a"),
            on(mask::MODIFY, "a"),
            on(mask::CLOSE_WRITE, "a"),
            on(mask::OPEN, "a"),
            on(mask::MODIFY, "a"),
            on(mask::CLOSE_WRITE, "a"),
            on(mask::CREATE | mask::ISDIR, "d"),
        ]
    );
    let (mut from, mut to) = (world.walk(b"a"), world.walk(b"d/b"));
    names::rename(&world.caller, &mut from, &mut to, RenameMode::Replace).unwrap();
    assert_eq!(take(&file), [(watch, mask::MOVED_FROM, true, "a".to_owned())]);
}

#[test]
fn a_file_that_goes_ends_its_watch_with_its_last_user() {
    let world = World::new();
    let file = Inotify::open(0, true).unwrap();
    let inotify = file.downcast::<Inotify>().unwrap();
    let open = world.open(b"a", libc::O_CREAT | libc::O_RDWR);
    let watch = inotify.watch(&world.dentry(b"a"), mask::DELETE_SELF | mask::ATTRIB).unwrap();
    names::unlink(&world.caller, &mut world.walk(b"a")).unwrap();
    assert_eq!(take(&file), [event(watch, mask::ATTRIB, "")]);
    drop(open);
    assert_eq!(take(&file), [event(watch, mask::DELETE_SELF, ""), event(watch, mask::IGNORED, "")]);
    assert_eq!(inotify.unwatch(watch), Err(Errno::EINVAL));
}

#[test]
fn masks_are_added_and_watches_made_once() {
    let world = World::new();
    let file = Inotify::open(0, true).unwrap();
    let inotify = file.downcast::<Inotify>().unwrap();
    let root = world.dentry(b"/");
    let watch = inotify.watch(&root, mask::CREATE).unwrap();
    assert_eq!(inotify.watch(&root, mask::CREATE | mask::MASK_CREATE), Err(Errno::EEXIST));
    assert_eq!(inotify.watch(&root, mask::DELETE | mask::MASK_ADD), Ok(watch));
    drop(world.open(b"a", libc::O_CREAT | libc::O_RDWR));
    names::unlink(&world.caller, &mut world.walk(b"a")).unwrap();
    assert_eq!(take(&file), [event(watch, mask::CREATE, "a"), event(watch, mask::DELETE, "a")]);
    assert_eq!(inotify.watch(&root, mask::CREATE | mask::ONESHOT), Ok(watch));
    drop(world.open(b"a", libc::O_CREAT | libc::O_RDWR));
    drop(world.open(b"b", libc::O_CREAT | libc::O_RDWR));
    assert_eq!(take(&file), [event(watch, mask::CREATE, "a"), event(watch, mask::IGNORED, "")]);
    assert_eq!(file.read(&mut [0; 64]), Err(Errno::EAGAIN));
}

#[test]
fn too_many_events_are_said_once() {
    let core = Core { uid: 0, state: Mutex::default(), queue: WaitQueue::new() };
    for number in 0..40_000u32 {
        let mask = if number % 2 == 0 { mask::OPEN } else { mask::ACCESS };
        core.push(Event { watch: 1, mask, cookie: 0, name: Vec::new() });
    }
    let state = lock(&core.state);
    assert_eq!(state.events.len(), QUEUED_MAX + 1);
    assert_eq!(state.events.back().unwrap().mask, mask::Q_OVERFLOW);
}
