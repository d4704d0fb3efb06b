//! Each direction stalls, and nothing else does: control never waits behind data, and memory is bounded.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::time::timeout;

use malai_protocol::codec::{Frame, Kind, MAX_DATA};
use malai_protocol::session::{Ack, OUTPUT_WINDOW, STDIN_CREDIT, Signal, Status, StdinAck};

use super::harness::{Caller, Lab, plan, script, within};

const INTERRUPTED: Status = Status::Signalled { signal: 2, core: false };

/// `cat` of the GNU coreutils writes this at once.
const CAT_WRITE_BYTES: u64 = 128 * 1024;

#[tokio::test]
async fn a_signal_gets_through_while_the_command_reads_nothing() {
    let mut lab = Lab::new().await;
    let mut sleeper = plan(&["sleep", "1000"]);
    sleeper.stdin = true;
    let mut caller = lab.start(sleeper).await;
    caller.started().await;
    caller.stdin(&vec![b'x'; STDIN_CREDIT as usize]).await;
    caller.signal(2).await;
    assert_eq!(caller.finish().await.record().status, INTERRUPTED);
    lab.close().await;
}

#[tokio::test]
async fn a_caller_that_acknowledges_nothing_holds_the_command_at_one_window_and_can_still_signal() {
    let mut lab = Lab::new().await;
    let mut caller = lab.start(plan(&["cat", "/dev/zero"])).await;
    caller.acks = false;
    while caller.received < OUTPUT_WINDOW {
        caller.wait_for(Kind::Stdout).await;
    }
    caller.signal(2).await;
    // The window is full, and nothing but this lets the rest through.
    caller.acks = true;
    let out_offset = caller.received;
    caller.send(Kind::Ack, &Ack { out_offset }).await;
    let done = caller.finish().await;
    assert_eq!(done.record().status, INTERRUPTED);
    // What the pipe held when the command was gone comes on top, and what it was writing: a write is cut short by a signal only
    // where it has to wait.
    let most = OUTPUT_WINDOW + MAX_DATA as u64 + CAT_WRITE_BYTES;
    assert!(done.record().stdout_bytes <= most, "{}", done.record().stdout_bytes);
    lab.close().await;
}

#[tokio::test]
async fn a_caller_that_reads_nothing_can_still_signal() {
    let mut lab = Lab::new().await;
    let mut caller = lab.start(plan(&["cat", "/dev/zero"])).await;
    caller.started().await;
    let session = malai_protocol::session::Signal { number: 2, order: 0 };
    // Written without reading anything: the executor's side is full, and reads nevertheless.
    for _ in 0..10_000 {
        caller.send(Kind::Signal, &Signal { number: 18, order: 0 }).await;
    }
    caller.send(Kind::Signal, &session).await;
    assert_eq!(caller.finish().await.record().status, INTERRUPTED);
    lab.close().await;
}

#[tokio::test]
async fn an_end_gets_through_while_output_is_stalled() {
    let mut lab = Lab::new().await;
    let zero = plan(&["cat", "/dev/zero"]);
    let session = zero.session;
    let caller = lab.start(zero).await;
    let end = malai_protocol::plan::End {
        session,
        cause: malai_protocol::session::EndedBy::Revoked,
        reason: Some("no longer allowed".into()),
    };
    lab.control.send(Kind::End, &end).await;
    // The record is made although its caller reads nothing.
    assert_eq!(lab.control.ended().await.session, session);
    let record = caller.finish().await.end.expect("it ran");
    assert_eq!((record.exit_code(), record.reason.as_deref()), (253, Some("no longer allowed")));
    lab.close().await;
}

#[tokio::test]
async fn the_loss_of_a_stalled_caller_ends_its_command() {
    let mut lab = Lab::new().await;
    let mut caller = lab.start(plan(&["cat", "/dev/zero"])).await;
    let pid = caller.started().await.pid;
    drop(caller);
    lab.control.ended().await;
    assert!(!super::harness::lives(pid));
    lab.close().await;
}

