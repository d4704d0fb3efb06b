//! A relay for the machines of some clusters: iroh's relay with a gate before it. It holds no cluster's key, is in no
//! cluster, and runs no command.
//!
//! Whom it admits it takes from the clusters' signed snapshots, which it verifies and stores as a machine does. They come
//! to it over `malai/1`, at the UDP port of the same number, from managers and machines that have a newer one.
//!
//! # Layout
//! [`init`](mod@init) makes one on the disk; `settings` reads it, `tls` its certificate; `clusters` the snapshots;
//! `gate` who may use it; `serve` takes TCP connections, `hear` greetings with snapshots;
//! [`status`](mod@status) what it tells of itself.

mod clusters;
mod gate;
mod hear;
pub mod init;
mod serve;
pub(crate) mod settings;
pub mod status;
mod tls;

use std::fs::{File, OpenOptions, TryLockError};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use iroh::Endpoint;
use iroh_relay::server::{QuicConfig, Server, ServerConfig};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::{Home, RelayDir};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use clusters::Clusters;
use gate::Gate;
use hear::Ear;
use serve::Doors;
use settings::Settings;
use status::Source;

use crate::runtime::duty;
use crate::store::keys::RelayKey;
use crate::store::owners::Trusted;
use crate::store::socket::Socket;

/// Is where clients learn their address, by iroh's convention.
pub const ADDRESS_DISCOVERY_PORT: u16 = iroh_relay::defaults::DEFAULT_RELAY_QUIC_PORT;

/// Bounds how long a relay waits for its lock, which `malai relay status` takes for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Sets the time between two attempts.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Says what a relay is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Is where everything is.
    pub home: Home,
    /// Is UDP port of address discovery: [`ADDRESS_DISCOVERY_PORT`], or 0 for any in a test.
    pub address_discovery: u16,
}

/// Is a relay that is bound: it holds its lock, and its sockets are there.
#[derive(Debug)]
pub struct Relay {
    source: Option<Source>,
    doors: Arc<Doors>,
    gate: Arc<Gate>,
    ear: Arc<Ear>,
    endpoint: Option<Endpoint>,
    tcp: Option<TcpListener>,
    unix: Option<Socket>,
    discovery: Server,
    address: SocketAddr,
    clusters: usize,
    stop: CancellationToken,
    tasks: TaskTracker,
    _lock: File,
}

impl Relay {
    /// Takes the lock, reads and checks everything, and binds all sockets.
    ///
    /// # Errors
    /// [`Failure`]: there is no relay here or one runs, a file cannot be used, or a port is taken.
    pub async fn bind(options: Options) -> Result<Self, Failure> {
        let dir = options.home.relay();
        Trusted::own().check(&options.home)?;
        let settings = Settings::load(&dir)?.ok_or_else(|| {
            Failure::new(Kind::NotConfigured, format!("there is no relay at {}", dir.root().display()))
                .hint("on the cluster manager: malai cluster invite company --relay; here: malai relay init TOKEN --url https://HOST:7443")
        })?;
        let lock = lock(&dir)?;
        crate::store::sweep(dir.root());
        let key = RelayKey::load(&dir.key())?.ok_or_else(|| {
            Failure::new(Kind::BadConfig, format!("the relay key {} is missing", dir.key().display()))
                .hint("restore it from a backup: the clusters know the relay by it")
        })?;
        let certificate = tls::load(&dir, &settings)?;
        let clusters = Clusters::load(&dir, &settings)?;
        let gate = Gate::new(Arc::clone(&clusters));
        let doors = Arc::new(Doors::new(serve::service(&gate)?, certificate.config.clone()));
        let (tcp, address) = listen(settings.listen).await?;
        let endpoint = hear::bind(key.secret(), address).await?;
        let discovery = discover(address, options.address_discovery, certificate.config).await?;
        let unix = Some(Socket::bind(&dir.socket())?);
        Ok(Self {
            ear: Ear::new(&clusters),
            clusters: clusters.all().len(),
            source: Some(Source {
                url: settings.url,
                id: key.id(),
                sha256: certificate.sha256,
                clusters,
                gate: Arc::clone(&gate),
                doors: Arc::clone(&doors),
            }),
            doors,
            gate,
            endpoint: Some(endpoint),
            tcp: Some(tcp),
            unix,
            discovery,
            address,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            _lock: lock,
        })
    }

    /// Returns where it listens: TCP, and UDP of the same number.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many clusters it serves.
    pub fn clusters(&self) -> usize {
        self.clusters
    }

