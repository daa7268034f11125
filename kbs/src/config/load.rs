//! From the text of a file to a configuration: TOML, or JSON where the name ends in `.json`; then what the environment overrides.
//!
//! `KBS__HTTP_SERVER__PAYLOAD_REQUEST_SIZE=4` sets `http_server.payload_request_size`: two underscores between the parts. The value is
//! read as TOML where it is that, else as a text, so that `KBS__LOG__LEVEL=debug` needs no quotes.

use std::path::Path;

use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::ConfigError;

/// Start of a variable that overrides.
const PREFIX: &str = "KBS__";

/// Reads `text`, the contents of `path`.
pub(super) fn load<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let from = format!("file {}", path.display());
    let refuse = |why: String| ConfigError::Parse { from: from.clone(), why: nearest(&why) };
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let mut table: Table = if is_json {
        serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?
    } else {
        toml::from_str(text).map_err(|e| refuse(kata_cc_kbs_protocol::toml_error(text, &e)))?
    };
    // Once as it stands: only here an error knows line and column.
    let alone = if is_json {
        T::deserialize(table.clone()).map_err(|e| e.message().to_owned())
    } else {
        toml::from_str(text).map_err(|e| kata_cc_kbs_protocol::toml_error(text, &e))
    };
    let alone = alone.map_err(refuse)?;
    let mut changed = Vec::new();
    for (name, value) in environment.filter(|(name, _)| name.starts_with(PREFIX)) {
        override_one(&mut table, &name, &value)?;
        changed.push(name);
    }
    if changed.is_empty() {
        return Ok(alone);
    }
    T::deserialize(table).map_err(|e| ConfigError::Parse {
        from: format!("with {} of the environment", changed.join(", ")),
        why: nearest(e.message()),
    })
}

fn override_one(table: &mut Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let refuse = |why: String| ConfigError::Parse { from: format!("variable {name}"), why };
    let path: Vec<String> =
        name.strip_prefix(PREFIX).unwrap_or_default().split("__").map(str::to_ascii_lowercase).collect();
    let (last, parents) = path.split_last().ok_or_else(|| refuse("it names nothing".to_owned()))?;
    if path.iter().any(String::is_empty) {
        return Err(refuse("two underscores separate the parts of a name, none may be empty".to_owned()));
    }
    let mut at = table;
    for parent in parents {
        let next = at.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new()));
        at = next.as_table_mut().ok_or_else(|| refuse(format!("{parent} is no table")))?;
    }
    let read = toml::from_str::<Table>(&format!("v = {value}")).ok().filter(|read| read.len() == 1);
    let read = read.and_then(|mut read| read.remove("v"));
    at.insert(last.clone(), read.unwrap_or_else(|| Value::String(value.to_owned())));
    Ok(())
}

/// Adds the nearest known name to serde's "unknown field `a`, expected one of `b`, `c`".
fn nearest(why: &str) -> String {
    let Some((_, rest)) = why.split_once("unknown field `").or_else(|| why.split_once("unknown variant `"))
    else {
        return why.to_owned();
    };
    let mut names = rest.split('`').step_by(2);
    let Some(seen) = names.next() else { return why.to_owned() };
    let best = names.map(|known| (distance(seen, known), known)).min_by_key(|(distance, _)| *distance);
    match best {
        Some((distance, known)) if distance <= seen.len().max(known.len()) / 2 => {
            format!("{why}; did you mean `{known}`?")
        }
        _ => why.to_owned(),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.iter().zip(row.iter().skip(1)) {
            let cost = (diagonal + usize::from(x != *y)).min(left + 1).min(above + 1);
            diagonal = *above;
            left = cost;
            next.push(cost);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(name: &str, text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        load(Path::new(name), text, environment).map_err(|e| e.to_string())
    }

    #[test]
    fn json_is_read_as_toml_is() {
        let config = read("kbs.json", r#"{"http_server": {"insecure_http": true, "burst": 1}}"#, &[]);
        assert!(config.unwrap_err().contains("unknown field `burst`"));
        let text = r#"{"http_server": {"insecure_http": true, "payload_request_size": 3},
            "limits": {"resource_sizes": {"big": 5}}}"#;
        let config = read("kbs.json", text, &[]).unwrap();
        assert_eq!((config.http_server.payload_request_size, config.limits.resource("big").0), (3, 5));
        assert!(read("kbs.json", "{", &[]).is_err());
    }

    #[test]
    fn the_nearest_name_is_told() {
        let error = read("kbs.toml", "[http_server]\ninsecure_htp = true", &[]).unwrap_err();
        assert!(error.contains("line 2") && error.contains("did you mean `insecure_http`?"), "{error}");
        let error = read("kbs.toml", "[protocol]\nversions = [\"0.4\"]", &[]).unwrap_err();
        assert!(error.contains("did you mean `0.4.0`?"), "{error}");
        let error = read("kbs.toml", "[colour]", &[]).unwrap_err();
        assert!(error.contains("unknown field `colour`") && !error.contains("did you mean"), "{error}");
        assert_eq!((distance("", "abc"), distance("abc", "abc"), distance("kitten", "sitting")), (3, 0, 3));
    }

    #[test]
    fn the_environment_overrides() {
        let file = "[http_server]\ninsecure_http = false";
        let environment = [
            ("KBS__HTTP_SERVER__INSECURE_HTTP", "true"),
            ("KBS__HTTP_SERVER__SOCKETS", "[\"127.0.0.1:1\"]"),
            ("KBS__LOG__LEVEL", "debug"),
            ("KBS_STORE_KEY", "not ours"),
        ];
        let config = read("kbs.toml", file, &environment).unwrap();
        assert!(config.http_server.insecure_http && config.log.level == "debug");
        assert_eq!(config.http_server.sockets[0].port(), 1);
        let error = read("kbs.toml", file, &[("KBS__LOG__LEVLE", "x")]).unwrap_err();
        assert!(error.contains("KBS__LOG__LEVLE") && error.contains("did you mean `level`?"), "{error}");
        for name in ["KBS__", "KBS__LOG____X", "KBS__HTTP_SERVER__INSECURE_HTTP__X"] {
            assert!(read("kbs.toml", file, &[(name, "x")]).is_err(), "{name}");
        }
        // A value cannot bring in another member.
        let config = read("kbs.toml", file, &[("KBS__LOG__LEVEL", "'a'\nb = 1")]).unwrap();
        assert_eq!(config.log.level, "'a'\nb = 1");
    }
}
