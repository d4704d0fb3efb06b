//! An HTTP proxy of a lab, on one of its hosts: it takes CONNECT, and requests of plain HTTP with a whole URL.
//! `malai-lab-proxy ADDRESS:PORT [AUTHORIZATION]` serves until its standard input ends. With an authorization it
//! answers 407 to a client that shows another one, or none.
//!
//! It prints one line of JSON when it is ready, and then one for each request: status, method and target.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use malai_e2e::program;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// Bounds the head of a request, in bytes.
const MAX_REQUEST_HEAD_BYTES: usize = 64 * 1024;

fn main() -> ExitCode {
    program::main("malai-lab-proxy", serve())
}

async fn serve() -> Result<()> {
    let address = std::env::args().nth(1).context("usage: malai-lab-proxy ADDRESS:PORT [AUTHORIZATION]")?;
    let wanted: Arc<Option<String>> = Arc::new(std::env::args().nth(2));
    let listener = TcpListener::bind(&address).await.with_context(|| format!("cannot listen at {address}"))?;
    program::ready(&json!({ "ready": true }))?;
    let accepting = async {
        loop {
            let (stream, _) = listener.accept().await.context("cannot accept")?;
            let wanted = Arc::clone(&wanted);
            drop(tokio::spawn(async move {
                if let Err(error) = pass(stream, wanted.as_deref()).await {
                    // Nobody is left to be told when standard error is closed.
                    drop(writeln!(std::io::stderr(), "{error:#}"));
                }
            }));
        }
    };
    tokio::select! {
        ended = accepting => ended,
        released = program::released() => released,
    }
}

async fn pass(mut client: TcpStream, wanted: Option<&str>) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < MAX_REQUEST_HEAD_BYTES, "a head without an end");
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head).context("a head that is no text")?;
    let line = head.lines().next().unwrap_or_default().to_owned();
    let (method, target) = line.split_once(' ').context("no method")?;
    let target = target.split(' ').next().unwrap_or_default();
    let is_shown = |value: &str| {
        head.lines().any(|line| {
            line.split_once(": ")
                .is_some_and(|(name, shown)| name.eq_ignore_ascii_case("proxy-authorization") && shown == value)
        })
    };
    if wanted.is_some_and(|wanted| !is_shown(wanted)) {
        tell(407, method, target)?;
        return Ok(client
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            .await?);
    }
    let host = match method {
        "CONNECT" => target,
        _ => target.strip_prefix("http://").and_then(|rest| rest.split('/').next()).context("no whole URL")?,
    };
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let Ok(mut server) = TcpStream::connect(&host).await else {
        tell(502, method, target)?;
        return Ok(client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await?);
    };
    tell(200, method, target)?;
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        // A server takes a whole URL as well (RFC 9112, section 3.2.2).
        server.write_all(head.as_bytes()).await?;
    }
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

fn tell(status: u16, method: &str, target: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{status} {method} {target}").context("cannot tell of a request")
}
