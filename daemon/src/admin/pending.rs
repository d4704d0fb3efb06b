//! The machines that knock: without an invite, they ask to be approved. They are kept in memory only. Strangers write here,
//! so their number and their rate are bounded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::local;

/// Bounds the machines that knock at once.
const MAX_PENDING: usize = 64;
/// Sets how often one key may knock. Machines wait for 5 s or more, but the network may deliver two knocks sooner.
const KNOCK_MIN_INTERVAL: Duration = Duration::from_secs(4);
/// Sets the time in which all together may knock [`MAX_KNOCKS_PER_WINDOW`] times.
const KNOCK_WINDOW: Duration = Duration::from_secs(4);
const MAX_KNOCKS_PER_WINDOW: u32 = 2 * MAX_PENDING as u32;
/// Sets after which time without a knock a machine counts as gone.
const KNOCKER_GONE_AFTER: Duration = Duration::from_secs(120);
/// Bounds from below the prefix that may stand for an id52.
const MIN_ID_PREFIX_CHARS: usize = 12;
/// Bounds a host name, as DNS does.
const MAX_HOSTNAME_CHARS: usize = 253;

/// Holds the machines that knock at one cluster.
#[derive(Debug)]
pub struct Pending {
    cluster: String,
    knocking: BTreeMap<MachineId, Knocking>,
    window: Option<Instant>,
    knocks: u32,
}

#[derive(Debug)]
struct Knocking {
    hostname: String,
    from: String,
    since_ms: u64,
    last_ms: u64,
    last: Instant,
}

impl Pending {
    /// Makes the empty list for the cluster with this alias.
    pub fn new(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned(), knocking: BTreeMap::new(), window: None, knocks: 0 }
    }

    /// Notes a knock, from an address, at an instant and its time on the wall clock.
    ///
    /// # Errors
    /// [`Kind::Busy`] when it comes too soon, or too many knock.
    pub fn knock(
        &mut self,
        id: MachineId,
        hostname: &str,
        from: &str,
        at: Instant,
        now_ms: u64,
    ) -> Result<(), Failure> {
        self.forget_gone(at);
        self.count(at)?;
        let hostname: String = hostname.chars().take(MAX_HOSTNAME_CHARS).collect();
        if let Some(known) = self.knocking.get_mut(&id) {
            if at.saturating_duration_since(known.last) < KNOCK_MIN_INTERVAL {
                return Err(Failure::new(Kind::Busy, "this machine knocks too often"));
            }
            *known = Knocking { hostname, from: from.to_owned(), since_ms: known.since_ms, last_ms: now_ms, last: at };
            return Ok(());
        }
        if self.knocking.len() >= MAX_PENDING {
            let message = format!("{MAX_PENDING} machines are knocking; the list is full");
            let hint =
                format!("on the cluster manager: malai cluster approve {} {id} works without a knock", self.cluster);
            return Err(Failure::new(Kind::Busy, message).hint(hint));
        }
        let knocking = Knocking { hostname, from: from.to_owned(), since_ms: now_ms, last_ms: now_ms, last: at };
        self.knocking.insert(id, knocking);
        Ok(())
    }

    /// Lists the machines that knock, by id.
    pub fn list(&self, at: Instant) -> Vec<local::Pending> {
        self.knocking
            .iter()
            .filter(|(_, k)| !k.gone(at))
            .map(|(id, k)| local::Pending {
                id: *id,
                hostname: k.hostname.clone(),
                from: k.from.clone(),
                since_ms: k.since_ms,
                last_ms: k.last_ms,
            })
            .collect()
    }

    /// Forgets a machine that was enrolled or refused.
    pub fn settle(&mut self, id: &MachineId) {
        self.knocking.remove(id);
    }

    fn forget_gone(&mut self, at: Instant) {
        self.knocking.retain(|_, k| !k.gone(at));
    }

    fn count(&mut self, at: Instant) -> Result<(), Failure> {
        if self.window.is_none_or(|begun| at.saturating_duration_since(begun) >= KNOCK_WINDOW) {
            self.window = Some(at);
            self.knocks = 0;
        }
        self.knocks = self.knocks.saturating_add(1);
        if self.knocks > MAX_KNOCKS_PER_WINDOW {
            return Err(Failure::new(Kind::Busy, "too many machines knock at once"));
        }
        Ok(())
    }
}

impl Knocking {
    fn gone(&self, at: Instant) -> bool {
        at.saturating_duration_since(self.last) >= KNOCKER_GONE_AFTER
    }
}

