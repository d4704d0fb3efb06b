//! What a machine does with a session of another one: decided when it begins and with every snapshot, written down before
//! it is done, and kept within what its grant is for.
//!
//! The owner's own attachments are copied as bytes; these are read frame by frame, so that nothing passes that is not
//! allowed, and so that a refusal finds its place between two frames.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use malai_protocol::access::{Act, Decision, Request, decide};
use malai_protocol::audit::{Entry, Event};
use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind, MAX_DATA};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::MachineId;
use malai_protocol::plan::{Attachment, SessionName};
use malai_protocol::scan::Direction;
use malai_protocol::session::{Attach, Attached, Signal};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::admit::{SYNC_WAIT, decided, unaudited};
use super::attach::{about, attend, refuse};
use super::refusals::{self, Verdict};
use crate::clusters::membership::Membership;
use crate::executor::Connection;
use crate::net::{FrameError, Frames, is_caller_gone};

/// Bounds how long a caller may take to read why its attachment ended, so that it ends within a second in all.
const REFUSAL_DELIVERY_TIMEOUT: Duration = Duration::from_millis(500);
/// Bounds the numbers of standard signals; higher ones are real-time signals.
const MAX_STANDARD_SIGNAL: u8 = 31;

/// An attachment at the executor.
type ToExecutor = Framed<Connection, FrameCodec>;

/// Holds what a machine does with a session of another one.
#[derive(Debug)]
pub(super) struct Visit {
    membership: Arc<Membership>,
    caller: MachineId,
    session: SessionName,
    /// The act that needs a grant for as long as the visit lasts.
    act: Act,
}

/// How a visit's way to the session ended.
#[derive(Debug)]
enum Up {
    /// The caller may not do what it did, or not any more.
    Refused(Failure),
    /// The caller left in good order.
    Left,
    /// The caller is gone for good; the session goes on.
    Gone,
    /// The executor takes nothing more: what it said last is on its way.
    Closed,
    /// The attachment is lost.
    Lost(anyhow::Error),
}

/// Writes down what the caller is about to do with another machine's session.
///
/// # Errors
/// The audit cannot be written, or has as many lines of this caller as it takes: then the act must not be done.
pub(super) fn note(
    membership: &Arc<Membership>,
    caller: MachineId,
    session: SessionName,
    event: Event,
    signal: Option<u8>,
) -> Result<(), Failure> {
    let line = Entry { signal, ..about(membership, caller, session, event) };
    // No machine pushes the rest of the audit out by what it may do with others' sessions, either.
    if let Verdict::LeaveOut(at) = membership.refusals.ask(caller, Instant::now()) {
        membership.counters.sessions_refused.one();
        if let Some(at) = at {
            refusals::tell(membership, caller, at);
        }
        let text = "this machine acted on other machines' sessions more often than the audit records";
        return Err(Failure::new(FailureKind::Busy, text).hint("try again in a few seconds"));
    }
    let bytes = membership.host.audit.append_act(&line).map_err(unaudited)?;
    membership.refusals.wrote(caller, bytes);
    membership.host.audit.allowances.count(caller, bytes, Instant::now());
    let (id, peer, owner) = (session.id.short(), caller.short(), session.caller.short());
    tracing::debug!(session = %id, %peer, %owner, signal, "another machine's session: {event:?}");
    Ok(())
}

impl Visit {
    /// Decides whether an attachment may control or only watch; a refusal goes to the audit.
    ///
    /// # Errors
    /// The refusal, to be sent to the caller.
    pub(super) async fn begin(
        membership: &Arc<Membership>,
        caller: MachineId,
        session: SessionName,
        generation: u64,
        ask: &Attach,
    ) -> Result<Self, Failure> {
        let visit = |act| Self { membership: Arc::clone(membership), caller, session, act };
        if ask.take_over && !ask.or_watch {
            attend(membership, caller, session, generation, Act::Control, "taking over").await?;
            return Ok(visit(Act::Control));
        }
        let controls = visit(Act::Control);
        if ask.take_over {
            let request = controls.request();
            if decided(membership, &caller, generation, &request, Instant::now() + SYNC_WAIT).await.is_ok() {
                return Ok(controls);
            }
        }
        attend(membership, caller, session, generation, Act::Watch, "attaching to").await?;
        Ok(if controls.allowed().is_ok() { controls } else { visit(Act::Watch) })
    }

