//! Which mounts have knocked, so that their number can stand in the voter's quorum block.
//!
//! # Invariants
//!
//! * A mount counts once, by its nonce, however often it knocks, and for a bounded time after its
//!   last knock.
//! * As many are remembered as may be clients. When there are more, the one that was heard least
//!   lately gives way.
//!
//! What this module deliberately doesn't know: who has a session.

use crate::arena::{Arena, ArenaFull};
use core::time::Duration;
use outrider_hal::Instant;

/// A mount that has knocked.
#[derive(Debug, Clone, Copy)]
struct Knocker {
    nonce: [u8; 16],
    heard: Instant,
}

/// The mounts that have knocked lately.
pub(super) struct Knocks<'m> {
    knockers: &'m mut [Option<Knocker>],
    lifetime: Duration,
}

impl<'m> Knocks<'m> {
    /// Room for so many, each of which counts for so long.
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        count: u32,
        lifetime: Duration,
    ) -> Result<Knocks<'m>, ArenaFull> {
        Ok(Knocks { knockers: arena.slice(count, |_| None)?, lifetime })
    }

    /// The mount of this nonce has knocked. Whether it has just begun to.
    pub(super) fn hear(&mut self, now: Instant, nonce: [u8; 16]) -> bool {
        let is_new = !self.recent(now).any(|recent| recent == nonce);
        let known = |at: &Option<Knocker>| at.is_some_and(|at| at.nonce == nonce);
        let at = match self.knockers.iter().position(known) {
            Some(at) => Some(at),
            None => {
                let places = self.knockers.iter().enumerate();
                places.min_by_key(|(_, place)| place.map(|at| at.heard)).map(|(at, _)| at)
            }
        };
        if let Some(place) = at.and_then(|at| self.knockers.get_mut(at)) {
            *place = Some(Knocker { nonce, heard: now });
        }
        is_new
    }

    /// The nonces of those that have knocked lately.
    pub(super) fn recent(&self, now: Instant) -> impl Iterator<Item = [u8; 16]> {
        let recent = move |at: &&Knocker| now < at.heard.plus(self.lifetime);
        self.knockers.iter().flatten().filter(recent).map(|at| at.nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::Knocks;
    use crate::arena::{Arena, REGION_ALIGN};
    use core::mem::MaybeUninit;
    use core::time::Duration;
    use outrider_hal::Instant;

    const LIFETIME: Duration = Duration::from_secs(3);

    fn with_room_for_two(test: impl FnOnce(&mut Knocks<'_>)) {
        let mut region = [MaybeUninit::<u8>::uninit(); REGION_ALIGN + 256];
        let pad = region.as_ptr().align_offset(REGION_ALIGN);
        let mut arena = Arena::new(&mut region[pad..]).unwrap();
        test(&mut Knocks::carve(&mut arena, 2, LIFETIME).unwrap());
    }

    fn at(seconds: u64) -> Instant {
        Instant::default().plus(Duration::from_secs(seconds))
    }

    #[test]
    fn a_mount_counts_once_and_for_a_while() {
        with_room_for_two(|knocks| {
            assert_eq!(knocks.recent(at(0)).count(), 0);
            assert!(knocks.hear(at(0), [1; 16]));
            assert!(!knocks.hear(at(1), [1; 16]));
            assert!(knocks.hear(at(2), [2; 16]));
            assert_eq!(knocks.recent(at(2)).count(), 2);
            assert!(knocks.recent(at(4)).eq([[2; 16]]));
            assert_eq!(knocks.recent(at(5)).count(), 0);
            assert!(knocks.hear(at(5), [1; 16]));
        });
    }

    #[test]
    fn whoever_was_heard_least_lately_gives_way() {
        with_room_for_two(|knocks| {
            knocks.hear(at(0), [1; 16]);
            knocks.hear(at(1), [2; 16]);
            knocks.hear(at(2), [1; 16]);
            knocks.hear(at(2), [3; 16]);
            assert!(knocks.recent(at(2)).eq([[1; 16], [3; 16]]));
        });
    }
}
