//! CRC-32C (Castagnoli, RFC 3720 appendix B.4): the checksum of blocks and frames.
//!
//! Two implementations that must agree: a table for every machine, and the SSE4.2 instruction in
//! three interleaved streams where the processor has it. The crate `crc32c` links std and so can't
//! be used here; tests use it as the oracle.
//!
//! The state is kept without the initial and final inversion, so that a checksum can be *seeded*
//! with any 32 bits: a volume's secret makes blocks of another origin fail the check.

const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

/// The standard checksum of `bytes`: all-ones seed, inverted at the end.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    !update(!0, bytes)
}

/// The checksum of `bytes` seeded with a volume's secret. Equal to [`crc32c`] when `seed` is 0.
#[must_use]
pub fn crc32c_seeded(seed: u32, bytes: &[u8]) -> u32 {
    !update(!seed, bytes)
}

/// Advances the raw state `crc` over `bytes`.
#[must_use]
pub fn update(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if sse42::available() {
        return sse42::update(crc, bytes);
    }
    update_table(crc, bytes)
}

fn update_table(mut crc: u32, bytes: &[u8]) -> u32 {
    for &byte in bytes {
        crc = TABLE[((crc ^ u32::from(byte)) & 0xff) as usize] ^ (crc >> 8);
    }
    crc
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod sse42;

#[cfg(test)]
mod tests;
