//! Versions before and after this one.

use anyhow::{Context, Result, ensure};
use ciborium::{Value, cbor};
use malai_protocol::codec::Kind;
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::peer::{Hello, Open, Pull};
use malai_protocol::session::ExecSpec;
use malai_protocol::snapshot::Signed;
use serde::Serialize;

use crate::support::peer::{self, open, send};
use crate::support::scene::{Scene, offer};
use crate::support::{follow, next, spec, until};

/// A message as a later version may send it: with fields that this one does not know.
fn later<T: Serialize>(value: &T) -> Result<Value> {
    let mut map = Value::serialized(value)?.into_map().ok().context("a map")?;
    map.push((Value::Text("colour".into()), Value::Text("blue".into())));
    map.insert(0, (Value::Text("nested".into()), cbor!({ "a" => [1, 2, { "b" => null }] })?));
    Ok(Value::Map(map))
}

/// A message as an earlier version may have sent it: with these fields only.
fn earlier<T: Serialize>(value: &T, fields: &[&str]) -> Result<Value> {
    let mut map = Value::serialized(value)?.into_map().ok().context("a map")?;
    map.retain(|(name, _)| name.as_text().is_some_and(|name| fields.contains(&name)));
    ensure!(map.len() == fields.len(), "{map:?} has not all of {fields:?}");
    Ok(Value::Map(map))
}

/// Greets, and runs a command, with these messages.
async fn works(scene: &Scene, hello: &Value, header: &Value, exec: &Value) -> Result<()> {
    let conn = scene.friend.dial(&scene.web01).await?;
    let mut control = open(&conn).await?;
    send(&mut control, Kind::PeerHello, hello).await?;
    let _theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
    let mut wire = open(&conn).await?;
    send(&mut wire, Kind::Open, header).await?;
    send(&mut wire, Kind::Exec, exec).await?;
    let ran = follow(wire).await?;
    ensure!(ran.stdout == b"hello\n", "{ran:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_a_neighbouring_version_works() -> Result<()> {
    let scene = Scene::new().await?;
    let (hello, open) = (peer::hello(None), Open { cluster: scene.key.id(), generation: 0 });
    let exec = || spec(&["echo", "hello"]);
    works(&scene, &later(&hello)?, &later(&open)?, &later(&exec())?).await?;
    let fields = ["cluster", "generation"];
    let literal = &["id", "words", "literal"];
    works(&scene, &earlier(&hello, &["version"])?, &earlier(&open, &fields)?, &earlier(&exec(), literal)?).await?;
    works(&scene, &earlier(&hello, &["version"])?, &earlier(&open, &fields)?, &earlier(&exec(), &["id", "words"])?)
        .await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_ignored_is_refused_by_its_name() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let request = ExecSpec { needs: vec!["time-travel".into()], ..spec(&["echo", "hello"]) };
    let mut wire = open(&conn).await?;
    send(&mut wire, Kind::Open, &Open { cluster: scene.key.id(), generation: 0 }).await?;
    send(&mut wire, Kind::Exec, &later(&request)?).await?;
    let failure = follow(wire).await?.end.expect_err("refused").context("a reason")?;
    ensure!(failure.kind == FailureKind::Unsupported && failure.message.contains("`time-travel`"), "{failure}");
    ensure!(failure.hint.is_some_and(|hint| hint.contains("update malai")));
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_with_unknown_keys_is_kept_and_spread_and_blocks_the_machines_that_it_touches() -> Result<()> {
    let scene = Scene::new().await?;
    let text = scene.text();
    let own = text.replace("allow_from", "only_on_sundays = true\nallow_from");
    let defaults = format!("{text}[defaults]\nonly_on_sundays = true\n");
    let group = format!("{text}[group.devs]\nmembers = [\"friend\"]\nonly_on_sundays = true\n");
    let others = text.replace("[machine.guest]\n", "[machine.guest]\nonly_on_sundays = true\n");
    for (what, text, blocks) in [
        ("its own", own, true),
        ("the defaults", defaults, true),
        ("a group", group, true),
        ("another's", others, false),
    ] {
        let snapshot = scene.publish(&text).await?;
        let ran = scene.run(&["echo", "hello"]).await?;
        if blocks {
            let failure = ran.end.expect_err("refused").context("a reason")?;
            ensure!(failure.kind == FailureKind::Unsupported, "{what}: {failure}");
            ensure!(failure.message.contains("only_on_sundays"), "{what}: {failure}");
            ensure!(failure.hint.is_some_and(|hint| hint.contains("newer malai")), "{what}");
        } else {
            ensure!(ran.stdout == b"hello\n", "{what}: {ran:?}");
        }
        // What it does not understand it passes on, byte for byte.
        let conn = scene.guest.dial(&scene.web01).await?;
        let mut wire = open(&conn).await?;
        send(&mut wire, Kind::Pull, &Pull { generation: 0 }).await?;
        let signed: Signed = next(&mut wire).await?.expect(Kind::Snapshot, "Snapshot")?;
        ensure!(signed == snapshot.to_signed(), "{what}: another snapshot is spread");
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_not_understood_is_kept_and_spread_and_what_is_understood_is_used() -> Result<()> {
    let scene = Scene::new().await?;
    let text = scene.text();
    for (what, text) in [
        ("network.quic", text.replace("relays = []", "relays = []\nquic = 2")),
        ("network.relays", text.replace("relays = []", "relays = [\"moq://x\"]")),
        ("network.discovery", text.replace("discovery = []", "discovery = [\"dht\"]")),
        ("network.ca", text.replace("relays = []", "relays = []\nca = [\"x\"]")),
    ] {
        let snapshot = scene.publish(&text).await?;
        scene.serves().await?;
        let alarm = scene.web01.cluster().await?.alarm.context("an alarm")?;
        ensure!(alarm.contains(&format!("`{what}`")) && alarm.contains("newer malai"), "{what}: {alarm}");
        let conn = scene.guest.dial(&scene.web01).await?;
        let mut wire = open(&conn).await?;
        send(&mut wire, Kind::Pull, &Pull { generation: 0 }).await?;
        let signed: Signed = next(&mut wire).await?.expect(Kind::Snapshot, "Snapshot")?;
        ensure!(signed == snapshot.to_signed(), "{what}: another snapshot is spread");
    }
    scene.publish(&text).await?;
    ensure!(scene.web01.cluster().await?.alarm.is_none());
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_this_version_cannot_read_at_all_is_not_taken_and_an_alarm() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.laptop.dial(&scene.web01).await?;
    let unreadable = scene.sign("this is no TOML")?;
    let _control = offer(&conn, &unreadable).await?;
    until("the alarm", || async { Ok(scene.web01.cluster().await?.alarm.is_some()) }).await?;
    conn.close(0u32.into(), b"");
    let alarm = scene.web01.cluster().await?.alarm.context("an alarm")?;
    ensure!(alarm.contains(&unreadable.header().generation.to_string()), "{alarm}");
    ensure!(scene.held().await? == 1);
    scene.publish(&(scene.text() + "# in order again\n")).await?;
    ensure!(scene.web01.cluster().await?.alarm.is_none());
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}
