//! Electing the leader through the shared disk.

mod mutant;
mod scan;
mod timing;
mod voter;
mod watcher;

pub use scan::Sight;
pub use timing::{DRIFT_PERCENT, Timing, TimingError};
pub use voter::{
    CheckToken, Config, ConfigError, Identity, Loss, Notice, Refusal, Role, Slots, Trouble, Voter,
    VoterBlocks, Vouched,
};
pub use watcher::{Leader, Watcher, WatcherBlocks};

#[cfg(test)]
mod tests;
