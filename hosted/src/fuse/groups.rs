//! Supplementary groups of a process.

use std::fs;

/// Whether the thread is in the group, besides its own. Read from `/proc` each time: a thread that
/// waits for an answer stays, and so do its groups, but what it was a moment ago says nothing.
/// Thread 0 (the kernel, or a process this one can't see) is in none.
#[must_use]
pub fn is_member(pid: u32, gid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups
        .is_some_and(|groups| groups.split_ascii_whitespace().any(|group| group.parse() == Ok(gid)))
}

#[cfg(test)]
mod tests {
    use super::is_member;

    #[test]
    fn nobody_is_in_no_group() {
        assert!(!is_member(0, 0));
    }

    #[test]
    fn what_the_process_says_of_itself_is_found() {
        for group in rustix::process::getgroups().unwrap() {
            assert!(is_member(std::process::id(), group.as_raw()));
        }
        assert!(!is_member(std::process::id(), 4_123_456_789));
    }
}
