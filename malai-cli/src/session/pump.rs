//! The loop of one session, and what every frame, signal and deadline does to it.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind as FrameKind, MAX_DATA};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::session::{Ack, ExitRecord, Output, STDIN_CREDIT, Signal, Started, StdinAck, StopOutput};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until};
use tokio_util::codec::FramedRead;

use super::events::Event as Line;
use super::signals::{HUP, INT, TERM};
use super::sink::{Event as Written, Sink};
use super::source::Source;
use crate::{client, output};

/// Written output is acknowledged after so many bytes, or when nothing waits to be written.
const ACK_EVERY: u64 = 32 * 1024;
/// How long the last frame to the daemon may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long what was received is still written when the caller gives up.
const GIVING_UP: Duration = Duration::from_millis(200);

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until when the target has to answer.
    pub(crate) answer_by: Instant,
    /// What HUP or TERM may take to end the command.
    pub(crate) ending: Duration,
    /// Between two INT that mean it.
    pub(crate) second_int: Duration,
}

/// How a session shows itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Objects, one a line, instead of the streams.
    pub(crate) json: bool,
    /// Say where it runs.
    pub(crate) verbose: bool,
}

/// What a session is made of.
#[derive(Debug)]
pub(crate) struct Parts<S, G> {
    /// The daemon's socket.
    pub(crate) stream: S,
    /// The first bytes on it: greeting, request and `Exec`.
    pub(crate) first: BytesMut,
    /// Numbers of signals for the command.
    pub(crate) signals: G,
    /// Standard input; absent when none is sent.
    pub(crate) source: Option<Source>,
    /// Standard output and error.
    pub(crate) sink: Sink,
    /// The target, for people.
    pub(crate) target: String,
    /// How it shows itself.
    pub(crate) manner: Manner,
    /// How long it waits.
    pub(crate) patience: Patience,
}

/// Follows a session to its end and returns its record, all of whose output has been written.
///
/// # Errors
/// Why there is no result: refused, lost, given up, or with output missing.
pub(crate) async fn follow<S, G>(parts: Parts<S, G>) -> Result<ExitRecord, Failure>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    let (from_daemon, to_daemon) = tokio::io::split(parts.stream);
    let mut session = Session {
        frames: FramedRead::new(from_daemon, FrameCodec::new()),
        to_daemon,
        out: parts.first,
        is_writable: true,
        signals: parts.signals,
        source: parts.source,
        sink: parts.sink,
        target: parts.target,
        manner: parts.manner,
        patience: parts.patience,
        greeted: false,
        started: false,
        stdin_sent: 0,
        stdin_credit: STDIN_CREDIT,
        received: [0; 2],
        acked: 0,
        last_int: None,
        give_up_at: None,
        gave_up: false,
        cut: None,
    };
    let outcome = session.run().await;
    session.finish(outcome).await
}

struct Session<S, G> {
    frames: FramedRead<ReadHalf<S>, FrameCodec>,
    to_daemon: WriteHalf<S>,
    /// Bytes for the daemon.
    out: BytesMut,
    /// The daemon still takes bytes; when it does not, what it sent before may still say why.
    is_writable: bool,
    signals: G,
    source: Option<Source>,
    sink: Sink,
    target: String,
    manner: Manner,
    patience: Patience,
    greeted: bool,
    started: bool,
    stdin_sent: u64,
    stdin_credit: u64,
    /// Bytes of standard output and of standard error.
    received: [u64; 2],
    acked: u64,
    last_int: Option<Instant>,
    give_up_at: Option<Instant>,
    gave_up: bool,
    /// What was lost on this side, in words.
    cut: Option<String>,
}

enum Event {
    Signal(u8),
    Written(Option<Written>),
    Sent(io::Result<usize>),
    Frame(Option<Result<Frame, CodecError>>),
    Input(io::Result<Bytes>),
    Deadline,
}

