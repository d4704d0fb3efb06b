//! Sessions without cgroups: what /proc shows of kernel session, process group, marks and descent.
//!
//! A process is found by what it cannot shake off in passing. Its environment can be cleared, its kernel session left,
//! its parent lost; the limit that [`tag`] makes is inherited through all of these.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;

use nix::sys::signal::Signal;

use super::super::env::MARKER;
use super::super::reap::Child;
use super::process::{self, Process};

/// How much of an environment is searched: the marker stands anywhere, and Linux allows a quarter of the stack.
const MAX_ENVIRON: u64 = 4 * 1024 * 1024;
/// Bounds how often one look searches for processes that started since it began.
const MAX_NEWBORN_PROBES: usize = 64;
/// Sets what a look that found no new process adds to certainty.
const CLEAR_LOOK_CERTAINTY: u32 = 4;
/// Sets what it adds when a process went before malai knew to whom it belonged.
const UNCLEAR_LOOK_CERTAINTY: u32 = 1;
/// Sets how much certainty is enough: two looks in a row, or eight where other processes come and go all the time.
pub(crate) const SUFFICIENT_CERTAINTY: u32 = 8;

/// Returns the limit of file locks that marks the processes of a session.
///
/// Linux has had no such limit since 2.4.25, but it still keeps the number, hands it to every child, and shows it to
/// everybody in /proc/PID/limits; only root can raise it again. It is larger than whatever somebody sets on purpose.
pub(crate) fn tag(mark: &str) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&blake3::hash(mark.as_bytes()).as_bytes()[..8]);
    (1 << 61) | (u64::from_le_bytes(bytes) >> 3)
}

/// What is known of the processes of one session, or of several that are ended together, from look to look.
#[derive(Debug)]
pub(crate) struct Scan {
    variables: Vec<Vec<u8>>,
    tags: HashSet<u64>,
    seen: HashMap<i32, Seen>,
}

/// A process that was looked at.
#[derive(Debug, Clone, Copy)]
struct Seen {
    start: u64,
    whose: Whose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Anothers,
    /// It shows no environment, as in the middle of exec: it is asked again.
    Unknown,
}

/// What one look found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Those that live.
    pub(crate) members: Vec<Process>,
    /// How many were not known, of which some may have died already.
    pub(crate) new: usize,
    /// How many went before it was clear whose they were.
    pub(crate) missed: usize,
}

impl Look {
    /// Of something that could not be looked at, of which this was the first process.
    pub(crate) fn unknown(child: &Child) -> Self {
        let pid = child.pid().as_raw();
        // Once it was collected its number may be another's, who has nothing to do with this.
        let first = process::read(pid).filter(|_| child.is_ours());
        let unnamed = Process {
            pid,
            name: "?".into(),
            parent: 0,
            group: 0,
            session: 0,
            start: 0,
            dead: false,
            stopped: false,
            kernel: false,
        };
        Self { members: vec![first.unwrap_or(unnamed)], new: 0, missed: 0 }
    }

    /// Returns how far this look shows that there is nothing new. Its sum over looks in a row has to reach
    /// [`SUFFICIENT_CERTAINTY`].
    pub(crate) fn certainty(&self) -> u32 {
        match (self.new, self.missed) {
            (0, 0) => CLEAR_LOOK_CERTAINTY,
            (0, _) => UNCLEAR_LOOK_CERTAINTY,
            _ => 0,
        }
    }
}

/// The first process of a session, whose number is also that of its kernel session and group.
#[derive(Debug, Clone, Copy)]
struct Leader {
    pid: i32,
    ours: bool,
    valid: bool,
}

impl Leader {
    fn of(child: &Child, pids: &[i32]) -> Self {
        let pid = child.pid().as_raw();
        let ours = child.is_ours();
        // While a process lives in a session or group, its number is not given to another. So once the leader was
        // collected, a process of its number means that nothing of the old session is left.
        Self { pid, ours, valid: ours || !pids.contains(&pid) }
    }

    fn leads(self, process: &Process) -> bool {
        if process.pid == self.pid {
            // Else it was given the number while all were looked at.
            return self.ours;
        }
        self.valid && (process.session == self.pid || process.group == self.pid)
    }
}

/// One look, while it is made.
#[derive(Debug)]
struct Pass {
    leader: Option<Leader>,
    /// Whether members are stopped as they are found.
    stops: bool,
    visited: HashSet<i32>,
    all: Vec<Process>,
    new: usize,
    missed: usize,
}

