//! The files of the master call one way, without a circle: see *Who calls whom in the master* in the code map.
//!
//! A file calls another if it imports something of it, or calls a method that the other adds to `Leader`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::collect;

const DIR: &str = "src/roles/master/";

/// The files of the master by name, without comments and unit tests.
fn files() -> BTreeMap<String, String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src/roles"), &root, &mut files);
    let name = |path: &str| path.strip_prefix(DIR)?.strip_suffix(".rs").map(str::to_string);
    let is_file = |name: &String| !name.contains("tests");
    let code = |text: &str| {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    };
    let named = files.iter().filter_map(|(path, text)| Some((name(path).filter(is_file)?, code(text))));
    named.collect()
}

/// The methods that a file adds to `Leader`.
fn methods(text: &str) -> BTreeSet<&str> {
    let blocks = text.split("\nimpl Leader {").skip(1).filter_map(|block| block.split("\n}").next());
    let names = blocks.flat_map(|block| block.split(" fn ").skip(1));
    names.filter_map(|name| name.split(['(', '<']).next()).collect()
}

fn calls(files: &BTreeMap<String, String>) -> BTreeMap<&str, BTreeSet<&str>> {
    let calls_to = |from: &str, text: &str, to: &str| {
        let is_import = text.contains(&format!("use super::{to}::"));
        let of_leader = text.contains("impl Leader {");
        let mut methods = methods(&files[to]).into_iter();
        from != to && (is_import || of_leader && methods.any(|name| text.contains(&format!("self.{name}("))))
    };
    files
        .iter()
        .map(|(from, text)| {
            let called = files.keys().filter(|to| calls_to(from, text, to)).map(String::as_str);
            (from.as_str(), called.collect())
        })
        .collect()
}

/// A circle of calls, if there is one: it is left over when the files that call no other are removed, again and again.
fn circle<'a>(mut calls: BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    while let Some(last) = calls.iter().find(|(_, to)| to.is_empty()).map(|(from, _)| *from) {
        calls.remove(last);
        for to in calls.values_mut() {
            to.remove(last);
        }
    }
    calls.into_keys().collect()
}

#[test]
fn the_files_of_the_master_call_one_way() {
    let files = files();
    let calls = calls(&files);
    assert!(calls["takeover"].contains("reconcile") && calls["reconcile"].contains("decide"), "{calls:?}");
    let circle = circle(calls);
    assert!(circle.is_empty(), "these call each other in a circle: {circle:?}");
}

#[test]
fn a_circle_of_calls_is_found() {
    let calls = [("a", vec!["b"]), ("b", vec!["c"]), ("c", vec!["b"]), ("d", vec![])];
    let calls = calls.into_iter().map(|(from, to)| (from, to.into_iter().collect())).collect();
    assert_eq!(circle(calls), BTreeSet::from(["a", "b", "c"]));
}
