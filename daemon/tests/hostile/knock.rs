//! Managers that refuse a knock.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use malai_protocol::codec::Kind;
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::ClusterId;
use malai_protocol::local::{ClusterState, MachineInit, Request, Response};
use malai_protocol::peer::{JOIN_ALPN, Knock};

use crate::support::peer::{Peer, accept, send};
use crate::support::{Machine, next, until};

/// Returns a newcomer that knocks at a manager with this answer, and that manager.
async fn answered(kind: FailureKind) -> Result<(Machine, Peer)> {
    let manager = Peer::new().await?;
    manager.endpoint.set_alpns(vec![JOIN_ALPN.to_vec()]);
    let cluster = ClusterId::from_bytes(*manager.id.as_bytes())?;
    let at = manager.endpoint.bound_sockets().iter().map(ToString::to_string).collect();
    let web01 = Machine::start().await?;
    let init = MachineInit { cluster, alias: "c".into(), private: true, relays: Vec::new(), at };
    ensure!(matches!(web01.ask(Request::MachineInit(init)).await?, Response::Machine(_)));
    let conn = manager.dialled().await?;
    let mut wire = accept(&conn).await?;
    let _knock: Knock = next(&mut wire).await?.expect(Kind::Knock, "Knock")?;
    send(&mut wire, Kind::Refused, &Failure::new(kind, "not now, or never")).await?;
    conn.closed().await;
    Ok((web01, manager))
}

async fn waits_for(web01: &Machine) -> Result<String> {
    match web01.cluster().await?.state {
        ClusterState::Waiting(what) => Ok(what),
        other => bail!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_that_is_refused_knocks_no_more_and_says_so() -> Result<()> {
    let (web01, manager) = answered(FailureKind::Denied).await?;
    until("it says so", || async { Ok(waits_for(&web01).await?.contains("knocks no more: not now, or never")) })
        .await?;
    // The first pause is 5 s.
    ensure!(tokio::time::timeout(Duration::from_secs(7), manager.dialled()).await.is_err(), "it knocks again");
    web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_knocks_again_when_the_manager_is_busy_or_of_another_version() -> Result<()> {
    tokio::try_join!(knocks_again(FailureKind::Busy), knocks_again(FailureKind::Unsupported))?;
    Ok(())
}

async fn knocks_again(kind: FailureKind) -> Result<()> {
    let (web01, manager) = answered(kind).await?;
    until("it says so", || async {
        Ok(waits_for(&web01).await?.contains("knocking again and again: the cluster manager refused"))
    })
    .await?;
    let conn = manager.dialled().await?;
    let _knock: Knock = next(&mut accept(&conn).await?).await?.expect(Kind::Knock, "Knock")?;
    web01.stop().await?;
    Ok(())
}
