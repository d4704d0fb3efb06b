//! Makes the messages for when another machine does not have this one in its config.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use tokio::time::{Instant, timeout_at};

use crate::clusters::membership::Membership;
use crate::clusters::peers::dial;
use crate::clusters::peers::greet;

/// Bounds how long the manager is asked before the CLI gets the answer to a request that was refused.
const MANAGER_WORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns the same as [`not_a_member`], after the cluster manager had a moment to say whether this machine was removed: an
/// agent has no link to it, and a daemon that has just started has none yet.
pub(crate) async fn refused(membership: &Arc<Membership>) -> Failure {
    let until = Instant::now() + MANAGER_WORD_TIMEOUT;
    if !membership.is_removed()
        && let Some(manager) = membership.manager_id()
        && let Ok(conn) = dial::connect(membership, manager, until).await
        && !conn.is_met()
        && timeout_at(until, conn.conn.closed()).await.is_ok()
    {
        greet::parted(membership, &conn);
    }
    not_a_member(membership)
}

/// Returns the failure of a request that was refused because the target does not know this machine.
pub(crate) fn not_a_member(membership: &Membership) -> Failure {
    if membership.is_removed() {
        return Failure::new(Kind::NotAMember, says_manager(membership)).hint(hint(membership));
    }
    let alias = &membership.alias;
    unknown_here().hint(format!(
        "`malai status` shows which generation each machine holds; on the manager: `malai rescan {alias}`"
    ))
}

/// Returns that failure for when nothing is known of a removal.
pub(crate) fn unknown_here() -> Failure {
    Failure::new(Kind::NotAMember, "the target's config does not have this machine")
}

/// Adds to the failure of a machine that was not reached that this one was removed, where it was.
pub(crate) fn explain(membership: &Membership, failure: Failure) -> Failure {
    if !membership.is_removed() {
        return failure;
    }
    let message = format!("{}; {}", failure.message, says_manager(membership));
    Failure::new(failure.kind, message).hint(hint(membership))
}

/// Returns what the cluster manager says of this machine.
pub(crate) fn says_manager(membership: &Membership) -> String {
    let held = membership.held();
    format!(
        "this machine was removed from {}: the config of the cluster manager {} does not have it",
        membership.alias, held.config.cluster.manager
    )
}

/// Returns the commands that bring the machine back, or forget the cluster.
pub(crate) fn hint(membership: &Membership) -> String {
    let (held, alias) = (membership.held(), &membership.alias);
    let manager = &held.config.cluster.manager;
    format!(
        "here: `malai machine leave {alias}`; to bring it back, on {manager}: `malai cluster invite {alias}`, and then here: \
         `malai machine join TOKEN`"
    )
}
