//! What the other machines of a cluster tell, each asked now.

use std::sync::Arc;

use malai_protocol::local::{Finding, MachineStatus};

use crate::clock::now_ms;
use crate::membership::Membership;
use crate::membership::dial::ago;
use crate::status;

/// Clocks that differ by more are told of: the lines of two audits do not fit together any more.
const SKEW_NOTE_MS: u64 = 5_000;
/// By more than this an invite or a ticket may be over before it is used.
const SKEW_BROKEN_MS: u64 = 60_000;
/// So many machines are named one by one.
const NAMED: usize = 16;

/// Asks all machines, and compares what they tell.
pub(super) async fn look(membership: &Arc<Membership>) -> Vec<Finding> {
    let machines = status::probed(membership).await;
    let (own, others): (Vec<_>, Vec<_>) = machines.iter().partition(|machine| machine.this);
    let mut found = Vec::new();
    if own.is_empty() {
        let mend = format!("on the cluster manager: malai cluster invite {}", membership.alias);
        found.push(Finding::broken("config", "this machine is not in the config any more", mend));
    }
    if let Some(alarm) = membership.alarm() {
        found.push(Finding::broken(
            "config",
            alarm,
            format!("on the cluster manager: malai rescan {}", membership.alias),
        ));
    }
    found.push(link(membership, &others));
    found.extend(reached(&others));
    found.extend(generations(membership.held().generation(), &others));
    found.extend(versions(&others));
    found.extend(clocks(membership, &others));
    found
}

fn link(membership: &Membership, others: &[&MachineStatus]) -> Finding {
    let Some(manager) = others.iter().find(|machine| machine.manager) else {
        return Finding::ok("link", "this machine is the cluster manager");
    };
    match &manager.connection {
        Some(connection) => Finding::ok("link", format!("to {}, {}", manager.name, connection.path)),
        None => {
            let text = format!(
                "the cluster manager {} does not answer, {}: a change of the config, or a newcomer, waits for it",
                manager.name,
                seen(manager)
            );
            Finding::note("link", text)
                .mend(format!("on {}: malai daemon; here: malai ping {0}.{}", manager.name, membership.alias))
        }
    }
}

fn reached(others: &[&MachineStatus]) -> Vec<Finding> {
    let silent: Vec<_> = others.iter().filter(|machine| machine.connection.is_none()).collect();
    let text = format!("{} of {} answer", others.len() - silent.len(), others.len());
    let none = silent.len() == others.len() && !others.is_empty();
    let mut found = vec![if none { Finding::note("machines", text) } else { Finding::ok("machines", text) }];
    found.extend(silent.iter().filter(|machine| !machine.manager).take(NAMED).map(|machine| {
        Finding::note("machines", format!("{} does not answer, {}", machine.name, seen(machine)))
            .mend(format!("on {}: malai daemon status, then malai daemon", machine.name))
    }));
    found
}

fn seen(machine: &MachineStatus) -> String {
    let passed = |at: u64| format!("last seen {} ago", ago(now_ms().saturating_sub(at)));
    machine.last_seen_ms.map_or_else(|| "never seen from here".to_owned(), passed)
}

/// Who holds another generation than this machine. Those that are connected bring each other up to date within moments.
fn generations(own: u64, others: &[&MachineStatus]) -> Vec<Finding> {
    let told = || others.iter().filter_map(|machine| Some((*machine, machine.generation?)));
    let mut found = Vec::new();
    match told().filter(|(_, generation)| *generation > own).max_by_key(|(_, generation)| *generation) {
        Some((machine, newer)) => {
            let text = format!("this machine holds generation {own}, and {} told of {newer}", machine.name);
            found.push(Finding::broken(
                "generation",
                text,
                "malai daemon restart; the daemon's log says why it is not taken",
            ));
        }
        None => found.push(Finding::ok("generation", format!("{own}, and nobody told of a newer one"))),
    }
    found.extend(told().filter(|(_, generation)| *generation < own).take(NAMED).map(|(machine, older)| {
        let text = format!("{} holds generation {older}, older than {own} here", machine.name);
        match machine.connection {
            Some(_) => Finding::broken("generation", text, format!("on {}: malai daemon restart", machine.name)),
            None => Finding::note("generation", format!("{text}, as far as it told"))
                .mend(format!("on {}: malai daemon", machine.name)),
        }
    }));
    found
}

