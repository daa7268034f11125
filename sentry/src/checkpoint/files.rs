//! Open files: each kind as it is kept, and opened again.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::image::{Reader, Source, Writer};
use super::state::{SavedFile, SavedKind, SavedPipe, SavedWatch, Stamp, State};
use super::{CheckpointError, memory};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::net::{self, SocketFile, inet::Tcp};
use crate::task::signal::SignalSet;
use crate::time::{Clock, Setting, TimerFd};
use crate::vfs::epoll::Epoll;
use crate::vfs::eventfd::EventFd;
use crate::vfs::host_io::HostIo;
use crate::vfs::open::open_place;
use crate::vfs::pipe::{Pipe, PipeFile};
use crate::vfs::signalfd::SignalFd;
use crate::vfs::timerfd::TimerFile;
use crate::vfs::{
    AttributeChange, Attributes, Caller, File, FileKind, Flags, FsContext, Inode, OpenFile, Place, Resolve,
    Walk, anon, device_parts, inotify, tmpfs,
};

/// What a container's first process has as 0, 1 and 2.
pub(crate) type Streams = [Weak<dyn Inode>; 3];

/// Open files that were met, in the order of their numbers.
#[derive(Default)]
pub(super) struct Files {
    numbers: BTreeMap<u64, u32>,
    /// With where each was met first.
    met: Vec<(Arc<OpenFile>, String)>,
    /// Which are mapped without being shared: pages of them are not kept.
    mapped: BTreeMap<u32, ()>,
    pipes: Vec<Arc<Pipe>>,
    saved_pipes: Vec<SavedPipe>,
}

