//! The simulator and the benchmarks: programs of the crate `outrider-tests`, built for speed.

use crate::tools::{Failure, cargo, output, succeed, target};
use std::process::Command;

/// What builds the core with switches for mistakes.
const MUTANTS: &str = "--cfg outrider_mutants";

/// What builds one of them and runs it with these arguments.
fn command(program: &str, arguments: &[String]) -> Command {
    let mut command = cargo();
    if arguments.iter().any(|argument| argument.starts_with("--mutant")) {
        // Beside the other build, so that neither makes the other anew.
        command.env("RUSTFLAGS", MUTANTS).env("CARGO_TARGET_DIR", target().join("mutants"));
    }
    command.args(["run", "--quiet", "--release", "--package", "outrider-tests", "--bin", program]);
    command.arg("--").args(arguments);
    command
}

/// Runs one of them with these arguments.
fn run(program: &str, arguments: &[String]) -> Result<(), Failure> {
    succeed(program, &mut command(program, arguments))
}

/// What the simulator prints, run with these arguments.
pub(crate) fn sim_output(arguments: &[String]) -> Result<String, Failure> {
    output("sim", &mut command("sim", arguments))
}

/// Simulated clusters: `--help` says with what. Some mistakes are noticed by tests instead, which
/// run first.
pub(crate) fn sim(arguments: &[String]) -> Result<(), Failure> {
    if arguments.iter().any(|argument| argument == "--mutants") {
        let mut command = cargo();
        command.env("RUSTFLAGS", MUTANTS).env("CARGO_TARGET_DIR", target().join("mutants"));
        command.args(["test", "--release", "--package", "outrider-tests"]);
        command.args(["--test", "crash_volume", "--test", "corruption", "--", "noticed"]);
        succeed("tests of mistakes", command.arg("--nocapture"))?;
    }
    run("sim", arguments)
}

/// Power cuts at every write of small workloads: `--help` says of which.
pub(crate) fn crash(arguments: &[String]) -> Result<(), Failure> {
    run("crash", arguments)
}

/// Benchmarks; all of them if none is named.
pub(crate) fn bench(arguments: &[String]) -> Result<(), Failure> {
    run("bench", arguments)
}

/// The benchmark of the metadata engine, with these options.
pub(crate) fn engine(arguments: &[String]) -> Result<(), Failure> {
    run("engine", arguments)
}
