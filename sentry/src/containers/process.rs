//! A process of a container that is started from outside.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::failure::{failed, failure, invalid};
use super::passed::Passed;
use super::root::{make_folders, terminals};
use super::terminal::Terminal;
use crate::checkpoint::{self, CheckpointError, ImageError, Progress, Streams};
use crate::container::Container;
use crate::control::message::{Failure, FailureKind, ProcessPlan, StreamPlan};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::launch::{Launch, Loaded};
use crate::platform::Thread;
use crate::task::seccomp::{Filters, Instruction, Program};
use crate::task::{
    Capabilities, ControlGroup, Credentials, Limit, Limits, NewProcess, Resource, Serving, Task,
};
use crate::vfs::host_io::HostIo;
use crate::vfs::tty::Console;
use crate::vfs::{
    Caller, Content, FdTable, FileKind, Flags, FsContext, Inode, Mount, OpenFile, Place, Resolve, Walk, anon,
    names, open,
};

/// A container's filter, which the monitor compiled from its profile.
pub(super) fn filter(instructions: &[u64]) -> Result<Arc<Program>, Failure> {
    let all: Vec<_> = instructions.iter().map(|one| Instruction::from_bytes(one.to_ne_bytes())).collect();
    Program::new(&all).map(Arc::new).map_err(|_| invalid("linux.seccomp: the filter is no program"))
}

/// A process that does not run yet.
pub(super) struct Prepared {
    pub(super) task: Arc<Task>,
    /// All threads there are yet: one of the process, or those of an image.
    pub(super) threads: Vec<(Arc<Task>, Box<dyn Thread>)>,
    pub(super) terminal: Option<Arc<Terminal>>,
    /// What it has as 0, 1 and 2, where these are descriptors of the host.
    pub(super) streams: Streams,
}

/// No streams.
fn no_streams() -> Streams {
    std::array::from_fn(|_| std::sync::Weak::<anon::AnonInode>::new() as std::sync::Weak<dyn Inode>)
}

/// Who a process is (`man 7 capabilities`, "Transformation of capabilities during execve": that comes after).
fn credentials(plan: &ProcessPlan) -> Credentials {
    let known = |set: u64| Capabilities(set & Capabilities::ALL.0);
    let sets = &plan.capabilities;
    Credentials {
        effective: known(sets.effective),
        permitted: known(sets.permitted),
        inheritable: known(sets.inheritable),
        bounding: known(sets.bounding),
        ambient: known(sets.ambient),
        no_new_privileges: plan.no_new_privileges,
        ..Credentials::of_user(plan.uid, plan.gid, plan.groups.clone())
    }
}

fn limits(plan: &ProcessPlan) -> Limits {
    let mut limits = Limits::default();
    for (number, soft, hard) in &plan.limits {
        limits.set_by_number(u64::from(*number), Limit { soft: *soft, hard: *hard });
    }
    limits
}

/// Where a process is started.
pub(super) struct Inside<'a> {
    pub(super) kernel: &'a Arc<Kernel>,
    pub(super) container: &'a Container,
    /// Its `/`.
    pub(super) root: &'a Place,
    pub(super) group: &'a Arc<ControlGroup>,
    /// What judges its calls.
    pub(super) filter: Option<&'a Arc<Program>>,
    /// Whether it is the first one of its container, whose terminal is `/dev/console`.
    pub(super) first: bool,
}

/// Loads the program and makes the process.
pub(super) fn prepare(
    inside: &Inside<'_>,
    plan: &ProcessPlan,
    passed: &mut Passed,
) -> Result<Prepared, Failure> {
    let Inside { kernel, root, group, .. } = inside;
    let (credentials, limits) = (credentials(plan), limits(plan));
    let fs = FsContext::new(Place::clone(root));
    fs.set_umask(plan.umask);
    fs.set_cwd(folder(root, &credentials, plan)?);
    let launch = Launch { kernel, credentials: &credentials, fs: &fs, limits: &limits };
    let environment = environment(root, plan);
    let loaded = launch.load(&plan.arguments, &environment);
    let Loaded { space, thread, credentials, name } = loaded.map_err(|errno| cannot_run(plan, errno))?;
    let files = Arc::new(FdTable::default());
    files.set_limit(u32::try_from(limits.of(Resource::OpenFiles).soft).unwrap_or(u32::MAX));
    let new = NewProcess {
        credentials,
        limits,
        files,
        fs: Arc::new(fs),
        space: Arc::new(space),
        namespaces: Some(Arc::clone(inside.container.namespaces())),
        container: inside.container.number(),
    };
    let task = kernel.new_process(new).map_err(|errno| match errno {
        Errno::EAGAIN => failure(FailureKind::Full, "the sandbox has as many tasks as it may"),
        Errno::ENOMEM => invalid("the container's first process has ended"),
        errno => failed("a process", errno),
    })?;
    task.set_comm(&name);
    task.set_control_group(Arc::clone(*group));
    if let Some(program) = inside.filter {
        task.set_filters(Filters::of(program));
    }
    task.group().set_oom_score_adjustment(plan.oom_score);
    let threads = vec![(Arc::clone(&task), thread)];
    let mut prepared = Prepared { task, threads, terminal: None, streams: no_streams() };
    let opened = streams(&prepared.task, inside, plan, passed)
        .and_then(|opened| more(&prepared.task, plan, passed).map(|()| opened));
    match opened {
        Ok((terminal, streams)) => {
            prepared.terminal = terminal;
            prepared.streams = streams;
            Ok(prepared)
        }
        Err(failure) => {
            prepared.forget(kernel);
            Err(failure)
        }
    }
}

