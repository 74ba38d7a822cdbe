//! Values of items: golden vectors, and what is refused.

extern crate std;

use super::*;
use crate::format::key::Key;
use proptest::prelude::*;
use std::string::{String, ToString};
use std::vec::Vec;

fn times() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(sec, nsec)| Time { sec, nsec })
}

fn inodes() -> impl Strategy<Value = Inode> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let ids = (0u16..1 << 12, any::<bool>(), 0..=LINKS_MAX, any::<u32>(), any::<u32>());
    let times = (times(), times(), times(), times());
    (0u8..7, numbers, ids, times).prop_map(|(kind, numbers, ids, times)| {
        let kind = FileKind::parse(kind).unwrap();
        let regular = kind == FileKind::Regular;
        let blocks = if regular { numbers.1 >> 13 } else { 0 };
        Inode {
            kind,
            permissions: ids.0,
            truncating: ids.1,
            size: match kind {
                FileKind::Symlink => numbers.0 % SYMLINK_BYTES_MAX + 1,
                _ => numbers.0 >> 1,
            },
            meta_seq: Seq(numbers.2),
            data_seq: Seq(numbers.3),
            data_version: numbers.4,
            online_blocks: blocks,
            offline_blocks: blocks / 3,
            next_readdir_pos: if kind == FileKind::Directory { numbers.1.max(2) } else { 0 },
            next_xattr_id: numbers.4,
            nlink: ids.2,
            uid: ids.3,
            gid: ids.4,
            rdev: if kind.is_device() { ids.3 } else { 0 },
            atime: times.0,
            ctime: times.1,
            mtime: times.2,
            crtime: times.3,
        }
    })
}

fn extents() -> impl Strategy<Value = FileExtent> {
    (0..=FileBlock::MAX.0, 1u64..1 << 40, 1u64..1 << 40, 0u8..4).prop_map(
        |(last, len, at, kind)| {
            let at = BlockNo(at);
            FileExtent {
                last: FileBlock(last),
                len: len.min(last + 1),
                mapping: match kind {
                    0 => Mapping::Data(at),
                    1 => Mapping::Reserved(at),
                    2 => Mapping::Offline,
                    _ => Mapping::OfflineReserved(at),
                },
            }
        },
    )
}

fn name_bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'x'), any::<u8>()], 0..300)
}

proptest! {
    #[test]
    fn inodes_are_read_back(inode in inodes()) {
        prop_assert_eq!(Inode::parse(inode.emit().as_bytes()), Ok(inode));
        prop_assert_eq!(FileKind::of_mode(inode.mode()), Some(inode.kind));
    }

    #[test]
    fn extents_are_read_back(extent in extents()) {
        prop_assert_eq!(FileExtent::parse(extent.last, extent.emit().as_bytes()), Ok(extent));
        prop_assert_eq!(extent.first().0 + extent.len - 1, extent.last.0);
    }

    /// Whatever the bytes are: refused, or meant exactly as they stand.
    #[test]
    fn nothing_is_accepted_that_would_not_be_written(
        inode in inodes(), at in 0usize..144, byte: u8,
        last: u64, extent: [u8; 17],
        dirent in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = inode.emit();
        bytes.as_mut_bytes()[at] = byte;
        if let Ok(inode) = Inode::parse(bytes.as_bytes()) {
            prop_assert_eq!(inode.emit(), bytes);
        }
        if let Ok(read) = FileExtent::parse(FileBlock(last), &extent) {
            let bytes = read.emit();
            prop_assert_eq!(bytes.as_bytes(), &extent);
        }
        if let Ok(read) = Dirent::parse(&dirent) {
            let mut buf = [0; VALUE_BYTES_MAX];
            prop_assert_eq!(read.emit(&mut buf), &dirent);
        }
    }

    #[test]
    fn names_are_what_posix_allows(bytes in name_bytes()) {
        let good = (1..=255).contains(&bytes.len())
            && !bytes.contains(&0) && !bytes.contains(&b'/')
            && bytes != b"." && bytes != b"..";
        prop_assert_eq!(Name::parse(&bytes).is_ok(), good);
    }

    #[test]
    fn dirents_are_read_back(
        ino in 1u64.., hash: u64, pos in 2..u64::MAX, kind in 0u8..7, name in name_bytes(),
    ) {
        let Ok(name) = Name::parse(&name) else { return Ok(()) };
        let kind = FileKind::parse(kind).unwrap();
        let dirent = Dirent { ino: Ino(ino), hash, pos, kind, name };
        let mut buf = [0; VALUE_BYTES_MAX];
        let value = dirent.emit(&mut buf);
        prop_assert_eq!(Dirent::parse(value), Ok(dirent));
        for key in [
            Key::dirent(Ino(1), hash, pos),
            Key::readdir(Ino(1), pos),
            Key::backref(Ino(ino), Ino(1), pos),
        ] {
            prop_assert!(dirent.agrees(&ItemKey::parse(&key).unwrap()));
        }
        let other = ItemKey::parse(&Key::dirent(Ino(1), !hash, pos)).unwrap();
        prop_assert!(!dirent.agrees(&other));
    }

    #[test]
    fn xattrs_are_read_back(
        name in proptest::collection::vec(1u8.., 1..=255),
        value in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..1600),
            Just(std::vec![7; XATTR_BYTES_MAX]),
        ],
    ) {
        let name = XattrName::parse(&name).unwrap();
        let xattr = Xattr::new(name, &value).unwrap();
        let mut buf = [0; VALUE_BYTES_MAX];
        let mut first = [0; VALUE_BYTES_MAX];
        let head = XattrHead::parse(xattr.emit(0, &mut first)).unwrap();
        prop_assert_eq!((head.name, head.parts()), (name, xattr.parts()));
        let mut read = head.start.to_vec();
        for part in 1..head.parts() {
            let bytes = xattr.emit(part, &mut buf);
            prop_assert!(!bytes.is_empty());
            prop_assert_eq!(head.parse_part(part - 1, bytes).is_ok(), part > 1
                && bytes.len() == VALUE_BYTES_MAX);
            read.extend(head.parse_part(part, bytes).unwrap());
        }
        prop_assert!(xattr.emit(xattr.parts(), &mut buf).is_empty());
        prop_assert_eq!(read, value);
    }

    #[test]
    fn symlinks_are_read_back(target in proptest::collection::vec(1u8.., 1..=4095)) {
        let len = target.len() as u64;
        let mut read: Vec<u8> = Vec::new();
        for part in 0..symlink_parts(len) {
            let bytes = symlink_part(&target, part);
            read.extend(parse_symlink_part(bytes, part, len).unwrap());
        }
        prop_assert!(symlink_part(&target, symlink_parts(len)).is_empty());
        prop_assert_eq!(read, target);
    }
}

