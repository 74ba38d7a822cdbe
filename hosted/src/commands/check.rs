//! `outrider check`: reads everything and tells what is wrong.
//!
//! # Invariants
//!
//! * Nothing is written.
//! * The status is made of the bits of fsck(8): 0 nothing is wrong, 4 errors were found and left, 8
//!   the check could not be made, or not wholly, 16 the command line is wrong.
//! * A volume may be in use: what is told is about one state of it, or nothing is told but that it
//!   was too busy. If somebody leads, it is asked to keep that state as long as it is read.
//! * Findings beyond [`FINDINGS_MAX`] are counted, and not shown.
//!
//! What this module deliberately doesn't know: how anything is found.

use super::device::{Image, carved, drive};
use super::pinning::Pinning;
use super::{FSCK_USAGE, Failure, findings, report};
use clap::Args;
use outrider_core::check::{ATTEMPTS, Check, Finding, Holder, Limit};
use outrider_hosted::disk::Access;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

const CLEAN: u8 = 0;
const ERRORS: u8 = 4;
const OPERATION: u8 = 8;
/// Findings that are shown.
const FINDINGS_MAX: usize = 10_000;

/// Check a volume; nothing is changed.
///
/// Each line names one thing that is wrong, and where. The volume may be mounted: then one state of
/// it is checked.
///
/// Exits with 0 if nothing is wrong, 4 if errors were found, 8 if the check could not be made or
/// not wholly, 12 if both, and 16 if the command line is wrong, as fsck(8) says.
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
    let examined = examine(options).map_err(|failure| Failure { status: OPERATION, ..failure })?;
    report(options, &examined)?;
    let check = &examined.check;
    let errors = if check.counts().findings == 0 { CLEAN } else { ERRORS };
    Ok(if check.limit().is_some() { errors | OPERATION } else { errors })
}

/// A check that was made.
struct Examined {
    check: Check<'static>,
    findings: Vec<Finding>,
    /// The leader has kept what was checked until the end.
    pinned: bool,
}

fn examine(options: &Options) -> Result<Examined, Failure> {
    let image = Image::open(&options.device)?;
    let volume = image.volume_or_spare()?;
    let mut check = carved(|arena| Check::carve(arena, &volume))?;
    let (mut findings, mut attempt) = (Vec::new(), check.attempt());
    // Before the ring is read, in each attempt.
    let (mut pin, mut chosen) = (Pinning::begin(&image, &volume), false);
    let mut taken = true;
    while taken && !check.is_done() {
        taken = false;
        drive(&mut check, &options.device, Access::ReadOnly, |check| {
            if attempt != check.attempt() {
                attempt = check.attempt();
                findings.clear();
                // The first is over before the next begins.
                drop(pin.take());
                (pin, chosen) = (Pinning::begin(&image, &volume), false);
            }
            if let Some(root) = check.root().copied().filter(|_| !chosen) {
                chosen = true;
                match pin.as_mut().is_some_and(|pin| pin.choose(&root)) {
                    true => check.pin(),
                    false => pin = None,
                }
            }
            while let Some(finding) = check.poll_finding() {
                taken = true;
                if findings.len() < FINDINGS_MAX {
                    findings.push(finding);
                }
            }
            if check.doubts_pin() {
                taken = true;
                check.pin_held(pin.as_mut().is_some_and(Pinning::holds));
            }
        })?;
    }
    let name = image.name();
    if check.is_busy() {
        return Err(Failure::new(format!(
            "{name} is too busy: it was changed under each of {ATTEMPTS} checks; \
             try again when less is written"
        )));
    }
    if !check.is_done() {
        return Err(Failure::new(format!("the check of {name} did not end")));
    }
    let pinned = pin.as_mut().is_some_and(Pinning::holds);
    Ok(Examined { check, findings, pinned })
}

/// What there is of everything, for JSON.
fn counts(check: &Check<'_>) -> Value {
    let counts = check.counts();
    let blocks: Map<String, Value> = (Holder::ALL.iter().zip(counts.blocks))
        .map(|(holder, blocks)| (holder.name().to_owned(), blocks.into()))
        .collect();
    json!({
        "roots": counts.roots,
        "nodes": counts.nodes,
        "records": counts.records,
        "runs": counts.runs,
        "items": counts.items,
        "items_newest": counts.items_newest,
        "inodes": counts.inodes,
        "directories": counts.directories,
        "free_blocks": counts.blocks[Holder::Free as usize],
        "blocks": blocks,
    })
}

fn report(options: &Options, examined: &Examined) -> Result<(), Failure> {
    let (check, found) = (&examined.check, &examined.findings);
    let total = check.counts().findings;
    if options.json {
        let value = json!({
            "device": options.device.display().to_string(),
            "clean": total == 0 && check.limit().is_none(),
            "commit": check.root().map(|root| root.commit().0),
            "attempts": check.attempt(),
            "pinned": examined.pinned,
            "items_compared": check.are_items_compared(),
            "limit": check.limit().map(findings::limit),
            "findings_total": total,
            "findings": found.iter().map(findings::value).collect::<Vec<_>>(),
            "counts": counts(check),
        });
        return report::show(&value, true);
    }
    let mut text: String = found.iter().map(findings::line).collect();
    let (name, counts) = (options.device.display(), check.counts());
    if total > found.len() as u64 {
        text += &format!("{} more findings are not shown\n", total - found.len() as u64);
    }
    if !check.are_items_compared() {
        text += "what files and directories have in common was not checked: \
                 not all items could be read\n";
    }
    if let Some(limit) = check.limit() {
        text += &beyond(limit);
    }
    text += &match total {
        0 => format!(
            "{name} is clean: {} inodes, {} items in {} runs, {} records in {} nodes, {} free \
             blocks\n",
            counts.inodes,
            counts.items,
            counts.runs,
            counts.records,
            counts.nodes,
            counts.blocks[Holder::Free as usize]
        ),
        errors => format!("{name} has {errors} errors, which were left as they are\n"),
    };
    report::put(text.as_bytes())
}

/// What was not checked because there is too much of it.
fn beyond(limit: Limit) -> String {
    let what = match limit {
        Limit::Runs => "items and lost blocks were not checked",
        Limit::Clients | Limit::Numbers => "what is lent to clients was not checked wholly",
        Limit::Directories => "whether the root directory leads to all was not checked",
    };
    format!("there are more {} than memory was taken for: {what}\n", findings::limit(limit))
}
