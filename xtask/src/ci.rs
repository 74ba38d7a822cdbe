//! All that is not a test: format, lints, documents, the proofs that the core needs neither std nor
//! an allocator, the image, and a short run of the simulator.

use crate::image::{self, PACKAGE};
use crate::simulate;
use crate::tools::{Failure, cargo, output, root, succeed};
use std::fs;
use std::path::Path;

/// Crates that must do without std and without an allocator, with everything they depend on.
const BARE: [&str; 3] = ["outrider-hal", "outrider-core", PACKAGE];

/// Runs all checks; the first that fails ends it.
pub(crate) fn run() -> Result<(), Failure> {
    succeed("cargo fmt", cargo().args(["fmt", "--all", "--check"]))?;
    let deny = ["--", "-D", "warnings"];
    let clippy = ["clippy", "--quiet", "--all-targets"];
    succeed("cargo clippy", cargo().args(clippy).args(deny))?;
    let unikernel = ["--package", PACKAGE];
    succeed("cargo clippy of the image", cargo().args(clippy).args(unikernel).args(deny))?;
    let doc = ["doc", "--quiet", "--no-deps"];
    let deny = ("RUSTDOCFLAGS", "-D warnings");
    succeed("cargo doc", cargo().args(doc).env(deny.0, deny.1))?;
    succeed("cargo doc of the image", cargo().args(doc).args(unikernel).env(deny.0, deny.1))?;
    for package in BARE {
        check_features(package)?;
    }
    for dir in ["hal", "core", "unikernel"] {
        check_sources(&root().join(dir).join("src"))?;
    }
    image::run()?;
    let smoke = ["--seeds", "40", "--twice"].map(String::from);
    simulate::sim(&smoke)
}

/// No crate that this one links has its feature `std` or `alloc` on.
fn check_features(package: &str) -> Result<(), Failure> {
    let what = format!("the dependencies of {package}");
    let mut command = cargo();
    command.args(["tree", "--package", package, "--edges", "normal,no-proc-macro"]);
    command.args(["--prefix", "none", "--format", "{p} features:{f}"]);
    let tree = output(&what, &mut command)?;
    if !tree.contains("outrider-hal") {
        return Err(Failure(format!("{what} are not what this check expects:\n{tree}")));
    }
    for line in tree.lines() {
        let (name, features) = line.split_once(" features:").unwrap_or((line, ""));
        let features = features.trim_end_matches(" (*)");
        if let Some(feature) = features.split(',').find(|f| matches!(*f, "std" | "alloc")) {
            return Err(Failure(format!("{package} uses {name} with the feature {feature}")));
        }
    }
    Ok(())
}

/// The crate says `#![no_std]`, and names std or alloc only in tests.
fn check_sources(dir: &Path) -> Result<(), Failure> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| Failure(format!("{}: {error}", path.display())))
    };
    if !read(&dir.join("lib.rs"))?.contains("#![no_std]") {
        return Err(Failure(format!("{} is not #![no_std]", dir.display())));
    }
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir).map_err(Failure::new)?;
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let in_tests = path.file_stem().is_some_and(|name| name == "tests");
            if in_tests || path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = read(&path)?;
            let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(&text);
            if shipped.contains("extern crate std") || shipped.contains("extern crate alloc") {
                return Err(Failure(format!("{} links std or alloc", path.display())));
            }
        }
    }
    Ok(())
}
