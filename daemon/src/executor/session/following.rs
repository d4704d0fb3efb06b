//! Who follows a session, what it was and is to be sent, and how long it waits when nobody does.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use malai_protocol::codec::Kind;
use malai_protocol::failure::{self, Failure};
use malai_protocol::id::FollowerId;
use malai_protocol::plan;
use malai_protocol::session::{self, Attached, Started};

use super::super::Shared;
use super::super::table::Arrival;
use super::spooling::{Portion, Reading, Writing};
use crate::executor::output::log::Log;
use crate::executor::output::spool::{Reader, Spool};
use crate::executor::session::followers::{Followers, Place, Verdict};
use crate::executor::session::link::{Link, OUTBOX};

/// One session's follower.
#[derive(Debug)]
pub(crate) struct Following {
    pub(crate) link: Link,
    pub(crate) log: Log,
    followers: Followers,
    grace: Duration,
    /// No caller's going away ends it.
    detached: bool,
    /// Where the output goes by way of the disk.
    pub(super) spooled: Option<Spooled>,
    /// While nobody follows: how long somebody may still come.
    pub(super) until: Option<Instant>,
}

/// Both ways between a session and the disk.
#[derive(Debug)]
pub(super) struct Spooled {
    writing: Writing,
    reading: Reading,
}

/// What the disk has done.
pub(crate) enum Moved {
    /// A portion is written.
    Written(Box<Spool>),
    /// A portion was read.
    Read((Reader, Portion)),
}

/// What the disk does next; never, where there is none. Cancel-safe.
pub(super) async fn moved(spooled: &mut Option<Spooled>) -> Moved {
    match spooled {
        Some(Spooled { writing, reading }) => tokio::select! {
            spool = writing.written() => Moved::Written(Box::new(spool)),
            read = reading.read() => Moved::Read(read),
        },
        None => pending().await,
    }
}

impl Following {
    /// Of a session that waits for its first attachment.
    pub(crate) fn new(link: Link, log: Log, grace: Duration, detached: bool) -> Self {
        Self { link, log, followers: Followers::default(), grace, detached, spooled: None, until: None }
    }

    /// Its output goes to the disk; `disk` bounds how many sessions use it at once.
    pub(crate) fn keep(&mut self, spool: Spool, disk: &Arc<Semaphore>) {
        let reading = Reading::new(spool.reader(), disk.clone());
        self.spooled = Some(Spooled { writing: Writing::new(spool, disk.clone()), reading });
    }

    /// Whether its output goes to the disk, where it stays after the end.
    pub(crate) fn is_kept(&self) -> bool {
        self.spooled.is_some()
    }

    /// Takes what the disk has done.
    pub(crate) fn store(&mut self, moved: Moved) {
        match (&mut self.spooled, moved) {
            (Some(spooled), Moved::Written(spool)) => spooled.writing.wrote(*spool, &mut self.log),
            (Some(spooled), Moved::Read(read)) => spooled.reading.came(read),
            (None, _) => {}
        }
    }

    /// Nothing waits for the disk.
    pub(crate) fn is_stored(&self) -> bool {
        self.spooled.as_ref().is_none_or(|spooled| spooled.writing.is_done(&self.log))
    }

    /// Nothing more is written: the spool, to be ended. What was written can still be read.
    pub(crate) fn stored(&mut self) -> Option<Spool> {
        self.spooled.as_mut()?.writing.take()
    }

    /// Has written down that the command runs.
    pub(crate) fn started(&mut self, started: &Started) {
        if let Some(spooled) = &mut self.spooled {
            spooled.writing.started(started.clone());
        }
    }

    /// The follower was handed all that there is.
    pub(crate) fn all_handed(&self) -> bool {
        match &self.spooled {
            Some(spooled) => spooled.reading.is_done(self.log.total()),
            None => self.log.backlog() == 0,
        }
    }

    /// The follower has all up to `offset`. False when it cannot have that.
    pub(crate) fn ack(&mut self, offset: u64) -> bool {
        match &self.spooled {
            Some(spooled) => spooled.reading.was_handed(offset),
            None => self.log.ack(offset),
        }
    }

    /// How long it waits for its caller to come back.
    pub(crate) fn grace(&self) -> Duration {
        self.grace
    }

    /// The attachment that was waited for is there.
    pub(crate) fn came(&mut self, who: plan::Attachment) {
        // Nobody else came before, or the link would not have waited.
        self.followers.attach(who, true, Place::Free);
        self.until = None;
    }

    /// Whether somebody who only watches may come.
    fn place(&self) -> Place {
        if self.link.is_open() {
            Place::Taken
        } else if self.link.is_gone() && self.detached {
            // It waits for nobody once its first attachment came, or did not.
            Place::Free
        } else {
            Place::Awaited
        }
    }

