//! The relay's TCP side: takes connections at a bounded rate and hands them to iroh's relay service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iroh_relay::KeyCache;
use iroh_relay::http::RELAY_PROBE_PATH;
use iroh_relay::server::Metrics;
use iroh_relay::server::http_server::{Handlers, RelayService, TlsConfig};
use malai_protocol::failure::{Failure, Kind};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::Gate;
use crate::net::limits::pace::{Origin, RateLimit};
use crate::net::limits::places::Places;
use crate::runtime::backoff::Failing;

/// Bounds the connections that have not shown yet what they want: the next one takes the place of the oldest. An honest
/// one takes a few round trips.
const MAX_ESTABLISHING: usize = 512;
/// Bounds how long that may take.
const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds how many connections one address may open at once: a whole office behind one address comes back after a
/// restart.
const MAX_CONNECTION_BURST: u32 = 512;
/// Sets the pace of one address after that.
const CONNECTION_INTERVAL: Duration = Duration::from_millis(125);
/// Bounds the keys whose decoding is remembered, 56 bytes each.
const MAX_CACHED_KEYS: usize = 16 * 1024;
/// Open files that stay free for snapshots, the socket and the endpoint.
const SPARE_FILES: u64 = 128;
/// Sets how often open files are counted.
const OPEN_FILES_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Returns the service behind the doors.
///
/// # Errors
/// [`Failure`] when a constant of HTTP is none, which does not happen.
pub(crate) fn service(gate: &Arc<Gate>) -> Result<RelayService, Failure> {
    let mut handlers = Handlers::default();
    let get = "GET".parse().map_err(|e| Failure::new(Kind::Internal, format!("no such method: {e}")))?;
    // Machines measure by it how far the relay is.
    handlers.insert(
        (get, RELAY_PROBE_PATH),
        Box::new(|_request, response| {
            response.header("Access-Control-Allow-Origin", "*").body(Box::new(String::new()) as _).map_err(Into::into)
        }),
    );
    let access = Arc::clone(gate);
    let metrics = Arc::new(Metrics::default());
    Ok(RelayService::new(handlers, Default::default(), None, KeyCache::new(MAX_CACHED_KEYS), access, metrics))
}

/// Says where connections come in.
#[derive(Debug)]
pub(crate) struct Doors {
    service: RelayService,
    tls: TlsConfig,
    visits: RateLimit<Origin>,
    places: Arc<Places>,
    turned_away: Arc<AtomicU64>,
    tasks: TaskTracker,
}

impl Doors {
    /// Doors to this service, with this certificate.
    pub(crate) fn new(service: RelayService, tls: rustls::ServerConfig) -> Self {
        Self {
            service,
            tls: TlsConfig::new(Arc::new(tls)),
            visits: RateLimit::public(CONNECTION_INTERVAL, MAX_CONNECTION_BURST),
            places: Places::new(MAX_ESTABLISHING),
            turned_away: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Returns the service behind them.
    pub(crate) fn service(&self) -> &RelayService {
        &self.service
    }

    /// Returns how many connections were closed unheard: too many at once, or too fast from one address.
    pub(crate) fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Takes connections until `cancel`; then all clients are disconnected.
    pub(crate) async fn run(&self, listener: TcpListener, cancel: CancellationToken) {
        let most = most_files();
        let mut looks = tokio::time::interval(OPEN_FILES_LOOK_INTERVAL);
        let look = || most.is_some_and(|most| open_files() + SPARE_FILES >= most);
        let (mut is_full, mut taken, mut failing) = (false, 0, Failing::default());
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = listener.accept() => accepted,
                _ = looks.tick() => {
                    (is_full, taken) = (look(), 0);
                    continue;
                }
            };
            match accepted {
                Ok((stream, from)) if !is_full => {
                    failing.over();
                    self.take(stream, from, &cancel);
                    taken += 1;
                    if taken >= SPARE_FILES / 4 {
                        (is_full, taken) = (look(), 0);
                    }
                }
                Ok(_) => {
                    self.turned_away.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    // Out of descriptors, most likely: those that are served will return some.
                    let pause = failing.pause(format!("a connection could not be accepted: {error}"));
                    tokio::time::sleep(pause).await;
                }
            }
        }
        drop(listener);
        self.tasks.close();
        self.service.shutdown().await;
        self.tasks.wait().await;
    }

    fn take(&self, stream: TcpStream, from: SocketAddr, cancel: &CancellationToken) {
        if !self.visits.allows(from.ip().into()) {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let place = self.places.enter();
        // A host that vanished without a word must not keep its socket here for good.
        if let Err(error) = nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true) {
            tracing::debug!("no keep-alive for {from}: {error}");
        }
        let (service, tls, cancel, turned_away) =
            (self.service.clone(), self.tls.clone(), cancel.clone(), Arc::clone(&self.turned_away));
        self.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = service.handle_connection(stream, Some(tls), ESTABLISH_TIMEOUT) => {}
                () = place.lost() => {
                    turned_away.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
}

/// Returns how many files this process may have open, raised as far as it may.
fn most_files() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    })
}

fn open_files() -> u64 {
    std::fs::read_dir("/dev/fd").map_or(0, |entries| entries.count() as u64)
}
