//! Whether `docs/operator-guide/configuration.md` names every member that is read. What is read is asked of serde: it lists the known
//! members when it refuses an unknown one.

use toml::{Table, Value};

use super::Config;

const PAGE: &str = include_str!("../../../docs/operator-guide/configuration.md");
/// No member has this name.
const UNKNOWN: &str = "zz_unknown";

/// Puts `value` at a path of tables; a part `[]` is an element of an array.
fn at(path: &[&str], value: Value) -> Value {
    match path.split_first() {
        None => value,
        Some((&"[]", rest)) => Value::Array(vec![at(rest, value)]),
        Some((name, rest)) => Value::Table(Table::from_iter([((*name).to_owned(), at(rest, value))])),
    }
}

/// The members that are known at a path, if that is a table.
fn members(path: &[&str]) -> Option<Vec<String>> {
    let unknown = Value::Table(Table::from_iter([(UNKNOWN.to_owned(), Value::Boolean(true))]));
    let error = at(path, unknown).try_into::<Config>().err()?.to_string();
    let (_, known) = error.split_once(&format!("unknown field `{UNKNOWN}`, expected "))?;
    Some(known.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

fn walk(path: &[&str], found: &mut Vec<String>) {
    for name in members(path).unwrap_or_default() {
        let mut below: Vec<&str> = path.to_vec();
        below.push(&name);
        let mut element = below.clone();
        element.push("[]");
        let before = found.len();
        // Entries of plugins are described with each plugin.
        if name != "plugins" {
            walk(&below, found);
            walk(&element, found);
        }
        if found.len() == before {
            found.push(below.join("."));
        }
    }
}

#[test]
fn every_member_is_on_the_page() {
    let mut found = Vec::new();
    walk(&[], &mut found);
    assert!(found.len() > 40 && found.iter().any(|path| path == "log.level"), "{found:?}");
    // Of an element's members the page names the element's array, and each by itself.
    for path in &found {
        let name = path.rsplit('.').next().unwrap();
        let named = [format!("`{name}`"), format!(".{name}`"), format!("`{name} "), format!("[[{name}]]")];
        assert!(named.iter().any(|named| PAGE.contains(named)), "{path} is not on the page");
    }
}
