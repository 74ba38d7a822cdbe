//! `outrider walk-inodes`: which inodes changed, in the order of the transactions that changed
//! them.
//!
//! # Invariants
//!
//! * It asks for a page at a time, so a long walk holds up nobody.

use super::virtual_xattr::{mount_of, senseless, value};
use super::{Failure, report};
use clap::{Args, ValueEnum};
use outrider_core::client::op::query::{Feed, Page, Position};
use outrider_core::format::{Ino, Seq};
use outrider_hosted::mount::{feed_name, walk_xattr};
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;

/// List the inodes that changed, in the order of the transactions that changed them.
///
/// Prints a line for each: the transaction, 0, and the inode. What is listed is stable: no inode
/// will be listed later up to the last transaction that `outrider statfs` calls committed. An inode
/// leaves its place when it is changed again. Changes of other mounts appear within seconds, unless
/// a mount is cut off.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    /// The index: that of all changes, or that of changes of data.
    index: Index,
    /// Where to begin: a transaction, or TRANSACTION.0.INODE.
    #[arg(allow_hyphen_values = true, value_parser = parse_first)]
    first: Position,
    /// Where to end, this place included: the same; -1 for the end.
    #[arg(allow_hyphen_values = true, value_parser = parse_last)]
    last: Position,
    /// A path in the mount.
    path: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Index {
    /// All changes.
    MetaSeq,
    /// Changes of the data of regular files.
    DataSeq,
}

impl From<Index> for Feed {
    fn from(index: Index) -> Feed {
        match index {
            Index::MetaSeq => Feed::Meta,
            Index::DataSeq => Feed::Data,
        }
    }
}

fn parse_first(text: &str) -> Result<Position, String> {
    parse_position(text, 0)
}

fn parse_last(text: &str) -> Result<Position, String> {
    parse_position(text, u64::MAX)
}

/// A position; what is not said of it is the least, or the greatest.
fn parse_position(text: &str, unsaid: u64) -> Result<Position, String> {
    let number = |text: &str| match text {
        "-1" => Ok(u64::MAX),
        text => text.parse().map_err(|_| {
            "a position is TRANSACTION or TRANSACTION.0.INODE, and -1 is the last".to_owned()
        }),
    };
    let mut parts = text.split('.');
    let seq = number(parts.next().unwrap_or_default())?;
    let unsaid = if text == "-1" { u64::MAX } else { unsaid };
    let minor = parts.next().map_or(Ok(0), number)?;
    let ino = parts.next().map_or(Ok(unsaid), number)?;
    match (minor, parts.next()) {
        (0, None) => Ok(Position { seq: Seq(seq), ino: Ino(ino) }),
        // All have 0 there.
        (_, None) => Ok(Position { seq: Seq(seq), ino: Ino(u64::MAX) }),
        (_, Some(_)) => Err("a position has three numbers at the most".to_owned()),
    }
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let (at, feed) = (mount_of(&options.path)?, options.index.into());
    let mut inodes = Vec::new();
    let mut first = options.first;
    let stable = loop {
        let bytes = value(&at, &walk_xattr(feed, first, options.last))?;
        let page = Page::parse(&bytes).ok_or_else(|| senseless(&at))?;
        if options.json {
            inodes.extend(
                page.entries()
                    .map(|place| json!({ "major": place.seq.0, "minor": 0, "ino": place.ino.0 })),
            );
        } else {
            let mut text = String::new();
            for Position { seq, ino } in page.entries() {
                let _ = writeln!(text, "{} 0 {}", seq.0, ino.0);
            }
            report::put(text.as_bytes())?;
        }
        match page.through.next().filter(|next| !page.end && *next > first) {
            Some(next) => first = next,
            None => break page.stable,
        }
    };
    if !options.json {
        return Ok(());
    }
    let value = json!({ "index": feed_name(feed), "stable": stable.0, "inodes": inodes });
    report::show(&value, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        let at = |seq, ino| Ok(Position { seq: Seq(seq), ino: Ino(ino) });
        assert_eq!(parse_first("5"), at(5, 0));
        assert_eq!(parse_last("5"), at(5, u64::MAX));
        assert_eq!((parse_first("5.0.7"), parse_last("5.0.7")), (at(5, 7), at(5, 7)));
        assert_eq!(parse_last("-1"), Ok(Position::LAST));
        assert_eq!(parse_first("-1"), Ok(Position::LAST));
        assert_eq!((parse_first("5.1"), parse_last("5.0.-1")), (at(5, u64::MAX), at(5, u64::MAX)));
        for wrong in ["", "x", "5.", "1.2.3.4", "-2", "5.0.-7"] {
            assert!(parse_first(wrong).is_err(), "{wrong}");
        }
    }
}
