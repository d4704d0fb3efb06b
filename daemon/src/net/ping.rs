//! Asks a peer for a sign of life.

use std::time::{Duration, Instant};

use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};

use super::frames::{FrameError, Frames, send};

/// Returns whether the peer answers in this time.
pub(crate) async fn ping(conn: &Connection, within: Duration) -> bool {
    matches!(tokio::time::timeout(within, round_trip(conn)).await, Ok(Ok(_)))
}

/// Returns how long the peer took to answer, from sending the question; the caller bounds it.
///
/// # Errors
/// When the stream or the connection is lost, or something else is answered.
pub(crate) async fn round_trip(conn: &Connection) -> anyhow::Result<Duration> {
    let (mut send_half, recv) = conn.open_bi().await?;
    let asked = Instant::now();
    send(&mut send_half, Frame::empty(Kind::Ping)).await?;
    let Some(frame) = Frames::new(recv, 0).next_unbounded().await else { return Err(FrameError::Ended.into()) };
    let took = asked.elapsed();
    anyhow::ensure!(frame?.kind == Kind::Pong, "something else was answered");
    Ok(took)
}
