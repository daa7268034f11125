//! `ioctl` of terminals (`man 2 ioctl_tty`; `drivers/tty/tty_io.c`, `tty_ioctl.c`, `pty.c`).

use std::sync::Arc;

use super::devpts::{self, Registry};
use super::pair::Pair;
use super::sessions;
use super::termios::Termios;
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::task::{Pid, capability};
use crate::vfs::{Flags, OpenFile};

const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCSETSW: u32 = 0x5403;
const TCSETSF: u32 = 0x5404;
const TCSBRK: u32 = 0x5409;
const TCXONC: u32 = 0x540a;
const TCFLSH: u32 = 0x540b;
const TIOCEXCL: u32 = 0x540c;
const TIOCNXCL: u32 = 0x540d;
pub(super) const TIOCSCTTY: u32 = 0x540e;
pub(super) const TIOCGPGRP: u32 = 0x540f;
pub(super) const TIOCSPGRP: u32 = 0x5410;
const TIOCOUTQ: u32 = 0x5411;
const TIOCSTI: u32 = 0x5412;
const TIOCGWINSZ: u32 = 0x5413;
const TIOCSWINSZ: u32 = 0x5414;
const TIOCCONS: u32 = 0x541d;
const TIOCPKT: u32 = 0x5420;
pub(super) const TIOCNOTTY: u32 = 0x5422;
const TIOCGETD: u32 = 0x5424;
const TCSBRKP: u32 = 0x5425;
pub(super) const TIOCGSID: u32 = 0x5429;
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const TCSETSW2: u32 = 0x402c_542c;
const TCSETSF2: u32 = 0x402c_542d;
const TIOCGPTN: u32 = 0x8004_5430;
const TIOCSPTLCK: u32 = 0x4004_5431;
const TIOCSIG: u32 = 0x4004_5436;
const TIOCVHANGUP: u32 = 0x5437;
const TIOCGPKT: u32 = 0x8004_5438;
const TIOCGPTLCK: u32 = 0x8004_5439;
const TIOCGEXCL: u32 = 0x8004_5440;
const TIOCGPTPEER: u32 = 0x5441;

fn done(result: Result<(), Errno>) -> SysResult {
    Ok(result.map(|()| 0)?)
}

fn give(call: &Call<'_>, address: u64, value: u32) -> SysResult {
    done(call.write(address, &value.to_le_bytes()))
}

#[allow(clippy::cast_possible_truncation, reason = "the upper half of an int's register has no meaning")]
fn int(argument: u64) -> i32 {
    (argument as u32).cast_signed()
}

/// Of a master: what it has alone, else as its slave.
pub(super) fn master(
    pair: &Arc<Pair>,
    registry: &Arc<Registry>,
    call: &mut Call<'_>,
    request: u32,
    argument: u64,
) -> SysResult {
    match request {
        TIOCGPTN => give(call, argument, pair.number()),
        TIOCSPTLCK => {
            let locked = call.read_u32(argument)? != 0;
            pair.with(|state| state.locked = locked);
            Ok(0)
        }
        TIOCGPTLCK => give(call, argument, pair.with(|state| state.locked).into()),
        TIOCPKT => {
            let on = call.read_u32(argument)? != 0;
            pair.with(|state| state.packet = on.then(|| state.packet.unwrap_or(0)));
            Ok(0)
        }
        TIOCGPKT => give(call, argument, pair.with(|state| state.packet.is_some()).into()),
        TIOCSIG => {
            let signal = int(argument);
            if ![libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP].contains(&signal) {
                return Err(Errno::EINVAL.into());
            }
            pair.signal(signal);
            Ok(0)
        }
        TIOCGPTPEER => {
            let flags = Flags(int(argument).cast_unsigned());
            let slave = devpts::open_slave(pair, flags)?;
            let inode = devpts::slave_inode(registry, pair.number());
            let file = OpenFile::nameless(inode, Box::new(slave), flags);
            let fd = call.task.files().insert(file, flags.has(libc::O_CLOEXEC))?;
            Ok(u64::from(fd.cast_unsigned()))
        }
        TCFLSH => match int(argument) {
            0 => {
                pair.flush(false, true);
                Ok(0)
            }
            1 | 2 => {
                pair.flush(true, int(argument) == 2);
                Ok(0)
            }
            _ => Err(Errno::EINVAL.into()),
        },
        // Of a master these are about its slave, whoever asks.
        TIOCGPGRP => {
            let (_, foreground) = sessions::owner(call.task, &pair.terminal(), true)?;
            give(call, argument, shown(call, foreground))
        }
        TIOCGSID => match sessions::owner(call.task, &pair.terminal(), true)? {
            (0, _) => Err(Errno::ENOTTY.into()),
            (session, _) => give(call, argument, shown(call, session)),
        },
        TIOCSCTTY | TIOCNOTTY => Err(Errno::ENOTTY.into()),
        TCSETS | TCSETSW | TCSETSF | TCSETS2 | TCSETSW2 | TCSETSF2 => {
            set_termios(pair, call, request, argument)
        }
        _ => common(pair, call, request, argument),
    }
}

