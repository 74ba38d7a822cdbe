//! Every decoder with bytes nobody meant: targets are the tests in `tests/tests/fuzz.rs`.

use crate::tools::{Failure, cargo, succeed};
use clap::Args;

/// All targets.
const TARGETS: [&str; 7] =
    ["blocks", "frames_and_greetings", "items", "locks", "messages", "records", "volumes"];

/// Which targets, and for how long.
#[derive(Args)]
pub(crate) struct Options {
    /// Only this target: blocks, `frames_and_greetings`, items, locks, messages, records, volumes.
    target: Option<String>,
    /// For how long each target goes on.
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
    /// Where inputs begin: another seed gives others.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Options {
    /// All targets, for so long each.
    pub(crate) fn short(seconds: u64) -> Options {
        Options { target: None, seconds, seed: 0 }
    }
}

/// Runs targets, one after the other.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let Options { target, seconds, seed } = options;
    if let Some(target) = target
        && !TARGETS.contains(&target.as_str())
    {
        return Err(Failure(format!("there is no target {target}; there are {TARGETS:?}")));
    }
    let mut command = cargo();
    command.env("FUZZ_SECONDS", seconds.to_string()).env("FUZZ_SEED", seed.to_string());
    command.args(["test", "--quiet", "--package", "outrider-tests", "--test", "fuzz", "--"]);
    command.args(["--test-threads", "1", "--nocapture"]);
    if let Some(target) = target {
        command.args(["--exact", target]);
    }
    succeed("fuzz", &mut command)
}
