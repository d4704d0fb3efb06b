//! Sessions without cgroups: what /proc shows of kernel session, process group, environment and descent.

use std::collections::HashSet;
use std::fs;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::super::env::MARKER;
use super::super::reap::Child;

/// How much of an environment is searched: the marker stands anywhere, and Linux allows a quarter of the stack.
const MAX_ENVIRON: u64 = 4 * 1024 * 1024;

/// What is known of one session's processes from look to look.
#[derive(Debug)]
pub(crate) struct Scan {
    variable: String,
    /// Process id and start time of those seen: one whose parent has died since is still known.
    known: HashSet<(i32, u64)>,
}

/// One line of /proc/PID/stat, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    start: u64,
    dead: bool,
}

impl Scan {
    /// For the session with this mark.
    pub(crate) fn new(mark: &str) -> Self {
        Self { variable: format!("{MARKER}={mark}"), known: HashSet::new() }
    }

    /// All living processes of the session that can be found.
    #[cfg(target_os = "linux")]
    pub(crate) fn members(&mut self, child: &Child) -> Vec<Pid> {
        let all = processes();
        let leader = child.pid().as_raw();
        let ours = child.is_ours();
        // While a process lives in a session or group, its number is not given to another. So once the leader was
        // collected, a process of its number means that nothing of the old session is left.
        let valid = ours || !all.iter().any(|p| p.pid == leader);
        let mut found: HashSet<i32> = all
            .iter()
            .filter(|p| {
                (ours && p.pid == leader)
                    || (valid && (p.session == leader || p.group == leader))
                    || self.known.contains(&(p.pid, p.start))
                    || carries(p.pid, &[&self.variable])
            })
            .map(|p| p.pid)
            .collect();
        descend(&all, &mut found);
        let members: Vec<_> = all.iter().filter(|p| found.contains(&p.pid) && !p.dead).collect();
        self.known = members.iter().map(|p| (p.pid, p.start)).collect();
        members.iter().map(|p| Pid::from_raw(p.pid)).collect()
    }

    /// Without /proc only the process group is known, and it is signalled as a whole.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn members(&mut self, child: &Child) -> Vec<Pid> {
        let there = nix::sys::signal::killpg(child.pid(), None).is_ok();
        there.then(|| Pid::from_raw(-child.pid().as_raw())).into_iter().collect()
    }
}

/// Adds children of what was found, until there are no more.
fn descend(all: &[Process], found: &mut HashSet<i32>) {
    loop {
        let before = found.len();
        for process in all {
            if found.contains(&process.parent) {
                found.insert(process.pid);
            }
        }
        if found.len() == before {
            return;
        }
    }
}

/// Kills every process that carries one of these marks; says how many there were.
pub(crate) fn kill_marked(marks: &[String]) -> usize {
    if marks.is_empty() {
        return 0;
    }
    let variables: Vec<String> = marks.iter().map(|mark| format!("{MARKER}={mark}")).collect();
    let variables: Vec<&String> = variables.iter().collect();
    let marked: Vec<Pid> = processes()
        .into_iter()
        .filter(|p| !p.dead && carries(p.pid, &variables))
        .map(|p| Pid::from_raw(p.pid))
        .collect();
    super::send(&marked, Signal::SIGKILL);
    marked.len()
}

/// Every process but this one, as far as /proc shows them.
fn processes() -> Vec<Process> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?)))
        .collect()
}

/// The fields follow the last `)`: the name before it may contain anything.
fn parse(stat: &str) -> Option<Process> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    Some(Process {
        pid,
        dead: matches!(*fields.first()?, "Z" | "X"),
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// Whether the process has one of these in its environment. One that we may not look into does not tell.
fn carries(pid: i32, variables: &[&String]) -> bool {
    use std::io::Read;
    let mut environ = Vec::new();
    let read = fs::File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(MAX_ENVIRON).read_to_end(&mut environ));
    read.is_ok() && environ.split(|b| *b == 0).any(|entry| variables.iter().any(|v| v.as_bytes() == entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let fields = "S 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 2703360 1";
        let process = parse(&format!("12 (a) R 1 (b) {fields}")).expect("parses");
        let wanted = Process { pid: 12, parent: 7, group: 8, session: 9, start: 4242, dead: false };
        assert_eq!(process, wanted);
        assert_eq!(parse("12 (a"), None);
    }

    #[test]
    fn descendants_are_found_at_any_depth_and_in_any_order() {
        let process = |pid, parent| Process { pid, parent, group: 0, session: 0, start: 0, dead: false };
        let all = [process(5, 4), process(4, 3), process(3, 2), process(9, 1)];
        let mut found = HashSet::from([2]);
        descend(&all, &mut found);
        assert_eq!(found, HashSet::from([2, 3, 4, 5]));
    }
}
