//! The one region of memory a node lives in, carved once at start into typed pools.
//!
//! Every component has a `carve` function that takes its pools from an [`Arena`]. The same
//! functions run over a *measuring* arena answer how many bytes that takes, so the formula that is
//! printed and the memory that is used are the same code.
//!
//! # Invariants
//!
//! * Two carved slices never overlap, and each is aligned for its type.
//! * A measuring arena hands out empty slices and counts; what it counted is exactly what carving a
//!   region aligned to [`REGION_ALIGN`] uses.
//! * Nothing carved is ever dropped: pools hold plain data, or are reset in place.
#![allow(unsafe_code)]

use core::mem::{MaybeUninit, align_of, size_of, take};

/// Alignment a region must have for its measure to be exact: that of a block.
pub const REGION_ALIGN: usize = align_of::<outrider_hal::Block>();

/// A region being carved, or measured.
pub struct Arena<'m> {
    rest: &'m mut [MaybeUninit<u8>],
    bytes_used: usize,
    measuring: bool,
}

/// The region is too small for what the limits ask for, or not aligned to [`REGION_ALIGN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaFull;

/// Lends memory for ever to be carved: what is in it counts for nothing.
#[must_use]
pub fn lend(memory: &'static mut [u8]) -> &'static mut [MaybeUninit<u8>] {
    let lent = core::ptr::from_mut(memory) as *mut [MaybeUninit<u8>];
    // SAFETY: a `MaybeUninit<u8>` has the layout of a `u8`. Where bytes become uninitialised nobody
    // meets them as `u8`: the borrow that is given away here lasts for ever.
    unsafe { &mut *lent }
}

impl<'m> Arena<'m> {
    /// An arena that carves this region, which must be aligned to [`REGION_ALIGN`].
    pub fn new(region: &'m mut [MaybeUninit<u8>]) -> Result<Arena<'m>, ArenaFull> {
        if !region.as_ptr().addr().is_multiple_of(REGION_ALIGN) {
            return Err(ArenaFull);
        }
        Ok(Arena { rest: region, bytes_used: 0, measuring: false })
    }

    /// An arena without memory that only counts.
    #[must_use]
    pub fn measuring() -> Arena<'static> {
        Arena { rest: &mut [], bytes_used: 0, measuring: true }
    }

    /// Bytes carved, or counted, so far, with the padding between pools.
    #[must_use]
    pub fn bytes_used(&self) -> usize {
        self.bytes_used
    }

    /// Whether this arena only counts: its slices are empty whatever their length.
    #[must_use]
    pub fn is_measuring(&self) -> bool {
        self.measuring
    }

    /// Carves `len` values, each made in place by `init` from its index.
    pub fn slice<T>(
        &mut self,
        len: u32,
        mut init: impl FnMut(u32) -> T,
    ) -> Result<&'m mut [T], ArenaFull> {
        const { assert!(align_of::<T>() <= REGION_ALIGN) };
        let pad = self.bytes_used.next_multiple_of(align_of::<T>()) - self.bytes_used;
        let bytes = size_of::<T>().checked_mul(len as usize).ok_or(ArenaFull)?;
        let want = pad.checked_add(bytes).ok_or(ArenaFull)?;
        if self.measuring {
            self.bytes_used = self.bytes_used.checked_add(want).ok_or(ArenaFull)?;
            return Ok(&mut []);
        }
        let rest = take(&mut self.rest);
        if rest.len() < want {
            self.rest = rest;
            return Err(ArenaFull);
        }
        let (head, tail) = rest.split_at_mut(want);
        self.rest = tail;
        self.bytes_used += want;
        let items = head[pad..].as_mut_ptr().cast::<MaybeUninit<T>>();
        for index in 0..len {
            // SAFETY: the region starts aligned to REGION_ALIGN and `bytes_used` counts from its
            // start, so `items` is aligned for T; it has room for `len` values inside
            // `head[pad..]`, which is borrowed exclusively for 'm and reachable from nowhere else.
            unsafe { (*items.add(index as usize)).write(init(index)) };
        }
        // SAFETY: as above, and all `len` values have been initialised.
        Ok(unsafe { core::slice::from_raw_parts_mut(items.cast::<T>(), len as usize) })
    }

    /// Carves one value.
    pub fn one<T>(&mut self, value: T) -> Result<Option<&'m mut T>, ArenaFull> {
        let mut value = Some(value);
        let slice = self.slice(1, |_| value.take().expect("called once"))?;
        Ok(slice.first_mut())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;

    use super::{Arena, ArenaFull, REGION_ALIGN};
    use core::mem::MaybeUninit;
    use outrider_hal::Block;
    use std::boxed::Box;
    use std::vec;

    /// A region of this many bytes that lives as long as the test.
    pub(crate) fn region(bytes: usize) -> &'static mut [MaybeUninit<u8>] {
        let raw = Box::leak(vec![MaybeUninit::uninit(); bytes + REGION_ALIGN].into_boxed_slice());
        let pad = raw.as_ptr().align_offset(REGION_ALIGN);
        &mut raw[pad..][..bytes]
    }

    fn carve<'m>(arena: &mut Arena<'m>) -> Result<(&'m mut [u8], &'m mut [Block]), ArenaFull> {
        let bytes = arena.slice(5, |index| index as u8)?;
        arena.slice(3, u64::from)?;
        let blocks = arena.slice(2, |_| Block::ZERO)?;
        Ok((bytes, blocks))
    }

    #[test]
    fn measure_is_what_carving_uses() {
        let mut measure = Arena::measuring();
        carve(&mut measure).unwrap();
        let mut arena = Arena::new(region(measure.bytes_used())).unwrap();
        let (bytes, blocks) = carve(&mut arena).unwrap();
        assert_eq!(bytes, [0, 1, 2, 3, 4]);
        assert_eq!(blocks.len(), 2);
        assert_eq!(arena.bytes_used(), measure.bytes_used());
        assert!(arena.slice(1, |_| 0u8).is_err());
    }

    #[test]
    fn too_small_or_crooked_a_region_is_refused() {
        let mut measure = Arena::measuring();
        carve(&mut measure).unwrap();
        let mut arena = Arena::new(region(measure.bytes_used() - 1)).unwrap();
        assert_eq!(carve(&mut arena).err(), Some(ArenaFull));
        assert!(Arena::new(&mut region(8)[1..]).is_err());
    }
}
