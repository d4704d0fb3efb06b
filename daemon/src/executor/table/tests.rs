use malai_protocol::id::{Incarnation, SessionId};
use malai_protocol::session::{Attached, ExitRecord, Resend, Status};
use proptest::prelude::*;

use malai_protocol::home::Home;

use super::super::testing::{live, other, plan_of, session};
use super::*;

/// An executor's table on a home.
fn open(home: &Home, incarnation: u8) -> Arc<Table> {
    let (journal, left) = Journal::open(home).expect("opens");
    let life = Life::begin(Incarnation::from_bytes([incarnation; 16])).expect("a clock");
    Table::new(journal, left, Vec::new(), life).expect("writes")
}

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    (dir, home)
}

fn record() -> (Outcome, Record) {
    let record = ExitRecord {
        status: Status::Exited { code: 0 },
        ended_by: EndedBy::Itself,
        stdout_bytes: 7,
        stderr_bytes: 0,
        duration_ms: 1,
        output_open: false,
        reason: None,
        left: 0,
    };
    let attached = Attached {
        incarnation: Incarnation::from_bytes([1; 16]),
        started: None,
        out_offset: 7,
        stdin_offset: 0,
        credit: 0,
        stdin_closed: true,
        watches: false,
    };
    (Outcome::Exit(record.clone()), Record::Exit(attached, record))
}

fn kind(rejected: &Rejected) -> Option<Kind> {
    match rejected {
        Rejected::Lives => None,
        Rejected::Failed(failure, _) => Some(failure.kind),
    }
}

/// Takes sessions on until one is refused; returns how many, and why.
fn take_all(table: &Arc<Table>, caller: SessionName, most: usize) -> (Vec<Admitted>, Option<Failure>) {
    let mut taken = Vec::new();
    for number in 0..most {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        let session = SessionName { id: SessionId::from_bytes(id), ..caller };
        match table.admit(&plan_of(Live { session, ..live(1) })) {
            Ok(admitted) => taken.push(admitted),
            Err(Rejected::Failed(failure, _)) => return (taken, Some(failure)),
            Err(Rejected::Lives) => panic!("each has its own id"),
        }
    }
    (taken, None)
}

#[tokio::test]
async fn one_caller_does_not_fill_the_table_for_others() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    let (taken, failure) = take_all(&table, session(1), MAX_SESSIONS);
    assert_eq!(taken.len(), MAX_SESSIONS / SHARE);
    assert_eq!(failure.expect("a refusal").kind, Kind::Busy);
    assert_eq!(take_all(&table, other(1), 1).0.len(), 1);
    drop(taken);
    let request = cost(&live(1).request.words).held;
    // Places come back; ids and requests stay until they are forgotten.
    let left = *table.lock().callers.of(&other(1).caller);
    assert_eq!(left, Usage { live: 0, ids: 1, held: request });
}

/// The next file to which the journal is rewritten is on a full disk; the one after it is not.
fn full_once(home: &Home) {
    std::os::unix::fs::symlink("/dev/full", home.sessions().join("journal.new")).expect("linked");
}

#[tokio::test]
async fn on_a_full_disk_a_table_goes_on_in_the_journal_that_there_is_and_loses_nothing_of_it() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    drop(table.admit(&plan_of(live(1))).expect("it is new"));
    drop(table);
    full_once(&home);
    let table = open(&home, 2);
    assert_eq!(table.counts(), (0, 1), "the table does not report what was cut off");
    table.audited(session(1));
    drop(table.admit(&plan_of(live(2))).expect("the old file has room"));
    drop(table);
    full_once(&home);
    let table = open(&home, 3);
    assert_eq!(table.counts(), (0, 1), "the journal lacks one, or tells what was audited again");
    assert!(matches!(table.find(session(1), None), Found::Refused(known) if known.kind == Kind::Unknown));
}