impl Files {
    /// The number of an open file. `place` says where it was met.
    pub(super) fn number(&mut self, file: &Arc<OpenFile>, place: impl FnOnce() -> String) -> u32 {
        let next = u32::try_from(self.met.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(file.id()).or_insert(next);
        if number == next {
            self.met.push((Arc::clone(file), place()));
        }
        number
    }

    pub(super) fn is_mapped(&mut self, number: u32) {
        self.mapped.insert(number, ());
    }

    /// Saves all: those that cannot be are told with where they were met.
    pub(super) fn save(
        mut self,
        out: &mut Writer,
        (root, streams): (&Place, &Streams),
        refused: &mut Vec<String>,
    ) -> Result<(Vec<SavedFile>, Vec<SavedPipe>), CheckpointError> {
        let mut saved = Vec::new();
        let mut next = 0;
        // A file that is waited for may be met by its epoll alone.
        while let Some((file, place)) = self.met.get(next).cloned() {
            let number = u32::try_from(next).unwrap_or(u32::MAX);
            let mapped = self.mapped.contains_key(&number);
            let kind = match self.kind(out, &file, (root, streams), mapped)? {
                Ok(kind) => kind,
                Err(what) => {
                    refused.push(format!("{place}: {what}"));
                    SavedKind::Reset(0)
                }
            };
            if file.inode().locks().is_some_and(|locks| locks.any()) {
                refused.push(format!("{place}: a file on which somebody holds a lock or a lease"));
            }
            if file.flags().has(libc::O_ASYNC) {
                refused.push(format!("{place}: a file whose news is told by a signal (O_ASYNC)"));
            }
            if inotify::watches_folder(&file) {
                refused.push(format!("{place}: a folder whose news is told by a signal (F_NOTIFY)"));
            }
            saved.push(SavedFile { flags: file.flags().0, position: file.position(), kind });
            next += 1;
        }
        Ok((saved, self.saved_pipes))
    }

    fn kind(
        &mut self,
        out: &mut Writer,
        file: &Arc<OpenFile>,
        (root, streams): (&Place, &Streams),
        mapped: bool,
    ) -> Result<Result<SavedKind, String>, CheckpointError> {
        if let Some(place) = file.place() {
            let top = place.dentry.parent().is_none() && !place.dentry.unlinked();
            if super::tree::is_shared(&place.dentry) && !top {
                let path = place.path(root).unwrap_or_default();
                let shown = String::from_utf8_lossy(&path).into_owned();
                return Ok(Err(format!("{shown}, in memory that other containers of the pod have, too")));
            }
            return match by_path(file, place, root, mapped) {
                Err(what) if place.dentry.unlinked() => self.nameless(out, file, what),
                kind => Ok(kind),
            };
        }
        if let Some(end) = file.downcast::<PipeFile>() {
            return Ok(Ok(SavedKind::Pipe(self.pipe(end.pipe(), file)?)));
        }
        if let Some(event) = file.downcast::<EventFd>() {
            let (count, semaphore) = event.saved();
            return Ok(Ok(SavedKind::EventFd { count, semaphore }));
        }
        if let Some(timer) = file.downcast::<TimerFile>() {
            let (monotonic, Setting { value, interval }, expirations) = timer.timer().saved();
            return Ok(Ok(SavedKind::TimerFd { monotonic, value, interval, expirations }));
        }
        if let Some(signals) = file.downcast::<SignalFd>() {
            return Ok(Ok(SavedKind::SignalFd(signals.saved().0)));
        }
        if let Some(epoll) = file.downcast::<Epoll>() {
            return Ok(Ok(SavedKind::Epoll(self.watches(epoll))));
        }
        if file.downcast::<HostIo>().is_some() {
            let number = streams
                .iter()
                .position(|stream| std::ptr::addr_eq(stream.as_ptr(), Arc::as_ptr(file.inode())));
            let number = number.and_then(|number| u8::try_from(number).ok());
            return Ok(number.map(SavedKind::Stream).ok_or_else(|| {
                "a descriptor of the host that is none of the first process' streams".to_owned()
            }));
        }
        if let Some(socket) = file.downcast::<SocketFile>() {
            return Ok(socket_kind(socket));
        }
        self.nameless(out, file, label(file))
    }

    fn watches(&mut self, epoll: &Epoll) -> Vec<SavedWatch> {
        let all = epoll.saved().into_iter().map(|(fd, file, events, mode, data)| {
            let file = self.number(&file, || format!("descriptor {fd}, of an epoll alone"));
            SavedWatch { fd, file, events, mode, data }
        });
        all.collect()
    }

    fn pipe(&mut self, pipe: &Arc<Pipe>, end: &OpenFile) -> Result<u32, CheckpointError> {
        let known = self.pipes.iter().position(|known| Arc::ptr_eq(known, pipe));
        let number = known.unwrap_or(self.pipes.len());
        if known.is_none() {
            let (capacity, slots) = pipe.saved();
            let Attributes { mode, uid, gid, .. } = end.inode().attributes().map_err(host("a pipe"))?;
            self.pipes.push(Arc::clone(pipe));
            self.saved_pipes.push(SavedPipe { capacity, mode, owner: (uid, gid), slots });
        }
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// A regular file in memory that has no name.
    fn nameless(
        &self,
        out: &mut Writer,
        file: &Arc<OpenFile>,
        what: String,
    ) -> Result<Result<SavedKind, String>, CheckpointError> {
        let attributes = file.inode().attributes().map_err(host("a file"))?;
        let seals = file.file().seals();
        // Two open files of one inode would become two inodes.
        let alone =
            self.met.iter().filter(|(other, _)| Arc::ptr_eq(other.inode(), file.inode())).count() == 1;
        if attributes.kind != FileKind::Regular || !file.file().seekable() || !alone {
            return Ok(Err(what));
        }
        let Ok(seals) = seals else { return Ok(Err(what)) };
        let contents = super::tree::contents(out, file.file(), attributes.size)?;
        let owner = (attributes.uid, attributes.gid);
        let (mode, size) = (attributes.mode, attributes.size);
        Ok(Ok(SavedKind::Memory { mode, owner, size, seals, extents: contents }))
    }
}

fn host(what: &'static str) -> impl FnOnce(Errno) -> CheckpointError {
    move |errno| CheckpointError::Host { what: what.to_owned(), errno }
}

fn label(file: &OpenFile) -> String {
    match file.inode().downcast::<anon::AnonInode>() {
        Some(inode) => inode.label(),
        None => "a file of a kind that is not kept".to_owned(),
    }
}

fn socket_kind(file: &SocketFile) -> Result<SavedKind, String> {
    let common = file.common();
    match file.socket().downcast::<Tcp>() {
        Some(tcp) => Ok(tcp.saved().map_or(SavedKind::Reset(common.domain), SavedKind::Tcp)),
        None => Err(format!("a socket of family {} and type {}", common.domain, common.kind)),
    }
}

/// A file that has a name, and is found by it again.
fn by_path(file: &OpenFile, place: &Place, root: &Place, mapped: bool) -> Result<SavedKind, String> {
    let path = place.path(root);
    let shown = || String::from_utf8_lossy(&path.clone().unwrap_or_default()).into_owned();
    let path = path.clone().ok_or("a file outside of the container's mounts")?;
    if place.dentry.unlinked() {
        return Err(format!("{}, which has been removed", shown()));
    }
    let inode = file.inode();
    let fs = place.dentry.tree().fs.name();
    let attributes = inode.attributes().map_err(|errno| format!("{}: {errno}", shown()))?;
    if !file.flags().path() {
        let (major, _) = device_parts(attributes.rdev);
        let number =
            path.split(|byte| *byte == b'/').any(|name| name.first().is_some_and(u8::is_ascii_digit));
        match attributes.kind {
            FileKind::Fifo => return Err(format!("{}, a pipe with a name", shown())),
            FileKind::CharDevice if fs == "devpts" || [4, 5, 136].contains(&major) => {
                return Err(format!("{}, a terminal", shown()));
            }
            FileKind::Regular if fs == "proc" && number => {
                return Err(format!("{}, a file of a process", shown()));
            }
            _ => {}
        }
    }
    let found = walk(&Caller::root(), root, &path);
    if !found.is_ok_and(|found| {
        Arc::ptr_eq(found.dentry.inode(), inode) || same(found.dentry.inode(), &attributes)
    }) {
        return Err(format!("{}, whose name leads to another file now", shown()));
    }
    let (seconds, nanoseconds) = (attributes.modified.seconds, attributes.modified.nanoseconds);
    let kept = mapped && attributes.kind == FileKind::Regular;
    let stamp = kept.then_some(Stamp { size: attributes.size, modified: (seconds, nanoseconds) });
    Ok(SavedKind::Path { path, stamp })
}

fn same(inode: &Arc<dyn Inode>, attributes: &Attributes) -> bool {
    inode.attributes().is_ok_and(|other| (other.device, other.inode) == (attributes.device, attributes.inode))
}

pub(super) fn walk(caller: &Caller, root: &Place, path: &[u8]) -> Result<Place, Errno> {
    Walk::new(caller, root, root, path, Resolve::default())?.finish(false)
}

/// Open files of a container that is made anew.
pub(super) struct Opened {
    pub(super) files: Vec<Arc<OpenFile>>,
}

/// Where files are opened again.
pub(super) struct Reopening<'a, S> {
    pub(super) image: &'a Reader<S>,
    pub(super) kernel: &'a Kernel,
    pub(super) root: &'a Place,
    pub(super) streams: &'a [Option<Arc<dyn Inode>>; 3],
}

impl<S: Source> Reopening<'_, S> {
    /// Opens all.
    pub(super) fn open(&self, state: &State) -> Result<Opened, CheckpointError> {
        let mut pipes = Vec::new();
        for saved in &state.pipes {
            let made = Pipe::restored(saved.capacity, &saved.slots);
            let (pipe, inode) = made.ok_or(CheckpointError::State("a pipe"))?;
            let (uid, gid) = saved.owner;
            let owner = AttributeChange {
                mode: Some(saved.mode),
                uid: Some(uid),
                gid: Some(gid),
                ..Default::default()
            };
            inode.change(&owner).map_err(host("a pipe"))?;
            pipes.push((pipe, inode));
        }
        let mut files = Vec::with_capacity(state.files.len());
        for saved in &state.files {
            let file = self.one(saved, &pipes)?;
            file.set_flags(saved.flags);
            file.restore_position(saved.position);
            files.push(file);
        }
        for (saved, file) in state.files.iter().zip(&files) {
            if let (SavedKind::Epoll(watches), Some(epoll)) = (&saved.kind, file.downcast::<Epoll>()) {
                for watch in watches {
                    let watched = pick(&files, watch.file)?;
                    let how = (watch.events, watch.mode, watch.data);
                    epoll.restore((watch.fd, watched), how).map_err(host("what an epoll waits for"))?;
                }
            }
        }
        Ok(Opened { files })
    }

