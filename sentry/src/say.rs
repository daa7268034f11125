//! Lines on standard error. Monitor, sentry and gofers share one, so that a line must be a single `write`: `eprintln!` makes one for each
//! part of its format, and what another process says in between is then found in the middle of it.

use std::fmt::Arguments;
use std::io::Write;

/// Most bytes of a line that [`Brief`] holds; a longer one is cut.
const BRIEF: usize = 160;

/// Writes a line in one piece. That nobody reads it is no error.
pub fn line(text: Arguments<'_>) {
    let mut line = text.to_string();
    line.push('\n');
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A line made where nothing may be allocated, as in a handler of signals.
pub(crate) struct Brief {
    bytes: [u8; BRIEF],
    used: usize,
}

impl Brief {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; BRIEF], used: 0 }
    }

    pub(crate) fn push(&mut self, part: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.used).zip(part) {
            *to = *from;
            self.used += 1;
        }
    }

    /// In decimal.
    pub(crate) fn push_number(&mut self, mut number: u64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return self.push(&digits[at..]);
            }
        }
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// Writes it as it is, in one piece.
    pub(crate) fn say(&self) {
        let text = self.text();
        // SAFETY: the bytes are borrowed.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brief_line_is_joined_and_cut() {
        let mut line = Brief::new();
        line.push(b"call ");
        line.push_number(0);
        line.push(b" and ");
        line.push_number(u64::MAX);
        assert_eq!(line.text(), b"call 0 and 18446744073709551615");
        line.push(&[b'x'; 2 * BRIEF]);
        line.push_number(7);
        assert_eq!(line.text().len(), BRIEF);
        assert!(line.text().starts_with(b"call 0 and 18446744073709551615xxx"));
    }
}
