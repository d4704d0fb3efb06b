//! The output of detached sessions that are over, for whoever attaches: any number may, each for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

use malai_protocol::codec::{CodecError, Frame, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::id::MachineId;
use malai_protocol::plan::Outcome;
use malai_protocol::session::{Ack, Attached};

use crate::runtime::backoff::Backoff;

use super::spool::Kept;
use crate::executor::session::link::{self, Link};
use crate::executor::session::{Reading, blocking, never_sent};
use crate::executor::table::Arrival;
use crate::executor::{Shared, refuse};

/// Replays at once, and of those that one machine attached to.
const MAX_REPLAYS: (usize, usize) = (512, 64);

/// Between two looks for output whose time is over.
const EXPIRY: Duration = Duration::from_secs(3600);

/// The first pause before a full disk is offered the end of a session again; it doubles.
const END_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The longest such pause.
const END_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(10);

/// Who replays how many.
#[derive(Debug, Default)]
pub(crate) struct Replays(Mutex<HashMap<MachineId, usize>>);

/// One of them, until it is dropped.
#[derive(Debug)]
struct Place {
    replays: Arc<Replays>,
    by: MachineId,
}

impl Replays {
    fn enter(self: &Arc<Self>, by: MachineId) -> Option<Place> {
        let (most, each) = MAX_REPLAYS;
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: usize = places.values().sum();
        let mine = places.entry(by).or_default();
        if taken >= most || *mine >= each {
            return None;
        }
        *mine += 1;
        Some(Place { replays: self.clone(), by })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.replays.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = places.get_mut(&self.by) {
            *mine -= 1;
            if *mine == 0 {
                places.remove(&self.by);
            }
        }
    }
}

/// Sees to it that output is removed when its time is over, whether or not somebody asks for any.
pub(crate) async fn expire(shared: Arc<Shared>) {
    loop {
        sleep(EXPIRY).await;
        let spools = shared.spools.clone();
        blocking(shared.disk.clone(), move || spools.expire()).await;
    }
}

/// Sees to it that ends which the disk did not take are written when it does.
pub(crate) async fn write_ends(shared: Arc<Shared>) {
    loop {
        shared.spools.owe().await;
        let mut backoff = Backoff::new(END_RETRY_MIN_INTERVAL, END_RETRY_MAX_INTERVAL);
        loop {
            sleep(backoff.pause()).await;
            let spools = shared.spools.clone();
            if blocking(shared.disk.clone(), move || spools.write_ends()).await {
                break;
            }
        }
    }
}

/// Hands over what is kept of a session, and how it ended.
pub(crate) async fn replay(shared: &Shared, kept: &Kept, arrival: Arrival) {
    let Arrival { attachment, out_offset, from_end, .. } = arrival;
    let who = attachment.who();
    let Some(_place) = shared.replays.enter(who.by) else {
        let failure = Failure::new(failure::Kind::Busy, "too many replay the output of ended commands on that machine")
            .hint("try again when some are done; `malai wait` tells how one ended without its output");
        return refuse(Link::of(attachment), &failure).await;
    };
    let mut reading = Reading::new(kept.reader(), shared.disk.clone());
    if !reading.has(out_offset) {
        return refuse(Link::of(attachment), &never_sent(out_offset)).await;
    }
    tracing::debug!(id = who.session.id.short(), out_offset, "replays");
    let mut link = Link::of(attachment);
    let answer = |out_offset| attached(shared, kept, out_offset);
    link.control(Kind::Attached, &answer(reading.resume((!from_end).then_some(out_offset))));
    loop {
        reading.fill(&mut link, answer);
        if reading.is_done(kept.end.total) {
            break;
        }
        tokio::select! {
            portion = reading.read() => reading.came(portion),
            event = link.next() => match event {
                link::Event::Frame(frame) => if let Err(error) = check(&reading, &frame) {
                    tracing::debug!(%error, id = who.session.id.short(), "an attachment broke the protocol");
                    return;
                },
                link::Event::Lost(why) => return tracing::debug!(why, id = who.session.id.short(), "replay lost"),
                link::Event::Moved | link::Event::Came(_) => {}
            },
        }
    }
    match &kept.end.outcome {
        Outcome::Exit(record) => link.control(Kind::Exit, record),
        Outcome::Refused(failure) => link.control(Kind::Refused, failure),
    }
    link.deliver().await;
}

fn attached(shared: &Shared, kept: &Kept, out_offset: u64) -> Attached {
    let started = kept.end.started.clone();
    let incarnation = started.as_ref().map_or(shared.incarnation, |started| started.incarnation);
    Attached { incarnation, started, out_offset, stdin_offset: 0, credit: 0, stdin_closed: true, watches: false }
}

/// Whether a follower may send this.
fn check(reading: &Reading, frame: &Frame) -> Result<(), CodecError> {
    let wrong = |wanted| Err(CodecError::OutOfOrder { got: frame.kind, wanted });
    match frame.kind {
        Kind::Ack => {
            let Ack { out_offset } = frame.decode()?;
            if reading.was_handed(out_offset) { Ok(()) } else { wrong("an offset that was sent") }
        }
        Kind::Stdin | Kind::StdinEof | Kind::Signal | Kind::StopOutput | Kind::Goodbye => Ok(()),
        _ => wrong("a frame of a caller's session"),
    }
}
