//! The file of a checkpoint.
//!
//! | bytes | what |
//! |---|---|
//! | 0 | header: magic, version of the format, build, platform, where the two sections are, how long, their SHA-256, and its own |
//! | 4096 | pages of memory and bytes of files, as the state says which is which |
//! | behind | the state ([`super::state`]), by postcard |
//!
//! The header is written last: what was not finished is no image. An image may come from anybody. All of it is digested before any of it is
//! believed, and then only as far as [`check`](Reader::state) goes: digests tell what was broken, not what was forged.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256, digest};
use nix::sys::uio::{pread, pwrite};
use thiserror::Error;

use super::progress::Progress;
use super::state::{Extent, State};
use crate::error::Errno;

/// Beginning of every image.
const MAGIC: [u8; 16] = *b"kata-cc-sentry\0C";
/// Changes with the meaning of anything in an image.
const VERSION: u32 = 3;
/// Bytes of the header.
const HEADER: usize = 192;
/// Where the bytes begin.
const BYTES_AT: u64 = 4096;
/// Most bytes of the state.
pub(crate) const STATE_MAX: u64 = 256 << 20;
/// Most bytes of the rest.
const BYTES_MAX: u64 = 1 << 42;
/// Most zeros that are written out.
const ZEROS_MAX: u64 = 1 << 36;
/// So many bytes are written before the disk has to have them: then they count as progress.
const SYNCED: u64 = 256 << 20;
/// Bytes that are moved at once.
pub(crate) const PART: usize = 1 << 20;

/// What is wrong with an image.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ImageError {
    /// The host.
    #[error("{what} the image: {errno}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// Why it cannot be.
        errno: Errno,
    },
    /// It is something else, or was not finished.
    #[error("it is no image of a checkpoint, or one that was not finished")]
    Magic,
    /// It has another format.
    #[error("its format is version {0}, and this is the sentry of version {VERSION}")]
    Version(u32),
    /// It is of another build.
    #[error("another build of the sentry wrote it ({0}); an image is restored by the build that wrote it")]
    Build(String),
    /// It is of another platform.
    #[error("it is of platform {0}, and this is {1}: give the sandbox --platform {0}")]
    Platform(String, String),
    /// It ends too early, or goes on too long.
    #[error("its {0} is cut off, or longer than it says")]
    Length(&'static str),
    /// Its digest is another.
    #[error("its {0} is damaged: the digest is another")]
    Digest(&'static str),
    /// It says what cannot be.
    #[error("its state is none: {0}")]
    State(&'static str),
    /// Who wanted it does not wait for it.
    #[error("nobody waits for it any more")]
    GivenUp,
}

fn host(what: &'static str) -> impl FnOnce(Errno) -> ImageError {
    move |errno| ImageError::Host { what, errno }
}

/// Which build this is: its version, and what the code of stubs and the vDSO of programs are.
fn build() -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(env!("CARGO_PKG_VERSION").as_bytes());
    context.update(&VERSION.to_le_bytes());
    context.update(&crate::platform::systrap::code());
    context.update(&crate::loader::vdso::image_bytes());
    finish(context)
}

fn finish(context: Context) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

/// An image that is being written.
pub(crate) struct Writer {
    file: OwnedFd,
    length: u64,
    synced: u64,
    context: Context,
    progress: Arc<Progress>,
}

impl Writer {
    pub(crate) fn new(file: OwnedFd, progress: &Arc<Progress>) -> Result<Self, ImageError> {
        // What is there already is none from now on.
        nix::unistd::ftruncate(&file, 0).map_err(host("emptying"))?;
        let (context, progress) = (Context::new(&SHA256), Arc::clone(progress));
        Ok(Self { file, length: 0, synced: 0, context, progress })
    }

    fn write(&self, mut bytes: &[u8], mut at: u64) -> Result<(), ImageError> {
        while !bytes.is_empty() {
            let offset = i64::try_from(at).map_err(|_| ImageError::Length("bytes"))?;
            match pwrite(&self.file, bytes, offset) {
                Ok(count) => {
                    self.progress.add(count)?;
                    bytes = bytes.get(count..).unwrap_or_default();
                    at = at.saturating_add(count as u64);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(host("writing")(errno)),
            }
        }
        Ok(())
    }

    /// Adds bytes: where they are.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<u64, ImageError> {
        let from = self.length;
        self.write(bytes, BYTES_AT.saturating_add(from))?;
        self.context.update(bytes);
        self.length = from.saturating_add(bytes.len() as u64);
        if self.length.saturating_sub(self.synced) >= SYNCED {
            self.sync()?;
            self.synced = self.length;
        }
        Ok(from)
    }

    fn sync(&self) -> Result<(), ImageError> {
        nix::unistd::fdatasync(&self.file).map_err(host("syncing"))
    }

    /// Writes the rest.
    pub(crate) fn finish(self, state: &State, platform: &str) -> Result<(), ImageError> {
        let encoded = postcard::to_allocvec(state).map_err(|_| ImageError::State("it cannot be written"))?;
        if encoded.len() as u64 > STATE_MAX {
            return Err(ImageError::Length("state"));
        }
        let at = BYTES_AT.saturating_add(self.length);
        self.write(&encoded, at)?;
        self.sync()?;
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((HEADER as u32).to_le_bytes());
        header.extend(build());
        let mut name = [0; 16];
        name.iter_mut().zip(platform.bytes()).for_each(|(to, from)| *to = from);
        header.extend(name);
        for word in [self.length, at, encoded.len() as u64] {
            header.extend(word.to_le_bytes());
        }
        header.extend(finish(self.context.clone()));
        header.extend(sha256(&encoded));
        header.extend(sha256(&header));
        self.write(&header, 0)?;
        self.sync()
    }
}

/// Where an image is read from.
pub(crate) trait Source {
    /// Reads from an offset; 0 at the end.
    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno>;
}

impl Source for OwnedFd {
    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        loop {
            match pread(self, to, i64::try_from(offset).map_err(|_| Errno::EINVAL)?) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }
}

impl Source for &[u8] {
    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let count = from.len().min(to.len());
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(count)
    }
}

