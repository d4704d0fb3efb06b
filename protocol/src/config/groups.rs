//! Groups within groups: which machines a list has, and how; and groups that contain themselves.

use std::collections::{BTreeMap, VecDeque};

use super::{Allow, Config, Group, Name};

/// Says how a machine comes to be in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// The list has `"*"`.
    Everyone,
    /// The list has the name itself.
    Itself,
    /// The list has the first of these groups, which has the next as a member, and so on; the last has the name.
    Groups(Vec<Name>),
}

impl Config {
    /// Returns how the machine of this name is in the list; None when it is not.
    pub fn via(&self, list: &Allow, who: &Name) -> Option<Via> {
        if list.everyone {
            return Some(Via::Everyone);
        }
        if list.names.contains(who) {
            return Some(Via::Itself);
        }
        // Breadth first: the shortest way is the one to show. Each group is entered once, so that cycles end.
        let mut from: BTreeMap<&Name, Option<&Name>> = BTreeMap::new();
        let mut queue: VecDeque<&Name> = VecDeque::new();
        for name in &list.names {
            from.insert(name, None);
            queue.push_back(name);
        }
        while let Some(name) = queue.pop_front() {
            let Some(group) = self.groups.get(name) else { continue };
            if group.members.contains(who) {
                return Some(Via::Groups(way(&from, name)));
            }
            for member in &group.members {
                if !from.contains_key(member) {
                    from.insert(member, Some(name));
                    queue.push_back(member);
                }
            }
        }
        None
    }
}

/// Returns the groups from the list to this one.
fn way(from: &BTreeMap<&Name, Option<&Name>>, last: &Name) -> Vec<Name> {
    let mut way = vec![last.clone()];
    let mut at = last;
    while let Some(Some(before)) = from.get(at) {
        way.push((*before).clone());
        at = before;
    }
    way.reverse();
    way
}

/// Returns the groups that contain themselves, each once, with a way back to itself: `[a, b]` when a has b and b has
/// a.
pub(super) fn cycles(groups: &BTreeMap<Name, Group>) -> Vec<Vec<Name>> {
    #[derive(PartialEq)]
    enum State {
        Open,
        Done,
    }
    let mut states: BTreeMap<&Name, State> = BTreeMap::new();
    let mut cycles = Vec::new();
    for start in groups.keys() {
        // Depth first without recursion: a chain may be as long as the config.
        let mut path: Vec<(&Name, std::collections::btree_set::Iter<'_, Name>)> = Vec::new();
        let mut next = Some(start);
        loop {
            if let Some(name) = next.take() {
                match (states.get(name), groups.get(name)) {
                    (Some(State::Open), _) => {
                        let ring = path.iter().map(|(name, _)| *name).skip_while(|open| *open != name);
                        cycles.push(ring.cloned().collect());
                    }
                    (Some(State::Done), _) | (None, None) => {}
                    (None, Some(group)) => {
                        states.insert(name, State::Open);
                        path.push((name, group.members.iter()));
                    }
                }
            }
            let Some((name, members)) = path.last_mut() else { break };
            next = members.next();
            if next.is_none() {
                states.insert(*name, State::Done);
                path.pop();
            }
        }
    }
    cycles
}
