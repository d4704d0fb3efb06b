//! Sessions, their attachments, their records and the executor's lives, in any order: a model of what must be so beside
//! what is. Nothing here depends on who is faster: each step waits until the executor has taken what it was sent.

mod command;
mod session;

use proptest::prelude::*;

use malai_protocol::codec::Kind;
use malai_protocol::id::Incarnation;
use malai_protocol::plan::{Audited, Outcome, Plan, SessionName};
use malai_protocol::session::Resend;

use super::harness::{Lab, other_caller, plan};
use command::Command;
use session::{Phase, Session};

/// Sessions at once: of one id, and of two callers.
const SESSIONS: usize = 2;

/// What happens to one session.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Its plan comes, with an attachment or alone.
    Send {
        met: Met,
        follow: bool,
    },
    Attach(Attach),
    /// So many bytes of input.
    Write(u64),
    /// So many frames of output.
    Read(usize),
    /// All that arrived is acknowledged, but for so much.
    Ack(u64),
    Cut(Cut),
    /// The caller of this process's attachment goes: the last one, or so much later or older.
    Gone {
        process: usize,
        later: i32,
    },
    End(End),
    Goodbye,
    /// Its end is in the audit.
    Audit,
    /// The daemon dies, and with it all attachments; another comes.
    Crash,
    /// The executor is stopped, and another one comes: attachments are lost before, or not.
    Restart {
        cut: bool,
    },
}

/// Which executor the first sending of a request met.
#[derive(Debug, Clone, Copy)]
enum Met {
    /// It is the first.
    First,
    This,
    Another,
    /// Nobody knows.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Attach {
    process: usize,
    number: Number,
    offset: Offset,
    binding: bool,
    take_over: bool,
    met: Met,
}

#[derive(Debug, Clone, Copy)]
enum Number {
    Next,
    /// Those between never arrive.
    Later,
    Same,
    Older,
}

#[derive(Debug, Clone, Copy)]
enum Offset {
    Zero,
    Acked,
    Has,
    /// So much less than it has.
    Less(u64),
    /// More than there is.
    Beyond,
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Whatever is on its way is lost, in both directions.
    Anywhere,
    /// All that was sent arrives.
    AtItsEnd,
    /// The follower acknowledges what it cannot have.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its input ends.
    Followed,
    /// Likewise, and its follower is cut off before it hears of the end.
    Unfollowed,
    Killed,
}

impl Met {
    /// Whether the request certainly did not run.
    fn is_sure(self) -> bool {
        matches!(self, Self::First | Self::This)
    }

    fn resend(self, lab: &Lab) -> Option<Resend> {
        let met = match self {
            Self::First => return None,
            Self::This => Some(lab.control.sessions.incarnation),
            Self::Another => Some(Incarnation::from_bytes([9; 16])),
            Self::Unknown => None,
        };
        // No executor of a test lives for so long.
        Some(Resend { number: 2, met, since_ms: 3_600_000 })
    }
}

fn met() -> impl Strategy<Value = Met> {
    prop_oneof![4 => Just(Met::First), 2 => Just(Met::This), 1 => Just(Met::Another), 1 => Just(Met::Unknown)]
}

fn process() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(0usize), 1 => Just(1), 1 => Just(2)]
}

fn attaches() -> impl Strategy<Value = Attach> {
    let number = prop_oneof![
        6 => Just(Number::Next),
        2 => Just(Number::Later),
        1 => Just(Number::Same),
        1 => Just(Number::Older),
    ];
    let offset = prop_oneof![
        4 => Just(Offset::Has),
        3 => (1..200u64).prop_map(Offset::Less),
        2 => Just(Offset::Zero),
        2 => Just(Offset::Acked),
        1 => Just(Offset::Beyond),
    ];
    let (binding, take_over) = (proptest::bool::weighted(0.7), proptest::bool::weighted(0.4));
    (process(), number, offset, binding, take_over, met()).prop_map(
        |(process, number, offset, binding, take_over, met)| Attach {
            process,
            number,
            offset,
            binding,
            take_over,
            met,
        },
    )
}

/// How much longer lines are: some output is more than waits on its way.
fn padding() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..300usize, 1 => Just(4000)]
}

/// Steps, each with the session that it is about.
fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let cut = prop_oneof![3 => Just(Cut::Anywhere), 2 => Just(Cut::AtItsEnd), 1 => Just(Cut::Broken)];
    let end = prop_oneof![Just(End::Followed), Just(End::Unfollowed), Just(End::Killed)];
    let but = prop_oneof![3 => Just(0u64), 3 => 1..100u64, 1 => 0..20_000u64];
    let send = |follow| (met(), proptest::bool::weighted(follow)).prop_map(|(met, follow)| Step::Send { met, follow });
    let step = prop_oneof![
        2 => send(0.8),
        8 => attaches().prop_map(Step::Attach),
        8 => prop_oneof![4 => 1..80u64, 1 => 1..400u64].prop_map(Step::Write),
        6 => prop_oneof![1..6usize, Just(usize::MAX)].prop_map(Step::Read),
        4 => but.prop_map(Step::Ack),
        4 => cut.prop_map(Step::Cut),
        2 => (process(), -2..3i32).prop_map(|(process, later)| Step::Gone { process, later }),
        2 => end.prop_map(Step::End),
        1 => Just(Step::Goodbye),
        1 => Just(Step::Audit),
        1 => Just(Step::Crash),
        1 => any::<bool>().prop_map(|cut| Step::Restart { cut }),
    ]
    .boxed();
    let session = prop_oneof![4 => Just(0usize), 1 => Just(1)];
    // Before it is sent little can happen.
    let first = prop_oneof![4 => send(0.9).boxed(), 1 => step.clone()];
    (first, proptest::collection::vec((session, step), 4..39)).prop_map(|(first, mut steps)| {
        steps.insert(0, (0, first));
        steps
    })
}

