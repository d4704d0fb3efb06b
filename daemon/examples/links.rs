//! What links cost while nothing is done: clusters of 20, 100 and 400 machines in this process, counted by the kernel in
//! a network of their own. Prints a table, and fails when a figure is over its bar. As root; needs `ip` and `nft`.
//!
//! One cluster has mDNS, which everybody on a network hears; the larger ones do without, since this one process would have
//! to read every question and answer as many times as it has machines.
//!
//!     cargo run --release -p malai-daemon --example links [-- SIZE…]
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use iroh::endpoint::{Connection, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode};
use malai_daemon::admin::{join_begin, join_finish};
use malai_daemon::store::keys::ClusterKey;
use malai_daemon::store::lock::Changes;
use malai_protocol::local::Connection as LiveConnection;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use support::{Machine, home_in, scene};
use tokio::time::Instant;

/// Machines of each cluster, the cluster manager among them, unless told.
const SIZES: [usize; 3] = [20, 100, 400];
/// Machines of the cluster that has mDNS.
const ON_ONE_NETWORK: usize = 20;
/// All machines have their links within so long, on a machine that is slow.
const LINKED: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(100);
/// How long nothing is done before it is counted: what belongs to the start is over.
const SETTLE: Duration = Duration::from_secs(15);
/// How long is counted: as long as machines on one network keep quiet between two questions by mDNS, and a little more.
const IDLE: Duration = Duration::from_secs(65);
/// The most that a link may cost at the manager beyond a bare connection's keep-alive, in bytes a second.
const LINK: f64 = 100.0;
/// The most that a machine other than the manager may send and receive in all, in bytes a second.
const MACHINE: f64 = 1000.0;
/// The machines' ports begin here; the manager has the first.
const PORTS: u16 = 20_000;
/// The ports of the bare connection.
const BARE: [u16; 2] = [19_998, 19_999];
/// The port of multicast DNS.
const MDNS: u16 = 5353;
const ALPN: &[u8] = b"bare";
/// An interface on which packets to all come back to all of this network.
const NETWORK: &str = "link set lo up\n\
    link add v0 type veth peer name v1\n\
    addr add 10.99.0.1/24 dev v0\n\
    link set v0 up\n\
    link set v1 up\n\
    route add 224.0.0.0/4 dev v0\n";
/// Bytes of IP packets by the ports that they come from and go to: each packet is seen once, as it leaves.
const COUNTERS: &str = "table ip links {
  set sent { type inet_service; flags dynamic; size 65535; counter; }
  set received { type inet_service; flags dynamic; size 65535; counter; }
  chain leaving { type filter hook output priority 0; policy accept;
    meta l4proto udp add @sent { udp sport }
    meta l4proto udp add @received { udp dport }
  }
}
";

fn main() -> Result<()> {
    let words = std::env::args().skip(1).map(|word| word.parse().with_context(|| format!("{word} is no size")));
    let sizes: Vec<usize> = words.collect::<Result<_>>()?;
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    ensure!(sizes.iter().all(|size| (2..=4096).contains(size)), "a size is between 2 and 4096");
    // Before there is a second thread, which would stay in the old network.
    unshare(CloneFlags::CLONE_NEWNET).context("a network of its own needs root")?;
    feed("ip", &["-batch", "-"], NETWORK)?;
    feed("nft", &["-f", "-"], COUNTERS)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot open more files")?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(&sizes))
}

