//! Who follows a session, what it was and is to be sent, and how long it waits when nobody does.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use malai_protocol::codec::Kind;
use malai_protocol::failure::{self, Failure};
use malai_protocol::id::FollowerId;
use malai_protocol::plan;
use malai_protocol::session::{self, Attached};

use super::super::Shared;
use super::super::followers::{Followers, Verdict};
use super::super::link::{Link, OUTBOX};
use super::super::log::Log;
use super::super::table::Arrival;

/// One session's follower.
#[derive(Debug)]
pub(crate) struct Following {
    pub(crate) link: Link,
    pub(crate) log: Log,
    followers: Followers,
    grace: Duration,
    /// While nobody follows: how long somebody may still come.
    pub(super) until: Option<Instant>,
}

impl Following {
    /// Of a session that waits for its first attachment.
    pub(crate) fn new(link: Link, log: Log, grace: Duration) -> Self {
        Self { link, log, followers: Followers::default(), grace, until: None }
    }

    /// How long it waits for its caller to come back.
    pub(crate) fn grace(&self) -> Duration {
        self.grace
    }

    /// The attachment that was waited for is there.
    pub(crate) fn came(&mut self, who: plan::Attachment) {
        // Nobody else came before, or the link would not have waited.
        self.followers.attach(who, true);
        self.until = None;
    }

    /// Somebody wants to follow. True when that is so from here on; `answer` is told where the output goes on.
    pub(crate) fn attach(
        &mut self,
        shared: &Arc<Shared>,
        arrival: Arrival,
        answer: impl FnOnce(u64) -> Attached,
    ) -> bool {
        let Arrival { attachment, out_offset, take_over, .. } = arrival;
        let who = attachment.who();
        if !self.log.was_sent(out_offset) {
            shared.turn_away(attachment, &never_sent(out_offset));
            return false;
        }
        match self.followers.attach(who, take_over) {
            Verdict::Follows => {}
            Verdict::Stale => {
                tracing::debug!(number = who.number, "an attachment came after a newer one of its process");
                return false;
            }
            Verdict::Taken => {
                let failure = Failure::new(failure::Kind::Conflict, "another process follows this session already")
                    .hint("end that one first, or take its place with `malai attach`");
                shared.turn_away(attachment, &failure);
                return false;
            }
        }
        tracing::info!(number = who.number, out_offset, "attached");
        if let Some(mut old) = self.link.replace(attachment) {
            old.supersede(&who);
            shared.dismiss(old);
        }
        self.until = None;
        self.link.control(Kind::Attached, &answer(self.log.resume(out_offset)));
        true
    }

    /// Nobody follows any more.
    pub(crate) fn lost(&mut self) {
        self.link.drop_attachment();
        self.until = Some(Instant::now() + self.grace);
    }

    /// Whether this caller's going ends the session.
    pub(crate) fn is_ended_by(&self, follower: Option<FollowerId>, number: u32) -> bool {
        self.followers.is_ended_by(follower, number)
    }

    /// Whether somebody who followed may come back.
    pub(crate) fn may_return(&self) -> bool {
        self.followers.may_return()
    }

    /// Hands over what the attachment takes.
    pub(crate) fn fill(&mut self) {
        while self.link.is_open() && self.link.has_room() {
            match self.log.take() {
                Some((session::Output::Stdout, bytes)) => self.link.data(Kind::Stdout, bytes),
                Some((session::Output::Stderr, bytes)) => self.link.data(Kind::Stderr, bytes),
                None => return,
            }
        }
    }

    /// How much of the command's output may be read: little more than what the attachment takes, and while nobody
    /// follows, as much as is kept.
    pub(crate) fn room(&mut self) -> usize {
        let waits = self.log.backlog() + self.link.queued() as u64;
        let open = self.link.is_open();
        let window = self.log.room(open && waits == 0);
        let most = if open { (OUTBOX as u64).saturating_sub(waits) } else { u64::MAX };
        usize::try_from(window.min(most)).unwrap_or(usize::MAX)
    }
}

/// An attachment asks for output that follows what there is.
pub(crate) fn never_sent(out_offset: u64) -> Failure {
    let message = format!("the attachment asks for output from byte {out_offset} on, and less was sent");
    Failure::new(failure::Kind::Unknown, message)
}