    fn one(
        &self,
        saved: &SavedFile,
        pipes: &[(Arc<Pipe>, Arc<dyn Inode>)],
    ) -> Result<Arc<OpenFile>, CheckpointError> {
        let flags = Flags(saved.flags);
        match &saved.kind {
            SavedKind::Path { path, stamp } => self.by_path(path, stamp.as_ref(), flags),
            SavedKind::Stream(number) => {
                let stream = self.streams.get(usize::from(*number)).and_then(Option::as_ref);
                let stream = stream.ok_or(CheckpointError::Streams)?;
                let file = Arc::clone(stream).open(flags, &Caller::root()).map_err(host("a stream"))?;
                Ok(OpenFile::nameless(Arc::clone(stream), file, flags))
            }
            SavedKind::Pipe(number) => {
                let found = usize::try_from(*number).ok().and_then(|number| pipes.get(number));
                let (pipe, inode) = found.ok_or(CheckpointError::State("a pipe"))?;
                Ok(pipe.end(inode, flags))
            }
            SavedKind::EventFd { count, semaphore } => Ok(EventFd::restored(*count, *semaphore, flags)),
            SavedKind::TimerFd { monotonic, value, interval, expirations } => {
                let clock = if *monotonic { Clock::Monotonic } else { Clock::Realtime };
                let timer = TimerFd::new(&self.kernel.timers, self.kernel.clocks.clone(), &clock);
                timer.restore(Setting { value: *value, interval: *interval }, *expirations);
                Ok(TimerFile::open(timer, flags.nonblocking()))
            }
            SavedKind::SignalFd(wanted) => Ok(SignalFd::restored(SignalSet(*wanted), flags)),
            SavedKind::Epoll(_) => Ok(Epoll::open()),
            SavedKind::Memory { mode, owner, size, seals, extents } => {
                let file = tmpfs::memfd(*mode, owner.0, owner.1, 0).map_err(host("a file in memory"))?;
                super::tree::put_contents(self.image, file.file(), file.inode(), (*size, extents))?;
                if *seals != 0 {
                    file.file().add_seals(*seals).map_err(host("seals of a file"))?;
                }
                Ok(file)
            }
            SavedKind::Tcp(tcp) => self.tcp(tcp, flags),
            SavedKind::Reset(domain) => {
                let socket = self.socket(*domain)?;
                let tcp = socket.downcast::<Tcp>().ok_or(CheckpointError::State("a socket"))?;
                tcp.become_reset().map_err(host("a socket"))?;
                Ok(SocketFile::open(socket, flags.nonblocking()))
            }
        }
    }

