//! Users, groups and capabilities (`man 7 credentials`).

use super::Entry;
use super::processes::int;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::namespaces::INVALID;
use crate::task::{Capabilities, Credentials, capability};

pub(super) const CALLS: &[Entry] = &[
    Entry::full(libc::SYS_getuid, "getuid", |call, _| Ok(shown_uid(call, |who| who.uid).into())),
    Entry::full(libc::SYS_geteuid, "geteuid", |call, _| Ok(shown_uid(call, |who| who.euid).into())),
    Entry::full(libc::SYS_getgid, "getgid", |call, _| Ok(shown_gid(call, |who| who.gid).into())),
    Entry::full(libc::SYS_getegid, "getegid", |call, _| Ok(shown_gid(call, |who| who.egid).into())),
    Entry::full(libc::SYS_getresuid, "getresuid", sys_getresuid),
    Entry::full(libc::SYS_getresgid, "getresgid", sys_getresgid),
    Entry::full(libc::SYS_setuid, "setuid", sys_setuid),
    Entry::full(libc::SYS_setgid, "setgid", sys_setgid),
    Entry::full(libc::SYS_setreuid, "setreuid", sys_setreuid),
    Entry::full(libc::SYS_setregid, "setregid", sys_setregid),
    Entry::full(libc::SYS_setresuid, "setresuid", sys_setresuid),
    Entry::full(libc::SYS_setresgid, "setresgid", sys_setresgid),
    Entry::full(libc::SYS_setfsuid, "setfsuid", sys_setfsuid),
    Entry::full(libc::SYS_setfsgid, "setfsgid", sys_setfsgid),
    Entry::full(libc::SYS_getgroups, "getgroups", sys_getgroups),
    Entry::full(libc::SYS_setgroups, "setgroups", sys_setgroups),
    Entry::full(libc::SYS_capget, "capget", sys_capget),
    Entry::full(libc::SYS_capset, "capset", sys_capset),
];

/// A user as the caller is shown it.
fn shown_uid(call: &Call<'_>, which: impl Fn(&Credentials) -> u32) -> u32 {
    let who = call.task.credentials();
    who.user_ns.shown_uid(which(&who))
}

/// A group as the caller is shown it.
fn shown_gid(call: &Call<'_>, which: impl Fn(&Credentials) -> u32) -> u32 {
    let who = call.task.credentials();
    who.user_ns.shown_gid(which(&who))
}

/// The user that a caller names; [`SAME`] stays what it is.
///
/// # Errors
/// EINVAL for one that its namespace does not have.
fn wanted_uid(who: &Credentials, value: u64) -> Result<u32, Errno> {
    let wanted = id(value);
    let uid = if wanted == SAME { SAME } else { who.user_ns.uid(wanted) };
    if wanted != SAME && uid == INVALID { Err(Errno::EINVAL) } else { Ok(uid) }
}

/// The group that a caller names.
///
/// # Errors
/// EINVAL for one that its namespace does not have.
fn wanted_gid(who: &Credentials, value: u64) -> Result<u32, Errno> {
    let wanted = id(value);
    let gid = if wanted == SAME { SAME } else { who.user_ns.gid(wanted) };
    if wanted != SAME && gid == INVALID { Err(Errno::EINVAL) } else { Ok(gid) }
}

/// "Leave it as it is."
const SAME: u32 = u32::MAX;
/// `NGROUPS_MAX`.
const GROUPS: i32 = 65_536;

/// The low half of a register.
#[allow(clippy::cast_possible_truncation, reason = "the upper half of an id's register has no meaning")]
fn id(value: u64) -> u32 {
    value as u32
}

fn write_three(call: &Call<'_>, to: [u64; 3], ids: [u32; 3]) -> SysResult {
    for (address, id) in to.into_iter().zip(ids) {
        call.write(address, &id.to_le_bytes())?;
    }
    Ok(0)
}

fn sys_getresuid(call: &mut Call<'_>, [real, effective, saved, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    write_three(
        call,
        [real, effective, saved],
        [who.uid, who.euid, who.suid].map(|id| who.user_ns.shown_uid(id)),
    )
}

