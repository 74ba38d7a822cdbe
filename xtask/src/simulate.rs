//! The simulator and the benchmarks: programs of the crate `outrider-tests`, built for speed.

use crate::tools::{Failure, cargo, succeed, target};

/// What builds the core with switches for mistakes.
const MUTANTS: &str = "--cfg outrider_mutants";

/// Runs one of them with these arguments.
fn run(program: &str, arguments: &[String]) -> Result<(), Failure> {
    let mut command = cargo();
    if arguments.iter().any(|argument| argument.starts_with("--mutant")) {
        // Beside the other build, so that neither makes the other anew.
        command.env("RUSTFLAGS", MUTANTS).env("CARGO_TARGET_DIR", target().join("mutants"));
    }
    command.args(["run", "--quiet", "--release", "--package", "outrider-tests", "--bin", program]);
    succeed(program, command.arg("--").args(arguments))
}

/// Simulated clusters: `--help` says with what.
pub(crate) fn sim(arguments: &[String]) -> Result<(), Failure> {
    run("sim", arguments)
}

/// Benchmarks; all of them if none is named.
pub(crate) fn bench(arguments: &[String]) -> Result<(), Failure> {
    run("bench", arguments)
}

/// The benchmark of the metadata engine, with these options.
pub(crate) fn engine(arguments: &[String]) -> Result<(), Failure> {
    run("engine", arguments)
}
