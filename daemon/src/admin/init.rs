//! `malai cluster …` and `malai rescan` at the cluster manager.

use malai_protocol::config::Name;
use malai_protocol::config::edit::{Template, template};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::invite::MAX_TOKEN;
use malai_protocol::local::{
    self, CameBy, ClusterApprove, ClusterInit, ClusterInvite, ClusterMade, InviteEntry, Invited, Role,
};
use malai_protocol::snapshot::{Snapshot, next_generation};

use super::{hostname, join_addresses};
use crate::admin::manager::{Enrolled, Manager, Removed, Rescan};
use crate::admin::pending::find;
use crate::store::clusters::{self, Found};
use crate::store::keys::{ClusterKey, MachineKey};
use crate::store::lock::Changes;
use crate::store::{self, snapshot};

/// A machine was put into the config or taken out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The machine's name.
    pub machine: String,
    /// Its key.
    pub id: MachineId,
    /// The snapshot that says so, to be published.
    pub snapshot: Snapshot,
    /// What else must be said: `cluster.toml` could not be edited along.
    pub warning: Option<String>,
    /// Of a machine that was removed: the invites by which it came, as far as they were open.
    pub invites: Vec<CameBy>,
}

/// What came of rescanning one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Its alias.
    pub alias: String,
    /// What was done, with the snapshot to be published.
    pub outcome: Result<Rescan, Failure>,
    /// What in the text is in order and yet hardly meant.
    pub warnings: Vec<String>,
}

/// Makes a cluster: both keys, the config to edit, and the first signed snapshot.
///
/// # Errors
/// [`Kind::Conflict`] when the alias is taken, [`Kind::Usage`] for a name or user that cannot be, else what the disk says.
pub fn cluster_init(changes: &Changes, ask: &ClusterInit, now_ms: u64) -> Result<ClusterMade, Failure> {
    let alias = &ask.cluster;
    clusters::check_alias(alias)?;
    if clusters::exists(changes.home(), alias) {
        return Err(clusters::taken(alias));
    }
    let cluster_key = ClusterKey::generate()?;
    let machine_key = MachineKey::generate()?;
    let machine = own_name(ask.name.as_deref())?;
    let text = template(&Template {
        cluster: name(alias)?,
        id: cluster_key.id(),
        machine: machine.clone(),
        machine_id: machine_key.id(),
        private: ask.private,
        username: ask.username.clone(),
    })?;
    let first = cluster_key.sign(next_generation(0, now_ms), now_ms, text.clone())?;
    clusters::create(changes, alias, |dir| {
        cluster_key.create(&dir.cluster_key())?;
        machine_key.create(&dir.machine_key())?;
        store::write(&dir.config(), text.as_bytes())?;
        store::write(&dir.base(), text.as_bytes())?;
        snapshot::save(&dir.snapshot(), &first)
    })?;
    Ok(ClusterMade {
        alias: alias.clone(),
        cluster: cluster_key.id(),
        machine: machine.to_string(),
        machine_id: machine_key.id(),
        config: changes.home().cluster(alias).config().display().to_string(),
        join_addresses: join_addresses(changes.home(), alias)?,
    })
}

/// Makes an invite. `addresses` are those of the join endpoint.
///
/// # Errors
/// As [`Manager::load`] and [`Manager::invite`].
pub fn invite(changes: &Changes, ask: &ClusterInvite, addresses: Vec<String>, now_ms: u64) -> Result<Invited, Failure> {
    let (id, invite) = Manager::load(changes, &ask.cluster)?.invite(ask, addresses.clone(), now_ms)?;
    let token = invite.to_token();
    if token.len() > MAX_TOKEN {
        let message =
            format!("the token would have {} characters, and nobody reads more than {MAX_TOKEN}", token.len());
        return Err(Failure::new(Kind::BadConfig, message)
            .hint("[network] is too long: shorten `ca`, or name fewer relays, then: malai rescan"));
    }
    Ok(Invited { id, token, expires_ms: invite.expires_ms, join_addresses: addresses })
}

