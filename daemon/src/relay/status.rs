//! What a running relay tells of itself, at a Unix socket for its own user and root: one JSON document, then the end.

use std::io::Read;
use std::os::unix::net::UnixStream as BlockingStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::id::{ClusterId, MachineId};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::clusters::Clusters;
use super::gate::Gate;
use super::serve::Doors;
use crate::runtime::backoff::Failing;
use crate::store::lock::is_locked;
use crate::store::owners::Trusted;
use crate::store::socket::Socket;

/// Bounds how long a client may take to read.
const STATUS_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds how long a relay that holds its lock is waited for at its socket, which it binds again when it was removed.
const SOCKET_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Sets the time between two looks for the socket.
const SOCKET_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Bounds the document: 64 clusters with their alarms are far below it.
const MAX_STATUS_BYTES: u64 = 1024 * 1024;

/// Holds the state of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Is its process id.
    pub pid: u32,
    /// Is its malai version.
    pub version: String,
    /// Is where the machines reach it.
    pub url: String,
    /// Is its key.
    pub id52: MachineId,
    /// Is the SHA-256 of its certificate, 64 hexadecimal digits.
    pub sha256: String,
    /// Names the clusters whose machines it serves.
    pub clusters: Vec<ClusterStatus>,
    /// Counts connections that there are.
    pub connected: usize,
    /// Counts those of them by a ticket.
    pub by_ticket: usize,
    /// Counts connections that were refused since the start: of strangers, or with a ticket that is not valid.
    pub refused: u64,
    /// Counts connections that were ended since their machine was removed or their ticket expired.
    pub let_go: u64,
    /// Counts connections that were closed unheard: too many at once, or too fast from one address.
    pub unheard: u64,
}

/// Is one cluster of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Is its name.
    pub name: String,
    /// Is its key.
    pub id52: ClusterId,
    /// Is the generation that the relay holds; absent = it holds none yet, and admits newcomers only.
    pub generation: Option<u64>,
    /// Counts machines in its config.
    pub machines: usize,
    /// Is something an administrator must look at.
    pub alarm: Option<String>,
}

/// Says what the state is made of.
#[derive(Debug)]
pub(crate) struct Source {
    /// Is where the machines reach it.
    pub(crate) url: String,
    /// Is its key.
    pub(crate) id: MachineId,
    /// Is the SHA-256 of its certificate.
    pub(crate) sha256: [u8; 32],
    /// Holds its clusters.
    pub(crate) clusters: Arc<Clusters>,
    /// Says who is connected.
    pub(crate) gate: Arc<Gate>,
    /// Is where they come in.
    pub(crate) doors: Arc<Doors>,
}

impl Source {
    fn status(&self) -> Status {
        let clusters = self.clusters.all().iter().map(|cluster| {
            let held = cluster.held();
            ClusterStatus {
                name: cluster.name.clone(),
                id52: cluster.id,
                generation: held.as_ref().map(|held| held.generation()),
                machines: held.map_or(0, |held| held.config.machines.len()),
                alarm: cluster.alarm(),
            }
        });
        let (connected, by_ticket) = self.gate.count();
        let (refused, let_go) = self.gate.turned_away();
        Status {
            pid: std::process::id(),
            version: crate::VERSION.to_owned(),
            url: self.url.clone(),
            id52: self.id,
            sha256: data_encoding::HEXLOWER.encode(&self.sha256),
            clusters: clusters.collect(),
            connected,
            by_ticket,
            refused,
            let_go,
            unheard: self.doors.turned_away(),
        }
    }

    /// Answers clients that may ask, one after the other, until `cancel`.
    pub(crate) async fn run(self, mut socket: Socket, cancel: CancellationToken) {
        let mut failing = Failing::default();
        loop {
            let stream = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = socket.accept(|| true) => match accepted {
                    Ok(stream) => {
                        failing.over();
                        stream
                    }
                    Err(error) => {
                        tokio::time::sleep(failing.pause(format!("cannot serve status requests: {error}"))).await;
                        continue;
                    }
                },
            };
            if let Err(error) = tokio::time::timeout(STATUS_READ_TIMEOUT, self.tell(stream)).await {
                tracing::debug!("a client does not read the state that it asked for: {error}");
            }
        }
    }

    async fn tell(&self, mut stream: UnixStream) {
        let Ok(document) = serde_json::to_vec(&self.status()) else { return };
        let told = async {
            stream.write_all(&document).await?;
            stream.shutdown().await
        };
        if let Err(error) = told.await {
            tracing::debug!("the state was not told: {error}");
        }
    }
}

/// Returns the state of the relay of this home; `None` when none runs. Blocks the thread, 7 s at most.
///
/// # Errors
/// [`Kind::Internal`] when one runs and does not tell.
pub fn status(home: &Home) -> Result<Option<Status>, Failure> {
    let (path, lock) = (home.relay().socket(), home.relay().lock());
    let fail = |e: std::io::Error| {
        Failure::new(Kind::Internal, format!("cannot get the state of the relay at {}: {e}", path.display()))
            .hint(format!("fuser -v {} shows its process", lock.display()))
    };
    let deadline = Instant::now() + SOCKET_BACK_TIMEOUT;
    let stream = loop {
        match BlockingStream::connect(&path) {
            Ok(stream) => break stream,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
                if !is_locked(&lock).map_err(fail)? {
                    return Ok(None);
                }
                // It starts or stops, or its socket was removed, which it binds again.
                if Instant::now() >= deadline {
                    return Err(fail(e));
                }
                std::thread::sleep(SOCKET_POLL_INTERVAL);
            }
            Err(e) => return Err(fail(e)),
        }
    };
    Trusted::own().socket(&path)?;
    stream.set_read_timeout(Some(STATUS_READ_TIMEOUT)).map_err(fail)?;
    let mut document = Vec::new();
    stream.take(MAX_STATUS_BYTES).read_to_end(&mut document).map_err(fail)?;
    serde_json::from_slice(&document).map(Some).map_err(|e| fail(e.into()))
}