    /// Somebody wants to follow. True when that is so from here on; `answer` is told where the output goes on.
    pub(crate) fn attach(
        &mut self,
        shared: &Arc<Shared>,
        arrival: Arrival,
        answer: impl FnOnce(u64) -> Attached,
    ) -> bool {
        let Arrival { attachment, out_offset, from_end, take_over, .. } = arrival;
        let who = attachment.who();
        let known = match &self.spooled {
            Some(spooled) => spooled.reading.has(out_offset),
            None => self.log.was_sent(out_offset),
        };
        if !known {
            shared.turn_away(attachment, &never_sent(out_offset));
            return false;
        }
        match self.followers.attach(who, take_over, self.place()) {
            Verdict::Follows => {}
            Verdict::Awaited => {
                shared.turn_away(attachment, &awaited());
                return false;
            }
            Verdict::Taken if who.watches => {
                shared.turn_away(attachment, &followed());
                return false;
            }
            Verdict::Stale => {
                tracing::debug!(number = who.number, "an attachment came after a newer one of its process");
                shared.turn_away(attachment, &stale(who.number));
                return false;
            }
            Verdict::Taken => {
                let failure = Failure::new(failure::Kind::Conflict, "another process follows this session already")
                    .hint("end that one first, or take its place with `malai attach`");
                shared.turn_away(attachment, &failure);
                return false;
            }
        }
        tracing::debug!(number = who.number, out_offset, "attached");
        if let Some(mut old) = self.link.replace(attachment) {
            old.supersede(&who);
            shared.dismiss(old);
        }
        self.until = None;
        let wanted = (!from_end).then_some(out_offset);
        let at = match &mut self.spooled {
            Some(spooled) => spooled.reading.resume(wanted),
            None => self.log.resume(wanted.unwrap_or(u64::MAX)),
        };
        self.link.control(Kind::Attached, &answer(at));
        true
    }

    /// Nobody follows any more.
    pub(crate) fn lost(&mut self) {
        self.link.drop_attachment();
        self.followers.left();
        self.until = Some(Instant::now() + self.grace);
    }

    /// Whether this caller's going ends the session.
    pub(crate) fn is_ended_by(&self, follower: Option<FollowerId>, number: u32) -> bool {
        !self.detached && self.followers.is_ended_by(follower, number)
    }

    /// Whether the one that follows only watches.
    pub(crate) fn is_watched(&self) -> bool {
        self.followers.is_watched()
    }

    /// Whether another machine than the session's owner follows, or followed last.
    pub(crate) fn is_anothers(&self) -> bool {
        self.followers.is_anothers()
    }

    /// Whether the follower's signal of this order was not sent yet.
    pub(crate) fn is_new_signal(&mut self, order: u32) -> bool {
        self.followers.is_new_signal(order)
    }

    /// Whether somebody who followed may come back.
    pub(crate) fn may_return(&self) -> bool {
        self.followers.may_return()
    }

    /// Hands over what the attachment takes; `answer` makes what says that output goes on later.
    pub(crate) fn fill(&mut self, answer: impl Fn(u64) -> Attached) {
        if let Some(Spooled { writing, reading }) = &mut self.spooled {
            writing.begin(&mut self.log);
            return reading.fill(&mut self.link, answer);
        }
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
        if let Some(spooled) = &self.spooled {
            return usize::try_from(spooled.writing.room(&self.log)).unwrap_or(usize::MAX);
        }
        let waits = self.log.backlog() + self.link.queued() as u64;
        let open = self.link.is_open();
        let window = self.log.room(open && waits == 0);
        let most = if open { (OUTBOX as u64).saturating_sub(waits) } else { u64::MAX };
        usize::try_from(window.min(most)).unwrap_or(usize::MAX)
    }
}

/// Somebody would watch while the session waits for another one, who is to find its place as it left it.
fn awaited() -> Failure {
    let message = "nobody follows this session now, and it waits for its caller to come back";
    Failure::new(failure::Kind::Conflict, message)
        .hint("try again later; a machine in `allow_control` of that machine may take the session over")
}

/// Somebody would watch a session that another one follows.
fn followed() -> Failure {
    Failure::new(failure::Kind::Conflict, "another process follows this session already")
        .hint("try again when it has left; a machine in `allow_control` of that machine may take its place")
}

/// An attachment comes after a later one of its own process, which follows the session.
fn stale(number: u32) -> Failure {
    let message =
        format!("a later attachment of the same process than its number {number} follows this session already");
    Failure::new(failure::Kind::Unknown, message)
}

/// An attachment asks for output that follows what there is.
pub(crate) fn never_sent(out_offset: u64) -> Failure {
    let message = format!("the attachment asks for output from byte {out_offset} on, and less was sent");
    Failure::new(failure::Kind::Unknown, message)
}
