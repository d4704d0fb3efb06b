//! Takes the lines that a process logs. A line is written when there is time and room for it, and otherwise counted: no
//! task waits for the log, and none fails because of it.
//!
//! Lines wait in a queue of bounded size for a thread of their own, which alone touches the file, the pipe or the
//! terminal behind the log. A disk that is full or hangs, or a pipe that is not read, costs lines.
//!
//! # Layout
//! `file` is the log on the disk, which several processes of one home write and any of them rotates.

mod file;

use std::collections::VecDeque;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use malai_protocol::home::Home;
use malai_protocol::local::LostLines;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use file::LogFile;

/// Bounds what waits to be written: a burst of some thousand lines.
const LOG_QUEUE_MAX_BYTES: usize = 1024 * 1024;
/// Bounds one line. Words of other machines are in some of them.
const LOG_LINE_MAX_BYTES: usize = 16 * 1024;
/// Ends a line that was cut.
const LOG_LINE_CUT_MARK: &[u8] = "…\n".as_bytes();

/// Is the log of this process. All clones share it.
#[derive(Debug, Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: Mutex<Queue>,
    /// Wakes when something was put into the queue, or taken out and written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether the thread has taken lines that it has not written yet.
    is_writing: bool,
    wants_reopening: bool,
    lost: Option<LostLines>,
}

impl Log {
    /// Returns a log that goes to standard error, as it is now.
    #[must_use]
    pub fn to_stderr() -> Self {
        let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
        Self::start(stderr.map(Place::Stderr))
    }

    /// Returns a log that goes to the log file of this home. [`Log::lost`] says whether it could be opened.
    #[must_use]
    pub fn to_file(home: &Home) -> Self {
        let mut file = LogFile::closed(home.clone());
        let opened = DirBuilder::new().recursive(true).mode(0o700).create(home.root()).and_then(|()| file.open());
        let log = Self::start(Ok(Place::File(file)));
        if let Err(error) = opened {
            log.inner.lose(0, &error.to_string());
        }
        log
    }

    /// Returns a log of this home with another bound for one file.
    #[cfg(test)]
    fn to_small_file(home: &Home, max_bytes: u64) -> Self {
        Self::start(Ok(Place::File(LogFile::closed(home.clone()).with_max_bytes(max_bytes))))
    }

    fn start(place: io::Result<Place>) -> Self {
        let inner = Arc::<Inner>::default();
        let writing = Arc::clone(&inner);
        let started = place.and_then(|place| {
            std::thread::Builder::new().name("log".into()).spawn(move || writing.write_lines(place)).map(drop)
        });
        if let Err(error) = started {
            // Lines stay in the queue until it is full, and those after it are counted as lost.
            inner.lose(0, &error.to_string());
        }
        Self { inner }
    }

    /// Has text written, which is one line or belongs together. Never waits.
    pub fn say(&self, text: &[u8]) {
        self.inner.put(text);
    }

    /// Has the file opened again by its name. Standard error stays what it is.
    pub fn reopen(&self) {
        self.inner.lock().wants_reopening = true;
        self.inner.changed.notify_all();
    }

    /// Waits until everything is written, but no longer than `within`.
    pub fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let mut queue = self.inner.lock();
        while !queue.lines.is_empty() || queue.is_writing {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.inner.changed.wait_for(&mut queue, left);
        }
    }

    /// Returns what was not written since the start, and why; `None` while nothing went wrong.
    #[must_use]
    pub fn lost(&self) -> Option<LostLines> {
        self.inner.lock().lost.clone()
    }
}

