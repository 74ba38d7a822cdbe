//! The simulator and the benchmarks: programs of the crate `outrider-tests`, built for speed.

use crate::tools::{Failure, cargo, succeed};

/// Runs one of them with these arguments.
fn run(program: &str, arguments: &[String]) -> Result<(), Failure> {
    let mut command = cargo();
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