/// What processes are restored from.
pub(super) struct Origin<'a> {
    pub(super) image: OwnedFd,
    /// Whether there is no other container in the sandbox.
    pub(super) alone: bool,
    pub(super) progress: &'a Arc<Progress>,
}

/// Makes the processes of an image. Of the plan the streams count, and what it lets a process do at most.
pub(super) fn restore(
    inside: &Inside<'_>,
    plan: &ProcessPlan,
    from: Origin<'_>,
    passed: &mut Passed,
) -> Result<Prepared, Failure> {
    let Origin { image, alone, progress } = from;
    let mut streams = [None, None, None];
    if let StreamPlan::Plain(descriptors) = plan.streams {
        for (number, (place, descriptor)) in streams.iter_mut().zip(descriptors).enumerate() {
            let flags = if number == 0 { Flags::READ } else { Flags(libc::O_WRONLY.cast_unsigned()) };
            let file = HostIo::open(passed.take(descriptor)?, flags);
            let file = file.map_err(|errno| failed("a standard stream", errno))?;
            *place = Some(Arc::clone(file.inode()));
        }
    }
    let Inside { kernel, container, group, .. } = *inside;
    let own = credentials(plan);
    let ceiling = checkpoint::Ceiling {
        bounding: own.bounding,
        no_new_privileges: own.no_new_privileges,
        limits: limits(plan),
        tasks: group.most(),
        memory: group.most_memory(),
    };
    let setting = checkpoint::Setting {
        kernel,
        container,
        group,
        streams: &streams,
        ceiling: &ceiling,
        alone,
        progress,
    };
    let restored = checkpoint::restore(&setting, image).map_err(|error| refusal(&error))?;
    if let Some(program) = inside.filter {
        restored.tasks.iter().for_each(|(task, _)| task.set_filters(Filters::of(program)));
    }
    let weak = |stream: &Option<Arc<dyn Inode>>| stream.as_ref().map(Arc::downgrade);
    let mut kept = no_streams();
    for (place, stream) in kept.iter_mut().zip(&streams) {
        if let Some(stream) = weak(stream) {
            *place = stream;
        }
    }
    Ok(Prepared { task: restored.first, threads: restored.tasks, terminal: None, streams: kept })
}

/// A checkpoint, or what an image said, that came to nothing.
pub(super) fn refusal(error: &CheckpointError) -> Failure {
    let of_host = matches!(
        error,
        CheckpointError::Host { .. }
            | CheckpointError::Image(ImageError::Host { .. } | ImageError::GivenUp)
            | CheckpointError::Moving(_)
    );
    failure(if of_host { FailureKind::Failed } else { FailureKind::Invalid }, &error.to_string())
}

impl Prepared {
    /// Ends a process that never ran.
    pub(super) fn forget(self, kernel: &Arc<Kernel>) {
        for (task, thread) in self.threads {
            task.exit_group(libc::SIGKILL);
            // It ends before its first instruction. Without a thread for it, it stays as one that never runs, and holds memory alone.
            let _ = crate::launch::run(kernel, &task, thread);
        }
    }
}

/// As users of other runtimes know it.
fn cannot_run(plan: &ProcessPlan, errno: Errno) -> Failure {
    let program = plan.arguments.first().map_or("", String::as_str);
    let why = match errno {
        Errno::ENOENT if !program.contains('/') => "executable file not found in $PATH",
        Errno::ENOENT => "no such file or directory",
        Errno::EACCES => "permission denied",
        Errno::ENOEXEC => "exec format error",
        _ => "cannot be loaded",
    };
    failure(FailureKind::Program, &format!("cannot run {program}: {errno}: exec: {program:?}: {why}"))
}

/// The working folder, which is made where it is not there (as runc does).
fn folder(root: &Place, credentials: &Credentials, plan: &ProcessPlan) -> Result<Place, Failure> {
    let path = if plan.folder.is_empty() { "/" } else { &plan.folder };
    if !path.starts_with('/') {
        return Err(invalid(&format!("process.cwd {path:?} is no absolute path")));
    }
    let fail = |errno: Errno| invalid(&format!("process.cwd {path}: {errno}"));
    let made = make_folders(&Caller::root(), root, path);
    // A root that cannot be changed has it, or has not.
    made.map_err(fail)?;
    let caller = Caller { credentials: Arc::new(credentials.clone()), process: 1, umask: plan.umask };
    let place = Walk::new(&caller, root, root, path.as_bytes(), Resolve::default())
        .and_then(|mut walk| walk.finish(true))
        .map_err(fail)?;
    if place.dentry.is_folder() { Ok(place) } else { Err(fail(Errno::ENOTDIR)) }
}