#[tokio::test]
async fn a_start_that_the_disk_does_not_take_is_refused_with_the_reason_and_the_next_one_runs() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    table.lock().journal.fill();
    for number in [2, 3] {
        let Rejected::Failed(refused, _) = table.admit(&plan_of(live(number))).expect_err("a full disk") else {
            panic!("it does not live");
        };
        assert!(refused.kind == Kind::Internal && refused.message.contains("No space left"), "{refused}");
        assert!(refused.hint.is_some_and(|hint| hint.contains("df -h")), "{}", refused.message);
    }
    let mut inner = table.lock();
    inner.rewrite().expect("there is room");
    drop(inner);
    drop(table.admit(&plan_of(live(4))).expect("there is room"));
    drop(table);
    assert_eq!(open(&home, 3).counts(), (0, 1), "the journal lacks one");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_journal_did_not_take_is_written_when_it_does() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    let keeping = tokio::spawn(keep_journal(table.clone()));
    let admitted = table.admit(&plan_of(live(1))).expect("it is new");
    let (outcome, record) = record();
    full_once(&home);
    table.lock().journal.fill();
    drop(admitted.registration.finish(outcome.clone(), record));
    assert!(table.lock().behind);
    tokio::time::timeout(Duration::from_secs(60), async {
        while table.lock().behind {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("it is written");
    keeping.abort();
    drop(keeping.await);
    drop(table);
    let (_, ended) = open(&home, 2).sessions();
    assert_eq!(ended.into_iter().map(|ended| ended.outcome).collect::<Vec<_>>(), [outcome]);
}

/// Takes requests of a megabyte to their audited ends, until the journal holds more unneeded lines than it may.
fn bloat(table: &Arc<Table>) {
    for number in 1..=4 {
        let mut large = live(number);
        large.request.words = vec![vec![b'x'; 400_000].into()];
        let admitted = table.admit(&plan_of(large)).expect("it is new");
        let (outcome, record) = record();
        drop(admitted.registration.finish(outcome, record));
        table.audited(session(number));
    }
    assert!(table.lock().journal.is_bloated());
}

fn length(home: &Home) -> u64 {
    std::fs::metadata(home.sessions().join("journal")).expect("is there").len()
}

#[tokio::test]
async fn a_journal_is_written_anew_beside_everything_else_and_has_what_came_meanwhile() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    bloat(&table);
    let before = length(&home);
    assert!(before > 4 * 1024 * 1024, "it is rewritten where sessions wait for it: {before} bytes");
    let (path, lines) = table.begin_compaction().expect("it is time");
    // While the file is written, one session begins, and an earlier end is audited.
    let admitted = table.admit(&plan_of(live(5))).expect("it is new");
    let written = journal::write_lines(&path, lines.into_iter());
    let lasting = table.admit(&plan_of(live(6))).expect("it is new");
    let (outcome, record) = record();
    drop(admitted.registration.finish(outcome.clone(), record));
    table.end_compaction(written).expect("takes its place");
    assert!(length(&home) < 16 * 1024, "{} of {before} bytes are left", length(&home));
    table.audited(session(5));
    drop((lasting, table));
    let table = open(&home, 2);
    let (_, ended) = table.sessions();
    assert_eq!(ended.iter().map(|ended| ended.session).collect::<Vec<_>>(), [session(6)]);
    for known in 1..=6 {
        assert!(table.admit(&plan_of(live(known))).is_err(), "{known} runs again");
    }
}

#[tokio::test]
async fn a_journal_that_was_rewritten_or_lacks_a_line_does_not_give_way_to_what_was_written_beside_it() {
    for rewritten in [true, false] {
        let (_dir, home) = home();
        let table = open(&home, 1);
        bloat(&table);
        let (path, lines) = table.begin_compaction().expect("it is time");
        let written = journal::write_lines(&path, lines.into_iter());
        if rewritten {
            drop(table.admit(&plan_of(live(5))).expect("it is new"));
            table.lock().rewrite().expect("there is room");
        } else {
            let admitted = table.admit(&plan_of(live(5))).expect("it is new");
            full_once(&home);
            table.lock().journal.fill();
            let (outcome, record) = record();
            drop(admitted.registration.finish(outcome, record));
        }
        assert!(table.end_compaction(written).is_err());
        assert!(!path.exists());
        // The disk is full once more.
        assert_eq!(table.catch_up(), rewritten);
        assert!(table.catch_up());
        drop(table);
        assert_eq!(open(&home, 2).counts(), (0, 1), "{rewritten}: its end is not known");
    }
}

#[tokio::test]
async fn a_journal_that_holds_much_that_nobody_needs_is_written_anew() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    let keeping = tokio::spawn(keep_journal(table.clone()));
    bloat(&table);
    tokio::time::timeout(Duration::from_secs(60), async {
        while table.lock().journal.is_bloated() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it is rewritten");
    assert!(length(&home) < 16 * 1024);
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn a_record_is_there_for_an_hour_and_its_id_does_not_run_again() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    let plan = plan_of(live(1));
    let admitted = table.admit(&plan).expect("it is new");
    let (outcome, record) = record();
    let keep = admitted.registration.finish(outcome, record);
    assert!(matches!(table.find(session(1), None), Found::Session(_)));
    drop(keep);
    table.audited(session(1));
    tokio::time::advance(Duration::from_secs(3599)).await;
    assert!(matches!(table.find(session(1), None), Found::Over(_)));
    assert_eq!(kind(&table.admit(&plan).expect_err("known")), Some(Kind::Unknown));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(matches!(table.find(session(1), None), Found::Missing));
}

#[tokio::test(start_paused = true)]
async fn an_id_is_remembered_for_twenty_minutes_without_its_record() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    drop(table.admit(&plan_of(live(1))).expect("it is new").registration.finish(record().0, record().1));
    table.audited(session(1));
    table.lock().records = Records::new();
    tokio::time::advance(Duration::from_secs(1199)).await;
    assert!(matches!(table.find(session(1), None), Found::Refused(failure) if failure.kind == Kind::Unknown));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(matches!(table.find(session(1), None), Found::Missing));
    assert!(table.lock().callers.ids() == 0, "its caller gets the place back");
}

#[tokio::test]
async fn ended_sessions_that_nobody_follows_take_no_places_and_the_oldest_has_to_go() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    let (_, each) = MAX_KEPT;
    let (taken, _) = take_all(&table, session(1), each + 1);
    let mut kept = Vec::new();
    for Admitted { registration, commands, .. } in taken {
        let name = registration.session();
        let mut keep = registration.finish(record().0, record().1);
        assert_eq!(table.lock().callers.of(&name.caller).live, each + 1 - kept.len());
        keep.unfollowed();
        kept.push((name, keep, commands));
    }
    let (oldest, _, commands) = &mut kept[0];
    assert!(matches!(table.find(*oldest, None), Found::Over(_)), "its record is left");
    assert!(commands.recv().await.is_none(), "its task is told");
    assert!(matches!(table.find(kept[1].0, None), Found::Session(_)));
}

