//! A cluster whose key the test holds: one daemon, and around it machines that speak the wire by hand.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_daemon::admin::{join_begin, join_finish};
use malai_daemon::store::keys::ClusterKey;
use malai_daemon::store::lock::Changes;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::invite::Invite;
use malai_protocol::peer::{Close, Pull};
use malai_protocol::snapshot::{Signed, Snapshot};
use serde_bytes::ByteArray;

use super::peer::{self, Peer, Wire};
use super::{Machine, Program, Ran, home_in, next, until};

/// A cluster with one daemon, `web01`. `laptop`, its manager, `friend` and `guest` are peers: `friend` may run commands
/// on `web01`, and `guest` may not.
pub(crate) struct Scene {
    /// The cluster's key.
    pub(crate) key: ClusterKey,
    /// The daemon.
    pub(crate) web01: Machine,
    /// The daemon's key.
    pub(crate) web01_id: MachineId,
    /// The cluster manager.
    pub(crate) laptop: Peer,
    /// A machine with grants.
    pub(crate) friend: Peer,
    /// A machine without.
    pub(crate) guest: Peer,
    generation: AtomicU64,
}

impl Scene {
    /// All of it, started.
    pub(crate) async fn new() -> Result<Self> {
        Self::with(None).await
    }

    /// The same, with this executor.
    pub(crate) async fn with(program: Program) -> Result<Self> {
        let key = ClusterKey::generate()?;
        let dir = tempfile::Builder::new().prefix("m").tempdir()?;
        let invite = invite(key.id(), "c");
        let home = home_in(&dir);
        let web01_id = {
            let changes = Changes::begin(&home)?;
            join_begin(&changes, &invite, None)?.machine_key.id()
        };
        let (laptop, friend, guest) = (Peer::new().await?, Peer::new().await?, Peer::new().await?);
        let text = text(&key, web01_id, &laptop, &friend, &guest);
        join_finish(&Changes::begin(&home)?, "c", &key.sign(1, 1, text)?)?;
        let web01 = Machine::start_with(dir, program).await?;
        Ok(Self { key, web01, web01_id, laptop, friend, guest, generation: AtomicU64::new(1) })
    }

    /// The config as it is at first.
    pub(crate) fn text(&self) -> String {
        text(&self.key, self.web01_id, &self.laptop, &self.friend, &self.guest)
    }

    /// Signs this text as the next generation.
    pub(crate) fn sign(&self, text: &str) -> Result<Snapshot> {
        self.sign_as(self.generation.fetch_add(1, Ordering::Relaxed) + 1, text)
    }

    /// Signs this text as that generation.
    pub(crate) fn sign_as(&self, generation: u64, text: &str) -> Result<Snapshot> {
        Ok(self.key.sign(generation, 1, text.to_owned())?)
    }

    /// The generation that the daemon holds, as it greets.
    pub(crate) async fn held(&self) -> Result<u64> {
        let conn = self.laptop.dial(&self.web01).await?;
        let (_control, hello) = peer::greet(&conn, None).await?;
        conn.close(0u32.into(), b"");
        Ok(hello.header.context("no snapshot")?.verify(&self.key.id())?.generation)
    }

    /// Brings the daemon this text as the next generation, as the manager does.
    pub(crate) async fn publish(&self, text: &str) -> Result<Snapshot> {
        let snapshot = self.sign(text)?;
        let conn = self.laptop.dial(&self.web01).await?;
        let _control = offer(&conn, &snapshot).await?;
        let generation = snapshot.header().generation;
        until("the daemon holds the snapshot", || async { Ok(self.held().await? == generation) }).await?;
        Ok(snapshot)
    }

    /// Runs a command as `friend`, over a new connection.
    pub(crate) async fn run(&self, words: &[&str]) -> Result<Ran> {
        let conn = self.friend.dial(&self.web01).await?;
        let ran = peer::run(&conn, self.key.id(), words).await;
        conn.close(0u32.into(), b"");
        ran
    }

