//! What a session notices of floods: how long an echo takes on a cluster manager while strangers greet it, keys show it
//! invites that do not exist, and a member asks and opens streams, each as fast as it can. Prints a table; fails when a
//! flood is served faster than its pace, or the session loses a byte. Whoever floods gets only the time of the processors
//! that nobody else wants, as if it had its own: what is measured is what the flood costs the daemon.
//!
//!     cargo run --release -p malai-daemon --example flood
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Command;
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
use malai_protocol::id::MachineId;
use malai_protocol::peer::{ALPN, JOIN_ALPN, Redeem, Resolve, VERSION};
use malai_protocol::session::{Ack, Started};
use malai_protocol::snapshot::SignedHeader;
use serde_bytes::ByteArray;
use support::peer::{self, Got, Peer, Wire, got, greet, open, ping, raw, send};
use support::{Machine, follow, followed, next};
use tokio::runtime::{Builder, Handle};
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
const QUESTIONS: (u64, f64) = (32, 8.0);

fn main() -> Result<()> {
    // The flooders' runtime: its thread runs when nothing else does.
    let idle = Builder::new_multi_thread().worker_threads(1).enable_all().on_thread_start(yield_to_all).build()?;
    let handle = idle.handle().clone();
    let result = Builder::new_multi_thread().enable_all().build()?.block_on(measure_all(handle));
    idle.shutdown_background();
    result
}

/// Gives this thread the policy `SCHED_IDLE`.
fn yield_to_all() {
    let thread = nix::unistd::gettid().to_string();
    let set = Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status();
    assert!(set.is_ok_and(|status| status.success()), "no `chrt` of util-linux, or it failed");
}

async fn measure_all(idle: Handle) -> Result<()> {
    let laptop = Arc::new(Machine::start().await?);
    laptop.init("laptop").await?;
    let (friend, snapshot) = Peer::join(&laptop, "friend", &["admins"]).await?;
    let conn = friend.dial(&laptop).await?;
    let wire = peer::exec(&conn, snapshot.header().cluster, &followed(&["cat"])).await?;
    let mut session = Session::begin(wire).await?;
    println!("\n## Floods\n");
    println!(
        "The echo of a session at the cluster manager, every {} ms, without and during floods.",
        PAUSE.as_millis()
    );
    println!("The flooding threads run on the same processors, but only when nothing else wants them.\n");
    println!("| flood | tried | served | limit | echo p50 | p99 | max |\n|---|---|---|---|---|---|---|");
    println!("| none | - | - | - | {} |", spread(&session.echoes().await?));
    strangers(&idle, &laptop, &mut session).await?;
    member(&idle, &laptop, friend.id, &mut session).await?;
    session.end().await?;
    Arc::into_inner(laptop).context("it is still flooded")?.stop().await?;
    Ok(())
}

async fn strangers(idle: &Handle, laptop: &Machine, session: &mut Session) -> Result<()> {
    let (machine, desk) = (laptop.address().await?, laptop.desk().await?);
    // Only who shows a newer snapshot of this cluster is greeted back; what was asked for then never comes.
    let key = ClusterKey::load(&laptop.home.cluster("c").cluster_key())?.context("no cluster key")?;
    let header = key.sign(u64::MAX, 1, "x".into())?.signed_header().clone();
    let mut flood = Flood::new("strangers greet", GREETINGS, FLOODERS);
    for _ in 0..FLOODERS {
        flood.start(idle, greet_on(machine.clone(), header.clone(), flood.counts()));
    }
    flood.measure(session).await?;
    let mut flood = Flood::new("strangers show invites that do not exist", INVITES, FLOODERS);
    for _ in 0..FLOODERS {
        flood.start(idle, guess_on(desk.clone(), flood.counts()));
    }
    flood.measure(session).await
}

async fn member(idle: &Handle, laptop: &Arc<Machine>, other: MachineId, session: &mut Session) -> Result<()> {
    let machine = Arc::clone(laptop);
    let joining = async move {
        let (guest, _) = Peer::join(&machine, "guest", &[]).await?;
        let conn = guest.dial(&machine).await?;
        anyhow::Ok((guest, conn))
    };
    let (_guest, conn) = idle.spawn(joining).await??;
    let mut flood = Flood::new("a member pings on 64 streams at once", PINGS, 1);
    for _ in 0..STREAMS {
        flood.start(idle, ping_on(conn.clone(), flood.counts()));
    }
    flood.measure(session).await?;
    let mut flood = Flood::new("a member sends nonsense on 64 streams at once", PINGS, 1);
    for _ in 0..STREAMS {
        flood.start(idle, babble_on(conn.clone(), flood.counts()));
    }
    flood.measure(session).await?;
    let mut flood = Flood::new("a member asks for another machine's addresses on 64 streams at once", QUESTIONS, 1);
    for _ in 0..STREAMS {
        flood.start(idle, ask_on(conn.clone(), other, flood.counts()));
    }
    flood.measure(session).await
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

    fn start(&mut self, idle: &Handle, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.tasks.spawn_on(task, idle);
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
async fn greet_on(address: EndpointAddr, header: SignedHeader, counts: Arc<Counts>) -> Result<()> {
    let stranger = Peer::new().await?;
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
async fn guess_on(address: EndpointAddr, counts: Arc<Counts>) -> Result<()> {
    let guesser = Peer::new().await?;
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

/// Asks where another machine is, again and again. Served = told.
async fn ask_on(conn: Connection, machine: MachineId, counts: Arc<Counts>) -> Result<()> {
    loop {
        counts.tried.fetch_add(1, Ordering::Relaxed);
        let mut wire = open(&conn).await?;
        send(&mut wire, Kind::Resolve, &Resolve { machine, hops: 0 }).await?;
        peer::finish(&mut wire)?;
        if next(&mut wire).await?.kind == Kind::Resolved {
            counts.served.fetch_add(1, Ordering::Relaxed);
        }
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
