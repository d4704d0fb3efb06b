//! Who may change what. Two locks, both of the kind that ends with its process, however that ends:
//!
//! * [`Lock`] on `malai.lock`: held by one daemon or agent for its life. The file says who it is.
//! * [`Changes`] on `changes.lock`: held for the moment in which files of clusters are changed. An agent does not stop the
//!   commands that change clusters, so the first lock alone does not keep two of them apart.
//!
//! The first lock is only taken, and only looked at, under the second: so a command that found no daemon knows that one
//! which starts meanwhile reads the files after the change.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use malai_protocol::codec::{Frame, FrameCodec, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::local;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use parking_lot::Mutex;
use tokio_util::codec::Decoder;

use super::disk_failure;

/// How long a holder may take to say hello before it counts as not answering.
const HELLO_WAIT: Duration = Duration::from_secs(1);
/// How long a change waits for another one: longer than any takes on a working disk.
const CHANGES_WAIT: Duration = Duration::from_secs(5);
const CHANGES_POLL: Duration = Duration::from_millis(10);
/// A pid and a word.
const MAX_LOCK_FILE: usize = 64;
const AGENT: &str = "agent";

/// Who takes the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A daemon.
    Daemon,
    /// An agent, which leaves when a daemon asks.
    Agent,
}

/// The lock of a home, held until it is dropped. Close-on-exec: no child inherits it.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Lock {
    home: Home,
    part: Part,
    /// The file that is locked; another one when its name was taken away meanwhile.
    file: Mutex<File>,
}

/// Who holds the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id; absent when it has not written it yet, and then nothing else is known of it either.
    pub pid: Option<u32>,
    /// It is an agent.
    pub agent: bool,
    /// It says hello on its socket.
    pub answers: bool,
}

/// What came of trying.
#[derive(Debug)]
pub enum Attempt {
    /// The lock is ours.
    Taken(Lock),
    /// Somebody else has it.
    Held(Holder),
}

impl Lock {
    /// Takes the lock, or fails with who holds it.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when it is held, else what the disk says.
    pub fn take(home: &Home, part: Part) -> Result<Self, Failure> {
        match Self::try_take(home, part)? {
            Attempt::Taken(lock) => Ok(lock),
            Attempt::Held(holder) => Err(holder.conflict(home)),
        }
    }

    /// Takes the lock, or tells who holds it. Whoever takes it clears what a crash left behind.
    ///
    /// # Errors
    /// What the disk says.
    pub fn try_take(home: &Home, part: Part) -> Result<Attempt, Failure> {
        let changes = Changes::begin(home)?;
        let path = home.lock();
        let fail = |e: io::Error| disk_failure("lock", &path, &e);
        let file = open(&path).map_err(fail)?;
        let is_ours = try_lock(&file).map_err(fail)?;
        // Nobody is asked under the other lock: a daemon that stops may need it to finish.
        drop(changes);
        if !is_ours {
            return Ok(Attempt::Held(holder(home)));
        }
        // The file of one that still serves may have been removed: the lock of another file is no right to its home.
        if let Ok(hello) = hello(&home.socket()) {
            release(&file);
            return Ok(Attempt::Held(Holder { pid: Some(hello.pid), agent: hello.agent, answers: true }));
        }
        let _changes = Changes::begin(home)?;
        part.say(&file).map_err(fail)?;
        super::sweep(home.root());
        super::clusters::sweep(home);
        Ok(Attempt::Taken(Self { home: home.clone(), part, file: Mutex::new(file) }))
    }

    /// Makes the lock's file again, and locks it, when the file was removed. Returns the process that was faster; `None`
    /// when the home is still the holder's. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn confirm(&self) -> Result<Option<Holder>, Failure> {
        let path = self.home.lock();
        let fail = |e: io::Error| disk_failure("lock", &path, &e);
        let mut file = self.file.lock();
        // A home that was removed as a whole is not made again.
        if is_named(&file, &path).map_err(fail)? || !self.home.root().exists() {
            return Ok(None);
        }
        let _changes = Changes::begin(&self.home)?;
        let named = open(&path).map_err(fail)?;
        if !try_lock(&named).map_err(fail)? {
            return Ok(Some(written_holder(&self.home)));
        }
        tracing::warn!(path = %path.display(), "the lock was taken away: it is taken again");
        *file = named;
        self.part.say(&file).map_err(fail)?;
        Ok(None)
    }
}