/// Finds the machine that an administrator means, and the host name that it gave: by a full id52, or by a unique prefix
/// of 12 or more characters among those that knock.
///
/// # Errors
/// [`Kind::Usage`] when the text is neither, [`Kind::UnknownTarget`] and [`Kind::AmbiguousTarget`] when it is a prefix
/// of none or of several.
pub fn find(pending: &[local::Pending], text: &str) -> Result<(MachineId, Option<String>), Failure> {
    if let Ok(id) = text.parse::<MachineId>() {
        let hostname = pending.iter().find(|p| p.id == id).map(|p| p.hostname.clone());
        return Ok((id, hostname));
    }
    let is_prefix = text.len() < 52 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'v'));
    if text.len() < MIN_ID_PREFIX_CHARS || !is_prefix {
        let message = format!("{text:?} is not an id52, nor the first {MIN_ID_PREFIX_CHARS} or more characters of one");
        return Err(Failure::new(Kind::Usage, message).hint("`malai machine init` prints it on the machine"));
    }
    let mut found = pending.iter().filter(|p| p.id.to_string().starts_with(text));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok((one.id, Some(one.hostname.clone()))),
        (Some(_), Some(_)) => {
            Err(Failure::new(Kind::AmbiguousTarget, format!("several machines that knock begin with {text}"))
                .hint("give more characters"))
        }
        (None, _) => Err(Failure::new(Kind::UnknownTarget, format!("no machine that knocks begins with {text}"))
            .hint("give the full id52: it works without a knock")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::manager::tests::machine;

    const SECOND: Duration = Duration::from_secs(1);

    fn knock(pending: &mut Pending, id: MachineId, at: Instant) -> Result<(), Failure> {
        pending.knock(id, "web01", "192.0.2.7:4001", at, 1)
    }

    #[test]
    fn a_knock_is_listed_until_two_minutes_after_the_last_one() {
        let mut pending = Pending::new("company");
        let start = Instant::now();
        let id = machine();
        pending.knock(id, "web01", "192.0.2.7:4001", start, 1000).expect("noted");
        pending.knock(id, "web01.example.com", "192.0.2.8:4001", start + 100 * SECOND, 2000).expect("noted");
        let listed = pending.list(start + 219 * SECOND);
        let [only] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((only.id, only.since_ms, only.last_ms), (id, 1000, 2000));
        assert_eq!((only.hostname.as_str(), only.from.as_str()), ("web01.example.com", "192.0.2.8:4001"));
        assert_eq!(pending.list(start + 220 * SECOND), Vec::new());
    }

    #[test]
    fn a_key_that_knocks_too_often_is_refused() {
        let mut pending = Pending::new("company");
        let start = Instant::now();
        let id = machine();
        knock(&mut pending, id, start).expect("noted");
        assert_eq!(knock(&mut pending, id, start + 3 * SECOND).expect_err("too soon").kind, Kind::Busy);
        knock(&mut pending, id, start + 5 * SECOND).expect("in time");
        pending.settle(&id);
        knock(&mut pending, id, start + 6 * SECOND).expect("settled, and so new");
    }

    #[test]
    fn a_full_table_refuses_new_ones_and_says_what_works_without_it() {
        let mut pending = Pending::new("company");
        let start = Instant::now();
        let ids: Vec<MachineId> = (0..MAX_PENDING).map(|_| machine()).collect();
        for id in &ids {
            knock(&mut pending, *id, start).expect("noted");
        }
        let late = machine();
        let refused = knock(&mut pending, late, start + SECOND).expect_err("full");
        assert_eq!(refused.kind, Kind::Busy);
        assert!(refused.hint.is_some_and(|hint| hint.contains(&format!("malai cluster approve company {late}"))));
        // Those that are there go on, and one that goes away makes room.
        knock(&mut pending, ids[0], start + 5 * SECOND).expect("noted");
        knock(&mut pending, late, start + 121 * SECOND).expect("room again");
    }

    #[test]
    fn all_together_are_limited_too() {
        let mut pending = Pending::new("company");
        let start = Instant::now();
        let refused: Vec<Failure> =
            (0..=MAX_KNOCKS_PER_WINDOW).filter_map(|_| knock(&mut pending, machine(), start).err()).collect();
        assert_eq!(refused.last().map(|f| f.message.as_str()), Some("too many machines knock at once"));
        assert!(pending.list(start).len() <= MAX_PENDING);
    }

    #[test]
    fn a_machine_is_meant_by_its_id_or_by_a_unique_prefix() {
        let mut pending = Pending::new("company");
        let start = Instant::now();
        let (one, other) = (machine(), machine());
        knock(&mut pending, one, start).expect("noted");
        let mut list = pending.list(start);
        let text = one.to_string();
        let found = Ok((one, Some("web01".to_owned())));
        assert_eq!(find(&list, &text), found);
        assert_eq!(find(&list, &text[..12]), found);
        assert_eq!(find(&list, &other.to_string()), Ok((other, None)), "in full it needs no knock");
        let kind = |list: &[local::Pending], text: &str| find(list, text).expect_err(text).kind;
        assert_eq!(kind(&list, &text[..11]), Kind::Usage);
        assert_eq!(kind(&list, &text[..20].to_uppercase()), Kind::Usage);
        assert_eq!(kind(&list, &other.to_string()[..20]), Kind::UnknownTarget);
        list.push(list[0].clone());
        assert_eq!(kind(&list, &text[..12]), Kind::AmbiguousTarget);
    }
}
