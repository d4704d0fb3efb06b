//! What every frame, signal and deadline does, on one connection.

use std::io::{self, Read, Write};
use std::time::Duration;

use bytes::Bytes;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::session::{Ack, Output, STDIN_CREDIT, Signal, StdinAck, StopOutput};

use super::lab::{Lab, NEVER, Wish, record, started};
use crate::client;
use crate::session::signals::{HUP, INT, QUIT, TERM};

/// What the session sends first.
const FLIGHT: [Kind; 3] = [Kind::LocalHello, Kind::Request, Kind::Exec];

#[tokio::test]
async fn both_streams_arrive_apart_are_acknowledged_and_end_with_the_record() {
    let mut lab = Lab::started(Wish::default()).await;
    lab.output(Kind::Stdout, b"out").await;
    assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 3 });
    lab.output(Kind::Stderr, b"error").await;
    assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 8 });
    lab.exit(&record(7, 3, 5)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    assert_eq!((lab.stdout.bytes(), lab.stderr.bytes()), (b"out".to_vec(), b"error".to_vec()));
    assert_eq!(lab.outcome().await.expect("a record").exit_code(), 7);
}

#[tokio::test]
async fn output_that_is_missing_is_never_a_success() {
    for told in [(4, 0), (2, 0), (3, 1)] {
        let mut lab = Lab::started(Wish::default()).await;
        lab.output(Kind::Stdout, b"out").await;
        lab.exit(&record(0, told.0, told.1)).await;
        let (code, why) = lab.failure().await;
        assert_eq!(code, 253, "{why}");
        assert!(why.contains("ended with 0, but not everything got through"), "{why}");
    }
}

#[tokio::test]
async fn input_is_sent_only_against_credit_and_its_end_is_told() {
    let length = STDIN_CREDIT + 100;
    let stdin = io::repeat(b'x').take(length);
    let mut lab = Lab::started(Wish { stdin: Some(Box::new(stdin)), ..Wish::default() }).await;
    let mut sent = 0;
    while sent < STDIN_CREDIT {
        let frame = lab.next().await;
        assert_eq!(frame.kind, Kind::Stdin);
        sent += frame.payload.len() as u64;
    }
    assert_eq!(sent, STDIN_CREDIT);
    // An answer to a signal shows that the session has come round, and that no input went before it.
    lab.signals.send(TERM).unwrap();
    assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number: TERM, order: 1 });
    lab.send(Kind::StdinAck, &StdinAck { offset: sent, credit: sent + 1000 }).await;
    assert_eq!(lab.next().await.payload.len(), 100);
    assert_eq!(lab.next().await.kind, Kind::StdinEof);
    lab.exit(&record(0, 0, 0)).await;
    assert!(lab.outcome().await.is_ok());
}

#[tokio::test]
async fn a_command_that_closed_its_input_gets_no_more() {
    let mut lab = Lab::started(Wish { stdin: Some(Box::new(io::repeat(b'x'))), ..Wish::default() }).await;
    lab.send_frame(Frame::empty(Kind::StdinClosed)).await;
    // The acknowledgement comes after everything that was sent before the closing was read.
    lab.output(Kind::Stdout, b"x").await;
    while lab.next().await.kind != Kind::Ack {}
    lab.send(Kind::StdinAck, &StdinAck { offset: 0, credit: u64::MAX }).await;
    lab.exit(&record(0, 1, 0)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    assert!(lab.outcome().await.is_ok());
}

#[tokio::test]
async fn input_that_cannot_be_read_is_told_and_never_a_success() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::IsADirectory.into())
        }
    }
    let mut lab = Lab::started(Wish { stdin: Some(Box::new(Broken)), ..Wish::default() }).await;
    assert_eq!(lab.next().await.kind, Kind::StdinEof);
    lab.exit(&record(0, 0, 0)).await;
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("cannot read standard input"), "{why}");
}

#[tokio::test]
async fn a_reader_that_left_stops_that_stream_and_not_the_result() {
    for (kind, stream) in [(Kind::Stdout, Output::Stdout), (Kind::Stderr, Output::Stderr)] {
        let mut lab = Lab::started(Wish::default()).await;
        let reader = if stream == Output::Stdout { &lab.stdout } else { &lab.stderr };
        reader.set(|state| state.error = Some(io::ErrorKind::BrokenPipe));
        lab.output(kind, b"abc").await;
        assert_eq!(lab.expect::<StopOutput>(Kind::StopOutput).await, StopOutput { stream });
        assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 3 });
        let bytes = if stream == Output::Stdout { (3, 0) } else { (0, 3) };
        lab.exit(&record(141, bytes.0, bytes.1)).await;
        assert_eq!(lab.outcome().await.expect("a record").exit_code(), 141);
    }
}