impl<S, G> Session<S, G>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    /// Until the exit record, or the reason why none will come.
    async fn run(&mut self) -> Result<ExitRecord, Failure> {
        loop {
            self.ask_for_input();
            self.acknowledge()?;
            let record = match self.next().await {
                Event::Signal(number) => self.signal(number).map(|()| None),
                Event::Written(event) => self.written(event).map(|()| None),
                Event::Sent(sent) => {
                    self.sent(&sent);
                    Ok(None)
                }
                Event::Input(chunk) => self.input(chunk).map(|()| None),
                Event::Frame(Some(Ok(frame))) => self.frame(&frame),
                Event::Frame(None) => Err(self.lost("")),
                // A daemon that dies with an ack unread: the same as above.
                Event::Frame(Some(Err(CodecError::Io(e)))) if e.kind() == io::ErrorKind::ConnectionReset => {
                    Err(self.lost(""))
                }
                Event::Frame(Some(Err(e))) => Err(self.lost(&format!(" ({e})"))),
                Event::Deadline => Err(self.late()),
            };
            if let Some(record) = record? {
                return Ok(record);
            }
        }
    }

    /// In no fixed order: a command that never stops writing must not keep its own input waiting.
    async fn next(&mut self) -> Event {
        let answer_by = (!self.started).then_some(self.patience.answer_by);
        let deadline = self.give_up_at.into_iter().chain(answer_by).min();
        tokio::select! {
            Some(number) = self.signals.next() => Event::Signal(number),
            event = self.sink.next() => Event::Written(event),
            sent = self.to_daemon.write_buf(&mut self.out), if self.is_writable && !self.out.is_empty() => Event::Sent(sent),
            frame = self.frames.next(), if self.sink.has_room() => Event::Frame(frame),
            chunk = next_chunk(self.source.as_mut()) => Event::Input(chunk),
            () = until(deadline) => Event::Deadline,
        }
    }

    /// At most one frame of input waits for the socket: a signal never stands behind more.
    fn ask_for_input(&mut self) {
        let credit = self.stdin_credit.saturating_sub(self.stdin_sent);
        if let Some(source) = self.source.as_mut().filter(|_| credit > 0 && self.out.len() < MAX_DATA) {
            source.ask(credit);
        }
    }

    fn acknowledge(&mut self) -> Result<(), Failure> {
        let written = self.sink.written();
        let due = written - self.acked;
        if due >= ACK_EVERY || (due > 0 && self.sink.is_idle()) {
            self.acked = written;
            self.tell(FrameKind::Ack, &Ack { out_offset: written })?;
        }
        Ok(())
    }

    fn tell<T: Serialize>(&mut self, kind: FrameKind, value: &T) -> Result<(), Failure> {
        let frame = Frame::control(kind, value).map_err(|e| self.broken(&e.to_string()))?;
        self.queue(&frame);
        Ok(())
    }

    fn queue(&mut self, frame: &Frame) {
        if self.is_writable {
            frame.write_to(&mut self.out);
        }
    }

    fn sent(&mut self, sent: &io::Result<usize>) {
        if !matches!(sent, Ok(1..)) {
            self.is_writable = false;
            self.source = None;
            self.out.clear();
        }
    }

    /// INT, TERM, HUP and QUIT go to the command. Before it runs there is nobody to send them to, and when it does not
    /// heed them the caller leaves: the daemon sees the socket close without `Goodbye` and ends the command's tree.
    fn signal(&mut self, number: u8) -> Result<(), Failure> {
        if !self.started {
            let what = format!("interrupted before {} answered; whether the command started is not known", self.target);
            return Err(self.give_up(what));
        }
        let now = Instant::now();
        if number == INT {
            let recent = |last: Instant| now.duration_since(last) <= self.patience.second_int;
            if self.last_int.replace(now).is_some_and(recent) {
                return Err(self.give_up(format!("interrupted twice; the command on {} is being ended", self.target)));
            }
        }
        if number == HUP || number == TERM {
            self.give_up_at.get_or_insert(now + self.patience.ending);
        }
        self.tell(FrameKind::Signal, &Signal { number })
    }

    fn written(&mut self, event: Option<Written>) -> Result<(), Failure> {
        match event {
            Some(Written::Written { .. }) => Ok(()),
            Some(Written::Broken(stream, error)) => {
                note_broken(&mut self.cut, stream, &error);
                // In objects, both streams of the command went to the one that broke.
                let both = [Output::Stdout, Output::Stderr];
                let gone: &[Output] = if self.manner.json { &both } else { std::slice::from_ref(&stream) };
                gone.iter().try_for_each(|&stream| self.tell(FrameKind::StopOutput, &StopOutput { stream }))
            }
            None => Err(self.give_up("the thread that writes the output is gone".into())),
        }
    }

    fn input(&mut self, chunk: io::Result<Bytes>) -> Result<(), Failure> {
        match chunk {
            Ok(bytes) if !bytes.is_empty() => {
                self.stdin_sent += bytes.len() as u64;
                self.queue(&Frame::data(FrameKind::Stdin, bytes));
                return Ok(());
            }
            Ok(_) => {}
            Err(e) => {
                self.cut = Some(format!("standard input could not be read, and the command saw it end early: {e}"))
            }
        }
        self.source = None;
        self.queue(&Frame::empty(FrameKind::StdinEof));
        Ok(())
    }

    fn frame(&mut self, frame: &Frame) -> Result<Option<ExitRecord>, Failure> {
        match (frame.kind, self.greeted, self.started) {
            (FrameKind::LocalHello, false, _) => {
                // The request is sent already, so that another version's daemon may have started it.
                client::check_greeting(frame).map_err(|failure| Failure { kind: Kind::Unknown, ..failure })?;
                self.greeted = true;
            }
            (FrameKind::Refused, true, false) => return Err(self.decode::<Failure>(frame)?),
            (FrameKind::Started, true, false) => {
                let started = self.decode(frame)?;
                self.started(&started)?;
            }
            (FrameKind::Stdout, true, true) => self.output(Output::Stdout, &frame.payload)?,
            (FrameKind::Stderr, true, true) => self.output(Output::Stderr, &frame.payload)?,
            (FrameKind::StdinAck, true, true) => {
                let ack: StdinAck = self.decode(frame)?;
                if ack.offset > self.stdin_sent {
                    return Err(self.broken("it took more input than was sent"));
                }
                self.stdin_credit = self.stdin_credit.max(ack.credit);
            }
            (FrameKind::StdinClosed, true, true) => self.source = None,
            (FrameKind::Exit, true, true) => return Ok(Some(self.decode(frame)?)),
            (kind, ..) => return Err(self.broken(&format!("a {kind:?} frame where none may come"))),
        }
        Ok(None)
    }

    fn started(&mut self, started: &Started) -> Result<(), Failure> {
        self.started = true;
        if self.manner.verbose {
            let Started { hostname, user, pid, .. } = started;
            let text = output::note(&format!("{} runs it on host {hostname} as {user}, pid {pid}", self.target));
            self.sink.push(Output::Stderr, text.into(), 0);
        }
        if self.manner.json {
            let line = Line::Started { target: &self.target, started }.line()?;
            self.sink.push(Output::Stdout, line, 0);
        }
        Ok(())
    }

    fn output(&mut self, stream: Output, payload: &Bytes) -> Result<(), Failure> {
        let counts = payload.len() as u64;
        self.received[stream as usize] += counts;
        let (to, bytes) = if self.manner.json {
            (Output::Stdout, Line::output(stream, payload).line()?)
        } else {
            (stream, payload.clone())
        };
        self.sink.push(to, bytes, counts);
        Ok(())
    }

    fn decode<T: serde::de::DeserializeOwned>(&self, frame: &Frame) -> Result<T, Failure> {
        frame.decode().map_err(|e| self.broken(&e.to_string()))
    }

    /// Says farewell, writes out what is left, and gives the final word.
    async fn finish(mut self, outcome: Result<ExitRecord, Failure>) -> Result<ExitRecord, Failure> {
        // Only an exit record ends a session in good order; otherwise it is over with the socket, at once.
        if outcome.is_ok() {
            self.queue(&Frame::empty(FrameKind::Goodbye));
        } else {
            self.out.clear();
        }
        let outcome = outcome.and_then(|record| self.check(record));
        if self.manner.json {
            let line = match &outcome {
                Ok(record) => Line::Exit { target: &self.target, code: record.exit_code(), record }.line()?,
                Err(error) => Line::Error { target: &self.target, code: error.kind.exit_code(), error }.line()?,
            };
            self.sink.push(Output::Stdout, line, 0);
        }
        self.sink.close();
        let Self { frames, mut to_daemon, mut out, mut signals, mut sink, gave_up, target, mut cut, .. } = self;
        if !out.is_empty() {
            // The session is over on the other side: nothing depends on whether the daemon hears of it from here.
            drop(tokio::time::timeout(FAREWELL, to_daemon.write_all_buf(&mut out)).await);
        }
        drop((frames, to_daemon));
        let give_up_at = gave_up.then(|| Instant::now() + GIVING_UP);
        loop {
            tokio::select! {
                event = sink.next() => match event {
                    Some(Written::Broken(stream, error)) => note_broken(&mut cut, stream, &error),
                    Some(Written::Written { .. }) => {}
                    None => break,
                },
                Some(_) = signals.next() => {
                    cut.get_or_insert("interrupted before all output was written".into());
                    break;
                }
                () = until(give_up_at) => break,
            }
        }
        outcome.and_then(|record| whole(&target, record, cut.as_deref()))
    }

    /// Checks that nothing of the output was lost.
    fn check(&self, record: ExitRecord) -> Result<ExitRecord, Failure> {
        let told = [record.stdout_bytes, record.stderr_bytes];
        let lost = ["output", "error"].into_iter().zip(told.into_iter().zip(self.received));
        let lost = lost
            .filter(|(_, (told, received))| told != received)
            .map(|(name, (told, received))| format!("{received} of {told} bytes of its standard {name} arrived"));
        let lost: Vec<String> = lost.chain(self.cut.clone()).collect();
        whole(&self.target, record, (!lost.is_empty()).then(|| lost.join(", and ")).as_deref())
    }

    fn lost(&self, detail: &str) -> Failure {
        let target = &self.target;
        let message = if self.started {
            format!("connection to {target} lost{detail}; whether the command ended is not known")
        } else {
            format!("connection to {target} lost before it answered{detail}; whether the command started is not known")
        };
        Failure::new(Kind::Unknown, message)
    }

    fn late(&mut self) -> Failure {
        let target = &self.target;
        let message = if self.started {
            format!("the command on {target} did not heed the signal; it is being ended")
        } else {
            format!("{target} did not answer in time; whether the command started is not known")
        };
        let failure = self.give_up(message);
        if self.started { failure } else { failure.hint("give it longer: --connect-timeout 30s") }
    }

    fn broken(&self, why: &str) -> Failure {
        self.lost(&format!(", because the daemon here is not understood: {why}"))
            .hint("the daemon may be of another version; restart it: malai daemon stop; malai daemon")
    }

    fn give_up(&mut self, message: String) -> Failure {
        self.gave_up = true;
        Failure::new(Kind::Unknown, message)
    }
}

/// A reader that left has what it wanted; any other error means that output was lost here.
fn note_broken(cut: &mut Option<String>, stream: Output, error: &io::Error) {
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

async fn next_chunk(source: Option<&mut Source>) -> io::Result<Bytes> {
    match source {
        Some(source) => source.next().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
