//! Two endpoints in virtual time over a pair of byte queues, and whatever can happen to those.

extern crate std;

mod cuts;
mod greeting;
mod hostile;
mod interleavings;
mod knocks;
mod raw;
mod world;
