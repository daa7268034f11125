//! Signals by name and number (signal(7)).

use nix::sys::signal::Signal;

use crate::error::OciError;

/// The first of the realtime signals that programs may use, as the C library counts.
const RT_MIN: u32 = 34;
const RT_MAX: u32 = 64;

/// `KILL`, `SIGKILL`, `9`, `RTMIN+3`.
pub(super) fn parse(text: &str) -> Result<u32, OciError> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse::<u32>() {
        Ok(number) => Some(number),
        Err(_) => named(name),
    };
    number.filter(|number| *number <= RT_MAX).ok_or_else(|| {
        OciError::Usage(format!("unknown signal {text:?}: give a name such as TERM, or a number up to 64"))
    })
}

fn named(name: &str) -> Option<u32> {
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return Some(
            RT_MIN
                + if rest.is_empty() {
                    0
                } else {
                    rest.strip_prefix('+')?.parse::<u32>().ok().filter(|n| *n <= 30)?
                },
        );
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return Some(
            RT_MAX
                - if rest.is_empty() {
                    0
                } else {
                    rest.strip_prefix('-')?.parse::<u32>().ok().filter(|n| *n <= 30)?
                },
        );
    }
    let name = match name {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        other => other,
    };
    let signal: Signal = format!("SIG{name}").parse().ok()?;
    u32::try_from(signal as i32).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("9", 9),
            ("0", 0),
            ("WINCH", 28),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("CLD", 17),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in ["", "SIG", "FROB", "65", "-1", "RTMIN+99", "RTMIN-1"] {
            assert!(parse(bad).unwrap_err().to_string().contains("unknown signal"), "{bad}");
        }
    }
}
