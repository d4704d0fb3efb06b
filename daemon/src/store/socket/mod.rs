//! Serves a Unix socket whose name others may remove, as cleaners of temporary directories do. Whenever its directory
//! changes, the socket's owner looks at the name, and binds it again when it stands for nothing, or for something that no
//! process serves. Where the system does not report changes, and while the name is not as it should be, it looks every
//! other second.

mod watch;

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

use watch::Watch;

/// Sets the time between two looks at the name where the system does not report changes. A command waits longer than
/// that for a daemon that holds its lock.
const SOCKET_LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Sets the delay from a change to the look at it: several changes are looked at together, and a socket that is removed
/// again and again keeps no processor busy.
const SOCKET_LOOK_DELAY: Duration = Duration::from_millis(50);
/// Bounds a path in `sockaddr_un`, in bytes, without the NUL byte after it.
pub const SOCKET_PATH_MAX_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Is a socket that is bound, mode 0600. When dropped, it removes its name, if that is still its own.
#[derive(Debug)]
#[must_use = "no process reaches the socket when this is dropped"]
pub(crate) struct Socket {
    path: PathBuf,
    listener: UnixListener,
    /// Is what the name stood for when it was bound: device and inode, which no other file gets while the socket is open.
    identity: (u64, u64),
    watch: Option<Watch>,
    /// Is when the name is looked at next, if nothing changes.
    look_at: Option<Instant>,
    /// Says whether it was logged that the name could not be bound again.
    is_told: bool,
}

impl Socket {
    /// Binds the socket. The caller holds the lock, so whatever is there is a leftover.
    ///
    /// # Errors
    /// [`Failure`] when the path is too long or the disk says no.
    pub(crate) fn bind(path: &Path) -> Result<Self, Failure> {
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX_BYTES {
            let shown = path.display();
            let text =
                format!("{shown} has {length} bytes, and a Unix socket's path has at most {SOCKET_PATH_MAX_BYTES}");
            return Err(Failure::new(Kind::BadConfig, text).hint("set MALAI_HOME to a shorter path"));
        }
        let fail = |e: io::Error| Failure::new(Kind::Internal, format!("cannot bind {}: {e}", path.display()));
        // First, so that it misses nothing.
        let watch = Watch::new(directory(path)).ok();
        let (listener, identity) = bind_over(path).map_err(fail)?;
        let listener = UnixListener::from_std(listener).map_err(fail)?;
        // At once, for what came before the watch.
        let look_at = Some(Instant::now());
        Ok(Self { path: path.to_owned(), listener, identity, watch, look_at, is_told: false })
    }

    /// Takes the next connection of this process's own user or root, and closes those of others. When the name does not
    /// stand for this socket any more it is bound again, if `may_bind` allows it, which is asked at every look, and may
    /// use the disk.
    ///
    /// # Errors
    /// What the system says: most likely, no descriptor is left.
    pub(crate) async fn accept<F>(&mut self, may_bind: F) -> io::Result<UnixStream>
    where
        F: Fn() -> bool + Clone + Send + 'static,
    {
        loop {
            if self.look_at.is_some_and(|at| at <= Instant::now()) {
                self.look(may_bind.clone()).await;
            }
            let look_at = self.look_at;
            tokio::select! {
                accepted = self.listener.accept() => {
                    let stream = accepted?.0;
                    if is_allowed(&stream) {
                        return Ok(stream);
                    }
                }
                () = watch::change(self.watch.as_ref()) => {
                    let soon = Instant::now() + SOCKET_LOOK_DELAY;
                    self.look_at = Some(look_at.map_or(soon, |at| at.min(soon)));
                }
                () = tokio::time::sleep_until(look_at.unwrap_or_else(Instant::now)), if look_at.is_some() => {}
            }
        }
    }

    async fn look(&mut self, may_bind: impl FnOnce() -> bool + Send + 'static) {
        let (path, ours) = (self.path.clone(), self.identity);
        let watched = self.watch.as_ref().map(Watch::directory);
        // A disk that hangs delays the next connection, and no other task.
        let looked = tokio::task::spawn_blocking(move || {
            let renewed = watch::renew(directory(&path), watched);
            (renewed, look(&path, ours, may_bind))
        });
        let (renewed, bound) = looked.await.unwrap_or_else(|error| (None, Err(io::Error::other(error))));
        if let Some(opened) = renewed {
            self.watch = Watch::over(opened).ok();
        }
        let is_settled = self.settle(bound);
        let is_watched = is_settled && self.watch.is_some();
        self.look_at = (!is_watched).then(|| Instant::now() + SOCKET_LOOK_INTERVAL);
    }

    /// Takes over what came of a look. Says whether the name stands for this socket.
    fn settle(&mut self, bound: io::Result<Option<Bound>>) -> bool {
        let bound = bound.and_then(|bound| {
            bound.map(|(listener, identity)| Ok((UnixListener::from_std(listener)?, identity))).transpose()
        });
        match bound {
            Ok(None) => self.is_told = false,
            Ok(Some((listener, identity))) => {
                tracing::warn!(path = %self.path.display(), "the socket was taken away: it is bound again");
                (self.listener, self.identity, self.is_told) = (listener, identity, false);
            }
            Err(error) => {
                if !self.is_told {
                    tracing::error!(path = %self.path.display(), %error, "the socket cannot be kept under its name");
                }
                self.is_told = true;
            }
        }
        !self.is_told
    }
}

