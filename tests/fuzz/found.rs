//! Inputs that broke something once. The name of each test says what it broke.

use zkmw::contract::MAX_DATA_BYTES;
use zkmw::contract::task::Task;

use crate::targets::{TARGETS, names};

#[track_caller]
fn holds(target: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|known| known.name == target).expect("a target");
    (target.check)(data);
}

/// Two spellings of one number were one registration to the leader.
#[test]
fn a_registrations_number_has_one_spelling() {
    names(b"w~1~01");
    names(b"w~1~+1");
    names(b"w~1~00");
}

/// The parser took the nearest number but one, so that a note changed whenever its task was written.
#[test]
fn a_foreign_fraction_keeps_its_digits() {
    holds("job", br#"{"x-own":91804962e-97}"#);
}

/// Ignored fields were not checked at all.
#[test]
fn invalid_utf_8_is_refused_anywhere() {
    let data = b"{\"command\":\"\",\"outcome\":{\"state\":\"done\",\"attempt\":1,\"x-own\":\"\x9e\"}}";
    holds("task", data);
    let why = Task::decode(data).expect_err("refused").to_string();
    assert!(why.contains("it is not UTF-8, from byte 62 on"), "{why}");
}

/// An ignored field may hold a number that fits no type.
#[test]
fn a_number_beyond_all_types_is_ignored_in_unknown_fields() {
    holds("assignment", br#"{"entries":[{"task":"a/b","x-own":1e400}]}"#);
    holds("assignment", br#"{"entries":[],"x-own":1e400}"#);
}

/// Data that takes the most memory for its size, as large as it may be.
#[test]
fn the_worst_data_has_bounded_memory() {
    for unit in ["[],", "{},", "0,", "\"\",", "[[]],", "{\"\":0},", "{\"a\":{\"b\":[]}},"] {
        let all = unit.repeat((MAX_DATA_BYTES - 64) / unit.len());
        let items = all.strip_suffix(',').expect("a comma");
        for target in ["task", "assignment"] {
            for field in ["x-own", "history", "v"] {
                holds(target, format!(r#"{{"command":"","{field}":[{items}]}}"#).as_bytes());
            }
        }
    }
    let keys: Vec<_> = (0..MAX_DATA_BYTES / 16).map(|n| format!(r#""{n:x}":[]"#)).collect();
    holds("job", format!("{{{}}}", keys.join(",")).as_bytes());
}

/// An ignored field may hold half of a pair of surrogates.
#[test]
fn half_a_character_is_ignored_in_unknown_fields() {
    holds("task", br#"{"command":"","outcome":{"state":"failed","attempt":3,"x-own":"\ud800"}}"#);
    holds("task", br#"{"command":"","outcome":{"state":"failed","attempt":3,"x-own":"\ud800\u0041"}}"#);
}
