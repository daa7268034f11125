//! From a prepared process to the foreign program: terminal, limits, user, capabilities, seccomp, `execve`.

use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::message::Process;
use super::{privileges, users};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Writes `oom_score_adj`; needs the agent's privileges, so it comes first.
pub(crate) fn set_oom_score(process: &Process) -> Result<()> {
    if let Some(score) = process.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())?;
    }
    Ok(())
}

/// Opens a pseudo terminal of the container, makes it this session's and the standard streams; gives the master.
pub(crate) fn open_terminal(process: &Process) -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::fcntl::open("/dev/pts/ptmx", flags, Mode::empty())
        .or_else(|_| nix::fcntl::open("/dev/ptmx", flags, Mode::empty()))
        .context("open /dev/pts/ptmx")?;
    let number = crate::sys::unlock_pty(&master).context("unlock")?;
    let path = format!("/dev/pts/{number}");
    let slave =
        nix::fcntl::open(path.as_str(), flags, Mode::empty()).with_context(|| format!("open {path}"))?;
    if let Some((rows, columns)) = process.size {
        crate::sys::set_window_size(&slave, rows, columns).context("set size")?;
    }
    crate::sys::set_controlling_terminal(&slave).context("make it controlling")?;
    // The program runs as this user: it must own its terminal.
    nix::unistd::fchown(&slave, Some(process.uid.into()), None).context("give it to the user")?;
    nix::unistd::dup2_stdin(&slave)?;
    nix::unistd::dup2_stdout(&slave)?;
    nix::unistd::dup2_stderr(&slave)?;
    Ok(master)
}

/// What can be found out before the start, so that mistakes are errors of CreateContainer.
#[derive(Debug)]
pub(crate) struct Plan {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    env: Vec<CString>,
    args: Vec<CString>,
    search: Vec<String>,
}

/// The last entry of each name, as runc has it: containerd leaves the image's before the pod's, and a C library's `getenv` sees the first.
fn effective(env: &[String]) -> Vec<String> {
    let mut names = HashSet::new();
    let mut kept: Vec<String> =
        env.iter().rev().filter(|entry| names.insert(entry.split('=').next())).cloned().collect();
    kept.reverse();
    kept
}

impl Plan {
    /// Resolves user and environment and goes to the working directory.
    pub(crate) fn resolve(process: &Process) -> Result<Self> {
        let (mut uid, mut gid, mut groups) = (process.uid, process.gid, process.groups.clone());
        if !process.user_name.is_empty() {
            let ids = users::resolve(&process.user_name)?;
            (uid, gid) = (ids.uid, ids.gid);
            groups.extend(ids.groups);
        }
        let mut env = effective(&process.env);
        let lookup = |env: &[String], name: &str| {
            env.iter().rev().find_map(|e| e.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        if lookup(&env, "HOME").is_none_or(|h| h.is_empty()) {
            let home = users::home_of(uid).unwrap_or_else(|| "/".to_owned());
            env.retain(|e| !e.starts_with("HOME="));
            env.push(format!("HOME={home}"));
        }
        if process.terminal && lookup(&env, "TERM").is_none() {
            env.push("TERM=xterm".to_owned());
        }
        let path = lookup(&env, "PATH").unwrap_or_else(|| DEFAULT_PATH.to_owned());
        let c = |text: &String| CString::new(text.as_str()).with_context(|| format!("zero byte in {text:?}"));
        Ok(Self {
            uid,
            gid,
            groups,
            env: env.iter().map(c).collect::<Result<_>>()?,
            args: process.args.iter().map(c).collect::<Result<_>>()?,
            search: path.split(':').map(str::to_owned).collect(),
        })
    }

    /// Drops privileges and runs the program. Returns only on failure.
    pub(crate) fn run(self, process: &Process) -> Result<Infallible> {
        let cwd = if process.cwd.is_empty() { "/" } else { process.cwd.as_str() };
        for (resource, soft, hard) in &process.rlimits {
            crate::sys::set_rlimit(*resource, *soft, *hard)
                .with_context(|| format!("set resource limit {resource}"))?;
        }
        privileges::limit_bounding(&process.capabilities)?;
        if process.no_new_privs {
            nix::sys::prctl::set_no_new_privs().context("set no_new_privs")?;
        }
        // Without no_new_privs only CAP_SYS_ADMIN may load a filter: load it before that is dropped.
        let early = !process.no_new_privs && !privileges::keeps_admin(&process.capabilities);
        let filter = process.seccomp.as_ref();
        crate::sys::close_on_exec_from_3().context("close descriptors")?;
        // Before the container's own, which may forbid to load another.
        privileges::install(&process.guard)?;
        if let Some(filter) = filter.filter(|_| early) {
            privileges::install(filter)?;
        }
        privileges::change_user(self.uid, self.gid, &self.groups)?;
        // As the user: a folder that root may enter and the user may not must fail here, as with runc.
        nix::unistd::chdir(cwd).with_context(|| format!("enter working directory {cwd}"))?;
        privileges::set_capabilities(&process.capabilities)?;
        let program = self.find()?;
        if let Some(filter) = filter.filter(|_| !early) {
            privileges::install(filter)?;
        }
        nix::unistd::execve(&program, &self.args, &self.env)
            .with_context(|| format!("run {}", program.to_string_lossy()))
    }

    fn find(&self) -> Result<CString> {
        let Some(name) = self.args.first() else {
            bail!("no program to run: args is empty");
        };
        let text = name.to_string_lossy();
        if text.contains('/') {
            return Ok(name.clone());
        }
        let mut seen = None;
        for folder in &self.search {
            let candidate = format!("{}/{text}", folder.trim_end_matches('/'));
            let Ok(meta) = std::fs::metadata(&candidate) else {
                continue;
            };
            if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
                return Ok(CString::new(candidate)?);
            }
            seen = Some((candidate, meta.mode()));
        }
        match seen {
            Some((path, mode)) => bail!("exec: {path}: permission denied (mode {mode:o})"),
            None => bail!("exec: {text:?}: executable file not found in $PATH"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::effective;

    #[test]
    fn of_several_entries_of_one_name_the_last_holds() {
        let env = ["PGDATA=/of/the/image", "A=1", "AB=2", "PGDATA=/of/the/pod", "A="].map(str::to_owned);
        assert_eq!(effective(&env), ["AB=2", "PGDATA=/of/the/pod", "A="]);
    }
}
