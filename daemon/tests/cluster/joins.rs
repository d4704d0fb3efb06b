//! Newcomers that come at once: each becomes a machine, and none undoes another.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use malai_protocol::invite::Invite;
use malai_protocol::local::{ClusterInvite, Request, Response};
use malai_protocol::peer::JOIN_ALPN;
use tokio::task::JoinSet;

use crate::support::Machine;
use crate::support::peer::{self, Peer};

const NEWCOMER_COUNT: u32 = 50;
/// All of them have had their turn within this time.
const ALL_JOINED_TIMEOUT: Duration = Duration::from_secs(180);

/// Makes an invite that gives each newcomer its host's name.
async fn invite(laptop: &Machine, uses: u32) -> Result<Invite> {
    let username = nix::unistd::Uid::effective().is_root().then(|| "root".to_owned());
    let ask = ClusterInvite { cluster: "c".into(), name: None, uses, expires_s: 3600, groups: Vec::new(), username };
    match laptop.ask(Request::ClusterInvite(ask)).await? {
        Response::Invited(invited) => Ok(invited.token.parse()?),
        other => bail!("{other:?}"),
    }
}

/// Has all newcomers redeem at once, each the next of these invites, and each meet the manager as a machine.
async fn all_become_members(laptop: &Machine, newcomers: &[Peer], invites: &[Invite]) -> Result<()> {
    let desk = &laptop.desk().await?;
    let redeeming = newcomers.iter().zip(invites).map(|(peer, invite)| async move {
        let conn = peer.endpoint.connect(desk.clone(), JOIN_ALPN).await?;
        // One after the other, on a machine that may be busy.
        let snapshot = peer::redeem_within(ALL_JOINED_TIMEOUT, &conn, invite, "web").await?;
        ensure!(snapshot.text().contains(&peer.id.to_string()), "the answer does not have the one that asked");
        conn.close(0u32.into(), b"");
        anyhow::Ok(snapshot.header().generation)
    });
    let newest = try_join_all(redeeming).await?.into_iter().max().context("newcomers")?;
    ensure!(laptop.cluster().await?.generation == Some(newest), "an older config is held than was handed out");
    try_join_all(newcomers.iter().zip(invites).map(|(peer, invite)| async move {
        let conn = peer.dial(laptop).await?;
        let (_control, hello) = peer::greet(&conn, None).await?;
        let held = hello.header.context("a config")?.verify(&invite.cluster)?.generation;
        ensure!(held == newest, "the manager greets with generation {held}, and gave out {newest}");
        peer::ping(&conn).await?;
        conn.close(0u32.into(), b"");
        Ok(())
    }))
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_that_redeem_invites_at_once_are_all_members_twenty_times_in_a_row() -> Result<()> {
    let newcomers = try_join_all((0..NEWCOMER_COUNT).map(|_| Peer::new())).await?;
    let mut stopping = JoinSet::new();
    for round in 0..20 {
        let laptop = Machine::start().await?;
        laptop.init("laptop").await?;
        let invites = if round % 2 == 0 {
            vec![invite(&laptop, NEWCOMER_COUNT).await?; NEWCOMER_COUNT as usize]
        } else {
            let mut invites = Vec::new();
            for _ in 0..NEWCOMER_COUNT {
                invites.push(invite(&laptop, 1).await?);
            }
            invites
        };
        all_become_members(&laptop, &newcomers, &invites).await.with_context(|| format!("round {round}"))?;
        stopping.spawn(laptop.finish());
    }
    while let Some(stopped) = stopping.join_next().await {
        stopped??;
    }
    Ok(())
}
