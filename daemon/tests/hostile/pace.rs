//! Whoever guesses invites does it at a pace that is not its own.

use std::time::Instant;

use anyhow::{Result, ensure};
use futures_util::SinkExt;
use malai_protocol::codec::Kind;
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::peer::{Redeem, VERSION};
use serde_bytes::ByteArray;

use crate::support::peer::{Peer, Wire, open, send};
use crate::support::{Machine, next};

/// Invites that one key may show at once, and then one a second.
const INVITES: u64 = 4;

/// Shows an invite over a connection of its own, and returns why it is refused.
async fn refusal(laptop: &Machine, peer: &Peer) -> Result<Failure> {
    let conn = peer.dial_desk(laptop).await?;
    let mut wire: Wire = open(&conn).await?;
    send(&mut wire, Kind::Redeem, &Redeem { version: VERSION, secret: ByteArray::new([7; 32]), hostname: "x".into() })
        .await?;
    let refused = next(&mut wire).await?.expect(Kind::Refused, "Refused")?;
    wire.close().await?;
    conn.close(0u32.into(), b"");
    Ok(refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_tries_invites_is_told_to_wait_and_another_still_joins() -> Result<()> {
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    let guesser = Peer::new().await?;
    let begun = Instant::now();
    let (mut looked_up, mut busy) = (0, 0);
    for _ in 0..30 {
        match refusal(&laptop, &guesser).await?.kind {
            FailureKind::Busy => busy += 1,
            _ => looked_up += 1,
        }
    }
    ensure!(looked_up <= INVITES + 1 + begun.elapsed().as_secs(), "{looked_up} guesses were looked up");
    ensure!(busy > 0 && looked_up >= INVITES, "{looked_up} were looked up, and {busy} were not");
    let (_newcomer, snapshot) = Peer::join(&laptop, "web01", &[]).await?;
    ensure!(snapshot.text().contains("[machine.web01]"), "{}", snapshot.text());
    laptop.stop().await?;
    Ok(())
}
