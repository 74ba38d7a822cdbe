//! What QEMU tells the image at its start: the PVH start info (Xen's `arch-x86/hvm/start_info.h`).
//!
//! * Everything is copied out before the page tables are replaced; nothing points into the
//!   original.
//! * The memory map is what the hypervisor says, cut to whole pages; entries past
//!   [`AREAS_MAX`] are not used.

use heapless::Vec;

/// How many areas of memory are looked at.
pub const AREAS_MAX: usize = 16;
/// Longest command line, with the device list that QEMU's microvm appends.
pub const COMMAND_LINE_MAX: usize = 2048;
/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

/// First word of the start info.
pub const MAGIC: u32 = 0x336e_c578;

/// The start info, as it lies in memory.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct StartInfo {
    /// [`MAGIC`].
    pub magic: u32,
    /// 1 or later: there is a memory map.
    pub version: u32,
    /// Not used.
    pub flags: u32,
    /// Number of modules; not used.
    pub modules: u32,
    /// Address of the module list; not used.
    pub module_list: u64,
    /// Address of the command line, terminated by 0.
    pub command_line: u64,
    /// Address of the ACPI root pointer; not used.
    pub rsdp: u64,
    /// Address of the memory map.
    pub memory_map: u64,
    /// Number of its entries.
    pub memory_map_entries: u32,
    /// Zero.
    pub reserved: u32,
}

/// An entry of the memory map, as it lies in memory.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct MapEntry {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// 1 for memory that may be used, as in the E820 map.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`MapEntry::kind`] of memory that may be used.
const USABLE: u32 = 1;

/// A range of addresses, `start` up to but without `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
}

impl Area {
    /// Bytes of the area.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// The memory that may be used above the first mebibyte, in whole pages, where `image` and what
/// precedes it in its area have been cut off. The area of the image comes first; `None` when the
/// image lies in none, or the map makes no sense.
#[must_use]
pub fn usable(map: &[MapEntry], image: Area) -> Option<Vec<Area, AREAS_MAX>> {
    const FIRST: u64 = 1 << 20;
    let mut areas = Vec::new();
    for entry in map.iter().take(AREAS_MAX).filter(|entry| entry.kind == USABLE) {
        let start = entry.addr.max(FIRST).checked_next_multiple_of(PAGE_BYTES)?;
        let end = entry.addr.checked_add(entry.size)? / PAGE_BYTES * PAGE_BYTES;
        if start >= end {
            continue;
        }
        if start <= image.start && image.end <= end {
            areas.insert(0, Area { start: image.end, end }).ok()?;
        } else {
            areas.push(Area { start, end }).ok()?;
        }
    }
    let first = areas.first()?;
    (first.start == image.end).then_some(areas)
}

#[cfg(test)]
mod tests {
    use super::{Area, MapEntry, usable};

    fn entry(addr: u64, size: u64, kind: u32) -> MapEntry {
        MapEntry { addr, size, kind, reserved: 0 }
    }

    const IMAGE: Area = Area { start: 0x10_0000, end: 0x18_0000 };

    #[test]
    fn the_images_area_comes_first_without_the_image() {
        let map = [
            entry(0, 0x9_fc00, 1),
            entry(0x1_0000_0000, 0x1000_0000, 1),
            entry(0xf_0000, 0x1_0000, 2),
            entry(0x10_0000, 0x1ee_0001, 1),
        ];
        let areas = usable(&map, IMAGE).unwrap();
        assert_eq!(areas[0], Area { start: 0x18_0000, end: 0x1fe_0000 });
        assert_eq!(areas[1], Area { start: 0x1_0000_0000, end: 0x1_1000_0000 });
        assert_eq!(areas.len(), 2);
    }

    #[test]
    fn a_map_without_the_image_or_without_sense_is_refused() {
        assert_eq!(usable(&[entry(0x20_0000, 0x100_0000, 1)], IMAGE), None);
        assert_eq!(usable(&[], IMAGE), None);
        assert_eq!(usable(&[entry(0x10_0000, u64::MAX, 1)], IMAGE), None);
    }
}
