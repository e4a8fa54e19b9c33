//! `ARCHITECTURE.md`, `docs/design` and `docs/decisions` name files and tests: each must exist, and the code map must
//! be complete. A link from one document to another leads to a file and a heading that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::collect;

/// A newcomer reads `ARCHITECTURE.md` as a whole. The rest belongs to the documents in `docs/design`.
const ARCHITECTURE_BYTES: usize = 12 * 1024;

const CODE_MAP: &str = "docs/design/code-map.md";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All documents, by their path from the root.
pub fn documents() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for dir in ["", "docs", "docs/design", "docs/decisions"] {
        for entry in fs::read_dir(root().join(dir)).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                found.insert(name, fs::read_to_string(&path).expect("UTF-8"));
            }
        }
    }
    found
}

/// The documents about how zkmw is made.
fn design() -> Vec<(String, String)> {
    let is_design = |name: &str| {
        ["ARCHITECTURE.md", "CONTRIBUTING.md"].contains(&name)
            || ["docs/design/", "docs/decisions/"].iter().any(|dir| name.starts_with(dir))
    };
    documents().into_iter().filter(|(name, _)| is_design(name)).collect()
}

/// A document without its blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The texts between backticks in prose.
fn quoted(text: &str) -> BTreeSet<String> {
    prose(text).split('`').skip(1).step_by(2).map(str::to_string).collect()
}

fn files(dir: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    collect(&root().join(dir), &root(), &mut files);
    files
}

#[test]
fn the_code_map_is_complete() {
    let map = quoted(&documents()[CODE_MAP]);
    let is_test = |name: &str| {
        name.contains("/tests/")
            || ["/tests.rs", "/testing.rs", "/explore.rs"].iter().any(|end| name.ends_with(end))
    };
    let missing: Vec<_> =
        files("src").into_iter().map(|(name, _)| name).filter(|n| !is_test(n) && !map.contains(n)).collect();
    assert!(missing.is_empty(), "not in {CODE_MAP}: {missing:?}");
}

#[test]
fn the_files_that_are_named_exist() {
    let is_path = |name: &String| {
        ["src/", "tests/", "benches/", "scripts/", "docs/"].iter().any(|dir| name.starts_with(dir))
            && !name.contains([' ', '*', '<'])
    };
    let mut gone = Vec::new();
    for (document, text) in design() {
        let absent = quoted(&text).into_iter().filter(is_path).filter(|name| !root().join(name).exists());
        gone.extend(absent.map(|name| format!("{document}: {name}")));
    }
    assert!(gone.is_empty(), "there are no such files:\n{}", gone.join("\n"));
}

#[test]
fn the_tests_that_are_named_exist() {
    let sources: String = files("src").into_iter().chain(files("tests")).map(|(_, text)| text).collect();
    // Names of tests are sentences.
    let is_test = |name: &String| {
        name.matches('_').count() >= 3
            && name.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let tests: BTreeSet<String> =
        design().iter().flat_map(|(_, text)| quoted(text)).filter(is_test).collect();
    assert!(tests.len() > 20, "no tests are named: {tests:?}");
    let gone: Vec<_> = tests.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(gone.is_empty(), "there are no such tests: {gone:?}");
}

#[test]
fn architecture_md_is_short() {
    let size = documents()["ARCHITECTURE.md"].len();
    assert!(size <= ARCHITECTURE_BYTES, "{size} bytes; move the rest to docs/design");
}

/// The anchors that GitHub makes of a document's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| {
        let kept = heading.trim().to_lowercase().replace(' ', "-");
        kept.chars().filter(|&c| c.is_alphanumeric() || c == '-' || c == '_').collect()
    };
    let headings = prose(text);
    headings
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| slug(line.trim_start_matches('#')))
        .collect()
}

/// Why a link does not lead anywhere.
fn broken(document: &str, link: &str, documents: &BTreeMap<String, String>) -> Option<String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let dir = Path::new(document).parent().expect("a file is in a directory");
    let target = if file.is_empty() { root().join(document) } else { root().join(dir).join(file) };
    let Ok(target) = target.canonicalize() else { return Some(format!("{document}: {link}: no such file")) };
    let name = target.strip_prefix(root().canonicalize().ok()?).ok()?.to_string_lossy().into_owned();
    let has_anchor =
        anchor.is_empty() || documents.get(&name).is_some_and(|text| anchors(text).contains(anchor));
    (!has_anchor).then(|| format!("{document}: {link}: no such heading"))
}

#[test]
fn links_between_documents_lead_somewhere() {
    let documents = documents();
    let mut found = Vec::new();
    let mut count = 0;
    for (document, text) in &documents {
        let text = prose(text);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (link, _) in links.filter(|(link, _)| !link.contains("://")) {
            count += 1;
            found.extend(broken(document, link, &documents));
        }
    }
    assert!(count > 50, "the links were not found: {count}");
    assert!(found.is_empty(), "links that lead nowhere:\n{}", found.join("\n"));
}

#[test]
fn a_link_to_a_missing_file_or_heading_is_found() {
    let documents = documents();
    assert_eq!(broken("docs/operations.md", "../ARCHITECTURE.md", &documents), None);
    assert_eq!(broken("docs/design/session.md", "#the-session-layer", &documents), None);
    assert!(broken("docs/operations.md", "ARCHITECTURE.md", &documents).is_some());
    assert!(broken("README.md", "ARCHITECTURE.md#no-such-heading", &documents).is_some());
}

#[test]
fn documents_that_comments_name_exist() {
    let named = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !(c.is_alphanumeric() || "/-_.".contains(c)));
        let words = words.map(|word| word.trim_end_matches('.'));
        words.filter(|word| word.starts_with("docs/") && word.ends_with(".md")).map(str::to_string).collect()
    };
    let mut gone = Vec::new();
    for (file, text) in files("src").into_iter().chain(files("tests")).chain(files("benches")) {
        let absent = named(&text).into_iter().filter(|name| !root().join(name).exists());
        gone.extend(absent.map(|name| format!("{file}: {name}")));
    }
    assert!(gone.is_empty(), "there are no such documents:\n{}", gone.join("\n"));
}
