//! `cargo xtask`: every developer's and operator's chore, one module each.
//!
//! * Processes that are started here are ended here, by their handle, and every wait has a bound.
//! * The last line of `test` says how many tests passed, failed and were skipped.

mod boot;
mod ci;
mod cluster;
mod decode;
mod fuzz;
mod guest;
mod image;
mod prove;
mod simulate;
mod test;
mod tools;
mod torture;

use clap::{Parser, Subcommand};
use cluster::Kind;
use std::process::ExitCode;
use tools::Failure;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Outrider's chores", version)]
struct Arguments {
    /// Name what is missing on this machine instead of installing it.
    #[arg(long, global = true)]
    no_install: bool,
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build the bootable server image, and audit its size, symbols and segments.
    Image,
    /// Run all tests: those of the crates, then the image's on QEMU.
    Test {
        /// Run only tests whose names contain this.
        filter: Option<String>,
    },
    /// Run a cluster: QEMU guests that serve a volume, and mounts of it on this machine.
    Qemu(cluster::Options),
    /// The same with processes as servers.
    Hosted(cluster::Options),
    /// Run simulated clusters under faults, for as many seeds as are asked for.
    #[command(disable_help_flag = true)]
    Sim {
        /// As the simulator takes them: `--seed N`, `--seeds COUNT`, `--trace`, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Simulate seeds of a scenario for a while, and add what was done in them to its log in
    /// `proof/`, which counts for as long as the code stays the same.
    Prove(prove::Options),
    /// Cut the power off at every write of small workloads, and recover.
    #[command(disable_help_flag = true)]
    Crash {
        /// As the program takes them: `--operations N`, `--acts A,B`, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Keep a volume full for a long time, with two mounts; then delete everything.
    Soak {
        /// For how long.
        #[arg(long, default_value_t = 5.0)]
        minutes: f64,
        /// What is drawn differs from seed to seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Size of the volume, with K, M, G or T.
        #[arg(long, default_value = "512M")]
        size: String,
        /// Build the program without optimisation.
        #[arg(long)]
        dev: bool,
    },
    /// Work on mounts of a cluster while its voters are killed, stopped and cut off; then account
    /// for what was acknowledged.
    Torture(torture::Options),
    /// Measure, and compare with something measured in the same run.
    #[command(disable_help_flag = true)]
    Bench {
        /// Which benchmarks: `block-open`, `create`, `boot`, all of these if none is named; or
        /// `crowd`; or `engine` with its options, `--inodes N`, `--alone`, `--dir DIR`,
        /// `--seed SEED`, `--reads`; or `failover` with `--kills N` and `--qemu`; or `idle` with
        /// `--seconds N`; or `server`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Feed every decoder bytes that nobody meant.
    Fuzz(fuzz::Options),
    /// Check all that is not a test: format, lints, documents, no_std and no alloc, the image.
    Ci,
}

fn main() -> ExitCode {
    let Arguments { no_install, chore } = Arguments::parse();
    let tools = tools::Tools { install: !no_install };
    let done = match &chore {
        Chore::Qemu(options) => return end(cluster::run(Kind::Qemu, &tools, options)),
        Chore::Hosted(options) => return end(cluster::run(Kind::Hosted, &tools, options)),
        Chore::Soak { minutes, seed, size, dev } => {
            let run = format!("--minutes {minutes} --seed {seed}");
            return end(soak(&tools, &run, size, *dev));
        }
        Chore::Torture(options) => return end(torture::run(&tools, options)),
        Chore::Image => image::run(),
        Chore::Test { filter } => test::run(&tools, filter.as_deref()),
        Chore::Sim { arguments } => simulate::sim(arguments),
        Chore::Prove(options) => prove::run(options),
        Chore::Crash { arguments } => simulate::crash(arguments),
        Chore::Bench { arguments } => bench(&tools, arguments),
        Chore::Fuzz(options) => fuzz::run(options),
        Chore::Ci => ci::run(),
    };
    end(done.map(|()| 0))
}

/// Runs the benchmarks of these names, or all but those of the engine, of failovers, of clusters at
/// rest and of servers, which take minutes. Those of whole guests and clusters are this program's.
fn bench(tools: &tools::Tools, names: &[String]) -> Result<(), Failure> {
    const BOOT: &str = "boot";
    const CREATE: &str = "create";
    const ENGINE: &str = "engine";
    const FAILOVER: &str = "failover";
    const IDLE: &str = "idle";
    const SERVER: &str = "server";
    // Options follow these, and nothing else.
    match names.split_first().map(|(name, rest)| (name.as_str(), rest)) {
        Some((ENGINE, options)) => return simulate::engine(options),
        Some((FAILOVER, options)) => return cluster::failover::run(tools, options),
        Some((IDLE, options)) => return cluster::idle::run(tools, options),
        Some((SERVER, [])) => return server_cost(tools),
        Some(_) | None => {}
    }
    let ours = |name: &String| [BOOT, CREATE].contains(&name.as_str());
    let wants = |bench: &str| names.is_empty() || names.iter().any(|name| name == bench);
    let others: Vec<String> = names.iter().filter(|name| !ours(name)).cloned().collect();
    if names.is_empty() || !others.is_empty() {
        simulate::bench(&others)?;
    }
    if wants(CREATE) {
        let script = tools::root().join("tests/scripts/create.sh");
        let options = cluster::Options::for_command(format!("sh '{}'", script.display()));
        if cluster::run(Kind::Hosted, tools, &options)? != 0 {
            return Err(Failure::new("create asks too much of the server"));
        }
    }
    if wants(BOOT) { boot::run(tools) } else { Ok(()) }
}

/// Measures what servers of both kinds take of the processor.
fn server_cost(tools: &tools::Tools) -> Result<(), Failure> {
    let script = tools::root().join("tests/scripts/server.sh");
    for (kind, name) in [(Kind::Hosted, "a process"), (Kind::Qemu, "a guest")] {
        println!("server: {name}");
        let options = cluster::Options::for_command(format!("sh '{}'", script.display()));
        if cluster::run(kind, tools, &options.on(2, "1G"))? != 0 {
            return Err(Failure::new("what a server takes was not measured"));
        }
    }
    Ok(())
}

/// Runs the program `soak` on a cluster of processes.
fn soak(tools: &tools::Tools, options: &str, size: &str, dev: bool) -> Result<u8, Failure> {
    let program = tools::build_test_program("soak")?;
    let run = format!("'{}' {options}", program.display());
    let cluster = cluster::Options::for_command(run).on(2, size);
    cluster::run(Kind::Hosted, tools, &cluster.built_for(dev))
}

/// The status to end with; what has failed is said.
fn end(done: Result<u8, Failure>) -> ExitCode {
    match done {
        Ok(status) => ExitCode::from(status),
        Err(Failure(message)) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
