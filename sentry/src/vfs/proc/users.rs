//! Maps of a namespace of users (`man 7 user_namespaces`).

use std::sync::Arc;

use super::super::Caller;
use super::process::View;
use crate::error::Errno;
use crate::task::namespaces::MapKind;
use crate::task::{UserNamespace, capability, current};

type Read = Result<Vec<u8>, Errno>;
type Written = Result<(), Errno>;

/// The namespace that the process is in.
fn namespace(view: &View) -> Result<Arc<UserNamespace>, Errno> {
    Ok(Arc::clone(&view.credentials()?.user_ns))
}

fn read(view: &View, caller: &Caller, kind: MapKind) -> Read {
    Ok(namespace(view)?.map_text(kind, &caller.credentials.user_ns).into_bytes())
}

fn write(view: &View, caller: &Caller, kind: MapKind, text: &[u8]) -> Written {
    let space = namespace(view)?;
    let writer = current().map_or_else(|| Arc::clone(&caller.credentials), |task| task.credentials());
    space.write_map(kind, text, &caller.credentials, &writer)?;
    // Who is of the namespace was shown other numbers till now.
    let of_it =
        |task: &Arc<crate::task::Task>| (task.credentials().user_ns == space).then(|| Arc::clone(task));
    for task in view.kernel.tasks.select(|task, _| of_it(task)) {
        task.refresh_answers();
    }
    Ok(())
}

pub(super) fn uid_map(view: &View, caller: &Caller) -> Read {
    read(view, caller, MapKind::Users)
}

pub(super) fn set_uid_map(view: &View, caller: &Caller, text: &[u8]) -> Written {
    write(view, caller, MapKind::Users, text)
}

pub(super) fn gid_map(view: &View, caller: &Caller) -> Read {
    read(view, caller, MapKind::Groups)
}

pub(super) fn set_gid_map(view: &View, caller: &Caller, text: &[u8]) -> Written {
    write(view, caller, MapKind::Groups, text)
}

pub(super) fn project_map(view: &View, caller: &Caller) -> Read {
    read(view, caller, MapKind::Projects)
}

pub(super) fn set_project_map(view: &View, caller: &Caller, text: &[u8]) -> Written {
    write(view, caller, MapKind::Projects, text)
}

pub(super) fn set_groups(view: &View, _: &Caller) -> Read {
    Ok(namespace(view)?.set_groups_text().into())
}

pub(super) fn write_set_groups(view: &View, caller: &Caller, text: &[u8]) -> Written {
    let space = namespace(view)?;
    // The file is opened for writing only by who may (`proc_setgroups_open`).
    if !caller.credentials.capable_in(&space, capability::SYS_ADMIN) {
        return Err(Errno::EACCES);
    }
    space.write_set_groups(text)
}
