//! Rules for the names that the source may use: roles, recipes, the contract and the vocabulary are pure, and
//! dependencies go one way. `clippy.toml` forbids the same types and macros in those modules. This test also checks
//! what clippy cannot: whole modules of the standard library, other crates, and which of our modules names which.
//!
//! It reads the source as tokens, without comments, literals and test code. It is no compiler: a name that a macro
//! puts together would escape it.

mod calls;
mod circles;
mod document;
mod names;
mod rules;
mod source;
mod structs;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use rules::offences;

#[test]
fn the_source_keeps_the_rules() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &root, &mut files);
    assert!(files.len() > 50, "the source was not found: {} files", files.len());
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("Cargo.toml");
    let found = offences(&files, &dependencies(&manifest));
    assert!(found.is_empty(), "{} offences:\n{}", found.len(), found.join("\n"));
}

fn collect(dir: &Path, root: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, root, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            files.push((name, fs::read_to_string(&path).expect("UTF-8")));
        }
    }
}

/// The crates that the program depends on, as code names them.
fn dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.split("[dependencies]").nth(1).expect("a section");
    let section = section.split("\n[").next().expect("its text");
    let name = |line: &str| Some(line.split_once('=')?.0.trim().replace('-', "_"));
    section.lines().filter(|line| !line.starts_with('#')).filter_map(name).collect()
}

/// A tree that keeps all rules, with one file added or replaced.
fn with(path: &str, text: &str) -> Vec<String> {
    let clean = [
        (
            "src/lib.rs",
            "pub mod contract; pub mod machine; pub mod recipes; pub mod roles; pub mod shell; pub mod zk;",
        ),
        ("src/machine.rs", "pub fn turn(role: &mut R) { role.step(now); }"),
        ("src/contract.rs", "use crate::machine::Captured;"),
        ("src/recipes.rs", "pub mod lease;"),
        ("src/recipes/lease.rs", "use std::time::Duration; use crate::contract::Layout;"),
        ("src/roles.rs", "pub mod worker;"),
        (
            "src/roles/worker.rs",
            "use crate::recipes::lease::Lease; use std::collections::{BTreeMap, BTreeSet};",
        ),
        ("src/shell.rs", "fn next() { select! { recv(a) -> _ => {} } }"),
        ("src/zk.rs", "use zookeeper::ZooKeeper;"),
    ];
    let mut files: Vec<(String, String)> = clean.map(|(p, t)| (p.to_string(), t.to_string())).to_vec();
    files.retain(|(old, _)| old != path);
    files.push((path.to_string(), text.to_string()));
    let dependencies = ["zookeeper", "crossbeam_channel", "serde", "serde_json", "base64", "rustix", "log"];
    offences(&files, &dependencies.map(str::to_string))
}

#[track_caller]
fn refused(path: &str, text: &str, word: &str) {
    let mut found = with(path, text);
    // A file that names a layer above closes a circle, too.
    found.retain(|message| !message.ends_with("use each other"));
    assert!(
        !found.is_empty() && found.iter().all(|message| message.contains(word)),
        "{path}: {text}\n{found:#?}"
    );
}

#[track_caller]
fn accepted(path: &str, text: &str) {
    let found = with(path, text);
    assert!(found.is_empty(), "{path}: {text}\n{found:#?}");
}

const PURE: &str = "src/recipes/lease.rs";

#[test]
fn a_clean_tree_is_accepted() {
    accepted("src/recipes/queue.rs", "use std::fmt; pub fn f() -> u32 { 1 }");
}

