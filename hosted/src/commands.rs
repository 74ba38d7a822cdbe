//! The commands, as they are typed.
//!
//! What this module deliberately doesn't know: how a volume is made or checked, which the core
//! does.

mod ask;
mod check;
mod counters;
mod device;
mod fenced;
mod findings;
mod ino_path;
mod items;
mod locks;
mod mkfs;
mod mount;
mod pages;
mod pinning;
mod print;
mod report;
mod server;
mod signature;
mod size;
mod stat;
mod status;
mod tune;
mod umount;
mod virtual_xattr;
mod walk_inodes;
mod witness;

use clap::{Parser, Subcommand};
use outrider_core::error::Corruption;

/// Status of a command line that isn't understood.
pub(crate) const USAGE: u8 = 2;
/// The same for `check`, as fsck(8) has it.
pub(crate) const FSCK_USAGE: u8 = 16;

/// A cluster file system on one shared block device.
#[derive(Debug, Parser)]
#[command(name = "outrider", version, about, max_term_width = 100, subcommand_required = true)]
pub(crate) struct Program {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Mkfs(mkfs::Options),
    Print(print::Options),
    Check(check::Options),
    Tune(tune::Options),
    Server(server::Options),
    Mount(mount::Options),
    Umount(umount::Options),
    Fenced(fenced::Options),
    Status(status::StatusOptions),
    Df(status::DfOptions),
    Stat(stat::StatOptions),
    Statfs(stat::StatfsOptions),
    Counters(counters::Options),
    Locks(locks::Options),
    WalkInodes(walk_inodes::Options),
    InoPath(ino_path::Options),
    #[command(hide = true)]
    Witness(witness::Options),
    Completions(pages::CompletionsOptions),
    Man(pages::ManOptions),
}

impl Command {
    /// What they are called.
    pub(crate) const NAMES: [&str; 18] = [
        "mkfs",
        "print",
        "check",
        "tune",
        "server",
        "mount",
        "umount",
        "fenced",
        "status",
        "df",
        "stat",
        "statfs",
        "counters",
        "locks",
        "walk-inodes",
        "ino-path",
        "completions",
        "man",
    ];
}

/// Why a command ended.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The status of the process.
    pub(crate) status: u8,
    /// One line for people, with what to do.
    pub(crate) what: String,
}

impl Failure {
    /// With the usual status.
    pub(crate) fn new(what: impl Into<String>) -> Failure {
        Failure { status: 1, what: what.into() }
    }
}

/// Carries out a command; its status.
pub(crate) fn run(program: Program) -> Result<u8, Failure> {
    match program.command {
        Command::Mkfs(options) => mkfs::run(&options).map(|()| 0),
        Command::Print(options) => print::run(&options).map(|()| 0),
        Command::Check(options) => check::run(&options),
        Command::Tune(options) => tune::run(&options).map(|()| 0),
        Command::Server(options) => server::run(&options),
        Command::Mount(options) => mount::run(&options),
        Command::Umount(options) => umount::run(&options).map(|()| 0),
        Command::Fenced(options) => fenced::run(&options).map(|()| 0),
        Command::Status(options) => status::status(&options),
        Command::Df(options) => status::df(&options).map(|()| 0),
        Command::Stat(options) => stat::stat(&options).map(|()| 0),
        Command::Statfs(options) => stat::statfs(&options).map(|()| 0),
        Command::Counters(options) => counters::run(&options).map(|()| 0),
        Command::Locks(options) => locks::run(&options).map(|()| 0),
        Command::WalkInodes(options) => walk_inodes::run(&options).map(|()| 0),
        Command::InoPath(options) => ino_path::run(&options).map(|()| 0),
        Command::Witness(options) => witness::run(&options).map(|()| 0),
        Command::Completions(options) => pages::completions(&options).map(|()| 0),
        Command::Man(options) => pages::man(&options).map(|()| 0),
    }
}

/// The name of a check that failed, in reports: stable.
pub(crate) const fn corruption(what: Corruption) -> &'static str {
    match what {
        Corruption::Checksum => "checksum",
        Corruption::Kind => "kind",
        Corruption::Volume => "volume",
        Corruption::Misdirected => "misdirected",
        Corruption::Stale => "stale",
        Corruption::Bounds => "bounds",
        Corruption::Order => "order",
        Corruption::Level => "level",
        Corruption::Reserved => "reserved",
        Corruption::Value => "value",
        Corruption::Mismatch => "mismatch",
    }
}
