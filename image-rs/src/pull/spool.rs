//! A layer between its download and its unpacking: a file without a name, written at one end and read at the other.
//!
//! The reader follows the writer, so that unpacking begins with the first bytes; what was read is given back to the file system; and
//! a writer that is too far ahead waits, which stops the network. So memory and disk hold a bounded piece of each layer that
//! may be read before all of it is there, and one layer may be fetched ahead of the one that is unpacked.
//!
//! The reader sees what the writer let through ([`Spool::release`]) and nothing else, and the end only when the writer has found everything
//! in order. When bytes are let through says [`crate::layer::LayerPlan::gate`].

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FallocateFlags, fallocate};

/// Bytes that are given back to the file system at once.
const GIVE_BACK: u64 = 4 << 20;

/// How a layer's download ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All of it is there, and it is what the manifest names.
    Checked,
    /// It will not come.
    Failed,
}

#[derive(Debug)]
struct State {
    file: Option<Arc<File>>,
    written: u64,
    /// How far the reader may read.
    released: u64,
    read: u64,
    /// Whether the reader still wants bytes.
    wanted: bool,
    end: Option<End>,
}

/// Both ends share one.
#[derive(Debug)]
pub(crate) struct Spool {
    state: Mutex<State>,
    changed: Condvar,
    /// Told of the end: for those that wait for it and are no thread.
    ended: tokio::sync::watch::Sender<Option<End>>,
    /// How far what is let through may be ahead of the reader; what is not let through yet comes on top, else both would wait.
    ahead: u64,
}

impl Spool {
    pub(crate) fn new(ahead: u64) -> Self {
        let state = State { file: None, written: 0, released: 0, read: 0, wanted: true, end: None };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            ended: tokio::sync::watch::Sender::new(None),
            ahead: ahead.max(1),
        }
    }

    // The state is whole between any two statements: a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the file, in `folder`; it has no name there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn open(&self, folder: &Path, name: &str) -> io::Result<()> {
        let path = folder.join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        self.lock().file = Some(Arc::new(file));
        Ok(())
    }

    /// Appends `piece`, which the reader does not see yet; waits while the writer is too far ahead. Gives `false` when it ended meanwhile.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, piece: &[u8]) -> io::Result<bool> {
        let mut state = self.lock();
        while state.end.is_none() && state.wanted && state.released - state.read >= self.ahead {
            state = self.wait(state);
        }
        if state.end.is_some() {
            return Ok(false);
        }
        // Nobody reads it: the writer goes on for the digest's sake.
        if !state.wanted {
            return Ok(true);
        }
        let (file, at) = (state.file.clone(), state.written);
        drop(state);
        if let Some(file) = file {
            file.write_all_at(piece, at)?;
        }
        self.lock().written += piece.len() as u64;
        Ok(true)
    }

    /// Lets the reader have all that was written.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        state.released = state.written;
        drop(state);
        self.changed.notify_all();
    }

    /// Forgets what the reader does not see yet: other bytes come in its place.
    pub(crate) fn rewind(&self) {
        let mut state = self.lock();
        state.written = state.released;
    }

    /// Ends it; the first end counts. What was checked is let through.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.lock();
        if *state.end.get_or_insert(end) == End::Checked {
            state.released = state.written;
        }
        drop(state);
        self.changed.notify_all();
        self.ended.send_if_modified(|told| told.replace(end).is_none());
    }

    /// The reader wants no more.
    fn abandon(&self) {
        self.lock().wanted = false;
        self.changed.notify_all();
    }

    /// Waits for the end without keeping a thread.
    pub(crate) async fn ended(&self) -> End {
        let mut receiver = self.ended.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(End::Failed),
            Err(_) => End::Failed,
        }
    }

    /// Reads what was let through; blocks while there is nothing.
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<usize> {
        let mut state = self.lock();
        let (file, there) = loop {
            match (state.released - at, state.end) {
                (_, Some(End::Failed)) => return Err(io::Error::other("the rest of the layer did not come")),
                (0, Some(End::Checked)) => return Ok(0),
                (0, None) => state = self.wait(state),
                (there, _) => break (state.file.clone(), there),
            }
        };
        drop(state);
        let Some(file) = file else { return Ok(0) };
        let count = out.len().min(usize::try_from(there).unwrap_or(usize::MAX));
        file.read_exact_at(&mut out[..count], at)?;
        Ok(count)
    }

    fn was_read(&self, from: u64, to: u64) {
        let mut state = self.lock();
        state.read = to;
        let file = state.file.clone();
        drop(state);
        self.changed.notify_all();
        let (first, last) = (from / GIVE_BACK, to / GIVE_BACK);
        if first == last {
            return;
        }
        let range = (i64::try_from(first * GIVE_BACK), i64::try_from((last - first) * GIVE_BACK));
        if let (Some(file), (Ok(offset), Ok(length))) = (file, range) {
            // A file system that cannot do this keeps the bytes until the layer is done.
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&*file, flags, offset, length);
        }
    }
}

