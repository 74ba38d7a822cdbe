//! Items, as `outrider print` shows them: of a run, or of the whole volume.
//!
//! # Invariants
//!
//! * Runs are read block by block, a block of each at a time: memory doesn't grow with the items.
//! * Of several items with one key the one in the newest run is shown, unless it is a tombstone.

use super::print::{Run, Volume};
use super::{Failure, report};
use outrider_core::error::Corruption;
use outrider_core::format::Block;
use outrider_core::format::item::{Dirent, FileExtent, Inode, Mapping, Time, XattrHead};
use outrider_core::format::key::{ItemKey, Key, KeyBytes};
use outrider_core::format::run::{Items, RunBlock, Value as Stored};
use serde_json::{Map, Value, json};

/// A run being read, item by item.
struct Reader<'v> {
    volume: &'v Volume,
    run: Run,
    block: Option<Box<Block>>,
    /// Which block comes next, and which item of the present one.
    next: u32,
    item: u16,
    last: Option<KeyBytes>,
}

impl<'v> Reader<'v> {
    fn new(volume: &'v Volume, run: &Run) -> Reader<'v> {
        Reader { volume, run: *run, block: None, next: 0, item: 0, last: None }
    }

    /// Reads on until an item is there. False: there is none left.
    fn fill(&mut self) -> Result<bool, Failure> {
        if self.block.as_ref().is_some_and(|block| self.item < Items::opened(block).count()) {
            return Ok(true);
        }
        if self.next >= u32::from(self.run.entry.item_blocks.get()) {
            self.block = None;
            return Ok(false);
        }
        let blkno = self.run.entry.extent().start().plus(self.next.into());
        let at = RunBlock { blkno, run: self.run.entry.run(), index: self.next };
        let block = self.volume.block(&self.run, self.next)?;
        let damaged = |what| self.volume.damaged(blkno, what);
        let items = Items::open(&block, &self.volume.found.volume(), &at).map_err(damaged)?;
        if self.last.is_some_and(|last| last >= *items.get(0).0) {
            return Err(damaged(Corruption::Order));
        }
        self.last = Some(*items.get(items.count() - 1).0);
        (self.block, self.next, self.item) = (Some(block), self.next + 1, 0);
        Ok(true)
    }

    /// The item that [`fill`](Self::fill) has found.
    fn get(&self) -> Option<(&KeyBytes, Stored<'_>)> {
        Some(Items::opened(self.block.as_ref()?).get(self.item))
    }
}

/// Shows all items from one key to another.
pub(super) fn print(volume: &Volume, from: Key, to: Key, json: bool) -> Result<(), Failure> {
    let (first, last) = (KeyBytes::from(from), KeyBytes::from(to));
    let mut runs = volume.runs()?;
    runs.retain(|run| run.entry.range().is_some_and(|range| range.0 <= last && first <= range.1));
    // Newer ones first: lower levels, and in level 0 greater orders.
    runs.sort_by_key(|run| (run.key.level, std::cmp::Reverse(run.key.order.get())));
    let mut readers: Vec<Reader<'_>> = runs.iter().map(|run| Reader::new(volume, run)).collect();
    let mut separator = "";
    if json {
        report::put(b"{\n  \"items\": [")?;
    }
    loop {
        let mut least: Option<KeyBytes> = None;
        for reader in &mut readers {
            while reader.fill()? && reader.get().is_some_and(|(key, _)| *key < first) {
                reader.item += 1;
            }
            if let Some((key, _)) = reader.get() {
                least = Some(least.map_or(*key, |least| least.min(*key)));
            }
        }
        let Some(key) = least.filter(|key| *key <= last) else { break };
        let mut newest = true;
        for reader in &mut readers {
            let Some((_, stored)) = reader.get().filter(|(found, _)| **found == key) else {
                continue;
            };
            if let (true, Stored::Bytes(_)) = (newest, &stored) {
                let value = show(&key.into(), &stored);
                let text = match json {
                    true => format!("{separator}\n    {value}"),
                    false => format!("{}\n", line(&value)),
                };
                separator = ",";
                report::put(text.as_bytes())?;
            }
            (newest, reader.item) = (false, reader.item + 1);
        }
    }
    if json { report::put(b"\n  ]\n}\n") } else { Ok(()) }
}

/// The run of this number, with all its items.
pub(super) fn segment(volume: &Volume, number: &str) -> Result<Value, Failure> {
    let runs = volume.runs()?;
    let found = number
        .parse()
        .ok()
        .and_then(|number: u64| runs.iter().find(|run| run.entry.run().0 == number));
    let Some(run) = found else {
        let name = volume.image.name();
        let what = format!("{name} has no run {number}; print {name} manifest shows which it has");
        return Err(Failure::new(what));
    };
    let mut value = run.show();
    let (mut items, mut reader) = (Vec::new(), Reader::new(volume, run));
    while reader.fill()? {
        if let Some((key, stored)) = reader.get() {
            items.push(show(&(*key).into(), &stored));
        }
        reader.item += 1;
    }
    value["contents"] = items.into();
    Ok(value)
}

fn line(value: &Value) -> String {
    let Value::Object(fields) = value else { return value.to_string() };
    let mut words = Vec::new();
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("key" | "item", Value::String(text)) => words.push(text.clone()),
            (_, Value::String(text)) => words.push(format!("{name} {text}")),
            _ => words.push(format!("{name} {value}")),
        }
    }
    words.join(" ")
}