    fn context(&self) -> net::Context {
        let fs = FsContext::new(self.root.clone());
        let net = Arc::clone(&self.kernel.net);
        net::Context { net, caller: Caller::root(), root: fs.root(), cwd: fs.cwd() }
    }

    fn socket(&self, domain: i32) -> Result<Arc<dyn net::Socket>, CheckpointError> {
        if ![libc::AF_INET, libc::AF_INET6].contains(&domain) {
            return Err(CheckpointError::State("a socket"));
        }
        net::create(&self.context(), [domain, libc::SOCK_STREAM, 0]).map_err(host("a socket"))
    }

    fn tcp(&self, saved: &super::state::SavedTcp, flags: Flags) -> Result<Arc<OpenFile>, CheckpointError> {
        let socket = self.socket(saved.domain)?;
        *crate::sync::lock(&socket.common().options) = saved.options.clone().bounded();
        if let Some(local) = saved.local {
            let context = self.context();
            let address = net::address::Address::of_domain(saved.domain, local);
            let what = || format!("the address {local} of a socket");
            let fail = |errno| CheckpointError::Host { what: what(), errno };
            socket.bind(&context, &address).map_err(fail)?;
            if let Some(backlog) = saved.backlog {
                socket.listen(&context, i32::try_from(backlog).unwrap_or(i32::MAX)).map_err(fail)?;
            }
        }
        Ok(SocketFile::open(socket, flags.nonblocking()))
    }

    fn by_path(
        &self,
        path: &[u8],
        stamp: Option<&Stamp>,
        flags: Flags,
    ) -> Result<Arc<OpenFile>, CheckpointError> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        let fail = |errno| CheckpointError::Host { what: format!("opening {}", shown()), errno };
        let caller = Caller::root();
        let place = walk(&caller, self.root, path).map_err(fail)?;
        if flags.path() {
            return Ok(OpenFile::path_only(place, flags));
        }
        let attributes = place.dentry.inode().attributes().map_err(fail)?;
        if attributes.kind == FileKind::Fifo {
            return Err(CheckpointError::State("a pipe with a name"));
        }
        if let Some(stamp) = stamp {
            let modified = (attributes.modified.seconds, attributes.modified.nanoseconds);
            if stamp.size != attributes.size || stamp.modified != modified {
                return Err(CheckpointError::Changed(shown()));
            }
        }
        open_place(&caller, place, flags).map_err(fail)
    }
}

pub(super) fn pick<T>(list: &[T], number: u32) -> Result<&T, CheckpointError> {
    let found = usize::try_from(number).ok().and_then(|number| list.get(number));
    found.ok_or(CheckpointError::State("a number of something that is not there"))
}

/// Adds what a file holds to the image.
pub(super) fn read_file(
    out: &mut Writer,
    file: &dyn File,
    size: u64,
    extents: &mut Vec<super::state::Extent>,
) -> Result<(), CheckpointError> {
    let mut part = vec![0; super::image::PART];
    let mut at = 0;
    while at < size {
        at = match file.seek_data(at, false, size) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => return Ok(()),
            Err(errno) => return Err(host("reading a file")(errno)),
        };
        // Whole pages, as holes are.
        let aligned = at - at % crate::mm::PAGE;
        let count = file.read(&mut part, aligned).map_err(host("reading a file"))?;
        if count == 0 {
            return Ok(());
        }
        memory::put(out, extents, (aligned, part.get(..count).unwrap_or_default()), true)?;
        at = aligned.saturating_add(count as u64);
    }
    Ok(())
}
