//! `malai machine join`: redeem an invite, from whatever daemon or agent runs here.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::invite::Invite;
use malai_protocol::local::Joined;
use tokio_util::sync::CancellationToken;

use super::ask::{Answer, Ask, Enrolled, ask};
use super::knock::network;
use crate::admin;
use crate::clusters::{Cluster, Clusters};
use crate::net::endpoint::{self, Bound};
use crate::runtime::backoff::{Backoff, Said};
use crate::runtime::blocking::blocking;
use crate::runtime::clock::now_ms;
use crate::store;
use crate::store::clusters::Joining;
use crate::store::lock::Changes;

/// Sets the first pause between attempts to reach a manager that does not answer yet.
const INVITE_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(2);
/// Bounds that pause: a person waits.
const INVITE_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(15);

/// Joins: makes the machine key, redeems the invite, stores the config. Waits for a manager that does not answer yet,
/// and tells `progress` so, until the one that asked has `left`; then the daemon goes on to knock.
///
/// # Errors
/// [`Failure`]: not a token, expired, an alias that is taken, or what the manager says.
pub(crate) async fn join(
    clusters: &Arc<Clusters>,
    token: &str,
    alias: Option<&str>,
    left: CancellationToken,
    progress: impl Fn(String),
) -> Result<Joined, Failure> {
    let invite: Invite = token.parse().map_err(|e| {
        Failure::new(Kind::Usage, format!("{e}")).hint("on the cluster manager: `malai cluster invite <cluster>`")
    })?;
    if !invite.lets_in() {
        let message = format!("this token is for the host of a relay of {}, and lets no machine in", invite.name);
        let hint = format!("on the cluster manager: `malai cluster invite {}`, without --relay", invite.name);
        return Err(Failure::new(Kind::Usage, message).hint(hint));
    }
    let home = clusters.host().home.clone();
    let (asked, wanted) = (invite.clone(), alias.map(str::to_owned));
    let begun = blocking(move || admin::join_begin(&Changes::begin(&home)?, &asked, wanted.as_deref())).await?;
    let alias = begun.alias.clone();
    // While it joins, nothing else here may use the machine key.
    clusters.unload(&alias).await;
    let result = redeem(clusters, begun, &invite, &left, progress).await;
    clusters.load(&alias).await;
    result?;
    match clusters.get(&alias) {
        Some(Cluster::Ready(served)) => {
            let membership = served.membership;
            Ok(Joined {
                alias,
                cluster: membership.cluster,
                machine: membership.my_name().unwrap_or_default(),
                machine_id: membership.me,
                generation: membership.held().generation(),
                account: membership.check_account().err(),
            })
        }
        Some(Cluster::Broken(failure)) => Err(failure),
        _ => Err(Failure::new(Kind::Internal, format!("cluster {alias} was joined but is not there"))),
    }
}

async fn redeem(
    clusters: &Arc<Clusters>,
    begun: store::clusters::Cluster,
    invite: &Invite,
    left: &CancellationToken,
    progress: impl Fn(String),
) -> Result<(), Failure> {
    let home = clusters.host().home.clone();
    let network = begun.joining.as_ref().map(network).unwrap_or_default();
    let mut options = endpoint::Options::caller(begun.machine_key.secret().clone(), &network);
    options.pass = begun.joining.as_ref().and_then(Joining::pass);
    let bound = endpoint::bind(&options).await?;
    let asking = show(&bound, invite, progress);
    // Left or not, the endpoint is closed, and what was stored is stored whole.
    let result = match left.run_until_cancelled(asking).await {
        Some(Ok(enrolled)) => enrolled.store(&home, &begun.alias).await,
        Some(Err(failure)) => Err(failure),
        None => Err(Failure::new(Kind::Internal, "the CLI left before the answer came")),
    };
    endpoint::close(&bound.endpoint, Duration::ZERO).await;
    result
}

/// Shows the invite until the manager answers.
async fn show(bound: &Bound, invite: &Invite, progress: impl Fn(String)) -> Result<Box<Enrolled>, Failure> {
    let shown = Ask::Redeem(invite.secret);
    let mut backoff = Backoff::new(INVITE_RETRY_MIN_INTERVAL, INVITE_RETRY_MAX_INTERVAL);
    let mut said = Said::default();
    loop {
        match ask(bound, &invite.cluster, &invite.addresses, &shown, &progress).await {
            Answer::Enrolled(enrolled) => return Ok(enrolled),
            Answer::Refused(failure) => return Err(failure),
            Answer::Again(why) if now_ms() > invite.expires_ms => {
                return Err(Failure::new(Kind::Unreachable, format!("the invite expired while waiting: {why}"))
                    .hint(format!("on the cluster manager: `malai cluster invite {}`", invite.name)));
            }
            Answer::Again(why) => {
                if said.is_news(why.clone()) {
                    progress(format!("waiting for the cluster manager of {}: {why}", invite.name));
                }
            }
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}
