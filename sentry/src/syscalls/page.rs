//! The table of system calls as a page of documentation.

use std::fmt::Write;

use super::{Status, absent, names, table};

/// The table as Markdown: number, name, how much of it is there.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| number | call | state |\n|---|---|---|\n");
    for (number, entry) in table().iter().enumerate() {
        let (name, state) = match (entry, names::name(number as u64)) {
            (Some(entry), _) => match entry.status {
                Status::Full => (entry.name, "full".to_owned()),
                Status::Partial(missing) => (entry.name, format!("partial: {missing}")),
            },
            (None, Some(name)) => match absent::usual(name) {
                "" => (name, "absent: ENOSYS".to_owned()),
                usual => (name, format!("absent: ENOSYS; made by {usual}")),
            },
            (None, None) => continue,
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {number} | `{name}` | {state} |");
    }
    text
}
