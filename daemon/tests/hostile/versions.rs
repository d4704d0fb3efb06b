//! Other versions of the protocol: a peer that speaks one gets that answer, and nothing else of its message is read.

use anyhow::{Context, Result, ensure};
use ciborium::cbor;
use iroh::endpoint::Connection;
use malai_protocol::codec::Kind;
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::peer::{Close, Hello};

use crate::support::peer::{Peer, accept, closed, hello, open, send};
use crate::support::scene::Scene;
use crate::support::{Machine, next};

const OTHERS: [u32; 3] = [0, 2, u32::MAX];

async fn is_closed_for(conn: &Connection, version: u32) -> Result<()> {
    let (code, words) = closed(conn).await?;
    ensure!(code == Some(Close::Unsupported), "version {version}: {code:?} {words}");
    ensure!(words.contains(&format!("version {version} ")) && words.contains("version 1"), "{words}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_of_another_version_closes_the_connection_as_unsupported_whoever_sends_it() -> Result<()> {
    let scene = Scene::new().await?;
    for version in OTHERS {
        let stranger = Peer::new().await?;
        for peer in [&scene.friend, &stranger] {
            let conn = peer.dial(&scene.web01).await?;
            let mut control = open(&conn).await?;
            // What follows the version may be anything.
            let other = cbor!({ "version" => version, "header" => "not as it is here", "colour" => 7 })?;
            send(&mut control, Kind::PeerHello, &other).await?;
            is_closed_for(&conn, version).await?;
        }
    }
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_answers_a_greeting_in_another_version_is_closed_as_unsupported() -> Result<()> {
    let scene = Scene::new().await?;
    let address = scene.laptop.endpoint.bound_sockets().first().context("a socket")?.to_string();
    // The daemon dials its manager by itself.
    let text = scene.text().replace("[machine.laptop]\n", &format!("[machine.laptop]\naddresses = [\"{address}\"]\n"));
    scene.publish(&text).await?;
    for version in OTHERS {
        let conn = scene.laptop.dialled().await?;
        let mut control = accept(&conn).await?;
        let _theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
        send(&mut control, Kind::PeerHello, &Hello { version, ..hello(None) }).await?;
        is_closed_for(&conn, version).await?;
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_of_another_version_is_refused_and_told_what_to_install() -> Result<()> {
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    for version in OTHERS {
        for kind in [Kind::Redeem, Kind::Knock] {
            let newcomer = Peer::new().await?;
            let conn = newcomer.dial_desk(&laptop).await?;
            let mut wire = open(&conn).await?;
            send(&mut wire, kind, &cbor!({ "version" => version, "secret" => "not as it is here" })?).await?;
            let failure: Failure = next(&mut wire).await?.expect(Kind::Refused, "Refused")?;
            ensure!(failure.kind == FailureKind::Unsupported, "{kind:?} {version}: {failure}");
            ensure!(failure.message.contains(&format!("version {version} ")), "{failure}");
            ensure!(failure.hint.is_some_and(|hint| hint.contains("malai --version")), "{kind:?} {version}");
        }
    }
    let (_newcomer, _) = Peer::join(&laptop, "web01", &[]).await?;
    laptop.stop().await?;
    Ok(())
}