/// A process group or session as whoever asks sees it.
fn shown(call: &Call<'_>, number: Pid) -> u32 {
    if number == 0 { 0 } else { call.task.shown(number).cast_unsigned() }
}

/// Of a slave.
pub(super) fn slave(pair: &Arc<Pair>, call: &mut Call<'_>, request: u32, argument: u64) -> SysResult {
    let terminal = pair.terminal();
    let background = |call: &Call<'_>| sessions::check(call.task, &terminal, libc::SIGTTOU);
    match request {
        TIOCSCTTY => done(sessions::take(call.task, &terminal, int(argument) == 1, true)),
        TIOCNOTTY => done(sessions::give_up(call.task, &terminal)),
        TIOCGPGRP => {
            let (_, foreground) = sessions::owner(call.task, &terminal, false)?;
            give(call, argument, shown(call, foreground))
        }
        TIOCGSID => {
            let (session, _) = sessions::owner(call.task, &terminal, false)?;
            give(call, argument, shown(call, session))
        }
        TIOCSPGRP => {
            let pgid = call.read_u32(argument)?.cast_signed();
            sessions::set_foreground(call.task, &terminal, pgid).map(|()| 0)
        }
        TCSETS | TCSETSW | TCSETSF | TCSETS2 | TCSETSW2 | TCSETSF2 => {
            background(call)?;
            set_termios(pair, call, request, argument)
        }
        TCFLSH => {
            background(call)?;
            let what = int(argument);
            if !(0..=2).contains(&what) {
                return Err(Errno::EINVAL.into());
            }
            pair.flush(what != 1, what != 0);
            Ok(0)
        }
        TCXONC => {
            background(call)?;
            flow(pair, int(argument))
        }
        TCSBRK | TCSBRKP => background(call).map(|()| 0),
        _ => common(pair, call, request, argument),
    }
}

/// Of both ends.
fn common(pair: &Arc<Pair>, call: &mut Call<'_>, request: u32, argument: u64) -> SysResult {
    let privileged = call.task.credentials().capable(capability::SYS_ADMIN);
    match request {
        TCGETS | TCGETS2 => {
            let bytes = pair.with(|state| state.line.termios().to_bytes());
            let size = if request == TCGETS { Termios::SIZE } else { Termios::SIZE2 };
            done(call.write(argument, &bytes[..size]))
        }
        TIOCGWINSZ => done(call.write(argument, &pair.with(|state| state.size))),
        TIOCSWINSZ => {
            let size = call.read_array(argument)?;
            if pair.with(|state| std::mem::replace(&mut state.size, size)) != size {
                pair.signal(libc::SIGWINCH);
            }
            Ok(0)
        }
        TIOCOUTQ => give(call, argument, 0),
        TIOCGETD => give(call, argument, 0),
        TIOCSTI => Err(Errno::EIO.into()),
        TIOCCONS => Err(if privileged { Errno::EBUSY } else { Errno::EPERM }.into()),
        TIOCEXCL | TIOCNXCL => {
            pair.with(|state| state.exclusive = request == TIOCEXCL);
            Ok(0)
        }
        TIOCGEXCL => give(call, argument, pair.with(|state| state.exclusive).into()),
        TIOCVHANGUP if privileged => {
            pair.hang_up();
            Ok(0)
        }
        TIOCVHANGUP => Err(Errno::EPERM.into()),
        TCXONC => flow(pair, int(argument)),
        TCSBRK | TCSBRKP => Ok(0),
        _ => Err(Errno::ENOTTY.into()),
    }
}

fn set_termios(pair: &Arc<Pair>, call: &Call<'_>, request: u32, argument: u64) -> SysResult {
    let mut bytes = pair.with(|state| state.line.termios().to_bytes());
    let two = matches!(request, TCSETS2 | TCSETSW2 | TCSETSF2);
    let size = if two { Termios::SIZE2 } else { Termios::SIZE };
    call.read(argument, &mut bytes[..size])?;
    pair.set_termios(Termios::from_bytes(&bytes), matches!(request, TCSETSF | TCSETSF2));
    Ok(0)
}

/// `TCXONC`: output is held or goes on; or the other end is told so.
fn flow(pair: &Arc<Pair>, action: i32) -> SysResult {
    match action {
        0 | 1 => pair.drive(|line, output, told| line.hold(action == 0, output, told)),
        2 | 3 => {
            let place = if action == 2 { super::termios::place::STOP } else { super::termios::place::START };
            pair.send_to_master(place);
        }
        _ => return Err(SysError::Errno(Errno::EINVAL)),
    }
    Ok(0)
}
