//! Asks a relay whether it is there: by a TLS handshake, in which its certificate is looked at as iroh does.
//!
//! That somebody takes the connection is not enough: a system does that for a program that hangs.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use iroh::RelayUrl;
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long it may take.
const ANSWER: Duration = Duration::from_secs(2);

/// Asks.
///
/// # Errors
/// Why the relay cannot be used, for people.
pub(super) async fn answers(url: &RelayUrl, tls: &ClientConfig) -> Result<(), String> {
    match timeout(ANSWER, ask(url, tls)).await {
        Ok(answer) => answer.map_err(|error| format!("no answer: {error}")),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

async fn ask(url: &RelayUrl, tls: &ClientConfig) -> io::Result<()> {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(io::Error::other("its URL has no host"));
    };
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    let stream = TcpStream::connect((host, port)).await?;
    if url.scheme() != "https" {
        return Ok(());
    }
    let mut tls = tls.clone();
    // Its certificate is looked at anew.
    tls.resumption = Resumption::disabled();
    let name = host.to_owned().try_into().map_err(io::Error::other)?;
    handshake(&stream, ClientConnection::new(Arc::new(tls), name).map_err(io::Error::other)?).await
}

async fn handshake(stream: &TcpStream, mut tls: ClientConnection) -> io::Result<()> {
    let blocks = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
    while tls.is_handshaking() {
        if tls.wants_write() {
            match tls.write_tls(&mut Ready(stream)) {
                Err(error) if blocks(&error) => stream.writable().await?,
                written => drop(written?),
            }
            continue;
        }
        match tls.read_tls(&mut Ready(stream)) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                tls.process_new_packets().map_err(io::Error::other)?;
            }
            Err(error) if blocks(&error) => stream.readable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What can be read and written of a stream without waiting.
struct Ready<'s>(&'s TcpStream);

impl Read for Ready<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl Write for Ready<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
