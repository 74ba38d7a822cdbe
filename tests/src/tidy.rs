//! Tidiness of the workspace's sources: what may import what, and what may stand in a file.
//!
//! ```text
//! hal <- core <- {unikernel, hosted <- tests}         xtask depends on none of them
//!
//! inside core, above arena, crc32c, error, node:
//!   format <- {block, net, quorum, lock}
//!   block <- btree <- {alloc, lsm} <- txn <- {server, client}
//!   server and client also use net, quorum, lock; check uses formats and trees only
//!   pump uses everything, and alone the hal's device and network traits
//! ```
//!
//! # Invariants
//!
//! * A rule is checked on what the compiler sees (comments and strings are blanked), and not in
//!   test code where it says so.
//! * A module of core that is in no rule is a finding: a new module gets its place here first.
//!
//! What this module deliberately doesn't know: types. It reads words, so it can be fooled on
//! purpose.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

/// Columns of a line of code.
const COLUMNS_MAX: usize = 100;
/// Bytes of a file.
const BYTES_MAX: usize = 45 * 1024;

/// The crates, and which of the workspace's crates each may use.
const CRATES: &[(&str, &[&str])] = &[
    ("hal", &[]),
    ("core", &["hal"]),
    ("unikernel", &["hal", "core"]),
    ("hosted", &["hal", "core"]),
    ("tests", &["hal", "core", "hosted"]),
    ("xtask", &[]),
];

/// Modules of core that any other may use.
const BASE: &[&str] = &["arena", "crc32c", "error", "limits", "mutant", "node"];
const FORMATS: &[&str] = &["format"];
const ON_CLIENTS: &[&str] = &["format", "roster"];
const ON_BLOCKS: &[&str] = &["format", "block"];
const ON_TREES: &[&str] = &["format", "block", "btree"];
const ON_LOGS: &[&str] = &["format", "block", "btree", "alloc", "lsm"];
const ON_ALL: &[&str] =
    &["format", "block", "btree", "alloc", "lsm", "txn", "net", "quorum", "lock"];

/// The other modules of core, and which each may use besides [`BASE`].
const MODULES: &[(&str, &[&str])] = &[
    ("format", &[]),
    ("roster", FORMATS),
    ("block", FORMATS),
    ("net", ON_CLIENTS),
    ("quorum", FORMATS),
    ("lock", ON_CLIENTS),
    ("btree", ON_BLOCKS),
    ("alloc", ON_TREES),
    ("lsm", ON_TREES),
    ("txn", ON_LOGS),
    ("server", ON_ALL),
    ("client", ON_ALL),
    ("check", ON_LOGS),
    ("tune", &["format", "quorum"]),
    ("mkfs", &["format", "block", "btree", "alloc", "lsm", "txn"]),
];

/// Files of core that are compiled for tests only, although their names don't say so.
const FOR_TESTS: &[&str] =
    &["core/src/btree/rig.rs", "core/src/lock/model.rs", "core/src/mutant.rs"];

/// Words that no code of core and hal contains outside tests, with what is wrong about them.
const NOT_IN_CORE: &[(&str, &str)] = &[
    ("RefCell", "interior mutability"),
    ("UnsafeCell", "interior mutability"),
    ("OnceCell", "interior mutability"),
    ("Cell", "interior mutability"),
    ("async", "core and hal are synchronous"),
    ("await", "core and hal are synchronous"),
    ("Box", "nothing is allocated"),
];

/// The hal's traits of devices and networks.
const HAL_TRAITS: &[&str] = &["BlockDevice", "Network", "Stream", "Clock"];

/// Where the word `unsafe` may stand.
const UNSAFE_IN: &[&str] = &[
    "core/src/arena.rs",
    "core/src/crc32c.rs",
    "core/src/crc32c/",
    "unikernel/",
    "tests/src/region.rs",
];

/// Notes to oneself, spelled so that this file doesn't contain them.
const MARKERS: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];

/// Something untidy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, from the workspace's root.
    pub path: String,
    /// The line, counted from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Checks every source, manifest and document below `root`, a workspace.
///
/// # Errors
///
/// When a file or directory can't be read.
pub fn check_workspace(root: &Path) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
            if entry.file_type()?.is_dir() {
                if name != "target" && name != ".git" {
                    dirs.push(path);
                }
            } else if [".rs", ".toml", ".md"].iter().any(|end| name.ends_with(end)) {
                let text = String::from_utf8_lossy(&fs::read(entry.path())?).into_owned();
                findings.extend(check_file(&path, &text));
            }
        }
    }
    findings.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    Ok(findings)
}

