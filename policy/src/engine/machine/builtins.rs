//! Built-in functions: those that the rules call most are here, the others are regorus' own.
//!
//! Both are undecided where an argument has another type than the function takes: what that means, the interpreter says.

use regex::Regex;
use regorus::rvm::program::Program;
use regorus::unstable::{BuiltinFcn, Expr, Ref, Source, Span};
use regorus::value::Set;
use regorus::{Rc, Value};

use super::arena::{Arena, UNDEFINED, truth};
use super::values::{self, Characters, member};
use super::{Answer, Undecided};

type Native = for<'a> fn(&[&'a Value], &'a Arena) -> Answer<'a>;

/// A built-in function of a program.
pub(super) struct Builtin {
    arguments: usize,
    what: What,
}

enum What {
    Native(Native),
    /// `regex.match`, with the patterns that the program spells out.
    Match(Vec<(Rc<str>, Regex)>, Box<What>),
    /// It wants to know where in a text it is called, for its messages.
    Regorus {
        function: BuiltinFcn,
        span: Span,
        expressions: Vec<Ref<Expr>>,
    },
    Missing,
}

impl Builtin {
    /// Those of a program, in its order.
    pub(super) fn all(program: &Program) -> Vec<Self> {
        let span = Source::from_contents("built-in".to_owned(), String::new()).map(|source| Span {
            source,
            line: 1,
            col: 1,
            start: 0,
            end: 0,
        });
        let what = |name: &str, arguments: usize, function: Option<&BuiltinFcn>| match (
            native(name, arguments),
            function,
            &span,
        ) {
            (Some(native), ..) => What::Native(native),
            (None, Some(function), Ok(span)) => {
                let null = || Expr::Null { span: span.clone(), value: Value::Null, eidx: 0 };
                let expressions = (0..arguments).map(|_| Ref::new(null())).collect();
                What::Regorus { function: *function, span: span.clone(), expressions }
            }
            _ => What::Missing,
        };
        let known = program.builtin_info_table.iter().enumerate().map(|(n, info)| {
            let arguments = usize::from(info.num_args);
            let mut what = what(&info.name, arguments, program.resolved_builtins.get(n));
            if (&*info.name, arguments) == ("regex.match", 2) {
                what = What::Match(patterns(program), Box::new(what));
            }
            Self { arguments, what }
        });
        known.collect()
    }

    /// Calls it, with arguments that are all defined.
    pub(super) fn call<'a>(&self, arguments: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
        if arguments.len() != self.arguments {
            return Err(Undecided("a built-in function with other arguments"));
        }
        self.what.call(arguments, arena)
    }
}

impl What {
    fn call<'a>(&self, arguments: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
        match self {
            Self::Native(native) => native(arguments, arena),
            Self::Match(patterns, others) => match arguments {
                [Value::String(pattern), Value::String(text)] => {
                    match patterns.iter().find(|(known, _)| Rc::ptr_eq(known, pattern)) {
                        Some((_, known)) => Ok(truth(known.is_match(text))),
                        None => others.call(arguments, arena),
                    }
                }
                _ => Err(TYPE),
            },
            Self::Regorus { function, span, expressions } => {
                let arguments: Vec<Value> = arguments.iter().map(|value| (*value).clone()).collect();
                let value = (function.0)(span, expressions, &arguments, true);
                arena.keep(value.map_err(|_| Undecided("a built-in function failed"))?)
            }
            Self::Missing => Err(Undecided("a built-in function that is not there")),
        }
    }
}

/// Patterns among a program's literals: those that begin as patterns of whole texts do. Which one a call means is seen by where it lies.
fn patterns(program: &Program) -> Vec<(Rc<str>, Regex)> {
    let pattern = |literal: &Value| match literal {
        Value::String(text) if text.starts_with('^') => Some((Rc::clone(text), Regex::new(text).ok()?)),
        _ => None,
    };
    program.literals.iter().filter_map(pattern).collect()
}

