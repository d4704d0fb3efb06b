//! The loop against a daemon that speaks frames by hand.

use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt, stream};
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::id::Incarnation;
use malai_protocol::session::{
    Ack, EndedBy, ExitRecord, Output, STDIN_CREDIT, Signal, Started, Status, StdinAck, StopOutput,
};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::codec::Framed;

use super::signals::{INT, TERM};
use super::{Manner, Parts, Patience, Sink, Source, follow};
use crate::client;

const SOON: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_secs(3600);

/// What a session wrote, and a reader that may pause or leave.
#[derive(Clone, Default)]
struct Reader(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    paused: bool,
    error: Option<io::ErrorKind>,
}

impl Reader {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().bytes.clone()
    }
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.1.wait_while(self.0.0.lock().unwrap(), |state| state.paused).unwrap();
        match state.error {
            Some(kind) => Err(kind.into()),
            None => state.bytes.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A session under test, seen from the daemon's end.
struct Lab {
    daemon: Option<Framed<DuplexStream, FrameCodec>>,
    signals: mpsc::UnboundedSender<u8>,
    stdout: Reader,
    stderr: Reader,
    session: JoinHandle<Result<ExitRecord, Failure>>,
}

/// What a test changes.
struct Wish {
    stdin: Option<Box<dyn Read + Send>>,
    json: bool,
    answer: Duration,
    ending: Duration,
    second_int: Duration,
}

impl Default for Wish {
    fn default() -> Self {
        Self { stdin: None, json: false, answer: NEVER, ending: NEVER, second_int: NEVER }
    }
}

impl Lab {
    fn new(wish: Wish) -> Self {
        let (ours, theirs) = tokio::io::duplex(256 * 1024);
        let (signals, mut numbers) = mpsc::unbounded_channel();
        let (stdout, stderr) = (Reader::default(), Reader::default());
        let mut first = BytesMut::new();
        Frame::control(Kind::LocalHello, &client::hello()).unwrap().write_to(&mut first);
        let parts = Parts {
            stream: theirs,
            first,
            signals: stream::poll_fn(move |cx| numbers.poll_recv(cx)),
            source: wish.stdin.map(|stdin| Source::start(stdin).unwrap()),
            sink: Sink::start(stdout.clone(), stderr.clone()).unwrap(),
            target: "web01.company".into(),
            manner: Manner { json: wish.json, verbose: false },
            patience: Patience {
                answer_by: Instant::now() + wish.answer,
                ending: wish.ending,
                second_int: wish.second_int,
            },
        };
        let session = tokio::spawn(follow(parts));
        Self { daemon: Some(Framed::new(ours, FrameCodec::new())), signals, stdout, stderr, session }
    }

    /// A session that has been told that its command runs.
    async fn started(wish: Wish) -> Self {
        let mut lab = Self::new(wish);
        lab.send(Kind::LocalHello, &client::hello()).await;
        let incarnation = Incarnation::from_bytes([1; 16]);
        lab.send(
            Kind::Started,
            &Started { incarnation, hostname: "web01".into(), pid: 7, user: "u".into(), grace_ms: None },
        )
        .await;
        assert_eq!(lab.next().await.kind, Kind::LocalHello);
        lab
    }

    async fn send<T: serde::Serialize>(&mut self, kind: Kind, value: &T) {
        self.send_frame(Frame::control(kind, value).unwrap()).await;
    }

    async fn send_frame(&mut self, frame: Frame) {
        self.daemon.as_mut().unwrap().send(frame).await.unwrap();
    }

    async fn output(&mut self, kind: Kind, bytes: &'static [u8]) {
        self.send_frame(Frame::data(kind, Bytes::from_static(bytes))).await;
    }

    async fn exit(&mut self, record: &ExitRecord) {
        self.send(Kind::Exit, record).await;
    }

    /// The next frame from the session.
    async fn next(&mut self) -> Frame {
        let next = timeout(SOON, self.daemon.as_mut().unwrap().next()).await.expect("in time");
        next.expect("a frame").expect("a sound frame")
    }

    async fn expect<T: serde::de::DeserializeOwned>(&mut self, kind: Kind) -> T {
        self.next().await.expect(kind, "what the test waits for").unwrap()
    }

    /// The frames until the session closes its socket.
    async fn rest(&mut self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        while let Some(frame) = timeout(SOON, self.daemon.as_mut().unwrap().next()).await.expect("in time") {
            kinds.push(frame.expect("a sound frame").kind);
        }
        kinds
    }

    async fn outcome(self) -> Result<ExitRecord, Failure> {
        timeout(SOON, self.session).await.expect("in time").expect("no panic")
    }

    /// The exit code of a session that has no result, and why.
    async fn failure(self) -> (u8, String) {
        let failure = self.outcome().await.expect_err("no result");
        (failure.kind.exit_code(), failure.message)
    }
}

fn record(code: u8, stdout_bytes: u64, stderr_bytes: u64) -> ExitRecord {
    ExitRecord {
        status: Status::Exited { code },
        ended_by: EndedBy::Itself,
        stdout_bytes,
        stderr_bytes,
        duration_ms: 1,
        output_open: false,
        reason: None,
    }
}

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
    assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number: TERM });
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
    assert!(why.contains("standard input could not be read"), "{why}");
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
    assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number: INT });
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
async fn the_end_of_the_stream_without_a_record_is_unknown() {
    let mut lab = Lab::new(Wish::default());
    lab.send(Kind::LocalHello, &client::hello()).await;
    lab.daemon = None;
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert_eq!(why, "connection to web01.company lost before it answered; whether the command started is not known");

    let mut lab = Lab::started(Wish::default()).await;
    lab.output(Kind::Stdout, b"abc").await;
    lab.daemon = None;
    let stdout = lab.stdout.clone();
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert_eq!(why, "connection to web01.company lost; whether the command ended is not known");
    assert_eq!(stdout.bytes(), b"abc", "what arrived is written");
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
        let mut lab = Lab::new(Wish::default());
        lab.send(Kind::LocalHello, &client::hello()).await;
        lab.send(Kind::Refused, &Failure::new(kind, "no")).await;
        assert_eq!(lab.failure().await, (code, "no".to_owned()));
    }
}

