//! `outrider witness`: what a server, or a mount, starts beside itself. See
//! [`outrider_hosted::witness`].

use super::Failure;
use clap::Args;
use outrider_hosted::report::to_system_log;
use outrider_hosted::witness::watch;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

/// Watch the process that has started this one; for the program's own use.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Tell in the system's log.
    #[arg(long)]
    log: bool,
    /// Its number.
    pid: u32,
    /// How long after the end of a lease it is killed.
    grace_ms: u64,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if options.log {
        to_system_log();
    }
    let grace = Duration::from_millis(options.grace_ms);
    let reports = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
    reports
        .and_then(|reports| watch(options.pid, grace, reports))
        .map_err(|error| Failure::new(format!("cannot watch process {}: {error}", options.pid)))
}