    /// Makes a visit for an act that was decided already; `None` where the session is the caller's own.
    pub(super) fn of(membership: &Arc<Membership>, caller: MachineId, session: SessionName, act: Act) -> Option<Self> {
        (session.caller != caller).then(|| Self { membership: Arc::clone(membership), caller, session, act })
    }

    /// Returns whether the visit only watches.
    pub(super) fn watches(&self) -> bool {
        self.act == Act::Watch
    }

    /// Writes this act into the audit, as [`note`] does.
    pub(super) fn note(&self, event: Event, signal: Option<u8>) -> Result<(), Failure> {
        note(&self.membership, self.caller, self.session, event, signal)
    }

    fn request(&self) -> Request<'_> {
        Request::Attend { owner: &self.session.caller, act: self.act }
    }

    /// Decides again, by the snapshot that is held now.
    fn allowed(&self) -> Result<(), Failure> {
        let (membership, held) = (&self.membership, self.membership.held());
        match decide(&held.config, &membership.host.me(&membership.me), &self.caller, &self.request()) {
            Decision::Allowed(_) => Ok(()),
            Decision::Refused(failure) => Err(failure),
        }
    }

    /// Waits until the act is not allowed any more, and writes that into the audit. Returns what the caller is to hear.
    async fn withdrawn(&self, doing: &str) -> Failure {
        let mut snapshots = self.membership.watch();
        loop {
            // Marked as seen before it is decided by, so that none comes in between unseen.
            snapshots.mark_unchanged();
            if let Err(failure) = self.allowed() {
                return self.refuse(failure, doing);
            }
            // The membership that this holds has the sender.
            if snapshots.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Writes down that this was refused, and returns what the caller is to hear.
    fn refuse(&self, failure: Failure, doing: &str) -> Failure {
        refuse(&self.membership, self.caller, self.session, failure, doing)
    }

    /// Runs `work` for as long as it is allowed and the cluster is served.
    ///
    /// # Errors
    /// Why it is not allowed any more.
    pub(super) async fn while_allowed<T>(&self, doing: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            failure = self.withdrawn(doing) => Err(failure),
            done = work => Ok(done),
        }
    }

    /// Copies frames between the caller and the executor until one of them is done, or the grant is withdrawn.
    ///
    /// # Errors
    /// What went wrong with the stream; refusals are answered, and are no errors.
    pub(super) async fn follow<R, W>(
        self,
        attachment: Attachment,
        first: Option<Frame>,
        stream: ToExecutor,
        mut frames: Frames<R>,
        writer: W,
    ) -> anyhow::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        frames.settle();
        frames.set_cap(MAX_DATA);
        let first = first.map(|frame| introduced(frame, attachment.watches)).transpose()?;
        let (mut to_executor, from_executor) = stream.split();
        let stop = CancellationToken::new();
        let down = down(first, from_executor, writer, &stop);
        tokio::pin!(down);
        let end = tokio::select! {
            biased;
            failure = self.withdrawn("following") => Up::Refused(failure),
            // A membership that is given up is let go of: the caller comes back, and is decided by the next.
            () = self.membership.cancel.cancelled() => Up::Lost(anyhow::anyhow!("the cluster is taken in again")),
            end = self.up(&mut frames, &mut to_executor) => end,
            ended = &mut down => return ended?.finish().await,
        };
        match end {
            Up::Refused(failure) => {
                // First of all nothing more gets in or out.
                let told = async {
                    stop.cancel();
                    to_executor.close().await?;
                    let Down { mut writer, .. } = down.await?;
                    writer.write_all(&Frame::control(Kind::Refused, &failure)?.to_bytes()).await?;
                    writer.shutdown().await?;
                    anyhow::Ok(())
                };
                match timeout(REFUSAL_DELIVERY_TIMEOUT, told).await {
                    Ok(told) => told,
                    Err(_) => anyhow::bail!("the attachment is given up, since its caller did not hear why: {failure}"),
                }
            }
            Up::Closed => down.await?.finish().await,
            Up::Left | Up::Gone => Ok(()),
            Up::Lost(error) => Err(error),
        }
    }

    /// Copies frames from the caller to the executor.
    async fn up<R: AsyncRead + Unpin>(
        &self,
        frames: &mut Frames<R>,
        to_executor: &mut SplitSink<ToExecutor, Frame>,
    ) -> Up {
        let (mut last, mut types) = (None, false);
        loop {
            let frame = match frames.next_unbounded().await {
                Some(Ok(frame)) => frame,
                Some(Err(FrameError::Codec(CodecError::Io(error)))) if is_caller_gone(&error) => return Up::Gone,
                Some(Err(error)) => return Up::Lost(error.into()),
                None if last == Some(Kind::Goodbye) => return Up::Left,
                None => return Up::Lost(anyhow::anyhow!("the caller's stream ended without a goodbye")),
            };
            match self.admit(&frame, &mut types) {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => return Up::Refused(failure),
                Err(error) => return Up::Lost(error.into()),
            }
            last = Some(frame.kind);
            if to_executor.send(frame).await.is_err() {
                return Up::Closed;
            }
        }
    }

    /// Decides whether this frame may pass now, and writes into the audit first what it does. `Ok(Err)` refuses the caller.
    /// `types` says that the audit has already that the caller controls the session.
    fn admit(&self, frame: &Frame, types: &mut bool) -> Result<Result<(), Failure>, CodecError> {
        let (event, signal) = match frame.kind {
            Kind::Ack | Kind::Goodbye => return Ok(Ok(())),
            Kind::Stdin | Kind::StdinEof | Kind::StopOutput => (Event::Control, None),
            Kind::Signal => {
                let Signal { number, .. } = frame.decode()?;
                if !(1..=MAX_STANDARD_SIGNAL).contains(&number) {
                    return Err(CodecError::OutOfOrder { got: Kind::Signal, wanted: "a signal that there is" });
                }
                (Event::Signal, Some(number))
            }
            got => return Err(CodecError::OutOfOrder { got, wanted: "a frame of a caller's session" }),
        };
        let doing = if event == Event::Signal { "signalling" } else { "typing into" };
        if self.watches() {
            return Ok(Err(self.refuse(self.only_watches(), doing)));
        }
        if let Err(failure) = self.allowed() {
            return Ok(Err(self.refuse(failure, doing)));
        }
        if event == Event::Control && std::mem::replace(types, true) {
            return Ok(Ok(()));
        }
        Ok(self.note(event, signal))
    }

    /// Returns why a visit that only watches may not do more.
    fn only_watches(&self) -> Failure {
        let controls = Self { membership: Arc::clone(&self.membership), act: Act::Control, ..*self };
        let since = || {
            Failure::new(FailureKind::Denied, "this attachment only watches: it came before the config allowed more")
                .hint("attach again")
        };
        controls.allowed().err().unwrap_or_else(since)
    }
}