#[tokio::test]
async fn output_that_cannot_be_written_is_never_a_success() {
    let mut lab = Lab::started(Wish::default()).await;
    lab.stdout.set(|state| state.error = Some(io::ErrorKind::StorageFull));
    lab.output(Kind::Stdout, b"abc").await;
    lab.exit(&record(0, 3, 0)).await;
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("standard output could not be written"), "{why}");
}

#[tokio::test]
async fn a_reader_that_pauses_stops_neither_signals_nor_input() {
    let (mut writer, stdin) = {
        let (reader, writer) = io::pipe().unwrap();
        (writer, reader)
    };
    let mut lab = Lab::started(Wish { stdin: Some(Box::new(stdin)), ..Wish::default() }).await;
    lab.stdout.set(|state| state.paused = true);
    lab.output(Kind::Stdout, b"abc").await;
    lab.signals.send(INT).unwrap();
    assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number: INT, order: 1 });
    writer.write_all(b"typed").unwrap();
    assert_eq!(lab.next().await.payload, Bytes::from_static(b"typed"));
    lab.exit(&record(130, 3, 0)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    assert!(!lab.session.is_finished(), "output is still to be written");
    lab.stdout.set(|state| state.paused = false);
    let stdout = lab.stdout.clone();
    assert_eq!(lab.outcome().await.expect("a record").exit_code(), 130);
    assert_eq!(stdout.bytes(), b"abc");
}

#[tokio::test]
async fn a_refusal_has_the_exit_code_of_its_kind() {
    let kinds = [
        (failure::Kind::Denied, 254),
        (failure::Kind::Unreachable, 255),
        (failure::Kind::NotFound, 127),
        (failure::Kind::Unknown, 253),
    ];
    for (kind, code) in kinds {
        let mut lab = Lab::new(Wish::default()).await;
        lab.send(Kind::LocalHello, &client::hello()).await;
        lab.send(Kind::Refused, &Failure::new(kind, "no")).await;
        assert_eq!(lab.failure().await, (code, "no".to_owned()));
    }
}

#[tokio::test]
async fn a_target_that_does_not_answer_in_time_is_unknown() {
    let mut lab = Lab::new(Wish { answer: Duration::from_millis(20), ..Wish::default() }).await;
    assert_eq!(lab.rest().await, FLIGHT, "closed without a goodbye");
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("did not answer in time"), "{why}");
}

#[tokio::test]
async fn a_second_interrupt_soon_after_the_first_means_that_the_caller_is_gone() {
    let mut lab = Lab::started(Wish::default()).await;
    lab.signals.send(INT).unwrap();
    assert_eq!(lab.next().await.kind, Kind::Signal);
    lab.signals.send(INT).unwrap();
    assert_eq!(lab.rest().await, [], "closed without a goodbye");
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("interrupted twice"), "{why}");

    let mut lab = Lab::started(Wish { second_int: Duration::ZERO, ..Wish::default() }).await;
    for _ in 0..3 {
        lab.signals.send(INT).unwrap();
        assert_eq!(lab.next().await.kind, Kind::Signal);
    }
}

#[tokio::test]
async fn a_signal_that_is_sent_twice_at_once_is_one() {
    for number in [INT, TERM, HUP, QUIT] {
        let mut lab = Lab::started(Wish { same_signal: NEVER, ..Wish::default() }).await;
        lab.signal(&[number, number]).await;
        assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number, order: 1 });
        // Another kind is another signal, and shows that nothing came between.
        let other = if number == INT { QUIT } else { INT };
        lab.signal(&[other]).await;
        assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number: other, order: 2 });
        lab.exit(&record(128 + number, 0, 0)).await;
        assert_eq!(lab.outcome().await.expect("a record").exit_code(), 128 + number);
    }
}

