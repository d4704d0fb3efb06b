//! What a daemon makes of what others tell of themselves.

use anyhow::{Context, Result, bail, ensure};
use malai_daemon::runtime::clock::now_ms;
use malai_protocol::codec::Kind;
use malai_protocol::local::{Finding, Level, Request, Response};
use malai_protocol::peer::Hello;

use crate::support::peer::{self, Wire, open, send};
use crate::support::scene::Scene;
use crate::support::{Machine, next};

async fn findings(machine: &Machine) -> Result<Vec<Finding>> {
    match machine.ask(Request::Doctor).await? {
        Response::Doctor(checkup) => Ok(checkup.findings),
        other => bail!("{other:?}"),
    }
}

fn about<'f>(findings: &'f [Finding], area: &str) -> Result<&'f Finding> {
    findings.iter().find(|finding| finding.area == area).with_context(|| format!("no {area} in {findings:#?}"))
}

/// The cluster manager greets so; the connection lasts as long as what is returned.
async fn greets(scene: &Scene, hello: &Hello) -> Result<(iroh::endpoint::Connection, Wire)> {
    let conn = scene.laptop.dial(&scene.web01).await?;
    let mut control = open(&conn).await?;
    send(&mut control, Kind::PeerHello, hello).await?;
    let theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
    let told = theirs.clock_ms.context("a clock")?;
    ensure!(told.abs_diff(now_ms()) < 60_000, "the daemon tells another time: {told}");
    Ok((conn, control))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_with_another_clock_or_version_is_told_of() -> Result<()> {
    let scene = Scene::new().await?;
    for (ahead, level) in [(Some(0), Level::Ok), (Some(30_000), Level::Note), (Some(600_000), Level::Broken)] {
        let clock_ms = ahead.map(|ahead: u64| now_ms() + ahead);
        let hello = Hello { clock_ms, malai: "9".repeat(300), ..peer::hello(None) };
        let (conn, _control) = greets(&scene, &hello).await?;
        let found = findings(&scene.web01).await?;
        let clock = about(&found, "clock")?;
        ensure!(clock.level == level, "{ahead:?}: {clock:?}");
        let differs = clock.what.starts_with("laptop's clock was ");
        ensure!(differs == (ahead != Some(0)), "{clock:?}");
        ensure!(differs == clock.mend.is_some(), "{clock:?}");
        // No more of another's words is kept than a version needs.
        let version = about(&found, "version")?;
        ensure!(version.what.starts_with(&format!("laptop runs malai {}, and", "9".repeat(32))), "{version:?}");
        conn.close(0u32.into(), b"");
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_no_time_could_show_break_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    for clock_ms in [0, u64::MAX, u64::MAX / 2, u64::MAX / 2 + 1] {
        let (conn, _control) = greets(&scene, &Hello { clock_ms: Some(clock_ms), ..peer::hello(None) }).await?;
        let found = findings(&scene.web01).await?;
        ensure!(about(&found, "clock")?.level == Level::Broken, "{clock_ms}: {found:#?}");
        conn.close(0u32.into(), b"");
    }
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_this_version_does_not_know_stops_no_command_and_is_named_by_status_and_doctor() -> Result<()> {
    let scene = Scene::new().await?;
    scene.publish(&format!("{}allow_tunnel = {{ to = [\"*\"] }}\n", scene.text())).await?;
    scene.serves().await?;
    let key = "`machine.web01.allow_tunnel`";
    let alarm = scene.web01.cluster().await?.alarm.unwrap_or_default();
    ensure!(alarm.contains(key) && alarm.contains("newer malai"), "{alarm}");
    let found = findings(&scene.web01).await?;
    let finding = found.iter().find(|finding| finding.what.contains(key)).with_context(|| format!("{found:#?}"))?;
    ensure!(finding.level == Level::Note && finding.mend.is_some(), "{finding:?}");
    // A restriction beside it is obeyed in the only way there is.
    scene.publish(&format!("{}allow_tunnel = 1\nonly_at = \"9-17\"\n", scene.text())).await?;
    let ran = scene.run(&["true"]).await?;
    let refused = ran.end.expect_err("it ran").context("no reason")?;
    ensure!(refused.message.contains("`machine.web01.only_at`"), "{refused}");
    scene.web01.stop().await?;
    Ok(())
}
