//! What the CLI sends first on each connection to the daemon: greeting, request, and `Exec` or `Attach`.

use std::time::Duration;

use bytes::BytesMut;
use malai_protocol::codec::{CodecError, Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::{FollowerId, MachineId, SessionId};
use malai_protocol::local::{Request, SessionTarget};
use malai_protocol::peer::Gone;
use malai_protocol::session::{Attach, ExecSpec, Resend};
use malai_protocol::target::Target;

use crate::{client, duration};

/// Holds a session at a machine, to be sent or followed on each connection.
#[derive(Debug)]
pub(crate) struct SessionRequest {
    /// The machine.
    pub(crate) target: Target,
    /// What is asked for there.
    pub(crate) subject: SessionSubject,
    /// This process.
    pub(crate) follower: FollowerId,
}

/// Says how the daemon is to look for the machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct MachineSearch {
    /// How long it looks.
    pub(super) within: Duration,
    /// How long it looks when it knows that the machine has gone; absent = as long as for any other.
    pub(super) gone: Option<Duration>,
    /// Whether the machine is waited for, so that it has to have answered before the request is sent.
    pub(super) waits: bool,
}

impl MachineSearch {
    /// Looks this long in any case.
    pub(super) fn within(within: Duration) -> Self {
        Self { within, gone: None, waits: false }
    }
}

/// Says what is asked for.
#[derive(Debug)]
pub(crate) enum SessionSubject {
    /// A command that is to run.
    Command(Box<ExecSpec>),
    /// A session that is there.
    Session {
        /// The machine that it belongs to; absent = this one.
        owner: Option<MachineId>,
        /// The session's id.
        id: SessionId,
        /// Whether only output from now on is asked for.
        from_end: bool,
    },
}

/// Says what this process is to the session that it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowerRole {
    /// Its caller: input and signals are the command's, and the command ends when the caller goes away.
    Caller,
    /// Its caller, which leaves as soon as the command runs.
    Starter,
    /// A process that looks on: nothing that happens here happens to the command.
    Watcher,
}

impl SessionRequest {
    pub(super) fn role(&self) -> FollowerRole {
        match &self.subject {
            SessionSubject::Command(spec) if spec.detach => FollowerRole::Starter,
            SessionSubject::Command(_) => FollowerRole::Caller,
            SessionSubject::Session { .. } => FollowerRole::Watcher,
        }
    }

    /// Tells whether the command ends with its connection.
    pub(super) fn kills_on_lost(&self) -> bool {
        matches!(&self.subject, SessionSubject::Command(spec) if spec.kill_on_lost)
    }

    /// Tells whether only output from now on is asked for.
    pub(super) fn is_from_end(&self) -> bool {
        matches!(self.subject, SessionSubject::Session { from_end: true, .. })
    }

    /// Returns the session's owner and id.
    fn session(&self) -> (Option<MachineId>, SessionId) {
        match &self.subject {
            SessionSubject::Command(spec) => (None, spec.id),
            SessionSubject::Session { owner, id, .. } => (*owner, *id),
        }
    }

    /// Returns the first bytes of an attachment that brings the command, with `resend` again.
    pub(super) fn exec(&self, resend: Option<Resend>, search: MachineSearch) -> Result<BytesMut, Failure> {
        let SessionSubject::Command(spec) = &self.subject else {
            return Err(Failure::new(Kind::Internal, "cannot start a session that already exists"));
        };
        let spec = ExecSpec { follower: Some(self.follower), resend, ..(**spec).clone() };
        self.first_bytes(resend.map_or(1, |resend| resend.number), search, Frame::control(FrameKind::Exec, &spec))
    }

    /// Returns the first bytes of an attachment to the session, whose output up to `out_offset` is here. `is_first` holds
    /// until an attachment was answered.
    pub(super) fn attach(
        &self,
        number: u32,
        out_offset: u64,
        is_first: bool,
        within: Duration,
    ) -> Result<BytesMut, Failure> {
        let ((owner, id), follower) = (self.session(), self.follower);
        let is_watcher = self.role() == FollowerRole::Watcher;
        // A process that took the session over after the first attachment did so on purpose: taking it back would never
        // end.
        let take_over = is_first && is_watcher;
        // Where this machine may only watch, watching is what was asked for.
        let or_watch = take_over;
        let (binding, from_end) = (!is_watcher, is_first && self.is_from_end());
        let attach = Attach { owner, id, follower, number, out_offset, from_end, binding, take_over, or_watch };
        self.first_bytes(number, MachineSearch::within(within), Frame::control(FrameKind::Attach, &attach))
    }

    fn first_bytes(
        &self,
        number: u32,
        search: MachineSearch,
        last: Result<Frame, CodecError>,
    ) -> Result<BytesMut, Failure> {
        let (owner, id) = self.session();
        let to = SessionTarget {
            machine: self.target.machine.clone(),
            cluster: self.target.cluster.clone(),
            connect_timeout_ms: duration::millis(search.within),
            gone_timeout_ms: search.gone.map(duration::millis),
            wait: search.waits,
            attachment: Some(Gone { owner, id, follower: self.follower, number }),
        };
        let too_long = |e| {
            Failure::new(Kind::Usage, format!("the command is too long: {e}"))
                .hint("send long data through standard input")
        };
        let hello = Frame::control(FrameKind::LocalHello, &client::hello());
        let mut out = BytesMut::new();
        for frame in [hello, Frame::control(FrameKind::Request, &Request::Session(to)), last] {
            frame.map_err(too_long)?.write_to(&mut out);
        }
        Ok(out)
    }
}
