//! `outrider counters`: what a mount has done.

use super::virtual_xattr::{mount_of, senseless, text};
use super::{Failure, report};
use clap::Args;
use outrider_hosted::mount::COUNTERS_XATTR;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Show what a mount has done since it began: a name and a number in each line.
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
    let told = text(&at, COUNTERS_XATTR)?;
    let mut counters = BTreeMap::new();
    for line in told.lines() {
        let (name, value) = line.split_once(' ').ok_or_else(|| senseless(&at))?;
        let value: u64 = value.parse().map_err(|_| senseless(&at))?;
        counters.insert(name, value);
    }
    if options.json {
        let fields = counters.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
        return report::show(&Value::Object(fields.collect::<Map<_, _>>()), true);
    }
    let mut shown = String::new();
    for (name, value) in counters {
        let _ = writeln!(shown, "{name} {value}");
    }
    report::put(shown.as_bytes())
}
