//! The memory of a simulated node: lent to one life of it, reclaimed when nothing of that life is
//! left.
//!
//! A node is a `Node<'static>`, because requests with its buffers travel through queues that
//! outlive any borrow. Real hosts leak one region and run until they die; a simulated host restarts
//! a hundred thousand times, and each life carves the same memory again.
//!
//! # Invariants
//!
//! * A region is lent to one life at a time.
//! * Whatever may hold a reference into the region is kept in a [`Lent`] or dropped before one, and
//!   each of them counts. The region is lent again, or freed, only when the count is back to none;
//!   otherwise lending panics, and dropping leaks.
#![allow(unsafe_code)]

use outrider_hal::{BLOCK_BYTES, Block};
use rustix::mm::{Advice, madvise};
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::rc::Rc;

type Memory = Vec<MaybeUninit<Block>>;

/// Pieces of memory that a thread keeps for later hosts, at the most.
const KEPT_MAX: usize = 16;

std::thread_local! {
    /// Memory of hosts that are gone, for the hosts of the next world: what the system gives anew
    /// it has to clear first.
    static KEPT: RefCell<Vec<Memory>> = const { RefCell::new(Vec::new()) };
}

/// Memory of one host.
pub struct Region {
    // A Vec, not a Box: moving a Box would assert that nothing else points into it.
    memory: Vec<MaybeUninit<Block>>,
    lease: Rc<()>,
}

/// A share in a lent region. The memory is not reclaimed while one of them lives.
#[derive(Debug, Clone)]
pub struct Lease {
    _count: Rc<()>,
}

/// A value that may hold references into a lent region.
#[derive(Debug)]
pub struct Lent<T> {
    value: T,
    lease: Lease,
}

impl Region {
    /// Memory for at least so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Region {
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        let fits = |memory: &Memory| memory.len() == blocks;
        let kept =
            KEPT.with_borrow_mut(|kept| kept.iter().position(fits).map(|at| kept.swap_remove(at)));
        let memory = kept.unwrap_or_else(|| {
            let mut memory = Vec::with_capacity(blocks);
            memory.resize_with(blocks, MaybeUninit::uninit);
            ask_for_huge_pages(&mut memory);
            memory
        });
        Region { memory, lease: Rc::new(()) }
    }

    /// Whether something of the life it was lent to is left.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        Rc::strong_count(&self.lease) > 1
    }

    /// Lends the memory to a new life.
    ///
    /// The borrower keeps what it carves from it inside values that are dropped before the last
    /// clone of the lease, and nowhere else: not in a static, not leaked, not in another host.
    ///
    /// # Panics
    ///
    /// When the memory is lent already.
    pub fn lend(&mut self) -> (&'static mut [MaybeUninit<u8>], Lease) {
        assert!(!self.is_lent(), "a former life still holds memory of this region");
        let bytes = self.memory.len() * BLOCK_BYTES;
        let start = self.memory.as_mut_ptr().cast::<MaybeUninit<u8>>();
        let lease = Lease { _count: self.lease.clone() };
        // SAFETY: the pointer comes from the Vec's own allocation, is valid for `bytes` bytes, and
        // any bytes are valid `MaybeUninit<u8>`s. The Vec is not touched while a lease is counted:
        // its field is private, `lend` asserts that there is none, and `drop` leaks the allocation
        // when there is one. So the reference is exclusive, and stays valid as long as the borrower
        // keeps it next to a lease, which is what this function asks of it.
        let memory = unsafe { std::slice::from_raw_parts_mut(start, bytes) };
        (memory, lease)
    }
}

/// Where there are none it is only slower.
fn ask_for_huge_pages(memory: &mut Memory) {
    let bytes = memory.len() * BLOCK_BYTES;
    // SAFETY: this range is the Vec's own, and the advice changes nothing that is in it.
    let _ = unsafe { madvise(memory.as_mut_ptr().cast(), bytes, Advice::LinuxHugepage) };
}

impl Drop for Region {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if self.is_lent() {
            std::mem::forget(memory);
            return;
        }
        KEPT.with_borrow_mut(|kept| {
            if kept.len() < KEPT_MAX {
                kept.push(memory);
            }
        });
    }
}

impl<T> Lent<T> {
    /// Counts a value that belongs to the life that has this lease.
    pub fn new(value: T, lease: &Lease) -> Lent<T> {
        Lent { value, lease: lease.clone() }
    }

    /// Hands the value to a function that keeps it inside the same life.
    pub fn hand_over<R>(self, to: impl FnOnce(T, &Lease) -> R) -> R {
        to(self.value, &self.lease)
    }

    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The value, to work on in place.
    pub fn value_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::{Lent, Region};
    use outrider_core::arena::Arena;

    #[test]
    fn a_region_is_carved_again_by_each_life() {
        let mut region = Region::new(3 * 4096);
        let mut first_at = None;
        for life in 0..100_000u32 {
            let (memory, lease) = region.lend();
            let at = memory.as_ptr().addr();
            assert_eq!(*first_at.get_or_insert(at), at);
            let carved = Arena::new(memory).unwrap().slice(16, |index| index ^ life).unwrap();
            let lent = Lent::new(carved, &lease);
            drop(lease);
            assert!(region.is_lent());
            assert_eq!(lent.value()[3], 3 ^ life);
            drop(lent);
            assert!(!region.is_lent());
        }
    }

    #[test]
    #[should_panic = "a former life still holds memory"]
    fn a_region_is_not_lent_twice() {
        let mut region = Region::new(1);
        let _first = region.lend();
        let _second = region.lend();
    }
}
