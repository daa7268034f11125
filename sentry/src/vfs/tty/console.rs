//! A container's terminal as it is seen from outside: the master of a pseudoterminal that no guest opened.

use std::sync::Arc;

use super::devpts::{DevPts, Registry};
use super::files::Master;
use super::pair::Pair;
use super::sessions::Terminal;
use crate::error::Errno;
use crate::task::Task;
use crate::vfs::{Caller, Dentry, File, FileKind, Flags, Inode, OpenFile, anon};

/// The outer end of a container's terminal.
pub struct Console {
    pair: Arc<Pair>,
    master: Arc<OpenFile>,
}

impl Console {
    /// A new terminal of this `devpts`; EINVAL where it is none. `task` is served by the calling thread of the sentry
    /// ([`crate::task::Serving`]): signals of the terminal go to where it lives.
    ///
    /// # Errors
    /// ENOSPC: there are as many as there may be.
    pub fn new(devpts: &Arc<Dentry>, task: &Task) -> Result<Self, Errno> {
        let registry = DevPts::registry(devpts.inode()).ok_or(Errno::EINVAL)?;
        let caller = Caller::of(task);
        let pair = registry.make(&caller)?;
        pair.with(|state| state.locked = false);
        let master = Master::new(&pair, &registry);
        let inode = anon::of_kind("ptmx", FileKind::CharDevice);
        Ok(Self { pair, master: OpenFile::nameless(inode, Box::new(master), Flags::READ_WRITE) })
    }

    /// Its number: the slave is `/dev/pts/NUMBER`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.pair.number()
    }

    /// What a session can have as its terminal.
    #[must_use]
    pub fn terminal(&self) -> Terminal {
        self.pair.terminal()
    }

    /// The master: what is written to it is typed, what is read from it is shown.
    #[must_use]
    pub fn master(&self) -> &Arc<OpenFile> {
        &self.master
    }

    /// The slave, for who finds no name for it.
    ///
    /// # Errors
    /// EIO.
    pub fn slave(&self, flags: Flags) -> Result<Box<dyn File>, Errno> {
        let flags = Flags(flags.0 | libc::O_NOCTTY.cast_unsigned());
        Ok(Box::new(super::devpts::open_slave(&self.pair, flags)?))
    }

    /// Gives the slave an owner, as who starts a container does.
    pub fn give_to(&self, uid: u32) {
        crate::vfs::sync::lock(&self.pair.owner).uid = uid;
    }

    /// Changes its size; who is in front hears of it (SIGWINCH).
    pub fn resize(&self, rows: u16, columns: u16) {
        let mut size = [0; 8];
        size[..2].copy_from_slice(&rows.to_le_bytes());
        size[2..4].copy_from_slice(&columns.to_le_bytes());
        if self.pair.with(|state| std::mem::replace(&mut state.size, size)) != size {
            self.pair.signal(libc::SIGWINCH);
        }
    }

    /// Hangs up: who has the slave open has nothing any more, and the leader of its session hears of it (SIGHUP).
    pub fn hang_up(&self) {
        self.pair.hang_up();
    }

    /// Whether nobody has the slave open.
    #[must_use]
    pub fn unused(&self) -> bool {
        self.pair.with(|state| state.slaves()) == 0
    }
}

impl DevPts {
    /// That of a file of it.
    pub(super) fn registry(inode: &Arc<dyn Inode>) -> Option<Arc<Registry>> {
        inode.downcast::<super::devpts::Node>().map(|node| Arc::clone(node.registry()))
    }
}
