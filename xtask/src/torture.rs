//! The program `torture` on a cluster of processes, or of guests, whose voters fail.

use crate::cluster::{self, Kind, Plan};
use crate::guest::Machine;
use crate::tools::{Failure, Tools, build_test_program, root};
use std::path::PathBuf;
use std::time::Duration;

/// Size of the volume.
const SIZE: &str = "1G";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Voters. Of processes the last is beside a mount.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=7))]
    voters: u8,
    /// Mounts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    mounts: u16,
    /// Voters are guests, and none is beside a mount.
    #[arg(long)]
    qemu: bool,
    /// The guests' machine.
    #[arg(long, value_enum, default_value_t = Machine::Microvm)]
    machine: Machine,
    /// For how long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seconds between two faults, on average.
    #[arg(long, default_value_t = 15.0)]
    every: f64,
    /// What is drawn differs from seed to seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The tree that is copied; without this a part of Outrider's own sources.
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// Build the program without optimisation.
    #[arg(long)]
    dev: bool,
}

/// Runs it; the status to end with.
pub(crate) fn run(tools: &Tools, options: &Options) -> Result<u8, Failure> {
    let program = build_test_program("torture")?;
    let source = options.source.clone().unwrap_or_else(|| root().join("core/src"));
    let how_long = Duration::from_secs_f64(options.minutes * 60.0);
    let run = format!(
        "'{}' --seconds {} --seed {} --source '{}'",
        program.display(),
        how_long.as_secs_f64(),
        options.seed,
        source.display()
    );
    let every = Duration::from_secs_f64(options.every);
    let plan = Plan { every, how_long, seed: options.seed };
    let (kind, voting) = if options.qemu { (Kind::Qemu, 0) } else { (Kind::Hosted, 1) };
    let cluster = cluster::Options::for_command(run)
        .on(options.mounts, SIZE)
        .with(options.voters - voting, options.mounts, voting, options.machine)
        .built(options.dev);
    cluster::run_under(kind, tools, &cluster, Some(plan))
}
