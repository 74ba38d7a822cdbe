//! `outrider completions` and `outrider man`: what is made from the commands' own descriptions.

use super::device::system;
use super::{Failure, Program};
use clap::{Args, CommandFactory};
use std::path::PathBuf;

/// Print completions for a shell.
///
/// Load them from the shell's start-up file, for example with
/// `source <(outrider completions bash)`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsOptions {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Write the manual pages into a directory.
#[derive(Debug, Args)]
pub(crate) struct ManOptions {
    /// The directory, which must exist.
    dir: PathBuf,
}

pub(crate) fn completions(options: &CompletionsOptions) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(options.shell, &mut Program::command(), "outrider", &mut text);
    super::report::put(&text)
}

pub(crate) fn man(options: &ManOptions) -> Result<(), Failure> {
    let written = clap_mangen::generate_to(Program::command(), &options.dir);
    written.map_err(|error| system(&options.dir, "write manual pages into", &error))
}
