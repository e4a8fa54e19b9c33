//! `ARCHITECTURE.md`, and what it is continued in, name files and tests: each must exist, and the code map
//! must be complete.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::collect;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What stands between backticks, outside of blocks.
fn quoted() -> BTreeSet<String> {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("a document");
    let continued = ["docs/design/handover.md", "docs/design/testing.md"].map(read).concat();
    let text = read("ARCHITECTURE.md") + &continued;
    let prose: String = text.split("```").step_by(2).collect();
    prose.split('`').skip(1).step_by(2).map(str::to_string).collect()
}

fn files(dir: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    collect(&root().join(dir), &root(), &mut files);
    files
}

#[test]
fn the_code_map_is_complete_and_true() {
    let named: BTreeSet<String> =
        quoted().into_iter().filter(|name| name.starts_with("src/") && name.ends_with(".rs")).collect();
    let is_test = |name: &str| {
        name.contains("/tests/")
            || ["/tests.rs", "/testing.rs", "/explore.rs"].iter().any(|end| name.ends_with(end))
    };
    let there: BTreeSet<String> =
        files("src").into_iter().map(|(name, _)| name).filter(|name| !is_test(name)).collect();
    let missing: Vec<_> = there.difference(&named).collect();
    let gone: Vec<_> = named.difference(&there).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not in the map: {missing:?}; not there: {gone:?}");
}

#[test]
fn the_tests_that_are_named_exist() {
    let sources: String = files("src").into_iter().chain(files("tests")).map(|(_, text)| text).collect();
    // Names of tests are sentences.
    let is_test = |name: &String| {
        name.matches('_').count() >= 3
            && name.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let tests: Vec<String> = quoted().into_iter().filter(is_test).collect();
    assert!(tests.len() > 20, "no tests are named: {tests:?}");
    let gone: Vec<_> = tests.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(gone.is_empty(), "there are no such tests: {gone:?}");
}
