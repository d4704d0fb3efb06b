//! The two directions of a control connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::codec::FramedRead;
use tokio_util::sync::DropGuard;

use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind};

use super::Event;
use crate::executor::Connection;
use crate::runtime::duty;

/// Writes orders, until there can be no more or the executor is gone.
pub(super) async fn write(mut writer: WriteHalf<Connection>, mut orders: mpsc::Receiver<Frame>) {
    if duty::caught(write_all(&mut writer, &mut orders)).await.is_none()
        && let Err(error) = writer.shutdown().await
    {
        tracing::debug!(%error, "the control connection cannot be closed");
    }
}

async fn write_all(writer: &mut WriteHalf<Connection>, orders: &mut mpsc::Receiver<Frame>) {
    while let Some(frame) = orders.recv().await {
        if let Err(error) = writer.write_all(&frame.to_bytes()).await {
            // The reading side sees the end too, and tells of it.
            tracing::debug!(%error, kind = ?frame.kind, "an order was not written");
            return;
        }
    }
}

/// Passes events on, until the executor closes; `gone` is let go when the last end was taken. Where its end is ordered
/// (`closing`), it reports no loss, and `untold` says so.
pub(super) async fn read(
    mut reader: FramedRead<ReadHalf<Connection>, FrameCodec>,
    events: mpsc::Sender<Event>,
    [closing, untold]: [Arc<AtomicBool>; 2],
    gone: DropGuard,
) {
    // A fault of malai ends the connection as a broken one does, and another is made.
    if let Some(Err(error)) = duty::caught(pass(&mut reader, &events)).await {
        tracing::warn!(%error, "control connection of the executor broken");
    }
    // First, so that whoever hears of the loss finds that nothing can be ordered any more.
    drop(gone);
    if closing.load(Ordering::SeqCst) {
        untold.store(true, Ordering::SeqCst);
    } else if events.send(Event::Lost).await.is_err() {
        tracing::debug!("nobody hears that the executor is gone");
    }
}

async fn pass(
    reader: &mut FramedRead<ReadHalf<Connection>, FrameCodec>,
    events: &mpsc::Sender<Event>,
) -> Result<(), CodecError> {
    while let Some(frame) = reader.next().await {
        let ended = frame?.expect(Kind::Ended, "the end of a session")?;
        if events.send(Event::Ended(ended)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
