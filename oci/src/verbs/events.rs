//! `events`: what a container uses, and that it is out of memory, a line of JSON each.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Context, say};
use crate::arguments::Events;
use crate::cgroup::{Groups, stats};
use crate::error::OciError;
use crate::store::{State, Status};

/// How often it is looked whether memory ran out, or the container ended.
const LOOK: Duration = Duration::from_millis(200);

/// The verb.
pub(super) fn events(context: &Context, arguments: &Events) -> Result<u8, OciError> {
    let interval = duration(&arguments.interval)?;
    let (_, state) = context.store.load(&arguments.id)?;
    let status = state.status();
    if status == Status::Stopped {
        return Err(OciError::NotRunning { id: state.id, status });
    }
    let groups = state.groups.as_ref().ok_or_else(|| {
        OciError::Usage("the container has no control groups, and nothing counts what it uses".into())
    })?;
    if arguments.stats {
        return tell(&state, "stats", &stats::stats(groups));
    }
    follow(&state, groups, interval)
}

fn follow(state: &State, groups: &Groups, interval: Duration) -> Result<u8, OciError> {
    let mut killed = groups.out_of_memory();
    let mut told = Instant::now();
    loop {
        std::thread::sleep(LOOK.min(interval));
        let now = groups.out_of_memory();
        if now > killed {
            killed = now;
            tell(state, "oom", &Value::Null)?;
        }
        if !state.process.alive() {
            return Ok(0);
        }
        if told.elapsed() >= interval {
            told = Instant::now();
            tell(state, "stats", &stats::stats(groups))?;
        }
    }
}

fn tell(state: &State, kind: &str, data: &Value) -> Result<u8, OciError> {
    let mut line = json!({"type": kind, "id": state.id});
    if !data.is_null() {
        line["data"] = data.clone();
    }
    say(&format!("{line}\n"))
}

/// Go's durations as far as they are used here: `1h2m3s`, `500ms`.
fn duration(text: &str) -> Result<Duration, OciError> {
    let refused =
        || OciError::Usage(format!("--interval {text:?}: a time above 0 is needed, such as 5s, 1m or 500ms"));
    let mut all = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refused)?;
        let (number, after) = rest.split_at(end);
        let unit = after.find(|c: char| c.is_ascii_digit()).map_or(after, |at| after.split_at(at).0);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(refused()),
        };
        let number: f64 = number.parse().map_err(|_| refused())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| refused())?;
        all = all.checked_add(part).ok_or_else(refused)?;
        rest = after.strip_prefix(unit).unwrap_or_default();
    }
    if all.is_zero() { Err(refused()) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_gos() {
        for (text, millis) in
            [("5s", 5000), ("1m", 60_000), ("500ms", 500), ("1h2m3s", 3_723_000), ("1.5s", 1500)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "0s", "5", "x", "-1s", "1d", "1..s", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
