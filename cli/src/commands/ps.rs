//! `kata-cc ps`: sandboxes, running and ended, the newest first.

use kata_cc_sandbox::{paths, record};

use super::records::Summary;
use crate::output::{Output, Tone, printable, table};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only those that run.
    #[arg(long)]
    running: bool,
}

/// Print the list.
pub(crate) fn ps(arguments: &Arguments, output: &Output) -> anyhow::Result<u8> {
    let ids = record::list(&paths::records());
    let summaries: Vec<Summary> = ids
        .iter()
        .rev()
        .filter_map(|id| Some(Summary::read(id).ok()?.0))
        .filter(|summary| !arguments.running || summary.state == "running")
        .collect();
    if output.json {
        output.document(&summaries)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = summaries.iter().map(row).collect();
    let text = table(&["ID", "STATE", "TIER", "CLASS", "STARTED", "IMAGE"], &rows);
    // Colour last: a column's width counts what is seen.
    for (line, summary) in text.lines().zip(std::iter::once(None).chain(summaries.iter().map(Some))) {
        let tone = match summary.map(|summary| summary.state) {
            Some("running") => Some(Tone::Good),
            Some("refused" | "failed") => Some(Tone::Bad),
            _ => None,
        };
        let line = tone.map_or_else(|| line.to_owned(), |tone| output.paint(tone, line));
        output.text(&(line + "\n"))?;
    }
    Ok(0)
}

fn row(summary: &Summary) -> Vec<String> {
    let state = match summary.exit_code {
        Some(code) if summary.state == "exited" => format!("exited ({code})"),
        _ => summary.state.to_owned(),
    };
    let or_dash = |text: &Option<String>| text.as_deref().map_or_else(|| "-".into(), printable);
    let started = summary.started.split('.').next().unwrap_or_default().replace('T', " ");
    vec![
        summary.id.clone(),
        state,
        or_dash(&summary.tier),
        or_dash(&summary.class),
        printable(&started),
        or_dash(&summary.image),
    ]
}
