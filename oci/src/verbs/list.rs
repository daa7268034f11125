//! `state` and `list`.

use super::{Context, print, say};
use crate::arguments::{Form, List};
use crate::error::OciError;
use crate::store::Shown;

/// `state`.
pub(super) fn state(context: &Context, id: &str) -> Result<u8, OciError> {
    let (_, state) = context.store.load(id)?;
    print(&state.shown(""))
}

/// `list`.
pub(super) fn list(context: &Context, arguments: &List) -> Result<u8, OciError> {
    let all: Vec<Shown> =
        context.store.list()?.into_iter().map(|(state, owner)| state.shown(&owner)).collect();
    if arguments.quiet {
        return say(&all.iter().map(|one| format!("{}\n", one.id)).collect::<String>());
    }
    match arguments.format {
        // runc: null for none.
        Form::Json if all.is_empty() => say("null\n"),
        Form::Json => say(&(serde_json::to_string(&all).unwrap_or_default() + "\n")),
        Form::Table => {
            let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
            let rows = all.iter().map(|one| {
                let bundle = one.bundle.display().to_string();
                let (id, created, owner) = (one.id.clone(), one.created.clone(), one.owner.clone());
                [id, one.pid.to_string(), one.status.to_string(), bundle, created, owner]
            });
            say(&table(std::iter::once(head).chain(rows).collect()))
        }
    }
}

/// Columns as Go's tabwriter makes them for runc: at least twelve wide, three apart, the last as it is.
pub(super) fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    let width = |column: usize| {
        let longest = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        (longest.unwrap_or_default() + 3).max(12)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += cell;
            if index + 1 < N {
                text.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_runc() {
        let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
        assert_eq!(table(vec![head]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
        let rows = vec![["a".to_owned(), "b".to_owned()], ["x".repeat(20), "c".to_owned()]];
        assert_eq!(table(rows), format!("a{}b\n{}   c\n", " ".repeat(22), "x".repeat(20)));
    }
}
