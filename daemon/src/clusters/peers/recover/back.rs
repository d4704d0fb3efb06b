//! Finds out whether a relay that was away is there again, which iroh does only at its next attempt.

use std::sync::Arc;
use std::time::Duration;

use iroh::Watcher;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::clusters::membership::Membership;
use crate::runtime::backoff::Backoff;

/// Sets the time between two questions to a relay that is away, while a session needs it or it went only a moment ago.
const RELAY_ASK_INTERVAL: Duration = super::RECOVERY_LOOK_INTERVAL;
/// Sets how long ago a moment is.
const RECENT_LOSS_TIME: Duration = Duration::from_secs(120);
/// While there is no link it is looked every second whether there is one: looks this far apart are of two such times.
const LOOK_MAX_GAP: Duration = Duration::from_secs(10);
/// Sets the first pause between two questions later, and to a relay that answers and still does not take the link.
const LATE_MIN_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds that pause. iroh's own attempts go on meanwhile.
const LATE_MAX_INTERVAL: Duration = Duration::from_secs(60);
/// Sets for how long a session that needs the network has the relay asked as often as right after the loss.
const URGENT_ASK_TIME: Duration = Duration::from_secs(600);

/// Holds what is known of the home relay while there is no link to it, or no home.
#[derive(Debug)]
pub(super) struct Back {
    /// Is since when it is looked at.
    since: Option<Instant>,
    /// Is when it was looked at last.
    looked_at: Option<Instant>,
    /// Is since when a session needs the network.
    wanted_since: Option<Instant>,
    /// Is when it is to be asked again; absent = now.
    ask_at: Option<Instant>,
    backoff: Backoff,
    /// It was asked, and did not answer.
    was_away: bool,
    /// Holds the question that is under way; at most one.
    asked: JoinSet<Option<bool>>,
}

impl Default for Back {
    fn default() -> Self {
        Self {
            since: None,
            looked_at: None,
            wanted_since: None,
            ask_at: None,
            backoff: Backoff::new(LATE_MIN_INTERVAL, LATE_MAX_INTERVAL),
            was_away: false,
            asked: JoinSet::new(),
        }
    }
}

impl Back {
    /// Looks once more; `is_wanted`: a session needs the network. Returns true when the relay did not answer, and then did, and
    /// there was no link even at the look after that: one that answers and never takes the link has no part in this.
    pub(super) fn is_back(&mut self, membership: &Arc<Membership>, is_wanted: bool) -> bool {
        if membership.peers.is_relay_up() {
            *self = Self::default();
            return false;
        }
        let now = Instant::now();
        if self.looked_at.replace(now).is_some_and(|at| at + LOOK_MAX_GAP < now) {
            // The link was there meanwhile: what is known is of another time without it.
            *self = Self { looked_at: Some(now), ..Self::default() };
        }
        match self.asked.try_join_next() {
            Some(Ok(Some(true))) if self.was_away => return true,
            Some(Ok(Some(false))) => self.was_away = true,
            _ => {}
        }
        let since = *self.since.get_or_insert(now);
        let was_wanted = self.wanted_since.is_some();
        self.wanted_since = is_wanted.then(|| self.wanted_since.unwrap_or(now));
        let is_urgent = self.wanted_since.is_some_and(|wanted| wanted + URGENT_ASK_TIME > now)
            || (self.was_away && since + RECENT_LOSS_TIME > now);
        if is_wanted && !was_wanted {
            self.ask_at = None;
            self.backoff.reset();
        }
        if self.asked.is_empty() && self.ask_at.is_none_or(|at| at <= now) {
            self.ask_at = Some(now + if is_urgent { RELAY_ASK_INTERVAL } else { self.backoff.pause() });
            let membership = Arc::clone(membership);
            self.asked.spawn(async move { membership.peers.relays.answers(&membership.peers.endpoint).await });
        }
        false
    }
}

/// Waits until there are relays and a link to none, and then until the next look is due.
pub(super) async fn missed(membership: &Membership) {
    let mut home = membership.peers.endpoint.home_relay_status();
    while !membership.config.has_relays() || membership.peers.is_relay_up() {
        if home.updated().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
    sleep(RELAY_ASK_INTERVAL).await;
}
