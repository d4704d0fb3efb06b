//! A relay in this process, for a cluster whose key the test holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use iroh::dns::DnsResolver;
use iroh::endpoint::Connection;
use iroh::{EndpointAddr, EndpointId, SecretKey, TransportAddr};
use iroh_relay::client::{Client, ClientBuilder};
use malai_daemon::relay::init::{Init, Made, init};
use malai_daemon::relay::status::{Status, status};
use malai_daemon::relay::{Options, Relay};
use malai_daemon::runtime::clock::now_ms;
use malai_daemon::store::keys::ClusterKey;
use malai_protocol::codec::Kind;
use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::id::ClusterId;
use malai_protocol::invite::Invite;
use malai_protocol::peer::{ALPN, Announce};
use malai_protocol::snapshot::Snapshot;
use malai_protocol::ticket::Ticket;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::peer::Peer;
use crate::support::scene::offer;
use crate::support::{SOON, next, until};

/// A relay of one cluster.
pub(crate) struct Stage {
    /// The cluster's key.
    pub(crate) key: ClusterKey,
    /// As it was made.
    pub(crate) made: Made,
    /// Its home.
    pub(crate) home: Home,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Failure>>,
    dir: tempfile::TempDir,
}

impl Stage {
    /// A relay that was told nothing yet.
    pub(crate) async fn new() -> Result<Self> {
        let key = ClusterKey::generate()?;
        let cluster = key.id();
        Self::serving(cluster, key).await
    }