/// Takes each write as a whole, as `tracing_subscriber` makes one for each event. It does not fail.
impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.say(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    fn put(&self, text: &[u8]) {
        let line = bounded(text);
        let mut queue = self.lock();
        if queue.bytes.saturating_add(line.len()) > LOG_QUEUE_MAX_BYTES {
            return queue.lose(1, "they come faster than they can be written");
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.changed.notify_all();
    }

    fn lose(&self, lines: u64, why: &str) {
        self.lock().lose(lines, why);
    }

    /// Writes lines as they come, for as long as the process lives.
    fn write_lines(&self, place: Place) {
        let mut writer = Writer { place, told: 0, is_torn: false };
        loop {
            let (lines, lost) = self.next(&mut writer);
            writer.write(self, lines, lost);
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for lines, and takes all that there are.
    fn next(&self, writer: &mut Writer) -> (VecDeque<Vec<u8>>, Option<LostLines>) {
        let mut queue = self.lock();
        while queue.lines.is_empty() && !queue.wants_reopening {
            self.changed.wait(&mut queue);
        }
        queue.is_writing = true;
        queue.bytes = 0;
        if std::mem::take(&mut queue.wants_reopening) {
            writer.place.reopen();
        }
        (std::mem::take(&mut queue.lines), queue.lost.clone())
    }
}

impl Queue {
    fn lose(&mut self, lines: u64, why: &str) {
        let lost = self.lost.get_or_insert_with(|| LostLines { lines: 0, why: String::new() });
        lost.lines = lost.lines.saturating_add(lines);
        why.clone_into(&mut lost.why);
    }
}

/// Names where lines go.
#[derive(Debug)]
enum Place {
    Stderr(File),
    File(LogFile),
}

impl Place {
    fn reopen(&mut self) {
        if let Self::File(file) = self {
            file.close();
        }
    }

    /// Writes one line whole.
    ///
    /// # Errors
    /// When it cannot be written, and how much of it was.
    fn write(&mut self, line: &[u8]) -> Result<(), Torn> {
        match self {
            Self::Stderr(stderr) => write_all(stderr, line),
            Self::File(file) => file.write(line),
        }
    }
}

/// Is a line that was not written whole.
#[derive(Debug)]
struct Torn {
    written: usize,
    error: io::Error,
}

impl From<io::Error> for Torn {
    fn from(error: io::Error) -> Self {
        Self { written: 0, error }
    }
}

/// Holds the thread's own state.
#[derive(Debug)]
struct Writer {
    place: Place,
    /// Is the number of lost lines that the log itself has mentioned.
    told: u64,
    /// Whether the last thing written is half a line.
    is_torn: bool,
}

impl Writer {
    fn write(&mut self, inner: &Inner, lines: VecDeque<Vec<u8>>, lost: Option<LostLines>) {
        if let Place::File(file) = &mut self.place
            && let Err(error) = file.lock()
        {
            return inner.lose(lines.len() as u64, &error.to_string());
        }
        if let Some(LostLines { lines, why }) = lost.filter(|lost| lost.lines > self.told) {
            let text = format!("malai: {} lines of this log are missing here: {why}\n", lines - self.told);
            if self.line(text.into_bytes()).is_ok() {
                self.told = lines;
            }
        }
        for line in lines {
            if let Err(torn) = self.line(line) {
                inner.lose(1, &torn.error.to_string());
            }
        }
        if let Place::File(file) = &mut self.place {
            file.unlock();
        }
    }

    fn line(&mut self, mut line: Vec<u8>) -> Result<(), Torn> {
        if self.is_torn {
            line.insert(0, b'\n');
        }
        let written = self.place.write(&line);
        match &written {
            Ok(()) => self.is_torn = false,
            Err(torn) => self.is_torn |= torn.written > 0,
        }
        written
    }
}

/// Writes everything, waiting for a descriptor that somebody else has set to not block.
fn write_all(file: &mut File, bytes: &[u8]) -> Result<(), Torn> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return Err(Torn { written, error: ErrorKind::WriteZero.into() }),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // What it answers, the next write tells.
                let _told_by_the_next_write =
                    poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(error) => return Err(Torn { written, error }),
        }
    }
    Ok(())
}

fn bounded(text: &[u8]) -> Vec<u8> {
    match text.get(..LOG_LINE_MAX_BYTES) {
        Some(kept) if text.len() > LOG_LINE_MAX_BYTES => [kept, LOG_LINE_CUT_MARK].concat(),
        _ => text.to_vec(),
    }
}

#[cfg(test)]
mod tests;