/// Checks one file, given by its path from the workspace's root.
#[must_use]
pub fn check_file(path: &str, text: &str) -> Vec<Finding> {
    let mut file = File { path, findings: Vec::new() };
    file.check_text(text);
    if path.ends_with("Cargo.toml") {
        file.check_manifest(text);
    }
    if path.ends_with(".rs") {
        file.check_source(text);
    }
    file.findings
}

struct File<'f> {
    path: &'f str,
    findings: Vec<Finding>,
}

impl File<'_> {
    fn find(&mut self, line: usize, what: impl Into<String>) {
        let path = self.path.to_owned();
        self.findings.push(Finding { path, line, what: what.into() });
    }

    /// The crate's directory.
    fn member(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }

    fn check_text(&mut self, text: &str) {
        if text.len() > BYTES_MAX {
            self.find(0, format!("{} bytes, more than {BYTES_MAX}", text.len()));
        }
        for (index, line) in text.lines().enumerate() {
            if !line.is_ascii() {
                self.find(index + 1, "not ASCII");
            }
            if let Some(marker) = MARKERS.iter().find(|marker| words(line).any(|w| w == **marker)) {
                self.find(index + 1, format!("{marker}: do it, or write down why not"));
            }
            // A row of a table in a document can't be broken.
            let row = line.trim_start().trim_start_matches(['/', '!']).starts_with(" |");
            if self.path.ends_with(".rs") && !row && line.chars().count() > COLUMNS_MAX {
                self.find(index + 1, format!("more than {COLUMNS_MAX} columns"));
            }
        }
    }

    fn check_manifest(&mut self, text: &str) {
        for (index, line) in text.lines().enumerate() {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            if let Some(used) = name.strip_prefix("outrider-") {
                self.check_crate_edge(index + 1, used);
            }
        }
    }

    fn check_source(&mut self, text: &str) {
        if !text.starts_with("//!") {
            self.find(1, "doesn't start with a module doc");
        }
        let code = blank_comments_and_strings(text);
        let product = if is_test_path(self.path) { "" } else { without_tests(&code) };
        let in_core = ["core", "hal"].contains(&self.member());
        let lines = product.lines().count();
        for (index, line) in code.lines().enumerate() {
            let may_be_unsafe = UNSAFE_IN.iter().any(|start| self.path.starts_with(start));
            if !may_be_unsafe && words(line).any(|word| word == "unsafe") {
                self.find(index + 1, "unsafe has no place here");
            }
            for used in words(line).filter_map(|word| word.strip_prefix("outrider_")) {
                self.check_crate_edge(index + 1, used);
            }
            if in_core && index < lines {
                self.check_core_line(index + 1, line);
            }
        }
        if self.member() == "core" && self.path.starts_with("core/src/") {
            self.check_core_edges(product);
        }
    }

    fn check_crate_edge(&mut self, line: usize, used: &str) {
        let member = self.member();
        let known = CRATES.iter().any(|(name, _)| *name == used);
        let may = CRATES.iter().find(|(name, _)| *name == member);
        if let Some((name, may)) = may
            && known
            && *name != used
            && !may.contains(&used)
        {
            self.find(line, format!("{name} must not depend on {used}"));
        }
    }

    fn check_core_line(&mut self, number: usize, line: &str) {
        for (word, why) in NOT_IN_CORE {
            if words(line).any(|found| found == *word) {
                self.find(number, format!("{word}: {why}"));
            }
        }
        if line.contains(".unwrap()") {
            self.find(number, ".unwrap(): say why it can't be with expect(), or pass it on");
        }
        for root in ["std", "alloc"] {
            let path = format!("{root}::");
            let starts = line.match_indices(&path).any(|(at, _)| starts_path(&line[..at]));
            if starts || line.contains(&format!("extern crate {root}")) {
                self.find(number, format!("{root} is not there"));
            }
        }
    }

    fn check_core_edges(&mut self, product: &str) {
        let inner = self.path.trim_start_matches("core/src/").trim_end_matches(".rs");
        let module = inner.split('/').next().unwrap_or_default().to_owned();
        if module == "lib" || module == "pump" {
            return;
        }
        for (at, name) in names_after(product, "outrider_hal::") {
            if HAL_TRAITS.contains(&name) {
                self.find(line_of(product, at), format!("only pump is generic over {name}"));
            }
        }
        let may = MODULES.iter().find(|(name, _)| *name == module).map(|(_, may)| *may);
        let may = match may {
            Some(may) => may,
            None if BASE.contains(&module.as_str()) => &[],
            None => {
                self.find(0, format!("core's module {module} has no place in tidy's rules"));
                return;
            }
        };
        let up = "super::".repeat(inner.split('/').count());
        let uses = names_after(product, "crate::").into_iter().chain(names_after(product, &up));
        let uses: Vec<(usize, &str)> = uses.collect();
        for (at, name) in uses {
            // The macro stands at the crate's root, and belongs to the formats.
            let used = if name == "record" { "format" } else { name };
            let is_module = BASE.contains(&used) || MODULES.iter().any(|(name, _)| *name == used);
            let fine = used == module || may.contains(&used) || BASE.contains(&used);
            if (is_module || used == "pump") && !fine {
                self.find(line_of(product, at), format!("{module} must not import {used}"));
            }
        }
    }
}

