//! What a session notices of floods: how long an echo takes on a cluster manager while strangers greet it, keys show it
//! invites that do not exist, and a member opens streams, each as fast as it can. Prints a table; fails when a flood is
//! served faster than its pace, or the session loses a byte. Whoever floods takes the same processors as the daemon.
//!
//!     cargo run --release -p malai-daemon --example flood
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::SinkExt;
use iroh::EndpointAddr;
use iroh::endpoint::Connection;
use malai_daemon::store::keys::ClusterKey;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::peer::{ALPN, JOIN_ALPN, Redeem, VERSION};
use malai_protocol::session::{Ack, Started};
use malai_protocol::snapshot::SignedHeader;
use serde_bytes::ByteArray;
use support::peer::{self, Got, Peer, Wire, got, greet, open, ping, raw, send};
use support::{Machine, follow, followed, next};
use tokio::task::JoinSet;

/// A session without a flood is measured for so long, and each flood goes on for as long.
const LASTS: Duration = Duration::from_secs(10);
/// Between two echoes: as fast as somebody types who is in a hurry.
const PAUSE: Duration = Duration::from_millis(10);
/// Keys that flood at once, and streams of a member that floods.
const FLOODERS: usize = 8;
const STREAMS: usize = 64;
/// What the daemon serves of one key: at once, and then in a second.
const GREETINGS: (u64, f64) = (1, 1.0);
const INVITES: (u64, f64) = (4, 1.0);
const PINGS: (u64, f64) = (1024, 1000.0);

#[tokio::main]
async fn main() -> Result<()> {
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    let (friend, snapshot) = Peer::join(&laptop, "friend", &["admins"]).await?;
    let (guest, _) = Peer::join(&laptop, "guest", &[]).await?;
    let conn = friend.dial(&laptop).await?;
    let wire = peer::exec(&conn, snapshot.header().cluster, &followed(&["cat"])).await?;
    let mut session = Session::begin(wire).await?;
    println!("\n## Floods\n");
    println!("A session's echo at the cluster manager, every {} ms, without and during floods.", PAUSE.as_millis());
    println!("Whoever floods is in the same process, and takes the same processors.\n");
    println!("| flood | tried | served | at most | echo p50 | p99 | most |\n|---|---|---|---|---|---|---|");
    println!("| none | - | - | - | {} |", spread(&session.echoes().await?));
    let (machine, desk) = (laptop.address().await?, laptop.desk().await?);

    // Only who shows a newer snapshot of this cluster is greeted back; what was asked for then never comes.
    let key = ClusterKey::load(&laptop.home.cluster("c").cluster_key())?.context("no cluster key")?;
    let header = key.sign(u64::MAX, 1, "x".into())?.signed_header().clone();
    let mut strangers = Flood::new("strangers greet", GREETINGS, FLOODERS);
    for _ in 0..FLOODERS {
        strangers.start(greet_on(Peer::new().await?, machine.clone(), header.clone(), strangers.counts()));
    }
    strangers.measure(&mut session).await?;

    let mut guessers = Flood::new("strangers show invites that do not exist", INVITES, FLOODERS);
    for _ in 0..FLOODERS {
        guessers.start(guess_on(Peer::new().await?, desk.clone(), guessers.counts()));
    }
    guessers.measure(&mut session).await?;

    let mut member = Flood::new("a member pings on 64 streams at once", PINGS, 1);
    let flooding = guest.dial(&laptop).await?;
    for _ in 0..STREAMS {
        member.start(ping_on(flooding.clone(), member.counts()));
    }
    member.measure(&mut session).await?;

    let mut talker = Flood::new("a member talks nonsense on 64 streams at once", PINGS, 1);
    for _ in 0..STREAMS {
        talker.start(babble_on(flooding.clone(), talker.counts()));
    }
    talker.measure(&mut session).await?;
    session.end().await?;
    laptop.stop().await?;
    Ok(())
}

/// What a flood did so far.
#[derive(Debug, Default)]
struct Counts {
    tried: AtomicU64,
    served: AtomicU64,
}

/// Tasks that all do one thing as fast as they can.
struct Flood {
    what: &'static str,
    pace: (u64, f64),
    keys: usize,
    counts: Arc<Counts>,
    tasks: JoinSet<Result<()>>,
}

impl Flood {
    /// Nobody floods yet; so many keys will, each of which is served at this pace.
    fn new(what: &'static str, pace: (u64, f64), keys: usize) -> Self {
        Self { what, pace, keys, counts: Arc::default(), tasks: JoinSet::new() }
    }

    fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    fn start(&mut self, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Prints what the session notices meanwhile, and checks that no key was served faster than its pace.
    async fn measure(mut self, session: &mut Session) -> Result<()> {
        let begun = Instant::now();
        let echoes = session.echoes().await?;
        if let Some(ended) = self.tasks.try_join_next() {
            bail!("{}: the flood ended: {ended:?}", self.what);
        }
        let served = self.counts.served.load(Ordering::Relaxed);
        let tried = self.counts.tried.load(Ordering::Relaxed);
        let (burst, rate) = self.pace;
        // One more of each key may have been on its way before the clock was started.
        let most = self.keys as u64 * (burst + 1 + (rate * begun.elapsed().as_secs_f64()).ceil() as u64);
        self.tasks.shutdown().await;
        println!("| {} | {tried} | {served} | {most} | {} |", self.what, spread(&echoes));
        ensure!(served > 0 && served <= most, "{}: {served} were served, and {most} at most may be", self.what);
        Ok(())
    }
}

/// Connects and greets, again and again. Served = greeted back.
async fn greet_on(stranger: Peer, address: EndpointAddr, header: SignedHeader, counts: Arc<Counts>) -> Result<()> {
    loop {
        counts.tried.fetch_add(1, Ordering::Relaxed);
        // Turned away in the handshake is as good.
        let Ok(conn) = stranger.endpoint.connect(address.clone(), ALPN).await else { continue };
        if greet(&conn, Some(header.clone())).await.is_ok() {
            counts.served.fetch_add(1, Ordering::Relaxed);
        }
        conn.close(0u32.into(), b"");
    }
}

/// Shows a secret that is none, again and again. Served = looked up.
async fn guess_on(guesser: Peer, address: EndpointAddr, counts: Arc<Counts>) -> Result<()> {
    let redeem = Redeem { version: VERSION, secret: ByteArray::new([7; 32]), hostname: "x".into() };
    loop {
        counts.tried.fetch_add(1, Ordering::Relaxed);
        let Ok(conn) = guesser.endpoint.connect(address.clone(), JOIN_ALPN).await else { continue };
        let answered = async {
            let mut wire = open(&conn).await?;
            send(&mut wire, Kind::Redeem, &redeem).await?;
            let refused: Failure = next(&mut wire).await?.expect(Kind::Refused, "Refused")?;
            anyhow::Ok(refused.kind)
        };
        if answered.await.is_ok_and(|kind| kind != FailureKind::Busy) {
            counts.served.fetch_add(1, Ordering::Relaxed);
        }
        conn.close(0u32.into(), b"");
    }
}

/// Pings, again and again. Served = answered.
async fn ping_on(conn: Connection, counts: Arc<Counts>) -> Result<()> {
    loop {
        counts.tried.fetch_add(1, Ordering::Relaxed);
        ping(&conn).await?;
        counts.served.fetch_add(1, Ordering::Relaxed);
    }
}

/// Begins streams with a kind that does not exist, again and again. Served = given up by the other side.
async fn babble_on(conn: Connection, counts: Arc<Counts>) -> Result<()> {
    loop {
        counts.tried.fetch_add(1, Ordering::Relaxed);
        let mut wire = open(&conn).await?;
        raw(&mut wire, &[0xfe, 0, 0, 0, 0]).await?;
        let given_up = got(&mut wire).await?;
        ensure!(matches!(given_up, Got::Reset(_)), "{given_up:?}");
        counts.served.fetch_add(1, Ordering::Relaxed);
    }
}

/// A session with `cat`.
struct Session {
    wire: Wire,
    received: u64,
}

impl Session {
    async fn begin(mut wire: Wire) -> Result<Self> {
        let _started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
        Ok(Self { wire, received: 0 })
    }

    /// How long each echo takes.
    async fn echoes(&mut self) -> Result<Vec<Duration>> {
        let (begun, mut times) = (Instant::now(), Vec::new());
        while begun.elapsed() < LASTS {
            tokio::time::sleep(PAUSE).await;
            times.push(self.echo(times.len()).await?);
        }
        Ok(times)
    }

    async fn echo(&mut self, number: usize) -> Result<Duration> {
        let line = format!("{number:08}\n");
        let begun = Instant::now();
        self.wire.send(Frame::data(Kind::Stdin, line.clone().into())).await?;
        let mut echoed = Vec::new();
        while echoed.len() < line.len() {
            let frame = next(&mut self.wire).await?;
            match frame.kind {
                Kind::Stdout => echoed.extend_from_slice(&frame.payload),
                Kind::StdinAck => {}
                other => bail!("{other:?} came"),
            }
        }
        let time = begun.elapsed();
        ensure!(echoed == line.as_bytes(), "{echoed:?} came back for {line:?}");
        self.received += echoed.len() as u64;
        self.wire.send(Frame::control(Kind::Ack, &Ack { out_offset: self.received })?).await?;
        Ok(time)
    }

    /// Ends the input, and so the command.
    async fn end(mut self) -> Result<()> {
        self.wire.send(Frame::empty(Kind::StdinEof)).await?;
        let ran = follow(self.wire).await?;
        ensure!(ran.end.is_ok(), "{ran:?}");
        Ok(())
    }
}

/// The middle one, that which one in a hundred exceeds, and the longest.
fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    format!("{:.1} ms | {:.1} ms | {:.1} ms", ms(at(50)), ms(at(99)), ms(at(100)))
}
