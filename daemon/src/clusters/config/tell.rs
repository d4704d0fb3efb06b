//! Brings the cluster's own relays up to date: those of `[network] relays` that have a key admit machines by the snapshot.
//!
//! The cluster manager keeps a connection to each of them, so that a new snapshot is there at once. Any other machine
//! only looks, at its start and after a change, a while later: so that a relay learns of a change also when the manager
//! does not reach it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream};
use iroh::{Endpoint, EndpointAddr, TransportAddr};
use malai_protocol::codec::{Frame, Kind, MAX_HELLO};
use malai_protocol::config::{MAX_RELAYS, Network};
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::peer::{ALPN, Announce, Close, Hello, Pull, RESET_PROTOCOL};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use crate::clusters::config::ConfigState;
use crate::clusters::membership::Membership;
use crate::net::place::RelayPlace;
use crate::net::pull::SNAPSHOT_BODY_TIMEOUT;
use crate::net::{FIRST_FRAME_TIMEOUT, Frames, abandon, bare_hello, close, endpoint_id, send, spoken};
use crate::runtime::backoff::{Backoff, Said};
use crate::runtime::duty;
use crate::runtime::random::random;

/// Bounds how long it may take to find the relay's host and to dial it.
const RELAY_DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Sets the first pause after a relay was not reached.
const TELL_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds that pause. A relay that comes back holds what it held before.
const TELL_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Sets how long a line has to last, so that the next loss begins with the first pause again.
const LINE_STEADY_TIME: Duration = Duration::from_secs(10);
/// Sets how much later than the manager another machine tells the relay at least: by then the manager has told it.
const MEMBER_TELL_MIN_DELAY: Duration = Duration::from_secs(2);
/// Bounds the random time that is added to that, since all machines hear of a change at once.
const MEMBER_TELL_SPREAD_MS: u64 = 18_000;
/// Bounds the addresses of one host that are tried.
const MAX_RELAY_HOST_ADDRESSES: usize = 8;

/// Names a relay that is told, by its URL and key.
type Relay = (String, MachineId);

/// Tells the relays of the config, whichever they are, until the membership ends.
pub(crate) async fn run(membership: Arc<Membership>, endpoint: Endpoint) {
    let mut snapshots = membership.watch();
    let mut told: BTreeMap<Relay, DropGuard> = BTreeMap::new();
    loop {
        let wanted = relays(&snapshots.borrow_and_update().config.network);
        // A relay that is taken out of the config hears nothing more.
        told.retain(|relay, _| wanted.contains(relay));
        for relay in wanted {
            told.entry(relay.clone()).or_insert_with(|| {
                let task = membership.cancel.child_token();
                let (membership, endpoint) = (Arc::clone(&membership), endpoint.clone());
                let tasks = membership.tasks.clone();
                let work = move || keep(Arc::clone(&membership), endpoint.clone(), relay.clone());
                let duty = duty::keep("relay", task.clone(), work);
                tasks.spawn(task.clone().run_until_cancelled_owned(duty));
                task.drop_guard()
            });
        }
        tokio::select! {
            () = membership.cancel.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() { return },
        }
    }
}

fn relays(network: &Network) -> Vec<Relay> {
    let all = network.relays.iter().flatten();
    all.filter_map(|relay| Some((relay.url.clone(), relay.id?))).take(MAX_RELAYS).collect()
}

