//! The `CONNECT <port>\n` line, byte by byte as it comes: what follows the newline belongs to the connection.

/// Longest line, with its newline.
const MAX_LINE: usize = 32;

/// A line in the making.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    line: Vec<u8>,
}

/// What a byte led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The line is not complete.
    More,
    /// The client wants this port of the guest.
    Port(u32),
    /// Not the protocol: hang up.
    Bad,
}

impl Handshake {
    pub(super) fn push(&mut self, byte: u8) -> Step {
        if byte == b'\n' {
            return parse(&self.line).map_or(Step::Bad, Step::Port);
        }
        self.line.push(byte);
        if self.line.len() >= MAX_LINE { Step::Bad } else { Step::More }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let (keyword, port) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    // `u32::from_str` would take a sign.
    if !keyword.eq_ignore_ascii_case("connect") || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(text: &[u8]) -> Vec<Step> {
        let mut handshake = Handshake::default();
        text.iter().map(|byte| handshake.push(*byte)).collect()
    }

    #[test]
    fn one_byte_at_a_time() {
        let steps = feed(b"CONNECT 1024\n");
        assert_eq!(steps.last(), Some(&Step::Port(1024)));
        assert!(steps[..steps.len() - 1].iter().all(|step| *step == Step::More));
        assert_eq!(feed(b"connect 4294967295\n").last(), Some(&Step::Port(u32::MAX)));
    }

    #[test]
    fn refused_lines() {
        for line in [
            "CONNECT\n",
            "CONNECT \n",
            "CONNECT +1\n",
            "CONNECT 4294967296\n",
            "GET 1\n",
            "CONNECT 1 \n",
            "\n",
            "\u{e9} 1\n",
        ] {
            assert_eq!(feed(line.as_bytes()).last(), Some(&Step::Bad), "{line:?}");
        }
        // No newline within the limit: 32 bytes are enough to hang up.
        assert_eq!(feed(&[b'1'; 32]).last(), Some(&Step::Bad));
        assert_eq!(feed(&[b'1'; 31]).last(), Some(&Step::More));
    }
}