/// All sizes, one after the other, beside one bare connection.
async fn measure(sizes: &[usize]) -> Result<()> {
    let bare = Bare::connect().await?;
    println!("\n## Idle links\n");
    println!(
        "Bytes of IP packets a second, in both directions, over {} s in which nothing happens: of one connection between",
        IDLE.as_secs()
    );
    println!("two bare endpoints, which iroh keeps alive, and of links. All machines are in one process.\n");
    println!(
        "| machines | bare connection | link, at the manager | link minus bare | mDNS in total | machine in total: mean | max |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut over = String::new();
    let cases = sizes.iter().map(|size| (*size, false)).chain([(ON_ONE_NETWORK, true)]);
    for (size, mdns) in cases {
        let machines = cluster(size, mdns).await?;
        tokio::time::sleep(SETTLE).await;
        let begun_ms = now_ms()?;
        let before = Count::take()?;
        tokio::time::sleep(IDLE).await;
        let figures = Figures::new(&before, &Count::take()?, (size, mdns));
        println!("{figures}");
        figures.check(&mut over)?;
        // A machine that is slow to answer has its link all the same; one that was lost is younger than the count.
        all_linked(&machines, Some(begun_ms)).await?;
        try_join_all(machines.into_iter().map(Machine::stop)).await?;
    }
    ensure!(bare.conn.close_reason().is_none(), "the bare connection was lost");
    ensure!(over.is_empty(), "{over}");
    Ok(())
}

/// A connection of two endpoints that have nothing to say to each other.
struct Bare {
    conn: Connection,
    _others: (Connection, Endpoint, Endpoint),
}

impl Bare {
    async fn connect() -> Result<Self> {
        let bind = async |port: u16| {
            let builder =
                Endpoint::builder(presets::Minimal).alpns(vec![ALPN.to_vec()]).relay_mode(RelayMode::Disabled);
            anyhow::Ok(builder.clear_ip_transports().bind_addr((Ipv4Addr::LOCALHOST, port))?.bind().await?)
        };
        let (one, other) = (bind(BARE[0]).await?, bind(BARE[1]).await?);
        let address = EndpointAddr::new(other.id()).with_ip_addr(SocketAddr::from((Ipv4Addr::LOCALHOST, BARE[1])));
        let accept = async { anyhow::Ok(other.accept().await.context("closed")?.await?) };
        let connect = async { anyhow::Ok(one.connect(address, ALPN).await?) };
        let (conn, accepted) = tokio::try_join!(connect, accept)?;
        Ok(Self { conn, _others: (accepted, one, other) })
    }
}

/// A private cluster of so many machines, which all have their links; the first is the manager.
async fn cluster(size: usize, mdns: bool) -> Result<Vec<Machine>> {
    let key = ClusterKey::generate()?;
    let discovery = if mdns { "\"mdns\"" } else { "" };
    let mut text = format!(
        "[cluster]\nname = \"c\"\nid52 = \"{}\"\nmanager = \"m0\"\n[network]\nrelays = []\ndiscovery = [{discovery}]\n",
        key.id()
    );
    let mut homes = Vec::new();
    for number in 0..size {
        let dir = tempfile::Builder::new().prefix("m").tempdir()?;
        let home = home_in(&dir);
        let id = join_begin(&Changes::begin(&home)?, &scene::invite(key.id(), "c"), None)?.machine_key.id();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS + u16::try_from(number)?));
        std::fs::write(home.settings(), format!("listen = \"{listen}\"\n"))?;
        writeln!(text, "[machine.m{number}]\nid52 = \"{id}\"\naddresses = [\"{listen}\"]")?;
        homes.push(dir);
    }
    let snapshot = key.sign(1, 1, text)?;
    let mut machines = Vec::new();
    for dir in homes {
        join_finish(&Changes::begin(&home_in(&dir))?, "c", &snapshot)?;
        machines.push(Machine::start_in(dir).await?);
    }
    all_linked(&machines, None).await?;
    Ok(machines)
}

/// Waits until all but the first machine have their links, proven by traffic; none may be younger than this.
async fn all_linked(machines: &[Machine], since_ms: Option<u64>) -> Result<()> {
    let deadline = Instant::now() + LINKED;
    for machine in machines.iter().skip(1) {
        let link = loop {
            if let Some(link) = link(machine).await? {
                break link;
            }
            ensure!(Instant::now() < deadline, "not all machines have a link within {LINKED:?}");
            tokio::time::sleep(LOOK).await;
        };
        ensure!(since_ms.is_none_or(|since_ms| link.since_ms <= since_ms), "a link was lost meanwhile");
    }
    Ok(())
}

