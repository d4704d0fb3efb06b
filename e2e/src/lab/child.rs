//! A command that runs on a host: followed line by line, signalled, waited for.

use std::io::{Read, Write as _};
use std::process::{Child as Process, ChildStdin, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::command::{Cmd, DEADLINE, Output, Stdin, printed};
use super::machine::{Inside, start_in};
use super::netns::on_own_thread;

/// A command that runs on a host; dropping it kills it.
#[derive(Debug)]
pub struct Child {
    what: String,
    process: Pid,
    stdin: Option<ChildStdin>,
    progress: Arc<Progress>,
}

/// What is known of a running command, for whoever waits.
#[derive(Debug, Default)]
struct Progress {
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    streams: [Stream; 2],
    /// How it ended; its process id means nothing any more.
    status: Option<ExitStatus>,
}

#[derive(Debug, Default)]
struct Stream {
    bytes: Vec<u8>,
    arrivals: Vec<Arrival>,
    ended: bool,
}

/// A piece of output: when it came, and how many bytes there were with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When it was read.
    pub at: Instant,
    /// All bytes of its stream so far.
    pub length: usize,
}

const STDOUT: usize = 0;
const STDERR: usize = 1;

impl Child {
    pub(crate) fn spawn(inside: &Inside, host: &str, command: Cmd) -> Result<Self> {
        let what = command.describe(host);
        let mut process = on_own_thread(|| {
            let processes = inside.commands()?;
            inside.enter()?;
            let mut prepared = command.prepare()?;
            start_in(&mut prepared, processes);
            Ok(prepared.spawn()?)
        })
        .with_context(|| format!("cannot start {what}"))?;
        let progress = Arc::new(Progress::default());
        if let Some(stdout) = process.stdout.take() {
            progress.follow(STDOUT, stdout);
        }
        if let Some(stderr) = process.stderr.take() {
            progress.follow(STDERR, stderr);
        }
        let mut stdin = process.stdin.take();
        let id = Pid::from_raw(process.id().cast_signed());
        progress.follow_end(process);
        if let Stdin::Bytes(bytes) = command.stdin
            && let Some(mut pipe) = stdin.take()
        {
            // A command that does not read all of its input is no error of the lab.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        Ok(Self { what, process: id, stdin, progress })
    }

    /// Waits for a line of standard output that contains `text`, and returns it.
    ///
    /// # Errors
    ///
    /// When none has come by the deadline, or the stream ends without.
    pub fn wait_for_line(&self, text: &str, deadline: Duration) -> Result<String> {
        self.line(STDOUT, text, deadline)
    }

    /// Waits for a line of standard error that contains `text`, and returns it.
    ///
    /// # Errors
    ///
    /// When none has come by the deadline, or the stream ends without.
    pub fn wait_for_error_line(&self, text: &str, deadline: Duration) -> Result<String> {
        self.line(STDERR, text, deadline)
    }

    fn line(&self, stream: usize, text: &str, deadline: Duration) -> Result<String> {
        let line = self.progress.wait(deadline, |known| {
            let stream = &known.streams[stream];
            stream.line_with(text).map(Some).or(stream.ended.then_some(None))
        });
        line.flatten().with_context(|| {
            format!("{} printed no line with {text:?} within {deadline:?}; {}", self.what, self.printed())
        })
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        self.progress.with(|known| known.streams[STDOUT].bytes.clone())
    }

    /// Standard error so far.
    #[must_use]
    pub fn stderr(&self) -> Vec<u8> {
        self.progress.with(|known| known.streams[STDERR].bytes.clone())
    }

    /// The last so many bytes of standard output so far.
    #[must_use]
    pub fn tail(&self, length: usize) -> Vec<u8> {
        self.progress.with(|known| {
            let bytes = &known.streams[STDOUT].bytes;
            bytes.get(bytes.len().saturating_sub(length)..).unwrap_or_default().to_vec()
        })
    }

    /// How many bytes of standard output there are so far.
    #[must_use]
    pub fn output_length(&self) -> usize {
        self.progress.with(|known| known.streams[STDOUT].bytes.len())
    }

    /// Waits until standard output is longer than so many bytes, and says when that was so.
    ///
    /// # Errors
    ///
    /// When it is not by the deadline, or the stream ends before.
    pub fn wait_for_output_beyond(&self, length: usize, deadline: Duration) -> Result<Instant> {
        let longer = self.progress.wait(deadline, |known| {
            let stream = &known.streams[STDOUT];
            let longer = stream.arrivals.iter().rev().take_while(|arrival| arrival.length > length).last();
            longer.map(|arrival| Some(arrival.at)).or(stream.ended.then_some(None))
        });
        match longer {
            Some(Some(at)) => Ok(at),
            Some(None) => bail!("the output of {} ended", self.what),
            None => bail!("{} printed nothing more within {deadline:?}", self.what),
        }
    }

    /// Waits until its output has ended, whatever becomes of it.
    ///
    /// # Errors
    ///
    /// When that has not come by the deadline.
    pub fn wait_for_end_of_output(&self, deadline: Duration) -> Result<()> {
        let ended = self.progress.wait(deadline, |known| known.streams.iter().all(|stream| stream.ended).then_some(()));
        ended.with_context(|| format!("something holds the output of {} open; {}", self.what, self.printed()))
    }

    /// When the pieces of standard output and of standard error came.
    #[must_use]
    pub fn arrivals(&self) -> [Vec<Arrival>; 2] {
        self.progress.with(|known| [STDOUT, STDERR].map(|stream| known.streams[stream].arrivals.clone()))
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.progress.with(|known| known.status.is_some())
    }

    /// Writes to its standard input, which the [`Cmd`] left open.
    ///
    /// # Errors
    ///
    /// When its input is not open, or it does not read any more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("the input of {} is not open", self.what))?;
        stdin.write_all(bytes).with_context(|| format!("cannot write to {}", self.what))
    }

