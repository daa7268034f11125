//! The line discipline (`drivers/tty/n_tty.c`): bytes in, bytes and signals out. It knows nothing of files and tasks.

use std::collections::VecDeque;

use super::termios::{Termios, flag, place};

/// Bytes of input that are kept (`N_TTY_BUF_SIZE`).
const SIZE: usize = 4096;
/// Echoes that are kept while output is stopped.
const ECHOES: usize = 4096;

/// One byte of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Input {
    byte: u8,
    /// A line ends behind it.
    end: bool,
}

/// What is to be echoed (`ECHO_OP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Echo {
    /// As output.
    Byte(u8),
    /// Whatever it does elsewhere: 255.
    Plain(u8),
    /// `^C`.
    Control(u8),
    SetCanonColumn,
    MoveBack,
    EraseTab {
        columns: u32,
        after_tab: bool,
    },
}

/// What happened besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    /// The foreground process group gets this signal.
    Signal(i32),
    /// Input that was there is gone.
    Flushed,
    /// Output stands still.
    Stopped,
    /// Output goes on.
    Started,
}

/// State of a terminal.
#[derive(Default)]
pub(super) struct Discipline {
    termios: Termios,
    input: VecDeque<Input>,
    /// Bytes of `input` that are in whole lines.
    canon: usize,
    /// The next byte is part of the line whatever it is (`VLNEXT`).
    literal_next: bool,
    erasing: bool,
    column: u32,
    canon_column: u32,
    echoes: VecDeque<Echo>,
    /// By `VSTOP`.
    stopped: bool,
    /// By `tcflow(TCOOFF)`.
    held: bool,
}

fn is_control(byte: u8) -> bool {
    byte < 32 || byte == 127
}

/// `isalnum` of the kernel, which knows Latin 1.
fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || (byte >= 192 && byte != 215 && byte != 247)
}

fn to_lower(byte: u8) -> u8 {
    if byte.is_ascii_uppercase() || (192..=222).contains(&byte) && byte != 215 { byte | 32 } else { byte }
}

fn to_upper(byte: u8) -> u8 {
    if byte.is_ascii_lowercase() || (byte >= 223 && byte != 247) { byte.wrapping_sub(32) } else { byte }
}

impl Discipline {
    /// Its settings.
    #[must_use]
    pub(super) fn termios(&self) -> &Termios {
        &self.termios
    }

    fn canonical(&self) -> bool {
        self.termios.l(flag::ICANON)
    }

    fn lines(&self) -> bool {
        self.canonical() && !self.termios.l(flag::EXTPROC)
    }

    /// Changes its settings (`n_tty_set_termios`).
    pub(super) fn set_termios(&mut self, new: Termios, output: &mut VecDeque<u8>, told: &mut Vec<Happened>) {
        let old = std::mem::replace(&mut self.termios, new);
        if (old.local ^ new.local) & (flag::ICANON | flag::EXTPROC) != 0 {
            for input in &mut self.input {
                input.end = false;
            }
            self.canon = 0;
            if self.canonical()
                && let Some(last) = self.input.back_mut()
            {
                last.end = true;
                self.canon = self.input.len();
            }
            (self.erasing, self.literal_next) = (false, false);
        }
        if !new.i(flag::IXON) && old.i(flag::IXON) && !self.held {
            self.start(told);
            self.echo_all(output);
        }
    }

