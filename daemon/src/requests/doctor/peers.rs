//! Asks the other machines of a cluster, and compares what they answer.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::id::MachineId;
use malai_protocol::local::{Finding, MachineStatus};

use crate::clusters::membership::Membership;
use crate::clusters::peers::dial::ago;
use crate::requests::status;
use crate::runtime::clock::now_ms;

/// Bounds by how much clocks may differ without a note: with more, the times in two audits do not match.
const CLOCK_SKEW_NOTE_MS: u64 = 5_000;
/// Bounds by how much clocks may differ without a fault: with more, an invite or a ticket may expire before it is used.
const CLOCK_SKEW_BROKEN_MS: u64 = 60_000;
/// Sets the age from which a comparison of clocks is shown with its age.
const CLOCK_COMPARISON_FRESH_FOR: Duration = Duration::from_secs(60);
/// Bounds the machines that are named one by one.
const MAX_NAMED_MACHINES: usize = 16;

/// Asks all machines, and compares what they answer.
pub(super) async fn look(membership: &Arc<Membership>) -> Vec<Finding> {
    let machines = status::probed(membership).await;
    let (own, others): (Vec<_>, Vec<_>) = machines.iter().partition(|machine| machine.this);
    let mut found = Vec::new();
    if own.is_empty() {
        let mend = format!("on the cluster manager: malai cluster invite {}", membership.alias);
        found.push(Finding::broken("config", "this machine is not in the config any more", mend));
    }
    for (alarm, mend) in membership.alarms_and_mends() {
        found.push(Finding::broken("config", alarm, mend));
    }
    if let Some(why) = membership.ungranted() {
        found.push(Finding::note("config", why).mend("install a newer malai on this machine"));
    }
    if membership.is_removed() {
        // When no machine answers, this is the one cause.
        found.push(Finding::note("link", "the cluster manager refuses this machine, and so does every other machine"));
    } else {
        found.push(link(membership, &others));
        found.extend(reached(&others));
    }
    found.extend(generations(membership.held().generation(), &others));
    found.extend(versions(&others));
    found.extend(clocks(membership.manager_id().is_none(), &others, |id| {
        let told = membership.peers.pool.told_of(id)?;
        Some(Compared { ahead_ms: told.ahead_ms?, ago: told.at.elapsed() })
    }));
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
                "the cluster manager {} does not answer, {}: config changes and newcomers wait for it",
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
    found.extend(silent.iter().filter(|machine| !machine.manager).take(MAX_NAMED_MACHINES).map(|machine| {
        Finding::note("machines", format!("{} does not answer, {}", machine.name, seen(machine)))
            .mend(format!("on {}: malai daemon status, then malai daemon", machine.name))
    }));
    found
}

fn seen(machine: &MachineStatus) -> String {
    let passed = |at: u64| format!("last seen {} ago", ago(now_ms().saturating_sub(at)));
    machine.last_seen_ms.map_or_else(|| "never seen from here".to_owned(), passed)
}

/// Finds machines that hold another generation than this one. Those that are connected update each other within moments.
fn generations(own: u64, others: &[&MachineStatus]) -> Vec<Finding> {
    let told = || others.iter().filter_map(|machine| Some((*machine, machine.generation?)));
    let mut found = Vec::new();
    match told().filter(|(_, generation)| *generation > own).max_by_key(|(_, generation)| *generation) {
        Some((machine, newer)) => {
            let text = format!("this machine holds generation {own}, and {} told of {newer}", machine.name);
            found.push(Finding::broken(
                "generation",
                text,
                "see the daemon's log for why it was not accepted; then: malai daemon restart",
            ));
        }
        None => found.push(Finding::ok("generation", format!("{own}, and no machine announced a newer one"))),
    }
    found.extend(told().filter(|(_, generation)| *generation < own).take(MAX_NAMED_MACHINES).map(
        |(machine, older)| {
            let text = format!("{} holds generation {older}, older than {own} here", machine.name);
            match machine.connection {
                Some(_) => Finding::broken("generation", text, format!("on {}: malai daemon restart", machine.name)),
                None => Finding::note("generation", format!("{text}, by its last announcement"))
                    .mend(format!("on {}: malai daemon", machine.name)),
            }
        },
    ));
    found
}

fn versions(others: &[&MachineStatus]) -> Vec<Finding> {
    let other = |machine: &&&MachineStatus| machine.malai.as_deref().is_some_and(|malai| malai != crate::VERSION);
    let mut found: Vec<_> = others
        .iter()
        .filter(other)
        .take(MAX_NAMED_MACHINES)
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
        found.push(Finding::ok("version", format!("{}, the same on all machines that answered", crate::VERSION)));
    }
    found
}

/// Says how another machine's clock stood when it greeted, which on a long connection may be long ago.
#[derive(Debug, Clone, Copy)]
struct Compared {
    ahead_ms: i64,
    ago: Duration,
}