/// An image that is whole.
pub(crate) struct Reader<S> {
    source: S,
    length: u64,
    state: (u64, u64),
    platform: String,
    progress: Arc<Progress>,
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], ImageError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(ImageError::Length("header"))?;
        self.0 = rest;
        Ok(first)
    }

    fn number(&mut self) -> Result<u64, ImageError> {
        self.take().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

impl<S: Source> Reader<S> {
    fn new(source: S, progress: &Arc<Progress>) -> Self {
        let progress = Arc::clone(progress);
        Self { source, length: u64::MAX, state: (0, 0), platform: String::new(), progress }
    }

    /// Reads the header, and all the rest once for its digest.
    pub(crate) fn open(source: S, progress: &Arc<Progress>) -> Result<Self, ImageError> {
        let mut header = [0; HEADER];
        let mut reader = Self::new(source, progress);
        reader.fill(&mut header, 0, "header").map_err(|error| match error {
            ImageError::Length(_) => ImageError::Magic,
            other => other,
        })?;
        let (said, sum) = header.split_at(HEADER - 32);
        let mut fields = Fields(said);
        if *fields.take()? != MAGIC {
            return Err(ImageError::Magic);
        }
        let version = u32::from_le_bytes(*fields.take()?);
        if version != VERSION {
            return Err(ImageError::Version(version));
        }
        if u32::from_le_bytes(*fields.take()?) != HEADER as u32 || sha256(said).as_slice() != sum {
            return Err(ImageError::Digest("header"));
        }
        let written_by: &[u8; 32] = fields.take()?;
        if *written_by != build() {
            return Err(ImageError::Build(hex(written_by.get(..8).unwrap_or_default())));
        }
        let name = fields.take::<16>()?.split(|byte| *byte == 0).next().unwrap_or_default();
        reader.platform = String::from_utf8_lossy(name).into_owned();
        reader.length = fields.number()?;
        reader.state = (fields.number()?, fields.number()?);
        let expected = BYTES_AT.checked_add(reader.length).filter(|_| reader.length <= BYTES_MAX);
        if expected != Some(reader.state.0) || reader.state.1 > STATE_MAX {
            return Err(ImageError::Length("header"));
        }
        let (bytes, state) = (*fields.take::<32>()?, *fields.take::<32>()?);
        reader.verify((BYTES_AT, reader.length), bytes, "part with memory and files")?;
        reader.verify(reader.state, state, "state")?;
        let end = reader.state.0.saturating_add(reader.state.1);
        match reader.source.read_at(&mut [0], end) {
            Ok(0) => Ok(reader),
            Ok(_) => Err(ImageError::Length("state")),
            Err(errno) => Err(host("reading")(errno)),
        }
    }

    fn fill(&self, to: &mut [u8], mut at: u64, what: &'static str) -> Result<(), ImageError> {
        let mut done = 0usize;
        while let Some(part) = to.get_mut(done..).filter(|part| !part.is_empty()) {
            let count = self.source.read_at(part, at).map_err(host("reading"))?;
            if count == 0 {
                return Err(ImageError::Length(what));
            }
            self.progress.add(count)?;
            done = done.saturating_add(count);
            at = at.saturating_add(count as u64);
        }
        Ok(())
    }

    fn verify(&self, (at, length): (u64, u64), sum: [u8; 32], what: &'static str) -> Result<(), ImageError> {
        let mut context = Context::new(&SHA256);
        let mut part = vec![0; PART];
        let mut done = 0;
        while done < length {
            let count = (length - done).min(PART as u64);
            let to = part.get_mut(..count as usize).unwrap_or_default();
            self.fill(to, at.saturating_add(done), what)?;
            context.update(to);
            done = done.saturating_add(count);
        }
        if finish(context) == sum { Ok(()) } else { Err(ImageError::Digest(what)) }
    }

    /// The platform that it was made on.
    pub(crate) fn platform(&self) -> &str {
        &self.platform
    }

    /// Reads bytes that an extent says.
    pub(crate) fn bytes(&self, from: u64, to: &mut [u8]) -> Result<(), ImageError> {
        let inside = from.checked_add(to.len() as u64).is_some_and(|end| end <= self.length);
        if !inside {
            return Err(ImageError::State("bytes lie outside of the image"));
        }
        self.fill(to, BYTES_AT.saturating_add(from), "part with memory and files")
    }

    /// Gives an extent's bytes part by part, with where they go.
    pub(crate) fn each<E: From<ImageError>>(
        &self,
        extent: &Extent,
        mut put: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut part = vec![0; usize::try_from(extent.length).unwrap_or(PART).min(PART)];
        let mut done = 0;
        while done < extent.length {
            let count = (extent.length - done).min(PART as u64);
            let bytes = part.get_mut(..count as usize).unwrap_or_default();
            if let Some(from) = extent.from {
                self.bytes(from.saturating_add(done), bytes)?;
            }
            put(extent.at.saturating_add(done), bytes)?;
            // Zeros are written without being read.
            self.progress.add(bytes.len())?;
            done = done.saturating_add(count);
        }
        Ok(())
    }

    /// The state; what it says of bytes is within what there is.
    pub(crate) fn state(&self) -> Result<State, ImageError> {
        let mut bytes = vec![0; usize::try_from(self.state.1).map_err(|_| ImageError::Length("state"))?];
        self.fill(&mut bytes, self.state.0, "state")?;
        let (state, rest) = postcard::take_from_bytes::<State>(&bytes)
            .map_err(|_| ImageError::State("it is not what this format has"))?;
        if !rest.is_empty() {
            return Err(ImageError::Length("state"));
        }
        self.check(&state)?;
        Ok(state)
    }

    fn check(&self, state: &State) -> Result<(), ImageError> {
        let outside = ImageError::State("bytes lie outside of the image");
        for extent in state.extents() {
            let end = extent.at.checked_add(extent.length).filter(|end| *end <= i64::MAX.unsigned_abs());
            let from = extent.from.unwrap_or(0);
            let stored = extent.from.map_or(0, |_| extent.length);
            if end.is_none() || from.checked_add(stored).is_none_or(|end| end > self.length) {
                return Err(outside);
            }
        }
        // Each byte is written once: who says some of them again and again would have more written than there is.
        let (stored, zeros) = state.lengths();
        if stored > self.length || zeros > ZEROS_MAX {
            return Err(ImageError::State("it has more bytes put back than there are in the image"));
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads all of an image as far as it can be without a sandbox: for fuzzing.
///
/// # Errors
/// What is wrong with it.
pub fn examine(image: &[u8]) -> Result<(), ImageError> {
    Reader::open(image, &Arc::default())?.state().map(drop)
}

/// Reads bytes as the state of an image alone: for fuzzing, where no digest is ever right.
///
/// # Errors
/// What is wrong with it.
pub fn examine_state(state: &[u8]) -> Result<(), ImageError> {
    let reader = Reader::new(state, &Arc::default());
    Reader { length: 1 << 30, state: (0, state.len() as u64), ..reader }.state().map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::state::SavedSpace;
    use super::*;

    fn state(extents: Vec<Extent>) -> State {
        let space = SavedSpace {
            range: 0..1,
            mmap_base: 0,
            stack_top: 0,
            heap: 0..0,
            program_data: 0,
            lock_future: false,
            strings: crate::mm::Strings::default(),
            barriers: 0,
            program: None,
            areas: Vec::new(),
            extents,
            kept: Vec::new(),
        };
        State {
            time: crate::time::Reading::default(),
            vdso: Vec::new(),
            vdso_code: [0; 32],
            names: Some((b"host".to_vec(), Vec::new())),
            mounts: Vec::new(),
            trees: Vec::new(),
            pipes: Vec::new(),
            files: Vec::new(),
            tables: Vec::new(),
            folders: Vec::new(),
            shared: Vec::new(),
            spaces: vec![space],
            processes: Vec::new(),
            first: 1,
        }
    }

    fn written(state: &State, bytes: &[u8]) -> Vec<u8> {
        use std::io::{Read, Seek};
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = Writer::new(file.try_clone().unwrap().into(), &Arc::default()).unwrap();
        assert_eq!(writer.put(bytes).unwrap(), 0);
        writer.finish(state, "systrap").unwrap();
        let mut image = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut image).unwrap();
        image
    }

    #[test]
    fn what_was_written_is_read() {
        let state = state(vec![Extent { at: 4096, length: 3, from: Some(1) }]);
        let image = written(&state, b"bytes");
        let reader = Reader::open(image.as_slice(), &Arc::default()).unwrap();
        assert_eq!((reader.platform(), reader.state()), ("systrap", Ok(state.clone())));
        let mut seen = Vec::new();
        let put = |at: u64, bytes: &[u8]| {
            seen.push((at, bytes.to_vec()));
            Ok::<(), ImageError>(())
        };
        reader.each(&state.spaces[0].extents[0], put).unwrap();
        assert_eq!(seen, [(4096, b"yte".to_vec())]);
        assert!(reader.bytes(3, &mut [0; 3]).is_err());
    }

    #[test]
    fn every_byte_counts() {
        let image = written(&state(Vec::new()), b"bytes");
        assert_eq!(examine(&image), Ok(()));
        // Between the header and the bytes there is nothing.
        for at in (0..HEADER).chain(BYTES_AT as usize..image.len()) {
            let mut broken = image.clone();
            broken[at] ^= 0x40;
            assert!(examine(&broken).is_err(), "{at}");
        }
        for length in [0, 1, HEADER - 1, HEADER, 4096, 4100, image.len() - 1] {
            assert!(examine(&image[..length]).is_err(), "{length}");
        }
        assert_eq!(examine(&[image.as_slice(), b"x"].concat()), Err(ImageError::Length("state")));
    }

    #[test]
    fn bytes_that_are_not_there_are_refused() {
        let most = i64::MAX.unsigned_abs();
        for extent in [
            Extent { at: 0, length: 6, from: Some(0) },
            Extent { at: 0, length: 1, from: Some(5) },
            Extent { at: 0, length: u64::MAX, from: Some(2) },
            Extent { at: most, length: 1, from: None },
            Extent { at: 0, length: ZEROS_MAX + 1, from: None },
        ] {
            let image = written(&state(vec![extent.clone()]), b"bytes");
            assert!(matches!(examine(&image), Err(ImageError::State(_))), "{extent:?}");
        }
    }

    #[test]
    fn bytes_that_are_said_again_and_again_are_refused() {
        let part = |at, from, length| Extent { at, length, from: Some(from) };
        let fits = written(&state(vec![part(0, 0, 3), part(9, 3, 2)]), b"bytes");
        assert_eq!(examine(&fits), Ok(()));
        for extents in [vec![part(0, 0, 3), part(9, 2, 3)], vec![part(0, 0, 5); 2]] {
            let image = written(&state(extents), b"bytes");
            let error = examine(&image).unwrap_err().to_string();
            assert!(error.contains("more bytes put back than there are"), "{error}");
        }
    }

    #[test]
    fn what_nobody_waits_for_is_not_written_or_read() {
        let progress = Arc::new(Progress::default());
        let image = written(&state(Vec::new()), b"bytes");
        assert!(Reader::open(image.as_slice(), &progress).is_ok());
        assert!(progress.moved() > image.len() as u64 - BYTES_AT);
        let mut writer = Writer::new(tempfile::tempfile().unwrap().into(), &progress).unwrap();
        assert_eq!(writer.put(b"x"), Ok(0));
        progress.give_up();
        assert_eq!(writer.put(b"x"), Err(ImageError::GivenUp));
        let opened = Reader::open(image.as_slice(), &progress);
        assert_eq!(opened.map(drop), Err(ImageError::GivenUp));
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_no_state(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = examine(&bytes);
            let _ = examine_state(&bytes);
        }
    }
}