fn sample() -> Inode {
    let time = Time { sec: -1, nsec: 999_999_999 };
    Inode {
        kind: FileKind::Regular,
        permissions: 0o644,
        truncating: true,
        size: 0x0102_0304,
        meta_seq: Seq(5),
        data_seq: Seq(6),
        data_version: 7,
        online_blocks: 8,
        offline_blocks: 9,
        next_readdir_pos: 0,
        next_xattr_id: 10,
        nlink: 2,
        uid: 1000,
        gid: 1001,
        rdev: 0,
        atime: time,
        ctime: Time { sec: 1 << 33, nsec: 1 },
        mtime: Time { sec: 12, nsec: 0 },
        crtime: Time::default(),
    }
}

#[test]
fn every_broken_value_has_its_name() {
    let inode = |change: fn(&mut InodeRecord)| {
        let mut record = sample().emit();
        change(&mut record);
        Inode::parse(record.as_bytes())
    };
    assert_eq!(inode(|record| record.version = 2.into()), Err(Corruption::Value));
    assert_eq!(inode(|record| record.flags = 2.into()), Err(Corruption::Value));
    assert_eq!(inode(|record| record.reserved_2[3] = 1), Err(Corruption::Reserved));
    assert_eq!(inode(|record| record.mode = 0o644.into()), Err(Corruption::Value));
    assert_eq!(inode(|record| record.mode = (1 << 16 | 0o100_644).into()), Err(Corruption::Value));
    assert_eq!(inode(|record| record.size = (1 << 63).into()), Err(Corruption::Value));
    assert_eq!(inode(|record| record.rdev = 1.into()), Err(Corruption::Value));
    assert_eq!(inode(|record| record.nlink = (1 << 31).into()), Err(Corruption::Value));
    assert_eq!(inode(|record| record.mtime.nsec = 1_000_000_000.into()), Err(Corruption::Value));
    assert_eq!(Inode::parse(&sample().emit().as_bytes()[1..]), Err(Corruption::Bounds));

    let extent = |last, map: u64, len: u64, flags| {
        let record = ExtentRecord { map: map.into(), len: len.into(), flags };
        FileExtent::parse(FileBlock(last), record.as_bytes()).err()
    };
    assert_eq!(extent(9, 1, 10, 0), None);
    assert_eq!(extent(9, 1, 11, 0), Some(Corruption::Bounds));
    assert_eq!(extent(9, 1, 0, 0), Some(Corruption::Bounds));
    assert_eq!(extent(9, u64::MAX, 10, 0), Some(Corruption::Bounds));
    assert_eq!(extent(1 << 51, 1, 1, 0), Some(Corruption::Bounds));
    assert_eq!(extent(9, 0, 1, 0), Some(Corruption::Value));
    assert_eq!(extent(9, 0, 1, EXTENT_UNWRITTEN), Some(Corruption::Value));
    assert_eq!(extent(9, 1, 1, EXTENT_OFFLINE), Some(Corruption::Value));
    assert_eq!(extent(9, 1, 1, 4), Some(Corruption::Value));

    assert_eq!(parse_symlink_part(b"a\0", 0, 2), Err(Corruption::Value));
    assert_eq!(parse_symlink_part(b"a", 0, 2), Err(Corruption::Bounds));
    assert_eq!(parse_symlink_part(b"a", 1, 1), Err(Corruption::Bounds));
    assert_eq!(XattrHead::parse(&[1, 0, 0]), Err(Corruption::Bounds));
    assert_eq!(XattrHead::parse(&[0, 0, 0]), Err(Corruption::Bounds));
    assert_eq!(XattrHead::parse(&[1, 0, 0, 0]), Err(Corruption::Value));
    assert_eq!(XattrHead::parse(b"\x01\x00\x00ab"), Err(Corruption::Bounds));
    assert_eq!(parse_empty(&[0]), Err(Corruption::Bounds));
}

