//! Where the time of the broker's steps goes, by its own histograms.

use std::collections::BTreeMap;

/// Counts of observations up to each bound, by histogram and labels.
pub(crate) struct Steps(BTreeMap<String, Vec<(f64, f64)>>);

/// Histograms that are told, with the label that names the step.
const TOLD: [(&str, &str); 3] = [
    ("kbs_http_request_duration_seconds_bucket{", "route"),
    ("kbs_step_duration_seconds_bucket{", "step"),
    ("kbs_store_duration_seconds_bucket{", "operation"),
];

impl Steps {
    /// Reads Prometheus' text.
    pub(crate) fn parse(text: &str) -> Self {
        let mut all: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for line in text.lines() {
            let Some((_, label)) = TOLD.iter().find(|(start, _)| line.starts_with(start)) else { continue };
            let (Some(name), Some(bound)) = (value(line, label), value(line, "le")) else { continue };
            let count = line.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0.0);
            let bound = bound.parse().unwrap_or(f64::INFINITY);
            all.entry(format!("{label} {name}")).or_default().push((bound, count));
        }
        Self(all)
    }

    /// A line for each step that was taken since `before`: how often, and below what most of it stayed.
    pub(crate) fn since(&self, before: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, after) in &self.0 {
            let earlier =
                |n: usize| before.0.get(name).and_then(|b| b.get(n)).map_or(0.0, |(_, count)| *count);
            let counts: Vec<(f64, f64)> =
                after.iter().enumerate().map(|(n, (bound, count))| (*bound, count - earlier(n))).collect();
            let all = counts.last().map_or(0.0, |(_, count)| *count);
            if all < 1.0 {
                continue;
            }
            let below = |part: f64| {
                counts.iter().find(|(_, count)| *count >= all * part).map_or(f64::INFINITY, |(b, _)| *b)
            };
            lines.push(format!(
                "{name}: {all:.0} times, half below {} ms, 99 of 100 below {} ms, all below {} ms",
                below(0.5) * 1e3,
                below(0.99) * 1e3,
                below(1.0) * 1e3
            ));
        }
        lines
    }
}

/// A label's value.
fn value<'a>(line: &'a str, label: &str) -> Option<&'a str> {
    let start = line.find(&format!("{label}=\""))? + label.len() + 2;
    line[start..].split('"').next()
}
