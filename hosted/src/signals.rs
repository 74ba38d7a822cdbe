//! SIGTERM, SIGINT and SIGHUP as something to wait for.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The signals that ask a process to end, from now on.
#[derive(Debug)]
pub struct Signals(UnixStream);

impl Signals {
    /// Catches them, in the whole process and for good.
    ///
    /// # Errors
    ///
    /// If the system doesn't let it.
    pub fn catch() -> io::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Signals(read))
    }

    /// Whether one came since this was last asked.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn take(&mut self) -> io::Result<bool> {
        let mut came = [0; 64];
        match self.0.read(&mut came) {
            Ok(count) => Ok(count > 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Signals {
    /// Can be read when one has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
