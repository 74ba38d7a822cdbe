//! The one region of memory a node lives in, bought at start and kept until the process ends.
//!
//! Most of what a node does is to look things up here and there in a large region, so the system is
//! asked for huge pages: with small ones it spends its time finding out where they are.

use memmap2::{Advice, MmapMut};
use outrider_core::arena::{REGION_ALIGN, lend};
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;

/// Pages are aligned at least like this.
const PAGE_ALIGN: usize = 4096;
/// A huge page has that many bytes, and begins at a multiple of them.
const HUGE_PAGE: usize = 2 << 20;

/// Buys a region of this many bytes, aligned as an arena wants it.
///
/// # Errors
///
/// If there is not that much memory.
pub fn region(bytes: usize) -> io::Result<&'static mut [MaybeUninit<u8>]> {
    const { assert!(REGION_ALIGN <= PAGE_ALIGN) };
    // The system aligns what is made of whole huge pages.
    let whole = bytes.max(1).checked_next_multiple_of(HUGE_PAGE).ok_or(ErrorKind::OutOfMemory)?;
    let map = MmapMut::map_anon(whole)?;
    // Where there are none it is only slower.
    let _ = map.advise(Advice::HugePage);
    let map = Box::leak(Box::new(map));
    Ok(&mut lend(map)[..bytes])
}
