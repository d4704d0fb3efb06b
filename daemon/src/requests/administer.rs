//! What an administrator asks: [`admin`] does it on the disk, then the daemon holds what was signed and spreads it.

use std::sync::Arc;
use std::time::Instant;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{Request, Response};
use malai_protocol::peer::MAX_ADDRESSES;

use super::Context;
use crate::admin::{self, DeskState, Done};
use crate::clusters::config::sync;
use crate::clusters::spread::spread;
use crate::net::endpoint::own_addresses;
use crate::runtime::alarms::AlarmCause;
use crate::runtime::blocking::blocking;
use crate::runtime::clock::now_ms;
use crate::store::lock::Changes;

/// Does the request, holds what was signed, and waits a bounded time for the other machines to hold it too.
///
/// # Errors
/// As [`admin::carry_out`].
pub(super) async fn administer(context: &Arc<Context>, ask: Request) -> Result<Response, Failure> {
    // A CLI that leaves ends nothing that was begun: what is stored is held.
    let mut done = context.clusters.finish(store_and_hold(Arc::clone(context), ask)).await?;
    for (alias, publication) in done.publications() {
        if let Some(served) = context.served(alias) {
            *publication = spread(&served.membership).await;
        }
    }
    Ok(done.answer)
}

async fn store_and_hold(context: Arc<Context>, ask: Request) -> Result<Done, Failure> {
    let (home, desk) = (context.clusters.host().home.clone(), desk_state(&context, &ask));
    let (ask, mut done) = blocking(move || {
        let done = admin::carry_out(&home, &ask, desk, || Changes::begin(&home), now_ms())?;
        let not_of_the_disk = || Failure::new(Kind::Internal, "this request is not an administrator's");
        Ok((ask, done.ok_or_else(not_of_the_disk)?))
    })
    .await?;
    match &mut done.answer {
        Response::Made(made) => {
            context.clusters.load(&made.alias).await;
            let desk = context.served(&made.alias).and_then(|served| served.desk);
            if let Some(desk) = desk {
                made.join_addresses = own_addresses(&desk.endpoint, MAX_ADDRESSES);
            }
        }
        Response::Machine(made) => context.clusters.load(&made.alias).await,
        Response::Changed(changed) => {
            if let Request::ClusterApprove(ask) = &ask
                && let Some(desk) = context.served(&ask.cluster).and_then(|served| served.desk)
            {
                desk.pending().settle(&changed.id);
            }
        }
        _ => {}
    }
    for (alias, snapshot) in &done.signed {
        // A cluster that is being taken in may have read the disk before this was stored.
        context.clusters.settled().await;
        let Some(served) = context.served(alias) else { continue };
        sync::publish(&served.membership, snapshot.clone())?;
        if matches!(ask, Request::Rescan(_)) {
            // The administrator has looked at the config since.
            served.membership.clear(AlarmCause::Joined);
        }
    }
    Ok(done)
}

/// Returns what the desk of the request's cluster knows, where the request needs it and there is a desk.
fn desk_state(context: &Context, ask: &Request) -> DeskState {
    let alias = match ask {
        Request::ClusterInvite(ask) => &ask.cluster,
        Request::ClusterApprove(ask) => &ask.cluster,
        _ => return DeskState::default(),
    };
    let desk = context.served(alias).and_then(|served| served.desk);
    desk.map_or_else(DeskState::default, |desk| DeskState {
        addresses: Some(own_addresses(&desk.endpoint, MAX_ADDRESSES)),
        knocking: desk.pending().list(Instant::now()),
    })
}
