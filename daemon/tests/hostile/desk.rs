//! Newcomers at the cluster manager's desk, by the wire.

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt};
use iroh::endpoint::{Connection, ConnectionError};
use malai_daemon::store::lock::Changes;
use malai_protocol::codec::{Frame, Kind, MAX_HELLO};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::invite::Invite;
use malai_protocol::local::{CameBy, ClusterInvite, InviteState, Request, Rescan, Response};
use malai_protocol::peer::{ALPN, Announce, Close, JOIN_ALPN, Knock, Open, Redeem, VERSION};
use malai_protocol::snapshot::{Signed, Snapshot};
use serde_bytes::ByteArray;
use tokio::task::JoinSet;

use crate::support::peer::{self, Got, Peer, Wire, closed, got, hello, open, raw, send};
use crate::support::{Machine, next, spec, until};

/// Bounds how long an answer about a large cluster may take.
const FLOODED_INVITE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(300);

/// A cluster manager.
async fn manager() -> Result<Machine> {
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    Ok(laptop)
}

/// Shows an invite's secret over a new connection, and returns the answer.
async fn redeem(laptop: &Machine, peer: &Peer, secret: ByteArray<32>) -> Result<Result<Snapshot, Failure>> {
    let conn = peer.dial_desk(laptop).await?;
    let mut wire = open(&conn).await?;
    send(&mut wire, Kind::Redeem, &Redeem { version: VERSION, secret, hostname: "web01".into() }).await?;
    let mut frame = next(&mut wire).await?;
    if frame.kind == Kind::Refused {
        return Ok(Err(frame.decode()?));
    }
    let _where: Announce = frame.expect(Kind::Announce, "Announce")?;
    frame = next(&mut wire).await?;
    let signed: Signed = frame.expect(Kind::Snapshot, "Snapshot")?;
    let cluster = laptop.cluster().await?.cluster.context("a cluster")?;
    Ok(Ok(signed.verify(&cluster)?))
}