/// Enrols a machine that knocks, or one whose id52 is given in full.
///
/// # Errors
/// As [`Manager::load`], [`find`] and [`Manager::approve`].
pub fn approve(
    changes: &Changes,
    ask: &ClusterApprove,
    pending: &[local::Pending],
    now_ms: u64,
) -> Result<Change, Failure> {
    let mut manager = Manager::load(changes, &ask.cluster)?;
    let (id, hostname) = find(pending, &ask.id)?;
    let enrolled = manager.approve(id, hostname.as_deref(), ask, now_ms)?;
    change(&manager, enrolled)
}

/// Takes a machine out of the config, and ends the invites by which it came where `revoke` says so.
///
/// # Errors
/// As [`Manager::load`] and [`Manager::remove`].
pub fn remove(changes: &Changes, cluster: &str, machine: &str, revoke: bool, now_ms: u64) -> Result<Change, Failure> {
    let mut manager = Manager::load(changes, cluster)?;
    let Removed { name, id, warning, invites } = manager.remove(machine, revoke, now_ms)?;
    Ok(Change { machine: name.to_string(), id, snapshot: manager.signed()?.clone(), warning, invites })
}

/// Lists the invites of a cluster.
///
/// # Errors
/// As [`Manager::load`] and [`Manager::invites`].
pub fn invites(changes: &Changes, cluster: &str, now_ms: u64) -> Result<Vec<InviteEntry>, Failure> {
    Manager::load(changes, cluster)?.invites(now_ms)
}

/// Ends an invite.
///
/// # Errors
/// As [`Manager::load`] and [`Manager::revoke_invite`].
pub fn revoke(changes: &Changes, cluster: &str, id: &str, now_ms: u64) -> Result<InviteEntry, Failure> {
    Manager::load(changes, cluster)?.revoke_invite(id, now_ms)
}

/// Checks and signs `cluster.toml` of one cluster, or of all that are managed here, by alias. What fails in one does not
/// stop the others.
///
/// # Errors
/// [`Kind::NotConfigured`] when no cluster is managed here, [`Kind::Usage`] for a generation without its cluster.
pub fn rescan(changes: &Changes, ask: &local::Rescan, now_ms: u64) -> Result<Vec<Scanned>, Failure> {
    if ask.over.is_some() && ask.cluster.is_none() {
        return Err(Failure::new(Kind::Usage, "--over is about the snapshot of one cluster")
            .hint("name it: malai rescan CLUSTER --over GENERATION"));
    }
    let aliases: Vec<String> = match &ask.cluster {
        Some(alias) => vec![alias.clone()],
        // One that is broken is the manager's business if it has a cluster key, and is reported as such below.
        None => clusters::list(changes.home())?
            .into_iter()
            .filter(|found| managed(changes, found))
            .map(|f| f.alias)
            .collect(),
    };
    if aliases.is_empty() {
        return Err(Failure::new(Kind::NotConfigured, "no cluster is managed on this machine")
            .hint("malai cluster init makes one; else run malai rescan on the cluster manager"));
    }
    let scan = |alias: String| match Manager::load(changes, &alias) {
        Ok(mut manager) => {
            let outcome = manager.rescan(ask, now_ms);
            Scanned { alias, outcome, warnings: manager.warnings().to_vec() }
        }
        Err(failure) => Scanned { alias, outcome: Err(failure), warnings: Vec::new() },
    };
    Ok(aliases.into_iter().map(scan).collect())
}

fn managed(changes: &Changes, found: &Found) -> bool {
    match found.role {
        Ok(role) => role == Role::Manager,
        Err(_) => changes.home().cluster(&found.alias).cluster_key().exists(),
    }
}

fn change(manager: &Manager<'_>, enrolled: Enrolled) -> Result<Change, Failure> {
    let snapshot = manager.signed()?.clone();
    let Enrolled { name, id, warning, .. } = enrolled;
    Ok(Change { machine: name.to_string(), id, snapshot, warning, invites: Vec::new() })
}

fn own_name(asked: Option<&str>) -> Result<Name, Failure> {
    match asked {
        Some(asked) => name(asked),
        None => {
            let host = hostname();
            Name::from_hostname(&host).ok_or_else(|| {
                Failure::new(Kind::Usage, format!("the host name {host:?} gives no name for this machine"))
                    .hint("name it with --name")
            })
        }
    }
}

fn name(text: &str) -> Result<Name, Failure> {
    text.parse().map_err(|e| Failure::new(Kind::Usage, format!("{text:?} cannot be a name: {e}")))
}
