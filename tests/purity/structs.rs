//! Structs of roles and recipes: small enough to be held in one's head, and states as enums instead of flags.

use super::rules::File;
use super::source::Token;

/// The most fields of a struct.
const MAX_FIELDS: usize = 15;
/// The most of them that are `bool`: more are states that an enum names.
const MAX_BOOLS: usize = 3;

/// A message for each struct that has too many fields or flags.
pub fn too_large(file: &File<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for (at, pair) in file.tokens.windows(2).enumerate().filter(|(_, pair)| pair[0].text == "struct") {
        let name = &pair[1];
        let fields = fields(&file.tokens[at + 2..]);
        let bools = fields.iter().filter(|kind| kind.as_slice() == ["bool"]).count();
        if fields.len() > MAX_FIELDS || bools > MAX_BOOLS {
            let what = format!("{} has {} fields, {bools} of them flags", name.text, fields.len());
            found.push(format!("{}, line {}: struct {what}", file.name, name.line));
        }
    }
    found
}

/// The types of the fields, of a struct whose generics or body begin here. A struct without names for its fields has
/// none.
fn fields(tokens: &[Token]) -> Vec<Vec<&str>> {
    let body = tokens.iter().position(|token| matches!(token.text.as_str(), "{" | "(" | ";"));
    let Some(start) = body.filter(|at| tokens[*at].text == "{") else { return Vec::new() };
    let mut fields = Vec::new();
    let mut kind: Option<Vec<&str>> = None;
    let mut depth = 0;
    for token in &tokens[start..] {
        match token.text.as_str() {
            "{" | "(" | "[" | "<" => depth += 1,
            "}" | ")" | "]" | ">" => depth -= 1,
            _ => {}
        }
        match token.text.as_str() {
            ":" if depth == 1 => kind = Some(Vec::new()),
            "," if depth == 1 => fields.extend(kind.take()),
            text => kind.iter_mut().for_each(|kind| kind.push(text)),
        }
        if depth == 0 {
            // The last field may have no comma; the closing brace is no part of its type.
            let last = kind.take().map(|kind| kind[..kind.len() - 1].to_vec());
            fields.extend(last);
            break;
        }
    }
    fields
}
