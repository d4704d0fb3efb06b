//! Members that say they are where no machine is: nobody is sent there.

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};

use anyhow::{Context, Result, ensure};
use malai_daemon::store;
use malai_protocol::codec::Kind;
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::id::MachineId;
use malai_protocol::peer::{Announce, Hello, Resolve, Resolved};

use crate::support::peer::{self, Peer, Wire, hello, open, send};
use crate::support::scene::Scene;
use crate::support::{Machine, follow, next, spec, until};

/// Sockets of this host at which nothing of malai listens.
struct Traps {
    datagrams: Vec<UdpSocket>,
    streams: Vec<TcpListener>,
}

impl Traps {
    fn set() -> Result<Self> {
        let datagrams = ["127.0.0.1:0", "127.9.9.9:0"].map(UdpSocket::bind);
        let streams = ["127.0.0.1:0", "127.0.0.1:0"].map(TcpListener::bind);
        let traps = Self {
            datagrams: Vec::from(datagrams).into_iter().collect::<Result<_, _>>()?,
            streams: Vec::from(streams).into_iter().collect::<Result<_, _>>()?,
        };
        traps.datagrams.iter().try_for_each(|trap| trap.set_nonblocking(true))?;
        traps.streams.iter().try_for_each(|trap| trap.set_nonblocking(true))?;
        Ok(traps)
    }

    /// What a hostile member says of itself: these traps, and addresses that no machine of the cluster has.
    fn named(&self) -> Result<Vec<String>> {
        let [first, second] = &self.datagrams[..] else { anyhow::bail!("two") };
        let [plain, tls] = &self.streams[..] else { anyhow::bail!("two") };
        Ok(vec![
            first.local_addr()?.to_string(),
            format!("[::ffff:127.9.9.9]:{}", second.local_addr()?.port()),
            "169.254.169.254:80".to_owned(),
            "224.0.0.251:5353".to_owned(),
            "0.0.0.0:4001".to_owned(),
            format!("http://{}/", plain.local_addr()?),
            format!("https://{}/", tls.local_addr()?),
            "https://relay.example.net/".to_owned(),
        ])
    }

    fn are_empty(&self) -> Result<()> {
        for trap in &self.datagrams {
            let got = trap.recv(&mut [0; 64]);
            ensure!(got.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "{trap:?} got {got:?}");
        }
        for trap in &self.streams {
            let got = trap.accept();
            ensure!(got.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "{trap:?} got {got:?}");
        }
        Ok(())
    }
}

/// Tries a command on `friend`, which is nowhere, and returns why it cannot be reached, which names all that was tried.
async fn tried(web01: &Machine) -> Result<String> {
    let failure = follow(web01.begin("friend", &spec(&["true"])).await?).await?.end.expect_err("reached");
    let failure = failure.context("a reason")?;
    ensure!(failure.kind == FailureKind::Unreachable, "{failure}");
    Ok(failure.message)
}

async fn nobody_is_sent_there(web01: &Machine, traps: &Traps, what: &str) -> Result<()> {
    let message = tried(web01).await?;
    for address in traps.named()? {
        ensure!(!message.contains(address.trim_end_matches('/')), "{what}: {address} was tried: {message}");
    }
    traps.are_empty().context(what.to_owned())
}

/// A connection of this peer with this greeting.
async fn greeted(scene: &Scene, from: &Peer, addresses: Vec<String>) -> Result<(iroh::endpoint::Connection, Wire)> {
    let conn = from.dial(&scene.web01).await?;
    let mut control = open(&conn).await?;
    send(&mut control, Kind::PeerHello, &Hello { addresses, ..hello(None) }).await?;
    let _theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
    Ok((conn, control))
}

async fn seen(scene: &Scene, id: MachineId) -> Result<bool> {
    let cluster = scene.web01.cluster().await?;
    let machine = cluster.machines.iter().find(|machine| machine.id == id).context("a machine")?;
    Ok(machine.last_seen_ms.is_some() && machine.connection.is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_says_of_itself_sends_nobody_to_where_no_machine_of_the_cluster_is() -> Result<()> {
    let scene = Scene::new().await?;
    let traps = Traps::set()?;
    for by_announcement in [false, true] {
        let first = if by_announcement { Vec::new() } else { traps.named()? };
        let (conn, mut control) = greeted(&scene, &scene.friend, first).await?;
        if by_announcement {
            let header = scene.sign_as(1, &scene.text())?.signed_header().clone();
            send(&mut control, Kind::Announce, &Announce { addresses: traps.named()?, ..Announce::of(header) }).await?;
        }
        // It was heard: what came before is taken in.
        peer::ping(&conn).await?;
        conn.close(0u32.into(), b"");
        until("it is gone", || seen(&scene, scene.friend.id)).await?;
        nobody_is_sent_there(&scene.web01, &traps, if by_announcement { "Announce" } else { "Hello" }).await?;
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cache_says_sends_nobody_to_where_no_machine_of_the_cluster_is() -> Result<()> {
    let scene = Scene::new().await?;
    let traps = Traps::set()?;
    let Scene { web01, friend, laptop, .. } = scene;
    let dir = web01.stop().await?;
    let path = crate::support::home_in(&dir).cluster("c").peers();
    let poisoned = || anyhow::Ok(store::peers::Peer { addresses: traps.named()?, seen_ms: 7 });
    // The manager is dialled by itself, from the start on.
    store::peers::save(&path, &[(friend.id, poisoned()?), (laptop.id, poisoned()?)].into())?;
    let web01 = Machine::start_in(dir).await?;
    nobody_is_sent_there(&web01, &traps, "the cache").await?;
    web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_directory_says_sends_nobody_to_a_relay_or_to_what_is_no_machine() -> Result<()> {
    let scene = Scene::new().await?;
    let traps = Traps::set()?;
    let (conn, _control) = greeted(&scene, &scene.laptop, Vec::new()).await?;
    // A machine on this host may name others on it, so this one leaves those addresses out.
    let addresses: Vec<String> = traps.named()?.into_iter().filter(|address| !address.contains("127.")).collect();
    let answering = tokio::spawn(async move {
        loop {
            let mut wire = peer::accept(&conn).await?;
            let frame = next(&mut wire).await?;
            if frame.kind == Kind::Resolve {
                let _asked: Resolve = frame.decode()?;
                let told = Resolved { addresses: addresses.clone(), said_by: None, heard_ms_ago: 0 };
                send(&mut wire, Kind::Resolved, &told).await?;
            }
        }
        #[allow(unreachable_code, reason = "it gives the type")]
        anyhow::Ok(())
    });
    nobody_is_sent_there(&scene.web01, &traps, "the directory").await?;
    answering.abort();
    scene.web01.stop().await?;
    Ok(())
}
