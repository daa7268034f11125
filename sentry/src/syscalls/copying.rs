//! From file to file: `sendfile`, `copy_file_range`, `splice`, `tee`, `vmsplice`.

use libc::{SYS_copy_file_range, SYS_sendfile, SYS_splice, SYS_tee, SYS_vmsplice};

use super::Entry;
use super::file_args::{Buffer, COUNT_MAX, caller, file, offset, uint, wait};
use super::io::{broken_pipe, verify_range};
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::events::Events;
use crate::vfs::pipe::PipeFile;
use crate::vfs::{Caller, FileKind, OpenFile};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_sendfile, "sendfile", sendfile),
    Entry::full(SYS_copy_file_range, "copy_file_range", copy_file_range),
    Entry::full(SYS_splice, "splice", splice),
    Entry::full(SYS_tee, "tee", tee),
    Entry::full(SYS_vmsplice, "vmsplice", vmsplice),
];

/// Bytes that are moved at a time.
const CHUNK: usize = 256 * 1024;

const SPLICE_F_NONBLOCK: u32 = 2;
const SPLICE_F_KNOWN: u32 = 0xf;

/// One side of a copy: at the file's position or elsewhere.
struct Side<'a> {
    file: &'a OpenFile,
    at: Option<u64>,
}

impl Side<'_> {
    fn read(&self, to: &mut [u8]) -> Result<usize, Errno> {
        match self.at {
            Some(at) => self.file.read_at(to, at),
            None => self.file.read(to),
        }
    }

    fn advance(&mut self, count: usize) {
        self.at = self.at.map(|at| at.saturating_add(count as u64));
    }

    fn write(&self, caller: &Caller, from: &[u8]) -> Result<usize, Errno> {
        match self.at {
            Some(at) => self.file.write_at(caller, from, at),
            None => self.file.write(caller, from),
        }
    }
}

/// Copies up to `length` bytes. Waits for the first bytes of either side only; `whole` waits until each piece that was read is written.
fn copy(
    call: &mut Call<'_>,
    from: &mut Side<'_>,
    to: &mut Side<'_>,
    length: u64,
    nonblocking: bool,
) -> SysResult {
    if !from.file.flags().readable() || !to.file.flags().writable() {
        return Err(Errno::EBADF.into());
    }
    let caller = caller(call);
    let mut done = 0u64;
    while done < length {
        // What is taken out of a stream must fit on the other side, or it would be lost.
        let room = match to.file.downcast::<PipeFile>() {
            Some(pipe) => match wait_for_room(call, to.file, pipe, nonblocking || done > 0) {
                Ok(room) => room,
                Err(error) => {
                    return if done > 0 { Ok(done) } else { Err(broken_pipe(call, to.file, error)) };
                }
            },
            None => CHUNK,
        };
        let left = usize::try_from(length - done).unwrap_or(CHUNK).min(CHUNK).min(room);
        let mut chunk = vec![0; left];
        let read = wait(call, from.file, Events::IN | Events::RDNORM, nonblocking || done > 0, |_| {
            from.read(&mut chunk)
        });
        let count = match read {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return if done > 0 { Ok(done) } else { Err(error) },
        };
        chunk.truncate(count);
        let (written, error) = write_all(call, &caller, to, &chunk);
        from.advance(written);
        done = done.saturating_add(written as u64);
        if let Some(error) = error {
            give_back(from, count - written);
            return if done > 0 { Ok(done) } else { Err(broken_pipe(call, to.file, error)) };
        }
        if count < left {
            break;
        }
    }
    Ok(done)
}

/// Moves the position of what was read from, but not written, back.
fn give_back(from: &Side<'_>, count: usize) {
    if from.at.is_none() && from.file.file().seekable() && count > 0 {
        let back = i64::try_from(count).map_or(0, |count| -count);
        let _ = from.file.seek(crate::vfs::SeekTo::Current, back);
    }
}

fn wait_for_room(
    call: &mut Call<'_>,
    file: &OpenFile,
    pipe: &PipeFile,
    nonblocking: bool,
) -> Result<usize, SysError> {
    use crate::vfs::File;
    wait(call, file, Events::OUT | Events::WRNORM, nonblocking, |_| {
        if pipe.ready().contains(Events::ERR) {
            return Err(Errno::EPIPE);
        }
        match pipe.room() {
            0 => Err(Errno::EAGAIN),
            room => Ok(room),
        }
    })
}