    /// The daemon serves those that behave, whatever others did to it.
    pub(crate) async fn serves(&self) -> Result<()> {
        let ran = self.run(&["echo", "it serves"]).await?;
        ensure!(ran.stdout == b"it serves\n", "{ran:?}");
        Ok(())
    }

    /// Lines of the daemon's audit.
    pub(crate) fn audited(&self) -> usize {
        std::fs::read_to_string(self.web01.home.audit()).unwrap_or_default().lines().count()
    }
}

/// Greets with a newer snapshot's header, and answers when its text is asked for.
pub(crate) async fn offer(conn: &Connection, snapshot: &Snapshot) -> Result<Wire> {
    let (control, _) = peer::greet(conn, Some(snapshot.signed_header().clone())).await?;
    let mut wire = asked(conn).await?;
    wire.send(Frame::control(Kind::Snapshot, &snapshot.to_signed())?).await?;
    peer::finish(&mut wire)?;
    Ok(control)
}

/// What a peer may deliver in place of the snapshot that it announced, by name.
pub(crate) fn false_deliveries(announced: &Snapshot) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let text = Signed { signed: announced.signed_header().clone(), text: b"[cluster]\n".to_vec().into() };
    let whole = Frame::control(Kind::Snapshot, &announced.to_signed())?.to_bytes();
    Ok(vec![
        ("another text", Frame::control(Kind::Snapshot, &text)?.to_bytes().to_vec()),
        ("100 MB", [&[Kind::Snapshot as u8][..], &100_000_000u32.to_le_bytes(), &[b'x'; 100_000]].concat()),
        ("another kind", Frame::empty(Kind::Waiting).to_bytes().to_vec()),
        ("an unknown kind", vec![0xfe, 0, 0, 0, 0]),
        ("nothing", Vec::new()),
        ("half of it", whole.slice(..50).to_vec()),
    ])
}

/// Announces a snapshot, and delivers these bytes when it is asked for; returns how it is closed.
pub(crate) async fn deliver(conn: &Connection, announced: &Snapshot, bytes: &[u8]) -> Result<(Option<Close>, String)> {
    let _control = peer::greet(conn, Some(announced.signed_header().clone())).await?;
    let mut wire = asked(conn).await?;
    peer::raw(&mut wire, bytes).await?;
    peer::finish(&mut wire)?;
    peer::closed(conn).await
}

/// The stream on which the daemon asks for an announced snapshot. Where it asks for a machine, it gets no answer.
pub(crate) async fn asked(conn: &Connection) -> Result<Wire> {
    loop {
        let mut wire = peer::accept(conn).await?;
        let frame = next(&mut wire).await?;
        if frame.kind != Kind::Resolve {
            let _pull: Pull = frame.expect(Kind::Pull, "Pull")?;
            return Ok(wire);
        }
    }
}

fn text(key: &ClusterKey, web01: MachineId, laptop: &Peer, friend: &Peer, guest: &Peer) -> String {
    let username = if nix::unistd::Uid::effective().is_root() { "username = \"root\"\n" } else { "" };
    format!(
        "[cluster]\nname = \"c\"\nid52 = \"{}\"\nmanager = \"laptop\"\n\
         [network]\nrelays = []\ndiscovery = []\n\
         [machine.laptop]\nid52 = \"{}\"\n\
         [machine.friend]\nid52 = \"{}\"\n\
         [machine.guest]\nid52 = \"{}\"\n\
         [machine.web01]\nid52 = \"{web01}\"\nallow_from = [\"friend\"]\n{username}",
        key.id(),
        laptop.id,
        friend.id,
        guest.id
    )
}

/// An invite to a cluster without relays and discovery, of which nobody but the newcomer's own home is asked.
pub(crate) fn invite(cluster: ClusterId, name: &str) -> Invite {
    Invite {
        cluster,
        name: name.to_owned(),
        secret: ByteArray::new([0; 32]),
        expires_ms: 0,
        addresses: Vec::new(),
        relays: Some(Vec::new()),
        discovery: Some(Vec::new()),
        ca: None,
        pinned: Vec::new(),
        ticket: None,
    }
}