#[tokio::test]
async fn a_plan_that_finds_no_place_for_its_caller_is_refused_and_not_in_the_journal() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    let plan = plan_of(live(200));
    let (mut taken, _) = take_all(&table, session(1), MAX_SESSIONS);
    let Err(Rejected::Failed(first, Some(told))) = table.admit(&plan) else { panic!("there is room") };
    assert_eq!(first.kind, Kind::Busy);
    let admitted = taken.pop().expect("one");
    drop(admitted.registration.finish(record().0, record().1));
    // There is room now, and who asked first is not told yet.
    let Err(Rejected::Failed(second, None)) = table.admit(&plan) else { panic!("two attempts have one place") };
    assert_eq!(second.kind, Kind::Busy);
    drop((taken, table));
    let (_journal, left) = Journal::open(&home).expect("opens");
    assert_eq!(left.unfinished.len(), MAX_SESSIONS / SHARE - 1, "what was refused counts as started");
    assert!(!left.unfinished.contains_key(&session(200)));
    drop(told);
}

#[tokio::test]
async fn what_an_executor_died_over_is_told_as_that() {
    let (_dir, home) = home();
    let table = open(&home, 1);
    let admitted = table.admit(&plan_of(live(1))).expect("it is new");
    drop((admitted, table));
    let next = open(&home, 2);
    let met = Some(Incarnation::from_bytes([2; 16]));
    for resend in [None, Some(Resend { number: 2, met, since_ms: 0 })] {
        let Found::Over(record) = next.find(session(1), resend) else { panic!("it is known") };
        let Record::Refused(failure) = &*record else { panic!("nobody made a record") };
        assert!(failure.kind == Kind::Unknown && failure.message.contains("died"), "{failure}");
    }
}

