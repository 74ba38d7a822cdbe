//! The table of mounts of this process.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// `major:minor` of what is mounted.
    pub device: String,
    /// Where it is mounted.
    pub path: PathBuf,
    /// The file system's type, with its subtype.
    pub kind: String,
    /// What is mounted: for Outrider its device.
    pub source: OsString,
}

/// All mounts, those on top after those they cover.
///
/// # Errors
///
/// If the table can't be read.
pub fn mounts() -> io::Result<Vec<Mounted>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// See proc_pid_mountinfo(5).
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let path = PathBuf::from(unescape(fields.nth(1)?));
    // Any number of optional fields end with a dash.
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mounted { device, path, kind, source: unescape(fields.next()?) })
}

/// Blanks, tabs, newlines and backslashes stand as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(digits.unwrap_or(*first));
        rest = if digits.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(OsStr::from_bytes(&bytes).as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::{mounts, parse};
    use std::path::Path;

    #[test]
    fn the_table_is_read() {
        assert!(mounts().unwrap().iter().any(|mount| mount.path == Path::new("/proc")));
        let line = br"36 35 0:52 / /mnt/a\040b rw,nosuid shared:1 - fuse.outrider /dev/x\134y rw";
        let mount = parse(line).unwrap();
        assert_eq!((mount.device.as_str(), &*mount.path), ("0:52", Path::new("/mnt/a b")));
        assert_eq!(
            (mount.kind.as_str(), mount.source.to_str()),
            ("fuse.outrider", Some(r"/dev/x\y"))
        );
        assert_eq!(parse(b""), None);
    }
}
