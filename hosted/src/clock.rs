//! Time and entropy from Linux.

use outrider_hal::{Clock, Entropy, Instant};
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::{self, Read};

/// `CLOCK_BOOTTIME`: goes on while the host is suspended, so that a lease that ran out meanwhile is
/// seen to have done so.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&mut self) -> Instant {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = now.tv_sec.cast_unsigned();
        Instant(seconds * 1_000_000_000 + now.tv_nsec.cast_unsigned())
    }
}

/// `/dev/urandom`, which never blocks once the system has booted.
#[derive(Debug)]
pub struct SystemEntropy(File);

impl SystemEntropy {
    /// Opens it, so that a system without it is found out at start.
    pub fn open() -> io::Result<SystemEntropy> {
        let mut entropy = SystemEntropy(File::open("/dev/urandom")?);
        entropy.0.read_exact(&mut [0; 1])?;
        Ok(entropy)
    }
}

impl Entropy for SystemEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.read_exact(bytes).expect("/dev/urandom was readable at start and never ends");
    }
}