fn write_all(
    call: &mut Call<'_>,
    caller: &Caller,
    to: &mut Side<'_>,
    from: &[u8],
) -> (usize, Option<SysError>) {
    let mut done = 0;
    while let Some(left) = from.get(done..).filter(|left| !left.is_empty()) {
        match wait(call, to.file, Events::OUT | Events::WRNORM, false, |_| to.write(caller, left)) {
            Ok(0) => return (done, Some(Errno::EIO.into())),
            Ok(count) => {
                done += count;
                to.advance(count);
            }
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}

/// An offset in the guest's memory, if there is one.
fn guest_offset(call: &Call<'_>, address: u64) -> Result<Option<u64>, Errno> {
    if address == 0 { Ok(None) } else { offset(call.read_u64(address)?).map(Some) }
}

fn store(call: &Call<'_>, address: u64, side: &Side<'_>) -> Result<(), Errno> {
    match side.at {
        Some(at) if address != 0 => call.write(address, &at.to_le_bytes()),
        _ => Ok(()),
    }
}

/// Whether bytes can go from or to it without a buffer of the guest: not what folders and `eventfd` and its like give (`splice_read` and
/// `splice_write` in `struct file_operations`).
fn splices(file: &OpenFile) -> bool {
    file.inode().kind() != FileKind::Folder && !file.inode().anonymous()
}

/// `do_sendfile`, in its order. What is read must have positions (`splice_direct_to_actor`) unless it goes to a pipe.
fn sendfile(call: &mut Call<'_>, [out, input, at, count, ..]: [u64; 6]) -> SysResult {
    let place = if at == 0 { None } else { Some(call.read_u64(at)?) };
    let from = file(call, input)?;
    if !from.flags().readable() {
        return Err(Errno::EBADF.into());
    }
    if place.is_some() && !from.file().seekable() {
        return Err(Errno::ESPIPE.into());
    }
    let place = place.map(offset).transpose()?;
    verify_range(&from, place, count)?;
    let to = file(call, out)?;
    if !to.flags().writable() {
        return Err(Errno::EBADF.into());
    }
    verify_range(&to, None, count)?;
    let piped = to.downcast::<PipeFile>().is_some();
    let possible = splices(&from) && splices(&to) && from.downcast::<PipeFile>().is_none();
    if !possible || !piped && (to.flags().has(libc::O_APPEND) || !from.file().seekable()) {
        return Err(Errno::EINVAL.into());
    }
    let mut from = Side { file: &from, at: place };
    let result = copy(call, &mut from, &mut Side { file: &to, at: None }, count.min(COUNT_MAX), false);
    store(call, at, &from)?;
    result
}

fn copy_file_range(call: &mut Call<'_>, [input, in_at, out, out_at, count, flags]: [u64; 6]) -> SysResult {
    let (from, to) = (file(call, input)?, file(call, out)?);
    let (in_place, out_place) = (guest_offset(call, in_at)?, guest_offset(call, out_at)?);
    if flags != 0 {
        return Err(Errno::EINVAL.into());
    }
    let sides = [&from, &to];
    if sides.iter().any(|side| side.inode().kind() == FileKind::Folder) {
        return Err(Errno::EISDIR.into());
    }
    if sides.iter().any(|side| side.inode().kind() != FileKind::Regular || side.inode().anonymous()) {
        return Err(Errno::EINVAL.into());
    }
    if !from.flags().readable() || !to.flags().writable() || to.flags().has(libc::O_APPEND) {
        return Err(Errno::EBADF.into());
    }
    let (start, end) = (in_place.unwrap_or(from.position()), out_place.unwrap_or(to.position()));
    let (one, other) = (from.inode().attributes()?, to.inode().attributes()?);
    let count = count.min(COUNT_MAX).min(one.size.saturating_sub(start));
    let same = (one.device, one.inode) == (other.device, other.inode);
    if same && start < end.saturating_add(count) && end < start.saturating_add(count) {
        return Err(Errno::EINVAL.into());
    }
    let mut from = Side { file: &from, at: in_place };
    let mut to = Side { file: &to, at: out_place };
    let result = copy(call, &mut from, &mut to, count, false);
    store(call, in_at, &from)?;
    store(call, out_at, &to)?;
    result
}

fn splice(call: &mut Call<'_>, [input, in_at, out, out_at, count, flags]: [u64; 6]) -> SysResult {
    let flags = uint(flags);
    if count == 0 {
        return Ok(0);
    }
    if flags & !SPLICE_F_KNOWN != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (from, to) = (file(call, input)?, file(call, out)?);
    let pipes = (from.downcast::<PipeFile>(), to.downcast::<PipeFile>());
    if pipes.0.is_some() && in_at != 0 || pipes.1.is_some() && out_at != 0 {
        return Err(Errno::ESPIPE.into());
    }
    let place = |at| if at == 0 { Ok(None) } else { call.read_u64(at).map(Some) };
    let places = (place(in_at)?, place(out_at)?);
    if !from.flags().readable() || !to.flags().writable() {
        return Err(Errno::EBADF.into());
    }
    match pipes {
        (None, None) => return Err(Errno::EINVAL.into()),
        (Some(one), Some(other)) if one.same(other) => return Err(Errno::EINVAL.into()),
        (Some(_), None) => splice_side(&to, places.1, count, to.flags().has(libc::O_APPEND))?,
        (None, Some(_)) => splice_side(&from, places.0, count, false)?,
        _ => {}
    }
    let mut from = Side { file: &from, at: places.0 };
    let mut to = Side { file: &to, at: places.1 };
    let nonblocking = flags & SPLICE_F_NONBLOCK != 0;
    let result = copy(call, &mut from, &mut to, count.min(COUNT_MAX), nonblocking);
    store(call, in_at, &from)?;
    store(call, out_at, &to)?;
    result
}

/// What `do_splice` asks of the side that is no pipe.
fn splice_side(file: &OpenFile, at: Option<u64>, count: u64, appends: bool) -> Result<(), Errno> {
    if at.is_some() && !file.file().seekable() || appends {
        return Err(Errno::EINVAL);
    }
    let at = at.map(offset).transpose()?;
    verify_range(file, at, count)?;
    if splices(file) { Ok(()) } else { Err(Errno::EINVAL) }
}

fn tee(call: &mut Call<'_>, [input, out, count, flags, ..]: [u64; 6]) -> SysResult {
    let flags = uint(flags);
    if flags & !SPLICE_F_KNOWN != 0 {
        return Err(Errno::EINVAL.into());
    }
    if count == 0 {
        return Ok(0);
    }
    let (from, to) = (file(call, input)?, file(call, out)?);
    if !from.flags().readable() || !to.flags().writable() {
        return Err(Errno::EBADF.into());
    }
    let one = from.downcast::<PipeFile>().ok_or(Errno::EINVAL)?;
    let other = to.downcast::<PipeFile>().ok_or(Errno::EINVAL)?;
    if one.same(other) {
        return Err(Errno::EINVAL.into());
    }
    let nonblocking = flags & SPLICE_F_NONBLOCK != 0;
    let room = wait_for_room(call, &to, other, nonblocking).map_err(|error| broken_pipe(call, &to, error))?;
    let most = usize::try_from(count).unwrap_or(CHUNK).min(CHUNK).min(room);
    let mut chunk = vec![0; most];
    let count = wait(call, &from, Events::IN | Events::RDNORM, nonblocking, |_| one.peek(&mut chunk))?;
    chunk.truncate(count);
    let caller = caller(call);
    let result = wait(call, &to, Events::OUT | Events::WRNORM, nonblocking, |_| to.write(&caller, &chunk));
    result.map(|count| count as u64).map_err(|error| broken_pipe(call, &to, error))
}

/// The pages of a guest are copied, whichever way they go: what `SPLICE_F_GIFT` allows a kernel to do, none has to.
fn vmsplice(call: &mut Call<'_>, [fd, parts, count, flags, ..]: [u64; 6]) -> SysResult {
    let flags = uint(flags);
    if flags & !SPLICE_F_KNOWN != 0 {
        return Err(Errno::EINVAL.into());
    }
    let open = file(call, fd)?;
    if !open.flags().writable() && !open.flags().readable() {
        return Err(Errno::EBADF.into());
    }
    let buffer = Buffer::vector(call, parts, count)?;
    if buffer.length == 0 {
        return Ok(0);
    }
    let pipe = open.downcast::<PipeFile>().ok_or(Errno::EBADF)?;
    let nonblocking = flags & SPLICE_F_NONBLOCK != 0;
    let caller = caller(call);
    if !open.flags().writable() {
        let mut chunk = vec![0; usize::try_from(buffer.length).unwrap_or(CHUNK).min(CHUNK)];
        let count = wait(call, &open, Events::IN | Events::RDNORM, nonblocking, |_| open.read(&mut chunk))?;
        let moved = buffer.scatter(call, 0, chunk.get(..count).unwrap_or_default());
        return if moved == 0 && count > 0 { Err(Errno::EFAULT.into()) } else { Ok(moved as u64) };
    }
    let room =
        wait_for_room(call, &open, pipe, nonblocking).map_err(|error| broken_pipe(call, &open, error))?;
    let chunk = buffer.gather(call, 0, room.min(CHUNK));
    if chunk.is_empty() {
        return Err(Errno::EFAULT.into());
    }
    let result =
        wait(call, &open, Events::OUT | Events::WRNORM, nonblocking, |_| open.write(&caller, &chunk));
    result.map(|count| count as u64).map_err(|error| broken_pipe(call, &open, error))
}
