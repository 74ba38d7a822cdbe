//! `outrider locks`: the cluster locks that a mount has.

use super::virtual_xattr::{mount_of, senseless, text};
use super::{Failure, report};
use clap::Args;
use outrider_hosted::mount::LOCKS_XATTR;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Show the cluster locks that a mount has, or waits for.
///
/// A line for each: what it covers and from which number on, how it is held, how it was asked for,
/// how a revoke under way leaves it, how many operations read, write and only write under it, and
/// how many wait for it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    /// A path in the mount.
    path: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let at = mount_of(&options.path)?;
    let (mut skip, mut all) = (0, Vec::new());
    loop {
        let told = text(&at, &format!("{LOCKS_XATTR}{skip}"))?;
        if told.is_empty() {
            break;
        }
        skip += told.lines().count();
        if options.json {
            for line in told.lines() {
                all.push(shown(line, &at)?);
            }
        } else {
            report::put(told.as_bytes())?;
        }
    }
    if options.json { report::show(&json!({ "locks": all }), true) } else { Ok(()) }
}

fn shown(line: &str, at: &Path) -> Result<Value, Failure> {
    let words: Vec<&str> = line.split(' ').collect();
    let [kind, number, mode, asked, revoke, readers, writers, write_only, waiters] = words[..]
    else {
        return Err(senseless(at));
    };
    let count = |word: &str| word.parse::<u64>().map_err(|_| senseless(at));
    Ok(json!({
        "kind": kind,
        "number": count(number)?,
        "mode": mode,
        "asked": asked,
        "revoke": (revoke != "-").then_some(revoke),
        "readers": count(readers)?,
        "writers": count(writers)?,
        "write_only": count(write_only)?,
        "waiters": count(waiters)?,
    }))
}
