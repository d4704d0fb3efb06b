//! A machine of a test that is no daemon: it has a key, and speaks the wire by hand, well or badly.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ciborium::Value;
use futures_util::{SinkExt, StreamExt};
use iroh::endpoint::{Connection, ConnectionError, ReadError, RecvStream, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, SecretKey, TransportAddr};
use malai_daemon::store::keys::MachineKey;
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::failure::Failure;
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::invite::Invite;
use malai_protocol::peer::{ALPN, Announce, Close, Gone, Hello, JOIN_ALPN, Open, Redeem, VERSION};
use malai_protocol::session::{Attach, ExecSpec};
use malai_protocol::snapshot::{Signed, SignedHeader, Snapshot};
use serde::Serialize;
use tokio::io::Join;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::{Machine, Ran, SOON, follow, next, spec};

/// A bidirectional stream of a connection, as frames.
pub(crate) type Wire = Framed<Join<RecvStream, SendStream>, FrameCodec>;

/// A machine that is no daemon.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its endpoint.
    pub(crate) endpoint: Endpoint,
    /// Its key.
    pub(crate) id: MachineId,
}

/// What came next on a stream.
#[derive(Debug)]
pub(crate) enum Got {
    /// A frame.
    Frame(Frame),
    /// The end, in good order.
    End,
    /// The other side gave the stream up, with this code.
    Reset(u64),
    /// The whole connection was closed.
    Closed(Option<Close>),
}

impl Peer {
    /// A new key, which nobody knows.
    pub(crate) async fn new() -> Result<Self> {
        let key = MachineKey::generate()?;
        let endpoint = Endpoint::builder(presets::Minimal)
            .secret_key(SecretKey::from_bytes(&key.secret_bytes()))
            .alpns(vec![ALPN.to_vec()])
            .clear_ip_transports()
            .bind_addr((Ipv4Addr::LOCALHOST, 0))?
            .bind()
            .await?;
        Ok(Self { endpoint, id: key.id() })
    }

    /// Redeems an invite of this manager, and so becomes a machine of its cluster.
    pub(crate) async fn join(manager: &Machine, name: &str, groups: &[&str]) -> Result<(Self, Snapshot)> {
        let peer = Self::new().await?;
        let invite = manager.invite_into(name, groups).await?;
        let snapshot = redeem(&peer.dial_desk(manager).await?, &invite, name).await?;
        Ok((peer, snapshot))
    }

    /// A connection to a machine of the cluster `c`.
    pub(crate) async fn dial(&self, machine: &Machine) -> Result<Connection> {
        self.connect(machine.address().await?, ALPN).await
    }

    /// Returns the next connection that a daemon makes to this peer. A daemon gives an attempt up when the peer has come by
    /// itself meanwhile.
    pub(crate) async fn dialled(&self) -> Result<Connection> {
        let one = async {
            loop {
                let incoming = self.endpoint.accept().await.context("an endpoint")?;
                if let Ok(conn) = incoming.accept()?.await {
                    return anyhow::Ok(conn);
                }
            }
        };
        timeout(SOON, one).await.context("nobody dials")?
    }

    /// A connection as another daemon makes it: greeted too. It ends with its control stream.
    pub(crate) async fn come(&self, machine: &Machine) -> Result<(Connection, Wire)> {
        let conn = self.dial(machine).await?;
        let (control, _theirs) = greet(&conn, None).await?;
        Ok((conn, control))
    }

    /// A connection to a cluster manager's desk.
    pub(crate) async fn dial_desk(&self, manager: &Machine) -> Result<Connection> {
        self.connect(manager.desk().await?, JOIN_ALPN).await
    }

    async fn connect(&self, address: EndpointAddr, alpn: &[u8]) -> Result<Connection> {
        Ok(timeout(SOON, self.endpoint.connect(address, alpn)).await.context("cannot connect")??)
    }
}

/// Redeems an invite over a connection to the desk, and returns the snapshot that is the answer.
pub(crate) async fn redeem(desk: &Connection, invite: &Invite, hostname: &str) -> Result<Snapshot> {
    redeem_within(SOON, desk, invite, hostname).await
}

/// The same, where many others may be before it.
pub(crate) async fn redeem_within(
    limit: Duration,
    desk: &Connection,
    invite: &Invite,
    hostname: &str,
) -> Result<Snapshot> {
    let mut wire = open(desk).await?;
    let redeem = Redeem { version: VERSION, secret: invite.secret, hostname: hostname.into() };
    send(&mut wire, Kind::Redeem, &redeem).await?;
    let first = timeout(limit, wire.next()).await.context("no answer came")?.context("the stream ended")??;
    if first.kind == Kind::Refused {
        bail!("refused: {}", first.decode::<Failure>()?);
    }
    let _where: Announce = first.expect(Kind::Announce, "Announce")?;
    let signed: Signed = next(&mut wire).await?.expect(Kind::Snapshot, "Snapshot")?;
    Ok(signed.verify(&invite.cluster)?)
}

/// Where a key is reached on this host.
pub(crate) fn loopback(key: [u8; 32], addresses: &[String]) -> Result<EndpointAddr> {
    let port = addresses.iter().find_map(|text| text.parse::<SocketAddr>().ok()).context("no address")?.port();
    let addr = TransportAddr::Ip((Ipv4Addr::LOCALHOST, port).into());
    Ok(EndpointAddr::from_parts(EndpointId::from_bytes(&key)?, [addr]))
}

/// A new stream.
pub(crate) async fn open(conn: &Connection) -> Result<Wire> {
    let (send_half, recv) = timeout(SOON, conn.open_bi()).await.context("no stream may be opened")??;
    Ok(framed(send_half, recv))
}