impl Scan {
    /// For the sessions with these marks.
    pub(crate) fn new(marks: &[String]) -> Self {
        Self {
            variables: marks.iter().map(|mark| format!("{MARKER}={mark}").into_bytes()).collect(),
            tags: marks.iter().map(|mark| tag(mark)).collect(),
            seen: HashMap::new(),
        }
    }

    /// Finds all members. With `stops`, each is stopped at once, before the next is looked at: what is stopped forks no
    /// more, and stays the parent by which its children are known.
    #[cfg(target_os = "linux")]
    pub(crate) fn look(&mut self, child: Option<&Child>, stops: bool) -> Look {
        let pids = process::pids();
        let leader = child.map(|child| Leader::of(child, &pids));
        let visited = HashSet::with_capacity(pids.len());
        let mut pass = Pass { leader, stops, visited, all: Vec::with_capacity(pids.len()), new: 0, missed: 0 };
        // Those first that nobody has looked at: the others do not run away.
        let (known, unknown): (Vec<i32>, Vec<i32>) = pids.iter().partition(|pid| self.seen.contains_key(pid));
        for pid in unknown.into_iter().chain(known) {
            self.visit(&mut pass, pid);
        }
        // One that forks and leaves is always the youngest there is.
        for _ in 0..MAX_NEWBORN_PROBES {
            match process::newest() {
                Some(pid) if !pass.visited.contains(&pid) => self.probe(&mut pass, pid),
                _ => break,
            }
        }
        self.descend(&mut pass);
        let Pass { visited, all, new, missed, .. } = pass;
        self.seen.retain(|pid, _| visited.contains(pid));
        let members = all.into_iter().filter(|process| !process.dead && self.is_ours(process)).collect();
        Look { members, new, missed }
    }

    /// Without /proc only the process group is known, and it is signalled as a whole.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn look(&mut self, child: Option<&Child>, _stops: bool) -> Look {
        let pid = child.map(Child::pid).filter(|pid| nix::sys::signal::killpg(*pid, None).is_ok());
        let group = |pid: nix::unistd::Pid| Process {
            pid: -pid.as_raw(),
            name: "a process group".into(),
            parent: 0,
            group: pid.as_raw(),
            session: pid.as_raw(),
            start: 0,
            dead: false,
            stopped: false,
            kernel: false,
        };
        Look { members: pid.map(group).into_iter().collect(), new: 0, missed: 0 }
    }

    /// Whether a user of whom these are processes has no other: then all of them can be ended at once.
    pub(crate) fn is_alone(&self, uid: u32, members: &[Process]) -> bool {
        members.iter().any(|process| process::is_of(process.pid, uid))
            && process::pids().into_iter().all(|pid| {
                let ours = |process: &Process| process.dead || self.is_ours(process);
                !process::is_of(pid, uid) || process::read(pid).is_none_or(|process| ours(&process) || self.shows(pid))
            })
    }

    fn is_ours(&self, process: &Process) -> bool {
        let seen = self.seen.get(&process.pid);
        seen.is_some_and(|seen| seen.start == process.start && seen.whose == Whose::Ours)
    }

    fn visit(&mut self, pass: &mut Pass, pid: i32) {
        pass.visited.insert(pid);
        let Some(process) = process::read(pid) else {
            pass.missed += usize::from(!self.seen.contains_key(&pid));
            return;
        };
        let seen = self.seen.get(&pid).filter(|seen| seen.start == process.start).map(|seen| seen.whose);
        let whose = match seen {
            Some(whose) if whose != Whose::Unknown => whose,
            _ => self.whose(pass, &process),
        };
        self.seen.insert(pid, Seen { start: process.start, whose });
        if whose == Whose::Ours {
            pass.found(&process, seen != Some(Whose::Ours));
        }
        pass.all.push(process);
    }

    /// Visits what may be a thread of a process that is visited by its own number.
    fn probe(&mut self, pass: &mut Pass, pid: i32) {
        let (count, new) = (pass.all.len(), pass.new);
        self.visit(pass, pid);
        if pass.all.len() > count && !process::leads(pid) {
            pass.all.truncate(count);
            pass.new = new;
            self.seen.remove(&pid);
        }
    }

    fn whose(&self, pass: &mut Pass, process: &Process) -> Whose {
        if pass.leader.is_some_and(|leader| leader.leads(process)) || self.has_tag(process.pid) {
            return Whose::Ours;
        }
        if process.kernel {
            return Whose::Anothers;
        }
        match environ(process.pid) {
            Ok(environ) if self.has_variable(&environ) => Whose::Ours,
            Ok(environ) if !environ.is_empty() => Whose::Anothers,
            Ok(_) => Whose::Unknown,
            // It will not be shown later, either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Whose::Anothers,
            Err(_) => {
                pass.missed += usize::from(!process.dead);
                Whose::Unknown
            }
        }
    }

    /// Whether a process shows a mark of these sessions now.
    fn shows(&self, pid: i32) -> bool {
        self.has_tag(pid) || environ(pid).is_ok_and(|environ| self.has_variable(&environ))
    }

    fn has_variable(&self, environ: &[u8]) -> bool {
        environ.split(|byte| *byte == 0).any(|entry| self.variables.iter().any(|variable| variable == entry))
    }

    fn has_tag(&self, pid: i32) -> bool {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        tag_in(&limits).is_some_and(|tag| self.tags.contains(&tag))
    }

    /// Adds the children of members, and theirs.
    fn descend(&mut self, pass: &mut Pass) {
        let all = std::mem::take(&mut pass.all);
        let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
        for process in &all {
            children.entry(process.parent).or_default().push(process);
        }
        let mut todo: Vec<i32> = all.iter().filter(|process| self.is_ours(process)).map(|p| p.pid).collect();
        while let Some(parent) = todo.pop() {
            for child in children.remove(&parent).into_iter().flatten().filter(|child| child.pid != parent) {
                if !self.is_ours(child) {
                    self.seen.insert(child.pid, Seen { start: child.start, whose: Whose::Ours });
                    pass.found(child, true);
                    todo.push(child.pid);
                }
            }
        }
        pass.all = all;
    }
}

