//! The one pump: moves a session's bytes from one hop to the next and follows the frames without decoding them.

use bytes::BytesMut;
use malai_protocol::codec::{CodecError, Kind};
use malai_protocol::scan::{Direction, Scanner};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Sets how much one read of the pump takes: a data frame of the largest size and its header.
const PUMP_BUFFER_BYTES: usize = 72 * 1024;

/// Says how one direction of a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The reader ended where a frame ends.
    Eof {
        /// Is the last frame that passed.
        last: Option<Kind>,
    },
    /// The reader failed, or ended inside a frame.
    Read(std::io::Error),
    /// The writer does not take more.
    Write(std::io::Error),
    /// What was read is not a frame that may pass.
    Protocol(CodecError),
}

/// Copies until the reader ends or something fails, and hands the writer back. `head` is what was read already and goes
/// first.
pub(crate) async fn pump<R, W>(direction: Direction, head: BytesMut, mut reader: R, mut writer: W) -> (End, W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let end = run(direction, head, &mut reader, &mut writer).await;
    (end, writer)
}

async fn run<R, W>(direction: Direction, head: BytesMut, reader: &mut R, writer: &mut W) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut scanner = Scanner::new(direction);
    let mut buffer = head;
    loop {
        if !buffer.is_empty() {
            if let Err(error) = scanner.feed(&buffer) {
                return End::Protocol(error);
            }
            if let Err(error) = write(writer, &buffer).await {
                return End::Write(error);
            }
            buffer.clear();
        }
        buffer.reserve(PUMP_BUFFER_BYTES);
        match reader.read_buf(&mut buffer).await {
            Ok(0) if scanner.at_boundary() => return End::Eof { last: scanner.last() },
            Ok(0) => return End::Read(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => return End::Read(error),
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> std::io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use malai_protocol::codec::Frame;

    #[tokio::test]
    async fn a_goodbye_is_noted_as_the_last_frame() {
        let mut input = BytesMut::new();
        Frame::data(Kind::Stdin, bytes::Bytes::from_static(b"abc")).write_to(&mut input);
        Frame::empty(Kind::Goodbye).write_to(&mut input);
        let wanted = input.clone();
        let (end, output) = pump(Direction::ToTarget, BytesMut::new(), &input[..], Vec::new()).await;
        assert!(matches!(end, End::Eof { last: Some(Kind::Goodbye) }), "{end:?}");
        assert_eq!(output, wanted);
    }

    #[tokio::test]
    async fn a_frame_cut_short_is_a_failed_read() {
        let frame = Frame::data(Kind::Stdin, bytes::Bytes::from_static(b"abc")).to_bytes();
        let (end, _) = pump(Direction::ToTarget, BytesMut::new(), &frame[..6], Vec::new()).await;
        assert!(matches!(end, End::Read(_)), "{end:?}");
    }

    #[tokio::test]
    async fn a_frame_that_may_not_pass_is_not_passed_on() {
        let frame = Frame::empty(Kind::Started).to_bytes();
        let head = BytesMut::from(&frame[..]);
        let (end, output) = pump(Direction::ToTarget, head, tokio::io::empty(), Vec::new()).await;
        assert!(matches!(end, End::Protocol(_)), "{end:?}");
        assert!(output.is_empty());
    }
}
