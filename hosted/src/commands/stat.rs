//! `outrider stat` and `outrider statfs`: what more there is of an inode, and of a volume.

use super::device::system;
use super::virtual_xattr::{mount_of, senseless, text, value};
use super::{Failure, report};
use clap::Args;
use outrider_core::client::op::query::StatRecord;
use outrider_core::format::BLOCK_BYTES;
use outrider_hosted::mount::{STAT_XATTR, STATFS_XATTR};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use zerocopy::FromBytes;

/// Show what more than stat(1) shows there is of files.
#[derive(Debug, Args)]
pub(crate) struct StatOptions {
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    /// Show this number only.
    #[arg(short = 's', long = "single-field", value_name = "FIELD", conflicts_with = "json")]
    #[arg(value_parser = FIELDS)]
    field: Option<String>,
    /// Files of a mount.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// Show which volume a mount has, and how far it has come.
#[derive(Debug, Args)]
pub(crate) struct StatfsOptions {
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    /// A path in the mount.
    path: PathBuf,
}

const FIELDS: [&str; 5] =
    ["meta_seq", "data_seq", "data_version", "online_blocks", "offline_blocks"];

pub(crate) fn stat(options: &StatOptions) -> Result<(), Failure> {
    let (mut all, mut shown) = (Vec::new(), String::new());
    for path in &options.paths {
        let numbers = numbers(path)?;
        let fields = FIELDS.iter().zip(numbers);
        let name = path.display();
        match &options.field {
            Some(field) => {
                for (_, number) in fields.filter(|(name, _)| *name == field) {
                    let _ = writeln!(shown, "{number}");
                }
            }
            None if options.json => {
                let mut value = Map::from_iter([("path".to_owned(), json!(name.to_string()))]);
                value.extend(fields.map(|(name, number)| ((*name).to_owned(), number.into())));
                all.push(Value::Object(value));
            }
            None => {
                let _ = writeln!(shown, "{:<17}{name}", "path");
                for (name, number) in fields {
                    let _ = writeln!(shown, "{name:<17}{number}");
                }
            }
        }
    }
    if options.json {
        return report::show(&json!({ "files": all }), true);
    }
    report::put(shown.as_bytes())
}

/// The numbers of a file, in the order of [`FIELDS`].
fn numbers(path: &Path) -> Result<[u64; 5], Failure> {
    let bytes = value(path, STAT_XATTR)?;
    let record = StatRecord::read_from_bytes(&bytes).map_err(|_| senseless(path))?;
    let StatRecord { meta_seq, data_seq, data_version, online_blocks, offline_blocks } = record;
    Ok([meta_seq, data_seq, data_version, online_blocks, offline_blocks].map(|number| number.get()))
}

pub(crate) fn statfs(options: &StatfsOptions) -> Result<(), Failure> {
    let at = mount_of(&options.path)?;
    let told = text(&at, STATFS_XATTR)?;
    let found = rustix::fs::statvfs(&at).map_err(|error| system(&at, "ask", &error.into()))?;
    let scale = |blocks: u64| {
        let bytes = u128::from(blocks) * u128::from(found.f_frsize);
        u64::try_from(bytes / BLOCK_BYTES as u128).unwrap_or(u64::MAX)
    };
    let mut value = Map::new();
    for line in told.lines() {
        let (name, told) = line.split_once(' ').ok_or_else(|| senseless(&at))?;
        let number = told.parse::<u64>().ok().filter(|_| name != "fsid");
        value.insert(name.to_owned(), number.map_or(json!(told), |number| json!(number)));
    }
    value.insert("total_blocks".to_owned(), scale(found.f_blocks).into());
    value.insert("free_blocks".to_owned(), scale(found.f_bfree).into());
    report::show(&Value::Object(value), options.json)
}
