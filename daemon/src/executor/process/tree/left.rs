//! What could not be ended, in words.

use super::process::Process;

/// Bounds how many processes are named.
const MAX_NAMED_PROCESSES: usize = 8;

/// Holds the number of processes that an ending left, and the names of the first.
#[derive(Debug, Default)]
pub(crate) struct Left {
    count: usize,
    named: Vec<String>,
}

impl Left {
    /// Counts and names these processes.
    pub(crate) fn of(processes: &[Process]) -> Self {
        let name = |process: &Process| format!("{} {}", process.pid, process.name.escape_debug());
        Self { count: processes.len(), named: processes.iter().take(MAX_NAMED_PROCESSES).map(name).collect() }
    }

    /// Returns the count for the exit record.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.count).unwrap_or(u32::MAX)
    }

    /// Returns the count, and the ids and names of the first processes, for people.
    pub(crate) fn words(&self) -> String {
        let Self { count, named } = self;
        let (what, named) = (if *count == 1 { "process is" } else { "processes are" }, named.join(", "));
        let more = if *count > MAX_NAMED_PROCESSES { ", …" } else { "" };
        format!("{count} {what} left: {named}{more}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_to_eight_are_named_and_all_are_counted() {
        let process = |pid| Process {
            pid,
            name: "a\n".into(),
            parent: 0,
            group: 0,
            session: 0,
            start: 0,
            dead: false,
            stopped: false,
            kernel: false,
        };
        assert_eq!(Left::of(&[process(7)]).words(), "1 process is left: 7 a\\n");
        let many: Vec<Process> = (1..=300).map(process).collect();
        let left = Left::of(&many);
        assert_eq!(left.count(), 300);
        assert!(left.words().starts_with("300 processes are left: 1 a"), "{}", left.words());
        assert!(left.words().ends_with(", 8 a\\n, …"), "{}", left.words());
    }
}
