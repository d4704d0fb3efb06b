//! The control connection: what the daemon orders, and what it is told.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::StreamExt;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_util::codec::FramedRead;
use tracing::Instrument;

use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind};
use malai_protocol::plan::{Audited, CallerGone, Decided, End, Ended, Outcome, Plan, Sessions, Shutdown, VERSION};
use malai_protocol::session::EndedBy;

use crate::executor::process::tree::{GRACE, WITHDRAWN_GRACE};
use crate::executor::session::link::Link;
use crate::executor::table::{Cause, Command, Rejected};
use crate::executor::{Connection, Shared, refuse, session};

/// Refusals that wait for the daemon to read them, in bytes: with as many, it is read no more until it reads.
const MAX_REPLIES: usize = 4 * 1024 * 1024;
/// Requests in one `Sessions` frame, in bytes: half of its cap, since they take more room encoded.
const PART: usize = 2 * 1024 * 1024;
/// The longest reason that is kept, in characters: it goes into records.
const MAX_REASON: usize = 1024;

type Reader = FramedRead<ReadHalf<Connection>, FrameCodec>;
type Writer = WriteHalf<Connection>;

/// Serves one control connection until it ends, breaks, or a newer one takes its place.
pub(crate) async fn serve(shared: Arc<Shared>, mut reader: Reader, mut writer: Writer) {
    let place = shared.presence.enter();
    tokio::select! {
        result = follow(&shared, &mut reader, &mut writer) => match result {
            Ok(()) => tracing::info!("the daemon went"),
            Err(error) => tracing::warn!(%error, "control connection broken"),
        },
        () = place.taken() => tracing::info!("another control connection took over"),
        () = shared.stop.cancelled() => {}
    }
}

/// Never waits for the daemon to read: what it was not told yet stays in the table, and orders are taken meanwhile.
async fn follow(shared: &Arc<Shared>, reader: &mut Reader, writer: &mut Writer) -> Result<(), CodecError> {
    let mut changes = shared.table.changes();
    let mut parts = VecDeque::from(parts(shared));
    let mut out = BytesMut::new();
    loop {
        if out.is_empty() {
            if let Some(part) = parts.pop_front() {
                Frame::control(Kind::Sessions, &part)?.write_to(&mut out);
            } else if let Some(ended) = shared.table.next_unsent() {
                Frame::control(Kind::Ended, &ended)?.write_to(&mut out);
            }
        }
        tokio::select! {
            wrote = writer.write_buf(&mut out), if !out.is_empty() => {
                if wrote? == 0 {
                    return Err(io::Error::from(io::ErrorKind::WriteZero).into());
                }
            }
            frame = reader.next(), if out.len() < MAX_REPLIES => match frame {
                Some(frame) => order(shared, &frame?, &mut out)?,
                None => return Ok(()),
            },
            // The table lives as long as `shared`.
            changed = changes.changed(), if out.is_empty() => if changed.is_err() {
                return Ok(());
            },
        }
    }
}

fn order(shared: &Arc<Shared>, frame: &Frame, out: &mut BytesMut) -> Result<(), CodecError> {
    match frame.kind {
        Kind::Plan => {
            if let Some(ended) = plan(shared, frame.decode()?) {
                Frame::control(Kind::Ended, &ended)?.write_to(out);
            }
        }
        Kind::CallerGone => {
            let CallerGone { session, follower, number } = frame.decode()?;
            shared.table.tell(session, Command::CallerGone { follower, number });
        }
        Kind::End => {
            let End { session, cause: by, reason } = frame.decode()?;
            let reason = reason.map(short);
            let grace = if by == EndedBy::Revoked { WITHDRAWN_GRACE } else { GRACE };
            shared.table.tell(session, Command::End(Cause { by, reason, grace }));
        }
        Kind::Audited => {
            let Audited { session } = frame.decode()?;
            shared.table.audited(session);
        }
        Kind::Shutdown => {
            let Shutdown { reason } = frame.decode()?;
            shared.shut_down(short(reason));
        }
        got => return Err(CodecError::OutOfOrder { got, wanted: "an order of the daemon" }),
    }
    Ok(())
}

/// Starts a session. Returns the end of an attempt that has no session.
fn plan(shared: &Arc<Shared>, plan: Plan) -> Option<Ended> {
    let Plan { session, cluster, .. } = plan;
    let span = tracing::info_span!(
        "session",
        id = session.id.short(),
        peer = session.caller.short(),
        cluster = cluster.short()
    );
    match shared.table.admit(&plan) {
        Ok(admitted) => {
            let run = session::run(shared.clone(), plan, admitted).instrument(span);
            let run = shared.stop.clone().run_until_cancelled_owned(run);
            shared.sessions.spawn(run);
            None
        }
        Err(Rejected::Lives) => {
            span.in_scope(|| tracing::warn!("a plan for a session that lives is not followed"));
            None
        }
        Err(Rejected::Failed(failure, slot)) => {
            span.in_scope(|| tracing::info!(kind = failure.kind.name(), "plan refused"));
            match (slot, shared.refusals.clone().try_acquire_owned()) {
                (Some(slot), Ok(permit)) => {
                    let (shared, failure) = (shared.clone(), failure.clone());
                    shared.clone().spawn(async move {
                        refuse(Link::new(slot), &failure).await;
                        shared.table.close_slot(session);
                        drop(permit);
                    });
                }
                (Some(_), Err(_)) => shared.table.close_slot(session),
                // The place is another attempt's.
                (None, _) => {}
            }
            Some(Ended { session, cluster, request: plan.request, outcome: Outcome::Refused(failure) })
        }
    }
}

/// A reason, no longer than a record may carry.
pub(crate) fn short(reason: String) -> String {
    if reason.len() <= MAX_REASON { reason } else { reason.chars().take(MAX_REASON).collect() }
}

/// All sessions, in as many frames as they need, at least one.
fn parts(shared: &Shared) -> Vec<Sessions> {
    let (live, ended) = shared.table.sessions();
    let mut parts = Parts { shared, full: Vec::new(), part: empty(shared), size: 0 };
    for live in live {
        parts.make_room(&live.request);
        parts.part.live.push(live);
    }
    for ended in ended {
        parts.make_room(&ended.request);
        parts.part.ended.push(ended);
    }
    parts.full.push(parts.part);
    parts.full
}

struct Parts<'a> {
    shared: &'a Shared,
    full: Vec<Sessions>,
    part: Sessions,
    size: usize,
}

impl Parts<'_> {
    /// Begins another frame when this one would become too large.
    fn make_room(&mut self, request: &Decided) {
        let cost = request.words.iter().map(|word| word.len() + 9).sum::<usize>() + 1024;
        if self.size > 0 && self.size + cost > PART {
            let mut part = std::mem::replace(&mut self.part, empty(self.shared));
            part.more = true;
            self.full.push(part);
            self.size = 0;
        }
        self.size += cost;
    }
}

fn empty(shared: &Shared) -> Sessions {
    Sessions {
        version: VERSION,
        incarnation: shared.incarnation,
        tree: shared.trees.kind(),
        live: Vec::new(),
        ended: Vec::new(),
        program: shared.program,
        more: false,
    }
}
