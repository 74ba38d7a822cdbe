//! Keys: golden vectors, order and neighbours.

extern crate std;

use super::*;
use proptest::prelude::*;
use std::string::{String, ToString};
use zerocopy::FromBytes;

fn keys() -> impl Strategy<Value = Key> {
    // Mostly extremes, so that carries run far.
    let byte = prop_oneof![Just(0u8), Just(1), Just(u8::MAX), any::<u8>()];
    let word = prop_oneof![Just(0u64), Just(1), Just(u64::MAX), any::<u64>()];
    (byte.clone(), word.clone(), byte.clone(), word.clone(), word, byte).prop_map(
        |(zone, first, kind, second, third, fourth)| Key {
            zone,
            first,
            kind,
            second,
            third,
            fourth,
        },
    )
}

/// The reference: one big-endian number of 27 bytes, incremented byte by byte.
fn increment(mut bytes: [u8; 27]) -> Option<[u8; 27]> {
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(bytes);
        }
    }
    None
}

fn bytes(key: Key) -> [u8; 27] {
    KeyBytes::from(key).as_bytes().try_into().unwrap()
}

proptest! {
    #[test]
    fn bytes_are_ordered_as_keys_are(a in keys(), b in keys()) {
        prop_assert_eq!(bytes(a).cmp(&bytes(b)), a.cmp(&b));
        prop_assert_eq!(KeyBytes::from(a).cmp(&b.into()), a.cmp(&b));
        prop_assert_eq!(Key::from(KeyBytes::from(a)), a);
    }

    #[test]
    fn next_counts_as_one_long_number(key in keys()) {
        prop_assert_eq!(key.next().map(bytes), increment(bytes(key)));
        prop_assert_eq!(key.next().and_then(Key::prev), (key != Key::MAX).then_some(key));
        prop_assert_eq!(key.prev().and_then(Key::next), (key != Key::MIN).then_some(key));
    }

    #[test]
    fn text_is_read_back(key in keys()) {
        prop_assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn no_text_upsets_the_parser(text in "[0-9.+-]{0,40}") {
        let parsed = text.parse::<Key>();
        prop_assert!(parsed.is_err() || text.split('.').count() == 6);
    }

    #[test]
    fn an_item_is_read_back_from_its_key(key in keys(), zone in 0u8..6, kind in 0u8..10) {
        for key in [key, Key { zone, kind, ..key }, Key { zone, kind, fourth: 0, ..key }] {
            if let Ok(item) = ItemKey::parse(&key) {
                prop_assert_eq!(item.key(), key);
            }
        }
    }

    #[test]
    fn ranges_agree_with_their_keys(a in keys(), b in keys(), c in keys(), d in keys()) {
        let (Some(left), Some(right)) = (KeyRange::new(a, b), KeyRange::new(c, d)) else {
            return Ok(());
        };
        for key in [a, b, c, d] {
            let both = left.contains(&key) && right.contains(&key);
            prop_assert_eq!(left.intersection(&right).is_some_and(|x| x.contains(&key)), both);
            prop_assert!(!both || left.overlaps(&right));
        }
        prop_assert_eq!(left.covers(&right), left.contains(&c) && left.contains(&d));
    }
}

#[test]
fn crooked_texts_are_refused() {
    assert_eq!("3.1.1.0.0.0".parse(), Ok(Key::inode(Ino(1))));
    for text in
        ["", "3", "3.1.1.0.0", "3.1.1.0.0.0.", "256.1.1.0.0.0", "3.+1.1.0.0.0", "3..1.0.0.0"]
    {
        assert_eq!(text.parse::<Key>(), Err(KeySyntax), "{text}");
    }
}

#[test]
fn keys_that_name_nothing_are_refused() {
    let wrong = [
        (Key::MIN, Corruption::Value),
        (Key::MAX, Corruption::Value),
        (Key::RENAME, Corruption::Value),
        (Key::private(ClientId(3)), Corruption::Value),
        (Key::inode(Ino(0)), Corruption::Value),
        (Key::readdir(Ino(1), 1), Corruption::Value),
        (Key::readdir(Ino(1), u64::MAX), Corruption::Value),
        (Key::dirent(Ino(1), 5, 0), Corruption::Value),
        (Key::xattr(Ino(1), 5, 0, 129), Corruption::Value),
        (Key::symlink(Ino(1), 8), Corruption::Value),
        (Key::extent(Ino(1), FileBlock(1 << 51)), Corruption::Value),
        (Key { kind: 8, ..Key::inode(Ino(1)) }, Corruption::Value),
        (Key { third: 1, ..Key::inode(Ino(1)) }, Corruption::Reserved),
        (Key { fourth: 1, ..Key::orphan(Ino(1)) }, Corruption::Reserved),
        (Key { first: 1, ..Key::meta_seq(Seq(1), Ino(1)) }, Corruption::Reserved),
    ];
    for (key, what) in wrong {
        assert_eq!(ItemKey::parse(&key), Err(what), "{key}");
    }
}

#[test]
fn golden() {
    let secret = NameSecret(core::array::from_fn(|index| index as u8));
    let items = [
        ("meta_seq", Key::meta_seq(Seq(0x0102), Ino(0x0304))),
        ("data_seq", Key::data_seq(Seq(0x0102), Ino(0x0304))),
        ("orphan", Key::orphan(Ino(0x0304))),
        ("inode", Key::inode(Ino(1))),
        ("xattr", Key::xattr(Ino(1), name_hash(&secret, b"user.test"), 7, 128)),
        ("dirent", Key::dirent(Ino(1), name_hash(&secret, b"hello"), 2)),
        ("readdir", Key::readdir(Ino(1), 2)),
        ("backref", Key::backref(Ino(0x0304), Ino(1), 2)),
        ("symlink", Key::symlink(Ino(0x0304), 7)),
        ("extent", Key::extent(Ino(0x0304), FileBlock::MAX)),
        ("private", Key::private(ClientId(9))),
        ("rename", Key::RENAME),
    ];
    let mut text = String::new();
    for (name, key) in items {
        let hex: String = bytes(key).iter().map(|byte| std::format!("{byte:02x}")).collect();
        text += &std::format!("{name} {hex} {key}\n");
        let read = KeyBytes::read_from_bytes(&bytes(key)).unwrap();
        assert_eq!(Key::from(read), key);
        if name != "private" && name != "rename" {
            assert_eq!(ItemKey::parse(&key).unwrap().key(), key);
        }
    }
    assert_eq!(text, include_str!("golden.txt"));
}

/// First vectors of the reference implementation's table (key 00..0f, message 00..).
#[test]
fn name_hash_is_siphash_2_4() {
    let secret = NameSecret(core::array::from_fn(|index| index as u8));
    assert_eq!(name_hash(&secret, &[]), 0x726f_db47_dd0e_0e31);
    assert_eq!(name_hash(&secret, &[0]), 0x74f8_39c5_93dc_67fd);
    assert_eq!(
        name_hash(&secret, &core::array::from_fn::<u8, 15, _>(|index| index as u8)),
        0xa129_ca61_49be_45e5
    );
}
