//! A session with a daemon that a test plays.

#![allow(clippy::unwrap_used, reason = "a test's scaffolding ends the test when it breaks")]

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt, stream};
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::failure::Failure;
use malai_protocol::id::{FollowerId, Incarnation, MachineId, SessionId};
use malai_protocol::session::{Attach, Attached, EndedBy, ExecSpec, ExitRecord, STDIN_CREDIT, Started, Status};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::codec::Framed;

use crate::client::{self, DialOptions, Dialler};
use crate::session::{
    InputBegin, InputSource, OutputManner, OutputSink, SessionEnd, SessionLimits, SessionParts, SessionRequest,
    SessionSubject, follow,
};

pub(super) const SOON: Duration = Duration::from_secs(10);
pub(super) const NEVER: Duration = Duration::from_secs(3600);

/// What a session wrote, and a reader that may pause or leave.
#[derive(Clone, Default)]
pub(super) struct Reader(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
pub(super) struct State {
    bytes: Vec<u8>,
    pub(super) paused: bool,
    pub(super) error: Option<io::ErrorKind>,
}

impl Reader {
    pub(super) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().bytes.clone()
    }

    /// Waits until this is among what was written.
    pub(super) async fn contains(&self, text: &str) {
        until(text, || String::from_utf8_lossy(&self.bytes()).contains(text)).await;
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

/// What a test changes.
pub(super) struct Wish {
    pub(super) stdin: Option<Box<dyn Read + Send>>,
    /// When it is read.
    pub(super) begin: InputBegin,
    pub(super) json: bool,
    pub(super) verbose: bool,
    pub(super) kill_on_lost: bool,
    pub(super) detach: bool,
    /// Look on at a session that is there, and whether from its end.
    pub(super) watch: Option<bool>,
    pub(super) answer: Duration,
    pub(super) retry: Duration,
    pub(super) say: Duration,
    pub(super) lost: Duration,
    pub(super) ending: Duration,
    pub(super) second_int: Duration,
    /// Within which two signals of one kind are one.
    pub(super) same_signal: Duration,
    /// How long a machine is waited for that is not there.
    pub(super) wait: Option<Duration>,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            stdin: None,
            begin: InputBegin::Started,
            json: false,
            verbose: false,
            kill_on_lost: false,
            detach: false,
            watch: None,
            answer: NEVER,
            retry: Duration::from_millis(1),
            say: NEVER,
            lost: NEVER,
            ending: NEVER,
            second_int: NEVER,
            same_signal: Duration::ZERO,
            wait: None,
        }
    }
}

pub(super) fn incarnation() -> Incarnation {
    Incarnation::from_bytes([1; 16])
}

/// The public key of RFC 8032's first test vector.
pub(super) fn owner() -> MachineId {
    "qtd9g0c2m45bflabvr9sip07787e2snjraj269df08d6hto7a4d0".parse().unwrap()
}

pub(super) fn follower() -> FollowerId {
    FollowerId::from_bytes([2; 16])
}

pub(super) fn started() -> Started {
    Started { incarnation: incarnation(), hostname: "web01".into(), pid: 7, user: "u".into(), grace_ms: None }
}

pub(super) fn attached(out_offset: u64, stdin_offset: u64) -> Attached {
    let (incarnation, started, credit) = (incarnation(), Some(started()), stdin_offset + STDIN_CREDIT);
    Attached { incarnation, started, out_offset, stdin_offset, credit, stdin_closed: false, watches: false }
}

pub(super) fn record(code: u8, stdout_bytes: u64, stderr_bytes: u64) -> ExitRecord {
    ExitRecord {
        status: Status::Exited { code },
        ended_by: EndedBy::Itself,
        stdout_bytes,
        stderr_bytes,
        duration_ms: 1,
        output_open: false,
        reason: None,
        left: 0,
    }
}

fn request(wish: &Wish) -> SessionRequest {
    let spec = ExecSpec {
        id: SessionId::from_bytes([3; 16]),
        words: vec![serde_bytes::ByteBuf::from("cmd")],
        literal: false,
        shell: false,
        env: Vec::new(),
        cwd: None,
        user: None,
        stdin: wish.stdin.is_some(),
        timeout_ms: None,
        wait_output: false,
        reason: None,
        follower: None,
        resend: None,
        kill_on_lost: wish.kill_on_lost,
        detach: wish.detach,
        needs: Vec::new(),
    };
    let watched = |from_end| SessionSubject::Session { owner: Some(owner()), id: spec.id, from_end };
    let subject = wish.watch.map_or_else(|| SessionSubject::Command(Box::new(spec.clone())), watched);
    SessionRequest { target: "web01.company".parse().unwrap(), subject, follower: follower() }
}

