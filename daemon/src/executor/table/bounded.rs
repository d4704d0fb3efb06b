//! A map of sessions that holds so many of all callers and so many of each; the oldest go first.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use malai_protocol::id::MachineId;
use malai_protocol::plan::SessionName;

/// The map.
#[derive(Debug)]
pub(crate) struct Bounded<V> {
    most: usize,
    each: usize,
    /// How many were ever put in: names them in order.
    count: u64,
    values: HashMap<SessionName, (u64, V)>,
    order: BTreeMap<u64, SessionName>,
    callers: HashMap<MachineId, BTreeSet<u64>>,
}

impl<V> Bounded<V> {
    /// At most `most`, and `each` of one caller.
    pub(crate) fn new(most: usize, each: usize) -> Self {
        let (values, order, callers) = (HashMap::new(), BTreeMap::new(), HashMap::new());
        Self { most, each, count: 0, values, order, callers }
    }

    /// What is there under this name.
    pub(crate) fn get(&self, session: &SessionName) -> Option<&V> {
        self.values.get(session).map(|(_, value)| value)
    }

    /// Puts in the newest; returns the name that had to go for it.
    pub(crate) fn insert(&mut self, session: SessionName, value: V) -> Option<SessionName> {
        self.remove(&session);
        let own = self.callers.get(&session.caller);
        let oldest = match own {
            Some(own) if own.len() >= self.each => own.first().and_then(|number| self.order.get(number)).copied(),
            _ if self.values.len() >= self.most => self.oldest(),
            _ => None,
        };
        if let Some(oldest) = &oldest {
            self.remove(oldest);
        }
        self.count += 1;
        self.values.insert(session, (self.count, value));
        self.order.insert(self.count, session);
        self.callers.entry(session.caller).or_default().insert(self.count);
        oldest
    }

    /// The name of the oldest.
    pub(crate) fn oldest(&self) -> Option<SessionName> {
        self.order.first_key_value().map(|(_, session)| *session)
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, session: &SessionName) -> Option<V> {
        let (number, value) = self.values.remove(session)?;
        self.order.remove(&number);
        if let Some(own) = self.callers.get_mut(&session.caller) {
            own.remove(&number);
            if own.is_empty() {
                self.callers.remove(&session.caller);
            }
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{other, session};
    use super::*;

    #[test]
    fn the_oldest_of_all_goes_first_and_a_callers_own_before_that() {
        let mut map = Bounded::new(3, 2);
        assert_eq!(map.insert(other(1), 1), None);
        assert_eq!(map.insert(session(2), 2), None);
        assert_eq!(map.insert(session(3), 3), None);
        assert_eq!(map.insert(session(4), 4), Some(session(2)), "its caller has two already");
        assert_eq!(map.insert(other(5), 5), Some(other(1)), "three are there already");
        assert_eq!((map.get(&session(3)), map.get(&session(2)), map.oldest()), (Some(&3), None, Some(session(3))));
    }

    #[test]
    fn what_is_put_in_anew_is_the_newest_and_what_is_taken_out_makes_room() {
        let mut map = Bounded::new(2, 2);
        map.insert(session(1), 1);
        map.insert(session(2), 2);
        assert_eq!(map.insert(session(1), 3), None);
        assert_eq!(map.oldest(), Some(session(2)));
        assert_eq!(map.remove(&session(2)), Some(2));
        assert_eq!(map.insert(session(4), 4), None);
        assert_eq!(map.get(&session(1)), Some(&3));
    }
}
