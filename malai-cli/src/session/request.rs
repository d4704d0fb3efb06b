//! What the CLI sends first on each connection to the daemon: greeting, request, and `Exec` or `Attach`.

use std::time::Duration;

use bytes::BytesMut;
use malai_protocol::codec::{CodecError, Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::{FollowerId, MachineId, SessionId};
use malai_protocol::local::{Request as LocalRequest, SessionTarget};
use malai_protocol::peer::Gone;
use malai_protocol::session::{Attach, ExecSpec, Resend};
use malai_protocol::target::Target;

use crate::{client, duration};

/// A session at a machine, as often as it has to be sent or followed.
#[derive(Debug)]
pub(crate) struct Request {
    /// The machine.
    pub(crate) target: Target,
    /// What is asked for there.
    pub(crate) subject: Subject,
    /// This process.
    pub(crate) follower: FollowerId,
}

/// How the daemon is to look for the machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// For how long.
    pub(super) within: Duration,
    /// For how long when it knows that the machine has gone; absent = as long as else.
    pub(super) gone: Option<Duration>,
    /// The machine is waited for, and has to have answered before the request is sent.
    pub(super) waits: bool,
}

impl Look {
    /// For so long in any case.
    pub(super) fn within(within: Duration) -> Self {
        Self { within, gone: None, waits: false }
    }
}

/// What is asked for.
#[derive(Debug)]
pub(crate) enum Subject {
    /// A command that is to run.
    Command(Box<ExecSpec>),
    /// A session that is there.
    Session {
        /// Whose; absent = this machine's own.
        owner: Option<MachineId>,
        /// Its id.
        id: SessionId,
        /// Only output that comes from now on.
        from_end: bool,
    },
}

/// What this process is to the session that it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Its caller: input and signals are the command's, and the caller's going away ends it.
    Caller,
    /// Its caller, who leaves as soon as the command runs.
    Starter,
    /// One who looks on: nothing that happens here happens to the command.
    Watcher,
}

impl Request {
    pub(super) fn part(&self) -> Part {
        match &self.subject {
            Subject::Command(spec) if spec.detach => Part::Starter,
            Subject::Command(_) => Part::Caller,
            Subject::Session { .. } => Part::Watcher,
        }
    }

    /// Whether the command ends with its connection.
    pub(super) fn kills_on_lost(&self) -> bool {
        matches!(&self.subject, Subject::Command(spec) if spec.kill_on_lost)
    }

    /// Whose session, and its id.
    fn session(&self) -> (Option<MachineId>, SessionId) {
        match &self.subject {
            Subject::Command(spec) => (None, spec.id),
            Subject::Session { owner, id, .. } => (*owner, *id),
        }
    }

    /// The first flight of an attachment that brings the command, for the second time or later with `resend`.
    ///
    /// # Errors
    /// When the command is too long, or there is none.
    pub(super) fn exec(&self, resend: Option<Resend>, look: Look) -> Result<BytesMut, Failure> {
        let Subject::Command(spec) = &self.subject else {
            return Err(Failure::new(Kind::Internal, "a session that is there cannot be started"));
        };
        let number = resend.map_or(1, |resend| resend.number);
        let spec = ExecSpec { follower: Some(self.follower), resend, ..(**spec).clone() };
        self.flight(number, look, Frame::control(FrameKind::Exec, &spec))
    }

    /// The first flight of an attachment to the session, whose output up to `out_offset` is here; `is_first` until one
    /// was answered.
    ///
    /// # Errors
    /// When it has no form in frames.
    pub(super) fn attach(
        &self,
        number: u32,
        out_offset: u64,
        is_first: bool,
        within: Duration,
    ) -> Result<BytesMut, Failure> {
        let ((owner, id), follower) = (self.session(), self.follower);
        let from_end = is_first && matches!(self.subject, Subject::Session { from_end: true, .. });
        let is_watcher = self.part() == Part::Watcher;
        // Whoever is followed by another by then was taken over on purpose: taking it back would never end.
        let take_over = is_first && is_watcher;
        // Where this machine may only watch, watching is what was asked for.
        let or_watch = take_over;
        let binding = !is_watcher;
        let attach = Attach { owner, id, follower, number, out_offset, from_end, binding, take_over, or_watch };
        self.flight(number, Look::within(within), Frame::control(FrameKind::Attach, &attach))
    }

    fn flight(&self, number: u32, look: Look, last: Result<Frame, CodecError>) -> Result<BytesMut, Failure> {
        let (owner, id) = self.session();
        let to = SessionTarget {
            machine: self.target.machine.clone(),
            cluster: self.target.cluster.clone(),
            connect_timeout_ms: duration::millis(look.within),
            gone_timeout_ms: look.gone.map(duration::millis),
            wait: look.waits,
            attachment: Some(Gone { owner, id, follower: self.follower, number }),
        };
        let too_long = |e| {
            Failure::new(Kind::Usage, format!("the command is too long: {e}"))
                .hint("send what is long through standard input")
        };
        let frames = [
            Frame::control(FrameKind::LocalHello, &client::hello()),
            Frame::control(FrameKind::Request, &LocalRequest::Session(to)),
            last,
        ];
        let mut out = BytesMut::new();
        for frame in frames {
            frame.map_err(too_long)?.write_to(&mut out);
        }
        Ok(out)
    }
}