/// Tells whether this file has this name.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

impl Part {
    /// Writes into the lock who holds it.
    fn say(self, file: &File) -> io::Result<()> {
        let word = if self == Self::Agent { AGENT } else { "" };
        match say(file, &format!("{}\n{word}", std::process::id())) {
            // The lock is what counts. A machine with a full disk must not be one that nobody reaches.
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                tracing::warn!(%error, "the lock does not say who holds it");
                Ok(())
            }
            said => said,
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file keeps its words: whoever finds the lock held a moment before this must not take an agent for a daemon.
        release(&self.file.lock());
    }
}

/// Returns who holds the lock of this home, as far as the lock tells; `None` when nobody does. Blocks.
///
/// # Errors
/// What the disk says.
pub fn find_holder(home: &Home) -> Result<Option<Holder>, Failure> {
    let path = home.lock();
    if !path.exists() {
        return Ok(None);
    }
    // A look takes the lock for a moment, and a daemon that starts in that moment would be refused. Where nothing can be
    // written none starts.
    let _changes = Changes::begin(home).ok();
    let is_held = is_locked(&path).map_err(|e| disk_failure("look at", &path, &e))?;
    Ok(is_held.then(|| written_holder(home)))
}

/// Whether some process holds the lock of this file. It is taken for a moment.
///
/// # Errors
/// What the disk says.
pub(crate) fn is_locked(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

impl Holder {
    /// Describes the holder, for a message.
    #[must_use]
    pub fn name(&self) -> String {
        let what = if self.agent { "an agent" } else { "a daemon" };
        let pid = self.pid.map_or_else(|| "whose pid is not known".to_owned(), |pid| format!("pid {pid}"));
        format!("{what}, {pid},")
    }

    /// Returns the failure for a holder that is not reached.
    #[must_use]
    pub fn unreachable(&self, home: &Home) -> Failure {
        let text = format!("{} runs here, and is not reached at {}", self.name(), home.socket().display());
        Failure::new(Kind::Internal, text).hint(
            "one that starts or stops is not reached for a moment, and one whose socket was removed binds it again; \
             if it stays so: malai daemon stop",
        )
    }

    fn conflict(&self, home: &Home) -> Failure {
        let what = if self.agent { "an agent" } else { "a daemon" };
        let pid = self.pid.map_or_else(|| "pid unknown".to_owned(), |pid| format!("pid {pid}"));
        let shown = home.root().display();
        if self.answers {
            Failure::new(Kind::Conflict, format!("{what} runs already for {shown}: {pid}"))
                .hint("malai daemon status shows it; malai daemon stop ends it")
        } else {
            Failure::new(Kind::Conflict, format!("{what} for {shown} has the lock but does not answer: {pid}"))
                .hint("it may be starting or stopping, try again; if it stays so: malai daemon stop")
        }
    }
}

/// The right to change files of clusters, held until it is dropped: short work on the disk, and nothing else.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Changes {
    home: Home,
    file: File,
}

impl Changes {
    /// Waits for the lock, at most 5 s. Blocks the thread.
    ///
    /// # Errors
    /// [`Kind::Busy`] when another change does not end, else what the disk says.
    pub fn begin(home: &Home) -> Result<Self, Failure> {
        super::prepare(home)?;
        let path = home.changes_lock();
        let fail = |e: io::Error| disk_failure("lock", &path, &e);
        let file = open(&path).map_err(fail)?;
        let deadline = Instant::now() + CHANGES_WAIT;
        while !try_lock(&file).map_err(fail)? {
            if Instant::now() >= deadline {
                let message = "another malai command is changing the clusters and does not end";
                return Err(Failure::new(Kind::Busy, message).hint(format!("fuser {} shows it", path.display())));
            }
            std::thread::sleep(CHANGES_POLL);
        }
        Ok(Self { home: home.clone(), file })
    }

    /// The home whose files may be changed.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Refuses when a daemon holds the home: it has in memory what would change under it. An agent does not mind.
    ///
    /// # Errors
    /// [`Kind::Conflict`] with the daemon's pid, else what the disk says.
    pub fn refuse_beside_a_daemon(&self) -> Result<(), Failure> {
        let path = self.home.lock();
        let fail = |e: io::Error| disk_failure("lock", &path, &e);
        let file = open(&path).map_err(fail)?;
        if try_lock(&file).map_err(fail)? {
            release(&file);
            return Ok(());
        }
        let holder = holder(&self.home);
        if holder.agent { Ok(()) } else { Err(holder.conflict(&self.home)) }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        release(&self.file);
    }
}

