//! One key on two machines: a copied image. All that are concerned say so, and nothing is sent to either by chance.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::local::{Level, Request, Response};
use tempfile::TempDir;

use crate::support::{Machine, until};

async fn pair() -> Result<(Machine, Machine)> {
    let (laptop, web01) = (Machine::start().await?, Machine::start().await?);
    laptop.init("laptop").await?;
    web01.join(laptop.invite("web01").await?).await?;
    Ok((laptop, web01))
}

/// The copy of a home whose daemon does not run.
fn copied(dir: &TempDir) -> Result<TempDir> {
    let copy = tempfile::Builder::new().prefix("m").tempdir()?;
    let home = crate::support::home_in(dir);
    let done = Command::new("cp").arg("-a").arg(home.root()).arg(copy.path()).status()?;
    ensure!(done.success(), "{done}");
    Ok(copy)
}

/// Where the machine's one socket is, as others see it.
async fn port(machine: &Machine) -> Result<String> {
    let address = machine.address().await?;
    Ok(format!(":{} ", address.ip_addrs().next().context("an address")?.port()))
}

async fn alarm(machine: &Machine) -> Result<String> {
    Ok(machine.cluster().await?.alarm.unwrap_or_default())
}

async fn is_linked(machine: &Machine) -> Result<bool> {
    Ok(machine.cluster().await?.machines.iter().any(|other| other.manager && other.connection.is_some()))
}

/// What `malai doctor` calls broken, each with what mends it.
async fn broken(machine: &Machine) -> Result<Vec<String>> {
    let Response::Doctor(checkup) = machine.ask(Request::Doctor).await? else { anyhow::bail!("no checkup") };
    let broken = checkup.findings.into_iter().filter(|finding| finding.level == Level::Broken);
    Ok(broken.map(|finding| format!("{}; {}", finding.what, finding.mend.unwrap_or_default())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_on_two_machines_is_an_alarm_at_the_manager_and_at_both_and_no_command_is_sent() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let dir = web01.stop().await?;
    let copy = copied(&dir)?;
    let one = Machine::start_in(dir).await?;
    until("the first is linked", || is_linked(&one)).await?;
    let other = Machine::start_in(copy).await?;
    let ports = [port(&one).await?, port(&other).await?];
    let at_manager = || async { Ok(alarm(&laptop).await?.contains("two machines hold the key of web01")) };
    until("the manager's alarm", at_manager).await?;
    let text = alarm(&laptop).await?;
    ensure!(ports.iter().all(|port| text.contains(port)), "{ports:?}: {text}");
    ensure!(text.contains("malai machine leave c") && text.contains("malai cluster remove c web01"), "{text}");
    for (holder, port_of_other) in [(&one, ports[1].trim()), (&other, ports[0].trim())] {
        let told = || async { Ok(alarm(holder).await?.contains(port_of_other)) };
        until("the alarm of one that holds the key", told).await?;
        ensure!(alarm(holder).await?.contains("malai machine leave c"));
    }
    for machine in [&laptop, &one, &other] {
        let broken = broken(machine).await?;
        ensure!(
            broken.iter().any(|what| what.contains("the key of") && what.contains("machine leave c")),
            "{broken:?}"
        );
    }
    // Neither is thrown out for the other.
    until("both are linked", || async { Ok(is_linked(&one).await? && is_linked(&other).await?) }).await?;
    let refused = laptop.run("web01", &["true"]).await?.end.expect_err("it ran").context("a reason")?;
    ensure!(refused.kind == FailureKind::Conflict && refused.message.contains("nothing was sent"), "{refused}");
    ensure!(refused.hint.is_some_and(|hint| hint.contains("malai cluster remove c web01")));
    // Without the key in the config there is nothing to be warned of.
    let remove = Request::ClusterRemove { cluster: "c".into(), machine: "web01".into(), revoke_invite: false };
    let Response::Changed(_) = laptop.ask(remove).await? else { anyhow::bail!("not removed") };
    ensure!(alarm(&laptop).await?.is_empty(), "{}", alarm(&laptop).await?);
    laptop.stop().await?;
    one.finish().await?;
    other.finish().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_restarts_again_and_again_is_one_machine() -> Result<()> {
    let (laptop, mut web01) = pair().await?;
    for _ in 0..4 {
        web01 = web01.restart().await?;
        until("it is linked", || is_linked(&web01)).await?;
        let ran = laptop.run("web01", &["echo", "hello"]).await?;
        ensure!(ran.stdout == b"hello\n", "{ran:?}");
        ensure!(alarm(&laptop).await?.is_empty() && alarm(&web01).await?.is_empty());
    }
    laptop.stop().await?;
    web01.stop().await?;
    Ok(())
}