fn show(key: &Key, stored: &Stored<'_>) -> Value {
    let mut fields = Map::new();
    fields.insert("key".to_owned(), key.to_string().into());
    let described = ItemKey::parse(key).and_then(|item| match stored {
        Stored::Tombstone => Ok((name(&item), json!({ "deleted": true }))),
        Stored::Bytes(bytes) => Ok((name(&item), describe(&item, bytes)?)),
    });
    match described {
        Ok((name, Value::Object(rest))) => {
            fields.insert("item".to_owned(), name.into());
            fields.extend(rest);
        }
        Ok((name, _)) => drop(fields.insert("item".to_owned(), name.into())),
        Err(what) => {
            fields.insert("damaged".to_owned(), super::corruption(what).into());
        }
    }
    Value::Object(fields)
}

/// What an item is called: stable.
pub(super) const fn name(item: &ItemKey) -> &'static str {
    match item {
        ItemKey::MetaSeq { .. } => "meta-seq",
        ItemKey::DataSeq { .. } => "data-seq",
        ItemKey::Orphan(_) => "orphan",
        ItemKey::Inode(_) => "inode",
        ItemKey::Xattr { .. } => "xattr",
        ItemKey::Dirent { .. } => "dirent",
        ItemKey::Readdir { .. } => "readdir",
        ItemKey::Backref { .. } => "backref",
        ItemKey::Symlink { .. } => "symlink",
        ItemKey::Extent { .. } => "extent",
    }
}

fn time(time: Time) -> String {
    format!("{}.{:09}", time.sec, time.nsec)
}

fn describe(item: &ItemKey, bytes: &[u8]) -> Result<Value, Corruption> {
    Ok(match item {
        ItemKey::MetaSeq { seq, ino } | ItemKey::DataSeq { seq, ino } => {
            json!({ "seq": seq.0, "ino": ino.0 })
        }
        ItemKey::Orphan(ino) => json!({ "ino": ino.0 }),
        ItemKey::Inode(ino) => {
            let inode = Inode::parse(bytes)?;
            json!({
                "ino": ino.0,
                "mode": format!("{:06o}", inode.mode()),
                "nlink": inode.nlink,
                "uid": inode.uid,
                "gid": inode.gid,
                "size": inode.size,
                "rdev": inode.rdev,
                "meta_seq": inode.meta_seq.0,
                "data_seq": inode.data_seq.0,
                "data_version": inode.data_version,
                "online_blocks": inode.online_blocks,
                "offline_blocks": inode.offline_blocks,
                "next_readdir_pos": inode.next_readdir_pos,
                "next_xattr_id": inode.next_xattr_id,
                "truncating": inode.truncating,
                "atime": time(inode.atime),
                "mtime": time(inode.mtime),
                "ctime": time(inode.ctime),
                "crtime": time(inode.crtime),
            })
        }
        ItemKey::Xattr { ino, part: 0, .. } => {
            let head = XattrHead::parse(bytes)?;
            let name = String::from_utf8_lossy(head.name.bytes());
            json!({ "ino": ino.0, "name": name, "bytes": head.value_len })
        }
        ItemKey::Xattr { ino, part, .. } => {
            json!({ "ino": ino.0, "part": part, "bytes": bytes.len() })
        }
        ItemKey::Dirent { dir, .. }
        | ItemKey::Readdir { dir, .. }
        | ItemKey::Backref { dir, .. } => {
            let entry = Dirent::parse(bytes)?;
            let name = String::from_utf8_lossy(entry.name.bytes());
            json!({ "dir": dir.0, "name": name, "ino": entry.ino.0, "pos": entry.pos })
        }
        ItemKey::Symlink { ino, part } => {
            json!({ "ino": ino.0, "part": part, "target": String::from_utf8_lossy(bytes) })
        }
        ItemKey::Extent { ino, last } => {
            let file = FileExtent::parse(*last, bytes)?;
            let (kind, at) = match file.mapping {
                Mapping::Data(at) => ("data", Some(at.0)),
                Mapping::Reserved(at) => ("reserved", Some(at.0)),
                Mapping::Offline => ("offline", None),
                Mapping::OfflineReserved(at) => ("offline-reserved", Some(at.0)),
            };
            json!({
                "ino": ino.0, "first": file.first().0, "blocks": file.len,
                "mapping": kind, "blkno": at,
            })
        }
    })
}
