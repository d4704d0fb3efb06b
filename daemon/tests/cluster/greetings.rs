//! A config that comes while two machines greet: it is announced on that connection all the same.

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use iroh::endpoint::{QuicTransportConfig, VarInt, presets};
use iroh::{Endpoint, SecretKey};
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::peer::{ALPN, Announce, Hello};
use malai_protocol::snapshot::Snapshot;
use tokio::time::timeout;

use crate::support::peer::{self, Peer, Wire, accept, hello, open, send};
use crate::support::scene::{Scene, asked, offer};
use crate::support::{SOON, next, until};

/// Brings the daemon a newer config by a machine that has nothing to do with the greeting.
async fn bring(scene: &Scene, snapshot: &Snapshot) -> Result<()> {
    let conn = scene.friend.dial(&scene.web01).await?;
    let _control = offer(&conn, snapshot).await?;
    let generation = snapshot.header().generation;
    until("the daemon holds the config", || async { Ok(scene.held().await? == generation) }).await?;
    conn.close(0u32.into(), b"");
    Ok(())
}

fn generation(scene: &Scene, hello: &Hello) -> Result<u64> {
    Ok(hello.header.as_ref().context("a header")?.verify(&scene.key.id())?.generation)
}

/// Waits for the announcement of this config.
async fn is_announced(scene: &Scene, control: &mut Wire, snapshot: &Snapshot) -> Result<()> {
    let announce: Announce = next(control).await.context("it is not announced")?.expect(Kind::Announce, "Announce")?;
    ensure!(announce.header.verify(&scene.key.id())? == *snapshot.header(), "another one is announced");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_comes_before_the_other_side_greets_back_is_announced_to_it() -> Result<()> {
    let scene = Scene::new().await?;
    let address = scene.laptop.endpoint.bound_sockets().first().context("a socket")?.to_string();
    // The daemon dials its manager by itself.
    let text = scene.text().replace("[machine.laptop]\n", &format!("[machine.laptop]\naddresses = [\"{address}\"]\n"));
    let first = scene.sign(&text)?;
    bring(&scene, &first).await?;
    let conn = scene.laptop.dialled().await?;
    let mut control = accept(&conn).await?;
    let theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
    ensure!(generation(&scene, &theirs)? == first.header().generation);
    let second = scene.sign(&(text + "# later\n"))?;
    bring(&scene, &second).await?;
    send(&mut control, Kind::PeerHello, &hello(None)).await?;
    is_announced(&scene, &mut control, &second).await?;
    scene.web01.stop().await?;
    Ok(())
}

/// A peer whose streams take a few bytes at a time: what is sent to it waits until it reads.
async fn narrow(key: [u8; 32]) -> Result<Endpoint> {
    let transport = QuicTransportConfig::builder().stream_receive_window(VarInt::from_u32(64)).build();
    let endpoint = Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(&key))
        .alpns(vec![ALPN.to_vec()])
        .transport_config(transport);
    Ok(endpoint.clear_ip_transports().bind_addr("127.0.0.1:0")?.bind().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_comes_while_the_answer_to_a_greeting_waits_is_announced_on_that_connection() -> Result<()> {
    let scene = Scene::new().await?;
    let slow = narrow(scene.guest.endpoint.secret_key().to_bytes()).await?;
    let conn = timeout(SOON, slow.connect(scene.web01.address().await?, ALPN)).await??;
    let mut control = open(&conn).await?;
    send(&mut control, Kind::PeerHello, &hello(None)).await?;
    // The answer has begun to come, and is too long to come whole.
    let begun = || async { Ok(conn.stats().frame_rx.stream > 0) };
    until("the answer has begun", begun).await?;
    let second = scene.sign(&(scene.text() + "# later\n"))?;
    bring(&scene, &second).await?;
    let theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
    ensure!(generation(&scene, &theirs)? == 1);
    is_announced(&scene, &mut control, &second).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_comes_while_a_stranger_shows_an_older_one_is_announced_to_it() -> Result<()> {
    let scene = Scene::new().await?;
    let stranger = Peer::new().await?;
    let text = scene.text() + &format!("[machine.newcomer]\nid52 = \"{}\"\n", stranger.id);
    let (second, third) = (scene.sign(&text)?, scene.sign(&(text + "# later\n"))?);
    let conn = stranger.dial(&scene.web01).await?;
    let (mut control, theirs) = peer::greet(&conn, Some(second.signed_header().clone())).await?;
    ensure!(generation(&scene, &theirs)? == 1);
    let mut wire = asked(&conn).await?;
    bring(&scene, &third).await?;
    wire.send(Frame::control(Kind::Snapshot, &second.to_signed())?).await?;
    peer::finish(&mut wire)?;
    is_announced(&scene, &mut control, &third).await?;
    scene.web01.stop().await?;
    Ok(())
}