#[test]
fn pure_code_names_nothing_of_the_world() {
    for (text, word) in [
        ("use std::thread;", "std::thread"),
        ("fn f() { std::thread::sleep(d); }", "std::thread"),
        ("use std::{fmt, sync::{Arc, Mutex}};", "std::sync"),
        ("use std::time::{Duration, Instant};", "std::time::Instant"),
        ("use std::time::SystemTime as Clock;", "std::time::SystemTime"),
        ("use std::time;", "std::time"),
        ("use std::time::*;", "std::time"),
        ("use std::*;", "std"),
        ("use std;", "std"),
        ("fn f() { ::std::fs::read(p); }", "std::fs"),
        ("use std::process::exit;", "std::process"),
        ("use std::env::args;", "std::env"),
        ("use std::net::IpAddr;", "std::net"),
        ("use std::io::Write as _;", "std::io"),
        ("use std::os::fd::OwnedFd;", "std::os"),
        ("use std::collections::HashMap;", "HashMap"),
        ("use std::collections::hash_map::RandomState;", "hash_map"),
        ("use std::hash::RandomState;", "RandomState"),
        ("fn f(x: std::collections::HashSet<u8>) {}", "HashSet"),
        ("use crossbeam_channel::Sender;", "crossbeam_channel"),
        ("fn f() { rustix::process::getpid(); }", "rustix"),
        ("fn f() { log::warn!(); }", "log"),
        ("use rand::Rng;", "rand"),
        ("fn f() { println!(); }", "println!"),
        ("thread_local! { static A: u8 = 1; }", "thread_local!"),
        ("static mut A: u8 = 1;", "static"),
        ("fn f() { unsafe { g() } }", "unsafe"),
    ] {
        for path in [PURE, "src/roles/worker.rs", "src/contract/task.rs"] {
            refused(path, text, word);
        }
    }
    refused("src/machine.rs", "fn turn() { role.step(n); } use std::time::Instant;", "std::time::Instant");
    accepted(PURE, "use serde::Serialize; use std::time::Duration; fn f(log: L) { log.warn(); }");
}

#[test]
fn comments_literals_and_tests_are_exempt() {
    for text in [
        "// use std::thread;",
        "//! std::thread\n/// [`std::fs`]\nfn f() {}",
        "/* use std::fs; /* nested */ use std::io; */ fn f() {}",
        "fn f() -> &'static str { \"use std::thread; \\\" HashMap\" }",
        "fn f() -> &'static str { r#\"use \"std::thread\"; HashMap\"# }",
        "fn f() -> char { '\"' } // HashMap",
        "fn f<'a>(x: &'a str) -> u8 { b'\\'' } // HashMap",
        "#[cfg(test)]\nmod tests { use std::thread; fn f() { if a { b() } } }",
        "#[cfg(test)]\n#[allow(dead_code)]\nfn helper() { std::thread::yield_now(); }",
        "#[cfg(test)]\nuse std::collections::HashMap;",
        "#[cfg(test)]\npub(crate) mod elsewhere;",
    ] {
        accepted(PURE, text);
    }
    // Code after a test is checked again.
    refused(PURE, "#[cfg(test)]\nmod tests { fn f() {} }\nuse std::thread;", "std::thread");
    refused(PURE, "fn f() { \"\" } use std::thread;", "std::thread");
    refused(PURE, "#[cfg(not(test))]\nuse std::thread;", "std::thread");
}

#[test]
fn a_module_that_is_for_tests_alone_is_test_code() {
    let mut files = vec![
        ("src/recipes.rs".to_string(), "#[cfg(test)]\nmod tests;".to_string()),
        ("src/recipes/tests.rs".to_string(), "mod deep; use std::thread;".to_string()),
        ("src/recipes/tests/deep.rs".to_string(), "use std::fs;".to_string()),
        ("src/machine.rs".to_string(), "pub fn turn() { role.step(n); }".to_string()),
        ("src/shell.rs".to_string(), "fn f() { select! {} }".to_string()),
    ];
    assert_eq!(offences(&files, &[]), Vec::<String>::new());
    files[0].1 = "mod tests;".to_string();
    assert_eq!(offences(&files, &[]).len(), 2);
}

#[test]
fn dependencies_go_one_way() {
    refused("src/machine.rs", "use crate::shell::Shell; fn turn() { r.step(n); }", "crate::shell");
    refused("src/contract/task.rs", "use crate::recipes::lease::Lease;", "crate::recipes");
    refused("src/contract.rs", "fn f() { crate::roles::f(); }", "crate::roles");
    refused(PURE, "use crate::roles::worker::Worker;", "crate::roles");
    refused(PURE, "use crate::{contract::Layout, shell};", "crate::shell");
    for module in ["shell", "zk", "exec", "config", "report", "start", "batch"] {
        refused("src/roles/worker.rs", &format!("use crate::{module}::X;"), &format!("crate::{module}"));
    }
    refused(PURE, "use super::super::zk::Session;", "crate::zk");
    refused("src/recipes.rs", "pub use super::exec;", "crate::exec");
    refused(PURE, "use crate::*;", "crate");
    accepted(PURE, "use super::lease::Lease; use self::inner::X; use crate::{exit, machine::Call};");
}

#[test]
fn only_the_session_layer_names_the_crate() {
    refused("src/shell.rs", "use zookeeper::ZkError; fn f() { select! {} }", "zookeeper");
    refused("src/start.rs", "fn f() { ::zookeeper::ZooKeeper::connect(); }", "zookeeper");
    refused("src/start.rs", "extern crate zookeeper;", "zookeeper");
    accepted("src/zk/pool.rs", "use zookeeper::ZkError;");
    accepted("src/start.rs", "fn f() { client.zookeeper().get(); let zookeeper = 1; }");
}