    /// Cancelled, it ends [`Relay::run`]: what SIGTERM does.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Serves until a request to stop comes, or address discovery ends by itself.
    ///
    /// # Errors
    /// [`Failure`] when it was run before, or a part of it ended.
    pub async fn run(&mut self) -> Result<(), Failure> {
        let parts = (self.source.take(), self.endpoint.take(), self.tcp.take(), self.unix.take());
        let (Some(source), Some(endpoint), Some(tcp), Some(unix)) = parts else {
            return Err(Failure::new(Kind::Internal, "a relay runs once"));
        };
        let stop = || self.stop.clone();
        let clusters = Arc::clone(&source.clusters);
        self.keep("snapshots", move |stop| Arc::clone(&clusters).keep(stop));
        let (gate, clients) = (Arc::clone(&self.gate), self.doors.service().clients().clone());
        self.keep("review", move |stop| Arc::clone(&gate).watch(clients.clone(), stop));
        let (doors, stopped) = (Arc::clone(&self.doors), stop());
        // These have the sockets, without which there is no relay.
        let parts = [
            ("the status socket", self.tasks.spawn(source.run(unix, stop()))),
            ("the receiver of configs", self.tasks.spawn(Arc::clone(&self.ear).run(endpoint, stop()))),
            ("the listener", self.tasks.spawn(async move { doors.run(tcp, stopped).await })),
        ];
        let mut parts: FuturesUnordered<_> =
            parts.into_iter().map(|(name, task)| async move { (name, task.await) }).collect();
        tokio::select! {
            // First: one that is stopped has parts that end, and nothing is wrong with that.
            biased;
            () = self.stop.cancelled() => Ok(()),
            Some((name, ended)) = parts.next() => {
                let why = ended.map_or_else(|error| error.to_string(), |()| "it ended".to_owned());
                Err(Failure::new(Kind::Internal, format!("{name} has stopped: {why}"))
                    .hint("start the relay again: malai relay run"))
            }
            ended = self.discovery.join() => {
                let why = match ended {
                    Ok(Ok(())) => "it ended".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                };
                Err(Failure::new(Kind::Internal, format!("address discovery has stopped: {why}")))
            }
        }
    }

    /// Does this until the relay stops.
    fn keep<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        work: impl Fn(CancellationToken) -> F + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.tasks.spawn(duty::keep(name, stop.clone(), move || work(stop.clone())));
    }

    /// Stops in this order: takes no new connection and removes the socket, disconnects clients, closes endpoints,
    /// releases the lock.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Err(error) = self.discovery.shutdown().await {
            tracing::debug!("address discovery did not end in good order: {error}");
        }
    }
}

/// Returns the lock of the one relay that runs here, released with the file.
fn lock(dir: &RelayDir) -> Result<File, Failure> {
    let path = dir.lock();
    let fail = |e: std::io::Error| crate::store::disk_failure("lock", &path, &e);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(fail)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    let mut locked = file.try_lock();
    while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < deadline {
        std::thread::sleep(LOCK_RETRY_INTERVAL);
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::new(Kind::Conflict, format!("a relay runs already for {}", dir.root().display()))
                .hint("malai relay status shows it"))
        }
        Err(TryLockError::Error(e)) => Err(fail(e)),
    }
}

/// Binds the TCP port. A host without IPv6 has only the other addresses.
async fn listen(at: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let mut bound = TcpListener::bind(at).await;
    let mut taken = at;
    if at.ip() == Ipv6Addr::UNSPECIFIED && bound.as_ref().is_err_and(|e| e.kind() != std::io::ErrorKind::AddrInUse) {
        taken = (Ipv4Addr::UNSPECIFIED, at.port()).into();
        bound = TcpListener::bind(taken).await;
    }
    let fail = |e: std::io::Error| {
        Failure::new(Kind::Internal, format!("cannot bind TCP {taken}: {e}"))
            .hint("another program may hold the port: `ss -tlpn` shows which; `listen` in relay.toml chooses another")
    };
    let listener = bound.map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    Ok((listener, address))
}

/// Starts iroh's QUIC address discovery: it tells each client from which address that came.
async fn discover(at: SocketAddr, port: u16, tls: rustls::ServerConfig) -> Result<Server, Failure> {
    let mut quic = QuicConfig::new((at.ip(), port));
    quic.server_config = Some(tls);
    let mut config = ServerConfig::default();
    config.quic = Some(quic);
    Server::spawn(config).await.map_err(|e| {
        Failure::new(Kind::Internal, format!("address discovery cannot bind UDP port {port}: {e:#}"))
            .hint("another relay may run on this host: `ss -ulpn` shows which program holds the port")
    })
}
