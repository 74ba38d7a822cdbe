//! CRC-32C with the SSE4.2 instruction.
//!
//! The instruction takes three cycles and a new one can start each cycle, so three streams are
//! computed side by side and joined: the checksum is linear, so the state of a stream is advanced
//! over the zeroes that stand for the following streams by a table lookup per byte, and added.

use core::arch::x86_64::{__cpuid, _mm_crc32_u8, _mm_crc32_u64};
use core::sync::atomic::{AtomicU8, Ordering};

/// Bytes of each of the three streams: a third of a block's payload, in whole words.
const STREAM: usize = 1360;

/// For each byte of a state, what it contributes after [`STREAM`] zero bytes.
const ADVANCE: [[u32; 256]; 4] = {
    let mut advance = [[0u32; 256]; 4];
    let mut byte = 0;
    while byte < 4 {
        let mut bit = 0;
        while bit < 8 {
            let mut crc = 1u32 << (byte * 8 + bit);
            let mut step = 0;
            while step < STREAM {
                crc = super::TABLE[(crc & 0xff) as usize] ^ (crc >> 8);
                step += 1;
            }
            let mut value = 0;
            while value < 256 {
                if value & (1 << bit) != 0 {
                    advance[byte][value] ^= crc;
                }
                value += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    advance
};

/// Whether the processor has the instruction. Asked once: `cpuid` is slow, and traps in a guest.
pub(super) fn available() -> bool {
    const UNKNOWN: u8 = 0;
    const NO: u8 = 1;
    const YES: u8 = 2;
    static KNOWN: AtomicU8 = AtomicU8::new(UNKNOWN);
    match KNOWN.load(Ordering::Relaxed) {
        UNKNOWN => {
            // Leaf 1 exists on every x86_64 processor; ECX bit 20 is SSE4.2.
            let yes = __cpuid(1).ecx & (1 << 20) != 0;
            KNOWN.store(if yes { YES } else { NO }, Ordering::Relaxed);
            yes
        }
        known => known == YES,
    }
}

/// Advances the raw state. Must only be called where [`available`] said yes.
pub(super) fn update(crc: u32, bytes: &[u8]) -> u32 {
    debug_assert!(available());
    // SAFETY: the only caller has checked that the processor has SSE4.2.
    unsafe { update_streams(crc, bytes) }
}

#[target_feature(enable = "sse4.2")]
fn update_streams(mut crc: u32, mut bytes: &[u8]) -> u32 {
    while let Some((chunk, rest)) = bytes.split_at_checked(3 * STREAM) {
        let (a, bc) = chunk.split_at(STREAM);
        let (b, c) = bc.split_at(STREAM);
        let (a, b, c) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0, c.as_chunks::<8>().0);
        let (mut crc_a, mut crc_b, mut crc_c) = (u64::from(crc), 0, 0);
        for ((a, b), c) in a.iter().zip(b).zip(c) {
            crc_a = _mm_crc32_u64(crc_a, u64::from_le_bytes(*a));
            crc_b = _mm_crc32_u64(crc_b, u64::from_le_bytes(*b));
            crc_c = _mm_crc32_u64(crc_c, u64::from_le_bytes(*c));
        }
        crc = advance(advance(crc_a as u32) ^ crc_b as u32) ^ crc_c as u32;
        bytes = rest;
    }
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        crc = _mm_crc32_u64(u64::from(crc), u64::from_le_bytes(*word)) as u32;
    }
    for byte in tail {
        crc = _mm_crc32_u8(crc, *byte);
    }
    crc
}

fn advance(crc: u32) -> u32 {
    let bytes = crc.to_le_bytes();
    ADVANCE[0][bytes[0] as usize]
        ^ ADVANCE[1][bytes[1] as usize]
        ^ ADVANCE[2][bytes[2] as usize]
        ^ ADVANCE[3][bytes[3] as usize]
}
