//! Item keys as numbers: 27 bytes, big-endian, compared as bytes.
//!
//! What this module deliberately doesn't know: the fields of a key.

/// Bytes of an item's key.
pub const KEY_BYTES: usize = 27;

/// An item's key. Its order is the order of its bytes.
pub type Key = [u8; KEY_BYTES];

/// The lowest key.
pub const FIRST: Key = [0; KEY_BYTES];

/// The highest key.
pub const LAST: Key = [0xff; KEY_BYTES];

/// The key after this one; none after the highest.
#[must_use]
pub fn successor(key: &Key) -> Option<Key> {
    let mut next = *key;
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

/// The key before this one; none before the lowest.
#[must_use]
pub fn predecessor(key: &Key) -> Option<Key> {
    let mut before = *key;
    for byte in before.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            return Some(before);
        }
    }
    None
}
