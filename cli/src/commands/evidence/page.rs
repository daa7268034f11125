//! What `show` prints: sections of named values, as aligned text or as one JSON object.

use serde_json::{Map, Value};

use crate::output::{Output, Tone, printable};

/// A named value, with what it means.
#[derive(Debug)]
pub(super) struct Row {
    name: String,
    value: Value,
    note: String,
}

/// Values that belong together.
#[derive(Debug)]
pub(super) struct Section {
    /// Member in JSON.
    key: String,
    title: String,
    rows: Vec<Row>,
}

impl Section {
    pub(super) fn new(key: impl Into<String>, title: impl Into<String>) -> Self {
        Self { key: key.into(), title: title.into(), rows: Vec::new() }
    }

    /// Add a value.
    pub(super) fn row(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.noted(name, value, "")
    }

    /// Add a value and what it means.
    pub(super) fn noted(
        &mut self,
        name: &str,
        value: impl Into<Value>,
        note: impl Into<String>,
    ) -> &mut Self {
        self.rows.push(Row { name: name.to_owned(), value: value.into(), note: note.into() });
        self
    }

    /// Add bytes in hex.
    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        let note = if bytes.iter().all(|byte| *byte == 0) { "zeros" } else { "" };
        self.noted(name, hex::encode(bytes), note)
    }
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct Page(pub(super) Vec<Section>);

impl Page {
    pub(super) fn json(&self) -> Value {
        let section = |section: &Section| {
            let rows = section.rows.iter().map(|row| (row.name.clone(), row.value.clone()));
            (section.key.clone(), rows.collect::<Map<_, _>>().into())
        };
        self.0.iter().map(section).collect::<Map<_, _>>().into()
    }

    pub(super) fn text(&self, output: &Output) -> String {
        let rows = self.0.iter().flat_map(|section| &section.rows);
        let width = rows.map(|row| row.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for section in &self.0 {
            if !text.is_empty() {
                text.push('\n');
            }
            text += &format!("{}\n", printable(&section.title));
            for row in &section.rows {
                let note = if row.note.is_empty() {
                    String::new()
                } else {
                    output.paint(Tone::Quiet, &format!("  ({})", printable(&row.note)))
                };
                text += &format!("  {:<width$}  {}{note}\n", row.name, printable(&plain(&row.value)));
            }
        }
        text
    }
}

/// A value on one line, without JSON's quotes.
pub(in crate::commands) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Null => "none".to_owned(),
        Value::Object(members) => {
            let members: Vec<_> =
                members.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
            members.join(", ")
        }
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Number(number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_aligned_and_inert() {
        let mut section = Section::new("a", "A");
        section.row("x", 1).noted("longer", "v\u{1b}[m", "why").bytes("z", &[0, 0]);
        let page = Page(vec![section]);
        let text = page.text(&Output::new(false));
        assert_eq!(text, "A\n  x       1\n  longer  v\\u{1b}[m  (why)\n  z       0000  (zeros)\n");
        assert_eq!(page.json(), json!({"a": {"x": 1, "longer": "v\u{1b}[m", "z": "0000"}}));
        assert_eq!(plain(&json!({"a": [true, null], "b": {"c": 1}})), "a yes, none, b c 1");
    }
}
