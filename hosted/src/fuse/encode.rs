//! From a reply to the bytes of an answer.
//!
//! # Invariants
//!
//! * The kernel may believe nothing for any time: every validity is 0.
//!
//! What this module deliberately doesn't know: which request is answered.

use super::decode::Form;
use super::wire::{self, AttrOut, DirentOut, EntryOut, GetattrOut, OpenOut};
use outrider_core::client::op::{Attr, EntryReader, Handle, ListEntry, Reply, Statfs, entry_bytes};
use outrider_core::format::BLOCK_BYTES;
use outrider_core::format::item::NAME_BYTES_MAX;
use zerocopy::IntoBytes;

/// Appends the answer's body. `lent` is what the operation left in the memory it was lent.
pub(super) fn encode(reply: &Reply, form: Form, lent: &[u8], body: &mut Vec<u8>) {
    match reply {
        Reply::Empty => {}
        Reply::Entry(attr) => body.extend(entry(attr).as_bytes()),
        Reply::Attr(attr) => {
            let out = GetattrOut { attr: attributes(attr), ..GetattrOut::default() };
            body.extend(out.as_bytes());
        }
        Reply::Opened(handle) => body.extend(opened(*handle, form).as_bytes()),
        Reply::Created(attr, handle) => {
            body.extend(entry(attr).as_bytes());
            body.extend(opened(*handle, form).as_bytes());
        }
        Reply::Bytes => match form {
            Form::Entries => EntryReader::new(lent).for_each(|entry| put_entry(&entry, body)),
            Form::Plain | Form::File => body.extend(lent),
        },
        Reply::Size(size) => {
            body.extend(wire::GetxattrOut { size: *size, padding: 0 }.as_bytes());
        }
        Reply::Count(size) => body.extend(wire::WriteOut { size: *size, padding: 0 }.as_bytes()),
        Reply::Offset(offset) => body.extend(wire::LseekOut { offset: *offset }.as_bytes()),
        Reply::Statfs(numbers) => body.extend(statfs(numbers).as_bytes()),
    }
}

fn attributes(attr: &Attr) -> AttrOut {
    AttrOut {
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.sectors,
        atime: attr.atime.sec,
        mtime: attr.mtime.sec,
        ctime: attr.ctime.sec,
        atimensec: attr.atime.nsec,
        mtimensec: attr.mtime.nsec,
        ctimensec: attr.ctime.nsec,
        mode: attr.kind.mode() | u32::from(attr.permissions),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    }
}

fn entry(attr: &Attr) -> EntryOut {
    EntryOut { nodeid: attr.ino.0, attr: attributes(attr), ..EntryOut::default() }
}

fn opened(handle: Handle, form: Form) -> OpenOut {
    let open_flags = match form {
        Form::File => wire::FOPEN_DIRECT_IO,
        Form::Plain | Form::Entries => 0,
    };
    OpenOut { fh: handle.0, open_flags, backing_id: 0 }
}

fn statfs(numbers: &Statfs) -> wire::StatfsOut {
    wire::StatfsOut {
        blocks: numbers.blocks,
        bfree: numbers.blocks_free,
        bavail: numbers.blocks_available,
        files: numbers.inodes,
        ffree: numbers.inodes_free,
        bsize: BLOCK_BYTES as u32,
        namelen: NAME_BYTES_MAX as u32,
        frsize: BLOCK_BYTES as u32,
        padding: 0,
        spare: [0; 6],
    }
}

fn put_entry(list_entry: &ListEntry<'_>, body: &mut Vec<u8>) {
    let start = body.len();
    if let Some(attr) = &list_entry.attr {
        body.extend(entry(attr).as_bytes());
    }
    let head = DirentOut {
        ino: list_entry.ino.0,
        off: list_entry.next,
        namelen: list_entry.name.len() as u32,
        kind: list_entry.kind.mode() >> 12,
    };
    body.extend(head.as_bytes());
    body.extend(list_entry.name);
    body.resize(start + entry_bytes(list_entry.name.len(), list_entry.attr.is_some()), 0);
}
