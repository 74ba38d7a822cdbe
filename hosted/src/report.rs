//! What a process that stays tells about itself: lines on standard error, or, when nobody is there
//! any more, in the system's log.

use std::fs::File;
use std::io::{self, Write, stderr};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the system's log is written to, in the format of RFC 3164.
const LOG: &str = "/dev/log";
/// The kernel's log, which is there where nobody keeps another.
const KERNEL_LOG: &str = "/dev/kmsg";
/// What a daemon notices.
const PRIORITY: u8 = 3 << 3 | 5;

static LOGS: AtomicBool = AtomicBool::new(false);

/// From now on lines go to the system's log.
pub fn to_system_log() {
    LOGS.store(true, Ordering::SeqCst);
}

/// Tells it in one line. Nobody may be there to read it: that is no error.
pub fn tell(what: &str) {
    let _ = match LOGS.load(Ordering::SeqCst) {
        true => log(what),
        false => stderr().write_all(format!("outrider: {what}\n").as_bytes()),
    };
}

fn log(what: &str) -> io::Result<()> {
    let line = format!("<{PRIORITY}>outrider[{}]: {what}", std::process::id());
    let socket = UnixDatagram::unbound()?;
    // Who keeps the log may stand still; this must not.
    socket.set_nonblocking(true)?;
    match socket.send_to(line.as_bytes(), LOG) {
        Ok(_) => Ok(()),
        Err(_) => {
            let mut kernel = File::options().write(true).open(KERNEL_LOG)?;
            kernel.write_all(format!("{line}\n").as_bytes())
        }
    }
}
