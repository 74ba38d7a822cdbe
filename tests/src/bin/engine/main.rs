//! The benchmark `engine`: what the metadata engine asks of a device, of the server and of memory,
//! at 10^5 inodes and at as many as are asked for.
//!
//! ```text
//! engine [--inodes N] [--dir DIR] [--seed SEED]
//! ```
//!
//! A server and a mount of the default size run in one thread, in real time, on a sparse file in
//! `DIR`. Everything goes through the core: a volume is made, filled by creates in random order of
//! names and directories, and measured. See [`measure`] for how, and [`table`] for what is wanted.
//!
//! Nothing is asserted: a number that is worse than it should be is for people to see.

mod cluster;
mod device;
mod measure;
mod table;
mod volume;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// The number that others are compared with.
const INODES_FEW: u64 = 100_000;
/// More than this takes hours.
const INODES_MANY: u64 = 10_000_000;

/// What the metadata engine costs.
#[derive(Parser)]
#[command(name = "engine")]
struct Options {
    /// How many inodes, beside 100000; at most 10000000.
    #[arg(long, default_value_t = 1_000_000)]
    inodes: u64,
    /// Where the volume's file goes.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// What names, directories and samples are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !(1..=INODES_MANY).contains(&options.inodes) {
        eprintln!("engine: from 1 to {INODES_MANY} inodes can be asked for");
        return ExitCode::FAILURE;
    }
    let mut sizes = vec![INODES_FEW, options.inodes];
    sizes.sort_unstable();
    sizes.dedup();
    let mut figures = Vec::new();
    for inodes in sizes {
        eprintln!("engine: {inodes} inodes");
        match measure::measure(&options.dir, inodes, options.seed) {
            Ok(measured) => figures.push(measured),
            Err(error) => {
                eprintln!("engine: {}: {error}", options.dir.display());
                return ExitCode::FAILURE;
            }
        }
    }
    table::print(&figures);
    ExitCode::SUCCESS
}
