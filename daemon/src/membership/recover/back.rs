//! Whether a relay that was away is there again, which iroh finds out only at its next attempt.

use std::sync::Arc;
use std::time::Duration;

use iroh::Watcher;
use iroh::endpoint::RelayStatus;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::super::Membership;

/// Between two questions to a relay that is away, while a session needs it or it went only a moment ago.
const SOON: Duration = super::LOOK;
/// How long ago a moment is.
const MOMENT: Duration = Duration::from_secs(120);
/// Between two questions later, and to a relay that answers and still does not take the link.
const LATE: Duration = Duration::from_secs(5);

/// What is known of the home relay while there is no link to it, or no home.
#[derive(Debug, Default)]
pub(super) struct Back {
    /// Since when it is looked at.
    since: Option<Instant>,
    /// When it was asked last.
    asked_at: Option<Instant>,
    /// It was asked, and did not answer.
    was_away: bool,
    /// The question that is under way; at most one.
    asked: JoinSet<Option<bool>>,
}

impl Back {
    /// Looks once more; `is_wanted`: a session needs the network. True when the relay did not answer, and then did, and
    /// there was no link even at the look after that: one that answers and never takes the link has no part in this.
    pub(super) fn is_back(&mut self, membership: &Arc<Membership>, is_wanted: bool) -> bool {
        if is_up(membership) {
            *self = Self::default();
            return false;
        }
        match self.asked.try_join_next() {
            Some(Ok(Some(true))) if self.was_away => return true,
            Some(Ok(Some(false))) => self.was_away = true,
            _ => {}
        }
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let pause = if is_wanted || (self.was_away && since + MOMENT > now) { SOON } else { LATE };
        if self.asked.is_empty() && self.asked_at.is_none_or(|at| at + pause <= now) {
            self.asked_at = Some(now);
            let membership = Arc::clone(membership);
            self.asked.spawn(async move { membership.relays.answers(&membership.endpoint).await });
        }
        false
    }
}

/// Whether there is a link to a home relay.
pub(super) fn is_up(membership: &Membership) -> bool {
    membership.endpoint.home_relay_status().get().iter().any(RelayStatus::is_connected)
}

/// Waits until there are relays and a link to none, and then until the next look is due.
pub(super) async fn missed(membership: &Membership) {
    let mut home = membership.endpoint.home_relay_status();
    while !super::has_relays(membership) || is_up(membership) {
        if home.updated().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
    sleep(SOON).await;
}
