//! The cluster's own directory: what it tells, what it takes from others, and members that misuse it.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use iroh::address_lookup::EndpointInfo;
use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::{Hello, RESET_PROTOCOL, Resolve, Resolved};
use malai_protocol::session::{ExecSpec, Sent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::peer::{self, Got, Peer, Wire, accept, exec, got, hello, open, raw, send};
use crate::support::scene::Scene;
use crate::support::{SOON, followed, next, spec, until};

/// Questions at once, as docs/protocol.md has it.
const AT_ONCE: usize = 32;

/// Where a peer is.
fn address(peer: &Peer) -> Result<String> {
    Ok(peer.endpoint.bound_sockets().first().context("a socket")?.to_string())
}

/// A connection to the daemon whose greeting says where the peer is, or what else it is to say.
async fn greeted(scene: &Scene, from: &Peer, hello: &Hello) -> Result<(Connection, Wire)> {
    let conn = from.dial(&scene.web01).await?;
    let mut control = open(&conn).await?;
    send(&mut control, Kind::PeerHello, hello).await?;
    let _theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
    Ok((conn, control))
}

async fn asked(conn: &Connection, machine: MachineId, hops: u8) -> Result<Frame> {
    let mut wire = open(conn).await?;
    send(&mut wire, Kind::Resolve, &Resolve { machine, hops }).await?;
    peer::finish(&mut wire)?;
    next(&mut wire).await
}

async fn resolved(conn: &Connection, machine: MachineId, hops: u8) -> Result<Resolved> {
    Ok(asked(conn, machine, hops).await?.expect(Kind::Resolved, "Resolved")?)
}

/// The next question that the daemon asks over this connection.
async fn question(conn: &Connection) -> Result<(Wire, Resolve)> {
    loop {
        let mut wire = accept(conn).await?;
        let frame = next(&mut wire).await?;
        if frame.kind == Kind::Resolve {
            return Ok((wire, frame.decode()?));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_told_where_another_is_and_how_long_ago_it_was_heard() -> Result<()> {
    let scene = Scene::new().await?;
    let (friend, guest) = (&scene.friend, scene.guest.dial(&scene.web01).await?);
    ensure!(resolved(&guest, friend.id, 0).await? == Resolved::default(), "nobody knows it yet");
    let told = Hello { addresses: vec![address(friend)?], ..hello(None) };
    let (conn, _control) = greeted(&scene, friend, &told).await?;
    let live = Resolved { addresses: told.addresses.clone(), said_by: None, heard_ms_ago: 0 };
    until("it is told", || async { Ok(resolved(&guest, friend.id, 0).await? == live) }).await?;
    conn.close(0u32.into(), b"");
    until("it is known to be gone", || async { Ok(resolved(&guest, friend.id, 0).await?.heard_ms_ago > 0) }).await?;
    ensure!(resolved(&guest, friend.id, 0).await?.addresses == told.addresses);
    // Of itself it tells what it greets with; of those who are not in the config, nothing.
    ensure!(!resolved(&guest, scene.web01_id, 0).await?.addresses.is_empty());
    ensure!(resolved(&guest, Peer::new().await?.id, 1).await? == Resolved::default());
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_never_named_nor_asked() -> Result<()> {
    let scene = Scene::new().await?;
    let agent = Hello { addresses: vec![address(&scene.friend)?], caller_only: true, ..hello(None) };
    let (conn, _control) = greeted(&scene, &scene.friend, &agent).await?;
    peer::ping(&conn).await?;
    let guest = scene.guest.dial(&scene.web01).await?;
    ensure!(resolved(&guest, scene.friend.id, 0).await? == Resolved::default());
    // Nor is it asked for another one: the answer comes at once, and no stream comes to it.
    ensure!(resolved(&guest, scene.laptop.id, 1).await? == Resolved::default());
    ensure!(timeout(std::time::Duration::from_millis(50), conn.accept_bi()).await.is_err(), "a stream was opened");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_passed_on_once_and_the_answer_says_who_said_it() -> Result<()> {
    let scene = Scene::new().await?;
    let (laptop, _control) = greeted(&scene, &scene.laptop, &hello(None)).await?;
    let guest = scene.guest.dial(&scene.web01).await?;
    let known = Resolved { addresses: vec!["192.0.2.7:4001".into()], said_by: None, heard_ms_ago: 7 };
    let answering = tokio::spawn({
        let known = known.clone();
        async move {
            let (mut wire, asked) = question(&laptop).await?;
            send(&mut wire, Kind::Resolved, &known).await?;
            anyhow::Ok((asked, laptop))
        }
    });
    let answer = resolved(&guest, scene.friend.id, 1).await?;
    ensure!(answer == Resolved { said_by: Some(scene.laptop.id), ..known }, "{answer:?}");
    let (asked, laptop) = answering.await??;
    ensure!(asked == Resolve { machine: scene.friend.id, hops: 0 }, "{asked:?}");
    // Without hops left nobody is asked.
    ensure!(resolved(&guest, scene.friend.id, 0).await? == Resolved::default());
    ensure!(timeout(std::time::Duration::from_millis(50), laptop.accept_bi()).await.is_err(), "it was passed on");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lies_first_keeps_nothing_true_from_being_told() -> Result<()> {
    let scene = Scene::new().await?;
    let away = Peer::new().await?;
    scene.publish(&format!("{}[machine.away]\nid52 = \"{}\"\n", scene.text(), away.id)).await?;
    let (laptop, _control) = greeted(&scene, &scene.laptop, &hello(None)).await?;
    let (friend, _other_control) = greeted(&scene, &scene.friend, &hello(None)).await?;
    let guest = scene.guest.dial(&scene.web01).await?;
    let (lie, truth) = ("192.0.2.7:4001".to_owned(), "192.0.2.8:4002".to_owned());
    let (lied, is_lied) = tokio::sync::oneshot::channel();
    let lying = tokio::spawn({
        let told = Resolved { addresses: vec![lie.clone()], said_by: None, heard_ms_ago: 0 };
        async move {
            let (mut wire, _) = question(&laptop).await?;
            send(&mut wire, Kind::Resolved, &told).await?;
            ensure!(lied.send(()).is_ok(), "nobody waits");
            anyhow::Ok((wire, laptop))
        }
    });
    let honest = tokio::spawn({
        let told = Resolved { addresses: vec![truth.clone()], said_by: None, heard_ms_ago: 60_000 };
        async move {
            let (mut wire, _) = question(&friend).await?;
            is_lied.await?;
            send(&mut wire, Kind::Resolved, &told).await?;
            anyhow::Ok((wire, friend))
        }
    });
    let answer = resolved(&guest, away.id, 1).await?;
    ensure!(answer.addresses.contains(&truth) && answer.addresses.contains(&lie), "{answer:?}");
    let (_liar, _honest) = (lying.await??, honest.await??);
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_answer_what_is_passed_on_holds_nobody_up() -> Result<()> {
    let scene = Scene::new().await?;
    let (laptop, _control) = greeted(&scene, &scene.laptop, &hello(None)).await?;
    let guest = scene.guest.dial(&scene.web01).await?;
    // It takes the question, and says nothing.
    let silent = tokio::spawn(async move { question(&laptop).await.map(|(wire, _)| (laptop, wire)) });
    ensure!(resolved(&guest, scene.friend.id, 1).await? == Resolved::default());
    let _held = silent.await??;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_one_hop_is_against_the_protocol() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.guest.dial(&scene.web01).await?;
    for hops in [2, 255] {
        let mut wire = open(&conn).await?;
        send(&mut wire, Kind::Resolve, &Resolve { machine: scene.friend.id, hops }).await?;
        let answer = got(&mut wire).await?;
        ensure!(matches!(answer, Got::Reset(code) if code == u64::from(RESET_PROTOCOL)), "{hops}: {answer:?}");
    }
    peer::ping(&conn).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_the_config_switches_off_tells_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    scene.publish(&scene.text().replace("discovery = []", "discovery = []\ndirectory = false")).await?;
    // The settings of the network are new: the daemon binds anew a moment later.
    until("it is refused", || async {
        let conn = scene.guest.dial(&scene.web01).await?;
        let answer = asked(&conn, scene.web01_id, 0).await;
        conn.close(0u32.into(), b"");
        let Ok(frame) = answer else { return Ok(false) };
        Ok(frame.kind == Kind::Refused && frame.decode::<Failure>()?.kind == FailureKind::Denied)
    })
    .await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_questions_is_refused_as_busy_and_a_running_session_goes_on() -> Result<()> {
    let scene = Scene::new().await?;
    let (busy, friend) = (scene.guest.dial(&scene.web01).await?, scene.friend.dial(&scene.web01).await?);
    let mut session = exec(&friend, scene.key.id(), &ExecSpec { stdin: true, ..spec(&["cat"]) }).await?;
    while next(&mut session).await?.kind != Kind::Started {}
    let begun = std::time::Instant::now();
    let mut flood = JoinSet::new();
    for number in 0..2000u16 {
        let (conn, machine) = (busy.clone(), scene.laptop.id);
        flood.spawn(async move { asked(&conn, machine, u8::from(number % 2 == 0)).await });
    }
    // Line by line, each of which waits for the one before.
    for _ in 0..50 {
        session.send(Frame::data(Kind::Stdin, "line\n".into())).await?;
        while next(&mut session).await?.kind != Kind::Stdout {}
    }
    let (mut answered, mut refused) = (0, 0);
    while let Some(frame) = flood.join_next().await {
        let frame = frame??;
        match frame.kind {
            Kind::Resolved => answered += 1,
            Kind::Refused if frame.decode::<Failure>()?.kind == FailureKind::Busy => refused += 1,
            other => anyhow::bail!("{other:?}"),
        }
    }
    let most = AT_ONCE + 8 * (begun.elapsed().as_secs() as usize + 1);
    ensure!(answered >= AT_ONCE / 4 && answered <= most, "{answered} were answered, {refused} refused");
    // Another member's questions are another matter.
    resolved(&friend, scene.guest.id, 0).await?;
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

/// Answers the daemon's questions where this machine is with this address, until the connection ends.
async fn says(conn: Connection, machine: MachineId, address: String) -> Result<()> {
    loop {
        let (mut wire, asked) = question(&conn).await?;
        let addresses = if asked.machine == machine { vec![address.clone()] } else { Vec::new() };
        send(&mut wire, Kind::Resolved, &Resolved { addresses, said_by: None, heard_ms_ago: 0 }).await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lies_about_where_a_machine_is_costs_a_failed_attempt_and_nothing_else() -> Result<()> {
    let scene = Scene::new().await?;
    // The manager names an address where somebody else answers, and one more where nobody does.
    let other = Peer::new().await?;
    let (laptop, _control) = greeted(&scene, &scene.laptop, &hello(None)).await?;
    let lie = tokio::spawn(says(laptop, scene.friend.id, address(&other)?));
    let impostor = tokio::spawn({
        let endpoint = other.endpoint.clone();
        async move { endpoint.accept().await.context("closed")?.await.map_err(anyhow::Error::from) }
    });
    let mut socket = scene.web01.begin("friend", &followed(&["true"])).await?;
    // Whoever answers there has another key, so that the handshake with it comes to nothing.
    let refused = timeout(SOON, impostor).await.context("the lie was not even tried")??;
    ensure!(refused.is_err(), "a machine with another key was taken for the one that is looked for");
    // Another member tells the truth.
    let (guest, _other_control) = greeted(&scene, &scene.guest, &hello(None)).await?;
    let truth = tokio::spawn(says(guest, scene.friend.id, address(&scene.friend)?));
    let conn = timeout(SOON, scene.friend.endpoint.accept()).await?.context("closed")?.await?;
    let sent: Sent = next(&mut socket).await?.expect(Kind::Sent, "Sent")?;
    let reached = sent.reached.context("no way is told")?;
    ensure!(reached.found_by.as_deref() == Some("directory (by guest)"), "{reached:?}");
    ensure!(reached.path == format!("direct {}", address(&scene.friend)?), "{reached:?}");
    conn.close(0u32.into(), b"");
    lie.abort();
    truth.abort();
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_is_as_good_as_none() -> Result<()> {
    let scene = Scene::new().await?;
    let (laptop, _control) = greeted(&scene, &scene.laptop, &hello(None)).await?;
    let (guest, _other_control) = greeted(&scene, &scene.guest, &hello(None)).await?;
    let nonsense: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0xff; 64],
        [&[Kind::Resolved as u8][..], &u32::MAX.to_le_bytes()].concat(),
        [&[Kind::Resolved as u8][..], &2u32.to_le_bytes(), &[0xff; 2]].concat(),
        Frame::control(Kind::Resolved, &Resolved { addresses: vec!["\u{1b}[31m".into(); 8], ..Resolved::default() })?
            .to_bytes()
            .to_vec(),
    ];
    let mut socket = scene.web01.begin("friend", &followed(&["true"])).await?;
    let confusing = tokio::spawn(async move {
        for bytes in nonsense {
            let (mut wire, _) = question(&laptop).await?;
            raw(&mut wire, &bytes).await?;
            peer::finish(&mut wire)?;
        }
        anyhow::Ok(laptop)
    });
    let truth = tokio::spawn(says(guest, scene.friend.id, address(&scene.friend)?));
    let conn = timeout(SOON, scene.friend.endpoint.accept()).await?.context("closed")?.await?;
    let _sent: Sent = next(&mut socket).await?.expect(Kind::Sent, "Sent")?;
    conn.close(0u32.into(), b"");
    confusing.abort();
    truth.abort();
    scene.web01.stop().await?;
    Ok(())
}

/// A discovery server that answers every request with this body; returns its address.
async fn server(body: Vec<u8>) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let mut request = [0; 4096];
            // One read has the whole head of a question; what is published here is nobody's matter.
            if stream.read(&mut request).await.is_ok() {
                drop(stream.write_all(&[head.as_bytes(), &body].concat()).await);
            }
        }
    });
    Ok(format!("http://{address}/pkarr"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discovery_server_that_names_somebody_elses_address_leads_to_nobody_else() -> Result<()> {
    let scene = Scene::new().await?;
    let (other, friend) = (Peer::new().await?, &scene.friend);
    // As friend itself signed it, before another machine got its address.
    let stale = EndpointInfo::new(friend.endpoint.id()).with_ip_addrs(vec![address(&other)?.parse()?]);
    let packet = stale.to_pkarr_signed_packet(friend.endpoint.secret_key(), 1)?;
    let url = server(packet.to_relay_payload()).await?;
    scene.publish(&scene.text().replace("discovery = []", &format!("discovery = [{url:?}]"))).await?;
    let impostor = tokio::spawn({
        let endpoint = other.endpoint.clone();
        async move { endpoint.accept().await.context("closed")?.await.map_err(anyhow::Error::from) }
    });
    let begun = scene.web01.begin("friend", &followed(&["true"])).await;
    let refused = timeout(SOON, impostor).await.context("the server was not asked")??;
    ensure!(refused.is_err(), "a machine with another key was taken for the one that is looked for");
    let (guest, _control) = greeted(&scene, &scene.guest, &hello(None)).await?;
    let truth = tokio::spawn(says(guest, friend.id, address(friend)?));
    let conn = timeout(SOON, friend.endpoint.accept()).await?.context("closed")?.await?;
    let sent: Sent = next(&mut begun?).await?.expect(Kind::Sent, "Sent")?;
    let reached = sent.reached.context("no way is told")?;
    ensure!(reached.found_by.as_deref() == Some("directory (by guest)"), "{reached:?}");
    conn.close(0u32.into(), b"");
    truth.abort();
    scene.web01.stop().await?;
    Ok(())
}
