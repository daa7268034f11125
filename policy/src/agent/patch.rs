//! JSON Patch, as far as policies use it to remember things.

use serde_json::Value;

/// One operation of a JSON Patch (RFC 6902): `add`, `replace`, `remove`. Only `/pstate` may change.
pub(super) fn patch(data: &mut Value, op: &Value) -> Result<(), String> {
    let text = |key: &str| op.get(key).and_then(Value::as_str);
    let path = text("path").ok_or("no path")?;
    if path != "/pstate" && !path.starts_with("/pstate/") {
        return Err(format!("path {path} is outside of /pstate"));
    }
    let (parent, last) = path.rsplit_once('/').ok_or("path has no parent")?;
    let key = last.replace("~1", "/").replace("~0", "~");
    let parent = data.pointer_mut(parent).ok_or("parent does not exist")?;
    let value = op.get("value").cloned();
    let kind = text("op").ok_or("no op")?;
    match (parent, kind) {
        (Value::Object(fields), "add") => {
            fields.insert(key, value.ok_or("no value")?);
        }
        (Value::Object(fields), "replace") => {
            let slot = fields.get_mut(&key).ok_or("nothing to replace")?;
            *slot = value.ok_or("no value")?;
        }
        (Value::Object(fields), "remove") => {
            fields.remove(&key).ok_or("nothing to remove")?;
        }
        (Value::Array(items), "add") => {
            let at = match key.as_str() {
                "-" => items.len(),
                n => n.parse().map_err(|_| "no index")?,
            };
            if at > items.len() {
                return Err("index beyond the end".to_owned());
            }
            items.insert(at, value.ok_or("no value")?);
        }
        (Value::Array(items), "replace" | "remove") => {
            let at: usize = key.parse().map_err(|_| "no index")?;
            let slot = items.get_mut(at).ok_or("no such item")?;
            if kind == "replace" {
                *slot = value.ok_or("no value")?;
            } else {
                items.remove(at);
            }
        }
        (_, other) => return Err(format!("operation {other} is not supported here")),
    }
    Ok(())
}
