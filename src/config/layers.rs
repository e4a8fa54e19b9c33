//! Which source of a setting counts: flags, then variables, then the file, then the default.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::ConfigError;
use super::file::File;
use super::given::{Given, Source, split_variable, variable, wrong_value};
use super::invalid::{BadItem, Conflict};
use super::settings::{AllowedIn, Fallback, Setting, Spec, Verb};

/// All sources of settings.
pub struct Layers<'a> {
    pub verb: Verb,
    pub flags: BTreeMap<&'static str, Vec<OsString>>,
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    pub file: File,
}

impl Layers<'_> {
    /// What the strongest source of it says.
    pub fn given(&self, spec: &Spec) -> Option<Given> {
        if let Some(items) = self.flags.get(spec.name) {
            return Some(Given { items: items.clone(), source: Source::Flag(spec.name) });
        }
        if spec.allowed_in != AllowedIn::Flag
            && let Some(text) = variable(self.env, &spec.variable())
        {
            let source = Source::Variable(spec.variable());
            return Some(Given { items: split_variable(spec.shape, &text), source });
        }
        if let Some(given) =
            self.file.find(self.verb, spec.name).filter(|_| spec.allowed_in == AllowedIn::Anywhere)
        {
            return Some(given.clone());
        }
        match spec.default {
            Fallback::Text(text) => Some(Given { items: vec![text.into()], source: Source::Default }),
            Fallback::Described(_) | Fallback::Nothing => None,
        }
    }

    /// The value, if any source has one.
    pub fn get<T>(&self, setting: &Setting<T>) -> Result<Option<T>, ConfigError> {
        let spec = &setting.spec;
        assert!(spec.is_of(self.verb), "{} is no setting of {:?}", spec.name, self.verb);
        let Some(given) = self.given(spec) else { return Ok(None) };
        setting.parser.parse(&given.items).map(Some).map_err(|bad| wrong_value(spec, &given, &bad))
    }

    /// The value; without one no labels, or not switched on.
    pub fn get_or_default<T: Default>(&self, setting: &Setting<T>) -> Result<T, ConfigError> {
        Ok(self.get(setting)?.unwrap_or_default())
    }

    /// The value of a setting that has a default in the table.
    pub fn get_always<T>(&self, setting: &Setting<T>) -> Result<T, ConfigError> {
        Ok(self.get(setting)?.unwrap_or_else(|| panic!("{} has no default in the table", setting.spec.name)))
    }

    /// The error for a value that is right by itself, but not together with others.
    pub fn refuse(&self, spec: &Spec, why: Conflict) -> ConfigError {
        let given = self.given(spec).unwrap_or(Given { items: Vec::new(), source: Source::Default });
        wrong_value(spec, &given, &BadItem { index: 0, reason: why.into() })
    }
}