fn native(name: &str, arguments: usize) -> Option<Native> {
    let native: Native = match (name, arguments) {
        ("is_array", 1) => |of, _| Ok(truth(matches!(of, [Value::Array(_)]))),
        ("is_object", 1) => |of, _| Ok(truth(matches!(of, [Value::Object(_)]))),
        ("is_string", 1) => |of, _| Ok(truth(matches!(of, [Value::String(_)]))),
        ("count", 1) => count,
        ("concat", 2) => concat,
        ("startswith", 2) => |of, _| texts(of).map(|[text, part]| truth(text.starts_with(part))),
        ("endswith", 2) => |of, _| texts(of).map(|[text, part]| truth(text.ends_with(part))),
        ("contains", 2) => |of, _| texts(of).map(|[text, part]| truth(text.contains(part))),
        ("indexof", 2) => indexof,
        ("substring", 3) => substring,
        ("trim", 2) => |of, arena| {
            texts(of).and_then(|[text, all]| {
                let all = Characters::new(all);
                part(of, text.trim_matches(|c| all.has(c)), arena)
            })
        },
        ("trim_right", 2) => |of, arena| {
            texts(of).and_then(|[text, all]| {
                let all = Characters::new(all);
                part(of, text.trim_end_matches(|c| all.has(c)), arena)
            })
        },
        ("trim_prefix", 2) => |of, arena| {
            texts(of).and_then(|[text, begin]| part(of, text.strip_prefix(begin).unwrap_or(text), arena))
        },
        // Most differ in the first character.
        ("strings.any_prefix_match", 2) => |of, _| {
            any(of, |text, begin| {
                text.as_bytes().first() == begin.as_bytes().first() && text.starts_with(begin)
                    || begin.is_empty()
            })
        },
        ("strings.any_suffix_match", 2) => |of, _| any(of, |text, end| text.ends_with(end)),
        ("json.marshal", 1) => marshal,
        ("sort", 1) => |of, arena| arena.sorted(of.first().ok_or(TYPE)?),
        ("split", 2) => split,
        ("array.slice", 3) => slice,
        ("array.concat", 2) => append,
        ("object.get", 3) => get,
        ("object.keys", 1) => keys,
        ("object.remove", 2) => remove,
        ("object.filter", 2) => filter,
        ("object.subset", 2) => subset,
        ("__builtin_sets.union", 2) => {
            |of, arena| sets(of).and_then(|[left, right]| union(of, left, right, arena))
        }
        _ => return None,
    };
    Some(native)
}

const TYPE: Undecided = Undecided("a built-in function with an argument of another type");

fn texts<'a>(of: &[&'a Value]) -> Result<[&'a str; 2], Undecided> {
    match of {
        [Value::String(left), Value::String(right)] => Ok([left, right]),
        _ => Err(TYPE),
    }
}

fn sets<'a>(of: &[&'a Value]) -> Result<[&'a Set; 2], Undecided> {
    match of {
        [Value::Set(left), Value::Set(right)] => Ok([left, right]),
        _ => Err(TYPE),
    }
}

/// A part of the first argument, which may be all of it.
fn part<'a>(of: &[&'a Value], part: &str, arena: &'a Arena) -> Answer<'a> {
    match of.first() {
        Some(whole @ Value::String(text)) if text.len() == part.len() => Ok(whole),
        _ => arena.text(part),
    }
}

/// The texts of a list or set.
fn list<'a>(of: &'a Value, texts: &mut Vec<&'a str>) -> Result<(), Undecided> {
    let text = |value: &'a Value| match value {
        Value::String(text) => Ok(&**text),
        _ => Err(TYPE),
    };
    match of {
        Value::Array(items) => items.iter().try_for_each(|item| text(item).map(|text| texts.push(text))),
        Value::Set(items) => items.iter().try_for_each(|item| text(item).map(|text| texts.push(text))),
        _ => Err(TYPE),
    }
}

fn count<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    match of {
        [Value::Array(items)] => arena.number(items.len()),
        [Value::Set(items)] => arena.number(items.len()),
        [Value::Object(members)] => arena.number(members.len()),
        // as regorus counts
        [Value::String(text)] if text.is_ascii() => arena.number(text.len()),
        [Value::String(text)] => arena.number(text.encode_utf16().count()),
        _ => Err(TYPE),
    }
}

fn concat<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    let [Value::String(between), items] = of else { return Err(TYPE) };
    let mut texts = Vec::new();
    list(items, &mut texts)?;
    arena.keep(Value::from(texts.join(&**between)))
}

fn any<'a>(of: &[&'a Value], matches: impl Fn(&str, &str) -> bool) -> Answer<'a> {
    let one_or_more = |of: &'a Value| {
        let mut texts = Vec::new();
        match of {
            Value::String(text) => texts.push(&**text),
            _ => list(of, &mut texts)?,
        }
        Ok(texts)
    };
    let [texts, parts] = of else { return Err(TYPE) };
    let (texts, parts) = (one_or_more(texts)?, one_or_more(parts)?);
    Ok(truth(texts.iter().any(|text| parts.iter().any(|part| matches(text, part)))))
}

/// In characters.
fn indexof<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    let [text, part] = texts(of)?;
    // regorus finds nothing in an empty text, not even nothing
    let found = match part.as_bytes() {
        [byte] => text.bytes().position(|other| other == *byte),
        _ => text.find(part).filter(|_| !text.is_empty()),
    };
    match found {
        Some(at) => arena.number(text.get(..at).ok_or(TYPE)?.chars().count()),
        None => arena.keep(Value::from(-1_i64)),
    }
}