impl Pass {
    fn found(&mut self, process: &Process, new: bool) {
        self.new += usize::from(new);
        if self.stops && !process.stopped && !process.dead {
            super::signal(process, Signal::SIGSTOP);
        }
    }
}

/// The hard limit of file locks in the text of /proc/PID/limits, where there is one.
fn tag_in(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file locks"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn environ(pid: i32) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut environ = Vec::new();
    fs::File::open(format!("/proc/{pid}/environ"))?.take(MAX_ENVIRON).read_to_end(&mut environ)?;
    Ok(environ)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        let name = String::new();
        Process { pid, name, parent, group: 0, session: 0, start: 0, dead: false, stopped: false, kernel: false }
    }

    #[test]
    fn descendants_are_found_at_any_depth_and_in_any_order() {
        let mut scan = Scan::new(&["x".into()]);
        scan.seen.insert(2, Seen { start: 0, whose: Whose::Ours });
        let all = vec![process(5, 4), process(4, 3), process(3, 2), process(9, 1), process(2, 1)];
        let mut pass = Pass { leader: None, stops: false, visited: HashSet::new(), all, new: 0, missed: 0 };
        scan.descend(&mut pass);
        let mut found: Vec<i32> = pass.all.iter().filter(|p| scan.is_ours(p)).map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!((found, pass.new), (vec![2, 3, 4, 5], 3));
    }

    #[test]
    fn a_process_that_has_the_number_of_a_first_one_that_was_collected_is_anothers() {
        let in_group = |pid| Process { group: 7, session: 7, ..process(pid, 1) };
        let (lives, collected) =
            (Leader { pid: 7, ours: true, valid: true }, Leader { pid: 7, ours: false, valid: true });
        assert!(lives.leads(&in_group(7)) && lives.leads(&in_group(8)) && collected.leads(&in_group(8)));
        assert!(!collected.leads(&in_group(7)));
    }

    #[test]
    fn sessions_have_tags_of_their_own_which_are_read_back_and_larger_than_real_limits() {
        let (one, other) = (tag("1.a"), tag("2.a"));
        assert_ne!(one, other);
        assert!(one > 1 << 60 && one < u64::MAX / 2);
        let limits =
            format!("Max pending signals  5 6 signals\nMax file locks            7      {one}     locks     \n");
        assert_eq!(tag_in(&limits), Some(one));
        assert_eq!(tag_in("Max file locks            unlimited            unlimited            locks     \n"), None);
        assert_eq!(tag_in("Max file locks\n"), None);
        assert_eq!(tag_in(""), None);
    }

    #[test]
    fn two_looks_make_certain_and_eight_where_others_come_and_go() {
        let look = |new, missed| Look { new, missed, ..Look::default() };
        assert_eq!(look(0, 0).certainty() * 2, SUFFICIENT_CERTAINTY);
        assert_eq!(look(0, 1).certainty() * 8, SUFFICIENT_CERTAINTY);
        assert_eq!(look(1, 0).certainty(), 0);
    }
}
