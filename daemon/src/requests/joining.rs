//! Becoming a machine of a cluster, at a running daemon, and ceasing to be one; and the machines that ask to become one.

use std::sync::Arc;
use std::time::Instant;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::Response;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::admin;
use crate::clusters::join::invite;
use crate::runtime::blocking::blocking;
use crate::store;
use crate::store::lock::Changes;

/// Joins a cluster by an invite. `more` takes what is waited for, in words.
///
/// # Errors
/// As [`invite::join`].
pub(super) async fn join(
    context: &Context,
    token: String,
    alias: Option<String>,
    more: mpsc::Sender<Response>,
) -> Result<Response, Failure> {
    // A CLI that is slow to read loses lines of progress, and nothing else.
    let say = move |line: String| drop(more.try_send(Response::Progress(line)));
    let (joining, asked) = (Arc::clone(&context.clusters), CancellationToken::new());
    let (_leaves, left) = (asked.clone().drop_guard(), asked);
    let work = async move { invite::join(&joining, &token, alias.as_deref(), left, say).await };
    context.clusters.finish(work).await.map(Response::Joined)
}

/// Lists the machines that knock at a cluster that this daemon manages.
///
/// # Errors
/// [`Kind::NotConfigured`] where no machine can knock.
pub(super) fn pending(context: &Context, alias: &str) -> Result<Response, Failure> {
    if let Some(desk) = context.served(alias).and_then(|served| served.desk) {
        return Ok(Response::Pending(desk.pending().list(Instant::now())));
    }
    if context.agent() {
        return Err(Failure::new(Kind::NotConfigured, "no machine can knock here: only an agent runs on this machine")
            .hint("`malai daemon`"));
    }
    Err(Failure::new(Kind::NotConfigured, format!("this machine is not the cluster manager of {alias}"))
        .hint("`malai status` shows which machine is"))
}

/// Ends the cluster's sessions, and forgets it.
///
/// # Errors
/// As [`admin::check_leave`], else what the disk says: the cluster is then served again.
pub(super) async fn leave(context: &Context, alias: String, force: bool) -> Result<Response, Failure> {
    let clusters = Arc::clone(&context.clusters);
    let both = async move {
        let (home, name) = (clusters.host().home.clone(), alias.clone());
        blocking(move || admin::check_leave(&home, &name, force)).await?;
        // Its sessions end while their callers can still hear of it, and while this daemon can say why.
        clusters.unload(&alias).await;
        let (home, name) = (clusters.host().home.clone(), alias.clone());
        let left = blocking(move || admin::machine_leave(&Changes::begin(&home)?, &name, force)).await;
        match left {
            // It may have been taken in again meanwhile, for a change of its `[network]`.
            Ok(()) => clusters.unload(&alias).await,
            Err(_) if store::clusters::exists(&clusters.host().home, &alias) => clusters.load(&alias).await,
            Err(_) => {}
        }
        left.map(|()| Response::Done)
    };
    context.clusters.finish(both).await
}
