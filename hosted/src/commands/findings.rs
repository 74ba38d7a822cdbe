//! What a check has found, in words and as JSON.
//!
//! # Invariants
//!
//! * A finding is one line: its stable name, where it is, what is wrong there, and what that means.
//! * The JSON is that of `core/CHECK.md`.
//!
//! What this module deliberately doesn't know: how anything is found.

use super::corruption;
use super::items::name;
use outrider_core::check::{Finding, Id, Limit, Wrong};
use outrider_core::format::key::{ItemKey, Key};
use outrider_hal::IoError;
use serde_json::{Value, json};

/// What a finding of this name means.
pub(super) const fn meaning(id: Id) -> &'static str {
    match id {
        Id::Super => "the super block is damaged, or is not that of the spare",
        Id::Spare => "the spare super block is damaged, or is not that of the first",
        Id::Quorum => "a voter's block is damaged",
        Id::Ring => "a root is damaged; the newest whole one counts",
        Id::Root => "there is no valid root, or only one from before a commit that was confirmed",
        Id::Node => "a node of a tree is damaged, and all below it is lost",
        Id::Record => "a record of a tree says nothing that can be",
        Id::FreeTrees => "these blocks are free in one of the two free trees only",
        Id::FreeBlocks => "the root says another number of free blocks than there are",
        Id::Levels => "the root says another number of runs in a level than there are",
        Id::LevelOrder => "runs overlap of which none is the newer",
        Id::Next => "a number is in use that the root says was never given out",
        Id::Number => "a number was given out twice",
        Id::Client => "something belongs to a client of which there is no record",
        Id::OpenSeq => "a client has too many or too few open transactions",
        Id::Answer => "the answers kept for a client are not those its record speaks of",
        Id::Lists => "the lists of a client's loans don't follow each other",
        Id::Manifest => "a run holds other items than the manifest says",
        Id::RunItems => "items of a run are damaged or out of order",
        Id::RunIndex => "the index of a run is damaged, or leads elsewhere",
        Id::RunFilter => "the filter of a run is damaged, or denies an item that is there",
        Id::Item => "an item says nothing that can be",
        Id::Double => "these blocks are in two places",
        Id::Leak => "these blocks belong to nobody",
        Id::RootDirectory => "there is no root directory",
        Id::InodeNone => "there are items of an inode that isn't there",
        Id::InodeKind => "an inode of this type can't have such an item",
        Id::InodeSize => "what can have no data has a size",
        Id::MetaIndex => "the index by metadata change and the inode disagree",
        Id::DataIndex => "the index by data change and the file disagree",
        Id::Orphan => "the index of orphans and the inode disagree on whether it has names",
        Id::LinkCount => "the link count is wrong",
        Id::Parent => "a directory has another number of names than it must have",
        Id::DirLoop => "the way up from this directory leads in a ring",
        Id::DirRemoved => "a removed directory has entries",
        Id::DirSize => "the directory's size is not the sum of its names' lengths",
        Id::DirPos => "an entry has a position that was never given out",
        Id::DirentTwin => "the entry by name and the one by position disagree, or one is missing",
        Id::Backref => "the entry and the link back to it disagree, or one is missing",
        Id::DirentHash => "the entry can't be found by its name: the hash is another one's",
        Id::DirentName => "the directory has two entries of this name",
        Id::DirentKind => "the entry says another type than the inode has",
        Id::XattrParts => "parts of an extended attribute are missing or too many",
        Id::XattrHash => "the attribute can't be found by its name: the hash is another one's",
        Id::XattrName => "the inode has two attributes of this name",
        Id::XattrNumber => "an attribute has a number that was never given out",
        Id::Symlink => "the target has another length than the symlink says",
        Id::ExtentOrder => "extents of the file overlap",
        Id::ExtentEnd => "the file has data behind its end",
        Id::FileBlocks => "the file says another number of blocks than it has",
        Id::Unnamed => "entries or indices disagree in more places than could be found out",
    }
}

const fn wrong(wrong: &Wrong) -> &'static str {
    match wrong {
        Wrong::Corrupt(what) => corruption(*what),
        Wrong::Io(IoError::OutOfRange) => "out-of-range",
        Wrong::Io(IoError::Device | IoError::Unsupported) => "io",
        Wrong::Count { .. } => "count",
    }
}

/// What an item is, for people.
fn item(key: &Key) -> String {
    match ItemKey::parse(key) {
        Err(_) => "no item's key".to_owned(),
        Ok(ItemKey::Inode(ino) | ItemKey::Orphan(ino)) => format!("inode {ino}"),
        Ok(
            ItemKey::MetaSeq { ino, .. }
            | ItemKey::DataSeq { ino, .. }
            | ItemKey::Xattr { ino, .. }
            | ItemKey::Symlink { ino, .. }
            | ItemKey::Extent { ino, .. },
        ) => format!("inode {ino}"),
        Ok(ItemKey::Dirent { dir, pos, .. } | ItemKey::Readdir { dir, pos }) => {
            format!("inode {dir} entry {pos}")
        }
        Ok(ItemKey::Backref { ino, dir, pos }) => {
            format!("inode {ino} named by inode {dir} entry {pos}")
        }
    }
}

/// One line.
pub(super) fn line(finding: &Finding) -> String {
    let (id, at) = (finding.id, finding.blkno);
    let mut place = match finding.blocks {
        0 => String::new(),
        1 => format!(" block {at}"),
        blocks => format!(" blocks {at}+{blocks}"),
    };
    if let Some(key) = &finding.key {
        place += &format!(" {} item {key}", item(key));
    }
    let what = match &finding.wrong {
        Wrong::Count { says, is } => format!("{says}, not {is}"),
        other => wrong(other).to_owned(),
    };
    format!("{}{place}: {}: {what}\n", id.name(), meaning(id))
}

/// The same as JSON.
pub(super) fn value(finding: &Finding) -> Value {
    let counted = match finding.wrong {
        Wrong::Count { says, is } => Some((says, is)),
        Wrong::Corrupt(_) | Wrong::Io(_) => None,
    };
    json!({
        "id": finding.id.name(),
        "means": meaning(finding.id),
        "blkno": finding.blkno.0,
        "blocks": finding.blocks,
        "key": finding.key.map(|key| key.to_string()),
        "item": finding.key.and_then(|key| ItemKey::parse(&key).ok().map(|item| name(&item))),
        "wrong": wrong(&finding.wrong),
        "says": counted.map(|(says, _)| says),
        "is": counted.map(|(_, is)| is),
    })
}

/// What there was too much of.
pub(super) const fn limit(limit: Limit) -> &'static str {
    match limit {
        Limit::Runs => "runs",
        Limit::Clients => "clients",
        Limit::Numbers => "numbers",
        Limit::Directories => "directories",
    }
}
