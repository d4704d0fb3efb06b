//! What can be done without a daemon: the disk part of a request. Nothing is published.

mod leave;
mod stop;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::local::{Changed, Request, RescanOutcome, Rescanned, Response};

use crate::admin::manager::Rescan;
use crate::admin::{self, Change, Scanned, unpublished};
use crate::requests::doctor;
use crate::runtime::clock::now_ms;
use crate::store::lock::{self, Changes};

pub use stop::{end_executor, stop_by_signal};

/// Does the disk part of a request, on a home where no daemon runs. An agent may run there.
pub async fn offline(home: &Home, request: Request) -> Response {
    if let Request::MachineLeave { cluster, force } = &request {
        return leave::leave(home, cluster, *force).await.unwrap_or_else(Response::Failed);
    }
    let home = home.clone();
    // The disk may be slow, and the lock may have to be waited for.
    let done = tokio::task::spawn_blocking(move || answer(&home, &request)).await;
    match done {
        Ok(Ok(response)) => response,
        Ok(Err(failure)) => Response::Failed(failure),
        Err(error) => Response::Failed(Failure::new(Kind::Internal, format!("the request did not end: {error}"))),
    }
}

fn answer(home: &Home, request: &Request) -> Result<Response, Failure> {
    let now = now_ms();
    let begin = || {
        let changes = Changes::begin(home)?;
        changes.refuse_beside_a_daemon()?;
        Ok::<_, Failure>(changes)
    };
    match request {
        Request::ClusterList => admin::cluster_list(home).map(Response::Clusters),
        Request::ClusterInit(ask) => admin::cluster_init(&begin()?, ask, now).map(Response::Made),
        Request::ClusterInvite(ask) => {
            let addresses = admin::join_addresses(home, &ask.cluster)?;
            admin::invite(&begin()?, ask, addresses, now).map(Response::Invited)
        }
        Request::ClusterApprove(ask) => admin::approve(&begin()?, ask, &[], now).and_then(changed),
        Request::ClusterInvites { cluster } => admin::invites(&begin()?, cluster, now).map(Response::Invites),
        Request::ClusterRevoke { cluster, id } => admin::revoke(&begin()?, cluster, id, now).map(Response::Revoked),
        Request::ClusterRemove { cluster, machine, revoke_invite } => {
            admin::remove(&begin()?, cluster, machine, *revoke_invite, now).and_then(changed)
        }
        Request::Rescan(ask) => {
            let scanned = admin::rescan(&begin()?, ask, now)?;
            Ok(Response::Rescanned(scanned.into_iter().map(rescanned).collect()))
        }
        Request::ConfigShow { cluster } => admin::config_show(home, cluster).map(Response::Config),
        Request::Can(ask) => admin::can(home, ask).map(Response::Verdict),
        Request::MachineInit(ask) => admin::machine_init(&begin()?, ask).map(Response::Machine),
        Request::Doctor => Ok(Response::Doctor(doctor::offline(home))),
        Request::Session(_)
        | Request::Status
        | Request::Probe
        | Request::Metrics
        | Request::Ping(_)
        | Request::Connect(_)
        | Request::DaemonStatus
        | Request::Stop
        | Request::Leave
        | Request::Yield
        | Request::ClusterPending { .. }
        | Request::MachineJoin { .. }
        | Request::MachineLeave { .. } => match lock::find_holder(home)? {
            Some(holder) if !holder.agent => Err(holder.unreachable(home)),
            _ => Err(Failure::new(Kind::NotConfigured, "this needs a daemon, and none runs here").hint("malai daemon")),
        },
    }
}

fn changed(change: Change) -> Result<Response, Failure> {
    let publication = unpublished(&change.snapshot)?;
    let Change { machine, id, warning, invites, .. } = change;
    Ok(Response::Changed(Changed { machine, id, publication, warning, invites }))
}

fn rescanned(scanned: Scanned) -> Rescanned {
    let outcome = scanned.outcome.and_then(|done| match done {
        Rescan::Checked { diff } => Ok(RescanOutcome::Checked { diff }),
        Rescan::Unchanged(snapshot) => unpublished(&snapshot).map(RescanOutcome::Unchanged),
        Rescan::Signed(snapshot) => unpublished(&snapshot).map(RescanOutcome::Published),
    });
    Rescanned {
        alias: scanned.alias,
        outcome: outcome.unwrap_or_else(RescanOutcome::Failed),
        warnings: scanned.warnings,
    }
}
