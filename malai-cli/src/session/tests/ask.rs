//! Questions about sessions, and machines that answer them in all ways.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::id::SessionId;
use malai_protocol::local::Request;
use malai_protocol::session::{EndedBy, ExitRecord};
use malai_protocol::sessions::{self, Listed, MAX_LISTED, State, Summary};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::lab::{Dials, NEVER, SOON, owner, record};
use crate::client;
use crate::client::DialOptions;
use crate::session::ask::MAX_LISTED_SESSIONS;
use crate::session::{Killed, SessionName, WaitLimits, kill, list, wait};

/// The machine's end of a question.
struct Desk {
    others: mpsc::UnboundedReceiver<(DialOptions, DuplexStream)>,
}

type Line = Framed<DuplexStream, FrameCodec>;

impl Desk {
    /// Takes the next question.
    async fn question(&mut self) -> (DialOptions, Line, Frame) {
        let (dial, stream) = timeout(SOON, self.others.recv()).await.expect("in time").expect("a connection");
        let mut line = Framed::new(stream, FrameCodec::new());
        assert_eq!(next(&mut line).await.expect("a frame").kind, Kind::LocalHello);
        line.send(Frame::control(Kind::LocalHello, &client::hello()).unwrap()).await.unwrap();
        let request: Request = next(&mut line).await.expect("a frame").expect(Kind::Request, "a request").unwrap();
        let Request::Session(to) = request else { panic!("a session") };
        assert_eq!((to.machine.as_str(), to.cluster.as_deref(), to.attachment), ("web01", Some("company"), None));
        let question = next(&mut line).await.expect("a frame");
        (dial, line, question)
    }
}

async fn next(line: &mut Line) -> Option<Frame> {
    timeout(SOON, line.next()).await.expect("in time").map(|frame| frame.expect("sound"))
}

fn name() -> SessionName {
    SessionName { target: "web01.company".parse().unwrap(), id: SessionId::from_bytes([3; 16]) }
}

fn summary(n: u32) -> Summary {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    Summary {
        owner: owner(),
        id: SessionId::from_bytes(id),
        command: "make".into(),
        detached: true,
        user: None,
        since_ms: 0,
        state: State::Running,
    }
}

fn listed(count: u32, more: bool) -> Frame {
    Frame::control(Kind::Listed, &Listed { sessions: (0..count).map(summary).collect(), more }).unwrap()
}

fn control<T: serde::Serialize>(kind: Kind, value: &T) -> Frame {
    Frame::control(kind, value).unwrap()
}

/// Lists against a machine that answers so, and then closes.
async fn list_of(frames: Vec<Frame>) -> Result<Vec<Summary>, Failure> {
    let Dials { mut connect, others, .. } = Dials::new();
    let answering = tokio::spawn(async move {
        let (_, mut line, question) = Desk { others }.question().await;
        assert_eq!(question.kind, Kind::List);
        for frame in frames {
            // The asker may have left.
            drop(line.send(frame).await);
        }
    });
    let outcome = timeout(SOON, list(&mut connect, &name().target, NEVER)).await.expect("in time");
    answering.await.expect("no panic");
    outcome
}

