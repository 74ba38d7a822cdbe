//! All that is not a test: format, lints, documents, the proofs that the core needs neither std nor
//! an allocator, the image, and short runs of the simulator and the fuzzers.

use crate::image::{self, PACKAGE};
use crate::tools::{Failure, cargo, output, root, succeed};
use crate::{fuzz, simulate};
use std::fs;
use std::path::Path;

/// Crates that must do without std and without an allocator, with everything they depend on.
const BARE: [&str; 3] = ["outrider-hal", "outrider-core", PACKAGE];

/// What is simulated: the scenario, and how many seeds of it. Those of whole clusters take a
/// hundred times as long as the others.
const SMOKE: [(&str, &str); 4] =
    [("counter", "40"), ("scrub", "40"), ("server", "20"), ("mount", "10")];

/// How long each decoder is fed.
const FUZZ_SECONDS: u64 = 3;

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
        check_no_std(&root().join(dir).join("src"))?;
    }
    image::run()?;
    for (scenario, seeds) in SMOKE {
        let smoke = ["--scenario", scenario, "--seeds", seeds, "--twice"].map(String::from);
        simulate::sim(&smoke)?;
    }
    fuzz::run(&fuzz::Options::short(FUZZ_SECONDS))
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

/// The crate says `#![no_std]`. That its sources name neither std nor alloc outside tests is the
/// tidy test's to see, and that none is linked the image's audit's.
fn check_no_std(dir: &Path) -> Result<(), Failure> {
    let lib = dir.join("lib.rs");
    let text =
        fs::read_to_string(&lib).map_err(|error| Failure(format!("{}: {error}", lib.display())))?;
    match text.contains("#![no_std]") {
        true => Ok(()),
        false => Err(Failure(format!("{} is not #![no_std]", dir.display()))),
    }
}
