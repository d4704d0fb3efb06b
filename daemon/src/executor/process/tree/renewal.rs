//! Whether a tree that was sent TERM is shutting down, or goes on and on.
//!
//! A tree that shuts down in good order has a process that stays until the end: a shell that waits, a parent that collects
//! its children. Where all processes are new at every look, the tree does not shut down: it forks and leaves, and more time
//! does not help.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::process::{Id, Process};

/// Sets how far apart two compared looks are; the longer one is for a busy machine, where each process lives longer.
const WINDOW_LENGTHS: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(1500)];
/// Sets in how many windows in a row all processes have to be new.
const MIN_RENEWED_WINDOWS: u32 = 2;
/// Sets from which size on one old process in ten does not count as a tree that shuts down.
const LARGE_TREE_MIN_PROCESSES: usize = 64;
/// Sets from which size on a tree counts as handed on, when no process that was sent TERM is left and it has not shrunk.
const HANDED_ON_MIN_PROCESSES: usize = 32;
/// Bounds how many more processes than were sent TERM a shutdown may need.
const GROWN_MIN_EXTRA_PROCESSES: usize = 256;

/// Remembers a tree since it was sent TERM.
#[derive(Debug)]
pub(crate) struct Renewal {
    told: HashSet<Id>,
    windows: [Window; 2],
}

/// Compares two looks.
#[derive(Debug)]
struct Window {
    length: Duration,
    since: Instant,
    /// The processes that were there when it began.
    then: HashSet<Id>,
    /// The most processes in one look since then: a look misses some of those that come and go.
    most: usize,
    /// How many windows in a row had only new processes.
    renewed: u32,
}

impl Renewal {
    /// Begins when these processes were sent TERM.
    pub(crate) fn new(now: Instant, told: &[Process]) -> Self {
        let told: HashSet<Id> = told.iter().map(Process::id).collect();
        let windows =
            WINDOW_LENGTHS.map(|length| Window { length, since: now, then: told.clone(), most: 0, renewed: 0 });
        Self { told, windows }
    }

    /// Returns whether the processes that are there now show that the tree goes on and on.
    pub(crate) fn goes_on(&mut self, now: Instant, there: &[Process]) -> bool {
        if there.len() >= self.told.len() + GROWN_MIN_EXTRA_PROCESSES {
            return true;
        }
        let ids: HashSet<Id> = there.iter().map(Process::id).collect();
        let told = &self.told;
        self.windows.iter_mut().any(|window| {
            let Some(most) = window.ends(now, &ids, told.len()) else {
                return false;
            };
            let handed_on = most >= HANDED_ON_MIN_PROCESSES && told.is_disjoint(&ids);
            handed_on || window.renewed >= MIN_RENEWED_WINDOWS
        })
    }
}

impl Window {
    /// Begins the next window if this look ends this one. Returns how many processes the ended one had, or 0 where the tree
    /// has shrunk below three quarters of `told`; `None` while it lasts.
    fn ends(&mut self, now: Instant, there: &HashSet<Id>, told: usize) -> Option<usize> {
        self.most = self.most.max(there.len());
        if now < self.since + self.length {
            return None;
        }
        // The number of a bomb goes up and down a little.
        let most = if self.most * 4 >= told * 3 { self.most } else { 0 };
        let old = there.intersection(&self.then).count();
        let renewed =
            !there.is_empty() && if most >= LARGE_TREE_MIN_PROCESSES { old * 10 <= there.len() } else { old == 0 };
        *self = Self {
            length: self.length,
            since: now,
            then: there.clone(),
            most: 0,
            renewed: if renewed { self.renewed + 1 } else { 0 },
        };
        Some(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processes(pids: impl IntoIterator<Item = i32>) -> Vec<Process> {
        let process = |pid| Process {
            pid,
            name: "x".into(),
            parent: 1,
            group: 1,
            session: 1,
            start: 7,
            dead: false,
            stopped: false,
            kernel: false,
        };
        pids.into_iter().map(process).collect()
    }

    /// Shows one tree every 50 ms for 5 s; returns when malai stops waiting for it.
    fn given_up(told: &[Process], there: impl Fn(i32) -> Vec<Process>) -> Option<Duration> {
        let began = Instant::now();
        let mut renewal = Renewal::new(began, told);
        (1..=100).find_map(|look: i32| {
            let after = Duration::from_millis(50) * look.unsigned_abs();
            renewal.goes_on(began + after, &there(look)).then_some(after)
        })
    }

    #[test]
    fn who_stays_to_shut_down_is_given_all_its_time() {
        // A shell whose trap waits in a loop of short sleeps.
        assert_eq!(given_up(&processes([1, 2]), |look| processes([1, 100 + look])), None);
        // A parent of a hundred, each with a helper of its own.
        assert_eq!(given_up(&processes(1..=100), |_| processes(1..=200)), None);
        // One that hands over to somebody who cleans up, and leaves.
        assert_eq!(given_up(&processes([1]), |_| processes([9])), None);
        // Forty who hand over, and are soon fewer.
        assert_eq!(given_up(&processes(1..=40), |look| processes(100..120 - look.min(20))), None);
        // One that has its helpers one after another, eight at a time.
        assert_eq!(given_up(&processes([1]), |look| processes((0..8).map(|n| 10 * look + n).chain([1]))), None);
        // A parent whose forty children ended, and which has a script for each that waits in a loop of short sleeps.
        let scripts = |look: i32| processes((0..40).map(|n| 100 * look + n + 100).chain(41..=80).chain([1]));
        assert_eq!(given_up(&processes(1..=41), scripts), None);
        // Nobody is there.
        assert_eq!(given_up(&processes([1]), |_| Vec::new()), None);
    }

    #[test]
    fn who_forks_and_leaves_is_given_a_second_and_where_there_are_many_half_of_it() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(given_up(&processes([1]), |look| processes([100 + look])), second);
        assert_eq!(given_up(&processes(1..=20), |look| processes(20 * look + 100..20 * look + 120)), second);
        let half = Some(Duration::from_millis(500));
        assert_eq!(given_up(&processes(1..=300), |look| processes(300 * look + 1..300 * look + 301)), half);
        // On a busy machine each lives for longer than a window.
        assert_eq!(given_up(&processes(1..=300), |look| processes(500 + 40 * look..800 + 40 * look)), half);
        // Somebody stays who starts the others.
        let spawner = |look: i32| processes((300 * look + 2..300 * look + 280).chain([1]));
        assert_eq!(given_up(&processes(1..=301), spawner), second);
        // The same on a busy machine.
        let slow = |look: i32| processes((12 * look + 2..12 * look + 280).chain([1]));
        assert_eq!(given_up(&processes(1..=280), slow), Some(Duration::from_secs(3)));
    }

    #[test]
    fn who_only_becomes_more_is_given_up_at_once() {
        let grows = |look| processes(1..=10 + 100 * look);
        assert_eq!(given_up(&processes(1..=10), grows), Some(Duration::from_millis(150)));
    }
}
