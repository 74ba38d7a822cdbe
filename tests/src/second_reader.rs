//! A second opinion on what stands on a disk: a reader that was written from the format's document
//! alone, in another language, beside what our own code says of the same disk.
//!
//! ```text
//!   image --> independent/read_volume.py --> every path and what is there --+
//!     |                                                                     +--> the same?
//!     +-----> our check; a server and a mount --> every path that is seen --+
//! ```
//!
//! # Invariants
//!
//! * An image counts as agreed on only if both find nothing wrong with it, and every path, type,
//!   size, time, link count, attribute and byte is the same.
//!
//! What this module deliberately doesn't know: how the image came to be.

use crate::crash::recovery::check;
use crate::crash::volume::{Cluster, Seen, look};
use crate::image::Image;
use outrider_core::check::{Finding, Id};
use outrider_core::format::item::{FileKind, Time};
use outrider_core::format::super_block::Super;
use outrider_hal::Block;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// The reader.
const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/independent/read_volume.py");

/// What both have seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Agreed {
    /// Paths, that of the root directory counted.
    pub paths: u64,
    /// Items that count.
    pub items: u64,
    /// Runs they stand in.
    pub runs: u64,
}

impl Agreed {
    /// Adds what was seen of another image.
    pub fn add(&mut self, other: Agreed) {
        self.paths += other.paths;
        self.items += other.items;
        self.runs += other.runs;
    }
}

/// Writes an image to a file with holes.
fn write(image: &Image, path: &Path) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(image.blocks() * Block::ZERO.0.len() as u64)?;
    for blkno in 0..image.blocks() {
        let block = image.block(blkno);
        if block.0 != Block::ZERO.0 {
            file.write_all_at(&block.0, blkno * block.0.len() as u64)?;
        }
    }
    Ok(())
}

/// What the reader says of an image.
///
/// # Errors
///
/// What it found wrong, or why it could not be asked.
pub fn read(image: &Image) -> Result<Value, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = dir.path().join("volume");
    write(image, &path).map_err(|error| error.to_string())?;
    let output = Command::new("python3").args([READER, "--tree"]).arg(&path).output();
    let output = output.map_err(|error| format!("python3: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// What a mount has seen at a path, in the reader's words.
fn told(path: &str, seen: &Seen) -> Value {
    let time = |time: Time| json!([time.sec, time.nsec]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let xattr = |(name, value): (&Vec<u8>, &Vec<u8>)| (text(name), json!(crc32c::crc32c(value)));
    let xattrs: serde_json::Map<String, Value> = seen.xattrs.iter().map(xattr).collect();
    json!({
        "path": path, "kind": seen.kind as u8, "permissions": seen.permissions,
        "nlink": seen.nlink, "size": seen.size, "mtime": time(seen.mtime),
        "ctime": time(seen.ctime), "crc": crc32c::crc32c(&seen.data), "xattrs": xattrs,
    })
}

/// Asks both what stands on an image of a volume that has seen up to `clients` clients.
///
/// # Errors
///
/// What one finds wrong, or the first path that they don't agree on.
pub fn agree(image: &Image, volume: &Super, clients: u16) -> Result<Agreed, String> {
    let mut theirs = read(image)?;
    // Who crashed while it wrote a root, or its own block, has left it torn.
    let is_wrong = |finding: &&Finding| !matches!(finding.id, Id::Ring | Id::Quorum);
    if let Some(finding) = check(image, volume).iter().find(is_wrong) {
        return Err(format!("the check finds {finding:?}"));
    }
    let mut cluster = Cluster::with_clients(image.clone(), *volume, 1, clients);
    cluster.mount()?;
    let (tree, _) = look(&mut cluster).map_err(|error| format!("{error:?}"))?;
    let count = |what: &Value| what.as_u64().unwrap_or(0);
    let (items, runs) = (count(&theirs["items"]), count(&theirs["trees"]["manifest"]));
    let Value::Array(paths) = theirs["tree"].take() else { return Err("no tree".to_owned()) };
    let agreed = Agreed { paths: tree.len() as u64, items, runs };
    for (mut one, (path, seen)) in paths.into_iter().zip(&tree) {
        let ours = told(path, seen);
        if let Some(one) = one.as_object_mut() {
            one.remove("ino");
            if seen.kind != FileKind::Regular {
                // Of what is no file a mount is asked neither.
                one.insert("size".to_owned(), json!(0));
                one.insert("crc".to_owned(), json!(0));
            }
        }
        if one != ours {
            return Err(format!("the reader sees {one}, a mount {ours}"));
        }
    }
    match agreed.paths == count(&theirs["paths"]) {
        true => Ok(agreed),
        false => Err(format!("the reader sees {} paths, a mount {}", theirs["paths"], tree.len())),
    }
}
