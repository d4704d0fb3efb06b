//! The cluster's machines tell the relay.

use anyhow::{Context, Result, bail, ensure};
use malai_daemon::store::keys::ClusterKey;
use malai_protocol::local::{Request, Rescan, RescanOutcome, Response};

use crate::stage::Stage;
use crate::support::{Machine, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_managers_daemon_tells_a_relay_of_its_config_and_again_of_every_change() -> Result<()> {
    let manager = Machine::start().await?;
    manager.init("laptop").await?;
    let cluster = manager.cluster().await?.cluster.context("its key")?;
    let stage = Stage::serving(cluster, ClusterKey::generate()?).await?;
    let text = std::fs::read_to_string(manager.config())?;
    let named = |line: &str| match line.starts_with("relays") {
        true => format!("relays = [{}]\n", stage.entry()),
        false => format!("{line}\n"),
    };
    std::fs::write(manager.config(), text.lines().map(named).collect::<String>())?;
    rescan(&manager).await?;
    let holds = async |manager: &Machine| {
        let generation = manager.cluster().await?.generation;
        until("the relay holds what was signed", || async { Ok(stage.holds().await? == generation) }).await
    };
    holds(&manager).await?;
    // Endpoints are bound anew for the first relay; from here on only the line that is kept can tell.
    let manager = manager.restart().await?;
    for group in ["x", "y"] {
        let text = std::fs::read_to_string(manager.config())?;
        std::fs::write(manager.config(), format!("{text}[group.{group}]\nmembers = [\"laptop\"]\n"))?;
        rescan(&manager).await?;
        holds(&manager).await?;
    }
    manager.stop().await?;
    stage.stop().await
}

async fn rescan(manager: &Machine) -> Result<()> {
    let ask = Rescan { cluster: Some("c".into()), check: false, yes: false, over: None };
    let Response::Rescanned(done) = manager.ask(Request::Rescan(ask)).await? else { bail!("no answer") };
    let published = done.iter().all(|one| matches!(one.outcome, RescanOutcome::Published(_)));
    ensure!(published, "{done:?}");
    Ok(())
}
