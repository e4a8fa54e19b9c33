//! Words that the glossary has replaced do not come back, neither in names nor in sentences.

use std::path::PathBuf;

use super::collect;
use super::document::documents;

/// Words of our own for which the field has terms: see `docs/glossary.md`.
const REPLACED: &[&str] = &[
    "blow", "book", "books", "burial", "copybook", "courtesy", "deaf", "desk", "desks", "ears", "fleet",
    "ghost", "ghosts", "haste", "inquest", "living", "looked", "looks", "newborn", "petted", "roster",
    "seat", "seats", "shade", "shades", "stands", "stood", "struck", "tell", "telling", "tells", "told",
    "voice", "whoever",
];

/// The words of a text, and of the names in it: `is_deaf` and `DeafEars` have each of theirs.
fn words(text: &str) -> Vec<String> {
    let (mut found, mut word, mut was_lower) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        if !c.is_ascii_alphabetic() || (c.is_ascii_uppercase() && was_lower) {
            found.push(std::mem::take(&mut word));
        }
        if c.is_ascii_alphabetic() {
            word.push(c.to_ascii_lowercase());
        }
        was_lower = c.is_ascii_lowercase();
    }
    found.push(word);
    found.retain(|word| !word.is_empty());
    found
}

fn replaced(name: &str, text: &str) -> Vec<String> {
    let is_replaced = |word: &String| REPLACED.contains(&word.as_str());
    let lines = text.lines().enumerate();
    let found = lines.flat_map(|(at, line)| words(line).into_iter().map(move |word| (at + 1, word)));
    found
        .filter(|(_, word)| is_replaced(word))
        .map(|(at, word)| format!("{name}, line {at}: {word}"))
        .collect()
}

#[test]
fn replaced_words_do_not_come_back() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<(String, String)> = documents().into_iter().collect();
    assert!(files.len() > 10, "the documents were not found: {}", files.len());
    for folder in ["src", "tests", "benches", "examples"] {
        collect(&root.join(folder), &root, &mut files);
    }
    // This file names them all.
    files.retain(|(name, _)| name != "tests/purity/words.rs");
    let found: Vec<String> = files.iter().flat_map(|(name, text)| replaced(name, text)).collect();
    assert!(found.is_empty(), "the glossary has other words for these:\n{}", found.join("\n"));
}

#[test]
fn a_replaced_word_is_found_in_names_and_sentences() {
    assert_eq!(words("is_deaf DeafEars, a blow."), ["is", "deaf", "deaf", "ears", "a", "blow"]);
    assert_eq!(replaced("a.rs", "years\nlet burial_of = 1;"), ["a.rs, line 2: burial"]);
}