#[tokio::test]
async fn the_second_sending_of_a_signal_does_not_spoil_the_end_that_the_first_one_made() {
    let mut lab = Lab::started(Wish { same_signal: NEVER, ..Wish::default() }).await;
    lab.stdout.set(|state| state.paused = true);
    lab.output(Kind::Stdout, b"abc").await;
    lab.signal(&[INT]).await;
    assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number: INT, order: 1 });
    lab.exit(&record(130, 3, 0)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    lab.signal(&[INT]).await;
    lab.stdout.set(|state| state.paused = false);
    assert_eq!(lab.outcome().await.expect("a record").exit_code(), 130);
}

#[tokio::test]
async fn a_termination_without_effect_means_that_the_caller_is_gone_even_with_a_paused_reader() {
    let mut lab = Lab::started(Wish { ending: Duration::from_millis(20), ..Wish::default() }).await;
    lab.stdout.set(|state| state.paused = true);
    lab.output(Kind::Stdout, b"abc").await;
    lab.signals.send(TERM).unwrap();
    assert_eq!(lab.rest().await, [Kind::Signal], "closed without a goodbye");
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("did not react to the signal"), "{why}");
}

#[tokio::test]
async fn an_interrupt_before_the_start_leaves_at_once() {
    let mut lab = Lab::new(Wish::default()).await;
    lab.signals.send(INT).unwrap();
    while !lab.rest().await.is_empty() {}
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("whether the command started is not known"), "{why}");
}

#[tokio::test]
async fn frames_out_of_order_end_the_session_as_unknown() {
    let started = started();
    let early = [
        Frame::control(Kind::Started, &started).unwrap(),
        Frame::control(Kind::Exit, &record(0, 0, 0)).unwrap(),
        Frame::data(Kind::Stdout, Bytes::from_static(b"x")),
    ];
    for frame in early {
        let mut lab = Lab::new(Wish::default()).await;
        lab.send_frame(frame).await;
        assert_eq!(lab.failure().await.0, 253);
    }
    let late = [
        Frame::control(Kind::Started, &started).unwrap(),
        Frame::control(Kind::Refused, &Failure::new(failure::Kind::Denied, "no")).unwrap(),
        Frame::control(Kind::StdinAck, &StdinAck { offset: 1, credit: 2 }).unwrap(),
        Frame::control(Kind::Signal, &Signal { number: 1, order: 0 }).unwrap(),
        Frame::data(Kind::Exit, Bytes::from_static(b"\xff")),
    ];
    for frame in late {
        let mut lab = Lab::started(Wish::default()).await;
        lab.send_frame(frame).await;
        assert_eq!(lab.failure().await.0, 253);
    }
}

#[tokio::test]
async fn a_daemon_of_another_version_is_named() {
    let mut lab = Lab::new(Wish::default()).await;
    let hello = malai_protocol::local::Hello { version: 99, malai: "9.9.9".into(), ..client::hello() };
    lab.send(Kind::LocalHello, &hello).await;
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253, "the request was sent already");
    assert!(why.contains("9.9.9"), "{why}");
}

#[tokio::test]
async fn as_json_every_event_is_an_object_of_its_own() {
    let mut lab = Lab::started(Wish { json: true, ..Wish::default() }).await;
    lab.output(Kind::Stdout, b"out\n").await;
    assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 4 });
    lab.output(Kind::Stderr, b"\xff").await;
    lab.exit(&record(3, 4, 1)).await;
    let stdout = lab.stdout.clone();
    assert!(lab.outcome().await.is_ok());
    let text = String::from_utf8(stdout.bytes()).expect("text");
    let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("json")).collect();
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().expect("a name")).collect();
    assert_eq!(names, ["started", "stdout", "stderr", "exit"]);
    assert_eq!((&events[1]["text"], &events[2]["base64"]), (&"out\n".into(), &"/w==".into()));
    assert_eq!((&events[3]["code"], &events[3]["ended_by"]), (&3.into(), &"self".into()));

    let mut lab = Lab::started(Wish { json: true, lost: Duration::from_millis(20), ..Wish::default() }).await;
    lab.daemon = None;
    let stdout = lab.stdout.clone();
    assert_eq!(lab.failure().await.0, 253);
    let text = String::from_utf8(stdout.bytes()).expect("text");
    let last: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("json");
    assert_eq!(
        (&last["event"], &last["code"], &last["error"]["kind"]),
        (&"error".into(), &253.into(), &"unknown".into())
    );
}
