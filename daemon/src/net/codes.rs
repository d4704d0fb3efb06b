//! The numbers with which connections are closed and streams are reset.

use iroh::endpoint::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt};
use malai_protocol::peer::{Close, RESET_CALLER_GONE};

/// Returns a number as a QUIC error code.
pub(crate) fn code(number: u32) -> VarInt {
    VarInt::from_u32(number)
}

/// Closes a connection with one of malai's codes. One that is closed already keeps the peer's reason.
pub(crate) fn close(conn: &Connection, why: Close, reason: &str) {
    if conn.close_reason().is_none() {
        conn.close(code(why as u32), reason.as_bytes());
    }
}

/// Returns the code with which the peer closed a connection, if it did and the code is one of malai's.
pub(crate) fn closed_with(error: &ConnectionError) -> Option<Close> {
    match error {
        ConnectionError::ApplicationClosed(close) => Close::from_number(close.error_code.into_inner()),
        _ => None,
    }
}

/// Returns whether a failed read means that the caller is gone for good. Otherwise only the stream was lost.
pub(crate) fn is_caller_gone(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>());
    matches!(inner, Some(ReadError::Reset(number)) if *number == code(RESET_CALLER_GONE))
}

/// Gives up both halves of a stream with this code, so that the peer learns at once.
pub(crate) fn abandon(send: &mut SendStream, recv: &mut RecvStream, number: u32) {
    // Both fail only when the half is finished or reset already, which is as good.
    let _closed = send.reset(code(number));
    let _closed = recv.stop(code(number));
}
