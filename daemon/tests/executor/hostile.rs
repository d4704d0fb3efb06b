//! What breaks the protocol ends its own connection, and nothing else.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;

use malai_protocol::codec::{Frame, Kind};
use malai_protocol::plan::{Hello, VERSION};
use malai_protocol::session::{Ack, Signal};

use super::harness::{Lab, lives, plan, within};

/// Bytes that no connection may begin with.
fn openings() -> Vec<(&'static str, Vec<u8>)> {
    let truncated = Frame::control(Kind::ExecutorHello, &Hello::Control { version: VERSION }).expect("fits").to_bytes();
    vec![
        ("a kind that there is not", vec![0xfe, 0, 0, 0, 0]),
        ("a frame over its cap", vec![Kind::ExecutorHello as u8, 1, 0, 1, 0]),
        ("a frame over the phase's cap", vec![Kind::Plan as u8, 1, 0, 1, 0]),
        ("a frame that ends early", truncated[..truncated.len() - 1].to_vec()),
        ("another frame first", Frame::empty(Kind::StdinEof).to_bytes().to_vec()),
        ("no CBOR", Frame::data(Kind::ExecutorHello, Bytes::from_static(b"\xff\xff")).to_bytes().to_vec()),
        ("nothing", Vec::new()),
    ]
}

#[tokio::test]
async fn a_broken_opening_closes_that_connection_and_no_session() {
    let mut lab = Lab::new().await;
    let mut caller = lab.start(plan(&["sleep", "1000"])).await;
    let pid = caller.started().await.pid;
    for (what, bytes) in openings() {
        let mut broken = lab.dial().await;
        broken.get_mut().write_all(&bytes).await.expect("written");
        broken.get_mut().shutdown().await.expect("shut down");
        assert!(within(what, broken.next()).await.is_none(), "{what} is answered");
    }
    assert!(lives(pid));
    assert_eq!(lab.run(plan(&["echo", "hi"])).await.text(), "hi\n");
    caller.signal(15).await;
    caller.finish().await;
    lab.close().await;
}

#[tokio::test]
async fn a_control_connection_that_breaks_is_closed_and_sessions_are_told_to_the_next() {
    let mut lab = Lab::new().await;
    for broken in [Frame::empty(Kind::StdinEof), Frame::data(Kind::Plan, Bytes::from_static(b"x"))] {
        lab.control.framed.send(broken).await.expect("sent");
        assert!(within("it is closed", lab.control.framed.next()).await.is_none());
        lab.control = lab.new_control().await;
    }
    assert_eq!(lab.run(plan(&["echo", "hi"])).await.text(), "hi\n");
    lab.close().await;
}

#[tokio::test]
async fn a_caller_that_breaks_the_protocol_loses_its_session_and_no_other() {
    let mut lab = Lab::new().await;
    let mut bystander = lab.start(plan(&["sleep", "1000"])).await;
    let bystander_pid = bystander.started().await.pid;
    let broken = [
        ("an executor's frame", Frame::empty(Kind::StdinClosed)),
        ("a daemon's frame", Frame::data(Kind::Plan, Bytes::new())),
        ("input where there is none", Frame::data(Kind::Stdin, Bytes::from_static(b"x"))),
        ("an offset that was not sent", Frame::control(Kind::Ack, &Ack { out_offset: 1 }).expect("fits")),
        ("a signal that there is not", Frame::control(Kind::Signal, &Signal { number: 99, order: 0 }).expect("fits")),
        ("no CBOR", Frame::data(Kind::Signal, Bytes::from_static(b"\xff"))),
    ];
    for (what, frame) in broken {
        let mut caller = lab.start(plan(&["sleep", "1000"])).await;
        let pid = caller.started().await.pid;
        caller.raw(frame).await;
        assert!(caller.next().await.is_none(), "{what} is answered");
        lab.control.ended().await;
        assert!(!lives(pid), "{what}");
    }
    assert!(lives(bystander_pid));
    bystander.signal(15).await;
    bystander.finish().await;
    lab.close().await;
}

#[tokio::test]
async fn a_second_attachment_is_refused_and_the_first_goes_on() {
    let mut lab = Lab::new().await;
    let cat = plan(&["sleep", "1000"]);
    let session = cat.session;
    let mut caller = lab.start(cat).await;
    caller.started().await;
    let second = lab.attach(session).await.finish().await;
    assert_eq!(second.failure().kind, malai_protocol::failure::Kind::Conflict);
    caller.signal(2).await;
    assert_eq!(caller.finish().await.record().exit_code(), 130);
    lab.close().await;
}

#[tokio::test]
async fn an_attachment_without_a_plan_is_closed() {
    let lab = Lab::new().await;
    let mut caller = lab.attach(plan(&["true"]).session).await;
    assert!(caller.next().await.is_none());
    lab.close().await;
}
