//! A small cluster of voters over one simulated disk: stories, and random schedules.

extern crate std;

mod damage;
mod random;
mod sim;
mod stories;
mod units;
