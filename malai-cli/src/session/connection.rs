//! The way from a session to its target: one connection to the daemon after the other, and what was asked for on them.

use std::time::Duration;

use bytes::BytesMut;
use malai_protocol::codec::{CodecError, Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::Incarnation;
use malai_protocol::session::{Resend, Sent};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::patience::Patience;
use super::request::{FollowerRole, MachineSearch, SessionRequest};
use super::socket::{AnswerStage, Asked, FAREWELL_TIMEOUT, Socket, SocketEvent};
use crate::client::{DialOptions, Dialler, Dialling};
use crate::{duration, platform};

/// Holds the connection, or how there will be one.
enum ConnectionState<S> {
    /// None until then.
    Down(Instant),
    /// About to be.
    Dialling(Dialling<S>),
    /// There.
    Up(Socket<S>),
}

/// Says what happened to a connection.
pub(super) enum ConnectionEvent<S> {
    /// Another one is to be tried.
    Due,
    /// The daemon is there, or why it is not.
    Dialled(Result<S, Failure>),
    /// Something happened on the socket.
    Socket(SocketEvent),
}

/// Holds what is known of the request until it is answered.
#[derive(Debug, Default)]
struct Sending {
    /// When it was sent first, on the clock that counts sleep.
    first: Option<Duration>,
    /// The incarnation of the target's executor that the first sending met.
    met: Option<Incarnation>,
    /// A sending may have reached the target, and what became of it was not answered.
    is_open: bool,
}

/// Holds the connections of a session.
pub(super) struct Connection<S> {
    dialler: Dialler<S>,
    state: ConnectionState<S>,
    /// How many attachments were asked for.
    number: u32,
    sending: Sending,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    pub(super) fn new(dialler: Dialler<S>) -> Self {
        Self { dialler, state: ConnectionState::Down(Instant::now()), number: 0, sending: Sending::default() }
    }

    /// Returns what happens next. Frames are read only if there is room for what they carry. Cancel-safe.
    pub(super) async fn next(&mut self, has_room: bool) -> ConnectionEvent<S> {
        match &mut self.state {
            ConnectionState::Down(until) => {
                sleep_until(*until).await;
                ConnectionEvent::Due
            }
            ConnectionState::Dialling(dialling) => ConnectionEvent::Dialled(dialling.await),
            ConnectionState::Up(socket) => ConnectionEvent::Socket(socket.next(has_room).await),
        }
    }

    pub(super) fn socket(&mut self) -> Option<&mut Socket<S>> {
        match &mut self.state {
            ConnectionState::Up(socket) => Some(socket),
            _ => None,
        }
    }

    /// Tells whether nothing was asked yet.
    pub(super) fn is_unasked(&self) -> bool {
        self.number == 0
    }

    /// Tells whether a sending may have reached the target, without an answer.
    pub(super) fn is_open(&self) -> bool {
        self.sending.is_open
    }

    /// Tells whether the daemon has said that the request is on its way.
    pub(super) fn is_sent(&mut self) -> bool {
        self.socket().is_some_and(|socket| socket.is_sent)
    }

    /// Returns what was asked for on the present connection.
    pub(super) fn asked(&mut self) -> Asked {
        self.socket().map_or(Asked::Exec, |socket| socket.asked)
    }

    /// Tells whether frames reach the target now.
    pub(super) fn is_followed(&mut self) -> bool {
        self.socket().is_some_and(|socket| socket.is_followed())
    }

    pub(super) fn set_stage(&mut self, stage: AnswerStage) {
        self.socket().into_iter().for_each(|socket| socket.stage = stage);
    }

    /// Begins to make a connection.
    pub(super) fn dial(&mut self, options: DialOptions) {
        self.state = ConnectionState::Dialling((self.dialler)(options));
    }

    /// Makes a connection besides, for something else.
    pub(super) fn dial_besides(&mut self) -> Dialling<S> {
        (self.dialler)(DialOptions { agent: false })
    }

    /// Has another connection made then. Until the command is known to run, a sending may have reached the target.
    pub(super) fn lose(&mut self, again_at: Instant, runs: bool) {
        self.sending.is_open |= !runs;
        self.state = ConnectionState::Down(again_at);
    }

    /// Has the request sent as a first one again then: nothing of it has left the daemon here.
    pub(super) fn start_over(&mut self, again_at: Instant) {
        (self.number, self.sending) = (0, Sending::default());
        self.state = ConnectionState::Down(again_at);
    }

    /// Asks on a new connection: for the command until it is known to run, and then for its output from `out_offset`.
    pub(super) fn ask(
        &mut self,
        stream: S,
        request: &SessionRequest,
        runs: bool,
        out_offset: u64,
        patience: &Patience,
    ) -> Result<(), Failure> {
        self.number += 1;
        let (number, left) = (self.number, patience.connect_left());
        let (asked, first) = match self.sending.first {
            _ if runs => (Asked::Attach, request.attach(number, out_offset, false, patience.reconnect())?),
            _ if request.role() == FollowerRole::Watcher => (Asked::Attach, request.attach(number, 0, true, left)?),
            None => {
                self.sending.first = Some(platform::since_boot()?);
                (Asked::Exec, request.exec(None, patience.search())?)
            }
            Some(first) => {
                let since_ms = duration::millis(platform::since_boot()?.saturating_sub(first));
                let resend = Resend { number, met: self.sending.met, since_ms };
                (Asked::Again, request.exec(Some(resend), MachineSearch::within(left))?)
            }
        };
        self.state = ConnectionState::Up(Socket::new(stream, asked, first));
        Ok(())
    }

    /// Notes that the request is on its way. Returns false when that was said before.
    pub(super) fn note_sent(&mut self, sent: &Sent) -> bool {
        let Some(socket) = self.socket() else { return true };
        if std::mem::replace(&mut socket.is_sent, true) {
            return false;
        }
        if socket.asked == Asked::Exec {
            self.sending.met = sent.met;
        }
        true
    }

    /// Sends a frame to the target.
    pub(super) fn send<T: Serialize>(&mut self, kind: FrameKind, value: &T) -> Result<(), CodecError> {
        let frame = Frame::control(kind, value)?;
        self.socket().into_iter().for_each(|socket| socket.queue(&frame));
        Ok(())
    }

    /// Tells whether a refusal holds for all sendings of the request, so that it never ran.
    ///
    /// What the target answers after it has read the request does. What is said on the way, or without reading, holds for no
    /// sending before.
    pub(super) fn is_certain(&mut self, refusal: &Failure) -> bool {
        if !self.is_sent() {
            return !self.sending.is_open;
        }
        match self.asked() {
            Asked::Again => !matches!(refusal.kind, Kind::Unreachable | Kind::Busy | Kind::NotAMember),
            Asked::Exec | Asked::Attach => refusal.kind != Kind::Unreachable,
        }
    }

    /// Returns the request by which the daemon hears that the caller is gone. It is needed while the attachment is lost: no
    /// socket is there then whose end would say so.
    pub(super) fn parting_request(&self, request: &SessionRequest, out_offset: u64) -> Option<BytesMut> {
        if matches!(self.state, ConnectionState::Up(_)) {
            return None;
        }
        request.attach(self.number + 1, out_offset, false, FAREWELL_TIMEOUT).ok()
    }

    /// Closes the connection, with a farewell where the session `ended` in good order. `parting` is asked for on a
    /// connection of its own, which closes without `Goodbye`.
    pub(super) async fn close(self, ended: bool, parting: Option<BytesMut>) {
        let Self { mut dialler, state, .. } = self;
        match state {
            ConnectionState::Up(socket) if ended => socket.farewell().await,
            state => drop(state),
        }
        let Some(mut first) = parting else { return };
        let part = async {
            let stream = dialler(DialOptions { agent: false }).await.ok()?;
            let (mut reader, mut writer) = tokio::io::split(stream);
            writer.write_all_buf(&mut first).await.ok()?;
            // A daemon reads no request when nobody reads its greeting.
            reader.read_u8().await.ok()
        };
        // Where no daemon listens, the command ends when the target has waited long enough. The user does not wait for it.
        drop(timeout(FAREWELL_TIMEOUT, part).await);
    }
}
