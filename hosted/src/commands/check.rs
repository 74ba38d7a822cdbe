//! `outrider check`: reads everything and tells what is wrong.
//!
//! # Invariants
//!
//! * Nothing is written.
//! * The status is that of fsck(8): 0 nothing is wrong, 4 errors were found and left, 8 the check
//!   could not be made, 16 the command line is wrong.

use super::device::{Image, carved, drive};
use super::{FSCK_USAGE, Failure, corruption, report};
use clap::Args;
use outrider_core::check::{Check, Finding, Wrong};
use outrider_hal::IoError;
use outrider_hosted::disk::Access;
use serde_json::{Value, json};
use std::path::PathBuf;

const CLEAN: u8 = 0;
const ERRORS: u8 = 4;
const OPERATION: u8 = 8;

/// Check a volume that is not mounted; nothing is changed.
///
/// Exits with 0 if nothing is wrong, 4 if errors were found, 8 if the check could not be made, and
/// 16 if the command line is wrong, as fsck(8) says.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    /// Repair what is wrong: not possible yet.
    #[arg(long, short = 'r', alias = "yes", short_alias = 'y', hide = true)]
    repair: bool,
    /// For fsck(8): check without questions, as always.
    #[arg(short = 'a', short_aliases = ['p', 'n', 'f'], hide = true,
          action = clap::ArgAction::Count)]
    _automatic: u8,
    /// The block device or file.
    device: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<u8, Failure> {
    if options.repair {
        let what = "--repair is not possible yet; check without it, and restore what is damaged";
        return Err(Failure { status: FSCK_USAGE, what: what.to_owned() });
    }
    let (check, findings) =
        examine(options).map_err(|failure| Failure { status: OPERATION, ..failure })?;
    report(options, &check, &findings)?;
    Ok(if findings.is_empty() { CLEAN } else { ERRORS })
}

fn examine(options: &Options) -> Result<(Check<'static>, Vec<Finding>), Failure> {
    let image = Image::open(&options.device)?;
    let volume = image.volume_or_spare()?;
    let mut check = carved(|arena| Check::carve(arena, &volume))?;
    let mut findings = Vec::new();
    let mut taken = true;
    while taken && !check.is_done() {
        let before = findings.len();
        drive(&mut check, &options.device, Access::ReadOnly, |check| {
            while let Some(finding) = check.poll_finding() {
                findings.push(finding);
            }
        })?;
        // It may have paused with too many findings to be taken.
        taken = findings.len() > before;
    }
    if !check.is_done() {
        return Err(Failure::new(format!("the check of {} did not end", image.name())));
    }
    Ok((check, findings))
}

fn wrong(finding: &Finding) -> &'static str {
    match finding.wrong {
        Wrong::Corrupt(what) => corruption(what),
        Wrong::Io(IoError::OutOfRange) => "out-of-range",
        Wrong::Io(IoError::Device | IoError::Unsupported) => "io",
    }
}

fn report(options: &Options, check: &Check<'_>, findings: &[Finding]) -> Result<(), Failure> {
    let counts = check.counts();
    let told: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "id": finding.id.name(),
                "blkno": finding.blkno.0,
                "blocks": finding.blocks,
                "wrong": wrong(finding),
            })
        })
        .collect();
    if options.json {
        let value = json!({
            "device": options.device.display().to_string(),
            "clean": findings.is_empty(),
            "findings": told,
            "commit": check.root().map(|root| root.commit().0),
            "counts": {
                "roots": counts.roots,
                "nodes": counts.nodes,
                "records": counts.records,
                "runs": counts.runs,
                "items": counts.items,
                "free_blocks": counts.free_blocks,
            },
        });
        return report::show(&value, true);
    }
    let mut text = String::new();
    for finding in findings {
        let (id, what, at) = (finding.id.name(), wrong(finding), finding.blkno);
        let upto = match finding.blocks {
            0 | 1 => String::new(),
            blocks => format!(" and the {} blocks behind it", blocks - 1),
        };
        text += &format!("{id}: {what} at block {at}{upto}\n");
    }
    let name = options.device.display();
    text += &match findings.len() {
        0 => format!(
            "{name} is clean: {} nodes, {} records, {} runs, {} items, {} free blocks\n",
            counts.nodes, counts.records, counts.runs, counts.items, counts.free_blocks
        ),
        errors => format!("{name} has {errors} errors, which were left as they are\n"),
    };
    report::put(text.as_bytes())
}
