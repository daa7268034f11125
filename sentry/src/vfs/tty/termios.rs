//! Settings of a terminal (`man 3 termios`; `include/uapi/asm-generic/termbits.h`).

/// Flags that the line discipline looks at.
#[allow(missing_docs, reason = "names as the manual has them")]
pub(super) mod flag {
    // c_iflag
    pub(crate) const ISTRIP: u32 = 0o40;
    pub(crate) const INLCR: u32 = 0o100;
    pub(crate) const IGNCR: u32 = 0o200;
    pub(crate) const ICRNL: u32 = 0o400;
    pub(crate) const IUCLC: u32 = 0o1000;
    pub(crate) const PARMRK: u32 = 0o10;
    pub(crate) const IXON: u32 = 0o2000;
    pub(crate) const IXANY: u32 = 0o4000;
    pub(crate) const IUTF8: u32 = 0o40000;
    // c_oflag
    pub(crate) const OPOST: u32 = 0o1;
    pub(crate) const OLCUC: u32 = 0o2;
    pub(crate) const ONLCR: u32 = 0o4;
    pub(crate) const OCRNL: u32 = 0o10;
    pub(crate) const ONOCR: u32 = 0o20;
    pub(crate) const ONLRET: u32 = 0o40;
    pub(crate) const XTABS: u32 = 0o14000;
    // c_cflag
    pub(crate) const CSIZE: u32 = 0o60;
    pub(crate) const CS8: u32 = 0o60;
    pub(crate) const CREAD: u32 = 0o200;
    pub(crate) const PARENB: u32 = 0o400;
    // c_lflag
    pub(crate) const ISIG: u32 = 0o1;
    pub(crate) const ICANON: u32 = 0o2;
    pub(crate) const ECHO: u32 = 0o10;
    pub(crate) const ECHOE: u32 = 0o20;
    pub(crate) const ECHOK: u32 = 0o40;
    pub(crate) const ECHONL: u32 = 0o100;
    pub(crate) const NOFLSH: u32 = 0o200;
    pub(crate) const TOSTOP: u32 = 0o400;
    pub(crate) const ECHOCTL: u32 = 0o1000;
    pub(crate) const ECHOPRT: u32 = 0o2000;
    pub(crate) const ECHOKE: u32 = 0o4000;
    pub(crate) const IEXTEN: u32 = 0o100000;
    pub(crate) const EXTPROC: u32 = 0o200000;
}

/// Places in `c_cc`.
#[allow(missing_docs, reason = "names as the manual has them")]
pub(super) mod place {
    pub(crate) const INTR: usize = 0;
    pub(crate) const QUIT: usize = 1;
    pub(crate) const ERASE: usize = 2;
    pub(crate) const KILL: usize = 3;
    pub(crate) const EOF: usize = 4;
    pub(crate) const TIME: usize = 5;
    pub(crate) const MIN: usize = 6;
    pub(crate) const START: usize = 8;
    pub(crate) const STOP: usize = 9;
    pub(crate) const SUSP: usize = 10;
    pub(crate) const EOL: usize = 11;
    pub(crate) const REPRINT: usize = 12;
    pub(crate) const WERASE: usize = 14;
    pub(crate) const LNEXT: usize = 15;
    pub(crate) const EOL2: usize = 16;
}

/// Settings of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Termios {
    /// `c_iflag`.
    pub(super) input: u32,
    /// `c_oflag`.
    pub(super) output: u32,
    /// `c_cflag`.
    pub(super) control: u32,
    /// `c_lflag`.
    pub(super) local: u32,
    /// `c_line`.
    pub(super) line: u8,
    /// `c_cc`.
    pub(super) chars: [u8; 19],
    /// `c_ispeed`, `c_ospeed`.
    pub(super) speeds: [u32; 2],
}

impl Default for Termios {
    /// As `tty_std_termios` of `drivers/tty/tty_io.c`, with the speed of a pty.
    fn default() -> Self {
        use flag::{CREAD, CS8, ECHO, ECHOCTL, ECHOE, ECHOK, ECHOKE, ICANON, ICRNL, IEXTEN, ISIG, IXON};
        Self {
            input: ICRNL | IXON,
            output: flag::OPOST | flag::ONLCR,
            control: 0o17 | CS8 | CREAD,
            local: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
            line: 0,
            chars: [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0],
            speeds: [38_400; 2],
        }
    }
}

impl Termios {
    /// Bytes of `struct termios`.
    pub(crate) const SIZE: usize = 36;
    /// Bytes of `struct termios2`.
    pub(crate) const SIZE2: usize = 44;

    /// As `struct termios2`, of which `struct termios` is the beginning.
    #[must_use]
    pub(super) fn to_bytes(self) -> [u8; Self::SIZE2] {
        let mut bytes = [0; Self::SIZE2];
        let flags =
            [self.input, self.output, self.control, self.local].into_iter().flat_map(u32::to_le_bytes);
        let rest = std::iter::once(self.line).chain(self.chars);
        let speeds = self.speeds.into_iter().flat_map(u32::to_le_bytes);
        for (place, byte) in bytes.iter_mut().zip(flags.chain(rest).chain(speeds)) {
            *place = byte;
        }
        bytes
    }

    /// Out of `struct termios2`.
    #[must_use]
    pub(super) fn from_bytes(bytes: &[u8; Self::SIZE2]) -> Self {
        let word = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(four)
        };
        let mut chars = [0; 19];
        chars.copy_from_slice(&bytes[17..36]);
        Self {
            input: word(0),
            output: word(4),
            control: word(8),
            local: word(12),
            line: bytes[16],
            chars,
            speeds: [word(36), word(40)],
        }
    }

    /// Whether a flag of `c_iflag` is set.
    #[must_use]
    pub(super) fn i(&self, flag: u32) -> bool {
        self.input & flag != 0
    }

    /// Whether a flag of `c_oflag` is set.
    #[must_use]
    pub(super) fn o(&self, flag: u32) -> bool {
        self.output & flag != 0
    }

    /// Whether a flag of `c_lflag` is set.
    #[must_use]
    pub(super) fn l(&self, flag: u32) -> bool {
        self.local & flag != 0
    }

    /// Whether `byte` is the character at a place of `c_cc`; 0 there is none.
    #[must_use]
    pub(super) fn is(&self, place: usize, byte: u8) -> bool {
        byte != 0 && self.chars.get(place) == Some(&byte)
    }

    /// `VMIN` and `VTIME`.
    #[must_use]
    pub(super) fn minimum_and_time(&self) -> (usize, u8) {
        (usize::from(self.chars[place::MIN]), self.chars[place::TIME])
    }

    /// As a pty keeps it: 8 bits without parity.
    #[must_use]
    pub(super) fn of_pty(mut self) -> Self {
        self.control = self.control & !(flag::CSIZE | flag::PARENB) | flag::CS8 | flag::CREAD;
        self
    }
}
