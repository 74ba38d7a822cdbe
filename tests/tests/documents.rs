//! What the documents name is there: tests, mistakes, stories, scenarios and files.
#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::mutant::Mutant;
use outrider_tests::scenario::{Scenario, stories};
use std::path::{Path, PathBuf};

/// The documents that say what shows something. The first two are tables, a line for each.
const DOCUMENTS: &[&str] = &["tests/lineage.md", "tests/traps.md", "core/PROOFS.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(document: &str) -> String {
    std::fs::read_to_string(root().join(document)).unwrap()
}

/// A source file: where it stands, and what it says.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Whether it has this test, in these modules.
    fn has(&self, modules: &str, test: &str) -> bool {
        let is_in = |module: &str| {
            module.is_empty()
                || self.path.split(['/', '.']).any(|part| part == module)
                || self.text.contains(&format!("mod {module} {{"))
        };
        let name = format!("fn {test}(");
        let is_test = self.text.match_indices(&name).any(|(at, _)| {
            let before = self.text[..at].lines().rev().take(4);
            before.into_iter().any(|line| line.trim() == "#[test]")
        });
        is_test && modules.split("::").all(is_in)
    }
}

/// All sources of the workspace.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for part in ["core", "hal", "hosted", "unikernel", "tests", "xtask"] {
        collect(&root().join(part), &mut found);
    }
    found
}

fn collect(at: &Path, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push(Source { path, text });
        }
    }
}

/// What stands between such marks, in order, and what stands before each.
fn quoted(text: &str, mark: char) -> impl Iterator<Item = (&str, &str)> {
    let mut parts = text.split(mark);
    std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
}

/// The modules, and the name, if it is one of a test: tests are called by a sentence.
fn as_test(word: &str) -> Option<(&str, &str)> {
    let (modules, name) = word.rsplit_once("::").unwrap_or(("", word));
    let plain = name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'));
    let is_short = matches!(name, "short_lives" | "long_lives");
    (plain && (is_short || name.matches('_').count() >= 3)).then_some((modules, name))
}

/// Whether what stands between backquotes is there, if it names something. A test that follows a
/// file is one of that file.
fn is_there(file: Option<&str>, word: &str, sources: &[Source]) -> bool {
    if let Some(mutant) = word.strip_prefix("Mutant::") {
        return Mutant::ALL.iter().any(|known| format!("{known:?}") == mutant);
    }
    if word.ends_with(".rs") || word.ends_with(".md") {
        return ["", "core", "tests"].iter().any(|at| root().join(at).join(word).exists());
    }
    let Some((modules, test)) = as_test(word) else { return true };
    let mut places = sources.iter().filter(|at| file.is_none_or(|file| at.path.ends_with(file)));
    places.any(|at| at.has(modules, test))
}

/// What is named in a line and isn't there.
fn missing<'a>(line: &'a str, sources: &[Source]) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut file = None;
    for (before, word) in quoted(line, '`') {
        let is_scenario = before.ends_with("scenario ") || before.ends_with("scenarios ");
        if is_scenario && Scenario::find(word).is_none()
            || !is_there(file.filter(|_| before == ": "), word, sources)
        {
            found.push(word);
        }
        file = Some(word).filter(|word| word.ends_with(".rs"));
    }
    let told = quoted(line, '"').filter(|(before, _)| before.ends_with("story "));
    let told = told.map(|(_, story)| story);
    found.extend(told.filter(|name| stories::ALL.iter().all(|story| story.name != *name)));
    found
}

#[test]
fn what_documents_name_is_there() {
    let sources = sources();
    for document in DOCUMENTS {
        let text = read(document);
        let tests = text.lines().flat_map(|line| quoted(line, '`'));
        let tests = tests.filter(|(_, word)| as_test(word).is_some()).count();
        assert!(tests > 20, "{document}: {tests} tests");
        let missing: Vec<_> = text.lines().flat_map(|line| missing(line, &sources)).collect();
        assert!(missing.is_empty(), "{document}: {missing:#?}");
    }
}

#[test]
fn what_is_not_there_is_noticed() {
    let sources = sources();
    for line in [
        "by `a_test_that_nobody_has_written`",
        "by `quorum::tests::a_mount_comes_and_goes`",
        "by `tests/tests/server.rs`: `a_mount_comes_and_goes`",
        "by `Mutant::Nobody`",
        "in `tests/tests/nothing.rs`",
        "in the scenario `nothing`",
        "the story \"nobody tells this\"",
    ] {
        assert_eq!(missing(line, &sources).len(), 1, "{line}");
    }
    assert!(missing("`tests/tests/mount.rs`: `a_mount_comes_and_goes`", &sources).is_empty());
}

/// Each line of the tables of behaviours and traps names what shows it.
#[test]
fn each_behaviour_and_each_trap_is_shown_by_something() {
    for document in &DOCUMENTS[..2] {
        let text = read(document);
        let is_row = |line: &&str| line.starts_with("| S") || line.starts_with("| T");
        let rows: Vec<_> = text.lines().filter(is_row).collect();
        assert!(rows.len() > 30, "{document}: {}", rows.len());
        for row in rows {
            let shown = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
            let named = quoted(shown, '`').any(|(_, word)| {
                as_test(word).is_some() || word.starts_with("Mutant::") || word.ends_with(".rs")
            });
            assert!(named || shown.starts_with("none: "), "{document}: {row}");
        }
    }
}
