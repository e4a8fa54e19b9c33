//! Inputs: chance from a seed, and changes to good data that keep most of its form. Knows no decoder.

use serde_json::{Map, Value, json};

/// Random numbers for these tests: a seed gives the same inputs for ever.
pub struct Prng(zkmw::machine::Prng);

impl Prng {
    pub fn new(seed: u64) -> Prng {
        Prng(zkmw::machine::Prng::new(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Texts that are put into JSON, files and names alike.
const WORDS: &[&str] = &[
    "",
    "v",
    "command",
    "argv",
    "attempt",
    "outcome",
    "stdout",
    "head",
    "omitted",
    "tail",
    "base64",
    "entries",
    "task",
    "revoked",
    "x-own",
    "latch-",
    "_c_",
    "~",
    "/",
    "a/b",
    "../x",
    "w~1",
    "w~1~2",
    "done",
    "not-started",
    "//4AAQ==",
    "\u{0}",
    "\n",
    "\u{7f}",
    "\u{9b}2J",
    "\u{1b}[2J",
    "\u{fff0}",
    "\u{10ffff}",
    "ä",
    "\u{202e}",
    "-2147483648",
    "+3",
    "[worker]",
    "slots",
    "= 3",
    "zk = \"a:1\"",
    "'''",
    "1979-05-27T07:32:00Z",
    "\r",
    "\r\n",
    "0x7fffffffffffffff",
];

/// Raw JSON at its limits.
const RAW: &[&str] = &[
    "1e400",
    "-1e400",
    "1e308",
    "-0",
    "-0.0",
    "1e-320",
    "2.5e-324",
    "0.1",
    "1.7976931348623157e308",
    "123456789.123456789",
    "9007199254740993.0",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "4294967295",
    "4294967296",
    "2147483648",
    "-2147483649",
    "1e5",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "\"\\u0000\"",
    "null",
    "true",
    "{}",
    "[]",
    "\"",
    "{\"",
    "]",
    "}",
    ",",
    ":",
    "\u{feff}",
    "/*",
    "NaN",
    "Infinity",
    "01",
    "+1",
    ".5",
    "1.",
    "{\"a\":1,\"a\":2}",
];

/// How deep data is nested: around the parser's own limit, and far beyond.
const DEPTHS: &[usize] = &[1, 2, 10, 120, 125, 126, 127, 128, 129, 1_000, 100_000];

/// Some data that comes of `seeds`.
pub fn input(prng: &mut Prng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = prng.pick(seeds).clone();
    if prng.one_in(200) {
        return data;
    }
    if !prng.one_in(4)
        && let Ok(mut value) = serde_json::from_slice::<Value>(&data)
    {
        let other = serde_json::from_slice::<Value>(prng.pick::<Vec<u8>>(seeds)).unwrap_or(Value::Null);
        for _ in 0..=prng.below(3) {
            change(&mut value, &other, prng);
        }
        data = serde_json::to_vec(&value).expect("JSON");
        if prng.one_in(2) {
            return data;
        }
    }
    if prng.one_in(500) {
        // Around the largest that a znode may be; blanks at the end change nothing else.
        data.resize((512 * 1024 + 2_usize).saturating_sub(prng.below(5)).max(data.len()), b' ');
        return data;
    }
    for _ in 0..=prng.below(4) {
        mangle(&mut data, seeds, prng);
    }
    data
}

/// Changes one node of a tree.
fn change(value: &mut Value, other: &Value, prng: &mut Prng) {
    let inner = match value {
        Value::Object(fields) if !fields.is_empty() && !prng.one_in(4) => {
            let at = prng.below(fields.len());
            fields.values_mut().nth(at)
        }
        Value::Array(items) if !items.is_empty() && !prng.one_in(4) => {
            let at = prng.below(items.len());
            items.get_mut(at)
        }
        _ => None,
    };
    if let Some(inner) = inner {
        return change(inner, other, prng);
    }
    match (prng.below(9), value) {
        (0, Value::Object(fields)) => {
            fields.insert(prng.pick(WORDS).to_string(), some_value(other, prng));
        }
        (1, Value::Object(fields)) if !fields.is_empty() => {
            let key = fields.keys().nth(prng.below(fields.len())).expect("a key").clone();
            let value = fields.shift_remove(&key).expect("its value");
            let key = if prng.one_in(2) { key.to_uppercase() } else { format!("{key}{}", prng.pick(WORDS)) };
            fields.insert(key, value);
        }
        (2, Value::Object(fields)) => {
            let key = fields.keys().nth(prng.below(fields.len().max(1))).cloned().unwrap_or_default();
            fields.shift_remove(&key);
        }
        (3, Value::Array(items)) => {
            let item = some_value(other, prng);
            items.extend(vec![item; 1 + prng.below(20)]);
        }
        (4, Value::Number(number)) => {
            if let Value::Number(other) = json!(u64::MAX >> prng.below(64)) {
                *number = other;
            }
        }
        (5, Value::String(text)) => text.push_str(prng.pick::<&str>(WORDS)),
        (6, Value::Object(fields)) => {
            if let Value::Object(more) = other {
                fields.extend(more.clone());
            }
        }
        (_, value) => *value = some_value(other, prng),
    }
}

fn some_value(other: &Value, prng: &mut Prng) -> Value {
    match prng.below(9) {
        8 => match prng.below(3) {
            0 => json!({"base64": prng.pick(WORDS)}),
            1 => {
                json!({"head": prng.pick(WORDS), "omitted": prng.next(), "tail": {"base64": prng.pick(WORDS)}})
            }
            _ => json!({"task": prng.pick(WORDS), "attempt": prng.next(), "worker": prng.pick(WORDS)}),
        },
        0 => Value::Null,
        1 => json!(prng.one_in(2)),
        // One less than a power of two is the limit of some type, as often as not.
        2 if prng.one_in(2) => json!(u64::MAX >> prng.pick::<u32>(&[0, 1, 31, 32, 33, 48, 56])),
        2 => json!(prng.next() >> prng.below(64)),
        3 => json!(-(i64::from_ne_bytes(prng.next().to_ne_bytes()) >> prng.below(64)).saturating_abs()),
        // Any float at all; NaN becomes null.
        4 => json!(f64::from_bits(prng.next())),
        5 => json!(prng.pick(WORDS)),
        6 => {
            let mut fields = Map::new();
            fields.insert(prng.pick(WORDS).to_string(), json!([prng.pick(WORDS), null, 1.5]));
            Value::Object(fields)
        }
        _ => match other {
            Value::Object(fields) if !fields.is_empty() => {
                fields.values().nth(prng.below(fields.len())).expect("a value").clone()
            }
            other => other.clone(),
        },
    }
}

/// Changes bytes.
fn mangle(data: &mut Vec<u8>, seeds: &[Vec<u8>], prng: &mut Prng) {
    let at = prng.below(data.len() + 1);
    match prng.below(12) {
        0 => data.truncate(at),
        1 => splice(data, at, prng.pick(WORDS).as_bytes()),
        2 | 3 => splice(data, at, prng.pick(RAW).as_bytes()),
        4 => {
            // Replaces a value.
            let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']');
            if let Some(from) = data[at..].iter().position(|byte| *byte == b':').map(|colon| at + colon + 1) {
                let to = data[from..].iter().position(ends).map_or(data.len(), |end| from + end);
                data.splice(from..to, prng.pick(RAW).bytes());
            }
        }
        5 => {
            let other = prng.pick(seeds);
            let from = prng.below(other.len() + 1);
            data.truncate(at);
            data.extend_from_slice(&other[from..]);
        }
        6 if at < data.len() => data[at] ^= 1 << prng.below(8),
        7 if at < data.len() => data[at] = prng.next().to_le_bytes()[0],
        8 => {
            // The same field again.
            let to = at + prng.below(data.len() - at + 1);
            let copy = data[at..to].to_vec();
            splice(data, at, &copy);
        }
        9 => {
            let to = at + prng.below(data.len() - at + 1);
            data.drain(at..to);
        }
        10 if prng.one_in(8) => {
            let (open, close) = *prng.pick(&[("[", "]"), ("{\"a\":", "}"), ("[", ""), ("{\"\":", "")]);
            let depth = *prng.pick(DEPTHS);
            splice(data, at, format!("{}1{}", open.repeat(depth), close.repeat(depth)).as_bytes());
        }
        11 if prng.one_in(400) => {
            let times = 1 << prng.below(20);
            let unit =
                *prng.pick(&["a", "[],", "0,", "1e9,", "\"\":0,", "\\u0000", "{\"a\":[]},", "\n", "ä"]);
            splice(data, at, unit.repeat(times / unit.len() + 1).as_bytes());
        }
        _ => splice(data, at, &[prng.next().to_le_bytes()[0]]),
    }
}

fn splice(data: &mut Vec<u8>, at: usize, more: &[u8]) {
    data.splice(at..at, more.iter().copied());
}
