//! The one region of memory a node lives in, bought at start and kept until the process ends.

use outrider_core::arena::REGION_ALIGN;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;

/// Buys a region of this many bytes, aligned as an arena wants it.
///
/// # Errors
///
/// If there is not that much memory.
pub fn region(bytes: usize) -> io::Result<&'static mut [MaybeUninit<u8>]> {
    let mut region: Vec<MaybeUninit<u8>> = Vec::new();
    let all = bytes.checked_add(REGION_ALIGN).ok_or(ErrorKind::OutOfMemory)?;
    region.try_reserve_exact(all).map_err(|_| ErrorKind::OutOfMemory)?;
    region.resize(all, MaybeUninit::uninit());
    let region = Vec::leak(region);
    let pad = region.as_ptr().align_offset(REGION_ALIGN);
    Ok(&mut region[pad..][..bytes])
}
