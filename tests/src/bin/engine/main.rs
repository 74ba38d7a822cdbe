//! The benchmark `engine`: what the metadata engine asks of a device, of the server and of memory,
//! at as many inodes as are asked for, and at each power of ten from 10^5 on that is less.
//!
//! ```text
//! engine [--inodes N] [--alone] [--dir DIR] [--seed SEED] [--reads]
//! ```
//!
//! A server and a mount of the default size run in one thread, in real time, on a sparse file in
//! `DIR`. Everything goes through the core: a volume is made, filled by creates in random order of
//! names and directories, and measured. See [`measure`] for how, and [`table`] for what is wanted.
//!
//! With `--reads`, only what a mount reads for an inode, in a tree that is written at once in the
//! shape that merging leaves: seconds instead of a quarter of an hour for 10^7 inodes, of a
//! processor of its own. See [`tall`].
//!
//! Nothing is asserted: a number that is worse than it should be is for people to see.

mod cluster;
mod device;
mod lonely;
mod measure;
mod table;
mod tall;
mod volume;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// The number that others are compared with.
const INODES_FEW: u64 = 100_000;
/// More than this takes long.
const INODES_MANY: u64 = 10_000_000;

/// What the metadata engine costs.
#[derive(Parser)]
#[command(name = "engine")]
struct Options {
    /// How many inodes, beside 100000, and 1000000 if that is less; at most 10000000.
    #[arg(long, default_value_t = 1_000_000)]
    inodes: u64,
    /// Only so many inodes, and no others beside them.
    #[arg(long)]
    alone: bool,
    /// Where the volume's file goes.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// What names, directories and samples are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only reads, in a tree built at once.
    #[arg(long)]
    reads: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !(1..=INODES_MANY).contains(&options.inodes) {
        eprintln!("engine: from 1 to {INODES_MANY} inodes can be asked for");
        return ExitCode::FAILURE;
    }
    let mut sizes = vec![options.inodes];
    if !options.alone {
        sizes.extend([INODES_FEW, 10 * INODES_FEW].iter().filter(|few| **few < options.inodes));
        sizes.sort_unstable();
    }
    let (mut figures, mut trees) = (Vec::new(), Vec::new());
    for inodes in sizes {
        eprintln!("engine: {inodes} inodes");
        let measured = if options.reads {
            lonely::measure(&options.dir, inodes, options.seed).map(|tree| trees.push(tree))
        } else {
            measure::measure(&options.dir, inodes, options.seed).map(|at| figures.push(at))
        };
        if let Err(error) = measured {
            eprintln!("engine: {}: {error}", options.dir.display());
            return ExitCode::FAILURE;
        }
    }
    match options.reads {
        true => table::print_reads(&trees),
        false => table::print(&figures),
    }
    ExitCode::SUCCESS
}