#[tokio::test]
async fn a_list_is_read_to_its_end() {
    let all = list_of(vec![listed(32, true), listed(3, false)]).await.expect("a list");
    assert_eq!(all.len(), 35);
    assert_eq!(list_of(vec![listed(0, false)]).await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_list_that_is_not_whole_is_none() {
    let failure = list_of(vec![listed(3, true)]).await.expect_err("cut");
    assert_eq!(failure.kind, failure::Kind::Unreachable);
    assert!(failure.message.contains("lost before all its sessions were listed"), "{failure}");
    let denied = Failure::new(failure::Kind::Denied, "no");
    assert_eq!(list_of(vec![listed(3, true), control(Kind::Refused, &denied)]).await, Err(denied));
}

#[tokio::test]
async fn a_list_without_an_end_is_cut_off() {
    let most = u32::try_from(MAX_LISTED).unwrap();
    let enough = MAX_LISTED_SESSIONS / MAX_LISTED;
    let failure = list_of(vec![listed(most, true); enough + 100]).await.expect_err("endless");
    assert!(failure.message.contains("more than 8192 sessions"), "{failure}");
    let mut whole = vec![listed(most, true); enough];
    whole.push(listed(0, false));
    assert_eq!(list_of(whole).await.expect("as many as may be").len(), MAX_LISTED_SESSIONS);
    let failure = list_of(vec![listed(0, true); 100]).await.expect_err("of nothing");
    assert!(failure.message.contains("has an empty part"), "{failure}");
}

#[tokio::test]
async fn answers_that_fit_no_list_are_not_understood() {
    let wrong = [
        Frame::empty(Kind::Killed),
        control(Kind::Exit, &record(0, 0, 0)),
        Frame::data(Kind::Stdout, bytes::Bytes::from_static(b"x")),
        Frame::data(Kind::Listed, bytes::Bytes::from_static(b"\xff")),
    ];
    for frame in wrong {
        let failure = list_of(vec![frame]).await.expect_err("wrong");
        assert_eq!(failure.kind, failure::Kind::Internal);
        assert!(failure.message.starts_with("cannot understand the answer of web01.company"), "{failure}");
    }
}

#[tokio::test]
async fn a_machine_that_does_not_answer_is_waited_for_no_longer_than_asked() {
    let Dials { mut connect, others: _silent, .. } = Dials::new();
    let failure = list(&mut connect, &name().target, Duration::from_millis(20)).await.expect_err("late");
    assert_eq!(failure.kind, failure::Kind::Unreachable);
    assert_eq!(failure.message, "web01.company did not answer within 20 ms");
}

/// Kills against a machine that answers so, or not at all.
async fn kill_by(signal: Option<u8>, answer: Option<Frame>) -> Result<Killed, Failure> {
    let Dials { mut connect, others, .. } = Dials::new();
    let answering = tokio::spawn(async move {
        let (_, mut line, question) = Desk { others }.question().await;
        let asked: sessions::Kill = question.expect(Kind::Kill, "to kill").unwrap();
        assert_eq!(asked, sessions::Kill { owner: Some(owner()), id: name().id, signal });
        let is_sound = answer.is_some();
        if let Some(frame) = answer {
            line.send(frame).await.unwrap();
        }
        if is_sound { next(&mut line).await.map(|frame| frame.kind) } else { None }
    });
    let killed = kill(&mut connect, &name(), Some(owner()), signal, NEVER).await;
    let last = answering.await.expect("no panic");
    assert_eq!(last, killed.is_ok().then_some(Kind::Goodbye));
    killed
}

#[tokio::test]
async fn a_kill_is_answered_by_the_record_and_a_signal_by_its_sending() {
    let ended = ExitRecord { ended_by: EndedBy::Killed, ..record(0, 0, 0) };
    assert_eq!(kill_by(None, Some(control(Kind::Exit, &ended))).await, Ok(Killed::Ended(ended)));
    assert_eq!(kill_by(Some(10), Some(Frame::empty(Kind::Killed))).await, Ok(Killed::Signalled));
    let denied = Failure::new(failure::Kind::Denied, "no");
    assert_eq!(kill_by(None, Some(control(Kind::Refused, &denied))).await, Err(denied));
}

#[tokio::test]
async fn a_kill_without_an_answer_that_fits_is_unknown() {
    let exit = control(Kind::Exit, &record(0, 0, 0));
    let cases = [(None, None), (None, Some(Frame::empty(Kind::Killed))), (Some(15), None), (Some(15), Some(exit))];
    for (signal, answer) in cases {
        let failure = kill_by(signal, answer).await.expect_err("not known");
        assert_eq!(failure.kind, failure::Kind::Unknown);
        assert!(failure.message.contains(&format!("whether {} was ", name())), "{failure}");
        assert_eq!(failure.hint.as_deref(), Some("see: malai sessions web01.company"));
    }
}

/// A wait under test.
struct Waiting {
    desk: Desk,
    said: mpsc::UnboundedReceiver<String>,
    outcome: tokio::task::JoinHandle<Result<ExitRecord, Failure>>,
}

fn waiting(pace: WaitLimits) -> Waiting {
    let Dials { mut connect, others, .. } = Dials::new();
    let (say, said) = mpsc::unbounded_channel();
    let outcome = tokio::spawn(async move {
        let say = |text: &str| say.send(text.to_owned()).unwrap();
        wait(&mut connect, &name(), Some(owner()), pace, say).await
    });
    Waiting { desk: Desk { others }, said, outcome }
}

fn pace() -> WaitLimits {
    WaitLimits { connect: NEVER, retry: Duration::from_millis(1), say_after: NEVER, lost_after: NEVER }
}

impl Waiting {
    async fn question(&mut self) -> (DialOptions, Line) {
        let (dial, line, question) = self.desk.question().await;
        let asked: sessions::Wait = question.expect(Kind::Wait, "to wait").unwrap();
        assert_eq!(asked, sessions::Wait { owner: Some(owner()), id: name().id });
        (dial, line)
    }

    async fn says(&mut self) -> String {
        timeout(SOON, self.said.recv()).await.expect("in time").expect("words")
    }

    async fn ends(self) -> Result<ExitRecord, Failure> {
        timeout(SOON, self.outcome).await.expect("in time").expect("no panic")
    }
}

#[tokio::test]
async fn waiting_asks_again_after_every_loss_and_ends_with_the_record() {
    let mut waiting = waiting(pace());
    let (dial, line) = waiting.question().await;
    assert!(dial.agent, "an agent is started for the first question");
    drop(line);
    let (dial, line) = waiting.question().await;
    assert!(!dial.agent, "a daemon that is replaced is back in a moment");
    drop(line);
    let (dial, mut line) = waiting.question().await;
    assert!(dial.agent);
    let unreachable = Failure::new(failure::Kind::Unreachable, "the reason");
    line.send(control(Kind::Refused, &unreachable)).await.unwrap();
    let (_, mut line) = waiting.question().await;
    line.send(control(Kind::Exit, &record(7, 1, 2))).await.unwrap();
    assert_eq!(next(&mut line).await.map(|frame| frame.kind), Some(Kind::Goodbye));
    assert_eq!(waiting.ends().await, Ok(record(7, 1, 2)));
}

#[tokio::test]
async fn a_loss_that_lasts_is_told_once_and_its_end_too() {
    let brief = Duration::from_millis(20);
    let mut waiting = waiting(WaitLimits { connect: brief, say_after: brief, ..pace() });
    drop(waiting.question().await);
    let unreachable = control(Kind::Refused, &Failure::new(failure::Kind::Unreachable, "the reason"));
    let words = loop {
        let (_, mut line) = waiting.question().await;
        // A question that was about to be answered so may be given up for the next one.
        line.send(unreachable.clone()).await.unwrap();
        if let Ok(words) = waiting.said.try_recv() {
            break words;
        }
    };
    assert_eq!(words, "connection to web01.company lost; waiting goes on; retrying…");
    // One that is not refused in the time that reaching the machine takes has reached it.
    let mut line = waiting.question().await.1;
    let words = waiting.says().await;
    assert!(words.starts_with("connection to web01.company is back after "), "{words}");
    line.send(control(Kind::Exit, &record(0, 0, 0))).await.unwrap();
    assert!(waiting.ends().await.is_ok());
}

#[tokio::test]
async fn waiting_is_given_up_as_unknown_when_a_loss_lasts_too_long() {
    let mut waiting = waiting(WaitLimits { lost_after: Duration::from_millis(20), ..pace() });
    drop(waiting.question().await);
    // The next connection is there, and nobody greets on it.
    let failure = waiting.ends().await.expect_err("given up");
    assert_eq!(failure.kind, failure::Kind::Unknown);
    let words = format!("connection to web01.company lost for 20 ms; whether {} ended is not known", name());
    assert_eq!(failure.message, words);
}

#[tokio::test]
async fn what_the_target_refuses_is_the_answer() {
    for kind in [failure::Kind::Unknown, failure::Kind::Denied, failure::Kind::Internal] {
        let mut waiting = waiting(pace());
        let (_, mut line) = waiting.question().await;
        let refusal = Failure::new(kind, "the reason");
        line.send(control(Kind::Refused, &refusal)).await.unwrap();
        assert_eq!(waiting.ends().await, Err(refusal));
    }
    // After a loss it may be the way there that is out of order.
    let mut waiting = waiting(pace());
    drop(waiting.question().await);
    let (_, mut line) = waiting.question().await;
    line.send(control(Kind::Refused, &Failure::new(failure::Kind::Internal, "starting"))).await.unwrap();
    let (_, mut line) = waiting.question().await;
    let unknown = Failure::new(failure::Kind::Unknown, "nobody knows");
    line.send(control(Kind::Refused, &unknown)).await.unwrap();
    assert_eq!(waiting.ends().await, Err(unknown));
}

#[tokio::test]
async fn a_wait_that_is_answered_by_something_else_is_not_understood() {
    let mut waiting = waiting(pace());
    let (_, mut line) = waiting.question().await;
    line.send(Frame::empty(Kind::Killed)).await.unwrap();
    assert_eq!(waiting.ends().await.expect_err("wrong").kind, failure::Kind::Internal);
}