impl Compared {
    fn ago(self) -> String {
        ago(u64::try_from(self.ago.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Compares this machine's clock with the cluster manager's; at the manager, the others' with its own.
fn clocks(manages: bool, others: &[&MachineStatus], compared: impl Fn(MachineId) -> Option<Compared>) -> Vec<Finding> {
    let asked: Vec<_> = others.iter().filter(|machine| manages || machine.manager).collect();
    let told: Vec<_> = asked.iter().filter_map(|machine| Some((&machine.name, compared(machine.id)?))).collect();
    let found: Vec<_> =
        told.iter().filter_map(|(name, compared)| clock(name, *compared)).take(MAX_NAMED_MACHINES).collect();
    if !found.is_empty() {
        return found;
    }
    let Some(oldest) = told.iter().map(|(_, compared)| *compared).max_by_key(|compared| compared.ago) else {
        return vec![Finding::note("clock", format!("not compared: {}", untold(manages, &asked)))];
    };
    let met = match (oldest.ago > CLOCK_COMPARISON_FRESH_FOR, manages) {
        (false, _) => String::new(),
        (true, false) => format!(" when they met, {} ago", oldest.ago()),
        (true, true) => format!(" when they met, the first of them {} ago", oldest.ago()),
    };
    let same = match manages {
        true => format!("the same at {} of {} machines{met}", told.len(), asked.len()),
        false => format!("the same as the cluster manager's{met}"),
    };
    vec![Finding::ok("clock", same)]
}

/// Says why no clock was compared.
fn untold(manages: bool, asked: &[&&MachineStatus]) -> &'static str {
    let connected = asked.iter().any(|machine| machine.connection.is_some());
    match (manages, connected) {
        (true, _) if asked.is_empty() => "there is no other machine",
        (true, true) => "no answering machine sent its time",
        (true, false) => "no other machine answers",
        (false, true) => "the cluster manager answers, but did not send its time",
        (false, false) => "the cluster manager does not answer",
    }
}

fn clock(name: &str, compared: Compared) -> Option<Finding> {
    let ahead_ms = compared.ahead_ms;
    let differs = ahead_ms.unsigned_abs();
    if differs <= CLOCK_SKEW_NOTE_MS {
        return None;
    }
    let (which, by) = (if ahead_ms > 0 { "ahead of" } else { "behind" }, ago(differs));
    let text = format!("{name}'s clock was {by} {which} this machine's when they met, {} ago", compared.ago());
    let mend = "on the one that is wrong: timedatectl set-ntp true; then malai daemon restart";
    Some(match differs > CLOCK_SKEW_BROKEN_MS {
        true => Finding::broken(
            "clock",
            format!("{text}: invites and tickets may expire too early, and the times in audits do not match"),
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

    fn compared(ahead_ms: i64, seconds: u64) -> Compared {
        Compared { ahead_ms, ago: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_clock_is_told_of_from_five_seconds_on_and_broken_from_a_minute_on() {
        let level = |ahead| clock("web01", compared(ahead, 0)).map(|finding| finding.level);
        assert_eq!([0, 5_000, -5_000].map(level), [None; 3]);
        assert_eq!([5_001, -60_000].map(level), [Some(Level::Note); 2]);
        assert_eq!([60_001, -60_001, i64::MIN, i64::MAX].map(level), [Some(Level::Broken); 4]);
    }

    #[test]
    fn a_clock_is_in_order_only_when_it_was_compared_and_the_finding_says_how_long_ago() {
        let manager = MachineStatus { manager: true, ..machine("laptop", None, true) };
        let what = |manages, told: Option<Compared>| {
            clocks(manages, &[&manager], |_| told).into_iter().map(|found| (found.level, found.what)).next()
        };
        let ok = |text: &str| Some((Level::Ok, text.to_owned()));
        let days = Some(compared(0, 3 * 86_400));
        assert_eq!(what(false, Some(compared(0, 60))), ok("the same as the cluster manager's"));
        assert_eq!(what(false, Some(compared(0, 61))), ok("the same as the cluster manager's when they met, 61 s ago"));
        assert_eq!(what(false, days), ok("the same as the cluster manager's when they met, 3 days ago"));
        assert_eq!(what(true, Some(compared(0, 0))), ok("the same at 1 of 1 machines"));
        let first = "the same at 1 of 1 machines when they met, the first of them 3 days ago";
        assert_eq!(what(true, days), ok(first));
    }

    #[test]
    fn a_clock_that_was_not_compared_is_a_note_that_says_why() {
        let what = |manages, others: &[&MachineStatus]| {
            let found = clocks(manages, others, |_| None);
            assert_eq!(levels(&found), [Level::Note], "{found:?}");
            found[0].what.strip_prefix("not compared: ").map(str::to_owned).unwrap_or_default()
        };
        let (here, away) = (machine("a", None, true), machine("b", None, false));
        let manager = |machine: &MachineStatus| MachineStatus { manager: true, ..machine.clone() };
        assert_eq!(what(false, &[&manager(&here)]), "the cluster manager answers, but did not send its time");
        assert_eq!(what(false, &[&here, &manager(&away)]), "the cluster manager does not answer");
        assert_eq!(what(true, &[]), "there is no other machine");
        assert_eq!(what(true, &[&away]), "no other machine answers");
        assert_eq!(what(true, &[&away, &here]), "no answering machine sent its time");
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
