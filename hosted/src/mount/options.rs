//! What stands behind `-o`.
//!
//! # Invariants
//!
//! * What isn't understood is refused: an option that silently does nothing is found out when it
//!   is needed.
//!
//! What this module deliberately doesn't know: who acts on it.

use outrider_core::format::quorum::Slot;
use std::path::PathBuf;
use std::time::Duration;

/// What requests do while no server can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoServer {
    /// They wait, for as long as it takes.
    Wait,
    /// They fail once there was none for this long.
    Fail(Duration),
}

/// How to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing can be changed through it.
    pub read_only: bool,
    /// Users other than the one who mounts get in.
    pub allow_other: bool,
    /// Device files don't work.
    pub nodev: bool,
    /// Set-user-ID has no effect.
    pub nosuid: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// What requests do while there is no server; [`None`] if nothing was said, which is to wait,
    /// but not for the first welcome.
    pub no_server: Option<NoServer>,
    /// The voter that this host is, too.
    pub quorum_slot: Option<Slot>,
    /// The program that this voter, when it leads, has evicted mounts cut off by; only with a slot.
    pub fence: Option<PathBuf>,
    /// A witness stands beside it.
    pub witness: bool,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            read_only: false,
            allow_other: true,
            nodev: false,
            nosuid: false,
            noexec: false,
            no_server: None,
            quorum_slot: None,
            fence: None,
            witness: true,
        }
    }
}

/// Why an option can't be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionError {
    /// Nobody knows it.
    Unknown(String),
    /// What stands behind `=` means nothing, or is missing, or is too much.
    Value(String),
    /// It means something only together with another.
    Without(&'static str, &'static str),
    /// It isn't offered.
    Unsupported(String),
}

impl std::fmt::Display for OptionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OptionError::Unknown(option) => {
                write!(f, "there is no mount option {option}; see outrider mount --help")
            }
            OptionError::Value(option) => {
                write!(f, "mount option {option} has no such value; see outrider mount --help")
            }
            OptionError::Without(option, other) => {
                write!(f, "mount option {option} needs {other}=NR: only a server fences")
            }
            OptionError::Unsupported(option) => {
                write!(f, "mount option {option} is not supported yet; mount without it")
            }
        }
    }
}

impl std::error::Error for OptionError {}

/// Options that are true of every mount, or that are for those who read fstab.
const SILENT: [&str; 24] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "async",
    // Reading isn't recorded, whatever is asked for.
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "nostrictatime",
    "nolazytime",
    // Locks are those of the host already.
    "locallocks",
    "iversion",
    "noiversion",
    "loud",
    "silent",
];

/// Options for others, with a value.
const SILENT_PREFIXES: [&str; 3] = ["x-", "X-", "comment="];

impl MountOptions {
    /// Reads a list with commas between options. Of two that say the opposite, the last counts.
    /// With `sloppy`, those that are unknown are ignored.
    ///
    /// # Errors
    ///
    /// For the first that can't be had.
    pub fn parse(list: &str, sloppy: bool) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        for option in list.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            match options.take(option) {
                Err(OptionError::Unknown(_)) if sloppy => {}
                result => result?,
            }
        }
        if options.fence.is_some() && options.quorum_slot.is_none() {
            return Err(OptionError::Without("fence", "quorum_slot_nr"));
        }
        Ok(options)
    }

    fn take(&mut self, option: &str) -> Result<(), OptionError> {
        let wrong = || OptionError::Value(option.to_owned());
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("allow_other", None) => self.allow_other = true,
            ("noallow_other", None) => self.allow_other = false,
            ("dev", None) => self.nodev = false,
            ("nodev", None) => self.nodev = true,
            ("suid", None) => self.nosuid = false,
            ("nosuid", None) => self.nosuid = true,
            ("exec", None) => self.noexec = false,
            ("noexec", None) => self.noexec = true,
            ("witness", None) => self.witness = true,
            ("nowitness", None) => self.witness = false,
            ("noserver", Some(value)) => self.no_server = Some(no_server(value).ok_or_else(wrong)?),
            ("quorum_slot_nr", Some(value)) => {
                let slot = value.parse().ok().and_then(Slot::new);
                self.quorum_slot = Some(slot.ok_or_else(wrong)?);
            }
            ("fence", Some(value)) if value.starts_with('/') => {
                self.fence = Some(PathBuf::from(value));
            }
            ("remount" | "sync" | "dirsync" | "mand" | "strictatime" | "lazytime", _) => {
                return Err(OptionError::Unsupported(name.to_owned()));
            }
            ("fence", _) | ("noserver" | "quorum_slot_nr", None) => return Err(wrong()),
            _ => return self.take_silently(option),
        }
        Ok(())
    }

    fn take_silently(&self, option: &str) -> Result<(), OptionError> {
        let known = SILENT.contains(&option)
            || SILENT_PREFIXES.iter().any(|prefix| option.starts_with(prefix));
        if known { Ok(()) } else { Err(OptionError::Unknown(option.to_owned())) }
    }
}

