//! Who may use the relay, and until when.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use malai_daemon::store::keys::ClusterKey;

use crate::stage::{Stage, gone, key};
use crate::support::until;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_snapshot_only_cluster_keys_and_tickets_are_admitted() -> Result<()> {
    let stage = Stage::new().await?;
    let machine = key();
    let cluster = iroh::SecretKey::from_bytes(&stage.key.secret_bytes());
    let _cluster = stage.admitted(&cluster, None).await?;
    let _newcomer = stage.admitted(&key(), Some(&stage.ticket(&stage.key, HOUR)?)).await?;
    stage.refused(&machine, None, "not a machine of a cluster that this relay serves").await?;
    let snapshot = stage.sign(1, &[&machine])?;
    ensure!(stage.bring(&snapshot).await? == 1);
    let _machine = stage.admitted(&machine, None).await?;
    let status = stage.status().await?;
    ensure!((status.connected, status.by_ticket, status.refused) == (3, 1, 1), "{status:?}");
    ensure!((status.clusters[0].generation, status.clusters[0].machines) == (Some(1), 1), "{status:?}");
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_is_forged_or_expired_or_of_another_cluster_or_none_at_all_is_refused() -> Result<()> {
    let stage = Stage::new().await?;
    let other = ClusterKey::generate()?;
    let good = stage.ticket(&stage.key, HOUR)?;
    let last = if good.ends_with('0') { "1" } else { "0" };
    let changed = format!("{}{last}", &good[..good.len() - 1]);
    for token in [changed, stage.ticket(&other, HOUR)?, "malaiticket1".into(), "x".repeat(4000)] {
        stage.refused(&key(), Some(&token), "its ticket is not valid here").await?;
    }
    stage.refused(&key(), Some(&stage.ticket(&stage.key, Duration::ZERO)?), "its ticket has expired").await?;
    ensure!(stage.status().await?.connected == 0);
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_taken_out_of_the_config_is_disconnected_at_once_and_refused_afterwards() -> Result<()> {
    let stage = Stage::new().await?;
    let (manager, machine, joined) = (key(), key(), key());
    let ticket = stage.ticket(&stage.key, HOUR)?;
    let joined_client = stage.admitted(&joined, Some(&ticket)).await?;
    stage.bring(&stage.sign(1, &[&manager, &machine, &joined])?).await?;
    let (_stays, machine_client) = (stage.admitted(&manager, None).await?, stage.admitted(&machine, None).await?);
    stage.connected(3).await?;
    let begun = Instant::now();
    stage.bring(&stage.sign(2, &[&manager])?).await?;
    tokio::try_join!(gone(machine_client), gone(joined_client))?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    stage.connected(1).await?;
    stage.refused(&machine, None, "not a machine of a cluster that this relay serves").await?;
    // The invite by which it came is still good for others, and does not bring it back.
    stage.refused(&joined, Some(&ticket), "it was removed from its cluster").await?;
    let _newcomer = stage.admitted(&key(), Some(&ticket)).await?;
    ensure!(stage.status().await?.let_go == 2);
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_is_let_go_when_its_ticket_expires_unless_it_became_a_machine() -> Result<()> {
    let stage = Stage::new().await?;
    let (joins, stays_away) = (key(), key());
    let ticket = stage.ticket(&stage.key, Duration::from_secs(3))?;
    let machine = stage.admitted(&joins, Some(&ticket)).await?;
    let stranger = stage.admitted(&stays_away, Some(&ticket)).await?;
    stage.bring(&stage.sign(1, &[&joins])?).await?;
    gone(stranger).await?;
    stage.connected(1).await?;
    stage.refused(&stays_away, Some(&ticket), "its ticket has expired").await?;
    // The machine's own ticket is expired too, and does no harm.
    drop(machine);
    let _again = stage.admitted(&joins, Some(&ticket)).await?;
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_restarts_admits_by_the_snapshot_that_it_stored() -> Result<()> {
    let stage = Stage::new().await?;
    let machine = key();
    stage.bring(&stage.sign(7, &[&machine])?).await?;
    let client = stage.admitted(&machine, None).await?;
    // It hears that it is admitted a moment before the relay has it among those that a stop disconnects.
    until("the relay has the client", || async { Ok(stage.status().await?.connected == 1) }).await?;
    let (stage, ended) = tokio::join!(stage.restart(), gone(client));
    ended?;
    let stage = stage?;
    ensure!(stage.holds().await? == Some(7));
    let _again = stage.admitted(&machine, None).await?;
    stage.refused(&key(), None, "not a machine of a cluster that this relay serves").await?;
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_has_at_most_eight_connections() -> Result<()> {
    let stage = Stage::new().await?;
    let machine = key();
    stage.bring(&stage.sign(1, &[&machine])?).await?;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(stage.admitted(&machine, None).await?);
    }
    stage.refused(&machine, None, "too many connections").await?;
    stage.stop().await
}
