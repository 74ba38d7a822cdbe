//! What was acknowledged, and what is found of it.
//!
//! What this module deliberately doesn't know: how records were written.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

/// The records of one writer in one file, numbered from 0.
#[derive(Debug)]
pub(crate) struct Records {
    writer: String,
    pub(crate) count: u64,
}

impl Records {
    /// None yet.
    pub(crate) fn new(thread: usize, file: u64) -> Records {
        Records { writer: format!("{thread}.{file}"), count: 0 }
    }

    /// The next to be written, a line.
    pub(crate) fn next(&self) -> String {
        format!("{} {}\n", self.writer, self.count)
    }
}

/// Files and the records that were acknowledged in them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    files: BTreeMap<String, Vec<Records>>,
}

/// How a file system compares with the ledger.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) found: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) strange: u64,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { found, lost, doubled, strange } = self;
        write!(f, "{found} records found, {lost} lost, {doubled} doubled, {strange} strange")
    }
}

impl Ledger {
    /// What one writer has written into a file.
    pub(crate) fn note(&mut self, name: String, records: Records) {
        self.files.entry(name).or_default().push(records);
    }

    /// What another knows too.
    pub(crate) fn merge(&mut self, other: Ledger) {
        for (name, records) in other.files {
            self.files.entry(name).or_default().extend(records);
        }
    }

    /// All records.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.files.values().flatten().map(|records| records.count).sum()
    }

    /// Reads all files below a directory.
    pub(crate) fn compare(&self, dir: &Path) -> Result<Found, String> {
        let mut found = Found::default();
        for (name, writers) in &self.files {
            let path = dir.join(name);
            let text = fs::read_to_string(&path);
            let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
            found.add(&text, writers);
        }
        Ok(found)
    }
}

impl Found {
    /// Compares a file with its records.
    fn add(&mut self, text: &str, writers: &[Records]) {
        let mut times: BTreeMap<&str, u64> = BTreeMap::new();
        for line in text.split_inclusive('\n') {
            *times.entry(line).or_default() += 1;
        }
        for writer in writers {
            for count in 0..writer.count {
                let record = Records { writer: writer.writer.clone(), count }.next();
                match times.remove(record.as_str()) {
                    None => self.lost += 1,
                    Some(1) => self.found += 1,
                    Some(_) => self.doubled += 1,
                }
            }
        }
        self.strange += times.values().sum::<u64>();
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Records};

    #[test]
    fn what_is_lost_doubled_and_strange_is_counted() {
        let writers = [
            Records { writer: "1.0".to_owned(), count: 4 },
            Records { writer: "2.0".to_owned(), count: 1 },
        ];
        let mut found = Found::default();
        found.add("1.0 0\n2.0 0\n1.0 1\n1.0 1\n1.0 3\n1.0 4\n1.", &writers);
        assert_eq!(found, Found { found: 3, lost: 1, doubled: 1, strange: 2 });
    }
}
