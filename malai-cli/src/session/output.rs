//! What a session shows: the command's output up to which byte, what malai says beside it, and what is missing.

use std::io;

use bytes::Bytes;
use malai_protocol::failure::Failure;
use malai_protocol::session::{Ack, ExitRecord, Output as Stream, StopOutput};

use super::events::SessionEvent;
use super::sink::{OutputSink, SinkEvent};
use crate::output;

/// Sets how many written bytes are acknowledged at once while more wait to be written.
const ACK_INTERVAL_BYTES: u64 = 32 * 1024;

/// Says how a session shows itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutputManner {
    /// Objects, one a line, instead of the streams.
    pub(crate) json: bool,
    /// Say where the command runs.
    pub(crate) verbose: bool,
}

/// Holds the output of a session. All offsets count from the start of the session.
#[derive(Debug)]
pub(super) struct Output {
    sink: OutputSink,
    manner: OutputManner,
    /// Bytes of standard output and of standard error that came.
    received: [u64; 2],
    /// Bytes of output that the target did not keep.
    skipped: u64,
    /// The target knows that output up to here arrived.
    acked: u64,
    /// Output streams whose reader is gone.
    stopped: [bool; 2],
    /// What was lost of the session, in words.
    cut: Option<String>,
}

impl Output {
    pub(super) fn new(sink: OutputSink, manner: OutputManner) -> Self {
        let (received, stopped) = ([0; 2], [false; 2]);
        Self { sink, manner, received, skipped: 0, acked: 0, stopped, cut: None }
    }

    /// Returns where output goes on that was not received yet.
    pub(super) fn offset(&self) -> u64 {
        self.received.iter().fold(self.skipped, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Tells whether more should be read from the daemon.
    pub(super) fn has_room(&self) -> bool {
        self.sink.has_room()
    }

    /// Returns what became of what was to be written. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<SinkEvent> {
        self.sink.next().await
    }

    /// Shows a piece of the command's output.
    pub(super) fn show(&mut self, stream: Stream, bytes: Bytes) -> Result<(), Failure> {
        let counts = bytes.len() as u64;
        let received = &mut self.received[stream as usize];
        *received = received.saturating_add(counts);
        if self.manner.json {
            let line = SessionEvent::output(stream, &bytes).line()?;
            self.sink.push(Stream::Stdout, line, counts);
        } else {
            self.sink.push(stream, bytes, counts);
        }
        Ok(())
    }

    /// Says something on standard error, and in JSON as an object too.
    pub(super) fn note(&mut self, text: &str, event: &SessionEvent<'_>) -> Result<(), Failure> {
        self.sink.push(Stream::Stderr, output::note(text).into(), 0);
        self.object(event)
    }

    /// Says something on standard error to a user who asked for more, and in JSON as an object to any.
    pub(super) fn detail(&mut self, text: &str, event: &SessionEvent<'_>) -> Result<(), Failure> {
        if self.manner.verbose {
            return self.note(text, event);
        }
        self.object(event)
    }

    /// Shows an object where objects are wanted.
    pub(super) fn object(&mut self, event: &SessionEvent<'_>) -> Result<(), Failure> {
        if self.manner.json {
            self.sink.push(Stream::Stdout, event.line()?, 0);
        }
        Ok(())
    }

    /// Notes output that will not come.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.skipped = self.skipped.saturating_add(bytes);
    }

    /// Notes that the target knows what is here by the request itself.
    pub(super) fn note_acked(&mut self, out_offset: u64) {
        self.acked = self.acked.max(out_offset);
    }

    /// Returns the acknowledgement that is due: of much that was written, or of all.
    pub(super) fn ack(&mut self) -> Option<Ack> {
        let written = self.sink.written().saturating_add(self.skipped);
        let due = written.saturating_sub(self.acked);
        let is_due = due >= ACK_INTERVAL_BYTES || (due > 0 && self.sink.is_idle());
        is_due.then(|| {
            self.acked = written;
            Ack { out_offset: written }
        })
    }

    /// Notes what was lost of the session; the first loss counts.
    pub(super) fn cut(&mut self, why: impl FnOnce() -> String) {
        self.cut.get_or_insert_with(why);
    }

    /// Notes a stream that cannot be written, and returns the streams of the command that nobody reads any more.
    pub(super) fn stop(&mut self, stream: Stream, error: &io::Error) -> Vec<StopOutput> {
        self.note_broken(stream, error);
        // In objects, both streams of the command went to the one that broke.
        let gone = if self.manner.json { vec![Stream::Stdout, Stream::Stderr] } else { vec![stream] };
        gone.iter().for_each(|&stream| self.stopped[stream as usize] = true);
        gone.into_iter().map(|stream| StopOutput { stream }).collect()
    }

    /// Returns the streams of the command that nobody reads any more.
    pub(super) fn stopped(&self) -> impl Iterator<Item = StopOutput> {
        let stopped = self.stopped;
        let gone = [Stream::Stdout, Stream::Stderr].into_iter().filter(move |stream| stopped[*stream as usize]);
        gone.map(|stream| StopOutput { stream })
    }

    /// Notes a stream that cannot be written. A reader that left has what it wanted; any other error means that output was
    /// lost here.
    pub(super) fn note_broken(&mut self, stream: Stream, error: &io::Error) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.cut(|| format!("standard {} could not be written: {error}", stream_name(stream)));
        }
    }

    /// Queues nothing more.
    pub(super) fn close(&mut self) {
        self.sink.close();
    }

    /// Returns what of the output is missing here, in words. Of what was not kept the stream is not known, so a watcher,
    /// who has heard how much that is, compares sums.
    pub(super) fn missing(&self, record: &ExitRecord, is_watcher: bool) -> Option<String> {
        let ended = [record.stdout_bytes, record.stderr_bytes];
        if is_watcher && self.skipped > 0 {
            let (there, here) = (ended[0].saturating_add(ended[1]), self.offset());
            return (there != here).then(|| format!("only {here} of {there} bytes of its output arrived"));
        }
        let counts = [Stream::Stdout, Stream::Stderr].into_iter().zip(ended.into_iter().zip(self.received));
        let lost = counts.filter(|(_, (there, here))| there != here).map(|(stream, (there, here))| {
            format!("only {here} of {there} bytes of its standard {} arrived", stream_name(stream))
        });
        let lost: Vec<String> = lost.chain(self.cut.clone()).collect();
        (!lost.is_empty()).then(|| lost.join(", and "))
    }

    /// Returns what was lost of the session here, in words.
    pub(super) fn lost(&self) -> Option<&str> {
        self.cut.as_deref()
    }
}

/// Returns the name of a standard stream, without the word *standard*.
pub(super) fn stream_name(stream: Stream) -> &'static str {
    if stream == Stream::Stdout { "output" } else { "error" }
}
