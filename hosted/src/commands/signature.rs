//! What a device holds, before mkfs writes over it.
//!
//! # Invariants
//!
//! * Whatever isn't zero in the first MiB counts, whether it has a name here or not.
//!
//! What this module deliberately doesn't know: any format beyond its magic number. The places are
//! those of the formats' own documents, and of blkid.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where a format has its magic number.
struct Magic {
    name: &'static str,
    offset: usize,
    bytes: &'static [u8],
}

const fn magic(name: &'static str, offset: usize, bytes: &'static [u8]) -> Magic {
    Magic { name, offset, bytes }
}

const MAGICS: &[Magic] = &[
    magic("an Outrider volume", 0x10020, b"Outrider volume\n"),
    magic("an ext2, ext3 or ext4 file system", 0x438, &[0x53, 0xef]),
    magic("an XFS file system", 0, b"XFSB"),
    magic("a btrfs file system", 0x10040, b"_BHRfS_M"),
    magic("an F2FS file system", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    magic("a GFS2 file system", 0x10000, &[0x01, 0x16, 0x19, 0x70]),
    magic("an OCFS2 file system", 0x1000, b"OCFSV2"),
    magic("an OCFS2 file system", 0x2000, b"OCFSV2"),
    magic("a bcachefs or bcache device", 0x1018, &[0xc6, 0x85, 0x73, 0xf6]),
    magic("swap space", 4096 - 10, b"SWAPSPACE2"),
    magic("swap space", 4096 - 10, b"SWAP-SPACE"),
    magic("an LVM physical volume", 0, b"LABELONE"),
    magic("an LVM physical volume", 512, b"LABELONE"),
    magic("an LVM physical volume", 1024, b"LABELONE"),
    magic("an LVM physical volume", 1536, b"LABELONE"),
    magic("a LUKS volume", 0, b"LUKS\xba\xbe"),
    magic("a RAID member", 0x1000, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("a RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("an NTFS file system", 3, b"NTFS    "),
    magic("an ISO 9660 file system", 0x8001, b"CD001"),
    magic("a GPT partition table", 512, b"EFI PART"),
    magic("a GPT partition table", 4096, b"EFI PART"),
    magic("an MBR partition table or boot sector", 510, &[0x55, 0xaa]),
];

/// Bytes at the start that must be zero.
const START_BYTES: u64 = 1 << 20;
/// Bytes at the end that are looked at: copies of partition tables and super blocks.
const END_BYTES: u64 = 4096;
const END_MAGICS: &[Magic] = &[
    magic("an Outrider volume", 32, b"Outrider volume\n"),
    magic("a GPT partition table", 4096 - 512, b"EFI PART"),
];

fn named(magics: &[Magic], bytes: &[u8]) -> Option<&'static str> {
    let stands = |magic: &&Magic| {
        bytes.get(magic.offset..).is_some_and(|rest| rest.starts_with(magic.bytes))
    };
    magics.iter().find(stands).map(|magic| magic.name)
}

/// What stands on a device of `size` bytes, if anything.
pub(crate) fn find(file: &File, size: u64) -> io::Result<Option<&'static str>> {
    let mut start = vec![0; START_BYTES.min(size) as usize];
    file.read_exact_at(&mut start, 0)?;
    if let Some(name) = named(MAGICS, &start) {
        return Ok(Some(name));
    }
    if start.iter().any(|byte| *byte != 0) {
        return Ok(Some("data (its first MiB is not zero)"));
    }
    let Some(end_at) = (size / END_BYTES).checked_sub(1) else { return Ok(None) };
    let mut end = vec![0; END_BYTES as usize];
    file.read_exact_at(&mut end, end_at * END_BYTES)?;
    Ok(named(END_MAGICS, &end))
}

#[cfg(test)]
mod tests {
    use super::{END_MAGICS, MAGICS, find};
    use std::os::unix::fs::FileExt;

    const SIZE: u64 = 4 << 20;

    fn found(at: u64, bytes: &[u8]) -> Option<&'static str> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(bytes, at).unwrap();
        find(&file, SIZE).unwrap()
    }

    #[test]
    fn every_magic_is_seen_where_it_stands() {
        for magic in MAGICS {
            assert_eq!(found(magic.offset as u64, magic.bytes), Some(magic.name));
        }
        for magic in END_MAGICS {
            let at = SIZE - 4096 + magic.offset as u64;
            assert_eq!(found(at, magic.bytes), Some(magic.name));
        }
    }

    #[test]
    fn anything_in_the_first_mib_counts_and_what_lies_behind_does_not() {
        assert!(found((1 << 20) - 1, b"x").unwrap().starts_with("data"));
        assert_eq!(found(1 << 20, b"x"), None);
        assert_eq!(found(0, &[0; 16]), None);
        let tiny = tempfile::tempfile().unwrap();
        assert_eq!(find(&tiny, 0).unwrap(), None);
    }
}
