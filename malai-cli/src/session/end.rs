//! The end of a session: what is left is written, and the record is checked against it.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{SinkExt, Stream, StreamExt};
use malai_protocol::codec::{Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::local::{ClusterStatus, Request as LocalRequest, Response};
use malai_protocol::session::{ExitRecord, Output, Superseded};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::connection::{Connect, Dial, Dialling, FAREWELL, Link};
use super::events::Event as Line;
use super::follow::{End, Session, until};
use super::request::Part;
use super::sink::Event as Written;
use crate::client;

/// How long what was received is still written when the caller gives up.
const GIVING_UP: Duration = Duration::from_millis(200);
/// Bounds how long the daemon here may take to name a machine. Without a name, malai shows its key.
const NAMING_TIMEOUT: Duration = Duration::from_secs(2);

impl<S, G> Session<S, G>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    /// Says farewell, writes out what is left, and gives the final word.
    pub(super) async fn finish(mut self, outcome: Result<End, Failure>) -> Result<End, Failure> {
        let ended = outcome.is_ok();
        let outcome = match self.superseded {
            Some(by) => self.name_who_follows(by).await.map_or(outcome, Err),
            None => outcome.and_then(|end| self.check(end)),
        };
        if self.manner.json {
            let target = &self.target;
            let line = match &outcome {
                Ok(End::Ended(record)) => Some(Line::Exit { target, code: record.exit_code(), record }.line()?),
                Ok(End::Left { signal, .. }) => {
                    Some(Line::Left { target, code: 128u8.saturating_add(*signal) }.line()?)
                }
                Ok(End::Detached(_)) => None,
                Err(error) => Some(Line::Error { target, code: error.kind.exit_code(), error }.line()?),
            };
            line.into_iter().for_each(|line| self.sink.push(Output::Stdout, line, 0));
        }
        self.sink.close();
        let word = if self.gave_up { self.parting_word() } else { None };
        let Self { mut connect, link, mut signals, mut heard, mut sink, gave_up, target, mut cut, .. } = self;
        // Only an exit record ends a session in good order, and one who leaves it to go on; otherwise it is over with the
        // socket, at once.
        match link {
            Link::Up(connection) if ended => connection.farewell().await,
            link => drop(link),
        }
        if let Some(first) = word {
            leave_word(&mut connect, first).await;
        }
        let give_up_at = gave_up.then(|| Instant::now() + GIVING_UP);
        loop {
            tokio::select! {
                event = sink.next() => match event {
                    Some(Written::Broken(stream, error)) => note_broken(&mut cut, stream, &error),
                    Some(Written::Written { .. }) => {}
                    None => break,
                },
                Some(number) = signals.next() => {
                    if heard.is_new(number) {
                        cut.get_or_insert("interrupted before all output was written".into());
                        break;
                    }
                }
                () = until(give_up_at) => break,
            }
        }
        match outcome? {
            End::Ended(record) => whole(&target, record, cut.as_deref()).map(End::Ended),
            left => Ok(left),
        }
    }

    /// Returns the failure with the name of the machine from which the session is followed now, where the daemon here
    /// knows it.
    async fn name_who_follows(&mut self, by: Superseded) -> Option<Failure> {
        let dialling = (self.connect)(Dial { within: NAMING_TIMEOUT, agent: false });
        let name = timeout(NAMING_TIMEOUT, name_of(dialling, self.request.target.cluster.as_deref(), by.by)).await;
        name.ok().flatten().map(|name| self.followed_elsewhere(by, &name))
    }

    /// What the daemon has to be given so that it tells the target that the caller is gone: while the attachment is
    /// lost, no socket is there whose end would say so.
    fn parting_word(&mut self) -> Option<BytesMut> {
        if self.part != Part::Caller || self.life.is_none() || matches!(self.link, Link::Up(_)) {
            return None;
        }
        self.request.attach(self.number + 1, self.out_offset(), false, FAREWELL).ok()
    }

    /// Checks that nothing of the output was lost.
    fn check(&self, end: End) -> Result<End, Failure> {
        let End::Ended(record) = end else { return Ok(end) };
        let told = [record.stdout_bytes, record.stderr_bytes];
        if self.part == Part::Watcher && self.skipped > 0 {
            return self.check_sum(record).map(End::Ended);
        }
        let lost = ["output", "error"].into_iter().zip(told.into_iter().zip(self.received));
        let lost = lost
            .filter(|(_, (told, received))| told != received)
            .map(|(name, (told, received))| format!("{received} of {told} bytes of its standard {name} arrived"));
        let lost: Vec<String> = lost.chain(self.cut.clone()).collect();
        whole(&self.target, record, (!lost.is_empty()).then(|| lost.join(", and ")).as_deref()).map(End::Ended)
    }

    /// Of what was not kept nobody knows the stream, and the person was told how much it is.
    fn check_sum(&self, record: ExitRecord) -> Result<ExitRecord, Failure> {
        let (told, arrived) = (record.stdout_bytes.saturating_add(record.stderr_bytes), self.out_offset());
        let lost = (told != arrived).then(|| format!("its output ends at byte {arrived} here, and has {told}"));
        whole(&self.target, record, lost.as_deref())
    }
}

/// Asks the daemon here for the name of a machine, in this cluster or in the only one that has it.
async fn name_of<S: AsyncRead + AsyncWrite>(
    dialling: Dialling<S>,
    cluster: Option<&str>,
    machine: MachineId,
) -> Option<String> {
    let (mut frames, _) = client::greet(Box::pin(dialling.await.ok()?)).await.ok()?;
    frames.send(Frame::control(FrameKind::Request, &LocalRequest::Status).ok()?).await.ok()?;
    let Response::Status(status) = frames.next().await?.ok()?.decode().ok()? else { return None };
    let clusters = status.clusters.iter().filter(|one| cluster.is_none_or(|alias| alias == one.alias));
    let named = |one: &ClusterStatus| {
        let known = one.machines.iter().find(|known| known.id == machine)?;
        Some(format!("{}.{}", known.name, one.alias))
    };
    clusters.filter_map(named).next()
}

/// Asks for an attachment and closes without `Goodbye`. Where nobody listens there is nobody to tell: the command then
/// ends when the target has waited long enough.
async fn leave_word<S: AsyncRead + AsyncWrite>(connect: &mut Connect<S>, mut first: BytesMut) {
    let tell = async {
        let stream = connect(Dial { within: FAREWELL, agent: false }).await.ok()?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        writer.write_all_buf(&mut first).await.ok()?;
        // A daemon whose greeting finds nobody reads no request.
        reader.read_u8().await.ok()
    };
    // Whoever gave up does not wait for long.
    drop(timeout(FAREWELL, tell).await);
}

/// A reader that left has what it wanted; any other error means that output was lost here.
pub(super) fn note_broken(cut: &mut Option<String>, stream: Output, error: &io::Error) {
    if error.kind() != io::ErrorKind::BrokenPipe {
        let name = if stream == Output::Stdout { "output" } else { "error" };
        cut.get_or_insert(format!("standard {name} could not be written: {error}"));
    }
}

/// The record, unless something of the session was lost on the way.
fn whole(target: &str, record: ExitRecord, lost: Option<&str>) -> Result<ExitRecord, Failure> {
    let Some(lost) = lost else { return Ok(record) };
    let code = record.exit_code();
    let message = format!("the command on {target} ended with {code}, but not everything got through: {lost}");
    Err(Failure::new(Kind::Unknown, message))
}