#[test]
fn threads_are_started_in_one_module() {
    refused("src/zk/pool.rs", "fn f() { std::thread::spawn(g); }", "only src/threads.rs");
    refused("src/start.rs", "use std::thread; fn f() { thread::Builder::new(); }", "only src/threads.rs");
    refused("src/exec/run.rs", "fn f() { std::thread::Builder::new(); }", "only src/threads.rs");
    refused(
        "src/exec/run.rs",
        "use std::thread::{JoinHandle, spawn}; fn f() { spawn(g); }",
        "only src/threads.rs",
    );
    refused("src/start.rs", "use std::thread as t; fn f() { t::scope(g); }", "only src/threads.rs");
    refused("src/start.rs", "use std::thread::{self as t}; fn f() { t::spawn(g); }", "only src/threads.rs");
    refused("src/start.rs", "use std::thread::*; fn f() { spawn(g); }", "only src/threads.rs");
    refused("src/start.rs", "fn f() { unsafe { libc::pthread_create(a, b, c, d) } }", "only src/threads.rs");
    accepted("src/threads.rs", "fn f() { std::thread::Builder::new(); }");
    accepted("src/start.rs", "fn f() { crate::threads::spawn(g); std::thread::sleep(d); }");
}

#[test]
fn there_is_one_select() {
    refused("src/exec.rs", "fn f() { select! {} }", "select!");
    refused("src/exec.rs", "fn f() { crossbeam_channel::select_biased! {} }", "select!");
    refused("src/exec.rs", "fn f() { let mut s = Select::new(); }", "select!");
    refused("src/shell.rs", "fn f() {}", "select!");
}

#[test]
fn there_is_one_caller_of_step() {
    refused("src/shell.rs", "fn f() { select! {} role.step(now); }", "step");
    refused("src/roles/worker.rs", "fn f() { Role::step(&mut r); }", "step");
    refused("src/machine.rs", "fn turn() { role.step(a); role.step(b); }", "step");
    refused("src/machine.rs", "fn turn() { }", "step");
    refused("src/machine.rs", "fn other() { role.step(a); }", "turn");
    accepted("src/roles/worker.rs", "impl Role for W { fn step(&mut self) {} } fn f(x: X) { x.step; }");
}

#[test]
fn no_modules_use_each_other_both_ways() {
    let tree = |lease: &str, queue: &str, recipes: &str| {
        let files = [
            ("src/machine.rs", "pub fn turn() { role.step(n); }"),
            ("src/shell.rs", "fn f() { select! {} }"),
            ("src/recipes.rs", recipes),
            ("src/recipes/lease.rs", lease),
            ("src/recipes/queue.rs", queue),
            ("src/recipes/queue/deep.rs", "use super::super::lease::Lease;"),
        ];
        offences(&files.map(|(name, text)| (name.to_string(), text.to_string())), &[])
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(tree("", "mod deep;", ""), none);
    for lease in
        ["use super::queue::Queue;", "use crate::recipes::queue::deep::X;", "fn f() { super::queue::f(); }"]
    {
        assert_eq!(
            tree(lease, "mod deep;", ""),
            ["src/recipes: [\"lease\", \"queue\"] use each other"],
            "{lease}"
        );
    }
    // A name that the parent hands on comes from a child.
    assert_eq!(tree("use super::Queue;", "", "pub use queue::Queue;").len(), 1);
    assert_eq!(tree("use super::Queue;", "", "pub use self::queue::Queue;").len(), 1);
    assert_eq!(tree("use super::Other;", "", "pub use self::queue::Queue;"), none);
    assert_eq!(tree("#[cfg(test)]\nuse super::queue::Queue;", "", ""), none, "tests are left out");
}

#[test]
fn no_file_is_too_long() {
    let lines = |count: usize| "// a line\n".repeat(count);
    accepted("src/exec/run.rs", &lines(rules::MAX_LINES));
    refused("src/exec/run.rs", &lines(rules::MAX_LINES + 1), "lines");
}

#[test]
fn the_dependencies_are_read() {
    let manifest =
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("it");
    let found = dependencies(&manifest);
    for name in ["zookeeper", "crossbeam_channel", "serde_json", "rustix"] {
        assert!(found.iter().any(|found| found == name), "{name} is missing: {found:?}");
    }
}
