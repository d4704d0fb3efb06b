//! Keys that are not in the config, at the machine key's endpoint.

use anyhow::{Result, ensure};
use malai_daemon::store::keys::ClusterKey;
use malai_protocol::codec::{Frame, Kind, MAX_HELLO};
use malai_protocol::peer::{Close, Hello, Open, Pull};

use crate::support::peer::{self, Got, Peer, closed, forge, got, hello, open, raw};
use crate::support::scene::Scene;
use crate::support::spec;

/// What a stranger may begin with instead of a proper greeting, by name.
fn openings(scene: &Scene) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let frame = |kind, value: &Hello| anyhow::Ok(Frame::control(kind, value)?.to_bytes().to_vec());
    let newer = scene.sign_as(9, "x")?.signed_header().clone();
    let forged = forge(&newer)?;
    let other = ClusterKey::generate()?.sign(9, 1, "x".into())?.signed_header().clone();
    let same = scene.sign_as(1, &scene.text())?.signed_header().clone();
    let older = scene.sign_as(0, &scene.text())?.signed_header().clone();
    let mut request = Frame::control(Kind::Open, &Open { cluster: scene.key.id(), generation: 0 })?.to_bytes().to_vec();
    request.extend(Frame::control(Kind::Exec, &spec(&["true"]))?.to_bytes());
    let length = |length: u32| [&[Kind::PeerHello as u8][..], &length.to_le_bytes()].concat();
    Ok(vec![
        ("a session", request),
        ("a pull", Frame::control(Kind::Pull, &Pull { generation: 1 })?.to_bytes().to_vec()),
        ("a ping", Frame::empty(Kind::Ping).to_bytes().to_vec()),
        ("an unknown kind", vec![0xfe, 0, 0, 0, 0]),
        ("garbage", vec![0xff; 4096]),
        ("nothing but the end", Vec::new()),
        ("a greeting over its cap", length(MAX_HELLO as u32 + 1)),
        ("a greeting of 4 GiB", length(u32::MAX)),
        ("a greeting cut short", frame(Kind::PeerHello, &hello(None))?[..20].to_vec()),
        ("a greeting that is no CBOR", [length(3), vec![0xff; 3]].concat()),
        ("a greeting without a snapshot", frame(Kind::PeerHello, &hello(None))?),
        ("a forged signature", frame(Kind::PeerHello, &hello(Some(forged)))?),
        ("another cluster's snapshot", frame(Kind::PeerHello, &hello(Some(other)))?),
        ("the same snapshot", frame(Kind::PeerHello, &hello(Some(same)))?),
        ("an older snapshot", frame(Kind::PeerHello, &hello(Some(older)))?),
        ("an agent's greeting", frame(Kind::PeerHello, &Hello { caller_only: true, ..hello(Some(newer.clone())) })?),
        ("an unknown need", frame(Kind::PeerHello, &Hello { needs: vec!["x".into()], ..hello(Some(newer)) })?),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_nothing_but_that_it_is_no_member_however_it_begins() -> Result<()> {
    let scene = Scene::new().await?;
    for (what, bytes) in openings(&scene)? {
        let stranger = Peer::new().await?;
        let conn = stranger.dial(&scene.web01).await?;
        let mut wire = open(&conn).await?;
        raw(&mut wire, &bytes).await?;
        peer::finish(&mut wire)?;
        let (code, words) = closed(&conn).await?;
        ensure!(code == Some(Close::NotAMember), "{what}: {code:?} {words}");
        let answer = got(&mut wire).await?;
        ensure!(matches!(answer, Got::Closed(Some(Close::NotAMember))), "{what}: {answer:?}");
    }
    ensure!(scene.audited() == 0, "a stranger got as far as the audit");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}