/// Knocks over a new connection, which is returned with the answer.
async fn knock(laptop: &Machine, peer: &Peer) -> Result<(Wire, Connection, Frame)> {
    let conn = peer.dial_desk(laptop).await?;
    let mut wire = open(&conn).await?;
    send(&mut wire, Kind::Knock, &Knock { version: VERSION, hostname: "\u{1b}[2Jhost".into() }).await?;
    let frame = next(&mut wire).await?;
    Ok((wire, conn, frame))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_that_breaks_the_protocol_is_closed_as_such() -> Result<()> {
    let laptop = manager().await?;
    let cluster = laptop.cluster().await?.cluster.context("a cluster")?;
    let bytes =
        |kind, length: usize| [&[kind as u8][..], &u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()].concat();
    let session = [
        Frame::control(Kind::Open, &Open { cluster, generation: 0 })?.to_bytes(),
        Frame::control(Kind::Exec, &spec(&["true"]))?.to_bytes(),
    ];
    let openings = [
        ("nothing but the end", Vec::new()),
        ("garbage", vec![0xff; 4096]),
        ("an unknown kind", vec![0xfe, 0, 0, 0, 0]),
        ("an invite over its cap", bytes(Kind::Redeem, MAX_HELLO + 1)),
        ("an invite of 4 GiB", bytes(Kind::Redeem, usize::MAX)),
        ("an invite that is no CBOR", [bytes(Kind::Redeem, 3), vec![0xff; 3]].concat()),
        ("half an invite", [bytes(Kind::Redeem, 90), vec![0; 30]].concat()),
        ("a greeting", Frame::control(Kind::PeerHello, &hello(None))?.to_bytes().to_vec()),
        ("a session", session.concat()),
        ("a ping", Frame::empty(Kind::Ping).to_bytes().to_vec()),
    ];
    for (what, bytes) in openings {
        let newcomer = Peer::new().await?;
        let conn = newcomer.dial_desk(&laptop).await?;
        let mut wire = open(&conn).await?;
        raw(&mut wire, &bytes).await?;
        peer::finish(&mut wire)?;
        let (code, words) = closed(&conn).await?;
        ensure!(code == Some(Close::Protocol), "{what}: {code:?} {words}");
    }
    let (_newcomer, snapshot) = Peer::join(&laptop, "web01", &[]).await?;
    ensure!(snapshot.text().contains("[machine.web01]"), "{}", snapshot.text());
    laptop.stop().await?;
    Ok(())
}

/// A newcomer that says nothing, or half of something, is closed.
pub(crate) async fn late() -> Result<()> {
    let laptop = manager().await?;
    let (silent, half) = (Peer::new().await?, Peer::new().await?);
    let (one, other) = (silent.dial_desk(&laptop).await?, half.dial_desk(&laptop).await?);
    let mut wire = open(&other).await?;
    raw(&mut wire, &[Kind::Knock as u8, 9]).await?;
    for conn in [&one, &other] {
        let (code, words) = closed(conn).await?;
        ensure!(code == Some(Close::Protocol), "{code:?} {words}");
    }
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_key_speaks_to_newcomers_only_and_a_machine_key_never() -> Result<()> {
    let laptop = manager().await?;
    let stranger = Peer::new().await?;
    let wrong = [(laptop.desk().await?, ALPN), (laptop.address().await?, JOIN_ALPN)];
    for (address, alpn) in wrong {
        let refused = stranger.endpoint.connect(address, alpn).await;
        ensure!(refused.is_err(), "{} was taken", String::from_utf8_lossy(alpn));
    }
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_for_one_key_and_for_its_time_and_nobody_guesses_it() -> Result<()> {
    let laptop = manager().await?;
    let before = laptop.cluster().await?.generation;
    let guessed = redeem(&laptop, &Peer::new().await?, ByteArray::new([1; 32])).await?.expect_err("guessed");
    ensure!(guessed.kind == FailureKind::Denied && guessed.message.contains("unknown invite"), "{guessed}");

    let late = laptop.invite_into("late", &[]).await?;
    let file = laptop.home.cluster("c").invites();
    let expired = std::fs::read_to_string(&file)?.replace(&late.expires_ms.to_string(), "1700000000000");
    let expired = expired.replace("1700000000000", &(late.expires_ms - 3_600_001).to_string());
    std::fs::write(&file, expired)?;
    let refused = redeem(&laptop, &Peer::new().await?, late.secret).await?.expect_err("expired");
    ensure!(refused.kind == FailureKind::Denied && refused.message.contains("expired"), "{refused}");
    ensure!(laptop.cluster().await?.generation == before, "a refused newcomer changed the config");

    let invite = laptop.invite_into("web01", &[]).await?;
    let (first, second) = (Peer::new().await?, Peer::new().await?);
    let once = redeem(&laptop, &first, invite.secret).await??;
    let refused = redeem(&laptop, &second, invite.secret).await?.expect_err("used");
    ensure!(refused.kind == FailureKind::Denied && refused.message.contains("another machine"), "{refused}");
    // A lost reply does not burn it: the same key gets the same answer again.
    let again = redeem(&laptop, &first, invite.secret).await??;
    ensure!(again == once, "another snapshot");
    ensure!(!once.text().contains(&second.id.to_string()));
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_knock_and_the_next_is_told_what_works_without() -> Result<()> {
    let laptop = manager().await?;
    let mut knocking = JoinSet::new();
    let desk = laptop.desk().await?;
    for _ in 0..64 {
        let (peer, desk) = (Peer::new().await?, desk.clone());
        knocking.spawn(async move {
            let conn = peer.endpoint.connect(desk, JOIN_ALPN).await?;
            let mut wire = open(&conn).await?;
            send(&mut wire, Kind::Knock, &Knock { version: VERSION, hostname: "host".into() }).await?;
            let answer = next(&mut wire).await?.kind;
            anyhow::Ok((answer, wire, conn, peer))
        });
    }
    let mut waiting = Vec::new();
    while let Some(knocked) = knocking.join_next().await {
        let (answer, wire, conn, peer) = knocked??;
        ensure!(answer == Kind::Waiting, "{answer:?}");
        waiting.push((wire, conn, peer));
    }
    let late = Peer::new().await?;
    let (_wire, _conn, frame) = knock(&laptop, &late).await?;
    let failure: Failure = frame.expect(Kind::Refused, "Refused")?;
    ensure!(failure.kind == FailureKind::Busy, "{failure}");
    ensure!(failure.hint.is_some_and(|hint| hint.contains(&late.id.to_string())));
    // An invite works all the same.
    let (_newcomer, _) = Peer::join(&laptop, "web01", &[]).await?;
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_knocks_too_often_is_refused_and_one_that_talks_on_is_forgotten() -> Result<()> {
    let laptop = manager().await?;
    let newcomer = Peer::new().await?;
    let (_first, _conn, frame) = knock(&laptop, &newcomer).await?;
    ensure!(frame.kind == Kind::Waiting);
    let (_again, _conn, frame) = knock(&laptop, &newcomer).await?;
    let failure: Failure = frame.expect(Kind::Refused, "Refused")?;
    ensure!(failure.kind == FailureKind::Busy && failure.message.contains("too often"), "{failure}");
    // What a newcomer calls itself is kept as it is; whoever shows it escapes it.
    let pending = laptop.ask(Request::ClusterPending { cluster: "c".into() }).await?;
    let Response::Pending(pending) = pending else { anyhow::bail!("{pending:?}") };
    ensure!(pending.len() == 1 && pending[0].id == newcomer.id, "{pending:?}");
    // One that waits has nothing more to say.
    let talker = Peer::new().await?;
    let (mut wire, _conn, frame) = knock(&laptop, &talker).await?;
    ensure!(frame.kind == Kind::Waiting);
    raw(&mut wire, &vec![0xff; 65536]).await?;
    let answer = got(&mut wire).await?;
    ensure!(matches!(answer, Got::Closed(Some(Close::Protocol))), "{answer:?}");
    laptop.stop().await?;
    Ok(())
}

/// A stranger that says nothing, or the half of something.
async fn says_half(stranger: &Peer, laptop: &Machine, number: u32) -> Result<(Connection, Wire)> {
    let conn = stranger.dial_desk(laptop).await?;
    let mut wire = open(&conn).await?;
    if number.is_multiple_of(3) {
        raw(&mut wire, &[Kind::Knock as u8, 9]).await?;
    }
    Ok((conn, wire))
}

/// A stranger that guesses an invite, is refused, and stays.
async fn guesses(stranger: &Peer, laptop: &Machine) -> Result<(Connection, Wire)> {
    let conn = stranger.dial_desk(laptop).await?;
    let mut wire = open(&conn).await?;
    let guess = Redeem { version: VERSION, secret: ByteArray::new([1; 32]), hostname: String::new() };
    send(&mut wire, Kind::Redeem, &guess).await?;
    let failure: Failure = next(&mut wire).await?.expect(Kind::Refused, "Refused")?;
    // The first ones are looked up, and the others came too soon after them.
    ensure!(matches!(failure.kind, FailureKind::Denied | FailureKind::Busy), "{failure}");
    Ok((conn, wire))
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_say_nothing_keep_nobody_out_that_speaks() -> Result<()> {
    let laptop = manager().await?;
    let (waiting, stranger) = (Peer::new().await?, Peer::new().await?);
    let (_wire, knocked, frame) = knock(&laptop, &waiting).await?;
    ensure!(frame.kind == Kind::Waiting);
    // They have 10 s before they would be closed for saying nothing, and 3 s each for their handshakes.
    let mut silent = Vec::new();
    for wave in 0..5 {
        let numbers = wave * 32..(wave + 1) * 32;
        silent.extend(try_join_all(numbers.map(|number| says_half(&stranger, &laptop, number))).await?);
    }
    // The oldest made room for those that came after them, in time for one that has an invite.
    let code = u64::from(Close::Busy as u32);
    let lost_its_place = |conn: &Connection| matches!(conn.close_reason(), Some(ConnectionError::ApplicationClosed(why)) if why.error_code.into_inner() == code);
    until("one made room", || async { Ok(silent.iter().any(|(conn, _)| lost_its_place(conn))) }).await?;
    let (_newcomer, snapshot) = Peer::join(&laptop, "web01", &[]).await?;
    ensure!(snapshot.text().contains("[machine.web01]"), "{}", snapshot.text());
    // Nor do those that were refused and stay.
    let mut stay = Vec::new();
    for _ in 0..5 {
        stay.extend(try_join_all((0..28).map(|_| guesses(&stranger, &laptop))).await?);
    }
    let (_newcomer, _) = Peer::join(&laptop, "web02", &[]).await?;
    // And who waits for an approval has not lost its place.
    ensure!(knocked.close_reason().is_none(), "{:?}", knocked.close_reason());
    laptop.stop().await?;
    Ok(())
}

/// Makes an invite with this number of uses; returns its id and its secret.
async fn invited(laptop: &Machine, uses: u32) -> Result<(String, ByteArray<32>)> {
    let ask = ClusterInvite {
        cluster: "c".into(),
        name: None,
        uses,
        expires_s: 3600,
        groups: Vec::new(),
        username: Some("root".into()),
    };
    let Response::Invited(invited) = laptop.ask(Request::ClusterInvite(ask)).await? else { bail!("no invite") };
    let invite: Invite = invited.token.parse()?;
    Ok((invited.id, invite.secret))
}

async fn remove(laptop: &Machine, machine: &str, revoke_invite: bool) -> Result<Vec<CameBy>> {
    let request = Request::ClusterRemove { cluster: "c".into(), machine: machine.into(), revoke_invite };
    match laptop.ask(request).await? {
        Response::Changed(changed) => Ok(changed.invites),
        other => bail!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_machine_comes_back_by_its_invite_with_a_new_key_until_the_invite_is_revoked() -> Result<()> {
    let laptop = manager().await?;
    let (id, secret) = invited(&laptop, 5).await?;
    let redeemed = |peer: Result<Peer>| async { redeem(&laptop, &peer?, secret).await };
    let allowed = redeemed(Peer::new().await).await?;
    ensure!(allowed.is_ok(), "{allowed:?}");
    let told = remove(&laptop, "web01", false).await?;
    ensure!(told.len() == 1 && told[0].id == id && told[0].uses_left == 4 && !told[0].revoked, "{told:?}");
    let allowed = redeemed(Peer::new().await).await?;
    ensure!(allowed.is_ok(), "{allowed:?}");
    let told = remove(&laptop, "web01", true).await?;
    ensure!(told.len() == 1 && told[0].id == id && told[0].uses_left == 3 && told[0].revoked, "{told:?}");

    let wrong = redeem(&laptop, &Peer::new().await?, ByteArray::new([9; 32])).await?;
    let shown = redeemed(Peer::new().await).await?;
    let (Err(wrong), Err(shown)) = (&wrong, &shown) else { bail!("{wrong:?} {shown:?}") };
    ensure!(shown.kind == FailureKind::Denied && shown == wrong, "an oracle: {shown}, {wrong}");
    let Response::Invites(list) = laptop.ask(Request::ClusterInvites { cluster: "c".into() }).await? else {
        bail!("no list")
    };
    ensure!(list.len() == 1 && list[0].state == InviteState::Revoked && list[0].redeemed.len() == 2, "{list:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_is_revoked_while_it_is_shown_lets_in_whom_the_list_has_and_nobody_after() -> Result<()> {
    let laptop = manager().await?;
    let (id, secret) = invited(&laptop, 8).await?;
    let newcomers = try_join_all((0..6).map(|_| Peer::new())).await?;
    let shown = newcomers.iter().map(|peer| redeem(&laptop, peer, secret));
    let revoke = laptop.ask(Request::ClusterRevoke { cluster: "c".into(), id: id.clone() });
    let (shown, revoked) = tokio::join!(try_join_all(shown), revoke);
    let Response::Revoked(revoked) = revoked? else { bail!("not revoked") };
    let came = shown?.into_iter().filter(Result::is_ok).count();
    ensure!(revoked.redeemed.len() == came, "{came} came, and the list has {:?}", revoked.redeemed);
    let late = redeem(&laptop, &Peer::new().await?, secret).await?;
    ensure!(late.is_err(), "it lets in after it was revoked");
    let again = laptop.ask(Request::ClusterRevoke { cluster: "c".into(), id }).await?;
    ensure!(matches!(&again, Response::Failed(gone) if gone.message.contains("was revoked before")), "{again:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_lets_nobody_in_is_refused_without_the_lock_that_changes_need() -> Result<()> {
    let laptop = manager().await?;
    let member = Peer::new().await?;
    let (_, used) = invited(&laptop, 1).await?;
    let first = redeem(&laptop, &member, used).await??;
    let (revoked_id, revoked) = invited(&laptop, 1).await?;
    let ask = Request::ClusterRevoke { cluster: "c".into(), id: revoked_id };
    ensure!(matches!(laptop.ask(ask).await?, Response::Revoked(_)));
    // Somebody changes the clusters meanwhile, and takes long for it.
    let changes = Changes::begin(&laptop.home)?;
    let wrong = redeem(&laptop, &Peer::new().await?, ByteArray::new([7; 32])).await?.expect_err("a guess");
    ensure!(wrong.kind == FailureKind::Denied && wrong.message.contains("unknown invite"), "{wrong}");
    let ended = redeem(&laptop, &Peer::new().await?, revoked).await?.expect_err("it was revoked");
    ensure!(ended == wrong, "an oracle: {ended}, {wrong}");
    let late = redeem(&laptop, &Peer::new().await?, used).await?.expect_err("it was used");
    ensure!(late.kind == FailureKind::Denied && late.message.contains("another machine"), "{late}");
    // A newcomer that came by it, and lost the reply, gets it once more.
    ensure!(redeem(&laptop, &member, used).await?? == first, "another snapshot");
    drop(changes);
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_lets_in_from_the_moment_it_is_made_and_not_from_the_moment_it_is_revoked() -> Result<()> {
    let laptop = manager().await?;
    for _ in 0..10 {
        // What was guessed before has the books in memory.
        redeem(&laptop, &Peer::new().await?, ByteArray::new([7; 32])).await?.expect_err("a guess");
        let (id, secret) = invited(&laptop, 2).await?;
        let came = redeem(&laptop, &Peer::new().await?, secret).await?;
        ensure!(came.is_ok(), "{came:?}");
        laptop.ask(Request::ClusterRevoke { cluster: "c".into(), id }).await?;
        let late = redeem(&laptop, &Peer::new().await?, secret).await?;
        ensure!(late.as_ref().is_err_and(|late| late.message.contains("unknown invite")), "{late:?}");
    }
    laptop.stop().await?;
    Ok(())
}

/// Asks as [`Machine::ask`] does, and waits longer: reading a large config takes its time in a build that is not optimized.
async fn ask_patiently(machine: &Machine, request: Request) -> Result<Response> {
    let mut socket = machine.connect().await?;
    socket.send(Frame::control(Kind::Request, &request)?).await?;
    loop {
        let frame = tokio::time::timeout(FLOODED_INVITE_TIMEOUT, socket.next())
            .await
            .context("no answer")?
            .context("it closed")??;
        match frame.expect(Kind::Response, "Response")? {
            Response::Progress(_) => {}
            last => return Ok(last),
        }
    }
}

/// Starts the manager of a cluster with this number of machines.
async fn large(machines: usize) -> Result<Machine> {
    let laptop = manager().await?;
    let config = laptop.config();
    let mut text = std::fs::read_to_string(&config)?;
    for number in 0..machines {
        let id = iroh::SecretKey::from_bytes(blake3::hash(&number.to_le_bytes()).as_bytes()).public();
        let id = malai_protocol::id::MachineId::from_bytes(*id.as_bytes())?;
        text += &format!("[machine.m{number}]\nid52 = \"{id}\"\n");
    }
    std::fs::write(&config, text)?;
    let rescan = Rescan { cluster: None, check: false, yes: false, over: None };
    let answer = ask_patiently(&laptop, Request::Rescan(rescan)).await?;
    ensure!(matches!(answer, Response::Rescanned(_)), "{answer:?}");
    Ok(laptop)
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_guess_do_not_block_an_invite_in_a_cluster_of_5000_machines() -> Result<()> {
    let laptop = large(5000).await?;
    let guessed = std::sync::atomic::AtomicUsize::new(0);
    let guess = || async {
        loop {
            // It is another key each time, since few attempts of one key are looked at.
            let refused =
                redeem(&laptop, &Peer::new().await?, ByteArray::new([7; 32])).await?.err().context("a guess")?;
            ensure!(refused.message.contains("unknown invite"), "{refused}");
            guessed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        #[allow(unreachable_code, reason = "it says what is returned")]
        anyhow::Ok(())
    };
    let invites = async {
        for _ in 0..3 {
            let before = guessed.load(std::sync::atomic::Ordering::Relaxed);
            until("somebody guesses", || async { Ok(guessed.load(std::sync::atomic::Ordering::Relaxed) > before) })
                .await?;
            let ask = ClusterInvite {
                cluster: "c".into(),
                name: None,
                uses: 1,
                expires_s: 3600,
                groups: Vec::new(),
                username: Some("root".into()),
            };
            let answer = ask_patiently(&laptop, Request::ClusterInvite(ask)).await?;
            ensure!(matches!(answer, Response::Invited(_)), "{answer:?}");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        invited = invites => invited?,
        ended = try_join_all((0..8).map(|_| guess())) => { ended?; }
    }
    laptop.stop().await?;
    Ok(())
}
