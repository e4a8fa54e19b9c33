//! A value as the user gave it: its texts, its source, and the message that names both.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

use super::ConfigError;
use super::invalid::BadItem;
use super::settings::{Separator, Shape, Spec};
use crate::exit;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Flag(&'static str),
    Variable(String),
    File { path: PathBuf, line: usize },
    Default,
}

impl Source {
    /// The source with the higher number counts.
    pub fn strength(&self) -> u8 {
        match self {
            Source::Flag(_) => 3,
            Source::Variable(_) => 2,
            Source::File { .. } => 1,
            Source::Default => 0,
        }
    }

    fn exit_code(&self) -> i32 {
        match self {
            Source::Flag(_) => exit::USAGE,
            Source::Variable(_) | Source::File { .. } => exit::CONFIG,
            Source::Default => exit::BUG,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(name) => write!(f, "from --{name}"),
            Source::Variable(name) => write!(f, "from {name}"),
            Source::File { path, line } => write!(f, "from {}, line {line}", path.display()),
            Source::Default => write!(f, "the default"),
        }
    }
}

/// The texts for a setting and their source. No `Debug`: they may be secret.
#[derive(Clone)]
pub struct Given {
    pub items: Vec<OsString>,
    pub source: Source,
}

/// A variable; one that is empty counts as not set, as unit files and compose files can't unset any.
pub fn variable(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<OsString> {
    env(name).filter(|text| !text.is_empty())
}

/// The items in the text of a variable.
pub fn split_variable(shape: Shape, text: &OsStr) -> Vec<OsString> {
    match (shape, text.to_str()) {
        (Shape::List(_, Separator::Words), Some(text)) => words(text),
        (Shape::List(_, Separator::Lines), Some(text)) => {
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(OsString::from).collect()
        }
        _ => vec![text.to_owned()],
    }
}

/// What is between commas and whitespace.
pub fn words(text: &str) -> Vec<OsString> {
    text.split([',', ' ', '\t', '\n']).filter(|word| !word.is_empty()).map(OsString::from).collect()
}

/// `slots: '0' (from ZKMW_SLOTS) is not valid: must be …`
pub fn wrong_value(spec: &Spec, given: &Given, bad: &BadItem) -> ConfigError {
    let value = match given.items.get(bad.index) {
        Some(item) if !spec.secret => quoted(item),
        _ => "the value".to_owned(),
    };
    let message = format!("{}: {value} ({}) is not valid: {}", spec.name, given.source, bad.reason);
    ConfigError::new(given.source.exit_code(), &message)
}

/// The text in quotes, printable and not too long.
pub fn quoted(text: &OsStr) -> String {
    const MAX_CHARS: usize = 80;
    let text = text.to_string_lossy();
    let mut shown: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        shown.push('…');
    }
    format!("'{}'", shown.replace("\\'", "'"))
}
