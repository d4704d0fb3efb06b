//! Reaches the daemon's socket, and checks whose it is.

use std::io::ErrorKind;
use std::pin::Pin;
use std::time::Duration;

use malai_daemon::store::lock::{self, Holder};
use malai_daemon::store::owners::Trusted;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

/// Bounds the wait for the socket of a daemon that holds its lock: it binds a socket again that was removed.
const SOCKET_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Sets the time between two looks for that socket.
const SOCKET_BACK_INTERVAL: Duration = Duration::from_millis(50);

/// Is a connection that is being made.
pub(crate) type Dialling<S> = Pin<Box<dyn Future<Output = Result<S, Failure>> + Send>>;
/// Makes connections to the daemon.
pub(crate) type Dialler<S> = Box<dyn FnMut(DialOptions) -> Dialling<S> + Send>;

/// Says how a connection is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DialOptions {
    /// Whether to start an agent when nothing listens. Not at once after a loss: a daemon that is replaced is back in a
    /// moment.
    pub(crate) agent: bool,
}

/// Connects to the socket; `None` when nothing listens there.
///
/// # Errors
/// When the socket cannot be reached for another reason, or is not ours to trust.
pub(super) async fn dial(home: &Home) -> Result<Option<UnixStream>, Failure> {
    let path = home.socket();
    match UnixStream::connect(&path).await {
        Ok(stream) => {
            check_owner(home, &stream)?;
            Ok(Some(stream))
        }
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) => Err(Failure::new(Kind::Internal, format!("cannot use the daemon's socket {}: {e}", path.display()))),
    }
}

/// Connects to the socket of a daemon, with `agents` of an agent too, and waits for one that was removed and comes
/// back. Without a connection, returns the holder of the lock, if there is one.
///
/// # Errors
/// As [`dial`], and when the lock cannot be looked at.
pub(crate) async fn dial_patiently(home: &Home, agents: bool) -> Result<Result<UnixStream, Option<Holder>>, Failure> {
    let deadline = Instant::now() + SOCKET_BACK_TIMEOUT;
    loop {
        if let Some(stream) = dial(home).await? {
            return Ok(Ok(stream));
        }
        match lock::find_holder(home)? {
            // It looks again and again: no event stands for both, a socket that is bound and a lock that is released.
            Some(holder) if (agents || !holder.agent) && Instant::now() < deadline => sleep(SOCKET_BACK_INTERVAL).await,
            holder => return Ok(Err(holder)),
        }
    }
}

/// Checks that the socket is ours, or root's, as the directory that it is in: it gets argv, standard input and invites.
fn check_owner(home: &Home, stream: &UnixStream) -> Result<(), Failure> {
    let trusted = Trusted::own();
    trusted.check(home)?;
    match trusted.socket(&home.socket()) {
        // The process that listened there removed or replaced it meanwhile.
        Err(failure) if failure.kind == Kind::Internal => {}
        looked => looked?,
    }
    let fail = |what: String| {
        Failure::new(Kind::BadConfig, what)
            .hint(format!("see which process that is: fuser -v {}", home.socket().display()))
    };
    let peer =
        stream.peer_cred().map_err(|e| fail(format!("cannot find out which user listens at the socket: {e}")))?;
    if trusted.has(peer.uid()) {
        Ok(())
    } else {
        Err(fail(format!("a process of user {} listens at {}", peer.uid(), home.socket().display())))
    }
}
