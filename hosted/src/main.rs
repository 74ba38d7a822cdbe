//! The program `outrider`.
//!
//! # Invariants
//!
//! * Every error is one line on stderr that names what to do, and a status that isn't 0.
//! * Called as `mkfs.outrider`, `fsck.outrider`, `mount.outrider` or `umount.outrider` it is the
//!   command of that name, so that `mkfs -t`, `fsck -t`, `mount -t` and fstab work.
//!
//! What this file deliberately doesn't know: what the commands do.

mod commands;

use clap::Parser;
use clap::error::ErrorKind;
use commands::{Command, Failure, Program, USAGE};
use outrider_hosted::report::tell;
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
            tell(&what);
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
        Some("mount.outrider") => {
            words = helper_words(words, &[("-f", "--fake"), ("-s", "--sloppy")]);
            "mount"
        }
        Some("umount.outrider") => {
            words = helper_words(words, &[("-l", "-l"), ("-f", "-f")]);
            "umount"
        }
        Some(_) | None => return words,
    };
    words[0] = "outrider".into();
    words.insert(1, command.into());
    words
}

/// The words of mount(8) and umount(8) to their helpers, of which only these mean something here.
fn helper_words(words: Vec<OsString>, known: &[(&str, &str)]) -> Vec<OsString> {
    let mut translated = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-N" | "-t") => drop(words.next()),
            Some("-f" | "-l" | "-n" | "-r" | "-s" | "-v") => {
                let known = known.iter().find(|(theirs, _)| *theirs == word);
                translated.extend(known.map(|(_, ours)| OsString::from(ours)));
            }
            Some(_) | None => translated.push(word),
        }
    }
    translated
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