/// Reads a spool from its beginning, once.
pub(crate) struct SpoolReader {
    spool: Arc<Spool>,
    at: u64,
}

impl SpoolReader {
    pub(crate) fn new(spool: Arc<Spool>) -> Self {
        Self { spool, at: 0 }
    }
}

impl Read for SpoolReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let count = self.spool.read(self.at, out)?;
        let from = self.at;
        self.at += count as u64;
        self.spool.was_read(from, self.at);
        Ok(count)
    }
}

impl Drop for SpoolReader {
    fn drop(&mut self) {
        self.spool.abandon();
    }
}

/// The spools of an image; all of them end when the pull does, so that no thread waits for what nobody sends.
pub(crate) struct Spools(pub(crate) Vec<Arc<Spool>>);

impl Drop for Spools {
    fn drop(&mut self) {
        self.0.iter().for_each(|spool| spool.end(End::Failed));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn spool(ahead: u64) -> (tempfile::TempDir, Arc<Spool>) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::new(ahead));
        spool.open(dir.path(), "layer").unwrap();
        (dir, spool)
    }

    #[test]
    fn a_reader_follows_the_writer_and_sees_the_end_when_all_is_checked() {
        let (_dir, spool) = spool(100_000);
        let data: Vec<u8> = (0..9_000_000u32).map(|n| (n / 7) as u8).collect();
        let reader = std::thread::spawn({
            let spool = spool.clone();
            move || {
                let mut all = Vec::new();
                SpoolReader::new(spool).read_to_end(&mut all).map(|_| all)
            }
        });
        for piece in data.chunks(10_007) {
            assert!(spool.write(piece).unwrap());
            spool.release();
            let state = spool.lock();
            assert!(state.written - state.read <= 100_000 + 10_007);
        }
        spool.end(End::Checked);
        assert!(reader.join().unwrap().unwrap() == data);
        // what was read is no longer on the disk
        let file = spool.lock().file.clone().unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 5 << 20);
    }

    #[test]
    fn a_reader_gets_no_end_of_a_layer_that_failed() {
        let (_dir, spool) = spool(1 << 20);
        spool.write(b"begin").unwrap();
        spool.release();
        let mut reader = SpoolReader::new(spool.clone());
        let mut out = [0; 5];
        reader.read_exact(&mut out).unwrap();
        spool.end(End::Failed);
        spool.end(End::Checked);
        assert!(reader.read(&mut out).is_err());
        assert!(!spool.write(b"more").unwrap());
    }

    #[test]
    fn a_reader_sees_what_was_let_through_and_nothing_else() {
        let (_dir, spool) = spool(1);
        let mut reader = SpoolReader::new(spool.clone());
        let mut out = [0; 100];
        // Nobody reads, and the writer does not wait: what is not let through cannot be read, so waiting would be for ever.
        let (done, written) = std::sync::mpsc::channel();
        let writer = spool.clone();
        std::thread::spawn(move || {
            writer.write(b"first").unwrap();
            writer.write(b"chunk").unwrap();
            writer.release();
            done.send(()).unwrap();
        });
        written.recv_timeout(std::time::Duration::from_secs(10)).expect("the writer waits for the reader");
        assert_eq!(reader.read(&mut out).unwrap(), 10);
        spool.write(b"second").unwrap();
        let reading = std::thread::spawn(move || {
            let mut out = [0; 100];
            reader.read(&mut out).map(|count| out[..count].to_vec()).map_err(|error| error.to_string())
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!reading.is_finished());
        spool.end(End::Failed);
        assert!(reading.join().unwrap().unwrap_err().contains("did not come"));
    }

    #[test]
    fn what_was_not_let_through_is_replaced() {
        let (_dir, spool) = spool(100);
        spool.write(b"right").unwrap();
        spool.release();
        spool.write(b"wrong and long").unwrap();
        spool.rewind();
        spool.write(b" again").unwrap();
        spool.end(End::Checked);
        let mut read = String::new();
        SpoolReader::new(spool).read_to_string(&mut read).unwrap();
        assert_eq!(read, "right again");
    }

    #[test]
    fn a_writer_that_waits_goes_on_when_the_reader_is_gone_or_the_pull_is() {
        for abandon in [true, false] {
            let (_dir, spool) = spool(1);
            let writer = std::thread::spawn({
                let spool = spool.clone();
                move || {
                    let first = spool.write(b"12").unwrap();
                    spool.release();
                    (first, spool.write(b"3").unwrap())
                }
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            if abandon {
                spool.abandon()
            } else {
                drop(Spools(vec![spool.clone()]))
            }
            let (first, second) = writer.join().unwrap();
            assert_eq!((first, second), (true, abandon));
        }
    }
}
