//! What an administrator asks of a home, as far as it needs only the disk: the cluster key and what it signs, invites,
//! knocks, and what this machine is in its clusters. No network.
//!
//! [`carry_out`] does a request and says what came of it. A running daemon then holds and spreads what was signed; without
//! a daemon [`mod@crate::requests::offline`] calls it, and nothing is published. It blocks on the disk, for milliseconds.
//! Every change is made under [`Changes`].
//!
//! # Layout
//! [`manager`] is a cluster that this machine manages, as it is on the disk: `publish` signs an edited `cluster.toml` and
//! stops at snapshots made elsewhere, `enrol` puts machines in and takes them out, [`invites`] has what was promised to
//! each newcomer, `shown` what strangers show of it, and [`pending`] the machines that knock. `init` makes a cluster, `machine`
//! joins and leaves one; `list` and `show` read; `addresses` says where newcomers will reach a manager.

mod addresses;
pub(crate) mod enrol;
mod init;
pub mod invites;
mod list;
mod machine;
pub mod manager;
pub mod pending;
pub(crate) mod publish;
mod show;
pub(crate) mod shown;
#[cfg(test)]
mod tests;

use malai_protocol::config::Name;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::local::{self, Publication, Request, RescanOutcome, Rescanned, Response};
use malai_protocol::snapshot::Snapshot;

use crate::store::lock::Changes;

use manager::Manager;

pub use addresses::join_addresses;
pub use init::cluster_init;
pub(crate) use machine::check_leave;
pub use machine::{join_begin, join_finish, machine_leave};

/// Holds what came of a request.
#[derive(Debug)]
pub struct Done {
    /// What the CLI hears where no daemon runs: each [`Publication`] in it says that nothing is published.
    pub answer: Response,
    /// The signed snapshot that each [`Publication`] in the answer is about, in the same order, with its cluster's alias.
    /// Where a daemon runs, it holds and spreads them.
    pub signed: Vec<(String, Snapshot)>,
}

/// Holds what only a running daemon knows of the desk at which newcomers join.
#[derive(Debug, Default)]
pub struct DeskState {
    /// Where newcomers reach it; absent = where the settings and the last start say.
    pub addresses: Option<Vec<String>>,
    /// The machines that knock there.
    pub knocking: Vec<local::Pending>,
}

impl Done {
    fn told(answer: Response) -> Self {
        Self { answer, signed: Vec::new() }
    }

    /// Returns what the answer says of publications, each with its cluster's alias, to be filled in by a daemon.
    pub(crate) fn publications(&mut self) -> impl Iterator<Item = (&str, &mut Publication)> {
        let found = match &mut self.answer {
            Response::Changed(changed) => vec![&mut changed.publication],
            Response::Rescanned(all) => all.iter_mut().filter_map(publication).collect(),
            _ => Vec::new(),
        };
        self.signed.iter().map(|(alias, _)| alias.as_str()).zip(found)
    }
}

fn publication(rescanned: &mut Rescanned) -> Option<&mut Publication> {
    match &mut rescanned.outcome {
        RescanOutcome::Unchanged(publication) | RescanOutcome::Published(publication) => Some(publication),
        RescanOutcome::Checked { .. } | RescanOutcome::Failed(_) => None,
    }
}

/// Does an administrator's request on the disk. `begin` takes the right to change clusters, where the request needs it.
/// Returns `None` for a request that needs more than the disk.
///
/// # Errors
/// Why the request was refused or failed: see the function for each.
pub fn carry_out(
    home: &Home,
    ask: &Request,
    desk: DeskState,
    begin: impl Fn() -> Result<Changes, Failure>,
    now_ms: u64,
) -> Result<Option<Done>, Failure> {
    let answer = match ask {
        Request::ClusterList => Response::Clusters(list::cluster_list(home)?),
        Request::ConfigShow { cluster } => Response::Config(show::config_show(home, cluster)?),
        Request::Can(ask) => Response::Verdict(show::can(home, ask)?),
        Request::ClusterInit(ask) => Response::Made(cluster_init(&begin()?, ask, now_ms)?),
        Request::MachineInit(ask) => Response::Machine(machine::machine_init(&begin()?, ask)?),
        Request::ClusterInvite(ask) => {
            let addresses = desk.addresses.map_or_else(|| join_addresses(home, &ask.cluster), Ok)?;
            Response::Invited(Manager::load(&begin()?, &ask.cluster)?.invite(ask, addresses, now_ms)?)
        }
        Request::ClusterInvites { cluster } => Response::Invites(Manager::load(&begin()?, cluster)?.invites(now_ms)?),
        Request::ClusterRevoke { cluster, id } => {
            Response::Revoked(Manager::load(&begin()?, cluster)?.revoke_invite(id, now_ms)?)
        }
        Request::ClusterApprove(ask) => {
            let changes = begin()?;
            let mut manager = Manager::load(&changes, &ask.cluster)?;
            let (id, hostname) = pending::find(&desk.knocking, &ask.id)?;
            let changed = manager.approve(id, hostname.as_deref(), ask, now_ms)?;
            return manager.done(Response::Changed(changed)).map(Some);
        }
        Request::ClusterRemove { cluster, machine, revoke_invite } => {
            let changes = begin()?;
            let mut manager = Manager::load(&changes, cluster)?;
            let changed = manager.remove(machine, *revoke_invite, now_ms)?;
            return manager.done(Response::Changed(changed)).map(Some);
        }
        Request::Rescan(ask) => return publish::rescan(&begin()?, ask, now_ms).map(Some),
        Request::Session(_)
        | Request::Status
        | Request::Probe
        | Request::Metrics
        | Request::Doctor
        | Request::Ping(_)
        | Request::Connect(_)
        | Request::DaemonStatus
        | Request::Stop
        | Request::Leave
        | Request::Yield
        | Request::ClusterPending { .. }
        | Request::MachineJoin { .. }
        | Request::MachineLeave { .. } => return Ok(None),
    };
    Ok(Some(Done::told(answer)))
}

/// Returns this host's name, as the system has it.
pub(crate) fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn name(text: &str) -> Result<Name, Failure> {
    text.parse().map_err(|e| Failure::new(Kind::Usage, format!("{text:?} cannot be a name: {e}")))
}