/// What happens between a request and its resends.
#[derive(Debug, Clone)]
enum Step {
    /// It is sent again.
    Resend,
    /// A little time passes, in milliseconds.
    Pass(u64),
    End,
    Audited,
    /// The executor dies; another starts, with the journal or, after a power cut, without.
    Dies {
        journal: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Resend),
        2 => prop_oneof![0..20_000u64, 0..300_000u64].prop_map(Step::Pass),
        1 => Just(Step::End),
        1 => Just(Step::Audited),
        1 => any::<bool>().prop_map(|journal| Step::Dies { journal }),
    ];
    proptest::collection::vec(step, 1..30)
}

/// A target, and a caller that sends its request until it is answered or ten minutes have passed.
struct Scene {
    dir: tempfile::TempDir,
    table: Arc<Table>,
    lives: u8,
    met: Option<Incarnation>,
    since_ms: u64,
    running: Option<Admitted>,
    starts: u32,
}

impl Scene {
    fn send(&mut self, resend: Option<Resend>) {
        let plan = Plan { resend, ..plan_of(live(1)) };
        if resend.is_some() && !matches!(self.table.find(session(1), resend), Found::Missing) {
            return;
        }
        if let Ok(admitted) = self.table.admit(&plan) {
            self.starts += 1;
            self.running = Some(admitted);
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Resend if self.since_ms <= 600_000 => {
                self.send(Some(Resend { number: 2, met: self.met, since_ms: self.since_ms }));
            }
            Step::Resend => {}
            Step::Pass(ms) => {
                self.since_ms += ms;
                self.table.lock().life.age(ms);
                tokio::time::advance(Duration::from_millis(ms)).await;
            }
            Step::End => {
                if let Some(admitted) = self.running.take() {
                    drop(admitted.registration.finish(record().0, record().1));
                }
            }
            Step::Audited => self.table.audited(session(1)),
            Step::Dies { journal } => {
                self.running = None;
                let home = Home::new(self.dir.path());
                self.lives += 1;
                let path = home.sessions().join("journal");
                // The lock goes with the table.
                self.table = {
                    let other = tempfile::tempdir().expect("a directory");
                    let old = std::mem::replace(&mut self.table, open(&Home::new(other.path()), 0));
                    drop(old);
                    if !journal {
                        std::fs::remove_file(path).expect("it is there");
                    }
                    open(&home, self.lives)
                };
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    /// However often it is sent again, and whatever dies meanwhile.
    #[test]
    fn a_request_starts_at_most_once(arrives in any::<bool>(), told in any::<bool>(), steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        runtime.block_on(async {
            let (dir, home) = home();
            let table = open(&home, 1);
            let met = told.then(|| table.lock().life.incarnation);
            let mut scene = Scene { dir, table, lives: 1, met, since_ms: 0, running: None, starts: 0 };
            if arrives {
                scene.send(None);
            }
            for step in steps {
                scene.step(step).await;
                assert!(scene.starts <= 1, "started {} times", scene.starts);
            }
        });
    }
}