/// A session that makes its connections by `dialler`.
pub(super) fn parts<S, G: Stream<Item = u8>>(
    wish: Wish,
    dialler: Dialler<S>,
    signals: G,
    (stdout, stderr): (&Reader, &Reader),
) -> SessionParts<S, G> {
    let now = Instant::now();
    SessionParts {
        dialler,
        request: request(&wish),
        signals,
        source: wish.stdin.map(|stdin| InputSource::start(stdin, wish.begin).unwrap()),
        sink: OutputSink::start(stdout.clone(), stderr.clone()).unwrap(),
        manner: OutputManner { json: wish.json, verbose: wish.verbose },
        limits: SessionLimits {
            connect_by: now + wish.answer,
            answer_by: now + wish.answer,
            reconnect: NEVER,
            retry: wish.retry,
            say_after: wish.say,
            lost_after: (wish.lost < NEVER).then_some(wish.lost),
            ending: wish.ending,
            second_int: wish.second_int,
            same_signal: wish.same_signal,
            gone: None,
            wait_until: wish.wait.map(|wait| now + wait),
        },
    }
}

/// What dials fail with, and how often they did.
#[derive(Default)]
pub(super) struct Failing {
    with: Option<Failure>,
    count: usize,
}

/// Connections whose other ends come out of a channel.
pub(super) struct Dials {
    pub(super) connect: Dialler<DuplexStream>,
    pub(super) others: mpsc::UnboundedReceiver<(DialOptions, DuplexStream)>,
    failing: Arc<Mutex<Failing>>,
}

impl Dials {
    pub(super) fn new() -> Self {
        let (sender, others) = mpsc::unbounded_channel();
        let failing = Arc::new(Mutex::new(Failing::default()));
        let fails = Arc::clone(&failing);
        let connect: Dialler<_> = Box::new(move |dial| {
            let mut failing = fails.lock().unwrap();
            let (ours, theirs) = tokio::io::duplex(256 * 1024);
            let outcome = match failing.with.clone() {
                Some(failure) => {
                    failing.count += 1;
                    Err(failure)
                }
                None => sender.send((dial, ours)).map(|()| theirs).map_err(|_| panic!("the test is over")),
            };
            Box::pin(std::future::ready(outcome))
        });
        Self { connect, others, failing }
    }
}

/// Waits until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, looks).await.unwrap_or_else(|_| panic!("{what}"));
}

/// A session under test, seen from the daemon's end.
pub(super) struct Lab {
    pub(super) daemon: Option<Framed<DuplexStream, FrameCodec>>,
    pub(super) signals: mpsc::UnboundedSender<u8>,
    pub(super) stdout: Reader,
    pub(super) stderr: Reader,
    pub(super) session: JoinHandle<Result<SessionEnd, Failure>>,
    dials: mpsc::UnboundedReceiver<(DialOptions, DuplexStream)>,
    failing: Arc<Mutex<Failing>>,
    taken: Arc<AtomicUsize>,
}