fn sys_getresgid(call: &mut Call<'_>, [real, effective, saved, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    write_three(
        call,
        [real, effective, saved],
        [who.gid, who.egid, who.sgid].map(|id| who.user_ns.shown_gid(id)),
    )
}

/// Puts new credentials in place. Who changed effective or file ids is not to be looked into by others.
fn commit(call: &Call<'_>, old: &Credentials, new: Credentials) -> SysResult {
    let changed = (old.euid, old.egid, old.fsuid, old.fsgid) != (new.euid, new.egid, new.fsuid, new.fsgid)
        || new.permitted.0 & !old.permitted.0 != 0;
    if changed {
        call.task.group().set_dumpable(0);
        call.task.set_parent_death_signal(0);
    }
    call.task.set_credentials(new);
    Ok(0)
}

fn sys_setuid(call: &mut Call<'_>, [uid, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let uid = wanted_uid(&who, uid)?;
    if uid == SAME {
        return Err(Errno::EINVAL.into());
    }
    if who.capable_here(capability::SETUID) {
        return commit(call, &who, who.with_users(uid, uid, uid));
    }
    if uid != who.uid && uid != who.suid {
        return Err(Errno::EPERM.into());
    }
    commit(call, &who, who.with_users(who.uid, uid, who.suid))
}

fn with_groups(who: &Credentials, gid: u32, egid: u32, sgid: u32) -> Credentials {
    Credentials { gid, egid, sgid, fsgid: egid, ..who.clone() }
}

fn sys_setgid(call: &mut Call<'_>, [gid, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let gid = wanted_gid(&who, gid)?;
    if gid == SAME {
        return Err(Errno::EINVAL.into());
    }
    if who.capable_here(capability::SETGID) {
        return commit(call, &who, with_groups(&who, gid, gid, gid));
    }
    if gid != who.gid && gid != who.sgid {
        return Err(Errno::EPERM.into());
    }
    commit(call, &who, with_groups(&who, who.gid, gid, who.sgid))
}

/// What `setreuid` and `setregid` make of real, effective and saved id.
fn real_and_effective(now: [u32; 3], real: u32, effective: u32, may: bool) -> Result<[u32; 3], Errno> {
    let [old_real, old_effective, saved] = now;
    let real_fits = [SAME, old_real, old_effective].contains(&real);
    let effective_fits = [SAME, old_real, old_effective, saved].contains(&effective);
    let fits = real_fits && effective_fits;
    if !may && !fits {
        return Err(Errno::EPERM);
    }
    let new_real = if real == SAME { old_real } else { real };
    let new_effective = if effective == SAME { old_effective } else { effective };
    let keeps_saved = real == SAME && (effective == SAME || effective == old_real);
    Ok([new_real, new_effective, if keeps_saved { saved } else { new_effective }])
}

fn sys_setreuid(call: &mut Call<'_>, [real, effective, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let may = who.capable_here(capability::SETUID);
    let now = [who.uid, who.euid, who.suid];
    let (real, effective) = (wanted_uid(&who, real)?, wanted_uid(&who, effective)?);
    let [uid, euid, suid] = real_and_effective(now, real, effective, may)?;
    commit(call, &who, who.with_users(uid, euid, suid))
}

fn sys_setregid(call: &mut Call<'_>, [real, effective, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let may = who.capable_here(capability::SETGID);
    let now = [who.gid, who.egid, who.sgid];
    let (real, effective) = (wanted_gid(&who, real)?, wanted_gid(&who, effective)?);
    let [gid, egid, sgid] = real_and_effective(now, real, effective, may)?;
    commit(call, &who, with_groups(&who, gid, egid, sgid))
}

/// What `setresuid` and `setresgid` make of the three.
fn all_three(now: [u32; 3], wanted: [u32; 3], may: bool) -> Result<[u32; 3], Errno> {
    if !may && wanted.iter().any(|id| *id != SAME && !now.contains(id)) {
        return Err(Errno::EPERM);
    }
    let mut new = now;
    for (new, wanted) in new.iter_mut().zip(wanted) {
        if wanted != SAME {
            *new = wanted;
        }
    }
    Ok(new)
}

