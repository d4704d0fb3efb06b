//! Sessions of named commands, and what becomes of them when the name is given other words.

use anyhow::{Context, Result, ensure};
use malai_protocol::codec::Kind;
use malai_protocol::session::{EndedBy, ExecSpec, Started};

use crate::support::peer::exec;
use crate::support::scene::Scene;
use crate::support::{follow, followed, next};

/// The config with these named commands.
fn text(scene: &Scene, commands: &[(&str, &str)]) -> String {
    let section = |(name, words): &(&str, &str)| format!("[machine.web01.command.{name}]\ncommand = {words}\n");
    scene.text() + &commands.iter().map(section).collect::<String>()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_command_with_other_words_ends_its_sessions_and_the_same_words_end_none() -> Result<()> {
    let scene = Scene::new().await?;
    let (nap, rest) = (("nap", "[\"sleep\", \"1000\"]"), ("rest", "[\"sleep\", \"2000\"]"));
    scene.publish(&text(&scene, &[nap, rest])).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let mut wires = Vec::new();
    for name in ["nap", "rest"] {
        let spec = ExecSpec { literal: false, ..followed(&[name]) };
        let mut wire = exec(&conn, scene.key.id(), &spec).await?;
        let _started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
        wires.push(wire);
    }
    // In another order, and written otherwise.
    scene.publish(&text(&scene, &[("rest", "['sleep', '2000']"), nap])).await?;
    // Only this ends one.
    scene.publish(&text(&scene, &[("nap", "[\"sleep\", \"1001\"]"), rest])).await?;
    let (rests, naps) = (wires.pop().context("two")?, wires.pop().context("two")?);
    let record = follow(naps).await?.end.expect("a record");
    ensure!(record.ended_by == EndedBy::Revoked, "{record:?}");
    ensure!(
        record.reason.as_deref() == Some("the config changed: the named command `nap` now has other words"),
        "{record:?}"
    );
    // The other one goes on until its own words change.
    scene.publish(&text(&scene, &[rest, ("nap", "[\"true\"]")])).await?;
    scene.publish(&text(&scene, &[("rest", "[\"sleep\"]")])).await?;
    let record = follow(rests).await?.end.expect("a record");
    ensure!(
        record.reason.as_deref() == Some("the config changed: the named command `rest` now has other words"),
        "{record:?}"
    );
    scene.web01.stop().await?;
    Ok(())
}
