//! `checkpoint` and `restore`: a container as a file, and made anew of it (docs/sentry.md, "Checkpoint and restore").
//!
//! The image is one file, `sentry.img`, in the folder that is named. It has all that was in the container's memory, so nobody but its owner may
//! read it. It takes its name when it is whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::{Context, delete, run};
use crate::arguments::{Checkpoint, Criu, Restore, Run};
use crate::error::{OciError, io};
use crate::images;
use crate::store::Status;

/// Name of the image in its folder.
const IMAGE: &str = "sentry.img";
/// Its name until it is whole.
const UNDERWAY: &str = ".sentry.img.new";

/// `checkpoint`: the container is stopped and gone afterwards, as with runc, unless it is left running.
pub(super) fn checkpoint(context: &Context, arguments: &Checkpoint) -> Result<u8, OciError> {
    refuse(arguments)?;
    let (locked, state) = context.store.lock(&arguments.id)?;
    let status = state.status();
    if !matches!(status, Status::Running | Status::Paused) {
        return Err(OciError::NotRunning { id: state.id, status });
    }
    let folder = &arguments.image_path;
    let file = begin(folder)?;
    let sandbox = context.store.folder_of(&state.sandbox);
    let saved = match arguments.leave_running {
        true => images::save(sandbox.path(), &state.id, file.as_fd())
            .map_err(OciError::from)
            .and_then(|()| keep(folder)),
        // It ends when its image has its name, and goes on where it gets none.
        false => images::save_and_end(sandbox.path(), &state.id, file.as_fd(), || keep(folder)),
    };
    if let Err(error) = saved {
        // Half an image is of no use to anybody.
        let _ = std::fs::remove_file(folder.join(UNDERWAY));
        return Err(error);
    }
    drop(locked);
    if arguments.leave_running { Ok(0) } else { delete::delete(context, &state.id, true) }
}

/// Gives the image its name, for good.
fn keep(folder: &Path) -> Result<(), OciError> {
    let what = || format!("cannot name the image in {}", folder.display());
    std::fs::rename(folder.join(UNDERWAY), folder.join(IMAGE)).map_err(|error| io(what())(error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io(what())(error))
}

/// Makes the folder, and the file in it.
fn begin(folder: &Path) -> Result<File, OciError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(io(format!("cannot make the folder {}", folder.display())))?;
    let path = folder.join(UNDERWAY);
    // What another `checkpoint` left behind, or a link that somebody put there.
    let _ = std::fs::remove_file(&path);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
    file.map_err(io(format!("cannot make the image {}", path.display())))
}

fn refuse(arguments: &Checkpoint) -> Result<(), OciError> {
    let refused = [
        (arguments.pre_dump, "--pre-dump"),
        (arguments.parent_path.is_some(), "--parent-path"),
        (arguments.page_server.is_some(), "--page-server"),
        (arguments.status_fd.is_some(), "--status-fd"),
    ];
    refuse_lazy(&arguments.criu)?;
    match refused.iter().find(|(given, _)| *given) {
        Some((_, name)) => Err(OciError::Usage(format!(
            "{name}: an image of the sentry is one whole file; leave the option away"
        ))),
        None => Ok(()),
    }
}

fn refuse_lazy(criu: &Criu) -> Result<(), OciError> {
    if criu.lazy_pages {
        let reason =
            "--lazy-pages: memory of the sentry's guests is put back before they run; leave the option away";
        return Err(OciError::Usage(reason.into()));
    }
    Ok(())
}

/// `restore`: as `run`, but the program goes on where the image has it.
pub(super) fn restore(context: &Context, arguments: Restore) -> Result<u8, OciError> {
    refuse_lazy(&arguments.criu)?;
    let Restore { mut create, image_path, detach, no_subreaper, .. } = arguments;
    create.image = Some(image_path.join(IMAGE));
    run::run(context, &Run { create, detach, keep: false, no_subreaper })
}
