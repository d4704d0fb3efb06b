//! The greeting at a daemon's socket, by a process that holds no event loop for it: it blocks, for a bounded time.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::home::Home;
use malai_protocol::local::{Hello, Request};
use tokio_util::codec::Decoder;

use super::socket::connect_now;

/// Bounds how long a daemon may take to say hello; after that it counts as not answering.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds what is read of an answer of which only the end matters.
const MAX_IGNORED_ANSWER_BYTES: u64 = 64 * 1024;

/// Connects to a socket and exchanges hellos.
///
/// # Errors
/// When no process answers there in time.
pub(super) fn greet(path: &Path) -> io::Result<(UnixStream, Hello)> {
    let mut stream = connect_now(path)?;
    let deadline = Instant::now() + HELLO_TIMEOUT;
    let ours = Hello::new(crate::VERSION, std::process::id(), false);
    stream.set_write_timeout(Some(HELLO_TIMEOUT))?;
    send(&mut stream, &Frame::control(Kind::LocalHello, &ours).map_err(io::Error::other)?)?;
    let mut codec = FrameCodec::new();
    let mut got = BytesMut::new();
    loop {
        if let Some(frame) = codec.decode(&mut got).map_err(io::Error::other)? {
            let theirs = frame.expect(Kind::LocalHello, "a hello").map_err(io::Error::other)?;
            return Ok((stream, theirs));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut part = [0u8; 1024];
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => got.extend_from_slice(part.get(..n).unwrap_or_default()),
        }
    }
}

/// Sends a request to the daemon or agent of a home, and waits until that closes the connection, at most this long. Blocks.
///
/// # Errors
/// When no process answers there in time.
pub(crate) fn ask_and_wait(home: &Home, request: &Request, within: Duration) -> io::Result<()> {
    let (mut stream, _) = greet(&home.socket())?;
    send(&mut stream, &Frame::control(Kind::Request, request).map_err(io::Error::other)?)?;
    stream.set_read_timeout(Some(within))?;
    // What it answers does not matter, its end does.
    stream.take(MAX_IGNORED_ANSWER_BYTES).read_to_end(&mut Vec::new())?;
    Ok(())
}

fn send(stream: &mut UnixStream, frame: &Frame) -> io::Result<()> {
    stream.write_all(&frame.to_bytes())
}
