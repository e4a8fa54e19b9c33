//! Which of the places that may speak of a setting has the word: flags, then variables, then the file, then the
//! default; and the messages that say which it was.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

use super::ConfigError;
use super::file::File;
use super::parse::BadItem;
use super::settings::{Fallback, Place, Separator, Setting, Shape, Spec, Verb};
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
    /// The higher, the sooner it is heard.
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

/// The texts for a setting, and who gave them. No `Debug`: they may be secret.
#[derive(Clone)]
pub struct Given {
    pub items: Vec<OsString>,
    pub source: Source,
}

/// Everything that may speak of a setting.
pub struct Layers<'a> {
    pub verb: Verb,
    pub flags: BTreeMap<&'static str, Vec<OsString>>,
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    pub file: File,
}

impl Layers<'_> {
    /// The strongest place that says something about it.
    pub fn given(&self, spec: &Spec) -> Option<Given> {
        if let Some(items) = self.flags.get(spec.name) {
            return Some(Given { items: items.clone(), source: Source::Flag(spec.name) });
        }
        if spec.place != Place::Flag
            && let Some(text) = variable(self.env, &spec.variable())
        {
            let source = Source::Variable(spec.variable());
            return Some(Given { items: split_variable(spec.shape, &text), source });
        }
        if let Some(given) = self.file.find(self.verb, spec.name).filter(|_| spec.place == Place::Anywhere) {
            return Some(given.clone());
        }
        match spec.default {
            Fallback::Text(text) => Some(Given { items: vec![text.into()], source: Source::Default }),
            Fallback::Described(_) | Fallback::Nothing => None,
        }
    }

    /// The value, if any place has one.
    pub fn get<T>(&self, setting: &Setting<T>) -> Result<Option<T>, ConfigError> {
        let spec = &setting.spec;
        assert!(spec.is_of(self.verb), "{} is no setting of {:?}", spec.name, self.verb);
        let Some(given) = self.given(spec) else { return Ok(None) };
        setting.parser.parse(&given.items).map(Some).map_err(|bad| wrong_value(spec, &given, &bad))
    }

    /// The value, or what stands for "nobody said anything": no labels, not switched on.
    pub fn get_or_default<T: Default>(&self, setting: &Setting<T>) -> Result<T, ConfigError> {
        Ok(self.get(setting)?.unwrap_or_default())
    }

    /// The value of a setting that has a default in the table.
    pub fn get_always<T>(&self, setting: &Setting<T>) -> Result<T, ConfigError> {
        Ok(self.get(setting)?.unwrap_or_else(|| panic!("{} has no default in the table", setting.spec.name)))
    }

    /// The error for a value that is right by itself, but not together with others.
    pub fn refuse(&self, spec: &Spec, reason: String) -> ConfigError {
        let given = self.given(spec).unwrap_or(Given { items: Vec::new(), source: Source::Default });
        wrong_value(spec, &given, &BadItem { index: 0, reason })
    }
}

/// A variable; one that is empty counts as not set, as unit files and compose files can't unset any.
pub fn variable(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<OsString> {
    env(name).filter(|text| !text.is_empty())
}

fn split_variable(shape: Shape, text: &OsStr) -> Vec<OsString> {
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
