//! Rust source as tokens, and the paths that they name. Owns nothing; knows no rule.

use std::collections::BTreeSet;

/// One token: a word (an identifier, a keyword, a number) or a sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

impl Token {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
    }
}

/// A path that the source names, such as `std::time::Instant`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub segments: Vec<String>,
    pub line: usize,
    /// It is part of a `use`: its last segment is then a name in the file.
    pub is_use: bool,
    /// It ends in `::*`.
    pub is_glob: bool,
    /// It goes by another name in the file.
    pub is_renamed: bool,
}

impl Named {
    fn new(segments: Vec<String>, line: usize, is_use: bool) -> Named {
        Named { segments, line, is_use, is_glob: false, is_renamed: false }
    }
}

/// The tokens of the source, without comments and literals.
pub fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let start = at;
        let c = chars[at];
        let next = chars.get(at + 1).copied();
        if c == '/' && next == Some('/') {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if c == '/' && next == Some('*') {
            at = end_of_comment(&chars, at);
        } else if let Some(end) = end_of_string(&chars, at) {
            at = end;
        } else if c == '\'' {
            at = end_of_quote(&chars, at);
        } else if c.is_alphanumeric() || c == '_' {
            while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
            found.push(Token { text: chars[start..at].iter().collect(), line });
        } else if c == ':' && next == Some(':') {
            at += 2;
            found.push(Token { text: "::".into(), line });
        } else {
            at += 1;
            if !c.is_whitespace() {
                found.push(Token { text: c.into(), line });
            }
        }
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn end_of_comment(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Where the string that begins here ends, with any prefix: `"…"`, `b"…"`, `c"…"`, `r#"…"#`, `br#"…"#`.
fn end_of_string(chars: &[char], start: usize) -> Option<usize> {
    if start > 0 && (chars[start - 1].is_alphanumeric() || chars[start - 1] == '_') {
        return None;
    }
    let mut at = start;
    while at - start < 2 && matches!(chars.get(at), Some('b' | 'c' | 'r')) {
        at += 1;
    }
    let raw = chars[start..at].contains(&'r');
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    if hashes > 0 && !raw {
        return None;
    }
    at += hashes;
    if chars.get(at) != Some(&'"') {
        return None;
    }
    at += 1;
    while at < chars.len() {
        match chars[at] {
            '\\' if !raw => at += 2,
            '"' if chars[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes => {
                return Some(at + 1 + hashes);
            }
            _ => at += 1,
        }
    }
    Some(chars.len())
}

/// Where the character, or the lifetime, that begins here ends.
fn end_of_quote(chars: &[char], start: usize) -> usize {
    match (chars.get(start + 1), chars.get(start + 2)) {
        (Some('\\'), _) => {
            // The escape itself may be a quote.
            let rest = chars[(start + 3).min(chars.len())..].iter().position(|c| *c == '\'');
            rest.map_or(chars.len(), |rest| start + 3 + rest + 1)
        }
        (Some(_), Some('\'')) => start + 3,
        _ => start + 1,
    }
}

/// The source without its test code, and the names of modules that are for tests alone.
pub fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, BTreeSet<String>) {
    let (mut kept, mut modules) = (Vec::new(), BTreeSet::new());
    let mut at = 0;
    while at < tokens.len() {
        if !is_cfg_test(&tokens[at..]) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += CFG_TEST.len();
        let end = end_of_item(&tokens, at);
        let item = &tokens[at..end];
        if let Some(name) =
            item.iter().position(|token| token.text == "mod").and_then(|mod_| item.get(mod_ + 1))
            && item.last().is_some_and(|last| last.text == ";")
        {
            modules.insert(name.text.clone());
        }
        at = end;
    }
    (kept, modules)
}

const CFG_TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];

fn is_cfg_test(tokens: &[Token]) -> bool {
    tokens.len() >= CFG_TEST.len() && CFG_TEST.iter().zip(tokens).all(|(text, token)| *text == token.text)
}

/// Past the item: its block, or its semicolon, whichever comes first outside of brackets.
fn end_of_item(tokens: &[Token], start: usize) -> usize {
    let (mut depth, mut at) = (0_i32, start);
    let is_use = tokens[start..].iter().find(|t| t.is_word()).is_some_and(|t| t.text == "use");
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth -= 1;
                if depth == 0 && tokens[at].text == "}" && !is_use {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Every path that the tokens name; a `use` is split into its paths.
pub fn paths(tokens: &[Token]) -> Vec<Named> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let before = at.checked_sub(1).map(|before| tokens[before].text.as_str());
        if tokens[at].text == "use" {
            at = tree(tokens, at + 1, &[], &mut found);
        } else if tokens[at].text == "extern" && tokens.get(at + 1).is_some_and(|t| t.text == "crate") {
            let line = tokens[at].line;
            let segments = tokens.get(at + 2).map(|name| name.text.clone()).into_iter().collect();
            found.push(Named::new(segments, line, true));
            at += 3;
        } else if tokens[at].is_word() && before != Some(".") && before != Some("::") {
            at = plain(tokens, at, &mut found);
        } else if tokens[at].text == "::" && tokens.get(at + 1).is_some_and(Token::is_word) {
            // From the root of all crates, unless it goes on after `>` or `}`.
            at = plain(tokens, at + 1, &mut found);
        } else {
            at += 1;
        }
    }
    found
}

fn plain(tokens: &[Token], start: usize, found: &mut Vec<Named>) -> usize {
    let mut segments = vec![tokens[start].text.clone()];
    let mut at = start + 1;
    while tokens.get(at).is_some_and(|t| t.text == "::") && tokens.get(at + 1).is_some_and(Token::is_word) {
        segments.push(tokens[at + 1].text.clone());
        at += 2;
    }
    found.push(Named::new(segments, tokens[start].line, false));
    at
}

/// A tree of a `use`, below `above`; gives the position after it.
fn tree(tokens: &[Token], start: usize, above: &[String], found: &mut Vec<Named>) -> usize {
    let mut segments = above.to_vec();
    let mut at = start;
    let line = tokens.get(at).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "::" => at += 1,
            "*" => {
                found.push(Named { is_glob: true, ..Named::new(segments, line, true) });
                return at + 1;
            }
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|t| t.text != "}") {
                    at = if tokens[at].text == "," { at + 1 } else { tree(tokens, at, &segments, found) };
                }
                return at + 1;
            }
            "as" => {
                found.push(Named { is_renamed: true, ..Named::new(segments, line, true) });
                return at + 2;
            }
            "self" if !segments.is_empty() => at += 1,
            _ if token.is_word() => {
                segments.push(token.text.clone());
                at += 1;
            }
            _ => break,
        }
    }
    found.push(Named::new(segments, line, true));
    // Goes on by one token at least, whatever it is.
    at.max(start + 1)
}