fn sys_setresuid(call: &mut Call<'_>, [real, effective, saved, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let may = who.capable_here(capability::SETUID);
    let wanted = [wanted_uid(&who, real)?, wanted_uid(&who, effective)?, wanted_uid(&who, saved)?];
    let [uid, euid, suid] = all_three([who.uid, who.euid, who.suid], wanted, may)?;
    commit(call, &who, who.with_users(uid, euid, suid))
}

fn sys_setresgid(call: &mut Call<'_>, [real, effective, saved, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let may = who.capable_here(capability::SETGID);
    let wanted = [wanted_gid(&who, real)?, wanted_gid(&who, effective)?, wanted_gid(&who, saved)?];
    let [gid, egid, sgid] = all_three([who.gid, who.egid, who.sgid], wanted, may)?;
    commit(call, &who, with_groups(&who, gid, egid, sgid))
}

fn sys_setfsuid(call: &mut Call<'_>, [uid, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let uid = wanted_uid(&who, uid).unwrap_or(SAME);
    let fits =
        [who.uid, who.euid, who.suid, who.fsuid].contains(&uid) || who.capable_here(capability::SETUID);
    if uid != SAME && fits {
        commit(call, &who, who.with_file_user(uid))?;
    }
    Ok(who.user_ns.shown_uid(who.fsuid).into())
}

fn sys_setfsgid(call: &mut Call<'_>, [gid, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let gid = wanted_gid(&who, gid).unwrap_or(SAME);
    let fits =
        [who.gid, who.egid, who.sgid, who.fsgid].contains(&gid) || who.capable_here(capability::SETGID);
    if gid != SAME && fits {
        let new = Credentials { fsgid: gid, ..(*who).clone() };
        commit(call, &who, new)?;
    }
    Ok(who.user_ns.shown_gid(who.fsgid).into())
}

fn sys_getgroups(call: &mut Call<'_>, [size, list, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let (size, count) = (int(size), who.groups.len());
    if size < 0 || size > 0 && usize::try_from(size).is_ok_and(|size| size < count) {
        return Err(Errno::EINVAL.into());
    }
    if size > 0 {
        let bytes = who
            .groups
            .iter()
            .flat_map(|group| who.user_ns.shown_gid(*group).to_le_bytes())
            .collect::<Vec<_>>();
        call.write(list, &bytes)?;
    }
    Ok(count as u64)
}

fn sys_setgroups(call: &mut Call<'_>, [size, list, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    if !who.capable_here(capability::SETGID) || !who.user_ns.may_set_groups() {
        return Err(Errno::EPERM.into());
    }
    let size = int(size);
    if !(0..=GROUPS).contains(&size) {
        return Err(Errno::EINVAL.into());
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0) * 4];
    call.read(list, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<4>();
    let mut groups = words.iter().map(|word| who.user_ns.gid(u32::from_le_bytes(*word))).collect::<Vec<_>>();
    if groups.contains(&SAME) {
        return Err(Errno::EINVAL.into());
    }
    groups.sort_unstable();
    call.task.set_credentials(Credentials { groups, ..(*who).clone() });
    Ok(0)
}

/// How many words of capabilities a version has (`include/uapi/linux/capability.h`). A version that is not known is answered with the
/// newest.
fn version(call: &Call<'_>, header: u64) -> Result<usize, Errno> {
    const NEWEST: u32 = 0x2008_0522;
    match call.read_u32(header)? {
        0x1998_0330 => Ok(1),
        0x2007_1026 | NEWEST => Ok(2),
        _ => {
            call.write(header, &NEWEST.to_le_bytes())?;
            Err(Errno::EINVAL)
        }
    }
}

