//! What the CLI sends first on each connection to the daemon: greeting, request, and `Exec` or `Attach`.

use std::time::Duration;

use bytes::BytesMut;
use malai_protocol::codec::{CodecError, Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::FollowerId;
use malai_protocol::local::{Request as LocalRequest, SessionTarget};
use malai_protocol::peer::Gone;
use malai_protocol::session::{Attach, ExecSpec, Resend};
use malai_protocol::target::Target;

use crate::{client, duration};

/// A command for a machine, as often as it has to be sent or followed.
#[derive(Debug)]
pub(crate) struct Request {
    /// The machine.
    pub(crate) target: Target,
    /// The command.
    pub(crate) spec: ExecSpec,
    /// This process.
    pub(crate) follower: FollowerId,
}

impl Request {
    /// The first flight of an attachment that brings the command, for the second time or later with `resend`.
    ///
    /// # Errors
    /// When the command is too long.
    pub(super) fn exec(&self, resend: Option<Resend>, within: Duration) -> Result<BytesMut, Failure> {
        let number = resend.map_or(1, |resend| resend.number);
        let spec = ExecSpec { follower: Some(self.follower), resend, ..self.spec.clone() };
        self.flight(number, within, Frame::control(FrameKind::Exec, &spec))
    }

    /// The first flight of an attachment to the running command, whose output up to `out_offset` is here.
    ///
    /// # Errors
    /// When it has no form in frames.
    pub(super) fn attach(&self, number: u32, out_offset: u64, within: Duration) -> Result<BytesMut, Failure> {
        let (id, follower) = (self.spec.id, self.follower);
        let attach =
            Attach { owner: None, id, follower, number, out_offset, from_end: false, binding: true, take_over: false };
        self.flight(number, within, Frame::control(FrameKind::Attach, &attach))
    }

    fn flight(&self, number: u32, within: Duration, last: Result<Frame, CodecError>) -> Result<BytesMut, Failure> {
        let to = SessionTarget {
            machine: self.target.machine.clone(),
            cluster: self.target.cluster.clone(),
            connect_timeout_ms: duration::millis(within),
            attachment: Some(Gone { owner: None, id: self.spec.id, follower: self.follower, number }),
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