fn no_server(value: &str) -> Option<NoServer> {
    if value == "wait" {
        return Some(NoServer::Wait);
    }
    let seconds: u32 = value.strip_prefix("eio:")?.parse().ok()?;
    Some(NoServer::Fail(Duration::from_secs(seconds.into())))
}

#[cfg(test)]
mod tests {
    use super::{MountOptions, NoServer, OptionError};
    use outrider_core::format::quorum::Slot;
    use std::time::Duration;

    fn parse(list: &str) -> Result<MountOptions, OptionError> {
        MountOptions::parse(list, false)
    }

    #[test]
    fn what_fstab_says_is_understood() {
        let list = "defaults,_netdev,noatime,x-systemd.requires=a,nofail,comment=b,,ro";
        let expected = MountOptions { read_only: true, ..MountOptions::default() };
        assert_eq!(parse(list), Ok(expected));
        assert_eq!(parse(""), Ok(MountOptions::default()));
        assert_eq!(parse("ro,nosuid,suid,rw"), Ok(MountOptions::default()));
    }

    #[test]
    fn waiting_is_for_ever_or_so_many_seconds() {
        let fail = |seconds| Some(NoServer::Fail(Duration::from_secs(seconds)));
        for (list, expected) in [
            ("noserver=wait", Ok(Some(NoServer::Wait))),
            ("noserver=eio:30", Ok(fail(30))),
            ("noserver=eio:", Err("noserver=eio:")),
            ("noserver=eio:-1", Err("noserver=eio:-1")),
            ("noserver", Err("noserver")),
        ] {
            let expected = expected.map_err(|option| OptionError::Value(option.to_owned()));
            assert_eq!(parse(list).map(|options| options.no_server), expected);
        }
    }

    #[test]
    fn only_a_server_fences() {
        let parsed = parse("fence=/bin/true,quorum_slot_nr=2").unwrap();
        assert_eq!(parsed.fence, Some("/bin/true".into()));
        let alone = parse("fence=/bin/true");
        assert_eq!(alone, Err(OptionError::Without("fence", "quorum_slot_nr")));
        for wrong in ["fence", "fence=", "fence=true"] {
            assert_eq!(parse(wrong), Err(OptionError::Value(wrong.to_owned())));
        }
    }

    #[test]
    fn what_is_not_there_is_refused_unless_told_otherwise() {
        assert_eq!(parse("ro,subvol=7"), Err(OptionError::Unknown("subvol=7".to_owned())));
        assert_eq!(parse("ro=1"), Err(OptionError::Unknown("ro=1".to_owned())));
        assert_eq!(parse("remount"), Err(OptionError::Unsupported("remount".to_owned())));
        assert_eq!(MountOptions::parse("subvol=7", true), Ok(MountOptions::default()));
        assert!(MountOptions::parse("quorum_slot_nr=x", true).is_err());
        assert!(MountOptions::parse("quorum_slot_nr=7", true).is_err());
        assert_eq!(parse("quorum_slot_nr=6").unwrap().quorum_slot, Slot::new(6));
    }
}
