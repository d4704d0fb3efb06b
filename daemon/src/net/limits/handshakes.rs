//! Bounds the handshakes that others begin at an endpoint and have not finished.
//!
//! A first packet proves nothing: its sender's address may be forged, and the packet itself recorded elsewhere. While
//! few handshakes are unfinished, one begins at once. Above that, it begins only for a sender that has shown, by a QUIC
//! Retry, that packets to its address reach it: it sends its first packet again with a token that came to that address.
//! When all places are taken all the same, the oldest unfinished handshake is dropped, since an honest one takes a
//! round trip.

use std::sync::Arc;
use std::time::Duration;

use iroh::Endpoint;
use iroh::endpoint::{
    ConnectError, ConnectingError, Connection, ConnectionError, Incoming, IncomingAddr, TransportErrorCode,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pace::{Origin, RateLimit};
use super::places::{Place, Places};

/// Bounds the unfinished handshakes at once.
const MAX_UNFINISHED_HANDSHAKES: usize = 256;
/// Sets how many may be unfinished before a sender has to prove its address.
const MAX_UNPROVED_HANDSHAKES: usize = 32;
/// Bound how long a handshake may take from its first packet on, as a number of waits. What a busy host adds to each of
/// them is its own delay and not the sender's, so it does not count.
const MAX_HANDSHAKE_STEPS: u32 = 10;
const HANDSHAKE_STEP_TIME: Duration = Duration::from_millis(300);

/// Holds the unfinished handshakes of one endpoint, and how often each address may begin one.
#[derive(Debug)]
pub(crate) struct Handshakes {
    places: Arc<Places>,
    /// Counts addresses that were proved. A forged packet counts against none of them.
    proved: RateLimit<Origin>,
    /// Counts the addresses that packets without a proof claim.
    unproved: RateLimit<Origin>,
    /// Packets beyond the pace are refused; otherwise they are ignored.
    refuses: bool,
}

/// Holds a handshake and its place.
#[derive(Debug)]
#[must_use = "a handshake that is dropped is refused"]
pub(crate) struct Handshake {
    incoming: Incoming,
    place: Place,
}

impl Handshakes {
    /// Returns one for an endpoint of members. A packet beyond its sender's pace is ignored: an honest sender sends it
    /// again, and finds a place then.
    pub(crate) fn of_members() -> Self {
        Self::new(RateLimit::handshakes, false)
    }

    /// Returns one for an endpoint that anybody may find, where each address may begin `burst` at once and then one in
    /// `each`. A packet beyond that is refused.
    pub(crate) fn of_public(each: Duration, burst: u32) -> Self {
        Self::new(|| RateLimit::public(each, burst), true)
    }

    fn new(pace: impl Fn() -> RateLimit<Origin>, refuses: bool) -> Self {
        Self { places: Places::new(MAX_UNFINISHED_HANDSHAKES), proved: pace(), unproved: pace(), refuses }
    }

    /// Accepts connections until `cancel` or the end of the endpoint. Serves each in a task of its own, which `cancel` ends
    /// too.
    pub(crate) async fn accept<F: Future<Output = ()> + Send + 'static>(
        &self,
        endpoint: &Endpoint,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
        serve: impl Fn(Handshake) -> F,
    ) {
        loop {
            let incoming = tokio::select! {
                () = cancel.cancelled() => return,
                incoming = endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            if let Some(handshake) = self.begin(incoming) {
                tasks.spawn(cancel.clone().run_until_cancelled_owned(serve(handshake)));
            }
        }
    }

    /// Returns the handshake of a first packet that may begin one now.
    fn begin(&self, incoming: Incoming) -> Option<Handshake> {
        let from = incoming.remote_addr();
        if is_proved(&incoming, &from) {
            if !self.proved.allows(Origin::from(&from)) {
                if self.refuses {
                    incoming.refuse()
                } else {
                    incoming.ignore()
                }
                return None;
            }
        } else if self.places.taken() >= MAX_UNPROVED_HANDSHAKES || !self.unproved.allows(Origin::from(&from)) {
            if let Err(error) = incoming.retry() {
                // Only for one that bears a token already, which is proved.
                error.into_incoming().ignore();
            }
            return None;
        }
        Some(Handshake { incoming, place: self.places.enter() })
    }
}

/// Tells whether the sender is where the packet says. It is when it answered a Retry, or comes by a relay: the relay
/// had it prove its key, and lets nobody speak for another. A Retry by way of a relay would only cost a round trip.
fn is_proved(incoming: &Incoming, from: &IncomingAddr) -> bool {
    incoming.remote_addr_validated() || matches!(from, IncomingAddr::Relay { .. })
}

impl Handshake {
    /// Finishes the handshake.
    ///
    /// # Errors
    /// When it fails, takes too long, or loses its place to a later one.
    pub(crate) async fn finish(self) -> anyhow::Result<Connection> {
        let Self { incoming, place } = self;
        let handshake = async { anyhow::Ok(incoming.accept()?.await?) };
        let limit = async {
            for _ in 0..MAX_HANDSHAKE_STEPS {
                sleep(HANDSHAKE_STEP_TIME).await;
            }
        };
        tokio::select! {
            biased;
            finished = handshake => finished,
            () = place.lost() => anyhow::bail!("dropped as the oldest unfinished handshake"),
            () = limit => anyhow::bail!("it took longer than {:?}", HANDSHAKE_STEP_TIME * MAX_HANDSHAKE_STEPS),
        }
    }
}

/// Tells whether a handshake failed because its proof of an address came from another address. iroh sends each first
/// packet by all ways at once, and a target that asks for a proof may first see the answer that took another way than
/// the question.
pub(crate) fn is_mixed_up(error: &anyhow::Error) -> bool {
    let lost = match error.downcast_ref::<ConnectError>() {
        Some(ConnectError::Connection { source, .. }) => source,
        Some(ConnectError::Connecting { source: ConnectingError::ConnectionError { source, .. }, .. }) => source,
        _ => return false,
    };
    matches!(lost, ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::INVALID_TOKEN)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use anyhow::Context;
    use iroh::EndpointAddr;
    use malai_protocol::config::Network;
    use malai_protocol::peer::ALPN;
    use tokio::net::UdpSocket;
    use tokio::time::timeout;

    use super::*;
    use crate::net::endpoint::{Options, bind, bound_port};
    use crate::store::secret::Secret;

    const SOON: Duration = Duration::from_secs(20);

    async fn endpoint(key: u8) -> Endpoint {
        let network = Network { relays: Some(Vec::new()), discovery: Some(Vec::new()), ..Network::default() };
        let options = Options { alpns: vec![ALPN.to_vec()], ..Options::caller(Secret::copied(&[key; 32]), &network) };
        bind(&options).await.expect("an endpoint").endpoint
    }

    /// Passes packets on between a client that comes to `front` and the server at this port: the client's first packet from
    /// one address, all others from another.
    async fn two_ways(front: UdpSocket, port: u16) -> anyhow::Result<()> {
        let (first, other) =
            (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let (mut there, mut here) = ([0; 2048], [0; 2048]);
        let (mut client, mut back) = (None, [0; 2048]);
        loop {
            tokio::select! {
                came = front.recv_from(&mut there) => {
                    let (length, from) = came?;
                    let way = if client.is_none() { &first } else { &other };
                    client = Some(from);
                    way.send_to(&there[..length], (Ipv4Addr::LOCALHOST, port)).await?;
                }
                answered = first.recv(&mut here) => {
                    front.send_to(&here[..answered?], client.context("a client")?).await?;
                }
                answered = other.recv(&mut back) => {
                    front.send_to(&back[..answered?], client.context("a client")?).await?;
                }
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_proof_that_comes_from_another_address_is_told_apart_from_other_failures() {
        let (server, client) = (endpoint(1).await, endpoint(2).await);
        let port = bound_port(&server).expect("a port");
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
        let address = EndpointAddr::new(server.id()).with_ip_addr(front.local_addr().expect("an address"));
        let asking = tokio::spawn({
            let server = server.clone();
            async move {
                while let Some(incoming) = server.accept().await {
                    assert!(!incoming.remote_addr_validated());
                    assert!(incoming.retry().is_ok());
                }
            }
        });
        let ways = tokio::spawn(two_ways(front, port));
        let failed = timeout(SOON, client.connect(address, ALPN)).await.expect("in time").expect_err("not there");
        assert!(is_mixed_up(&failed.into()));
        ways.abort();
        asking.abort();
        // One that is refused is another matter.
        let direct = EndpointAddr::new(server.id()).with_ip_addr((Ipv4Addr::LOCALHOST, port).into());
        let refusing = tokio::spawn(async move { server.accept().await.map(Incoming::refuse) });
        let failed = timeout(SOON, client.connect(direct, ALPN)).await.expect("in time").expect_err("refused");
        assert!(!is_mixed_up(&failed.into()));
        assert!(refusing.await.expect("it ends").is_some());
        client.close().await;
    }
}
