//! Whether a relay that was away is there again, which iroh finds out only at its next attempt.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::super::Membership;

/// What is known of the home relay while there is no link to it, or no home.
#[derive(Debug, Default)]
pub(super) struct Back {
    /// It was asked, and did not answer.
    was_away: bool,
    /// The question that is under way; at most one.
    asked: JoinSet<bool>,
}

impl Back {
    /// Looks once more; `is_up`: there is a link to it. True when it did not answer, and then did, and there was no link
    /// even at the look after that: one that answers and never takes the link has no part in this.
    pub(super) fn is_back(&mut self, membership: &Arc<Membership>, is_up: bool) -> bool {
        if is_up {
            *self = Self::default();
            return false;
        }
        if let Some(answered) = self.asked.try_join_next() {
            match answered {
                Ok(true) if self.was_away => return true,
                Ok(false) => self.was_away = true,
                _ => {}
            }
        }
        if self.asked.is_empty() {
            let membership = Arc::clone(membership);
            self.asked.spawn(async move { membership.relays.answers(&membership.endpoint).await });
        }
        false
    }
}