/// In characters; a length below 0 is that of the rest.
fn substring<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    let [whole @ Value::String(text), Value::Number(from), Value::Number(length)] = of else {
        return Err(TYPE);
    };
    let (Some(from), Some(length)) = (from.as_i64(), length.as_i64()) else { return Err(TYPE) };
    let from = usize::try_from(from).map_err(|_| TYPE)?;
    let is_ascii = text.is_ascii();
    let place = |text: &str, n: usize| match is_ascii {
        true => n.min(text.len()),
        false => text.char_indices().nth(n).map_or(text.len(), |(at, _)| at),
    };
    let rest = text.get(place(text, from)..).ok_or(TYPE)?;
    let found = match usize::try_from(length) {
        Ok(length) => rest.get(..place(rest, length)).ok_or(TYPE)?,
        Err(_) => rest,
    };
    part(&[whole], found, arena)
}

fn marshal<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    let mut text = Vec::with_capacity(8 << 10);
    serde_json::to_writer(&mut text, of.first().ok_or(TYPE)?).map_err(|_| TYPE)?;
    arena.keep(Value::from(str::from_utf8(&text).map_err(|_| TYPE)?))
}

fn split<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    let [text, between] = texts(of)?;
    if between.is_empty() {
        return Err(Undecided("a text that is split into characters"));
    }
    arena.keep(Value::from(text.split(between).map(Value::from).collect::<Vec<_>>()))
}

fn slice<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    let [Value::Array(items), Value::Number(from), Value::Number(to)] = of else { return Err(TYPE) };
    let (Some(from), Some(to)) = (from.as_i64(), to.as_i64()) else { return Err(TYPE) };
    let place = |n: i64| usize::try_from(n).unwrap_or(0).min(items.len());
    let part = items.as_slice().get(place(from)..place(to)).unwrap_or_default();
    arena.keep(Value::from(part.to_vec()))
}

fn append<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    match *of {
        [all @ Value::Array(_), Value::Array(others)] if others.is_empty() => Ok(all),
        [Value::Array(items), Value::Array(others)] => {
            arena.keep(Value::from(items.iter().chain(others.iter()).cloned().collect::<Vec<_>>()))
        }
        _ => Err(TYPE),
    }
}

fn get<'a>(of: &[&'a Value], _: &'a Arena) -> Answer<'a> {
    match *of {
        // A list of keys is a path.
        [_, Value::Array(_), _] => Err(TYPE),
        [of @ Value::Object(_), key, otherwise] => match member(of, key) {
            Value::Undefined => Ok(otherwise),
            value => Ok(value),
        },
        _ => Err(TYPE),
    }
}

fn keys<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    let [Value::Object(members)] = of else { return Err(TYPE) };
    arena.keys(members)
}

/// Whether a list, set or object has a key.
fn has(keys: &Value, key: &Value) -> Result<bool, Undecided> {
    match keys {
        Value::Array(items) => Ok(items.contains(key)),
        Value::Set(items) => Ok(items.contains(key)),
        Value::Object(members) => Ok(members.contains_key(key)),
        _ => Err(TYPE),
    }
}

fn chosen<'a>(of: &[&'a Value], which: bool, arena: &'a Arena) -> Answer<'a> {
    let [Value::Object(members), keys] = of else { return Err(TYPE) };
    let mut chosen = regorus::value::Object::new();
    for (key, value) in members.iter() {
        if has(keys, key)? == which {
            chosen.insert(key.clone(), value.clone());
        }
    }
    arena.keep(Value::Object(Rc::new(chosen)))
}

fn remove<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    chosen(of, false, arena)
}

fn filter<'a>(of: &[&'a Value], arena: &'a Arena) -> Answer<'a> {
    chosen(of, true, arena)
}

/// Whether a list has all elements of a set; other collections are not asked about.
fn subset<'a>(of: &[&'a Value], _: &'a Arena) -> Answer<'a> {
    let [Value::Array(items), Value::Set(elements)] = of else { return Err(TYPE) };
    Ok(truth(elements.iter().all(|element| items.contains(element))))
}

fn union<'a>(of: &[&'a Value], left: &Set, right: &Set, arena: &'a Arena) -> Answer<'a> {
    match of {
        [all, _] if right.is_empty() => Ok(all),
        [_, all] if left.is_empty() => Ok(all),
        _ => arena.keep(left.union(right).into_value()),
    }
}

/// What one set has and another has not.
pub(super) fn difference<'a>(of: [&'a Value; 2], arena: &'a Arena) -> Answer<'a> {
    let [left, right] = sets(&of)?;
    if left.is_empty() || right.is_empty() {
        return Ok(of.first().copied().unwrap_or(&UNDEFINED));
    }
    arena.keep(values::difference(left, right).into_value())
}
