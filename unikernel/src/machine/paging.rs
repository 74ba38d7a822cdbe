//! The page tables: memory is where it is, and every page has no more rights than it needs.
//!
//! | what | rights |
//! |---|---|
//! | page 0 and the rest of the first mebibyte, guard pages, everything not named here | none |
//! | the image's code | read, execute |
//! | its constants | read |
//! | its data, all other memory | read, write |
//! | device registers, mapped one by one when a device is found | read, write, not cached |
//!
//! * No page can be both written and executed.
//! * Tables, and the rings of the devices, come from a pool that is reserved before the rest of
//!   memory is handed out, and never grows.

use core::arch::asm;
use outrider_unikernel::pvh::{Area, PAGE_BYTES};
use spin::Mutex;
use virtio_drivers::PhysAddr;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const UNCACHED: u64 = 0x18;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LARGE_BYTES: u64 = 2 << 20;

/// Pages kept for device rings and the tables of device registers.
const POOL_PAGES: u64 = 64;
/// Highest address that four levels of tables can map identically.
const ADDRESS_END: u64 = 1 << 46;

/// What may be done with a page.
#[derive(Clone, Copy)]
enum Rights {
    Execute,
    Read,
    Write,
    Device,
}

impl Rights {
    fn bits(self) -> u64 {
        match self {
            Rights::Execute => PRESENT,
            Rights::Read => PRESENT | NO_EXECUTE,
            Rights::Write => PRESENT | WRITE | NO_EXECUTE,
            Rights::Device => PRESENT | WRITE | NO_EXECUTE | UNCACHED,
        }
    }
}

/// The tables, and the pages they grow from.
struct Tables {
    root: u64,
    pool: Area,
}

static TABLES: Mutex<Tables> = Mutex::new(Tables { root: 0, pool: Area { start: 0, end: 0 } });

/// The pool is used up, or the address can't be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapError;

impl Tables {
    /// Takes zeroed pages that follow each other.
    fn pages(&mut self, count: u64) -> Result<u64, MapError> {
        let start = self.pool.start;
        let bytes = count.checked_mul(PAGE_BYTES).ok_or(MapError)?;
        let end = start.checked_add(bytes).filter(|&end| end <= self.pool.end).ok_or(MapError)?;
        self.pool.start = end;
        // SAFETY: the pool is usable memory, mapped now and later, that is given away only here.
        unsafe { core::ptr::write_bytes(start as *mut u8, 0, bytes as usize) };
        Ok(start)
    }

    /// The entry of `addr` in the table at `level` (1: pages of 4 KiB), with the tables above it.
    /// `None` when a large page covers the address.
    fn entry(&mut self, addr: u64, level: u32) -> Result<Option<&mut u64>, MapError> {
        let mut table = self.root;
        let mut at = 4;
        loop {
            let index = addr >> (12 + 9 * (at - 1)) & 511;
            // SAFETY: `table` is one of our tables: a page of 512 entries that only this lock's
            // holder touches.
            let entry = unsafe { &mut *(table as *mut u64).add(index as usize) };
            if at == level {
                return Ok(Some(entry));
            }
            if *entry == 0 {
                *entry = self.pages(1)? | PRESENT | WRITE;
            } else if *entry & LARGE != 0 {
                return Ok(None);
            }
            table = *entry & ADDRESS;
            at -= 1;
        }
    }

    /// Maps whole pages, large ones where they fit. What is mapped already stays as it is.
    fn map(&mut self, area: Area, rights: Rights) -> Result<(), MapError> {
        if area.end > ADDRESS_END {
            return Err(MapError);
        }
        let mut addr = area.start;
        while addr < area.end {
            let large = addr.is_multiple_of(LARGE_BYTES) && addr + LARGE_BYTES <= area.end;
            let (level, extra, bytes) =
                if large { (2, LARGE, LARGE_BYTES) } else { (1, 0, PAGE_BYTES) };
            if let Some(entry) = self.entry(addr, level)?
                && *entry == 0
            {
                *entry = addr | rights.bits() | extra;
            }
            addr += bytes;
        }
        Ok(())
    }
}

/// Bounds of the image's parts, from the linker script.
pub(crate) struct Image {
    pub(crate) whole: Area,
    text: Area,
    rodata: Area,
    data: Area,
}

/// Where the linker put the image.
pub(crate) fn image() -> Image {
    unsafe extern "C" {
        static image_start: u8;
        static image_end: u8;
        static text_start: u8;
        static text_end: u8;
        static rodata_start: u8;
        static rodata_end: u8;
        static data_start: u8;
        static data_end: u8;
    }
    let area = |start: *const u8, end: *const u8| Area { start: start as u64, end: end as u64 };
    Image {
        whole: area(&raw const image_start, &raw const image_end),
        text: area(&raw const text_start, &raw const text_end),
        rodata: area(&raw const rodata_start, &raw const rodata_end),
        data: area(&raw const data_start, &raw const data_end),
    }
}

/// Builds the tables for the image and these areas of memory, the first of which follows the image,
/// and switches to them. Takes what tables and pool need off the first area's start.
pub(crate) fn init(image: &Image, areas: &mut [Area], guards: &[u64]) -> Result<(), MapError> {
    let mut tables = TABLES.lock();
    let first = *areas.first().ok_or(MapError)?;
    tables.pool = first;
    tables.root = tables.pages(1)?;
    tables.map(image.text, Rights::Execute)?;
    tables.map(image.rodata, Rights::Read)?;
    let mut start = image.data.start;
    for &guard in guards {
        tables.map(Area { start, end: guard }, Rights::Write)?;
        start = guard + PAGE_BYTES;
    }
    tables.map(Area { start, end: image.data.end }, Rights::Write)?;
    for area in areas.iter() {
        tables.map(*area, Rights::Write)?;
    }
    let end = tables.pool.start + POOL_PAGES * PAGE_BYTES;
    if end > first.end {
        return Err(MapError);
    }
    tables.pool.end = end;
    areas[0].start = end;
    // SAFETY: the tables map everything that is in use where it is, with the rights it needs.
    unsafe { asm!("mov cr3, {}", in(reg) tables.root, options(nostack)) };
    Ok(())
}

/// Makes device registers reachable, where they are.
pub(crate) fn map_device(addr: u64, bytes: u64) -> Result<(), MapError> {
    let start = addr / PAGE_BYTES * PAGE_BYTES;
    let end = addr
        .checked_add(bytes)
        .and_then(|end| end.checked_next_multiple_of(PAGE_BYTES))
        .ok_or(MapError)?;
    // Pages of their own size only: a large page could cover something else as well.
    let mut tables = TABLES.lock();
    for page in (start..end).step_by(PAGE_BYTES as usize) {
        tables.map(Area { start: page, end: page + PAGE_BYTES }, Rights::Device)?;
    }
    Ok(())
}

/// Zeroed pages for a device's ring.
pub(crate) fn ring_pages(count: usize) -> Result<PhysAddr, MapError> {
    TABLES.lock().pages(count as u64)
}