fn is_allowed(stream: &UnixStream) -> bool {
    let Ok(peer) = stream.peer_cred() else { return false };
    let is_allowed = peer.uid() == 0 || peer.uid() == Uid::effective().as_raw();
    if !is_allowed {
        tracing::warn!(uid = peer.uid(), "refused a process of another user at the socket");
    }
    is_allowed
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).ok() == Some(self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

type Bound = (std::os::unix::net::UnixListener, (u64, u64));

/// Binds the name again, unless it stands for what it should. Blocks.
fn look(path: &Path, ours: (u64, u64), may_bind: impl FnOnce() -> bool) -> io::Result<Option<Bound>> {
    if !may_bind() {
        return Err(io::Error::other("it is not known that the directory is still this process's"));
    }
    match identity(path) {
        Ok(found) if found == ours => return Ok(None),
        // The name is left to the process that serves it.
        Ok(_) if is_served(path) => return Err(io::Error::other("another process serves there")),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // A directory that is gone is not made again: it may have been removed on purpose.
    std::fs::metadata(directory(path))?;
    bind_over(path).map(Some)
}

/// Says whether a process listens there, even if it does not accept at the moment.
fn is_served(path: &Path) -> bool {
    let is_dead = |error: io::Error| matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound);
    !connect_now(path).is_err_and(is_dead)
}

/// Connects without waiting: a process whose backlog is full does not answer either.
pub(super) fn connect_now(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None)?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Binds a name, and removes what has it.
fn bind_over(path: &Path) -> io::Result<Bound> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is 0700, so no other user gets in between the two calls.
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok((listener, identity(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// Serves a socket of its own, and says to each who connects that it is there.
    fn serve(path: &Path) -> tokio::task::JoinHandle<io::Result<()>> {
        let mut socket = Socket::bind(path).expect("binds");
        tokio::spawn(async move {
            loop {
                socket.accept(|| true).await?.try_write(b"here")?;
            }
        })
    }

    async fn answers(path: &Path) -> bool {
        let Ok(stream) = UnixStream::connect(path).await else { return false };
        let mut got = [0; 4];
        stream.readable().await.is_ok() && stream.try_read(&mut got).is_ok() && &got == b"here"
    }

    async fn until_it_answers(path: &Path) {
        let there = async {
            while !answers(path).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, there).await.expect("it is bound again");
    }

    #[tokio::test]
    async fn a_socket_whose_name_is_taken_away_in_any_way_is_bound_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().join("home");
        std::fs::create_dir(&home).expect("made");
        let path = home.join("s.sock");
        let serving = serve(&path);
        until_it_answers(&path).await;

        std::fs::remove_file(&path).expect("removed");
        until_it_answers(&path).await;

        std::fs::rename(&path, home.join("moved")).expect("moved");
        until_it_answers(&path).await;

        std::fs::write(home.join("other"), "no socket").expect("written");
        std::fs::rename(home.join("other"), &path).expect("moved over it");
        until_it_answers(&path).await;

        std::fs::remove_file(&path).expect("removed");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("one that nobody serves"));
        until_it_answers(&path).await;

        // Twice: the directory that is made again is watched too.
        for away in ["away", "away too"] {
            std::fs::rename(&home, dir.path().join(away)).expect("moved");
            std::fs::create_dir(&home).expect("made again");
            until_it_answers(&path).await;
            std::fs::remove_file(&path).expect("removed");
            until_it_answers(&path).await;
        }
        std::fs::remove_dir_all(&home).expect("removed");
        std::fs::create_dir(&home).expect("made again");
        until_it_answers(&path).await;
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        serving.abort();
    }

    #[tokio::test]
    async fn a_socket_that_is_as_it_should_be_is_not_looked_at() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut socket = Socket::bind(&dir.path().join("s.sock")).expect("binds");
        socket.look(|| true).await;
        assert_eq!(socket.look_at, None);
        std::fs::remove_file(&socket.path).expect("removed");
        tokio::time::timeout(SOON, watch::change(socket.watch.as_ref())).await.expect("the change is seen");
        socket.look(|| true).await;
        assert!(socket.path.exists() && socket.look_at.is_none());
    }

    #[test]
    fn a_name_that_another_process_serves_is_left_to_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s.sock");
        let (_ours, identity) = bind_over(&path).expect("binds");
        std::fs::remove_file(&path).expect("removed");
        let _theirs = std::os::unix::net::UnixListener::bind(&path).expect("binds");
        look(&path, identity, || true).expect_err("another process serves there");
        std::fs::remove_file(&path).expect("removed");
        look(&path, identity, || false).expect_err("it may not");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_end_takes_away_its_own_name_and_no_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s.sock");
        drop(Socket::bind(&path).expect("binds"));
        assert!(!path.exists());
        let socket = Socket::bind(&path).expect("binds");
        std::fs::remove_file(&path).expect("removed");
        let _theirs = std::os::unix::net::UnixListener::bind(&path).expect("binds");
        drop(socket);
        assert!(path.exists());
    }
}
