//! Names of tests: each says its rule, short enough for a list of tests to be read.

use std::path::PathBuf;

use super::collect;
use super::source::tokens;

/// With the name of its module, a test then fits on one line of a terminal.
const MAX_TEST_NAME: usize = 60;

/// The names of the tests in the source. Comments and literals have none.
fn test_names(text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let is_test = |at: &usize| {
        ["#", "[", "test", "]"]
            .iter()
            .enumerate()
            .all(|(offset, sign)| tokens.get(at + offset).is_some_and(|token| token.text == *sign))
    };
    let name = |at: usize| {
        let function = tokens[at..].iter().position(|token| token.text == "fn")?;
        tokens.get(at + function + 1).map(|token| token.text.clone())
    };
    (0..tokens.len()).filter(is_test).filter_map(name).collect()
}

#[test]
fn names_of_tests_are_short() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests", "benches"] {
        collect(&root.join(dir), &root, &mut files);
    }
    let (mut count, mut long) = (0, Vec::new());
    for (file, text) in &files {
        let names = test_names(text);
        count += names.len();
        let too_long = names.into_iter().filter(|name| name.len() > MAX_TEST_NAME);
        long.extend(too_long.map(|name| format!("{file}: {name} ({} characters)", name.len())));
    }
    assert!(count > 500, "the tests were not found: {count}");
    assert!(
        long.is_empty(),
        "names of tests with more than {MAX_TEST_NAME} characters:\n{}",
        long.join("\n")
    );
}

#[test]
fn tests_are_found_by_their_attribute() {
    let text =
        "#[test]\nfn a() {}\n#[test]\n#[cfg(unix)]\nfn b(x: u8) {}\nfn helper() {}\n// #[test] fn c() {}";
    assert_eq!(test_names(text), ["a", "b"]);
}