/// A stream that the other side opened.
pub(crate) async fn accept(conn: &Connection) -> Result<Wire> {
    let (send_half, recv) = timeout(SOON, conn.accept_bi()).await.context("no stream was opened")??;
    Ok(framed(send_half, recv))
}

/// Both halves of a stream as one.
pub(crate) fn framed(send_half: SendStream, recv: RecvStream) -> Wire {
    Framed::new(tokio::io::join(recv, send_half), FrameCodec::new())
}

/// Sends a control frame.
pub(crate) async fn send<T: Serialize>(wire: &mut Wire, kind: Kind, value: &T) -> Result<()> {
    Ok(wire.send(Frame::control(kind, value)?).await?)
}

/// Sends bytes as they are.
pub(crate) async fn raw(wire: &mut Wire, bytes: &[u8]) -> Result<()> {
    Ok(wire.get_mut().writer_mut().write_all(bytes).await?)
}

/// Ends the sending half in good order.
pub(crate) fn finish(wire: &mut Wire) -> Result<()> {
    Ok(wire.get_mut().writer_mut().finish()?)
}

/// What comes next, soon.
pub(crate) async fn got(wire: &mut Wire) -> Result<Got> {
    use malai_protocol::codec::CodecError;
    let error = match timeout(SOON, wire.next()).await.context("nothing comes")? {
        None => return Ok(Got::End),
        Some(Ok(frame)) => return Ok(Got::Frame(frame)),
        Some(Err(CodecError::Io(error))) => error,
        Some(Err(other)) => return Err(other.into()),
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>()) {
        Some(ReadError::Reset(code)) => Ok(Got::Reset(code.into_inner())),
        Some(ReadError::ConnectionLost(lost)) => Ok(Got::Closed(close_code(lost)?.0)),
        _ => Err(error.into()),
    }
}

/// How the other side closed the connection: its code, and its words.
pub(crate) async fn closed(conn: &Connection) -> Result<(Option<Close>, String)> {
    close_code(&timeout(SOON, conn.closed()).await.context("the connection stays open")?)
}

fn close_code(error: &ConnectionError) -> Result<(Option<Close>, String)> {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let words = String::from_utf8_lossy(&close.reason).into_owned();
            Ok((Close::from_number(close.error_code.into_inner()), words))
        }
        other => bail!("not closed by the other side: {other}"),
    }
}

/// A greeting that says nothing but that it is one, and perhaps what is held.
pub(crate) fn hello(header: Option<SignedHeader>) -> Hello {
    Hello {
        version: VERSION,
        needs: Vec::new(),
        header,
        addresses: Vec::new(),
        caller_only: false,
        boot: None,
        executor: None,
        malai: String::new(),
        clock_ms: None,
        enforced: None,
        epoch: None,
    }
}

/// The same header, not signed by the cluster's key.
pub(crate) fn forge(header: &SignedHeader) -> Result<SignedHeader> {
    let mut map = Value::serialized(header)?.into_map().ok().context("a map")?;
    for (name, value) in &mut map {
        if name.as_text() == Some("signature") {
            *value = Value::Bytes(vec![7; 64]);
        }
    }
    Ok(Value::Map(map).deserialized()?)
}

/// Greets on a new control stream, and is greeted.
pub(crate) async fn greet(conn: &Connection, header: Option<SignedHeader>) -> Result<(Wire, Hello)> {
    let mut wire = open(conn).await?;
    send(&mut wire, Kind::PeerHello, &hello(header)).await?;
    let theirs = next(&mut wire).await?.expect(Kind::PeerHello, "PeerHello")?;
    Ok((wire, theirs))
}

/// Asks whether the other side serves this connection.
pub(crate) async fn ping(conn: &Connection) -> Result<()> {
    let mut wire = open(conn).await?;
    wire.send(Frame::empty(Kind::Ping)).await?;
    let frame = next(&mut wire).await?;
    anyhow::ensure!(frame.kind == Kind::Pong, "{frame:?}");
    Ok(())
}

/// Begins a session.
pub(crate) async fn exec(conn: &Connection, cluster: ClusterId, spec: &ExecSpec) -> Result<Wire> {
    let mut wire = open(conn).await?;
    send(&mut wire, Kind::Open, &Open { cluster, generation: 0 }).await?;
    send(&mut wire, Kind::Exec, spec).await?;
    Ok(wire)
}

/// Follows a session that exists.
pub(crate) async fn attach(conn: &Connection, cluster: ClusterId, attach: &Attach) -> Result<Wire> {
    let mut wire = open(conn).await?;
    send(&mut wire, Kind::Open, &Open { cluster, generation: 0 }).await?;
    send(&mut wire, Kind::Attach, attach).await?;
    Ok(wire)
}

/// Says on a stream of its own that the caller of an attachment is gone, and returns the answer.
pub(crate) async fn gone(conn: &Connection, gone: &Gone) -> Result<Frame> {
    let mut wire = open(conn).await?;
    send(&mut wire, Kind::Gone, gone).await?;
    finish(&mut wire)?;
    next(&mut wire).await
}

/// Gives up the sending half with this code.
pub(crate) fn reset(wire: &mut Wire, code: u32) -> Result<()> {
    Ok(wire.get_mut().writer_mut().reset(code.into())?)
}

/// Runs a command to its end.
pub(crate) async fn run(conn: &Connection, cluster: ClusterId, words: &[&str]) -> Result<Ran> {
    follow(exec(conn, cluster, &spec(words)).await?).await
}
