//! A member that asks for commands at a steady rate and waits for no answer.
//!
//! `malai-lab-flood KEY-FILE CLUSTER TARGET ADDRESS RATE` dials the target at this address as the machine with this key,
//! greets it, and sends RATE requests a second, each with a stream of its own, until its standard input ends. It prints one
//! line of JSON when the first request was sent, and at the end one with the number of requests and of answers.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use iroh::endpoint::{Connection, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, SecretKey, TransportAddr};
use malai_e2e::program;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::id::{ClusterId, MachineId, SessionId};
use malai_protocol::peer::{ALPN, Hello, Open, VERSION};
use malai_protocol::session::ExecSpec;
use serde_json::json;
use tokio::time::MissedTickBehavior;

/// Requests are sent in portions, this often.
const PORTION_INTERVAL: Duration = Duration::from_millis(20);
/// Bounds what is read of an answer.
const MAX_ANSWER_LEN: usize = 64 * 1024;

fn main() -> ExitCode {
    program::main("malai-lab-flood", flood())
}

async fn flood() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [key, cluster, target, address, rate] = words.as_slice() else {
        bail!("usage: malai-lab-flood KEY-FILE CLUSTER TARGET ADDRESS RATE");
    };
    let cluster: ClusterId = cluster.parse().context("CLUSTER is no id52")?;
    let target: MachineId = target.parse().context("TARGET is no id52")?;
    let rate: u64 = rate.parse().context("RATE is no number")?;
    let endpoint = Endpoint::builder(presets::Minimal).secret_key(secret_key(key)?).bind().await?;
    let address = TransportAddr::Ip(address.parse().context("ADDRESS is no address and port")?);
    let to = EndpointAddr::from_parts(EndpointId::from_bytes(target.as_bytes())?, [address]);
    let conn = endpoint.connect(to, ALPN).await.context("cannot dial the target")?;
    let (mut control, mut answers) = conn.open_bi().await?;
    control.write_all(&Frame::control(Kind::PeerHello, &hello())?.to_bytes()).await?;
    answers.read_chunk(MAX_ANSWER_LEN).await?.context("the target does not greet")?;
    let answered = Arc::new(AtomicU64::new(0));
    let portion = rate * u64::try_from(PORTION_INTERVAL.as_millis())? / 1000;
    let mut portions = tokio::time::interval(PORTION_INTERVAL);
    portions.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let released = program::released();
    tokio::pin!(released);
    let mut sent = 0;
    loop {
        tokio::select! {
            _ = portions.tick() => {}
            ended = &mut released => {
                ended?;
                return program::ready(&json!({ "sent": sent, "answered": answered.load(Ordering::Relaxed) }));
            }
        }
        for _ in 0..portion {
            request(&conn, cluster, &answered).await.context("the target closed the connection")?;
            sent += 1;
        }
        if sent == portion {
            program::ready(&json!({ "sent": sent }))?;
        }
    }
}

fn secret_key(path: &str) -> Result<SecretKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} is no key"))
}

/// Asks for one command; another task waits for what comes of it.
async fn request(conn: &Connection, cluster: ClusterId, answered: &Arc<AtomicU64>) -> Result<()> {
    let (mut send_half, mut answer) = conn.open_bi().await?;
    let mut bytes = Frame::control(Kind::Open, &Open { cluster, generation: 0 })?.to_bytes().to_vec();
    bytes.extend_from_slice(&Frame::control(Kind::Exec, &spec()?)?.to_bytes());
    send_half.write_all(&bytes).await?;
    let answered = Arc::clone(answered);
    tokio::spawn(async move {
        // One that the target turned away at its door has no answer.
        if answer.read_to_end(MAX_ANSWER_LEN).await.is_ok_and(|answer| !answer.is_empty()) {
            answered.fetch_add(1, Ordering::Relaxed);
        }
        drop(send_half);
    });
    Ok(())
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        needs: Vec::new(),
        header: None,
        addresses: Vec::new(),
        caller_only: true,
        boot: None,
        executor: None,
        malai: String::new(),
        clock_ms: None,
        enforced: None,
        epoch: None,
    }
}

fn spec() -> Result<ExecSpec> {
    let mut id = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut id)?;
    Ok(ExecSpec {
        id: SessionId::from_bytes(id),
        words: vec![b"true".to_vec().into()],
        literal: true,
        shell: false,
        env: Vec::new(),
        cwd: None,
        user: None,
        stdin: false,
        timeout_ms: None,
        wait_output: false,
        reason: None,
        follower: None,
        resend: None,
        kill_on_lost: false,
        detach: false,
        needs: Vec::new(),
    })
}
