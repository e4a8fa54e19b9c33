//! Variables that begin with `ZKMW_` and are no settings: a name with a slip in it must not be passed over.

use std::ffi::OsString;

use strsim::levenshtein;

use super::parse::is_set_by_worker;
use super::settings::{self, AllowedIn};

/// What `zkmw-elector@.service` reads.
const OF_UNITS: &str = "ZKMW_ELECTOR_COMMAND";

/// What to say of each of these variables that nothing reads. Settings of other commands are known, for all roles of a
/// machine may share their variables.
pub fn unknown_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let names =
        variables.filter(|(_, value)| !value.is_empty()).filter_map(|(name, _)| name.into_string().ok());
    let mut messages: Vec<String> =
        names.filter(|name| name.starts_with("ZKMW_")).filter_map(|name| message(&name)).collect();
    messages.sort();
    messages
}

/// None if it is known.
fn message(name: &str) -> Option<String> {
    if name == OF_UNITS || is_set_by_worker(name) {
        return None;
    }
    let specs = || settings::TABLE.iter().map(|setting| setting.spec());
    let known = || specs().filter(|spec| spec.allowed_in != AllowedIn::Flag).map(|spec| spec.variable());
    if known().any(|variable| variable == name) {
        return None;
    }
    if let Some(spec) = specs().find(|spec| spec.variable() == name) {
        return Some(format!("the variable {name} is no setting: use the flag --{}", spec.name));
    }
    let near = known().map(|variable| (levenshtein(&variable, name), variable)).min();
    let near = near.filter(|(letters, variable)| *letters <= 1 + (variable.len() - "ZKMW_".len()) / 4);
    let hint = near.map_or("unset it".to_owned(), |(_, variable)| format!("did you mean {variable}?"));
    Some(format!("the variable {} is no setting; {hint}", name.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(names: &[&str]) -> Vec<String> {
        unknown_variables(names.iter().map(|name| (name.into(), "1".into())))
    }

    #[test]
    fn a_typo_is_reported_with_a_suggestion() {
        assert_eq!(
            messages(&["ZKMW_SLOT"]),
            ["the variable ZKMW_SLOT is no setting; did you mean ZKMW_SLOTS?"]
        );
        assert_eq!(
            messages(&["ZKMW_ROTO"]),
            ["the variable ZKMW_ROTO is no setting; did you mean ZKMW_ROOT?"]
        );
        assert_eq!(messages(&["ZKMW_COLOUR"]), ["the variable ZKMW_COLOUR is no setting; unset it"]);
        let flag = "the variable ZKMW_FROM_FILE is no setting: use the flag --from-file";
        assert_eq!(messages(&["ZKMW_FROM_FILE"]), [flag]);
    }

    #[test]
    fn every_setting_and_task_variable_is_known() {
        assert_eq!(
            messages(&["ZKMW_ZK", "ZKMW_SLOTS", "ZKMW_MAX_PENDING", "ZKMW_TIMEOUT", "PATH", "SLOT"]),
            [""; 0]
        );
        let of_tasks = ["ZKMW_TASK", "ZKMW_ATTEMPT", "ZKMW_EPOCH", "ZKMW_WORKER", "ZKMW_LINE"];
        assert_eq!(messages(&of_tasks), [""; 0]);
        assert_eq!(
            messages(&["ZKMW_OWNER", "ZKMW_ELECTOR_COMMAND", "ZKMW_ENSEMBLE_DIR", "ZKMW_BIN"]),
            [""; 0]
        );
        let empty = unknown_variables(std::iter::once(("ZKMW_SLOT".into(), "".into())));
        assert_eq!(empty, [""; 0], "an empty variable counts as not set");
    }
}
