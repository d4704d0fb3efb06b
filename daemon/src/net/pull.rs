//! Fetches a snapshot from a peer that announced it.

use std::time::Duration;

use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind, MAX_SNAPSHOT};
use malai_protocol::failure::Failure;
use malai_protocol::id::ClusterId;
use malai_protocol::peer::Pull;
use malai_protocol::snapshot::{Header, Signed, Snapshot};

use super::{Frames, send};

/// Bounds how long the body of a snapshot may take: 4 MiB over a slow line.
pub(crate) const SNAPSHOT_BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Asks for the snapshot with this header, or a later one, and verifies what comes.
///
/// # Errors
/// Whatever the stream or the snapshot say.
pub(crate) async fn pull(conn: &Connection, cluster: &ClusterId, header: &Header) -> anyhow::Result<Snapshot> {
    let (mut send_half, recv) = conn.open_bi().await?;
    send(&mut send_half, Frame::control(Kind::Pull, &Pull { generation: header.generation })?).await?;
    send_half.finish()?;
    let answer = Frames::new(recv, MAX_SNAPSHOT).next(SNAPSHOT_BODY_TIMEOUT).await?;
    if answer.kind == Kind::Refused {
        let failure: Failure = answer.decode()?;
        anyhow::bail!("{failure}");
    }
    let signed: Signed = answer.expect(Kind::Snapshot, "Snapshot")?;
    Ok(signed.verify(cluster)?)
}
