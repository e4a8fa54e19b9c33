//! The rules, over the whole source at once.

use std::collections::BTreeSet;

use super::circles::circles;
use super::source::{Named, Token, paths, tokens, without_tests};
use super::structs::too_large;

/// Most lines of a file: a reader can hold them in his head.
pub const MAX_LINES: usize = 600;

/// The parts of the standard library that pure code may not name.
const WORLD: &[&str] = &[
    "std::thread",
    "std::sync",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "std::fs",
    "std::process",
    "std::env",
    "std::net",
    "std::io",
    "std::os",
    "std::ffi",
    "std::path",
    "std::alloc",
    "std::panic",
    "std::hash::RandomState",
    "std::collections::hash_map",
    "std::collections::hash_set",
    "std::collections::HashMap",
    "std::collections::HashSet",
];

/// Words that pure code may not use, wherever they come from.
const WORDS: &[&str] = &["HashMap", "HashSet", "RandomState", "rand", "unsafe"];

/// Macros that pure code may not call.
const MACROS: &[&str] = &["print", "println", "eprint", "eprintln", "dbg", "thread_local"];

/// The crates that pure code may name: they compute.
const PURE_CRATES: &[&str] = &["base64", "serde", "serde_json", "sha2", "thiserror"];

/// The layers, from the bottom: where each lives, and which modules of ours it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("src/machine", &["machine"]),
    ("src/contract", &["contract", "machine"]),
    ("src/recipes", &["recipes", "contract", "machine", "exit"]),
    ("src/roles", &["roles", "recipes", "contract", "machine", "exit"]),
];

pub struct File<'a> {
    pub name: &'a str,
    pub tokens: Vec<Token>,
    pub paths: Vec<Named>,
}

impl File<'_> {
    fn layer(&self) -> Option<&'static [&'static str]> {
        let is_in = |dir: &str| self.name == format!("{dir}.rs") || self.name.starts_with(&format!("{dir}/"));
        LAYERS.iter().find(|(dir, _)| is_in(dir)).map(|(_, may)| *may)
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}, line {line}: {what}", self.name)
    }
}

/// Everything that breaks a rule. `files` are path and text, `dependencies` the crates of the manifest.
pub fn offences(files: &[(String, String)], dependencies: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files {
        check_length(name, text.lines().count(), &mut found);
    }
    let mut kept: Vec<(&str, Vec<Token>)> = Vec::new();
    let mut test_modules = BTreeSet::new();
    for (name, text) in files {
        let (tokens, modules) = without_tests(tokens(text));
        test_modules.extend(modules.into_iter().map(|module| format!("{}/{module}", module_dir(name))));
        kept.push((name, tokens));
    }
    let is_test = |name: &str| {
        test_modules.iter().any(|path| name == format!("{path}.rs") || name.starts_with(&format!("{path}/")))
    };
    let files: Vec<File<'_>> = kept
        .into_iter()
        .filter(|(name, _)| !is_test(name))
        .map(|(name, tokens)| File { name, paths: paths(&tokens), tokens })
        .collect();
    for file in &files {
        if let Some(may) = file.layer() {
            check_world(file, dependencies, &mut found);
            check_layer(file, may, &mut found);
        }
        if file.name != "src/zk.rs" && !file.name.starts_with("src/zk/") {
            let names = file.paths.iter().filter(|path| {
                path.segments.first().is_some_and(|root| root == "zookeeper")
                    && (path.is_use || path.segments.len() > 1)
            });
            // In pure code it is reported as a foreign crate.
            if file.layer().is_none() {
                found
                    .extend(names.map(|path| file.at(path.line, "only src/zk may name the zookeeper crate")));
            }
        }
    }
    check_threads(&files, &mut found);
    check_select(&files, &mut found);
    check_step(&files, &mut found);
    found.extend(circles(&files));
    let is_role_or_recipe =
        |file: &&File<'_>| file.name.starts_with("src/roles/") || file.name.starts_with("src/recipes/");
    found.extend(files.iter().filter(is_role_or_recipe).flat_map(too_large));
    found
}

/// The module that a file holds, as its path from the crate's root.
pub fn module_of(name: &str) -> Vec<String> {
    let dir = module_dir(name);
    let below = dir.trim_start_matches("src").split('/');
    below.filter(|segment| !segment.is_empty()).map(str::to_string).collect()
}

/// The directory that a file's modules are in.
fn module_dir(name: &str) -> String {
    let stem = name.strip_suffix(".rs").unwrap_or(name);
    let (dir, last) = stem.rsplit_once('/').unwrap_or(("", stem));
    if matches!(last, "mod" | "lib" | "main") { dir.to_string() } else { stem.to_string() }
}

fn check_length(name: &str, lines: usize, found: &mut Vec<String>) {
    if lines > MAX_LINES {
        found.push(format!("{name}: {lines} lines, more than {MAX_LINES}"));
    }
}