    /// Whether output stands still.
    #[must_use]
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped || self.held
    }

    /// `tcflow(TCOOFF)` and `tcflow(TCOON)`.
    pub(super) fn hold(&mut self, hold: bool, output: &mut VecDeque<u8>, told: &mut Vec<Happened>) {
        if hold {
            if !self.held {
                self.held = true;
                told.push(Happened::Stopped);
            }
        } else if self.held {
            self.held = false;
            self.stopped = false;
            told.push(Happened::Started);
            self.echo_all(output);
        }
    }

    fn start(&mut self, told: &mut Vec<Happened>) {
        if self.stopped && !self.held {
            self.stopped = false;
            told.push(Happened::Started);
        }
    }

    /// Forgets input (`reset_buffer_flags`).
    pub(super) fn flush_input(&mut self) {
        self.input.clear();
        self.canon = 0;
        (self.erasing, self.literal_next) = (false, false);
    }

    /// Takes input; how much of it, fewer than there is when nobody reads.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        output: &mut VecDeque<u8>,
        told: &mut Vec<Happened>,
    ) -> usize {
        let mut taken = 0usize;
        for byte in bytes {
            if !self.make_room() {
                break;
            }
            taken = taken.saturating_add(1);
            self.receive_byte(*byte, told);
        }
        self.echo_all(output);
        taken
    }

    /// A line that is too long goes on with its last place overwritten; whole lines wait until they are read.
    fn make_room(&mut self) -> bool {
        let free = SIZE.saturating_sub(self.input.len());
        let room = if self.termios.i(flag::PARMRK) { free.div_ceil(3) } else { free };
        if room > 1 {
            return true;
        }
        let overflow = self.canonical() && self.canon == 0;
        if overflow && room == 0 {
            self.input.pop_back();
        }
        overflow
    }

    fn cooked(&self) -> bool {
        let input =
            flag::ISTRIP | flag::IUCLC | flag::IGNCR | flag::ICRNL | flag::INLCR | flag::IXON | flag::PARMRK;
        self.termios.i(input) || self.termios.l(flag::ICANON | flag::ISIG | flag::ECHO)
    }

    fn receive_byte(&mut self, byte: u8, told: &mut Vec<Happened>) {
        if !self.cooked() {
            self.put(byte, false);
            return;
        }
        let mut byte = byte;
        if self.termios.i(flag::ISTRIP) {
            byte &= 0x7f;
        }
        if self.termios.i(flag::IUCLC) && self.termios.l(flag::IEXTEN) {
            byte = to_lower(byte);
        }
        if self.termios.l(flag::EXTPROC) {
            self.put(byte, false);
        } else if std::mem::take(&mut self.literal_next) || !self.is_special(byte) {
            self.receive_plain(byte, told);
        } else {
            self.receive_special(byte, told);
        }
    }

    /// Whether a byte may mean something else than itself (`char_map`).
    fn is_special(&self, byte: u8) -> bool {
        let t = &self.termios;
        let is = |place| t.is(place, byte);
        if byte == 0 {
            return false;
        }
        let extended = t.l(flag::IEXTEN)
            && (is(place::WERASE)
                || is(place::LNEXT)
                || is(place::EOL2)
                || t.l(flag::ECHO) && is(place::REPRINT));
        let line = byte == b'\n' || is(place::ERASE) || is(place::KILL) || is(place::EOF) || is(place::EOL);
        byte == b'\r' && t.i(flag::IGNCR | flag::ICRNL)
            || byte == b'\n' && t.i(flag::INLCR)
            || t.l(flag::ICANON) && (line || extended)
            || t.i(flag::IXON) && (is(place::START) || is(place::STOP))
            || t.l(flag::ISIG) && (is(place::INTR) || is(place::QUIT) || is(place::SUSP))
    }

    fn start_by_any(&mut self, told: &mut Vec<Happened>) {
        if self.termios.i(flag::IXON) && self.termios.i(flag::IXANY) {
            self.start(told);
        }
    }

    fn receive_plain(&mut self, byte: u8, told: &mut Vec<Happened>) {
        self.start_by_any(told);
        if self.termios.l(flag::ECHO) {
            self.finish_erasing();
            self.echo_input(byte);
        }
        self.put_marked(byte);
    }

    fn echo_input(&mut self, byte: u8) {
        if self.canon == self.input.len() {
            self.push_echo(Echo::SetCanonColumn);
        }
        self.echo(byte);
    }

    /// A 255 is doubled where parity errors are marked.
    fn put_marked(&mut self, byte: u8) {
        if byte == 255 && self.termios.i(flag::PARMRK) {
            self.put(byte, false);
        }
        self.put(byte, false);
    }

    fn put(&mut self, byte: u8, end: bool) {
        self.input.push_back(Input { byte, end });
        if end {
            self.canon = self.input.len();
        }
    }

    fn receive_special(&mut self, byte: u8, told: &mut Vec<Happened>) {
        let t = self.termios;
        if t.i(flag::IXON) && t.is(place::START, byte) {
            self.start(told);
            return;
        }
        if t.i(flag::IXON) && t.is(place::STOP, byte) {
            if !self.stopped {
                self.stopped = true;
                told.push(Happened::Stopped);
            }
            return;
        }
        if t.l(flag::ISIG) {
            let signals =
                [(place::INTR, libc::SIGINT), (place::QUIT, libc::SIGQUIT), (place::SUSP, libc::SIGTSTP)];
            if let Some((_, signal)) = signals.into_iter().find(|(place, _)| t.is(*place, byte)) {
                return self.receive_signal(byte, signal, told);
            }
        }
        self.start_by_any(told);
        let byte = match byte {
            b'\r' if t.i(flag::IGNCR) => return,
            b'\r' if t.i(flag::ICRNL) => b'\n',
            b'\n' if t.i(flag::INLCR) => b'\r',
            byte => byte,
        };
        if self.canonical() && self.receive_canonical(byte) {
            return;
        }
        if t.l(flag::ECHO) {
            self.finish_erasing();
            if byte == b'\n' { self.push_echo(Echo::Byte(b'\n')) } else { self.echo_input(byte) }
        }
        self.put_marked(byte);
    }

    fn receive_signal(&mut self, byte: u8, signal: i32, told: &mut Vec<Happened>) {
        told.push(Happened::Signal(signal));
        if !self.termios.l(flag::NOFLSH) {
            self.echoes.clear();
            self.flush_input();
            told.push(Happened::Flushed);
        }
        if self.termios.i(flag::IXON) {
            self.start(told);
        }
        if self.termios.l(flag::ECHO) {
            self.echo(byte);
        }
    }

    /// What has a meaning in a line. `false` where it is part of the line.
    fn receive_canonical(&mut self, byte: u8) -> bool {
        let t = self.termios;
        let (echo, extended) = (t.l(flag::ECHO), t.l(flag::IEXTEN));
        if t.is(place::ERASE, byte) || t.is(place::KILL, byte) || extended && t.is(place::WERASE, byte) {
            self.erase(byte);
        } else if extended && t.is(place::LNEXT, byte) {
            self.literal_next = true;
            if echo {
                self.finish_erasing();
                if t.l(flag::ECHOCTL) {
                    self.push_echo(Echo::Byte(b'^'));
                    self.push_echo(Echo::Byte(8));
                }
            }
        } else if extended && echo && t.is(place::REPRINT, byte) {
            self.finish_erasing();
            self.echo(byte);
            self.push_echo(Echo::Byte(b'\n'));
            for at in self.canon..self.input.len() {
                if let Some(input) = self.input.get(at).copied() {
                    self.echo(input.byte);
                }
            }
        } else if byte == b'\n' {
            if t.l(flag::ECHO | flag::ECHONL) {
                self.push_echo(Echo::Byte(b'\n'));
            }
            self.put(byte, true);
        } else if t.is(place::EOF, byte) {
            self.put(0, true);
        } else if t.is(place::EOL, byte) || extended && t.is(place::EOL2, byte) {
            if echo {
                self.echo_input(byte);
            }
            if byte == 255 && t.i(flag::PARMRK) {
                self.put(byte, false);
            }
            self.put(byte, true);
        } else {
            return false;
        }
        true
    }

    fn continues(&self, byte: u8) -> bool {
        self.termios.i(flag::IUTF8) && byte & 0xc0 == 0x80
    }

    /// Erases a character, a word or the line (`eraser`).
    fn erase(&mut self, by: u8) {
        let t = self.termios;
        if self.input.len() == self.canon {
            return;
        }
        let (one, word) = (t.is(place::ERASE, by), t.is(place::WERASE, by));
        if !one && !word {
            if !t.l(flag::ECHO) {
                self.input.truncate(self.canon);
                return;
            }
            if !t.l(flag::ECHOK) || !t.l(flag::ECHOKE) || !t.l(flag::ECHOE) {
                self.input.truncate(self.canon);
                self.finish_erasing();
                self.echo(t.chars[place::KILL]);
                if t.l(flag::ECHOK) {
                    self.push_echo(Echo::Byte(b'\n'));
                }
                return;
            }
        }
        let mut seen = false;
        while let Some((head, byte)) = self.last_character() {
            if word && !one {
                if is_alphanumeric(byte) || byte == b'_' {
                    seen = true;
                } else if seen {
                    break;
                }
            }
            let tail: Vec<u8> = self.input.drain(head..).skip(1).map(|input| input.byte).collect();
            if t.l(flag::ECHO) {
                self.echo_erased(byte, &tail, one);
            }
            if one {
                break;
            }
        }
        if self.input.len() == self.canon && t.l(flag::ECHO) {
            self.finish_erasing();
        }
    }

    /// Where the last character of the line begins, and its first byte; `None` also for a part of one.
    fn last_character(&self) -> Option<(usize, u8)> {
        let mut head = self.input.len();
        while head > self.canon {
            head = head.checked_sub(1)?;
            let byte = self.input.get(head)?.byte;
            if !self.continues(byte) {
                return Some((head, byte));
            }
        }
        None
    }

    fn echo_erased(&mut self, byte: u8, tail: &[u8], one: bool) {
        let t = self.termios;
        if t.l(flag::ECHOPRT) {
            if !self.erasing {
                self.push_echo(Echo::Byte(b'\\'));
                self.erasing = true;
            }
            self.echo(byte);
            for more in tail {
                self.echo_raw(*more);
                self.push_echo(Echo::MoveBack);
            }
        } else if one && !t.l(flag::ECHOE) {
            self.echo(t.chars[place::ERASE]);
        } else if byte == b'\t' {
            self.echo_erased_tab();
        } else {
            let twice = is_control(byte) && t.l(flag::ECHOCTL);
            let once = !is_control(byte) || t.l(flag::ECHOCTL);
            for _ in 0..u32::from(twice) + u32::from(once) {
                [8, b' ', 8].into_iter().for_each(|byte| self.push_echo(Echo::Byte(byte)));
            }
        }
    }

    fn echo_erased_tab(&mut self) {
        let (mut columns, mut after_tab) = (0u32, false);
        for at in (self.canon..self.input.len()).rev() {
            let Some(input) = self.input.get(at) else { break };
            if input.byte == b'\t' {
                after_tab = true;
                break;
            }
            if is_control(input.byte) {
                columns += if self.termios.l(flag::ECHOCTL) { 2 } else { 0 };
            } else if !self.continues(input.byte) {
                columns += 1;
            }
        }
        self.push_echo(Echo::EraseTab { columns: columns & 7, after_tab });
    }

    fn finish_erasing(&mut self) {
        if std::mem::take(&mut self.erasing) {
            self.push_echo(Echo::Byte(b'/'));
        }
    }

    fn push_echo(&mut self, echo: Echo) {
        if self.echoes.len() >= ECHOES {
            self.echoes.pop_front();
        }
        self.echoes.push_back(echo);
    }

    fn echo_raw(&mut self, byte: u8) {
        self.push_echo(if byte == 255 { Echo::Plain(byte) } else { Echo::Byte(byte) });
    }

    fn echo(&mut self, byte: u8) {
        if byte != b'\t' && is_control(byte) && self.termios.l(flag::ECHOCTL) {
            self.push_echo(Echo::Control(byte));
        } else {
            self.echo_raw(byte);
        }
    }

    /// Puts out what is to be echoed, unless output stands still.
    pub(super) fn echo_all(&mut self, output: &mut VecDeque<u8>) {
        while !self.is_stopped()
            && let Some(echo) = self.echoes.pop_front()
        {
            match echo {
                Echo::Byte(byte) if self.termios.o(flag::OPOST) => self.put_out(byte, output),
                Echo::Byte(byte) => output.push_back(byte),
                Echo::Plain(byte) => {
                    output.push_back(byte);
                    self.column = self.column.wrapping_add(1);
                }
                Echo::Control(byte) => {
                    output.extend([b'^', byte ^ 0o100]);
                    self.column = self.column.wrapping_add(2);
                }
                Echo::SetCanonColumn => self.canon_column = self.column,
                Echo::MoveBack => self.column = self.column.saturating_sub(1),
                Echo::EraseTab { columns, after_tab } => {
                    let columns = if after_tab { columns } else { columns.wrapping_add(self.canon_column) };
                    for _ in 0..8 - (columns & 7) {
                        output.push_back(8);
                        self.column = self.column.saturating_sub(1);
                    }
                }
            }
        }
    }

    /// Writes: how much of it, as long as there is room for it; nothing while output stands still.
    pub(super) fn write(&mut self, bytes: &[u8], output: &mut VecDeque<u8>, limit: usize) -> usize {
        self.echo_all(output);
        if self.is_stopped() {
            return 0;
        }
        if !self.termios.o(flag::OPOST) {
            let count = limit.saturating_sub(output.len()).min(bytes.len());
            output.extend(bytes.iter().take(count));
            return count;
        }
        let mut done = 0usize;
        for byte in bytes {
            if output.len().saturating_add(8) > limit {
                break;
            }
            self.put_out(*byte, output);
            done = done.saturating_add(1);
        }
        done
    }

    /// One byte of output (`do_output_char`).
    fn put_out(&mut self, byte: u8, output: &mut VecDeque<u8>) {
        let t = self.termios;
        let mut byte = byte;
        match byte {
            b'\n' => {
                if t.o(flag::ONLRET) {
                    self.column = 0;
                }
                if t.o(flag::ONLCR) {
                    (self.column, self.canon_column) = (0, 0);
                    output.push_back(b'\r');
                } else {
                    self.canon_column = self.column;
                }
            }
            b'\r' if t.o(flag::ONOCR) && self.column == 0 => return,
            b'\r' if t.o(flag::OCRNL) => {
                byte = b'\n';
                if t.o(flag::ONLRET) {
                    (self.column, self.canon_column) = (0, 0);
                }
            }
            b'\r' => (self.column, self.canon_column) = (0, 0),
            b'\t' => {
                let spaces = 8 - (self.column & 7);
                self.column = self.column.wrapping_add(spaces);
                if t.output & flag::XTABS == flag::XTABS {
                    output.extend((0..spaces).map(|_| b' '));
                    return;
                }
            }
            8 => self.column = self.column.saturating_sub(1),
            _ if is_control(byte) => {}
            _ => {
                if t.o(flag::OLCUC) {
                    byte = to_upper(byte);
                }
                if !self.continues(byte) {
                    self.column = self.column.wrapping_add(1);
                }
            }
        }
        output.push_back(byte);
    }

    /// Bytes that a read could take now.
    #[must_use]
    pub(super) fn available(&self) -> usize {
        if !self.lines() {
            return self.input.len();
        }
        let marks = self.input.iter().take(self.canon).filter(|input| input.end && input.byte == 0);
        self.canon.saturating_sub(marks.count())
    }

    /// Whether a read would take something: a line, which may be empty, or so many bytes.
    #[must_use]
    pub(super) fn readable(&self, minimum: usize) -> bool {
        if self.lines() { self.canon > 0 } else { self.input.len() >= minimum.max(1) }
    }

    /// Takes input: at most a line in canonical mode.
    pub(super) fn read(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0usize;
        if !self.lines() {
            let count = to.len().min(self.input.len());
            for (place, input) in to.iter_mut().zip(self.input.drain(..count)) {
                *place = input.byte;
            }
            self.canon = self.canon.saturating_sub(count);
            return count;
        }
        while self.canon > 0 {
            let Some(input) = self.input.front().copied() else { break };
            let is_mark = input.end && input.byte == 0;
            if !is_mark {
                let Some(place) = to.get_mut(done) else { break };
                *place = input.byte;
                done = done.saturating_add(1);
            } else if to.is_empty() {
                break;
            }
            self.input.pop_front();
            self.canon = self.canon.saturating_sub(1);
            if input.end {
                break;
            }
        }
        done
    }
}