/// Writes who holds the lock over what is there, so that a full disk has room for it. No other word stays when it does not.
fn say(file: &File, text: &str) -> io::Result<()> {
    let said = file.write_all_at(text.as_bytes(), 0).and_then(|()| file.set_len(text.len() as u64));
    if said.is_err()
        && let Err(error) = file.set_len(0)
    {
        tracing::debug!(%error, "the lock says who held it before");
    }
    said
}

/// Closing is not enough: a child that is being spawned just now has a copy until it executes its program.
fn release(file: &File) {
    if let Err(error) = file.unlock() {
        tracing::warn!(%error, "cannot release a lock before its file is closed");
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(super::FILE_MODE).open(path)
}

/// Tells whether the system itself says that this process has the lock of this home open. A process that only looks at
/// a lock has it open for a moment, and writes no pid into it.
pub(crate) fn is_held_by(home: &Home, pid: i32) -> bool {
    let Ok(lock) = std::fs::metadata(home.lock()) else { return false };
    // A daemon hides its memory, and with it what it has open, from its own user's other processes too.
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return is_listed(pid, lock.ino()) };
    open.flatten()
        .any(|fd| std::fs::metadata(fd.path()).is_ok_and(|file| (file.dev(), file.ino()) == (lock.dev(), lock.ino())))
}

/// Whether the list of all locks, which everybody may read, has this process as the holder of the lock of a file with this
/// inode. Of the device it has another number than the file on some file systems.
fn is_listed(pid: i32, inode: u64) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| is_of(line, pid, inode))
}

/// A line is `NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END`; one who waits has `->` before its kind.
fn is_of(line: &str, pid: i32, inode: u64) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let kind = [words.next(), words.next(), words.next()];
    let holder = words.next().and_then(|word| word.parse().ok());
    let file = words.next().and_then(|word| word.rsplit(':').next()?.parse().ok());
    kind == [Some("FLOCK"), Some("ADVISORY"), Some("WRITE")] && (holder, file) == (Some(pid), Some(inode))
}

fn holder(home: &Home) -> Holder {
    match hello(&home.socket()) {
        // The socket's word is newer than the file's, which a crash may have left.
        Ok(hello) => Holder { pid: Some(hello.pid), agent: hello.agent, answers: true },
        Err(_) => written_holder(home),
    }
}

/// What the file says, without asking anybody.
fn written_holder(home: &Home) -> Holder {
    let text = super::read_text(&home.lock(), MAX_LOCK_FILE).ok().flatten().unwrap_or_default();
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.parse().ok());
    let agent = lines.next() == Some(AGENT);
    Holder { pid, agent, answers: false }
}

/// Asks whoever listens on a socket for its hello.
fn hello(path: &Path) -> io::Result<local::Hello> {
    let mut stream = connect_now(path)?;
    let deadline = Instant::now() + HELLO_WAIT;
    let ours = local::Hello {
        version: local::VERSION,
        malai: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        agent: false,
    };
    let frame = Frame::control(FrameKind::LocalHello, &ours).map_err(io::Error::other)?;
    stream.set_write_timeout(Some(HELLO_WAIT))?;
    stream.write_all(&frame.to_bytes())?;
    let mut codec = FrameCodec::new();
    let mut got = BytesMut::new();
    loop {
        if let Some(frame) = codec.decode(&mut got).map_err(io::Error::other)? {
            return frame.expect(FrameKind::LocalHello, "a hello").map_err(io::Error::other);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut part = [0u8; 1024];
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => got.extend_from_slice(part.get(..n).unwrap_or_default()),
        }
    }
}