/// The words of a line: identifiers and keywords.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].bytes().filter(|byte| *byte == b'\n').count()
}

/// Whether a path begins after this text, rather than goes on.
fn starts_path(before: &str) -> bool {
    let last = before.chars().next_back();
    !last.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

/// The names that directly follow a path prefix, those of a braced group included, each with the
/// position of the prefix.
fn names_after<'t>(text: &'t str, prefix: &str) -> Vec<(usize, &'t str)> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if !starts_path(&text[..at]) && !text[..at].ends_with("$") {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let mut depth = 0;
        let mut wanted = true;
        let mut start = None;
        for (index, c) in rest.char_indices() {
            let in_name = c.is_ascii_alphanumeric() || c == '_';
            if in_name && wanted && start.is_none() {
                start = Some(index);
            }
            if !in_name {
                names.extend(start.take().map(|start| (at, &rest[start..index])));
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                // Inside the outermost braces, each comma begins another name.
                wanted = (depth == 1 && (c == ',' || c == '{'))
                    || (wanted && depth <= 1 && c.is_whitespace());
                if depth <= 0 {
                    break;
                }
            } else if start.is_none() {
                wanted = false;
            }
        }
    }
    names
}

fn is_test_path(path: &str) -> bool {
    path.ends_with("/tests.rs")
        || path.contains("/tests/")
        || path.contains("/benches/")
        || FOR_TESTS.contains(&path)
}

/// The code before the module of tests, which comes last in a file.
fn without_tests(code: &str) -> &str {
    let is_inline = |at: &usize| {
        let item = code[*at..].trim_start_matches("#[cfg(test)]").trim_start();
        let item = item.strip_prefix("pub(crate) ").unwrap_or(item);
        let end = item.find(['{', ';']).unwrap_or(item.len());
        item.starts_with("mod ") && item[end..].starts_with('{')
    };
    let tests = code.match_indices("#[cfg(test)]").map(|(at, _)| at).find(is_inline);
    &code[..tests.unwrap_or(code.len())]
}

/// The text with comments and the insides of strings and characters replaced by spaces, so that
/// lines and columns stay.
fn blank_comments_and_strings(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = skipped(bytes, at);
        if end > at {
            let blank = |byte: &u8| if *byte == b'\n' { b'\n' } else { b' ' };
            code.extend(bytes[at..end].iter().map(blank));
            at = end;
        } else {
            code.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&code).into_owned()
}

/// The end of the comment or literal that begins here; the same position if none does.
fn skipped(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after = |found: Option<usize>, len: usize| found.map_or(bytes.len(), |end| at + end + len);
    let in_name = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"//") {
        return after(rest.iter().position(|byte| *byte == b'\n'), 0);
    }
    if rest.starts_with(b"/*") {
        let mut depth = 0;
        for (index, pair) in rest.windows(2).enumerate() {
            match pair {
                b"/*" => depth += 1,
                b"*/" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return at + index + 2;
            }
        }
        return bytes.len();
    }
    if rest[0] == b'r' && !in_name {
        let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let body = &rest[2 + hashes..];
            let end = body.windows(close.len()).position(|window| window == close);
            return after(end, 2 + hashes + close.len());
        }
    }
    match rest[0] {
        b'"' => quoted_end(bytes, at, b'"'),
        // A character, not a lifetime.
        b'\'' if rest.get(1) == Some(&b'\\') || rest.get(2) == Some(&b'\'') => {
            quoted_end(bytes, at, b'\'')
        }
        _ => at,
    }
}

fn quoted_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}