#[tokio::test]
async fn a_target_that_does_not_answer_in_time_is_unknown() {
    let mut lab = Lab::new(Wish { answer: Duration::from_millis(20), ..Wish::default() });
    assert_eq!(lab.rest().await, [Kind::LocalHello], "closed without a goodbye");
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
async fn a_termination_without_effect_means_that_the_caller_is_gone_even_with_a_paused_reader() {
    let mut lab = Lab::started(Wish { ending: Duration::from_millis(20), ..Wish::default() }).await;
    lab.stdout.set(|state| state.paused = true);
    lab.output(Kind::Stdout, b"abc").await;
    lab.signals.send(TERM).unwrap();
    assert_eq!(lab.rest().await, [Kind::Signal], "closed without a goodbye");
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("did not heed the signal"), "{why}");
}

#[tokio::test]
async fn an_interrupt_before_the_start_leaves_at_once() {
    let mut lab = Lab::new(Wish::default());
    lab.signals.send(INT).unwrap();
    while !lab.rest().await.is_empty() {}
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("whether the command started is not known"), "{why}");
}

#[tokio::test]
async fn frames_out_of_order_end_the_session_as_unknown() {
    let started = Started {
        incarnation: Incarnation::from_bytes([1; 16]),
        hostname: "h".into(),
        pid: 7,
        user: "u".into(),
        grace_ms: None,
    };
    let early = [
        Frame::control(Kind::Started, &started).unwrap(),
        Frame::control(Kind::Exit, &record(0, 0, 0)).unwrap(),
        Frame::data(Kind::Stdout, Bytes::from_static(b"x")),
    ];
    for frame in early {
        let mut lab = Lab::new(Wish::default());
        lab.send_frame(frame).await;
        assert_eq!(lab.failure().await.0, 253);
    }
    let late = [
        Frame::control(Kind::Started, &started).unwrap(),
        Frame::control(Kind::Refused, &Failure::new(failure::Kind::Denied, "no")).unwrap(),
        Frame::control(Kind::StdinAck, &StdinAck { offset: 1, credit: 2 }).unwrap(),
        Frame::control(Kind::Signal, &Signal { number: 1 }).unwrap(),
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
    let mut lab = Lab::new(Wish::default());
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

    let mut lab = Lab::started(Wish { json: true, ..Wish::default() }).await;
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
