//! Requests, replies and the packing of directory entries.

use super::*;
use proptest::prelude::*;
extern crate std;
use std::vec::Vec as StdVec;

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0..1_000_000_000u32).prop_map(|(sec, nsec)| Time { sec, nsec })
}

fn kind() -> impl Strategy<Value = FileKind> {
    (0..7u8).prop_map(|number| FileKind::parse(number).unwrap())
}

prop_compose! {
    fn attr()(
        numbers in any::<(u64, u64, u64)>(),
        words in any::<(u32, u32, u32, u32)>(),
        permissions in 0..0o10000u16,
        kind in kind(),
        times in (time(), time(), time(), time()),
    ) -> Attr {
        Attr {
            ino: Ino(numbers.0),
            kind,
            permissions,
            nlink: words.0,
            uid: words.1,
            gid: words.2,
            rdev: words.3,
            size: numbers.1,
            sectors: numbers.2,
            atime: times.0,
            mtime: times.1,
            ctime: times.2,
            crtime: times.3,
        }
    }
}

proptest! {
    #[test]
    fn entries_are_read_as_they_were_written(
        plus in any::<bool>(),
        entries in prop::collection::vec(
            (attr(), any::<u64>(), prop::collection::vec(any::<u8>(), 1..=255)), 0..20),
        bytes in 0..6000usize,
    ) {
        let mut buf = std::vec![0xa5; bytes];
        let entries: StdVec<ListEntry<'_>> = entries.iter().map(|(attr, next, name)| ListEntry {
            ino: attr.ino,
            kind: attr.kind,
            next: *next,
            name,
            attr: plus.then_some(*attr),
        }).collect();
        let mut writer = EntryWriter::new(&mut buf);
        let written = entries.iter().take_while(|entry| writer.push(entry)).count();
        let len = writer.len();
        let expected: usize =
            entries[..written].iter().map(|entry| entry_bytes(entry.name.len(), plus)).sum();
        prop_assert_eq!(len, expected);
        if let Some(next) = entries.get(written) {
            prop_assert!(len + entry_bytes(next.name.len(), plus) > bytes);
        }
        let read: StdVec<ListEntry<'_>> = EntryReader::new(&buf[..len]).collect();
        prop_assert_eq!(&read, &entries[..written]);
    }

    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(EntryReader::new(&bytes).count() <= bytes.len());
    }
}

#[test]
fn groups_are_asked_once_and_forgotten_oldest_first() {
    let mut caller = Caller::new(1000, 100, 1);
    assert_eq!(caller.is_member(100), Some(true));
    assert_eq!(caller.is_member(5), None);
    for gid in 0..=MEMBERS_MAX as u32 {
        caller.groups.tell(gid, gid % 2 == 0);
    }
    assert_eq!(caller.is_member(0), None);
    assert_eq!(caller.is_member(1), Some(false));
    assert_eq!(caller.is_member(6), Some(true));
    caller.groups.tell(1, true);
    assert_eq!(caller.is_member(1), Some(true));
}

#[test]
fn names_are_bounded_and_keep_their_bytes() {
    assert_eq!(NameBuf::parse(&[b'a'; 255]).unwrap().name().bytes(), [b'a'; 255]);
    assert_eq!(NameBuf::parse(&[b'a'; 256]).map_err(OpError::from), Err(OpError::NameTooLong));
    assert_eq!(NameBuf::parse(b"..").map_err(OpError::from), Err(OpError::Invalid));
    assert_eq!(XattrNameBuf::parse(b"user./").unwrap().bytes(), b"user./");
}

#[test]
fn an_extent_counts_the_blocks_it_touches() {
    let blocks = |at, len| Extent { at, len, place: Place::Hole }.blocks();
    assert_eq!(blocks(0, 4096), 1);
    assert_eq!(blocks(1, 4096), 2);
    assert_eq!(blocks(4095, 1), 1);
    assert_eq!(blocks(4095, 4098), 3);
}

#[test]
fn requests_stay_small() {
    assert!(size_of::<Op>() <= 560, "{}", size_of::<Op>());
    assert!(size_of::<Answer<&mut [u8]>>() <= 560, "{}", size_of::<Answer<&mut [u8]>>());
}