/// The environment with `HOME`, which runc adds, too: that of the user in the image's own list.
fn environment(root: &Place, plan: &ProcessPlan) -> Vec<String> {
    let mut environment = plan.environment.clone();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        let home = home(root, plan.uid).unwrap_or_else(|| "/".to_owned());
        environment.push(format!("HOME={home}"));
    }
    environment
}

/// `man 5 passwd`.
fn home(root: &Place, uid: u32) -> Option<String> {
    const LIST_MAX: usize = 1 << 20;
    let caller = Caller::root();
    let mut walk = Walk::new(&caller, root, root, b"/etc/passwd", Resolve::default()).ok()?;
    let file = open::open(&caller, &mut walk, Flags(libc::O_NONBLOCK.cast_unsigned()), 0).ok()?;
    let mut bytes = vec![0; LIST_MAX];
    let count = file.read_at(&mut bytes, 0).ok()?;
    let text = String::from_utf8_lossy(bytes.get(..count)?).into_owned();
    text.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let same = fields.next()?.parse::<u32>().ok()? == uid;
        let home = fields.nth(2)?;
        (same && home.starts_with('/')).then(|| home.to_owned())
    })
}

/// Opens further descriptors.
fn more(task: &Task, plan: &ProcessPlan, passed: &mut Passed) -> Result<(), Failure> {
    let fail = |errno| failed("a descriptor besides the streams", errno);
    for (descriptor, access) in &plan.more {
        let file = HostIo::open(passed.take(*descriptor)?, Flags(access & 3)).map_err(fail)?;
        task.files().insert(file, false).map_err(fail)?;
    }
    Ok(())
}

/// Opens descriptors 0, 1 and 2.
fn streams(
    task: &Arc<Task>,
    inside: &Inside<'_>,
    plan: &ProcessPlan,
    passed: &mut Passed,
) -> Result<(Option<Arc<Terminal>>, Streams), Failure> {
    let fail = |errno| failed("a standard stream", errno);
    let mut all = no_streams();
    match plan.streams {
        StreamPlan::Plain(descriptors) => {
            for (number, descriptor) in descriptors.into_iter().enumerate() {
                let flags = if number == 0 { Flags::READ } else { Flags(libc::O_WRONLY.cast_unsigned()) };
                let file = HostIo::open(passed.take(descriptor)?, flags).map_err(fail)?;
                if let Some(place) = all.get_mut(number) {
                    *place = Arc::downgrade(file.inode());
                }
                task.files().insert(file, false).map_err(fail)?;
            }
            Ok((None, all))
        }
        StreamPlan::Terminal { input, output, size } => {
            let host = (passed.take(input)?, passed.take(output)?);
            let terminal = console(task, inside, plan, host).map_err(|errno| failed("a terminal", errno))?;
            if let Some(size) = size {
                terminal.resize(size);
            }
            Ok((Some(terminal), all))
        }
    }
}

/// A terminal for a process, which is that of its session.
fn console(
    task: &Arc<Task>,
    inside: &Inside<'_>,
    plan: &ProcessPlan,
    host: (OwnedFd, OwnedFd),
) -> Result<Arc<Terminal>, Errno> {
    let console = {
        let _serving = Serving::begin(task);
        let console = Console::new(&terminals(inside.root), task)?;
        let slave = slave(inside, &console)?;
        for _ in 0..3 {
            task.files().insert(Arc::clone(&slave), false)?;
        }
        console
    };
    console.give_to(plan.uid);
    task.tasks().terminals().set(task.session(), task.process_group(), console.terminal());
    Terminal::open(console, host)
}

/// The slave by its name, as programs look for it.
fn slave(inside: &Inside<'_>, console: &Console) -> Result<Arc<OpenFile>, Errno> {
    let (caller, root) = (Caller::root(), inside.root);
    let walk = |path: &str| Walk::new(&caller, root, root, path.as_bytes(), Resolve::default());
    let path = format!("/dev/pts/{}", console.number());
    let flags = Flags(Flags::READ_WRITE.0 | libc::O_NOCTTY.cast_unsigned());
    match open::open(&caller, &mut walk(&path)?, flags, 0) {
        Ok(slave) => {
            if inside.first {
                let place = walk(&path)?.finish(true)?;
                let at = match names::create(&caller, &mut walk("/dev/console")?, Content::Regular, 0o600) {
                    Err(Errno::EEXIST) => walk("/dev/console")?.finish(true),
                    made => made,
                };
                // Where `/dev` cannot be changed there is none.
                let _ = at.and_then(|at| Mount::bind(&at, &place, false));
            }
            Ok(slave)
        }
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            let inode = anon::of_kind("tty", FileKind::CharDevice);
            Ok(OpenFile::nameless(inode, console.slave(flags)?, flags))
        }
        Err(errno) => Err(errno),
    }
}