#[test]
fn an_xattr_can_fill_all_its_parts() {
    let name = [b'n'; NAME_BYTES_MAX];
    let value = [0; XATTR_BYTES_MAX];
    let xattr = Xattr::new(XattrName::parse(&name).unwrap(), &value).unwrap();
    assert_eq!(xattr.parts(), crate::format::key::XATTR_PARTS_MAX);
    assert_eq!(symlink_parts(SYMLINK_BYTES_MAX), SYMLINK_PARTS_MAX);
}

#[test]
fn golden() {
    let dirent = Dirent {
        ino: Ino(0x0304),
        hash: 0x0102_0304_0506_0708,
        pos: 2,
        kind: FileKind::Directory,
        name: Name::parse(b"hello").unwrap(),
    };
    let xattr = Xattr::new(XattrName::parse(b"user.test").unwrap(), &[0x11; 501]).unwrap();
    let extent = FileExtent { last: FileBlock(9), len: 10, mapping: Mapping::Data(BlockNo(77)) };
    let offline = FileExtent { mapping: Mapping::Offline, ..extent };
    let staged = FileExtent { mapping: Mapping::OfflineReserved(BlockNo(77)), ..extent };
    let (inode, extents) = (sample().emit(), [extent.emit(), offline.emit(), staged.emit()]);
    let mut bufs = [[0; VALUE_BYTES_MAX]; 3];
    let [first, second, third] = &mut bufs;
    let values: [(&str, &[u8]); 8] = [
        ("inode", inode.as_bytes()),
        ("dirent", dirent.emit(first)),
        ("xattr-0", xattr.emit(0, second)),
        ("xattr-1", xattr.emit(1, third)),
        ("symlink-0", symlink_part(b"../target", 0)),
        ("extent", extents[0].as_bytes()),
        ("extent-offline", extents[1].as_bytes()),
        ("extent-offline-reserved", extents[2].as_bytes()),
    ];
    let mut text = String::new();
    for (name, value) in values {
        let hex: String = value.iter().map(|byte| std::format!("{byte:02x}")).collect();
        text += &std::format!("{name} {hex}\n");
    }
    let golden = include_str!("golden.txt");
    assert_eq!(text, golden);

    // And the other way, from the file's bytes alone.
    let read = |name: &str| -> Vec<u8> {
        let prefix = name.to_string() + " ";
        let hex = golden.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
        let digits: Vec<u32> = hex.chars().map(|digit| digit.to_digit(16).unwrap()).collect();
        digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
    };
    assert_eq!(Inode::parse(&read("inode")), Ok(sample()));
    assert_eq!(Dirent::parse(&read("dirent")), Ok(dirent));
    assert_eq!(FileExtent::parse(FileBlock(9), &read("extent")), Ok(extent));
    assert_eq!(FileExtent::parse(FileBlock(9), &read("extent-offline")), Ok(offline));
    assert_eq!(FileExtent::parse(FileBlock(9), &read("extent-offline-reserved")), Ok(staged));
    let part = read("xattr-0");
    let head = XattrHead::parse(&part).unwrap();
    assert_eq!((head.name.bytes(), head.value_len), (&b"user.test"[..], 501));
    assert_eq!(head.parse_part(1, &read("xattr-1")).unwrap().len() + head.start.len(), 501);
    assert_eq!(parse_symlink_part(&read("symlink-0"), 0, 9), Ok(&b"../target"[..]));
}
