//! Times on the command line and on paper: RFC 3339, or seconds since 1970.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Seconds since 1970 from `2025-09-01T00:00:00Z`, `2025-09-01`, or a number of seconds.
pub(in crate::commands) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("expected a time such as 2025-09-01T00:00:00Z, a date, or seconds since 1970, seen {text:?}")
    };
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| wrong());
    }
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = OffsetDateTime::parse(&whole, &Rfc3339).map_err(|_| wrong())?;
    u64::try_from(time.unix_timestamp()).map_err(|_| wrong())
}

/// The time now.
pub(in crate::commands) fn now() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0)
}

/// In RFC 3339.
pub(in crate::commands) fn utc(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{seconds} s after 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_three_forms() {
        for text in ["2025-09-01T00:00:00Z", "2025-09-01", "1756684800", "2025-09-01T02:00:00+02:00"] {
            assert_eq!(parse(text), Ok(1_756_684_800), "{text}");
        }
        for text in
            ["", "tomorrow", "2025-13-01", "1969-12-31", "99999999999999999999", "2025-09-01T00:00:00"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(utc(1_756_684_800), "2025-09-01T00:00:00Z");
        assert_eq!(utc(u64::MAX), format!("{} s after 1970", u64::MAX));
    }
}
