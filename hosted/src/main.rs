//! The program `outrider`.
//!
//! # Invariants
//!
//! * Every error is one line on stderr that names what to do, and a status that isn't 0.
//! * Called as `mkfs.outrider` or `fsck.outrider` it is the command of that name, so that `mkfs
//!   -t`, `fsck -t` and fstab work.
//!
//! What this file deliberately doesn't know: what the commands do.

mod commands;

use clap::Parser;
use clap::error::ErrorKind;
use commands::{Command, Failure, Program, USAGE};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words = spelled_out(std::env::args_os().collect());
    let program = match Program::try_parse_from(&words) {
        Ok(program) => program,
        Err(error) => return refuse(&error, &words),
    };
    match commands::run(program) {
        Ok(status) => ExitCode::from(status),
        Err(Failure { status, what }) => {
            eprintln!("outrider: {what}");
            ExitCode::from(status)
        }
    }
}

/// The command line with the command that the program's own name stands for.
fn spelled_out(mut words: Vec<OsString>) -> Vec<OsString> {
    let name = words.first().and_then(|path| Path::new(path).file_name());
    let command = match name.and_then(|name| name.to_str()) {
        Some("mkfs.outrider") => "mkfs",
        Some("fsck.outrider") => "check",
        Some(_) | None => return words,
    };
    words[0] = "outrider".into();
    words.insert(1, command.into());
    words
}

/// Says in one line what is wrong with the command line; help and version are no errors.
fn refuse(error: &clap::Error, words: &[OsString]) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    let command =
        words.get(1).and_then(|word| word.to_str()).filter(|word| Command::NAMES.contains(word));
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let what = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing",
        _ => lines.next().unwrap_or_default().trim_start_matches("error: "),
    };
    // What is missing stands in the lines that follow.
    let missing: Vec<&str> = match error.kind() {
        ErrorKind::MissingRequiredArgument => {
            lines.take_while(|line| !line.starts_with("Usage")).collect()
        }
        _ => Vec::new(),
    };
    let space = if command.is_some() { " " } else { "" };
    let shown = command.unwrap_or_default();
    let missing = missing.join(" ");
    let gap = if missing.is_empty() { "" } else { " " };
    eprintln!("outrider: {what}{gap}{missing}; see outrider{space}{shown} --help");
    ExitCode::from(if shown == "check" { commands::FSCK_USAGE } else { USAGE })
}