/// Keeps one relay up to date.
async fn keep(membership: Arc<Membership>, endpoint: Endpoint, relay: Relay) {
    let mut snapshots = membership.watch();
    let mut backoff = Backoff::new(TELL_RETRY_MIN_INTERVAL, TELL_RETRY_MAX_INTERVAL);
    let mut said = Said::default();
    loop {
        if !membership.is_manager {
            tokio::time::sleep(later()).await;
        }
        let wanted = snapshots.borrow_and_update().generation();
        let begun = Instant::now();
        match talk(&membership, &endpoint, &relay, &mut said).await {
            // A manager was told and lost the line, which it wants back at once.
            Ok(_) if membership.is_manager => {
                if begun.elapsed() >= LINE_STEADY_TIME {
                    backoff.reset();
                }
            }
            Ok(holds) if holds >= wanted => {
                backoff.reset();
                if snapshots.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Ok(_) => {}
            Err(error) if said.is_news(false) => {
                tracing::info!(cluster = %membership.alias, relay = %relay.0, "the relay was not told: {error:#}");
            }
            Err(error) => tracing::debug!(cluster = %membership.alias, relay = %relay.0, "not told: {error:#}"),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

fn later() -> Duration {
    let random = random::<8>().map_or(0, u64::from_le_bytes);
    MEMBER_TELL_MIN_DELAY + Duration::from_millis(random % MEMBER_TELL_SPREAD_MS)
}

/// Dials the relay and has it fetch what is newer here. Returns the generation that it holds: for the cluster manager
/// when the line is lost, else at once.
async fn talk(
    membership: &Membership,
    endpoint: &Endpoint,
    relay: &Relay,
    said: &mut Said<bool>,
) -> anyhow::Result<u64> {
    let key = endpoint_id(relay.1.as_bytes()).ok_or_else(|| anyhow::anyhow!("its id52 cannot be dialled"))?;
    let dialled = async {
        let addr = EndpointAddr::from_parts(key, places(&relay.0).await?);
        anyhow::Ok(endpoint.connect(addr, ALPN).await?)
    };
    let conn = tokio::time::timeout(RELAY_DIAL_TIMEOUT, dialled).await??;
    let outcome = tokio::select! {
        holds = speak(membership, &conn, relay, said) => holds,
        error = hand_out(&membership.config, &conn) => Err(error),
    };
    close(&conn, Close::Done, "told");
    outcome
}

/// Returns where the relay of this URL listens: at its host, at the UDP port of the same number.
async fn places(url: &str) -> anyhow::Result<Vec<TransportAddr>> {
    let place = RelayPlace::parse(url)?;
    let found = tokio::net::lookup_host((place.host.as_str(), place.port)).await?;
    let found: Vec<SocketAddr> = found.take(MAX_RELAY_HOST_ADDRESSES).collect();
    Ok(found.into_iter().map(TransportAddr::Ip).collect())
}

async fn speak(
    membership: &Membership,
    conn: &Connection,
    relay: &Relay,
    said: &mut Said<bool>,
) -> anyhow::Result<u64> {
    let mut snapshots = membership.watch();
    let (mut send_half, recv) = conn.open_bi().await?;
    let header = Some(snapshots.borrow_and_update().snapshot.signed_header().clone());
    send(&mut send_half, Frame::control(Kind::PeerHello, &bare_hello(header, false))?).await?;
    let mut frames = Frames::new(recv, MAX_HELLO);
    let _hello: Hello = spoken(&frames.next(FIRST_FRAME_TIMEOUT).await?, Kind::PeerHello, "PeerHello")?;
    // It says what it holds when it has fetched what it wants.
    let mut holds = heard(&membership.cluster, &mut frames, SNAPSHOT_BODY_TIMEOUT).await?;
    if said.is_news(true) {
        tracing::info!(cluster = %membership.alias, relay = %relay.0, generation = holds, "the relay is up to date");
    }
    if !membership.is_manager {
        return Ok(holds);
    }
    loop {
        tokio::select! {
            changed = snapshots.changed() => {
                changed?;
                announce(&membership.config, &mut send_half).await?;
                holds = heard(&membership.cluster, &mut frames, SNAPSHOT_BODY_TIMEOUT).await?;
                tracing::info!(cluster = %membership.alias, relay = %relay.0, generation = holds, "the relay was told");
            }
            why = conn.closed() => {
                tracing::debug!(cluster = %membership.alias, relay = %relay.0, "the line to the relay is lost: {why}");
                return Ok(holds);
            }
        }
    }
}

/// Returns the generation that the relay says it holds.
async fn heard(cluster: &ClusterId, frames: &mut Frames<RecvStream>, within: Duration) -> anyhow::Result<u64> {
    let announce: Announce = frames.next(within).await?.expect(Kind::Announce, "Announce")?;
    Ok(announce.header.verify(cluster)?.generation)
}

async fn announce(config: &ConfigState, send_half: &mut SendStream) -> anyhow::Result<()> {
    let header = config.held().snapshot.signed_header().clone();
    let frame = Frame::control(Kind::Announce, &Announce::of(header))?;
    Ok(send(send_half, frame).await?)
}

/// Hands the snapshot out whenever the relay asks, one at a time.
async fn hand_out(config: &ConfigState, conn: &Connection) -> anyhow::Error {
    loop {
        let (mut send_half, recv) = match conn.accept_bi().await {
            Ok(stream) => stream,
            // The speaking side sees the end of the connection too, and knows how far it came.
            Err(_) => std::future::pending().await,
        };
        let mut frames = Frames::new(recv, MAX_HELLO);
        let answered = async {
            let _pull: Pull = frames.next(FIRST_FRAME_TIMEOUT).await?.expect(Kind::Pull, "Pull")?;
            send(&mut send_half, Frame::control(Kind::Snapshot, &config.held().snapshot.to_signed())?).await?;
            send_half.finish()?;
            tokio::time::timeout(SNAPSHOT_BODY_TIMEOUT, send_half.stopped()).await??;
            anyhow::Ok(())
        };
        if let Err(error) = answered.await {
            abandon(&mut send_half, &mut frames.into_parts().0, RESET_PROTOCOL);
            return error.context("the relay did not take the snapshot");
        }
    }
}
