//! A page of its own: a table, and bars for each metric; no scripts, nothing from elsewhere.

use std::fmt::Write;

use super::metrics::Better;
use super::report::{Results, Row, number, verdict};
use super::runtimes::Runtime;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2433; --soft: #6b7280; --line: #d7dbe2; --paper: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa3b2; --line: #353c4a; --paper: #14181f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p, figcaption small { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.aim { text-align: left; }
.yes { color: #15803d; } .NO { color: #c2410c; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(25rem, 1fr)); gap: 1.2rem 2rem; }
figure { margin: 0; } figcaption { margin-bottom: .3rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
";

/// Width of the bars, in units of the drawing.
const WIDTH: f64 = 230.0;
/// Where they begin: behind the names.
const LEFT: f64 = 100.0;
/// Height of one.
const STEP: f64 = 22.0;

fn colour(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Runc => "#9aa3b2",
        Runtime::RunscSystrap => "#d97706",
        Runtime::RunscPtrace => "#b4a08a",
        Runtime::Ours => "#2563eb",
    }
}

fn quoted(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page.
pub(super) fn page(results: &Results) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>runc, runsc and the sentry</title>\n<style>{STYLE}</style>\n<h1>runc, runsc and the sentry, side by side</h1>\n\
         <p>Medians of {} interleaved rounds on {}{}. Bars show medians, lines the smallest and the largest round. Ratio: ours divided by \
         runsc's under systrap.<br>{}</p>\n",
        results.rounds,
        quoted(&results.machine),
        if results.quick { ", quick: a tenth of the work, not judged" } else { "" },
        quoted(&results.versions.join(" · "))
    );
    table(&mut page, results);
    let mut group = "";
    for row in &results.rows {
        let own = row.metric.split('.').next().unwrap_or_default();
        if own != group {
            if !group.is_empty() {
                page.push_str("</div>\n");
            }
            let _ = write!(page, "<h2>{}</h2>\n<div class=\"plots\">\n", quoted(own));
            group = own;
        }
        plot(&mut page, results, row);
    }
    page.push_str("</div>\n");
    failures(&mut page, results);
    page.push_str("</html>\n");
    page
}

// Writing to a string cannot fail, here and below.
fn table(page: &mut String, results: &Results) {
    page.push_str("<div class=\"scroll\"><table><tr><th>metric<th>unit");
    for runtime in &results.runtimes {
        let _ = write!(page, "<th>{}", runtime.name());
    }
    page.push_str("<th>ratio<th>aim<th>met</tr>\n");
    for row in &results.rows {
        let _ = write!(page, "<tr><td title=\"{}\">{}<td>{}", quoted(row.what), row.metric, row.unit);
        for runtime in &results.runtimes {
            let value = row.values.get(runtime).map_or_else(|| "–".into(), |samples| number(samples.median));
            let _ = write!(page, "<td>{value}");
        }
        let ratio = row.ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.3}"));
        let verdict = verdict(row.met);
        let _ = writeln!(
            page,
            "<td>{ratio}<td class=\"aim\">{}<td class=\"{verdict}\">{verdict}</tr>",
            quoted(&row.aim)
        );
    }
    page.push_str("</table></div>\n");
}

fn plot(page: &mut String, results: &Results, row: &Row) {
    let largest = row.values.values().map(|samples| samples.max).fold(0.0, f64::max);
    if largest <= 0.0 {
        return;
    }
    let better = if row.better == Better::Less { "less is better" } else { "more is better" };
    let height = STEP * f64::from(u32::try_from(results.runtimes.len()).unwrap_or_default()) + 4.0;
    let _ = write!(
        page,
        "<figure><figcaption><b>{}</b> <small>{}, {better}: {}</small></figcaption>\n<svg viewBox=\"0 0 400 {height}\" role=\"img\" \
         aria-label=\"{}\">",
        row.metric,
        row.unit,
        quoted(row.what),
        row.metric
    );
    let mut top = 2.0;
    for runtime in &results.runtimes {
        let middle = top + STEP / 2.0;
        let _ = write!(page, "<text x=\"0\" y=\"{}\">{}</text>", middle + 4.0, runtime.name());
        match row.values.get(runtime) {
            Some(samples) => {
                let length = |value: f64| value / largest * WIDTH;
                let _ = write!(
                    page,
                    "<rect x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" rx=\"2\" fill=\"{}\"/>\
                     <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"var(--ink)\" stroke-width=\"1.5\"/>\
                     <text x=\"{:.1}\" y=\"{}\">{}</text>",
                    top + 3.0,
                    length(samples.median).max(1.0),
                    STEP - 6.0,
                    colour(*runtime),
                    LEFT + length(samples.min),
                    LEFT + length(samples.max),
                    LEFT + length(samples.max) + 6.0,
                    middle + 4.0,
                    number(samples.median)
                );
            }
            None => {
                let _ = write!(page, "<text x=\"{LEFT}\" y=\"{}\">not measured</text>", middle + 4.0);
            }
        }
        top += STEP;
    }
    page.push_str("</svg></figure>\n");
}

fn failures(page: &mut String, results: &Results) {
    if results.failures.is_empty() {
        return;
    }
    page.push_str("<h2>What failed</h2>\n<ul>\n");
    for failure in &results.failures {
        let _ = writeln!(page, "<li>{}</li>", quoted(&failure.words()));
    }
    page.push_str("</ul>\n");
}
