//! `malai attach`.

use std::time::Duration;

use malai_daemon::runtime::random::random;
use malai_protocol::failure::Failure;
use malai_protocol::id::FollowerId;
use tokio::time::Instant;

use super::Context;
use super::explain::{explain, refuse, unasked};
use super::place::SessionPlace;
use crate::session::{
    OutputManner, OutputSink, SessionEnd, SessionLimits, SessionName, SessionParts, SessionRequest, SessionSubject,
    SignalStream, follow,
};
use crate::{client, duration};

/// Follow a session: its output, and how it ends
///
/// Shows the output that the target kept, then new output, and exits with the command's code. Sends no input; Ctrl-C leaves,
/// and the command goes on. A process that followed the session before stops following it.
///
/// For another machine's session, this machine must be in the target's `allow_control` or `allow_sessions`. With
/// `allow_sessions` alone it only watches, while no other process follows the session and the session waits for none, and
/// until a process attaches that may do more.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Attach {
    /// Show only new output
    #[arg(long)]
    from_end: bool,
    /// After the connection is lost, how long to try to follow the session again
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10m")]
    lost_after: Duration,
    #[command(flatten)]
    place: SessionPlace,
}

impl Attach {
    /// Follows the session, and returns its exit code.
    ///
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let typed = match self.place.typed() {
            Ok(typed) => typed,
            Err(failure) => return Ok(refuse(cx.out, &self.place.session, &failure)),
        };
        let outcome = client::block_on(async {
            let (name, owner) = self.place.find(cx, &typed).await?;
            let subject = SessionSubject::Session { owner, id: name.id, from_end: self.from_end };
            let (connect_timeout, lost_after) = (self.place.connect_timeout, Some(self.lost_after));
            let follower = FollowerId::from_bytes(random()?);
            let parts = SessionParts {
                dialler: client::dialler(&cx.home, cx.out),
                request: SessionRequest { target: name.target.clone(), subject, follower },
                signals: SignalStream::listen()?,
                source: None,
                sink: OutputSink::standard()?,
                manner: OutputManner { json: cx.out.json, verbose: false },
                limits: SessionLimits::new(Instant::now(), connect_timeout, lost_after),
            };
            Ok((name, follow(parts).await))
        });
        match outcome {
            Err(failure) => Ok(refuse(cx.out, &typed.target.to_string(), &failure)),
            Ok((name, end)) => Ok(ended(cx, &name, end)),
        }
    }
}

/// Says how following ended, and returns the exit code.
fn ended(cx: &Context, name: &SessionName, end: Result<SessionEnd, Failure>) -> u8 {
    match end {
        Ok(SessionEnd::Ended(record)) => {
            explain(cx.out, &name.target.to_string(), &record, None, false);
            record.exit_code()
        }
        Ok(SessionEnd::Left { signal, followed }) => {
            if followed {
                cx.out.last_note(&format!("the command goes on; malai attach {name} follows it again"));
            }
            128u8.saturating_add(signal)
        }
        Ok(SessionEnd::Detached(_)) => cx.out.failure(&unasked()),
        Err(failure) => {
            cx.out.last_words(&failure);
            failure.kind.exit_code()
        }
    }
}