fn versions(others: &[&MachineStatus]) -> Vec<Finding> {
    let other = |machine: &&&MachineStatus| machine.malai.as_deref().is_some_and(|malai| malai != crate::VERSION);
    let mut found: Vec<_> = others
        .iter()
        .filter(other)
        .take(NAMED)
        .map(|machine| {
            let theirs = machine.malai.as_deref().unwrap_or_default();
            Finding::note(
                "version",
                format!("{} runs malai {theirs}, and this machine {}", machine.name, crate::VERSION),
            )
            .mend("install the newer one on both")
        })
        .collect();
    if found.is_empty() {
        found.push(Finding::ok("version", format!("{}, and nobody told of another", crate::VERSION)));
    }
    found
}

/// This machine's clock against the cluster manager's; at the manager, the others' against its own.
fn clocks(membership: &Membership, others: &[&MachineStatus]) -> Vec<Finding> {
    let manages = membership.manager_id().is_none();
    let told = others.iter().filter(|machine| manages || machine.manager).filter_map(|machine| {
        let told = membership.pool.told_of(machine.id)?;
        Some((machine.name.as_str(), told.ahead_ms?, now_ms().saturating_sub(told.at_ms)))
    });
    let mut found: Vec<_> = told.filter_map(|(name, ahead, ago_ms)| clock(name, ahead, ago_ms)).take(NAMED).collect();
    if found.is_empty() {
        found.push(match manages {
            true => Finding::ok("clock", "no machine told of another time"),
            false if others.iter().any(|machine| machine.manager && machine.connection.is_some()) => {
                Finding::ok("clock", "the same as the cluster manager's")
            }
            false => Finding::note("clock", "not compared: the cluster manager does not answer"),
        });
    }
    found
}

fn clock(name: &str, ahead_ms: i64, ago_ms: u64) -> Option<Finding> {
    let differs = ahead_ms.unsigned_abs();
    if differs <= SKEW_NOTE_MS {
        return None;
    }
    let (which, by) = (if ahead_ms > 0 { "ahead of" } else { "behind" }, ago(differs));
    let text = format!("{name}'s clock was {by} {which} this machine's when they met, {} ago", ago(ago_ms));
    let mend = "on the one that is wrong: timedatectl set-ntp true; then malai daemon restart";
    Some(match differs > SKEW_BROKEN_MS {
        true => Finding::broken(
            "clock",
            format!("{text}: invites and tickets may be over too early, and audits do not fit"),
            mend,
        ),
        false => Finding::note("clock", text).mend(mend),
    })
}

#[cfg(test)]
mod tests {
    use malai_protocol::local::{Connection, Level};

    use super::*;
    use crate::store::keys::MachineKey;

    fn machine(name: &str, generation: Option<u64>, connected: bool) -> MachineStatus {
        let connection = Connection {
            since_ms: 0,
            path: "direct".into(),
            rtt_us: 1,
            found_by: None,
            sent_bytes: 0,
            received_bytes: 0,
        };
        MachineStatus {
            name: name.into(),
            id: MachineKey::generate().expect("a key").id(),
            this: false,
            manager: false,
            connection: connected.then_some(connection),
            generation,
            last_seen_ms: None,
            probed: true,
            malai: Some(crate::VERSION.into()),
        }
    }

    fn levels(found: &[Finding]) -> Vec<Level> {
        found.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_clock_is_told_of_from_five_seconds_on_and_broken_from_a_minute_on() {
        let level = |ahead| clock("web01", ahead, 0).map(|finding| finding.level);
        assert_eq!([0, 5_000, -5_000].map(level), [None; 3]);
        assert_eq!([5_001, -60_000].map(level), [Some(Level::Note); 2]);
        assert_eq!([60_001, -60_001, i64::MIN, i64::MAX].map(level), [Some(Level::Broken); 4]);
    }

    #[test]
    fn an_older_generation_here_or_at_a_connected_machine_is_broken_and_at_one_that_is_away_a_note() {
        let (newer, older, away) =
            (machine("a", Some(8), true), machine("b", Some(6), true), machine("c", Some(6), false));
        assert_eq!(levels(&generations(7, &[&newer])), [Level::Broken]);
        assert_eq!(levels(&generations(7, &[&older])), [Level::Ok, Level::Broken]);
        assert_eq!(levels(&generations(7, &[&away])), [Level::Ok, Level::Note]);
        assert_eq!(levels(&generations(8, &[&newer])), [Level::Ok]);
    }

    #[test]
    fn another_version_is_named_with_its_machine() {
        let odd = MachineStatus { malai: Some("9.9.9".into()), ..machine("web01", None, true) };
        let found = versions(&[&odd]);
        assert_eq!(levels(&found), [Level::Note]);
        assert!(found[0].what.starts_with("web01 runs malai 9.9.9, "), "{found:?}");
        assert_eq!(levels(&versions(&[&machine("web01", None, true)])), [Level::Ok]);
    }
}