/// A machine's link.
async fn link(machine: &Machine) -> Result<Option<LiveConnection>> {
    let others = machine.cluster().await?.machines;
    Ok(others.into_iter().find(|other| other.name == "m0").and_then(|manager| manager.connection))
}

/// Milliseconds since the epoch.
fn now_ms() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

/// Bytes since the start, by port.
struct Count {
    sent: BTreeMap<u16, u64>,
    received: BTreeMap<u16, u64>,
}

impl Count {
    fn take() -> Result<Self> {
        Ok(Self { sent: listed("sent")?, received: listed("received")? })
    }

    /// Bytes that a port sent and received.
    fn of(&self, port: u16) -> u64 {
        [&self.sent, &self.received].iter().filter_map(|counts| counts.get(&port)).sum()
    }
}

/// Bytes a second.
struct Figures {
    size: usize,
    bare: f64,
    link: f64,
    /// Absent = nobody has it.
    mdns: Option<f64>,
    mean: f64,
    most: f64,
}

impl Figures {
    fn new(before: &Count, after: &Count, (size, has_mdns): (usize, bool)) -> Self {
        let rate = |bytes: u64| bytes as f64 / IDLE.as_secs_f64();
        let of = |port| rate(after.of(port).saturating_sub(before.of(port)));
        let sent = |count: &Count| count.sent.get(&MDNS).copied().unwrap_or_default();
        // Everybody hears it, so that it counts in full at each machine.
        let mdns = rate(sent(after).saturating_sub(sent(before)));
        let others: Vec<f64> = (PORTS + 1..).take(size - 1).map(|port| of(port) + mdns).collect();
        let links = others.len() as f64;
        Self {
            size,
            bare: of(BARE[0]),
            link: of(PORTS) / links,
            mdns: has_mdns.then_some(mdns),
            mean: others.iter().sum::<f64>() / links,
            most: others.iter().copied().fold(0.0, f64::max),
        }
    }

    /// Adds what is over its bar, and refuses figures that count nothing.
    fn check(&self, over: &mut String) -> Result<()> {
        let Self { size, bare, link, mdns, most, .. } = self;
        ensure!(*bare > 0.0 && *link > 0.0 && *mdns != Some(0.0), "nothing was counted: {self}");
        if link - bare > LINK {
            writeln!(over, "{size} machines: a link costs {:.0} B/s beyond the keep-alive, over {LINK}", link - bare)?;
        }
        if *most > MACHINE {
            writeln!(over, "{size} machines: one of them has {most:.0} B/s, over {MACHINE}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { size, bare, link, mdns, mean, most } = self;
        let mdns = mdns.map_or_else(|| "-".to_owned(), |mdns| format!("{mdns:.0}"));
        write!(f, "| {size} | {bare:.0} | {link:.0} | {:.0} | {mdns} | {mean:.0} | {most:.0} |", link - bare)
    }
}

/// The counters of one set.
fn listed(set: &str) -> Result<BTreeMap<u16, u64>> {
    let output =
        Command::new("nft").args(["-j", "list", "set", "ip", "links", set]).output().context("cannot run nft")?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    let listing: Value = serde_json::from_slice(&output.stdout).context("nft printed no JSON")?;
    let sets = listing.get("nftables").and_then(Value::as_array).context("nft lists no sets")?;
    let elements = sets.iter().filter_map(|entry| entry.pointer("/set/elem")?.as_array()).flatten();
    let count = |element: &Value| {
        let port = element.pointer("/elem/val")?.as_u64()?.try_into().ok()?;
        Some((port, element.pointer("/elem/counter/bytes")?.as_u64()?))
    };
    elements.map(|element| count(element).with_context(|| format!("cannot read nft's element {element}"))).collect()
}

/// Runs a program on this input.
fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    ensure!(child.wait()?.success(), "{program} refused");
    Ok(())
}
