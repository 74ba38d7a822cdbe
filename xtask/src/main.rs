//! `cargo xtask`: every developer's and operator's chore, one module each.
//!
//! * Processes that are started here are ended here, by their handle, and every wait has a bound.
//! * The last line of `test` says how many tests passed, failed and were skipped.

mod ci;
mod decode;
mod guest;
mod image;
mod test;
mod tools;

use clap::{Parser, Subcommand};
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
    /// Check all that is not a test: format, lints, documents, no_std and no alloc, the image.
    Ci,
}

fn main() -> ExitCode {
    let Arguments { no_install, chore } = Arguments::parse();
    let tools = tools::Tools { install: !no_install };
    let done = match chore {
        Chore::Image => image::run(),
        Chore::Test { filter } => test::run(&tools, filter.as_deref()),
        Chore::Ci => ci::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(message)) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
