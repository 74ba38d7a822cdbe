//! `outrider ino-path`: the paths of an inode.

use super::virtual_xattr::{asked, mount_of, senseless, value};
use super::{Failure, report};
use clap::Args;
use outrider_core::client::op::query::{Link, Path};
use outrider_core::format::Ino;
use outrider_hosted::mount::path_xattr;
use rustix::io::Errno;
use serde_json::json;
use std::path::PathBuf;

/// Times that a path is looked for anew, because a directory on the way to it has gone meanwhile.
const TRIES: u32 = 10;

/// Print all paths of an inode, from the root of the volume.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    /// The number of the inode.
    ino: u64,
    /// A path in the mount.
    path: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let (at, ino) = (mount_of(&options.path)?, options.ino);
    let mut paths = Vec::new();
    let mut from = Some(Link::FIRST);
    while let Some(link) = from
        && let Some(bytes) = path_from(&at, Ino(ino), link)?
    {
        let path = Path::parse(&bytes).ok_or_else(|| senseless(&at))?;
        paths.push(path.bytes.to_vec());
        from = path.link.next();
    }
    if paths.is_empty() {
        let at = at.display();
        return Err(Failure::new(format!("no name in {at} leads to inode {ino}; it may be gone")));
    }
    if options.json {
        let shown: Vec<_> = paths.iter().map(|path| String::from_utf8_lossy(path)).collect();
        return report::show(&json!({ "ino": ino, "paths": shown }), true);
    }
    for mut path in paths {
        path.push(b'\n');
        report::put(&path)?;
    }
    Ok(())
}

/// The first path from this link on, if there is one.
fn path_from(at: &std::path::Path, ino: Ino, from: Link) -> Result<Option<Vec<u8>>, Failure> {
    let name = path_xattr(ino, from);
    for _ in 0..TRIES {
        match asked(at, &name) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::AGAIN) => {}
            Err(_) => return value(at, &name).map(Some),
        }
    }
    let at = at.display();
    let ino = ino.0;
    Err(Failure::new(format!("directories above inode {ino} in {at} go all the time; try again")))
}
