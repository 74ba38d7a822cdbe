//! Asking a mount: what it tells are extended attributes that no file has.
//!
//! What this module deliberately doesn't know: what the names and values mean.

use super::Failure;
use super::device::system;
use outrider_core::client::op::query::QUERY_BYTES_MAX;
use outrider_hosted::mounts::mounts;
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// The root of the mount that this path is in.
pub(crate) fn mount_of(path: &Path) -> Result<PathBuf, Failure> {
    let absolute = path.canonicalize().map_err(|error| system(path, "look at", &error))?;
    let table = mounts().map_err(|error| system(path, "find the mount of", &error))?;
    let over = table.into_iter().filter(|mount| absolute.starts_with(&mount.path));
    // The last of those with the longest path lies over the others.
    let over = over.max_by_key(|mount| mount.path.components().count());
    match over.filter(|mount| mount.kind == "fuse.outrider") {
        Some(mount) => Ok(mount.path),
        None => Err(foreign(path)),
    }
}

/// The value of an attribute of this path itself, a symlink included.
pub(crate) fn value(path: &Path, name: &str) -> Result<Vec<u8>, Failure> {
    asked(path, name).map_err(|error| match error {
        Errno::OPNOTSUPP | Errno::NODATA if !rustix::process::geteuid().is_root() => refused(path),
        Errno::OPNOTSUPP | Errno::NODATA => foreign(path),
        Errno::PERM => refused(path),
        error => system(path, "ask about", &error.into()),
    })
}

/// The same, with the error as it is.
pub(crate) fn asked(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; QUERY_BYTES_MAX];
    let len = rustix::fs::lgetxattr(path, name, &mut bytes[..])?;
    bytes.truncate(len);
    Ok(bytes)
}

/// The value of an attribute that is a text.
pub(crate) fn text(path: &Path, name: &str) -> Result<String, Failure> {
    String::from_utf8(value(path, name)?).map_err(|_| senseless(path))
}

/// The mount says something that isn't understood.
pub(crate) fn senseless(path: &Path) -> Failure {
    let path = path.display();
    Failure::new(format!("the mount of {path} answers in a way that this program doesn't know"))
}

fn refused(path: &Path) -> Failure {
    Failure::new(format!(
        "the mount of {} tells that to user 0 only; run it as root",
        path.display()
    ))
}

fn foreign(path: &Path) -> Failure {
    let path = path.display();
    Failure::new(format!("{path} is not in a mounted Outrider volume; name a path in its mount"))
}