    /// Takes its standard input, which the [`Cmd`] left open, to be written by another thread; it ends when dropped.
    ///
    /// # Errors
    ///
    /// When its input is not open.
    pub fn take_stdin(&mut self) -> Result<ChildStdin> {
        self.stdin.take().with_context(|| format!("the input of {} is not open", self.what))
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let sent = self.progress.with(|known| match known.status {
            Some(status) => bail!("it has ended with {status}"),
            None => Ok(kill(self.process, signal)?),
        });
        sent.with_context(|| format!("cannot send {signal} to {}", self.what))
    }

    /// Its process id as seen from outside of the host.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.as_raw()
    }

    /// Waits for its end and the end of its output.
    ///
    /// # Errors
    ///
    /// When that has not come by the deadline; then it is killed, and the message holds what it printed so far.
    pub fn output_within(self, deadline: Duration) -> Result<Output> {
        let status = self.wait(deadline)?;
        let streams = self.progress.wait(deadline, |known| {
            known.streams.iter().all(|stream| stream.ended).then(|| std::mem::take(&mut known.streams))
        });
        let Some([stdout, stderr]) = streams else {
            bail!("{} ended, but something of it holds its output open; {}", self.what, self.printed());
        };
        Ok(Output { what: self.what.clone(), status, stdout: stdout.bytes, stderr: stderr.bytes })
    }

    /// Waits for its end, whatever becomes of its output.
    ///
    /// # Errors
    ///
    /// When that has not come by the deadline; it goes on running.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let status = self.progress.wait(deadline, |known| known.status);
        status.with_context(|| format!("{} did not end within {deadline:?}; {}", self.what, self.printed()))
    }

    fn printed(&self) -> String {
        self.progress.with(|known| printed(&known.streams[STDOUT].bytes, &known.streams[STDERR].bytes))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let running = self.progress.with(|known| known.status.is_none() && kill(self.process, Signal::SIGKILL).is_ok());
        if running && self.wait(DEADLINE).is_err() {
            tracing::warn!("{} may be left behind", self.what);
        }
    }
}

impl Progress {
    fn with<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, work: impl FnOnce(&mut Known)) {
        self.with(work);
        self.changed.notify_all();
    }

    /// Waits until `look` finds something; `None` when the deadline passes first.
    fn wait<T>(&self, deadline: Duration, mut look: impl FnMut(&mut Known) -> Option<T>) -> Option<T> {
        let until = Instant::now() + deadline;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = look(&mut known) {
                return Some(found);
            }
            let left = until.checked_duration_since(Instant::now())?;
            known = self.changed.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn follow(self: &Arc<Self>, stream: usize, mut pipe: impl Read + Send + 'static) {
        let progress = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                let bytes = buffer.get(..length).unwrap_or_default();
                progress.change(|known| known.streams[stream].add(bytes));
            }
            progress.change(|known| known.streams[stream].ended = true);
        });
    }

    /// Reaps a process as soon as it ends: process 1 of a host does not go before the last zombie in its process table.
    ///
    /// Waiting and reaping are two steps, so that its id stays its own until the end is known.
    fn follow_end(self: &Arc<Self>, mut process: Process) {
        let progress = Arc::clone(self);
        let id = Pid::from_raw(process.id().cast_signed());
        thread::spawn(move || {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(id), flags) == Err(nix::errno::Errno::EINTR) {}
            progress.change(|known| known.status = process.wait().ok());
        });
    }
}

impl Stream {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.arrivals.push(Arrival { at: Instant::now(), length: self.bytes.len() });
    }

    fn line_with(&self, text: &str) -> Option<String> {
        let complete = self.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines = String::from_utf8_lossy(self.bytes.get(..complete)?).into_owned();
        lines.lines().find(|line| line.contains(text)).map(str::to_owned)
    }
}
