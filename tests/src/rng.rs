//! Pseudo-random numbers: xoshiro256** (Blackman and Vigna, 2018), seeded through splitmix64.
//!
//! Written out here rather than taken from a crate because a seed in the regression list must mean
//! the same run for ever.
//!
//! # Invariants
//!
//! * Every number is a function of the seed. Probabilities are integers, so no rounding mode and no
//!   math library has a say.
//! * Each component of the world has a generator of its own, [forked](Rng::fork) by name: one more
//!   draw in the network doesn't change what the disk draws.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A probability in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Chance(pub u32);

impl Chance {
    /// It doesn't happen.
    pub const NEVER: Chance = Chance(0);
    /// One time out of two.
    pub const EVEN: Chance = Chance(500_000);
    /// It always happens.
    pub const ALWAYS: Chance = Chance(1_000_000);
}

/// A generator of pseudo-random numbers.
#[derive(Debug, Clone)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The generator of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Rng {
        let mut x = seed;
        let state = std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Rng { state }
    }

    /// A generator for the component of this name, which doesn't depend on how much has been drawn
    /// from this one.
    #[must_use]
    pub fn fork(&self, name: &str) -> Rng {
        let mut seed = 0xcbf2_9ce4_8422_2325u64;
        for byte in name.bytes() {
            seed = (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Rng::new(seed ^ self.state[0].rotate_left(17) ^ self.state[2])
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= t;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing lies below zero");
        ((u128::from(self.number()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of this range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let width = range.end() - range.start();
        if width == u64::MAX { self.number() } else { range.start() + self.below(width + 1) }
    }

    /// Whether something of this probability happens now.
    pub fn chance(&mut self, chance: Chance) -> bool {
        self.below(1_000_000) < u64::from(chance.0)
    }

    /// A duration between the two, each order of magnitude equally likely, so that short ones
    /// happen beside very long ones.
    pub fn span(&mut self, min: Duration, max: Duration) -> Duration {
        let (min, max) = (min.as_nanos() as u64, max.as_nanos() as u64);
        assert!(min <= max, "a span is given as shortest, longest");
        let bits = |nanos: u64| u64::from(64 - nanos.leading_zeros());
        let width = self.within(bits(min)..=bits(max));
        let top = if width == 0 { 0 } else { u64::MAX >> (64 - width) };
        Duration::from_nanos(self.within(top / 2..=top).clamp(min, max))
    }

    /// One of the items.
    pub fn pick<'i, T>(&mut self, items: &'i [T]) -> Option<&'i T> {
        if items.is_empty() {
            return None;
        }
        items.get(self.below(items.len() as u64) as usize)
    }

    /// Fills the buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.number().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Chance, Rng};
    use crate::time::{MILLI, MINUTE};

    /// The reference implementation, run by hand from the state splitmix64 makes of 0.
    #[test]
    fn a_seed_means_the_same_for_ever() {
        let mut rng = Rng::new(0);
        let drawn: Vec<u64> = (0..3).map(|_| rng.number()).collect();
        assert_eq!(drawn, [0x99ec_5f36_cb75_f2b4, 0xbf6e_1f78_4956_452a, 0x1a5f_849d_4933_e6e0]);
    }

    #[test]
    fn forks_depend_on_name_and_seed_only() {
        let root = Rng::new(7);
        assert_eq!(root.fork("disk").number(), root.fork("disk").number());
        assert_ne!(root.fork("disk").number(), root.fork("net").number());
        assert_ne!(root.fork("disk").number(), Rng::new(8).fork("disk").number());
    }

    #[test]
    fn ranges_are_kept() {
        let mut rng = Rng::new(1);
        let mut long = 0;
        for _ in 0..10_000 {
            assert!(rng.below(3) < 3);
            assert!((5..=6).contains(&rng.within(5..=6)));
            let span = rng.span(MILLI, 10 * MINUTE);
            assert!((MILLI..=10 * MINUTE).contains(&span));
            long += u32::from(span > MINUTE);
            assert!(!rng.chance(Chance::NEVER) && rng.chance(Chance::ALWAYS));
        }
        assert!((500..5000).contains(&long), "{long} of 10000 spans are long");
    }
}
