//! Annotations `org.systemd.property.NAME`: properties that an engine wants the container's unit to have, as runc takes them. A value is in GVariant's
//! text form (GLib, "GVariant Text Format"), of which what properties have is read: truth, numbers, text, lists of text.

use serde_json::Value;

use super::bus::Property;
use crate::cgroup::CgroupError;

const PREFIX: &str = "org.systemd.property.";
/// Most words of a list.
const MOST: usize = 256;

/// Those that a container has.
pub(super) fn properties(annotations: &Value) -> Result<Vec<Property>, CgroupError> {
    let all = annotations.as_object().into_iter().flatten();
    let ours = all.filter_map(|(key, value)| {
        Some((key, key.strip_prefix(PREFIX)?, value.as_str().unwrap_or_default()))
    });
    ours.filter(|(_, name, _)| !name.is_empty())
        .map(|(key, name, value)| {
            let sound = name.len() >= 3 && name.bytes().all(|byte| byte.is_ascii_alphabetic());
            let property = if sound { property(name, value.trim()) } else { None };
            property.ok_or_else(|| CgroupError::SystemdProperty { key: key.clone(), value: value.to_owned() })
        })
        .collect()
}

fn property(name: &str, value: &str) -> Option<Property> {
    // Time is told in seconds, and kept in microseconds.
    if let Some(stem) =
        name.strip_suffix("Sec").filter(|stem| stem.ends_with(|last: char| last.is_ascii_lowercase()))
    {
        let (_, number) = value.split_once(' ').unwrap_or(("", value));
        let seconds: f64 = number.trim().parse().ok()?;
        if !(0.0..=1e12).contains(&seconds) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
        let micros = (seconds * 1e6) as u64;
        return Some(Property::number(&format!("{stem}USec"), micros));
    }
    if let Some(text) = quoted(value) {
        return Some(Property::text(name, &text));
    }
    if let Some(items) = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let items: Vec<String> = items.split(',').map(|item| quoted(item.trim())).collect::<Option<_>>()?;
        let count = items.len().to_string();
        let words: Vec<&str> = ["as", &count].into_iter().chain(items.iter().map(String::as_str)).collect();
        return (items.len() <= MOST).then(|| Property::new(name, &words));
    }
    let (kind, number) = value.split_once(' ').unwrap_or(("int32", value));
    let number = number.trim();
    let word = match kind {
        "int32" if matches!(number, "true" | "false") => return Some(Property::flag(name, number == "true")),
        "int32" => ("i", number.parse::<i32>().ok()?.to_string()),
        "byte" => ("y", number.parse::<u8>().ok()?.to_string()),
        "int16" => ("n", number.parse::<i16>().ok()?.to_string()),
        "uint16" => ("q", number.parse::<u16>().ok()?.to_string()),
        "uint32" => ("u", number.parse::<u32>().ok()?.to_string()),
        "int64" => ("x", number.parse::<i64>().ok()?.to_string()),
        "uint64" => ("t", number.parse::<u64>().ok()?.to_string()),
        _ => return None,
    };
    Some(Property::new(name, &[word.0, &word.1]))
}

/// Text in quotation marks, without escapes.
fn quoted(text: &str) -> Option<String> {
    let inner = ['\'', '"'].into_iter().find_map(|mark| text.strip_prefix(mark)?.strip_suffix(mark))?;
    (!inner.contains(['\'', '"', '\\'])).then(|| inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(name: &str, value: &str) -> Option<String> {
        let annotations = json!({ format!("{PREFIX}{name}"): value, "dev.kata-cc.x": "y" });
        properties(&annotations)
            .ok()
            .map(|all| all.iter().map(Property::to_string).collect::<Vec<_>>().join(";"))
    }

    #[test]
    fn values_are_those_of_gvariant() {
        assert_eq!(
            of("CollectMode", "'inactive-or-failed'").as_deref(),
            Some("CollectMode s inactive-or-failed")
        );
        assert_eq!(of("SendSIGHUP", "true").as_deref(), Some("SendSIGHUP b true"));
        assert_eq!(of("KillSignal", "37").as_deref(), Some("KillSignal i 37"));
        assert_eq!(of("TimeoutStopUSec", "uint64 10000000").as_deref(), Some("TimeoutStopUSec t 10000000"));
        assert_eq!(of("TimeoutStopSec", "uint32 10").as_deref(), Some("TimeoutStopUSec t 10000000"));
        assert_eq!(
            of("After", "['a.service', 'b.service']").as_deref(),
            Some("After as 2 a.service b.service")
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        for (name, value) in [
            ("Ab", "1"),
            ("A-bcd", "1"),
            ("Abc", ""),
            ("Abc", "bare"),
            ("Abc", "'a"),
            ("Abc", "uint64 -1"),
            ("Abc", "[1, 2]"),
            ("StopSec", "-1"),
            ("StopSec", "x"),
        ] {
            assert_eq!(of(name, value), None, "{name} {value}");
        }
        let error = properties(&json!({"org.systemd.property.Abc": "bare"})).unwrap_err().to_string();
        assert!(error.contains("org.systemd.property.Abc") && error.contains("bare"), "{error}");
        assert_eq!(properties(&json!({"other": "1"})).unwrap(), []);
    }
}
