//! What is to be seen of compaction from outside: how much of it there was, how it ended, and that
//! no run was ever merged twice.
//!
//! What this module deliberately doesn't know: what the runs hold. Other checkers read that.

use crate::check::Checker;
use crate::platform::Platform;
use crate::trace::HostId;
use crate::world::World;
use outrider_core::client::compact::Counters as Done;
use outrider_core::server::{MergeCounters, Server};
use std::collections::BTreeMap;

/// Compactions completed by clients, as a demand names them.
pub const COMPLETED: &str = "compactions by clients";
/// Compactions that clients have begun.
pub const BEGUN: &str = "compactions asked for";
/// Those given to another because their client was silent.
pub const LOST: &str = "compactions lost";
/// Those that ended with an eviction.
pub const EVICTED: &str = "compactions evicted";
/// Those that ended with a term.
pub const DROPPED: &str = "compactions dropped";
/// Those that a mount dropped because another server leads, or because it left.
pub const ABANDONED: &str = "compactions mounts dropped";
/// Those that were begun, and ended with a term or with their client.
pub const HALF_WAY: &str = "compactions ended half-way";
/// Requests that a client refused.
pub const REFUSED: &str = "compactions refused";
/// Results that were not taken.
pub const REJECTED: &str = "compactions rejected";
/// Results of what had been given to another.
pub const LATE: &str = "compactions late";
/// Results of what nobody knew.
pub const UNKNOWN: &str = "compactions unknown";

/// The checker.
#[derive(Default)]
pub struct Compactions {
    servers: BTreeMap<(HostId, u32), MergeCounters>,
    mounts: BTreeMap<(HostId, u32), Done>,
}

impl Checker for Compactions {
    fn name(&self) -> &'static str {
        "compactions"
    }

    fn after_step(&mut self, world: &World, host: HostId) -> Result<(), String> {
        let life = (host, world.boots(host));
        if let Some(server) = world.guest::<Server<'static>>(host) {
            let counters = server.counters().merging;
            self.servers.insert(life, counters);
            if counters.contradictions > 0 {
                return Err("what was being merged was merged elsewhere too".to_owned());
            }
        }
        if let Some(platform) = world.guest::<Platform>(host) {
            self.mounts.insert(life, platform.mount.counters().compaction);
        }
        Ok(())
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        let servers = |of: fn(&MergeCounters) -> u64| self.servers.values().map(of).sum();
        let mounts = |of: fn(&Done) -> u64| self.mounts.values().map(of).sum();
        vec![
            (BEGUN, servers(|counters| counters.asked)),
            (COMPLETED, servers(|counters| counters.by_clients)),
            (LOST, servers(|counters| counters.lost)),
            (EVICTED, servers(|counters| counters.evicted)),
            (DROPPED, servers(|counters| counters.dropped)),
            // Who is evicted may have been silent before: that counts once.
            (HALF_WAY, servers(|counters| counters.dropped + counters.lost.max(counters.evicted))),
            (REFUSED, servers(|counters| counters.refused)),
            (REJECTED, servers(|counters| counters.rejected)),
            (LATE, servers(|counters| counters.late)),
            (UNKNOWN, servers(|counters| counters.unknown)),
            ("merges given up", servers(|counters| counters.failures)),
            ("blocks merged by mounts", mounts(|counters| counters.blocks)),
            (ABANDONED, mounts(|counters| counters.dropped)),
        ]
    }
}
