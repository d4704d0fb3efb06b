//! `malai connect`: makes one connection to a machine, as a command would get it or by one way only, and says how it did.

use std::time::Duration;

use iroh::endpoint::{ConnectError, ConnectWithOptsError, ConnectingError, Connection, ConnectionError};
use iroh::{Endpoint, EndpointAddr, TransportAddr, Watcher};
use malai_protocol::codec::{Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::local::{Connect, SessionTarget, THIS_MACHINE};
use malai_protocol::peer::{ALPN, Close};
use malai_protocol::session::Reached;
use tokio::time::{Instant, timeout_at};

use crate::caller::resolve::resolve;
use crate::clusters::Clusters;
use crate::clusters::membership::Membership;
use crate::clusters::peers::dial;
use crate::clusters::peers::removed;
use crate::net::finding::ways::is_same;
use crate::net::{bare_hello, close, closed_with, endpoint, endpoint_id, round_trip, send};
use crate::store::secret::{SIGNING_STACK_BYTES, Secret, wiped};

/// Begins the range of QUIC's errors that say what went wrong in TLS (RFC 9001, section 4.8).
const FIRST_TLS_ERROR: u64 = 0x100;

/// Reaches the machine, and says how.
///
/// # Errors
/// [`Failure`]: there is no such machine, the address is none, or the machine was not reached by it.
pub(crate) async fn connect(clusters: &Clusters, ask: &Connect) -> Result<Reached, Failure> {
    let deadline = Instant::now() + Duration::from_millis(ask.connect_timeout_ms);
    let target = SessionTarget::new(&ask.machine, ask.cluster.as_deref(), ask.connect_timeout_ms);
    let (membership, id) = resolve(clusters, &target)?;
    let at = ask.at.as_deref().map(address).transpose()?;
    if id == membership.me {
        return Ok(Reached { path: THIS_MACHINE.to_owned(), ..Reached::default() });
    }
    match at {
        None => {
            let conn = {
                // As for a command, a lost network is looked for again in the meantime.
                let _waiting = membership.peers.pool.wait();
                dial::connect(&membership, id, deadline).await?
            };
            let rtt = proven(&conn.conn, deadline, &membership).await?;
            Ok(Reached { rtt_us: micros(rtt), ..conn.reached() })
        }
        Some(at) => {
            let only = Only { name: format!("{}.{}", ask.machine, membership.alias), id, at, deadline };
            only.reach(&membership).await
        }
    }
}

fn address(text: &str) -> Result<TransportAddr, Failure> {
    endpoint::parse_address(text).ok_or_else(|| {
        let text = format!("`{text}` is neither IP:PORT nor the URL of a relay");
        Failure::new(Kind::Usage, text).hint("such as --at 192.0.2.7:4001, or --at https://relay.example.com")
    })
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Measures a round trip, which proves that the peer answers over this connection.
async fn proven(conn: &Connection, deadline: Instant, membership: &Membership) -> Result<Duration, Failure> {
    let lost = |why: String| Failure::new(Kind::Unreachable, format!("connected, but no answer came: {why}"));
    match timeout_at(deadline, round_trip(conn)).await {
        Ok(Ok(took)) => Ok(took),
        Ok(Err(error)) => match conn.close_reason().as_ref().and_then(closed_with) {
            Some(Close::NotAMember | Close::Removed) => Err(removed::not_a_member(membership)),
            _ => Err(lost(format!("{error:#}"))),
        },
        Err(_) => Err(lost("not in time".to_owned())),
    }
}

/// Names a machine that is to be reached by one way only.
struct Only {
    /// Is its full name, for messages.
    name: String,
    id: MachineId,
    at: TransportAddr,
    deadline: Instant,
}

impl Only {
    /// Tries the address with an endpoint of its own, which has no other way: the daemon's endpoint would also use what it
    /// knows or finds.
    async fn reach(&self, membership: &Membership) -> Result<Reached, Failure> {
        let own = membership.peers.endpoint.secret_key();
        let key = wiped::<SIGNING_STACK_BYTES, _>(|| Secret::copied(&own.to_bytes()));
        let endpoint = endpoint::bind_only(key, &membership.held().config.network, &self.at).await?;
        let reached = tokio::select! {
            reached = self.attempt(&endpoint, membership) => reached,
            () = membership.cancel.cancelled() => {
                Err(self.not_reached("the cluster is being loaded again, or the daemon stops"))
            }
        };
        let rtt = reached.as_ref().map_or(Duration::ZERO, |reached| Duration::from_micros(reached.rtt_us));
        endpoint::close(&endpoint, rtt).await;
        reached
    }

    async fn attempt(&self, endpoint: &Endpoint, membership: &Membership) -> Result<Reached, Failure> {
        let begun = Instant::now();
        let key = endpoint_id(self.id.as_bytes())
            .ok_or_else(|| self.not_reached("its id52 is not a key that can be dialled"))?;
        let addr = EndpointAddr::from_parts(key, [self.at.clone()]);
        let conn = match timeout_at(self.deadline, endpoint.connect(addr, ALPN)).await {
            Ok(Ok(conn)) => conn,
            Ok(Err(error)) if is_another(&error) => return Err(self.not_the_machine()),
            Ok(Err(error)) => return Err(self.silent(endpoint, &format!("{error:#}"))),
            Err(_) => {
                let within = begun.elapsed().as_secs_f64();
                return Err(self.silent(endpoint, &format!("no answer within {within:.0} s")));
            }
        };
        let reached = self.prove(&conn, membership).await;
        close(&conn, Close::Done, "it was only tried");
        reached
    }

    /// Greets as a machine that only calls, so that the other side sends nothing, and waits for its answer.
    async fn prove(&self, conn: &Connection, membership: &Membership) -> Result<Reached, Failure> {
        let greeted = async {
            let (mut control, recv) = conn.open_bi().await?;
            send(&mut control, Frame::control(FrameKind::PeerHello, &bare_hello(None, true))?).await?;
            anyhow::Ok((control, recv))
        };
        // Its end would end the connection.
        let _control = match timeout_at(self.deadline, greeted).await {
            Ok(Ok(control)) => control,
            Ok(Err(error)) => return Err(self.not_reached(&format!("the connection was lost: {error:#}"))),
            Err(_) => return Err(self.not_reached("the connection accepts no data")),
        };
        let rtt = proven(conn, self.deadline, membership).await?;
        let paths = conn.paths();
        let used = paths.iter().find(|path| path.is_selected());
        let path = match used.as_ref().map(|path| path.remote_addr()) {
            Some(used) if is_same(used, &self.at) => self.words(),
            // It did answer here, and then told of a better way; but that is not what was asked.
            Some(other) => {
                let other = endpoint::address_text(other).unwrap_or_else(|| "another way".to_owned());
                return Err(self.not_reached(&format!("the connection moved to {other} at once")));
            }
            None => return Err(self.not_reached("no path is in use")),
        };
        Ok(Reached { path, rtt_us: micros(rtt), found_by: None })
    }

    fn words(&self) -> String {
        let address = endpoint::address_text(&self.at).unwrap_or_default();
        if self.at.is_relay() { format!("relay {address}") } else { format!("direct {address}") }
    }

    fn not_reached(&self, why: &str) -> Failure {
        let address = endpoint::address_text(&self.at).unwrap_or_default();
        let first = self.name.split('.').next().unwrap_or_default();
        Failure::new(Kind::Unreachable, format!("{} cannot be reached at {address}: {why}", self.name)).hint(format!(
            "on {first}: `malai status` shows its addresses; here, by all ways: malai connect {}",
            self.name
        ))
    }

    fn not_the_machine(&self) -> Failure {
        self.not_reached(&format!("another machine answers there: its key is not that of {}", self.name))
    }

    /// Says why no answer came: with a relay, the connection to it shows whether the relay itself answers.
    fn silent(&self, endpoint: &Endpoint, why: &str) -> Failure {
        if !self.at.is_relay() {
            return self.not_reached(why);
        }
        let relays = endpoint.home_relay_status().get();
        if relays.iter().any(|relay| relay.is_connected()) {
            return self.not_reached(&format!("the relay answers, but the machine is not connected to it: {why}"));
        }
        let said = relays.iter().find_map(|relay| relay.last_error().map(|error| format!(": {error:#}")));
        self.not_reached(&format!("the relay itself cannot be reached{}", said.unwrap_or_default()))
    }
}

/// Says whether a process without the key answered: then TLS failed, on one side or the other.
fn is_another(error: &ConnectError) -> bool {
    let lost = match error {
        ConnectError::Connecting { source: ConnectingError::ConnectionError { source, .. }, .. }
        | ConnectError::Connection { source, .. } => source,
        ConnectError::Connecting { source: ConnectingError::HandshakeFailure { .. }, .. } => return true,
        ConnectError::Connect { source: ConnectWithOptsError::LocallyRejected { .. }, .. } => return true,
        _ => return false,
    };
    match lost {
        ConnectionError::TransportError(error) => u64::from(error.code) >= FIRST_TLS_ERROR,
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code) >= FIRST_TLS_ERROR,
        _ => false,
    }
}