/// Byte `at` of a stream whose every stretch differs.
fn byte(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]
}

fn chunk(at: u64, length: usize) -> Bytes {
    (at..at + length as u64).map(byte).collect()
}

/// Sends `total` bytes and takes them back, now and then without reading or sending for a while.
async fn round_trip(mut caller: Caller, total: u64) {
    let (mut sent, mut credit, mut back) = (0, STDIN_CREDIT, 0);
    let mut pause_at = total / 4;
    loop {
        if sent < total && sent < credit {
            let length = (total - sent).min(credit - sent).min(MAX_DATA as u64);
            let frame = Frame::data(Kind::Stdin, chunk(sent, length as usize));
            within("the executor reads", caller.framed.send(frame)).await.expect("open");
            sent += length;
            if sent == total {
                caller.raw(Frame::empty(Kind::StdinEof)).await;
            }
        }
        // While something may be sent, only what is there is read.
        let patience = if sent < total && sent < credit { Duration::ZERO } else { Duration::from_secs(30) };
        let Ok(frame) = timeout(patience, caller.framed.next()).await else {
            assert!(patience.is_zero(), "nothing comes");
            continue;
        };
        let frame = frame.expect("open").expect("a frame");
        match frame.kind {
            Kind::Stdout => {
                assert_eq!(frame.payload, chunk(back, frame.payload.len()), "at {back}");
                back += frame.payload.len() as u64;
                if back >= pause_at {
                    pause_at += total / 4;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                caller.send(Kind::Ack, &Ack { out_offset: back }).await;
            }
            Kind::StdinAck => credit = frame.decode::<StdinAck>().expect("decodes").credit,
            Kind::Exit => break,
            Kind::Started => {}
            kind => panic!("{kind:?}"),
        }
    }
    assert_eq!(back, total);
}

#[tokio::test]
async fn bytes_pass_through_cat_intact_while_its_reader_pauses() {
    let mut lab = Lab::new().await;
    let mut cat = plan(&["cat"]);
    cat.stdin = true;
    round_trip(lab.start(cat).await, 64 * 1024 * 1024).await;
    lab.close().await;
}

#[tokio::test]
async fn input_beyond_the_credit_ends_the_attachment_and_so_the_session() {
    let mut lab = Lab::new().await;
    let mut sleeper = plan(&["sleep", "1000"]);
    sleeper.stdin = true;
    let mut caller = lab.start(sleeper).await;
    let pid = caller.started().await.pid;
    // The pipe takes some of it: a window beyond that is more than any credit.
    let frame = Frame::data(Kind::Stdin, Bytes::from(vec![0; MAX_DATA]));
    while caller.framed.send(frame.clone()).await.is_ok() {}
    lab.control.ended().await;
    assert!(!super::harness::lives(pid));
    lab.close().await;
}

#[tokio::test]
async fn standard_error_is_not_held_up_by_a_silent_standard_output() {
    let mut lab = Lab::new().await;
    let mut caller = lab.start(script("echo waiting >&2; exec sleep 1000")).await;
    assert_eq!(caller.wait_for(Kind::Stderr).await.payload, "waiting\n");
    caller.signal(2).await;
    caller.finish().await;
    lab.close().await;
}

#[tokio::test]
async fn a_daemon_that_does_not_read_is_told_later_and_obeyed_meanwhile() {
    let mut lab = Lab::new().await;
    let mut told = Vec::new();
    // Each end is told in half a mebibyte: the connection holds an eighth of one.
    for _ in 0..4 {
        let mut plan = plan(&["true"]);
        plan.request.words = vec![serde_bytes::ByteBuf::from(vec![0; 512 * 1024])];
        told.push(plan.session);
        lab.run(plan).await;
    }
    for session in told {
        assert_eq!(lab.control.ended().await.session, session);
    }
    lab.close().await;
}
