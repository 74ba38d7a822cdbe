//! The checksum against the RFC's check values and against the crate `crc32c`.

use proptest::prelude::*;

#[test]
fn check_values_of_the_rfc() {
    assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(super::crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(super::crc32c(&[0xff; 32]), 0x62a8_ab43);
}

proptest! {
    #[test]
    fn agrees_with_the_oracle(
        bytes in proptest::collection::vec(any::<u8>(), 0..9000),
        skip in 0usize..64,
    ) {
        let bytes = &bytes[skip.min(bytes.len())..];
        let expected = crc32c::crc32c(bytes);
        prop_assert_eq!(super::crc32c(bytes), expected);
        prop_assert_eq!(!super::update_table(!0, bytes), expected);
    }

    #[test]
    fn can_be_computed_in_parts(
        bytes in proptest::collection::vec(any::<u8>(), 0..9000),
        cut in 0usize..9000,
        seed: u32,
    ) {
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(
            !super::update(super::update(!seed, head), tail),
            super::crc32c_seeded(seed, &bytes)
        );
    }

    #[test]
    fn seed_changes_the_sum(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        seed in 1u32..,
    ) {
        prop_assert_ne!(super::crc32c_seeded(seed, &bytes), super::crc32c(&bytes));
    }
}
