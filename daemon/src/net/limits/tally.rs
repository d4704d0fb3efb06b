//! Counts refusals for the log. Each peer that is refused has one line and then only a count, so that one that comes
//! again and again does not fill the log.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Sets for how long further refusals of the same one are only counted after a line about it.
const REFUSAL_LINE_INTERVAL: Duration = Duration::from_secs(3600);
/// Bounds the peers that are remembered. All others share one line.
const MAX_REMEMBERED_REFUSED: usize = 1024;

/// Counts refusals, by who is refused.
#[derive(Debug)]
pub(crate) struct Tally<K>(Mutex<Lines<K>>);

#[derive(Debug)]
struct Lines<K> {
    each: HashMap<K, Line>,
    /// Is the line of all others, for which there was no room.
    shared: Option<Line>,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    written_at: Instant,
    left_out: u64,
}

impl Line {
    /// Counts one more refusal. Where another line is due, returns how many were left out since the last one.
    fn count(line: &mut Option<Self>, now: Instant) -> Option<u64> {
        match line {
            Some(line) if now < line.written_at + REFUSAL_LINE_INTERVAL => {
                line.left_out += 1;
                None
            }
            due => {
                let left_out = due.map_or(0, |line| line.left_out);
                *due = Some(Self { written_at: now, left_out: 0 });
                Some(left_out)
            }
        }
    }
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(Mutex::new(Lines { each: HashMap::new(), shared: None }))
    }
}

impl<K: Hash + Eq> Tally<K> {
    /// Counts one more refusal, or another event that may repeat. Where a line is due now, returns how many were left
    /// out since the last one.
    pub(crate) fn refused(&self, who: K) -> Option<u64> {
        self.refused_at(who, Instant::now())
    }

    fn refused_at(&self, who: K, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock();
        if lines.each.len() >= MAX_REMEMBERED_REFUSED && !lines.each.contains_key(&who) {
            // Those with a count have their line with their next refusal.
            lines.each.retain(|_, line| now < line.written_at + REFUSAL_LINE_INTERVAL);
        }
        if lines.each.len() >= MAX_REMEMBERED_REFUSED && !lines.each.contains_key(&who) {
            return Line::count(&mut lines.shared, now);
        }
        let mut line = lines.each.get(&who).copied();
        let due = Line::count(&mut line, now);
        lines.each.extend(line.map(|line| (who, line)));
        due
    }

    /// Forgets a peer that is let in: its next refusal is news.
    pub(crate) fn forget(&self, who: &K) {
        self.0.lock().each.remove(who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_that_is_refused_twice_a_second_for_a_day_has_a_line_an_hour_and_every_refusal_is_counted() {
        let (tally, begun) = (Tally::default(), Instant::now());
        let all = 2 * 24 * 3600;
        let told: Vec<u64> = (0..all).filter_map(|number| tally.refused_at(7, begun + SECOND * number / 2)).collect();
        assert_eq!(told.len(), 24);
        assert_eq!(told[0], 0);
        assert!(told[1..].iter().all(|left_out| *left_out == 7199), "{told:?}");
    }

    #[test]
    fn each_has_a_line_of_its_own_and_another_one_after_it_was_let_in() {
        let (tally, now) = (Tally::default(), Instant::now());
        assert_eq!([1, 2, 1, 2].map(|who| tally.refused_at(who, now)), [Some(0), Some(0), None, None]);
        tally.forget(&1);
        assert_eq!([1, 2].map(|who| tally.refused_at(who, now)), [Some(0), None]);
    }

    #[test]
    fn strangers_without_number_share_one_line_and_take_bounded_memory() {
        let (tally, now) = (Tally::default(), Instant::now());
        let lines = (0..100_000).filter(|who| tally.refused_at(*who, now).is_some()).count();
        assert_eq!(lines, MAX_REMEMBERED_REFUSED + 1);
        assert_eq!(tally.0.lock().each.len(), MAX_REMEMBERED_REFUSED);
        let later = now + REFUSAL_LINE_INTERVAL;
        assert_eq!(tally.refused_at(100_000, later), Some(0), "there is room again");
    }
}