    /// The same for this cluster, whose key may be another than the test's.
    pub(crate) async fn serving(cluster: ClusterId, key: ClusterKey) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("r").tempdir()?;
        let home = Home::new(dir.path());
        let invite = Invite::for_relay(cluster, "c".into());
        let listen = Some(([127, 0, 0, 1], 1).into());
        let made = init(&home, &Init { invite, url: Some("https://127.0.0.1:1".into()), listen, certificate: None })?;
        // Any port will do, of which `malai relay init` makes none.
        let text = std::fs::read_to_string(home.relay().settings())?;
        std::fs::write(home.relay().settings(), text.replace("\"127.0.0.1:1\"", "\"127.0.0.1:0\""))?;
        Self::start(key, made, dir).await
    }

    async fn start(key: ClusterKey, made: Made, dir: tempfile::TempDir) -> Result<Self> {
        let home = Home::new(dir.path());
        let mut relay = Relay::bind(Options { home: home.clone(), address_discovery: 0 }).await?;
        let (address, stop) = (relay.address(), relay.stop_token());
        let task = tokio::spawn(async move {
            let result = relay.run().await;
            relay.shutdown().await;
            result
        });
        Ok(Self { key, made, home, address, stop, task, dir })
    }

    /// Stops it in good order and starts it again.
    pub(crate) async fn restart(self) -> Result<Self> {
        self.restart_after(|| Ok(())).await
    }

    /// The same, and does this in between.
    pub(crate) async fn restart_after(self, between: impl FnOnce() -> Result<()>) -> Result<Self> {
        self.stop.cancel();
        self.task.await??;
        ensure!(!self.home.relay().socket().exists(), "its socket stays behind");
        between()?;
        Self::start(self.key, self.made, self.dir).await
    }

    /// Stops it.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task.await??;
        Ok(())
    }

    /// Its entry for a cluster's config.
    pub(crate) fn entry(&self) -> String {
        Made { url: format!("https://{}", self.address), ..self.made.clone() }.entry()
    }

    /// What it tells of itself.
    pub(crate) async fn status(&self) -> Result<Status> {
        let home = self.home.clone();
        tokio::task::spawn_blocking(move || status(&home)).await??.context("no relay runs")
    }

    /// The generation that it holds.
    pub(crate) async fn holds(&self) -> Result<Option<u64>> {
        Ok(self.status().await?.clusters.first().context("no cluster")?.generation)
    }

    /// Waits until so many are connected.
    pub(crate) async fn connected(&self, count: usize) -> Result<()> {
        until(&format!("{count} connected"), || async { Ok(self.status().await?.connected == count) }).await
    }

    /// A snapshot of the cluster with these machines, the first its manager.
    pub(crate) fn sign(&self, generation: u64, machines: &[&SecretKey]) -> Result<Snapshot> {
        let mut text = format!("[cluster]\nname = \"c\"\nid52 = \"{}\"\nmanager = \"m0\"\n", self.key.id());
        for (number, key) in machines.iter().enumerate() {
            let id = malai_protocol::id::MachineId::from_bytes(*key.public().as_bytes())?;
            text.push_str(&format!("[machine.m{number}]\nid52 = \"{id}\"\n"));
        }
        Ok(self.key.sign(generation, 1, text)?)
    }

    /// A connection to its endpoint, by a stranger.
    pub(crate) async fn dial(&self, peer: &Peer) -> Result<Connection> {
        let key = EndpointId::from_bytes(self.made.id52.as_bytes())?;
        let address = EndpointAddr::from_parts(key, [TransportAddr::Ip(self.address)]);
        Ok(timeout(SOON, peer.endpoint.connect(address, ALPN)).await.context("cannot connect")??)
    }

    /// Brings it this snapshot, as anybody may, and returns the generation that it holds then.
    pub(crate) async fn bring(&self, snapshot: &Snapshot) -> Result<u64> {
        let peer = Peer::new().await?;
        let conn = self.dial(&peer).await?;
        let mut control = offer(&conn, snapshot).await?;
        let says: Announce = next(&mut control).await?.expect(Kind::Announce, "Announce")?;
        conn.close(0u32.into(), b"");
        Ok(says.header.verify(&self.key.id())?.generation)
    }

    /// A ticket of this key that is good for so long.
    pub(crate) fn ticket(&self, key: &ClusterKey, lasts: Duration) -> Result<String> {
        let signing = ed25519_dalek::SigningKey::from_bytes(&key.secret_bytes());
        let expires_ms = now_ms() + u64::try_from(lasts.as_millis())?;
        Ok(Ticket::sign(&signing, expires_ms, crate::support::random())?.to_text())
    }

    /// A client of the relay, with this key and perhaps this token; or why it is not admitted.
    pub(crate) async fn client(&self, key: &SecretKey, token: Option<&str>) -> Result<Result<Client, String>> {
        let url: iroh::RelayUrl = format!("https://{}", self.address).parse()?;
        let mut builder = ClientBuilder::new(url, key.clone(), DnsResolver::new()).tls_client_config(self.trust()?);
        if let Some(token) = token {
            builder = builder.auth_token(token);
        }
        let connected = timeout(SOON, builder.connect()).await.context("the relay does not answer")?;
        Ok(connected.map_err(|error| format!("{error:#}")))
    }

    /// A client that is admitted.
    pub(crate) async fn admitted(&self, key: &SecretKey, token: Option<&str>) -> Result<Client> {
        match self.client(key, token).await? {
            Ok(client) => Ok(client),
            Err(why) => bail!("refused: {why}"),
        }
    }

    /// A client that is refused with these words.
    pub(crate) async fn refused(&self, key: &SecretKey, token: Option<&str>, words: &str) -> Result<()> {
        match self.client(key, token).await? {
            Ok(_) => bail!("admitted, and not refused: {words}"),
            Err(why) => ensure!(why.contains(words), "not {words:?}: {why}"),
        }
        Ok(())
    }

    fn trust(&self) -> Result<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.home.relay().certificate())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

/// A new key.
pub(crate) fn key() -> SecretKey {
    SecretKey::generate()
}

/// Waits until the relay has disconnected this client.
pub(crate) async fn gone(mut client: Client) -> Result<()> {
    let ended = async { while let Some(Ok(_)) = client.next().await {} };
    timeout(SOON, ended).await.context("it stays connected")
}