/// Adds to the first frame for the caller that it only watches, where it does.
fn introduced(frame: Frame, watches: bool) -> anyhow::Result<Frame> {
    if frame.kind != Kind::Attached || !watches {
        return Ok(frame);
    }
    let attached: Attached = frame.decode()?;
    Ok(Frame::control(Kind::Attached, &Attached { watches, ..attached })?)
}

/// Holds the end of the way to the caller.
struct Down<W> {
    writer: W,
    /// Why the executor gave it up; absent when it was stopped here.
    end: Result<Option<Kind>, anyhow::Error>,
}

impl<W: AsyncWrite + Unpin> Down<W> {
    /// Ends the stream after the executor's last frame.
    async fn finish(mut self) -> anyhow::Result<()> {
        match self.end? {
            Some(Kind::Exit | Kind::Refused | Kind::Superseded) => Ok(self.writer.shutdown().await?),
            _ => anyhow::bail!("the executor gave the attachment up"),
        }
    }
}

/// Copies whole frames from the executor to the caller; returns between two of them when it is stopped.
///
/// # Errors
/// The caller takes no more.
async fn down<W: AsyncWrite + Unpin>(
    first: Option<Frame>,
    mut from_executor: SplitStream<ToExecutor>,
    mut writer: W,
    stop: &CancellationToken,
) -> anyhow::Result<Down<W>> {
    let (mut next, mut last) = (first, None);
    loop {
        if let Some(frame) = next.take() {
            last = Some(frame.kind);
            writer.write_all(&frame.to_bytes()).await?;
            writer.flush().await?;
        }
        let frame = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Down { writer, end: Ok(None) }),
            frame = from_executor.next() => frame,
        };
        let end = match frame {
            Some(Ok(frame)) if Direction::ToCaller.allows(frame.kind) => {
                next = Some(frame);
                continue;
            }
            Some(Ok(frame)) => {
                Err(CodecError::OutOfOrder { got: frame.kind, wanted: "a frame of this direction" }.into())
            }
            Some(Err(error)) => Err(error.into()),
            None => Ok(last),
        };
        return Ok(Down { writer, end });
    }
}
