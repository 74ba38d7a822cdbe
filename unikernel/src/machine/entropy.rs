//! Unpredictable bytes: from the processor, or from a virtio device, never from anything else.
//!
//! Each request goes to the source anew. A generator seeded once would repeat itself in two
//! machines resumed from one snapshot.

use crate::virtio::{Dma, Transport};
use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use outrider_hal::Entropy;
use virtio_drivers::device::rng::VirtIORng;

/// A source of entropy.
#[expect(clippy::large_enum_variant, reason = "there is one of it, and no heap")]
pub(crate) enum Source {
    /// The processor's RDSEED.
    Seed,
    /// The processor's RDRAND.
    Random,
    /// A virtio entropy device.
    Device(VirtIORng<Dma, Transport>),
}

impl Source {
    /// The best source of this machine; `device` is its virtio entropy device, if it has one.
    /// `None` when there is no source, or the one there is doesn't work.
    pub(crate) fn find(device: Option<Transport>) -> Option<Source> {
        let mut source = if __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx >> 18 & 1 != 0 {
            Source::Seed
        } else if __cpuid(1).ecx >> 30 & 1 != 0 {
            Source::Random
        } else {
            Source::Device(VirtIORng::new(device?).ok()?)
        };
        // A source that says the same twice is broken; some processors' were.
        let mut samples = [[0u8; 16]; 2];
        for sample in &mut samples {
            source.try_fill(sample)?;
        }
        (samples[0] != samples[1]).then_some(source)
    }

    /// What the source is called.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Source::Seed => "rdseed",
            Source::Random => "rdrand",
            Source::Device(_) => "virtio-rng",
        }
    }

    fn try_fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self {
            Source::Seed => fill_words(bytes, rdseed),
            Source::Random => fill_words(bytes, rdrand),
            Source::Device(device) => {
                let mut filled = 0;
                while filled < bytes.len() {
                    let got = device.request_entropy(&mut bytes[filled..]).ok()?;
                    if got == 0 || got > bytes.len() - filled {
                        return None;
                    }
                    filled += got;
                }
                Some(())
            }
        }
    }
}

impl Entropy for Source {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.try_fill(bytes).expect("the source of entropy worked at the start");
    }
}

fn fill_words(bytes: &mut [u8], word: fn() -> Option<u64>) -> Option<()> {
    /// RDSEED runs dry when asked quickly; it recovers within microseconds.
    const TRIES: u32 = 10_000;
    for chunk in bytes.chunks_mut(8) {
        let word = (0..TRIES).find_map(|_| {
            let word = word();
            if word.is_none() {
                core::hint::spin_loop();
            }
            word
        })?;
        chunk.copy_from_slice(&word.to_ne_bytes()[..chunk.len()]);
    }
    Some(())
}

fn rdseed() -> Option<u64> {
    let (word, ok): (u64, u8);
    // SAFETY: used only when CPUID says that the instruction exists.
    unsafe {
        asm!("rdseed {}", "setc {}", out(reg) word, out(reg_byte) ok, options(nomem, nostack));
    };
    (ok != 0).then_some(word)
}

fn rdrand() -> Option<u64> {
    let (word, ok): (u64, u8);
    // SAFETY: as for `rdseed`.
    unsafe {
        asm!("rdrand {}", "setc {}", out(reg) word, out(reg_byte) ok, options(nomem, nostack));
    };
    (ok != 0).then_some(word)
}
