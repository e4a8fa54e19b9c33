//! Circles: modules of one parent that use each other both ways, directly or over others. A reader of one of them
//! has to read them all.
//!
//! A use is a path that begins with `crate`, `self` or `super`, or a `use` that begins with a child. A name that a
//! module hands on (`pub use`) counts for the module that it comes from. Test code is left out. A method that is
//! called on a value names no module and is not seen here.

use std::collections::{BTreeMap, BTreeSet};

use super::rules::{File, inner_path, module_of};
use super::source::Named;

/// A module, as its path from the crate's root.
type Module = Vec<String>;

/// Names that a module imports, and the modules that they mean.
type Imports = BTreeMap<Module, BTreeMap<String, Module>>;

/// How often a name may be handed on before the search for its module stops.
const MAX_HANDED_ON: usize = 5;

/// One message for each circle among modules of one parent.
pub fn circles(files: &[File<'_>]) -> Vec<String> {
    let modules: BTreeSet<Module> = files.iter().map(|file| module_of(file.name)).collect();
    let mut imports = Imports::new();
    for file in files {
        let names = imports.entry(module_of(file.name)).or_default();
        for path in file.paths.iter().filter(|path| path.is_use && !path.is_glob) {
            let Some(inner) = inside(file, path, &modules) else { continue };
            let Some(last) = inner.last() else { continue };
            names.insert(last.clone(), inner.clone());
        }
    }
    // For each parent, which of its children use which.
    let mut uses: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for file in files {
        let from = module_of(file.name);
        for path in &file.paths {
            let Some(inner) = inside(file, path, &modules) else { continue };
            let to = defined_in(&inner, &modules, &imports, 0);
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(user), Some(used)) = (from.get(common), to.get(common)) {
                let children = uses.entry(from[..common].to_vec()).or_default();
                children.entry(user.clone()).or_default().insert(used.clone());
            }
        }
    }
    let of_parent = |(parent, uses): (&Module, &BTreeMap<String, BTreeSet<String>>)| {
        let parent = parent.join("/");
        let message = |circle: Vec<&String>| format!("src/{parent}: {circle:?} use each other");
        circles_among(uses).into_iter().map(message).collect::<Vec<_>>()
    };
    uses.iter().flat_map(of_parent).collect()
}

/// The path from the crate's root; a `use` may begin with the name of a child.
fn inside(file: &File<'_>, path: &Named, modules: &BTreeSet<Module>) -> Option<Module> {
    let child = || {
        let mut child = module_of(file.name);
        child.push(path.segments.first()?.clone());
        let is_ours = path.is_use && modules.contains(&child);
        child.extend(path.segments[1..].iter().cloned());
        is_ours.then_some(child)
    };
    inner_path(file.name, path).or_else(child)
}

/// The module that a path's item is defined in.
fn defined_in(path: &[String], modules: &BTreeSet<Module>, imports: &Imports, handed_on: usize) -> Module {
    let deepest = (0..=path.len()).rev().find(|length| modules.contains(&path[..*length])).unwrap_or(0);
    let (module, rest) = path.split_at(deepest);
    let target = rest.first().and_then(|name| imports.get(module)?.get(name));
    match target {
        Some(target) if handed_on < MAX_HANDED_ON && target != path => {
            defined_in(target, modules, imports, handed_on + 1)
        }
        _ => module.to_vec(),
    }
}

/// The sets of more than one child in which each leads to each.
fn circles_among(uses: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<&String>> {
    let reached = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_string()]);
        while let Some(at) = next.pop() {
            for to in uses.get(&at).into_iter().flatten() {
                if seen.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        uses.keys().map(|child| (child, reached(child))).collect();
    let mut found: BTreeSet<Vec<&String>> = BTreeSet::new();
    for (child, from) in &reached {
        let with = reached.iter().filter(|(other, back)| from.contains(**other) && back.contains(*child));
        let circle: Vec<&String> = with.map(|(other, _)| *other).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}