impl Lab {
    pub(super) async fn new(wish: Wish) -> Self {
        let (signals, mut numbers) = mpsc::unbounded_channel();
        let (stdout, stderr) = (Reader::default(), Reader::default());
        let Dials { connect, others: dials, failing } = Dials::new();
        let taken = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&taken);
        let numbers = stream::poll_fn(move |cx| {
            let polled = numbers.poll_recv(cx);
            counts.fetch_add(usize::from(polled.is_ready()), Ordering::Relaxed);
            polled
        });
        let session = tokio::spawn(follow(parts(wish, connect, numbers, (&stdout, &stderr))));
        let mut lab = Self { daemon: None, signals, stdout, stderr, session, dials, failing, taken };
        assert!(lab.dialled().await.agent, "an agent is started for the first request");
        lab
    }

    /// A session that has been told that its command runs.
    pub(super) async fn started(wish: Wish) -> Self {
        let mut lab = Self::new(Wish { verbose: true, ..wish }).await;
        let spec: ExecSpec = lab.flight().await.expect(Kind::Exec, "the command").unwrap();
        assert_eq!((spec.follower, spec.resend), (Some(follower()), None));
        lab.send(Kind::Started, &started()).await;
        // From here on it knows.
        lab.stderr.contains("runs it on host").await;
        lab.stderr.set(|state| state.bytes.clear());
        lab
    }

    /// Lets dials fail so, and returns when one did; `None` lets them succeed.
    pub(super) async fn fail_dials(&self, failure: Option<Failure>) {
        let is_some = failure.is_some();
        *self.failing.lock().unwrap() = Failing { with: failure, count: 0 };
        if is_some {
            until("no dial", || self.failing.lock().unwrap().count > 0).await;
        }
    }

    /// Types these signals, and returns when the session has all that were ever typed.
    pub(super) async fn signal(&self, numbers: &[u8]) {
        let all = self.taken.load(Ordering::Relaxed) + numbers.len();
        numbers.iter().for_each(|number| self.signals.send(*number).unwrap());
        until("the signals are not taken", || self.taken.load(Ordering::Relaxed) == all).await;
    }

    /// Takes the next connection.
    pub(super) async fn dialled(&mut self) -> DialOptions {
        let (dial, stream) = timeout(SOON, self.dials.recv()).await.expect("in time").expect("a connection");
        self.daemon = Some(Framed::new(stream, FrameCodec::new()));
        dial
    }

    /// Whether there is a connection that was not taken.
    pub(super) fn is_dialled(&mut self) -> bool {
        self.dials.try_recv().is_ok()
    }

    /// Greets, and returns what is asked on this connection.
    pub(super) async fn flight(&mut self) -> Frame {
        self.send(Kind::LocalHello, &client::hello()).await;
        assert_eq!(self.next().await.kind, Kind::LocalHello);
        let request = self.expect::<malai_protocol::local::Request>(Kind::Request).await;
        let malai_protocol::local::Request::Session(to) = request else { panic!("a session") };
        let frame = self.next().await;
        let number = match frame.kind {
            Kind::Attach => frame.decode::<Attach>().unwrap().number,
            _ => frame.decode::<ExecSpec>().unwrap().resend.map_or(1, |resend| resend.number),
        };
        let told = to.attachment.expect("what the daemon tells when the caller is gone");
        assert_eq!((told.number, told.follower), (number, follower()));
        frame
    }

    /// Takes the next connection, and what is asked for on it.
    pub(super) async fn attach(&mut self) -> Attach {
        self.dialled().await;
        self.flight().await.expect(Kind::Attach, "to follow").unwrap()
    }

    /// Looks on at a session whose command runs, whose output is kept from there on.
    pub(super) async fn watching(wish: Wish, out_offset: u64) -> Self {
        let mut lab = Self::new(Wish { watch: wish.watch.or(Some(false)), ..wish }).await;
        let attach: Attach = lab.flight().await.expect(Kind::Attach, "to follow").unwrap();
        assert_eq!((attach.number, attach.out_offset, attach.owner), (1, 0, Some(owner())));
        lab.send(Kind::Attached, &attached(out_offset, 0)).await;
        lab
    }

    /// Takes the next connection, and the request that is sent on it once more.
    pub(super) async fn again(&mut self) -> malai_protocol::session::Resend {
        self.dialled().await;
        let spec: ExecSpec = self.flight().await.expect(Kind::Exec, "the command").unwrap();
        spec.resend.expect("sent before")
    }

    pub(super) async fn send<T: serde::Serialize>(&mut self, kind: Kind, value: &T) {
        self.send_frame(Frame::control(kind, value).unwrap()).await;
    }

    pub(super) async fn send_frame(&mut self, frame: Frame) {
        self.daemon.as_mut().unwrap().send(frame).await.unwrap();
    }

    pub(super) async fn output(&mut self, kind: Kind, bytes: &'static [u8]) {
        self.send_frame(Frame::data(kind, Bytes::from_static(bytes))).await;
    }

    pub(super) async fn exit(&mut self, record: &ExitRecord) {
        self.send(Kind::Exit, record).await;
    }

    /// The next frame from the session.
    pub(super) async fn next(&mut self) -> Frame {
        let next = timeout(SOON, self.daemon.as_mut().unwrap().next()).await.expect("in time");
        next.expect("a frame").expect("a sound frame")
    }

    pub(super) async fn expect<T: serde::de::DeserializeOwned>(&mut self, kind: Kind) -> T {
        self.next().await.expect(kind, "what the test waits for").unwrap()
    }

    /// The frames until the session closes its socket.
    pub(super) async fn rest(&mut self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        while let Some(frame) = timeout(SOON, self.daemon.as_mut().unwrap().next()).await.expect("in time") {
            kinds.push(frame.expect("a sound frame").kind);
        }
        kinds
    }

    pub(super) async fn outcome(self) -> Result<ExitRecord, Failure> {
        match self.end().await? {
            SessionEnd::Ended(record) => Ok(record),
            other => panic!("{other:?}"),
        }
    }

    /// How following ended, whatever that was.
    pub(super) async fn end(self) -> Result<SessionEnd, Failure> {
        timeout(SOON, self.session).await.expect("in time").expect("no panic")
    }

    /// The exit code of a session that has no result, and why.
    pub(super) async fn failure(self) -> (u8, String) {
        let failure = self.outcome().await.expect_err("no result");
        (failure.kind.exit_code(), failure.message)
    }
}