/// Returns when the executor has taken all that the daemon sent before: it refuses a plan at once that is not sure.
async fn settle(lab: &mut Lab) {
    let unsure = Plan { resend: Met::Another.resend(lab), ..plan(&["false"]) };
    lab.control.send(Kind::Plan, &unsure).await;
    let ended = lab.control.ended().await;
    assert_eq!(ended.session, unsure.session, "a session ended by itself: {:?}", ended.outcome);
}

struct Scene {
    lab: Lab,
    sessions: Vec<Session>,
}

impl Scene {
    async fn new(padding: usize) -> Self {
        let lab = Lab::new().await;
        let name = plan(&["true"]).session;
        let names = [name, SessionName { caller: other_caller(), ..name }];
        let session = |(index, name)| Session::new(name, Command::new(&lab, index, padding));
        let sessions = names.into_iter().enumerate().take(SESSIONS).map(session).collect();
        Self { lab, sessions }
    }

    async fn step(mut self, index: usize, step: Step) -> Self {
        let (lab, session) = (&mut self.lab, &mut self.sessions[index]);
        match step {
            Step::Send { met, follow } => session.send(lab, met, follow).await,
            Step::Attach(attach) => session.attach(lab, attach).await,
            Step::Write(count) => session.write(count).await,
            Step::Read(most) => session.read(most).await,
            Step::Ack(but) => session.ack(but).await,
            Step::Cut(how) => session.cut(how).await,
            Step::Gone { process, later } => session.gone(lab, process, later).await,
            Step::End(how) => session.end(lab, how).await,
            Step::Goodbye => session.goodbye().await,
            Step::Audit => self.audit(index).await,
            Step::Crash => self.crash().await,
            Step::Restart { cut } => self = self.restart(cut).await,
        }
        self.sessions.iter().for_each(Session::check);
        self
    }

    async fn cut(&mut self) {
        for session in &mut self.sessions {
            session.cut(Cut::Anywhere).await;
        }
    }

    async fn audit(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        if session.is_over() {
            self.lab.control.send(Kind::Audited, &Audited { session: session.name }).await;
            settle(&mut self.lab).await;
            session.audited = true;
        }
    }

    async fn crash(&mut self) {
        self.cut().await;
        self.lab.control = self.lab.new_control().await;
        let mut lived: Vec<_> = self.lab.control.sessions.live.iter().map(|live| live.session).collect();
        lived.sort();
        let mut wanted: Vec<_> =
            self.sessions.iter().filter(|session| session.phase == Phase::Live).map(|session| session.name).collect();
        wanted.sort();
        assert_eq!(lived, wanted);
        self.check_ended();
    }

    async fn restart(mut self, cut: bool) -> Self {
        if cut {
            self.cut().await;
        }
        let Self { lab, mut sessions } = self;
        let (dir, ()) = tokio::join!(lab.close(), async {
            for session in &mut sessions {
                session.last_words().await;
            }
        });
        let lab = Lab::at(dir, true).await;
        let told = &lab.control.sessions;
        assert_eq!(told.live, [], "none outlives its executor");
        for session in &mut sessions {
            let ended = told.ended.iter().find(|ended| ended.session == session.name);
            session.past(ended.map(|ended| match &ended.outcome {
                Outcome::Exit(record) => record,
                Outcome::Refused(failure) => panic!("its record is lost: {failure}"),
            }));
        }
        let scene = Self { lab, sessions };
        scene.check_ended();
        scene
    }

    /// The daemon is told of exactly those ends that are not in the audit.
    fn check_ended(&self) {
        let ended = &self.lab.control.sessions.ended;
        let wanted: Vec<_> = self.sessions.iter().filter(|session| session.is_over() && !session.audited).collect();
        assert_eq!(ended.len(), wanted.len());
        for session in wanted {
            let told = ended.iter().find(|ended| ended.session == session.name).expect("its end is told");
            let record = session.record.clone().expect("it ended with a record");
            assert_eq!(told.outcome, Outcome::Exit(record));
        }
    }

    /// Whoever comes last gets all that is kept, more than waits on its way in some, and the record.
    async fn close(mut self) {
        for index in 0..self.sessions.len() {
            let (offset, met) = (Offset::Has, Met::First);
            let last = Attach { process: 0, number: Number::Next, offset, binding: true, take_over: true, met };
            let rest = [
                Step::Attach(last),
                Step::Write(201),
                Step::End(End::Unfollowed),
                Step::Attach(Attach { offset: Offset::Zero, ..last }),
                Step::Read(usize::MAX),
                Step::Goodbye,
                Step::Attach(last),
                Step::Send { met: Met::This, follow: true },
            ];
            for step in rest {
                self = self.step(index, step).await;
            }
            // What was never sent runs now.
            for step in [Step::End(End::Killed), Step::Goodbye] {
                self = self.step(index, step).await;
            }
            assert!(matches!(self.sessions[index].phase, Phase::Record | Phase::Past));
        }
        self.lab.close().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..ProptestConfig::with_cases(80)
    })]

    /// Whatever comes in whatever order: a command starts once at the most and reads its input once; each follower gets
    /// the true output without a gap that it was not told of, and a record only after it; all records of a session are the
    /// same; and only the going of the current binding attachment's process ends it.
    #[test]
    fn a_session_is_what_its_followers_are_told(steps in steps(), padding in padding()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut scene = Scene::new(padding).await;
            for (index, step) in steps {
                scene = scene.step(index, step).await;
            }
            scene.close().await;
        });
    }
}