fn sys_capget(call: &mut Call<'_>, [header, data, ..]: [u64; 6]) -> SysResult {
    let words = match version(call, header) {
        Ok(words) => words,
        // Without room for data this is how a program asks for the version.
        Err(Errno::EINVAL) if data == 0 => return Ok(0),
        Err(errno) => return Err(errno.into()),
    };
    let pid = int(call.read_u32(header.checked_add(4).ok_or(Errno::EFAULT)?)?.into());
    if pid < 0 {
        return Err(Errno::EINVAL.into());
    }
    let who = match pid {
        0 => call.task.credentials(),
        pid => call.task.find(pid).ok_or(Errno::ESRCH)?.credentials(),
    };
    if data != 0 {
        let sets = [who.effective.0, who.permitted.0, who.inheritable.0];
        let mut bytes = Vec::with_capacity(24);
        for word in 0..words {
            for set in sets {
                bytes.extend_from_slice(&id(set >> (32 * word)).to_le_bytes());
            }
        }
        call.write(data, &bytes)?;
    }
    Ok(0)
}

fn sys_capset(call: &mut Call<'_>, [header, data, ..]: [u64; 6]) -> SysResult {
    let words = version(call, header)?;
    let pid = int(call.read_u32(header.checked_add(4).ok_or(Errno::EFAULT)?)?.into());
    if pid != 0 && pid != call.task.own_number() {
        return Err(Errno::EPERM.into());
    }
    let mut bytes = [0; 24];
    call.read(data, &mut bytes[..words * 12])?;
    let set = |at: usize| {
        let word = |word: usize| {
            let at = word * 12 + at * 4;
            u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
        };
        Capabilities((word(0) | word(1) << 32) & Capabilities::ALL.0)
    };
    let who = call.task.credentials();
    let new = who.with_capabilities(set(0), set(1), set(2)).ok_or(Errno::EPERM)?;
    call.task.set_credentials(new);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_become_whom() {
        assert_eq!(real_and_effective([1, 2, 3], SAME, 3, false), Ok([1, 3, 3]));
        assert_eq!(real_and_effective([1, 2, 3], 3, SAME, false), Err(Errno::EPERM));
        assert_eq!(real_and_effective([1, 2, 3], 2, 1, false), Ok([2, 1, 1]));
        assert_eq!(real_and_effective([1, 2, 3], SAME, 1, false), Ok([1, 1, 3]));
        assert_eq!(all_three([1, 2, 3], [3, SAME, 1], false), Ok([3, 2, 1]));
        assert_eq!(all_three([1, 2, 3], [4, SAME, SAME], false), Err(Errno::EPERM));
        assert_eq!(all_three([1, 2, 3], [4, 5, 6], true), Ok([4, 5, 6]));
    }

    #[test]
    fn leaving_root_loses_capabilities_unless_they_are_kept() {
        let root = Credentials::root();
        let user = root.with_users(1000, 1000, 1000);
        assert_eq!((user.permitted, user.effective), (Capabilities(0), Capabilities(0)));
        let back = root.with_users(0, 1000, 0);
        assert_eq!((back.permitted, back.effective), (Capabilities::ALL, Capabilities(0)));
        assert_eq!(back.with_users(0, 0, 0).effective, Capabilities::ALL);
        let keeps = Credentials { securebits: crate::task::securebits::KEEP_CAPS, ..root };
        let user = keeps.with_users(1000, 1000, 1000);
        assert_eq!((user.permitted, user.effective), (Capabilities::ALL, Capabilities(0)));
    }

    #[test]
    fn a_program_of_root_begins_with_all_and_one_of_a_user_with_none() {
        let root = Credentials::root();
        assert_eq!(root.after_exec(None, None).effective, Capabilities::ALL);
        let user = root.with_users(1000, 1000, 1000);
        assert_eq!(user.after_exec(None, None).permitted, Capabilities(0));
        let by_bit = user.after_exec(Some(0), None);
        assert_eq!((by_bit.uid, by_bit.euid, by_bit.suid), (1000, 0, 0));
        assert_eq!(by_bit.effective, Capabilities::ALL);
        let held = Credentials { no_new_privileges: true, ..user };
        assert_eq!(held.after_exec(Some(0), None).euid, 1000);
    }
}