/// Connects without waiting: a holder whose backlog is full does not answer either.
pub(super) fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None)?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path().join("home"));
        (dir, home)
    }

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_pid() {
        let (_dir, home) = home();
        let lock = Lock::take(&home, Part::Daemon).expect("free");
        let refused = Lock::take(&home, Part::Daemon).expect_err("held");
        assert_eq!(refused.kind, Kind::Conflict);
        assert!(refused.message.contains("a daemon for"), "{refused}");
        assert!(refused.message.ends_with(&format!("does not answer: pid {}", std::process::id())), "{refused}");
        drop(lock);
        drop(Lock::take(&home, Part::Daemon).expect("free again"));
    }

    #[test]
    fn a_full_disk_keeps_nobody_from_the_lock() {
        let (_dir, home) = home();
        super::super::prepare(&home).expect("made");
        std::os::unix::fs::symlink("/dev/full", home.lock()).expect("linked");
        drop(Lock::take(&home, Part::Daemon).expect("free"));
    }

    #[test]
    fn a_shorter_word_leaves_nothing_of_a_longer_one() {
        let (_dir, home) = home();
        super::super::prepare(&home).expect("made");
        std::fs::write(home.lock(), format!("{}\nagent", u64::MAX)).expect("written");
        let _lock = Lock::take(&home, Part::Daemon).expect("free");
        assert_eq!(std::fs::read_to_string(home.lock()).expect("reads"), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_holder_that_answers_is_believed_about_itself() {
        let (_dir, home) = home();
        let _lock = Lock::take(&home, Part::Daemon).expect("free");
        let listener = UnixListener::bind(home.socket()).expect("binds");
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("connects");
            let hello = local::Hello { version: 1, malai: "1".into(), pid: 77, agent: true };
            let frame = Frame::control(FrameKind::LocalHello, &hello).expect("encodes");
            stream.write_all(&frame.to_bytes()).expect("writes");
            // Until the other side has read it and left.
            stream.read_to_end(&mut Vec::new()).expect("the other side leaves");
        });
        match Lock::try_take(&home, Part::Daemon).expect("no disk error") {
            Attempt::Held(holder) => assert_eq!(holder, Holder { pid: Some(77), agent: true, answers: true }),
            Attempt::Taken(_) => panic!("two hold the lock"),
        }
        answering.join().expect("ends");
    }

    #[test]
    fn an_agent_is_known_even_when_it_does_not_answer() {
        let (_dir, home) = home();
        let _lock = Lock::take(&home, Part::Agent).expect("free");
        let listener = UnixListener::bind(home.socket()).expect("binds, and never accepts");
        match Lock::try_take(&home, Part::Daemon).expect("no disk error") {
            Attempt::Held(holder) => {
                assert_eq!(holder, Holder { pid: Some(std::process::id()), agent: true, answers: false });
            }
            Attempt::Taken(_) => panic!("two hold the lock"),
        }
        drop(listener);
    }

    #[test]
    fn no_child_inherits_a_lock() {
        let (_dir, home) = home();
        let lock = Lock::take(&home, Part::Daemon).expect("free");
        let changes = Changes::begin(&home).expect("free");
        for file in [&*lock.file.lock(), &changes.file] {
            assert_eq!(fcntl(file, FcntlArg::F_GETFD), Ok(FdFlag::FD_CLOEXEC.bits()));
        }
    }

    #[test]
    fn a_lock_that_is_let_go_is_free_although_a_copy_of_it_is_open() {
        let (_dir, home) = home();
        let lock = Lock::take(&home, Part::Daemon).expect("free");
        let _copy = lock.file.lock().try_clone().expect("as in a child that is being spawned");
        drop(lock);
        drop(Lock::take(&home, Part::Daemon).expect("free again"));
    }

    #[test]
    fn the_lock_works_in_a_symlinked_home_and_clears_leftovers() {
        let (dir, home) = home();
        super::super::prepare(&home).expect("made");
        let link = Home::new(dir.path().join("link"));
        std::os::unix::fs::symlink(home.root(), link.root()).expect("linked");
        std::fs::write(home.root().join(".malai.toml.1.tmp"), "half").expect("written");
        std::fs::create_dir(home.clusters().join(".company.1.tmp")).expect("made");
        let _lock = Lock::take(&link, Part::Daemon).expect("free");
        Lock::take(&home, Part::Daemon).expect_err("the same home");
        assert!(!home.root().join(".malai.toml.1.tmp").exists());
        assert!(!home.clusters().join(".company.1.tmp").exists());
    }

    #[test]
    fn a_change_beside_a_daemon_is_refused_and_beside_an_agent_is_not() {
        let (_dir, home) = home();
        for (part, refused) in [(Part::Daemon, true), (Part::Agent, false)] {
            let lock = Lock::take(&home, part).expect("free");
            let changes = Changes::begin(&home).expect("free");
            assert_eq!(changes.refuse_beside_a_daemon().is_err(), refused);
            drop(lock);
            changes.refuse_beside_a_daemon().expect("nobody is there");
        }
    }

    #[test]
    fn two_changes_at_once_take_turns() {
        let (_dir, home) = home();
        let first = Changes::begin(&home).expect("free");
        let (told, heard) = std::sync::mpsc::channel();
        let second = std::thread::spawn({
            let home = home.clone();
            move || {
                let changes = Changes::begin(&home).expect("free in time");
                told.send(()).expect("is heard");
                drop(changes);
            }
        });
        heard.try_recv().expect_err("the first is still at it");
        drop(first);
        heard.recv_timeout(Duration::from_secs(5)).expect("the second had its turn");
        second.join().expect("ends");
    }

    #[test]
    fn a_lock_whose_file_is_removed_is_taken_again_unless_somebody_was_faster() {
        let (_dir, home) = home();
        let lock = Lock::take(&home, Part::Daemon).expect("free");
        assert_eq!(lock.confirm().expect("looks"), None);
        std::fs::remove_file(home.lock()).expect("removed");
        assert_eq!(lock.confirm().expect("takes it again"), None);
        let holder = find_holder(&home).expect("looks").expect("held");
        assert_eq!(holder, Holder { pid: Some(std::process::id()), agent: false, answers: false });
        Lock::take(&home, Part::Daemon).expect_err("held");

        std::fs::remove_file(home.lock()).expect("removed");
        let faster = Lock::take(&home, Part::Agent).expect("nobody answers");
        assert!(lock.confirm().expect("looks").is_some_and(|holder| holder.agent));
        drop(lock);
        find_holder(&home).expect("looks").expect("the end of the one is not the end of the other");
        drop(faster);
        assert_eq!(find_holder(&home).expect("looks"), None);
    }

    #[test]
    fn a_home_that_is_removed_is_not_made_again() {
        let (_dir, home) = home();
        let lock = Lock::take(&home, Part::Daemon).expect("free");
        std::fs::remove_dir_all(home.root()).expect("removed");
        assert_eq!(lock.confirm().expect("looks"), None);
        assert_eq!(find_holder(&home).expect("looks"), None);
        assert!(!home.root().exists());
    }

    #[test]
    fn nobody_takes_the_home_of_one_that_answers_although_its_lock_is_away() {
        let (_dir, home) = home();
        super::super::prepare(&home).expect("made");
        let listener = UnixListener::bind(home.socket()).expect("binds");
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("connects");
            let hello = local::Hello { version: 1, malai: "1".into(), pid: 77, agent: false };
            let frame = Frame::control(FrameKind::LocalHello, &hello).expect("encodes");
            stream.write_all(&frame.to_bytes()).expect("writes");
            stream.read_to_end(&mut Vec::new()).expect("the other side leaves");
        });
        match Lock::try_take(&home, Part::Daemon).expect("no disk error") {
            Attempt::Held(holder) => assert_eq!(holder, Holder { pid: Some(77), agent: false, answers: true }),
            Attempt::Taken(_) => panic!("two have the home"),
        }
        answering.join().expect("ends");
        assert_eq!(find_holder(&home).expect("looks"), None, "and it was let go");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_says_which_process_holds_the_lock() {
        let (_dir, home) = home();
        let me = i32::try_from(std::process::id()).expect("a pid");
        assert!(!is_held_by(&home, me), "there is none");
        let lock = Lock::take(&home, Part::Daemon).expect("free");
        assert!(is_held_by(&home, me));
        // As for one that hides what it has open.
        let inode = std::fs::metadata(home.lock()).expect("is there").ino();
        assert!(is_listed(me, inode) && !is_listed(1, inode) && !is_listed(me, inode + 1));
        assert!(is_of("1: FLOCK  ADVISORY  WRITE 6741 fe:00:10012007 0 EOF", 6741, 10_012_007));
        for other in ["1: -> FLOCK  ADVISORY  WRITE 7 fe:00:9 0 EOF", "2: POSIX  ADVISORY  WRITE 7 fe:00:9 0 EOF", ""] {
            assert!(!is_of(other, 7, 9), "{other}");
        }
        assert!(!is_held_by(&home, 1), "a pid that a crash has left, and that another process has by now");
        drop(lock);
        assert!(!is_held_by(&home, me) && !is_listed(me, inode));
    }
}
