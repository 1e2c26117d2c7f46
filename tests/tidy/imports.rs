//! Which file imports which, computed from the sources: `use` trees and paths in the code, without their tests. A `mod`
//! declaration is no import.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;

/// A module by its path from the root of its crate, which is empty for the root itself.
pub type Module = Vec<String>;

/// The files that each file imports.
pub struct Imports(BTreeMap<Module, BTreeSet<Module>>);

impl Imports {
    /// Of the crate whose root is `root_file` in `dir`.
    pub fn of(dir: &Path, root_file: &str) -> Self {
        let files: BTreeMap<Module, String> = super::sources(dir)
            .into_iter()
            .filter_map(|(path, _)| {
                let own = path.strip_prefix(dir).expect("under it").with_extension("");
                let mut module: Module = own.iter().map(|name| name.to_str().expect("UTF-8").to_owned()).collect();
                match module.last().expect("a name").as_str() {
                    "mod" => drop(module.pop()),
                    name if name == root_file => module.clear(),
                    // The root of another crate, which shares the directory.
                    "main" if module.len() == 1 => return None,
                    _ => {}
                }
                Some((module, fs::read_to_string(&path).expect("a source")))
            })
            .collect();
        let modules: BTreeSet<&Module> = files.keys().collect();
        let imports = |module: &Module, source: &str| {
            let resolved = paths(&tokens(source)).into_iter().filter_map(|path| resolve(&modules, module, &path));
            resolved.filter(|imported| imported != module).collect()
        };
        Self(files.iter().map(|(module, source)| (module.clone(), imports(module, source))).collect())
    }

    /// All imports as (importing, imported).
    pub fn all(&self) -> impl Iterator<Item = (&Module, &Module)> {
        self.0.iter().flat_map(|(module, imported)| imported.iter().map(move |imported| (module, imported)))
    }

    /// For each file that is on a cycle, the shortest way from it back to itself.
    pub fn cycles(&self) -> Vec<String> {
        self.0.keys().filter_map(|module| self.way_back(module)).map(|way| shown(&way)).collect()
    }

    fn way_back(&self, start: &Module) -> Option<Vec<&Module>> {
        let mut reached_from: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut queue = VecDeque::from([self.0.get_key_value(start)?.0]);
        while let Some(module) = queue.pop_front() {
            for next in &self.0[module] {
                if next == start {
                    let mut way = vec![next, module];
                    while let Some(before) = reached_from.get(way[way.len() - 1]) {
                        way.push(before);
                    }
                    way.reverse();
                    return Some(way);
                }
                if !reached_from.contains_key(next) {
                    reached_from.insert(next, module);
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

fn shown(way: &[&Module]) -> String {
    let names: Vec<String> = way.iter().map(|module| format!("crate::{}", module.join("::"))).collect();
    names.join(" -> ")
}

/// Words and punctuation, without comments and the tests at the end of a file.
fn tokens(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut tokens: Vec<String> = Vec::new();
    for line in source.lines() {
        let code = line.split("//").next().unwrap_or_default();
        let mut in_word = false;
        for character in code.chars() {
            let is_word = character.is_alphanumeric() || character == '_';
            match tokens.last_mut() {
                Some(word) if is_word && in_word => word.push(character),
                _ if character.is_whitespace() => {}
                _ => tokens.push(character.to_string()),
            }
            in_word = is_word;
        }
    }
    tokens
}

/// Every path of two or more names, and every leaf of a `use` tree.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let before = at.checked_sub(1).map(|before| tokens[before].as_str());
        if tokens[at] == "use" {
            at += 1;
            leaves(tokens, &mut at, &[], &mut found);
        } else if is_name(&tokens[at]) && before != Some(":") {
            let mut path = Vec::new();
            names(tokens, &mut at, &mut path);
            if path.len() > 1 {
                found.push(path);
            }
        } else {
            at += 1;
        }
    }
    found
}

/// The leaves of the `use` tree at `at`.
fn leaves(tokens: &[String], at: &mut usize, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = prefix.to_vec();
    names(tokens, at, &mut path);
    if tokens.get(*at).is_some_and(|token| token == "{") {
        *at += 1;
        while tokens.get(*at).is_some_and(|token| token != "}") {
            if is_name(&tokens[*at]) {
                leaves(tokens, at, &path, found);
            } else {
                *at += 1;
            }
        }
        *at += 1;
        return;
    }
    if !prefix.is_empty() {
        path.retain(|name| name != "self");
    }
    found.push(path);
    if tokens.get(*at).is_some_and(|token| token == "as") {
        *at += 2;
    }
}

/// Appends `a::b::c` at `at` to `path`, and passes over a `::` that follows it.
fn names(tokens: &[String], at: &mut usize, path: &mut Vec<String>) {
    while tokens.get(*at).is_some_and(|token| is_name(token)) {
        path.push(tokens[*at].clone());
        *at += 1;
        if tokens.get(*at..*at + 2).is_none_or(|next| next != [":", ":"]) {
            return;
        }
        *at += 2;
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The file that `path` leads to from `module`: the longest part of it that is a module. None outside the crate.
fn resolve(modules: &BTreeSet<&Module>, module: &Module, path: &[String]) -> Option<Module> {
    let mut base = module.clone();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &path[1..];
        }
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|name| name == "super") {
                base.pop()?;
                rest = &rest[1..];
            }
        }
        first => {
            base.push(first.to_owned());
            if !modules.contains(&base) {
                return None;
            }
            rest = &path[1..];
        }
    }
    let mut target = base;
    for name in rest {
        target.push(name.clone());
        if !modules.contains(&target) {
            target.pop();
            break;
        }
    }
    Some(target)
}

#[test]
fn paths_are_found_in_use_trees_and_in_the_code() {
    let source = "use crate::a::{self, b::C, d as e};\nuse super::f; // use crate::g;\nfn x() { crate::h::i(); j::k }\n\
                  #[cfg(test)]\nmod tests { use crate::l; }";
    let found: Vec<String> = paths(&tokens(source)).iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["crate::a", "crate::a::b::C", "crate::a::d", "super::f", "crate::h::i", "j::k"]);
}

#[test]
fn a_cycle_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let imports = [("a", vec!["b"]), ("b", vec!["c"]), ("c", vec!["b", "d"]), ("d", vec![])];
    let imports = imports.map(|(name, imported)| (module(name), imported.into_iter().map(module).collect()));
    let cycles = Imports(imports.into_iter().collect()).cycles();
    assert_eq!(cycles, ["crate::b -> crate::c -> crate::b", "crate::c -> crate::b -> crate::c"]);
}