fn check_world(file: &File<'_>, dependencies: &[String], found: &mut Vec<String>) {
    for path in &file.paths {
        let Some(root) = path.segments.first() else { continue };
        let text = path.segments.join("::").replace("core::", "std::").replace("alloc::", "std::");
        let forbidden = WORLD.iter().find(|world| {
            text == **world
                || text.starts_with(&format!("{world}::"))
                // An import of the parent gives access to the child.
                || (path.is_use && world.starts_with(&format!("{text}::")) && !is_harmless_parent(path))
        });
        let is_crate = path.is_use || path.segments.len() > 1;
        if forbidden.is_some() {
            found.push(file.at(path.line, &format!("pure code names {text}")));
        } else if is_crate
            && dependencies.iter().any(|name| name == root)
            && !PURE_CRATES.contains(&root.as_str())
        {
            found.push(file.at(path.line, &format!("pure code names the crate {root}")));
        } else if let Some(word) = path.segments.iter().find(|word| WORDS.contains(&word.as_str())) {
            found.push(file.at(path.line, &format!("pure code names {word}")));
        }
    }
    for pair in file.tokens.windows(2) {
        let [word, sign] = pair else { continue };
        if sign.text == "!" && MACROS.contains(&word.text.as_str()) {
            found.push(file.at(word.line, &format!("pure code calls {}!", word.text)));
        }
        if word.text == "static" && sign.text == "mut" {
            found.push(file.at(word.line, "pure code has a static that changes"));
        }
    }
}

/// `std::hash` has traits that compute; only an import by name counts. `std::collections` likewise, but as
/// a name in the file it would let everything through.
fn is_harmless_parent(path: &Named) -> bool {
    !path.is_glob && path.segments == ["std", "hash"]
}

fn check_layer(file: &File<'_>, may: &[&str], found: &mut Vec<String>) {
    for path in &file.paths {
        let Some(inner) = inner_path(file.name, path) else { continue };
        let allowed = inner.first().is_some_and(|module| may.contains(&module.as_str()));
        if !allowed {
            let module = inner.first().map_or(String::new(), |module| format!("::{module}"));
            found.push(file.at(path.line, &format!("it may not name crate{module}")));
        }
    }
}

/// The path from the crate's root, if it begins with `crate`, `self` or `super`; `self` alone is a value.
pub fn inner_path(name: &str, path: &Named) -> Option<Vec<String>> {
    let rest = &path.segments[1..];
    match path.segments.first()?.as_str() {
        "crate" if path.is_use || !rest.is_empty() => Some(rest.to_vec()),
        "self" | "super" if path.is_use || !rest.is_empty() => {
            let mut at = module_of(name);
            let ups = path.segments.iter().take_while(|segment| *segment == "super").count();
            at.truncate(at.len().saturating_sub(ups));
            let below = path.segments.iter().filter(|s| !matches!(s.as_str(), "super" | "self"));
            at.extend(below.cloned());
            Some(at)
        }
        _ => None,
    }
}

/// A thread that panics unseen leaves a process that does nothing.
fn check_threads(files: &[File<'_>], found: &mut Vec<String>) {
    let starts = |word: &str| matches!(word, "Builder" | "spawn" | "spawn_unchecked" | "scope");
    let is_start = |path: &&Named| {
        let pairs = || path.segments.windows(2).filter(|pair| pair[0] == "thread");
        let is_module = path.segments == ["std", "thread"];
        // As part of the file, or under another name, it would not be known again.
        pairs().any(|pair| starts(&pair[1])) || (is_module && (path.is_glob || path.is_renamed))
    };
    for file in files.iter().filter(|file| file.name != "src/threads.rs") {
        let named = file.paths.iter().filter(is_start).map(|path| path.line);
        let bare = file.tokens.iter().filter(|token| token.text == "pthread_create");
        let lines = named.chain(bare.map(|token| token.line));
        found.extend(lines.map(|line| file.at(line, "only src/threads.rs starts threads")));
    }
}

fn check_select(files: &[File<'_>], found: &mut Vec<String>) {
    let mut selects = Vec::new();
    for file in files {
        for window in file.tokens.windows(2) {
            let [word, sign] = window else { continue };
            let is_macro = matches!(word.text.as_str(), "select" | "select_biased") && sign.text == "!";
            let is_type = word.text == "Select" && sign.text == "::";
            if is_macro || is_type {
                selects.push(file.at(word.line, "a select"));
            }
        }
    }
    if selects.len() != 1 {
        found.push(format!("there must be one select!, and there are {}: {selects:?}", selects.len()));
    }
}

fn check_step(files: &[File<'_>], found: &mut Vec<String>) {
    let mut calls = Vec::new();
    for file in files {
        for (at, window) in file.tokens.windows(3).enumerate() {
            let [before, word, after] = window else { continue };
            if word.text == "step" && after.text == "(" && matches!(before.text.as_str(), "." | "::") {
                let caller = file.tokens[..at].windows(2).rev().find(|pair| pair[0].text == "fn");
                let caller = caller.map_or("", |pair| pair[1].text.as_str());
                calls.push((file.at(word.line, &format!("step called by {caller}")), file.name, caller));
            }
        }
    }
    let right = |(_, name, caller): &&(String, &str, &str)| *name == "src/machine.rs" && *caller == "turn";
    if calls.len() != 1 || !calls.iter().all(|call| right(&call)) {
        let calls: Vec<&String> = calls.iter().map(|(call, ..)| call).collect();
        found.push(format!("step must be called once, in machine::turn: {calls:?}"));
    }
}
