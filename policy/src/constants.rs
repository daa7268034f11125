//! Constant documents of a policy's text.
//!
//! Generated policies, Kata's and ours, have one large rule that is a constant: `policy_data := {…}`, in JSON. The interpreter would build it
//! anew at every evaluation. Here it is taken out of the text once, and given to the interpreter as data.

use serde_json::Value;

/// Where constants lie among the data that a policy reads.
pub(crate) const PLACE: &str = "kata_cc_constants";
/// The rule that generated policies have.
pub(crate) const POLICY_DATA: &str = "policy_data";

/// The JSON object of the rule `name := {…}` that begins a line of `text`, and the bytes it takes there. None when there is no such
/// rule, two of them, or what follows is no JSON object (but, say, a comprehension).
pub(crate) fn document(text: &str, name: &str) -> Option<(Value, std::ops::Range<usize>)> {
    let head = format!("{name} := ");
    let starts: Vec<usize> = text
        .match_indices(&head)
        .map(|(at, _)| at)
        .filter(|at| *at == 0 || text.as_bytes().get(at - 1) == Some(&b'\n'))
        .collect();
    let &[at] = starts.as_slice() else { return None };
    let start = at + head.len();
    let rest = text.get(start..)?;
    if !rest.starts_with('{') {
        return None;
    }
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    let value = values.next()?.ok()?;
    let end = start + values.byte_offset();
    // What follows on the line belongs to the rule: `{…} if …`, `{…}.a`.
    let line = text.get(end..)?.lines().next().unwrap_or_default();
    (line.trim().is_empty() || line.trim().starts_with('#')).then_some((value, start..end))
}

/// Takes the constant document out of a policy's text: the text, as many lines long, and the document. None when there is none.
pub(crate) fn take(text: &str) -> Option<(String, Value)> {
    let (value, range) = document(text, POLICY_DATA)?;
    let lines = text.get(range.clone())?.matches('\n').count();
    let reference = format!("data.{PLACE}.{POLICY_DATA}{}", "\n".repeat(lines));
    let mut shorter = text.to_owned();
    shorter.replace_range(range, &reference);
    Some((shorter, value))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_constant_is_taken_out_and_lines_stay_where_they_are() {
        let text = "package p\npolicy_data := {\n \"a\": [1]\n}\nx := 1\n";
        let (shorter, value) = take(text).unwrap();
        assert_eq!(value, json!({"a": [1]}));
        assert_eq!(shorter.lines().count(), text.lines().count());
        assert_eq!(shorter.lines().nth(4), Some("x := 1"));
    }

    #[test]
    fn what_is_no_constant_stays() {
        for text in [
            "package p\npolicy_data := {x | some x in [1]}\n",
            "package p\npolicy_data := {\"a\": input.x}\n",
            "package p\npolicy_data := {\"a\": 1} if input.x\n",
            "package p\npolicy_data := {\"a\": 1}\npolicy_data := {\"a\": 2} if input.x\n",
            "package p\n# policy_data := {\"a\": 1}\n",
            "package p\nx := 1\n",
        ] {
            assert_eq!(take(text), None, "{text}");
        }
    }
}
