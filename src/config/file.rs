//! The configuration file: TOML with the flags' names as keys. Keys at the top are for every command. Keys in a table
//! `[worker]`, `[submit]`, … are for that command alone. The whole file is checked, whichever command runs. So a
//! mistake shows at the first call and not when a worker is next started.
//!
//! No message may repeat a line of the file: it may hold a credential.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use strsim::levenshtein;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::given::{Given, Source, quoted, words, wrong_value};
use super::settings::{self, AllowedIn, Separator, Shape, Verb};
use crate::exit;

/// The most bytes that are read of it.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// What a file says, checked.
#[derive(Default)]
pub struct File {
    top: BTreeMap<String, Given>,
    tables: BTreeMap<Verb, BTreeMap<String, Given>>,
}

impl File {
    /// Reads the file; if `may_be_absent` it is empty when there is none.
    pub fn read(path: &Path, may_be_absent: bool) -> Result<File, ConfigError> {
        let mut bytes = Vec::new();
        let read = fs::File::open(path).and_then(|f| f.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(e) if may_be_absent && e.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
            Err(e) if may_be_absent && e.kind() == io::ErrorKind::PermissionDenied => {
                return Err(unusable(
                    path,
                    "may not be read by this user; --config /dev/null does without it",
                ));
            }
            Err(e) => return Err(unusable(path, &format!("cannot be read: {e}"))),
            Ok(n) if n as u64 > MAX_FILE_BYTES => return Err(unusable(path, "is larger than 1 MiB")),
            Ok(_) => {}
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| unusable(path, "is not UTF-8"))?;
        File::parse(path, text)
    }

    /// What it says about a setting of this command.
    pub fn find(&self, verb: Verb, name: &str) -> Option<&Given> {
        self.tables.get(&verb).and_then(|t| t.get(name)).or_else(|| self.top.get(name))
    }

    fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
        let reader = Reader { path, text };
        let root = DeTable::parse(text).map_err(|e| {
            let at = e.span().map(|span| format!(", line {}", reader.line(span.start))).unwrap_or_default();
            // Only the message: the error's own display shows the line.
            bad(&format!("{}{at}: is not TOML: {}", path.display(), e.message()))
        })?;
        let mut file = File::default();
        for (key, value) in root.get_ref() {
            match (Verb::from_name(key.get_ref()), value.get_ref()) {
                (Some(verb), DeValue::Table(table)) => {
                    let mut entries = BTreeMap::new();
                    for (key, value) in table {
                        reader.entry(&[verb], Some(verb), key, value, &mut entries)?;
                    }
                    file.tables.insert(verb, entries);
                }
                (Some(verb), _) => {
                    let at = reader.at(key.span().start);
                    return Err(bad(&format!("{at}: {} must be a table: [{}]", verb.name(), verb.name())));
                }
                (None, _) => reader.entry(&Verb::ALL, None, key, value, &mut file.top)?,
            }
        }
        Ok(file)
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|b| **b == b'\n').count()
    }

    fn at(&self, offset: usize) -> String {
        format!("{}, line {}", self.path.display(), self.line(offset))
    }

    /// Takes one key of the top (`table` is none) or of a command's table.
    fn entry(
        &self,
        verbs: &[Verb],
        table: Option<Verb>,
        key: &Spanned<Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        entries: &mut BTreeMap<String, Given>,
    ) -> Result<(), ConfigError> {
        let at = self.at(key.span().start);
        let name = key.get_ref().replace('_', "-");
        let meant: Vec<_> = verbs.iter().filter_map(|verb| settings::find(*verb, &name)).collect();
        if meant.is_empty() {
            return Err(bad(&format!("{at}: {}", self.unknown(key.get_ref(), &name, table))));
        }
        // A name may mean different things in different commands; what the top says is for those of them
        // that may be set in a file.
        let meant: Vec<_> =
            meant.into_iter().filter(|s| s.spec().allowed_in == AllowedIn::Anywhere).collect();
        let Some(first) = meant.first() else {
            return Err(bad(&format!("{at}: '{}' can't be set in a file; use --{name}", key.get_ref())));
        };
        let source = Source::File { path: PathBuf::from(self.path), line: self.line(value.span().start) };
        let items = items(first.spec().shape, value.get_ref())
            .map_err(|reason| bad(&format!("{at}: {} {reason}", key.get_ref())))?;
        let given = Given { items, source };
        for setting in meant {
            setting.check(&given.items).map_err(|e| wrong_value(setting.spec(), &given, &e))?;
        }
        if entries.insert(name.clone(), given).is_some() {
            return Err(bad(&format!("{at}: '{name}' is set twice (with '-' and with '_')")));
        }
        Ok(())
    }

    fn unknown(&self, key: &str, name: &str, table: Option<Verb>) -> String {
        let section = table.map(|verb| format!(" in [{}]", verb.name())).unwrap_or_default();
        let mut message = format!("unknown key '{}'{section}", key.escape_debug());
        let owners: Vec<_> = Verb::ALL
            .into_iter()
            .filter(|verb| settings::find(*verb, name).is_some())
            .map(|verb| format!("[{}]", verb.name()))
            .collect();
        if !owners.is_empty() {
            message.push_str(&format!("; it belongs to {}", owners.join(", ")));
            return message;
        }
        let known = settings::TABLE
            .iter()
            .map(|s| s.spec())
            .filter(|s| table.is_none_or(|verb| s.is_of(verb)) && s.allowed_in == AllowedIn::Anywhere)
            .map(|s| s.name);
        let tables = Verb::ALL.into_iter().filter(|_| table.is_none()).map(Verb::name);
        let near = known.chain(tables).map(|k| (levenshtein(k, name), k)).min();
        if let Some((_, near)) = near.filter(|(d, k)| *d <= 1 + k.len() / 4) {
            message.push_str(&format!("; did you mean '{near}'?"));
        }
        message
    }
}

/// Why a value of the file is none of a setting.
#[derive(Debug, thiserror::Error)]
enum NoValue {
    #[error("must not be a date")]
    Date,
    #[error("must be one value, not an array")]
    Array,
    #[error("must be a value, not a table")]
    Table,
}

/// A value of the file as texts.
fn items(shape: Shape, value: &DeValue<'_>) -> Result<Vec<OsString>, NoValue> {
    match (shape, value) {
        (Shape::List(..), DeValue::Array(array)) => {
            array.iter().map(|item| scalar(item.get_ref()).map(OsString::from)).collect()
        }
        (Shape::List(..), DeValue::Table(table)) => table
            .iter()
            .map(|(k, v)| Ok(OsString::from(format!("{}={}", k.get_ref(), scalar(v.get_ref())?))))
            .collect(),
        (Shape::List(_, Separator::Words), DeValue::String(text)) => Ok(words(text)),
        _ => Ok(vec![OsString::from(scalar(value)?)]),
    }
}

fn scalar(value: &DeValue<'_>) -> Result<String, NoValue> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(on) => Ok(on.to_string()),
        DeValue::Integer(n) => Ok(n.to_string()),
        DeValue::Float(n) => Ok(n.to_string()),
        DeValue::Datetime(_) => Err(NoValue::Date),
        DeValue::Array(_) => Err(NoValue::Array),
        DeValue::Table(_) => Err(NoValue::Table),
    }
}

fn bad(message: &str) -> ConfigError {
    ConfigError::new(exit::CONFIG, message)
}

fn unusable(path: &Path, what: &str) -> ConfigError {
    bad(&format!("the configuration file {} {what}", quoted(path.as_os_str())))
}
