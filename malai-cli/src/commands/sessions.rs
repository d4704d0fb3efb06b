//! `malai sessions`.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::{MachineId, SessionId};
use malai_protocol::local::{ClusterState, ClusterStatus, Request, Status};
use malai_protocol::sessions::{State, Summary};
use malai_protocol::target::Target;
use serde::Serialize;

use super::explain::state_of;
use super::{Context, NO_CLUSTER, NO_CLUSTER_HINT};
use crate::client;
use crate::output::{self, Output};
use crate::session::{self, SessionName};
use crate::{duration, timestamp};

/// Bounds how many machines are asked at a time: each takes a descriptor here and at the daemon.
const MAX_MACHINES_AT_ONCE: usize = 128;

/// List the sessions of a machine, or of all machines
///
/// Shows the sessions that this machine started. On machines whose `allow_sessions` or `allow_control` names this machine,
/// shows all sessions. Exits with 255 when a machine could not be asked: then the list is incomplete.
#[derive(Debug, clap::Args)]
pub(crate) struct Sessions {
    /// How long to wait until a machine answers
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10s")]
    connect_timeout: Duration,
    /// The machine: web01.company; default: all machines of all clusters
    target: Option<String>,
}

/// Is the answer of `malai sessions --json`.
#[derive(Serialize)]
struct Document<'a> {
    sessions: Vec<Shown<'a>>,
    unreachable: Vec<Unreachable<'a>>,
}

/// Holds one session.
#[derive(Serialize)]
struct Shown<'a> {
    session: String,
    target: &'a str,
    id: SessionId,
    owner: MachineId,
    owner_name: Option<&'a str>,
    detached: bool,
    user: Option<&'a str>,
    since_ms: u64,
    command: &'a str,
    state: &'a State,
}

/// Holds a machine, or a cluster, that could not be asked.
#[derive(Serialize)]
struct Unreachable<'a> {
    target: &'a str,
    error: &'a Failure,
}

/// Holds what one machine said, or why it, or its cluster, could not be asked.
struct Asked {
    /// For people.
    target: String,
    answer: Result<Vec<(SessionName, Summary)>, Failure>,
}

impl Sessions {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let target = self.target.as_deref().map(str::parse::<Target>).transpose()?;
        let status = ask!(cx, Agent, Request::Status => Status);
        let (targets, mut all) = match target {
            Some(target) => (vec![Target { user: None, ..target }], Vec::new()),
            None => everywhere(&status)?,
        };
        let asked =
            stream::iter(targets).map(|target| ask(cx, target, self.connect_timeout)).buffered(MAX_MACHINES_AT_ONCE);
        all.extend(client::block_on(async { Ok(asked.collect::<Vec<Asked>>().await) })?);
        show(cx.out, &all, &status)?;
        let mut failed = false;
        for Asked { target, answer } in &all {
            if let Err(failure) = answer {
                failed = true;
                cx.out.explain(&Failure { message: format!("{target}: {}", failure.message), ..failure.clone() });
            }
        }
        Ok(if failed { Kind::Unreachable.exit_code() } else { 0 })
    }
}

/// Returns all machines, and the clusters whose machines are not known.
fn everywhere(status: &Status) -> Result<(Vec<Target>, Vec<Asked>), Failure> {
    if status.clusters.is_empty() {
        return Err(Failure::new(Kind::NotConfigured, NO_CLUSTER).hint(NO_CLUSTER_HINT));
    }
    let machines = |cluster: &ClusterStatus| {
        let alias = cluster.alias.clone();
        let names = cluster.machines.iter().map(|machine| machine.name.clone());
        let targets = names.map(move |machine| Target { user: None, machine, cluster: Some(alias.clone()) });
        targets.collect::<Vec<_>>()
    };
    let broken = |cluster: &ClusterStatus| {
        let failure = match &cluster.state {
            ClusterState::Ready => return None,
            ClusterState::Waiting(what) => Failure::new(Kind::NotConfigured, format!("there is no config yet: {what}")),
            ClusterState::Broken(failure) => failure.clone(),
        };
        Some(Asked { target: cluster.alias.clone(), answer: Err(failure) })
    };
    let targets = status.clusters.iter().flat_map(machines).collect();
    Ok((targets, status.clusters.iter().filter_map(broken).collect()))
}

async fn ask(cx: &Context, target: Target, within: Duration) -> Asked {
    let listed = session::list(&mut client::dialler(&cx.home, cx.out), &target, within).await;
    let named = |one: Summary| (SessionName { target: target.clone(), id: one.id }, one);
    let answer = listed.map(|all| all.into_iter().map(named).collect());
    Asked { target: target.to_string(), answer }
}

fn show(out: Output, all: &[Asked], status: &Status) -> Result<(), Failure> {
    if out.json {
        return out.document(&document(all, status));
    }
    let listed = all.iter().filter_map(|asked| asked.answer.as_ref().ok()).flatten();
    let rows: Vec<_> = listed.map(|(name, one)| row(name, one, status)).collect();
    if rows.is_empty() {
        // Where no machine answered, nobody knows whether there are sessions.
        if all.iter().any(|asked| asked.answer.is_ok()) {
            out.note("there are no sessions");
        }
        return Ok(());
    }
    out.rows(output::table(["SESSION", "OWNER", "STATE", "SINCE", "COMMAND"], rows))
}

fn document<'a>(all: &'a [Asked], status: &'a Status) -> Document<'a> {
    let mut document = Document { sessions: Vec::new(), unreachable: Vec::new() };
    for Asked { target, answer } in all {
        match answer {
            Err(error) => document.unreachable.push(Unreachable { target, error }),
            Ok(sessions) => document.sessions.extend(sessions.iter().map(|(name, one)| Shown {
                session: name.to_string(),
                target,
                id: one.id,
                owner: one.owner,
                owner_name: machine(one.owner, status),
                detached: one.detached,
                user: one.user.as_deref(),
                since_ms: one.since_ms,
                command: &one.command,
                state: &one.state,
            })),
        }
    }
    document
}

fn row(name: &SessionName, one: &Summary, status: &Status) -> [String; 5] {
    let owner = machine(one.owner, status).map_or_else(|| one.owner.short(), str::to_owned);
    [name.to_string(), owner, state(one), timestamp::utc(one.since_ms), one.command.clone()]
}

fn state(one: &Summary) -> String {
    match &one.state {
        State::Running if one.detached => "running, detached".into(),
        State::Running => "running".into(),
        State::Ended(record) => state_of(record),
        State::Failed(failure) if failure.kind == Kind::Unknown => "unknown".into(),
        State::Failed(failure) => format!("failed: {}", failure.kind.name()),
    }
}

/// Returns the name of the machine with this key.
fn machine(id: MachineId, status: &Status) -> Option<&str> {
    let mut machines = status.clusters.iter().flat_map(|cluster| &cluster.machines);
    machines.find(|machine| machine.id == id).map(|machine| machine.name.as_str())
}
