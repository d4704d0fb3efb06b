//! First packets of handshakes: recorded, sent again from addresses that are not their sender's, sent twice, and answered
//! by a client that finishes nothing.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use iroh::{EndpointAddr, EndpointId, TransportAddr};
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::peer::Peer;
use super::{SOON, until};

/// Sets how many handshakes one endpoint begins at once while they are recorded.
const AT_ONCE: usize = 50;

/// The type of a packet with a long header, the connection id that it is for, and the one that it is from.
fn long_header(packet: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let first = packet.first().filter(|first| *first & 0x80 != 0)?;
    let (length, rest) = packet.get(5..)?.split_first()?;
    let (to, rest) = rest.split_at_checked(usize::from(*length))?;
    let (length, rest) = rest.split_first()?;
    Some(((first & 0x30) >> 4, to, rest.get(..usize::from(*length))?))
}

/// Returns which handshake of the server a packet belongs to: the connection id that it chose.
pub(crate) fn handshake(packet: &[u8]) -> Option<Vec<u8>> {
    long_header(packet).map(|(_, _, from)| from.to_vec())
}

/// The types of packets with a long header.
const INITIAL: u8 = 0;
const RETRY: u8 = 3;

/// Records this number of first packets to the endpoint of this key, as an honest client sends them.
pub(crate) async fn record(key: EndpointId, alpn: &'static [u8], count: usize) -> Result<Vec<Vec<u8>>> {
    let mut packets = HashMap::new();
    let mut buffer = [0; 2048];
    while packets.len() < count {
        let (tap, peer) = (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?, Peer::new().await?);
        let address = EndpointAddr::from_parts(key, [TransportAddr::Ip(tap.local_addr()?)]);
        let mut dialling = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (endpoint, address) = (peer.endpoint.clone(), address.clone());
            dialling.spawn(async move { endpoint.connect(address, alpn).await.map(drop) });
        }
        let wanted = (packets.len() + AT_ONCE).min(count);
        while packets.len() < wanted {
            let length = timeout(SOON, tap.recv(&mut buffer)).await.context("no first packet comes")??;
            let packet = buffer[..length].to_vec();
            if let Some((INITIAL, cid, _)) = long_header(&packet) {
                packets.entry(cid.to_vec()).or_insert(packet);
            }
        }
        // Nobody answers those that are closed: that takes its time, and nobody has to wait for it.
        tokio::spawn(async move {
            dialling.shutdown().await;
            peer.endpoint.close().await;
        });
    }
    Ok(packets.into_values().collect())
}

/// Opens this number of sockets, each with an address of its own, from which no member comes.
pub(crate) async fn addresses(count: u8) -> Result<Vec<UdpSocket>> {
    let mut all = Vec::new();
    for last in 1..=count {
        all.push(UdpSocket::bind((Ipv4Addr::new(127, 0, 7, last), 0)).await?);
    }
    Ok(all)
}

/// Packets that are sent again and again until this is dropped.
pub(crate) struct Flood {
    sent: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Flood {
    /// Sends these packets to `to` at this rate per second, from each of the sockets in turn.
    pub(crate) fn begin(to: SocketAddr, packets: Vec<Vec<u8>>, from: Vec<UdpSocket>, per_second: u32) -> Self {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / per_second);
            // What a busy machine delays is made up for.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for (packet, socket) in packets.iter().cycle().zip(from.iter().cycle()) {
                ticks.tick().await;
                // A full buffer is a lost packet.
                if socket.send_to(packet, to).await.is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { sent, task: task.abort_handle() }
    }

    /// Waits until this number was sent in all.
    pub(crate) async fn sent(&self, count: usize) -> Result<()> {
        until("the flood is there", || async { Ok(self.sent.load(Ordering::Relaxed) >= count) }).await
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes packets between one client and one server, and does with them what a network may do.
pub(crate) struct Way {
    /// Where the client finds it.
    pub(crate) address: SocketAddr,
    retries: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

/// What a way does with packets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    /// How often each packet of the client arrives.
    pub(crate) copies: usize,
    /// Of the server's packets none but a Retry arrives: no handshake is ever finished.
    pub(crate) only_retries: bool,
}

impl Way {
    /// A way to this server, which sees packets come from `from`.
    pub(crate) async fn to(server: SocketAddr, from: Ipv4Addr, habits: Habits) -> Result<Self> {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let back = Arc::new(UdpSocket::bind((from, 0)).await?);
        back.connect(server).await?;
        let (address, retries) = (front.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let (client, mut tasks) = (Arc::new(std::sync::OnceLock::new()), JoinSet::new());
        let (there, here, known) = (Arc::clone(&back), Arc::clone(&front), Arc::clone(&client));
        tasks.spawn(async move {
            let mut buffer = [0; 2048];
            // The packet before comes once more after each: a first packet when its Retry is there.
            let mut last: Option<Vec<u8>> = None;
            while let Ok((length, from)) = here.recv_from(&mut buffer).await {
                known.get_or_init(|| from);
                let packet = &buffer[..length];
                for _ in 0..habits.copies {
                    drop(there.send(packet).await);
                }
                if habits.copies > 1
                    && let Some(before) = last.replace(packet.to_vec())
                {
                    drop(there.send(&before).await);
                }
            }
        });
        let counted = Arc::clone(&retries);
        tasks.spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok(length) = back.recv(&mut buffer).await {
                let packet = &buffer[..length];
                let is_retry = long_header(packet).is_some_and(|(kind, _, _)| kind == RETRY);
                counted.fetch_add(usize::from(is_retry), Ordering::Relaxed);
                if (is_retry || !habits.only_retries)
                    && let Some(client) = client.get()
                {
                    drop(front.send_to(packet, client).await);
                }
            }
        });
        Ok(Self { address, retries, _tasks: tasks })
    }

    /// How many packets of the server were a Retry.
    pub(crate) fn retries(&self) -> usize {
        self.retries.load(Ordering::Relaxed)
    }
}
