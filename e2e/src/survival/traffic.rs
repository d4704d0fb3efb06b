//! A command that writes, reads and answers all the time, and what became of it under a fault.

use std::io::Write as _;
use std::process::{ChildStdin, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::lines;
use super::stage::Stage;
use super::{Evidence, Problems};
use crate::cluster::{SOON, malai};
use crate::lab::{Arrival, Child, wait_for};

/// The exit code of the driver, which nothing else ends with.
pub const CODE: i32 = 77;
/// Where the driver says that it started: on a disk that outlives a power cut.
pub const STARTED: &str = "/root/started";
/// How often a line of input is written.
const INPUT: Duration = Duration::from_millis(50);
/// Output flows again within so long after the repair.
pub const FLOWING: Duration = Duration::from_secs(5);
/// When a session that does not go on is given up: late enough to tell how late it would have been.
pub const GIVEN_UP: Duration = Duration::from_secs(60);
/// How long the traffic is watched after it flows again, so that a second stall is seen.
const WATCHED: Duration = Duration::from_secs(4);
/// What may still arrive after a fault began: it was on its way, or in the caller's own buffers.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// In the end of the output of this length, an answer is found.
const TAIL: usize = 16 * 1024;

/// A session between the driver on the target and this process at the caller.
#[derive(Debug)]
pub struct Traffic {
    child: Child,
    feeder: Feeder,
    /// From the repair of a fault, to when output and answers flowed again: no long silence lies between.
    windows: Vec<(Instant, Instant)>,
    problems: Problems,
    /// Connections that were made before.
    handshakes: u64,
}

/// Writes numbered lines into a pipe, until its `stop` is dropped.
#[derive(Debug)]
struct Feeder {
    stop: Option<Sender<()>>,
    written: Arc<AtomicU64>,
}

/// A session that did not end by itself.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// When that was known.
    pub at: Instant,
    /// malai's own words.
    pub words: Vec<String>,
    /// What had arrived, without a gap.
    pub evidence: Evidence,
}

impl Traffic {
    /// Starts the driver on the target, and waits until lines come and go in every direction.
    ///
    /// # Errors
    /// When they do not.
    pub fn start(stage: &Stage) -> Result<Self> {
        Self::with(stage, &[], None)
    }

    /// The same with these options of malai, and so many lines if it is to end by itself.
    ///
    /// # Errors
    /// When no lines come.
    pub fn with(stage: &Stage, options: &[&str], count: Option<u64>) -> Result<Self> {
        let (code, count) = (CODE.to_string(), count.map(|count| count.to_string()));
        let driver = ["web01.company", "--", "malai-lab-driver", "run", STARTED, &code];
        let mut child =
            stage.laptop.spawn(malai(options.iter().copied().chain(driver).chain(count.as_deref())).stdin_open())?;
        let feeder = Feeder::start(child.take_stdin()?);
        child.wait_for_line("a 10 ", SOON)?;
        child.wait_for_line("o 100 ", SOON)?;
        Ok(Self { child, feeder, windows: Vec::new(), problems: Problems::default(), handshakes: stage.handshakes() })
    }

    /// The program at the caller.
    #[must_use]
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// malai's own words so far.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        lines::own(&self.child.stderr())
    }

    /// Leaves a fault as it is, until so long after it began. Nothing may come meanwhile but what was under way, or it
    /// was no fault.
    ///
    /// # Errors
    /// When the session ends, or output comes all the same.
    pub fn endure(&self, begun: Instant, length: Duration) -> Result<()> {
        self.go_on_until(begun + length).context("during the fault")?;
        let [stdout, _] = self.child.arrivals();
        let late = stdout.last().is_some_and(|last| last.at > begun + UNDER_WAY);
        ensure!(!late, "the fault is none: output came in the middle of it");
        Ok(())
    }

    /// Notes that the fault is over, or is one that must not be felt for long, and waits until lines come and go in
    /// every direction. How long that took is judged at the end.
    ///
    /// # Errors
    /// When the session ends, or nothing flows for a long time.
    pub fn repaired(&mut self) -> Result<()> {
        self.repaired_since(&[Instant::now()])
    }

    /// The same, for several such faults that began at these moments: between the first of them and the end no silence may
    /// be long.
    ///
    /// # Errors
    /// When the session ends, or nothing flows for a long time.
    pub fn repaired_since(&mut self, begun: &[Instant]) -> Result<()> {
        let (fed, length) = (self.feeder.written.load(Ordering::Acquire), self.child.output_length());
        let all_words = || format!("malai says: {:?}", self.words());
        let flowing = self.child.wait_for_output_beyond(length, GIVEN_UP).with_context(all_words)?;
        wait_for(GIVEN_UP, "input that was written after the repair is answered", || {
            Ok(self.last_answer().filter(|last| *last > fed))
        })
        .with_context(all_words)?;
        self.go_on_until(flowing + WATCHED).context("after the repair")?;
        self.windows.extend(begun.iter().map(|begun| (*begun, Instant::now())));
        Ok(())
    }

    fn last_answer(&self) -> Option<u64> {
        let tail = self.child.tail(TAIL);
        tail.rsplit(|byte| *byte == b'\n').find_map(|line| lines::number('a', std::str::from_utf8(line).ok()?))
    }

    /// Waits; the session must not end before.
    ///
    /// # Errors
    /// When it does.
    pub fn go_on_until(&self, then: Instant) -> Result<()> {
        match self.child.wait(then.saturating_duration_since(Instant::now())) {
            Ok(status) => bail!("the session ended with {status}; malai says: {:?}", self.words()),
            Err(_) => Ok(()),
        }
    }

    /// Waits for the end, and tells without all the lines when it does not come.
    fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let Ok(status) = self.child.wait(deadline) else {
            bail!("the session did not end within {deadline:?}; malai says: {:?}", self.words());
        };
        Ok(status)
    }

    /// Notes what is not as it must be; the end of the row tells it, with all else.
    pub fn note(&mut self, found: Result<()>) {
        self.problems.note(found);
    }

    /// Ends the input, and checks that the session ends as if there had been no fault.
    ///
    /// # Errors
    /// With everything that is not as it must be.
    pub fn finish(mut self, stage: &Stage) -> Result<Evidence> {
        self.feeder.stop = None;
        let closed = Instant::now();
        self.wait(SOON).context("after the end of the input")?;
        self.judge(stage, closed, true)
    }

    /// Waits for a session that ends by itself while the network is away; it must tell so soon after the repair.
    ///
    /// # Errors
    /// With everything that is not as it must be.
    pub fn finish_by_itself(mut self, stage: &Stage) -> Result<Evidence> {
        let repaired = Instant::now();
        self.wait(GIVEN_UP)?;
        let ended = Instant::now();
        self.windows.push((repaired, ended));
        self.judge(stage, ended, false)
    }

    /// Waits for the end of a session that cannot end well: its exit record is lost, or there is none.
    ///
    /// # Errors
    /// When it does not end in time, or something is missing in what arrived before.
    pub fn end_within(self, deadline: Duration) -> Result<Ended> {
        let status = self.wait(deadline)?;
        let at = Instant::now();
        self.child.wait_for_end_of_output(SOON)?;
        let (stdout, stderr) = (self.child.stdout(), self.child.stderr());
        let arrived = lines::check(&stdout, &stderr)?;
        self.problems.result()?;
        ensure!(!arrived.whole, "the driver ended by itself");
        let evidence = Evidence { bytes: (stdout.len() + stderr.len()) as u64, ..Evidence::default() };
        Ok(Ended { code: status.code(), at, words: lines::own(&stderr), evidence })
    }

    fn judge(mut self, stage: &Stage, closed: Instant, all_input: bool) -> Result<Evidence> {
        self.child.wait_for_end_of_output(SOON)?;
        let status = self.wait(SOON)?;
        let (stdout, stderr) = (self.child.stdout(), self.child.stderr());
        let words = lines::own(&stderr);
        let mut problems = self.problems;
        problems.ensure(status.code() == Some(CODE), || format!("it ended with {status}; malai says: {words:?}"));
        let fed = all_input.then(|| self.feeder.written.load(Ordering::Acquire));
        match lines::check(&stdout, &stderr) {
            Ok(arrived) => {
                problems.ensure(arrived.whole, || format!("the last line is missing: {arrived:?}"));
                let answered = fed.is_none_or(|fed| fed == arrived.answers);
                problems.ensure(answered, || format!("{fed:?} lines of input were written: {arrived:?}"));
            }
            Err(error) => problems.note(Err(error)),
        }
        // It is told once that the connection is lost, and once that it is back.
        let most = 2 * self.windows.len();
        problems.ensure(words.len() <= most, || format!("malai says more than {most} things: {words:#?}"));
        problems.note(ran_once(stage));
        let arrivals = self.child.arrivals();
        let mut evidence = Evidence { bytes: (stdout.len() + stderr.len()) as u64, ..Evidence::default() };
        for (from, until) in self.windows.drain(..) {
            let until = until.min(closed);
            let silences = [silence(&stdout, &arrivals[0], from, until), silence(&stderr, &arrivals[1], from, until)];
            let silence = silences[0].max(silences[1]);
            problems.ensure(silence <= FLOWING, || format!("nothing flowed for {silence:.1?} after the repair"));
            evidence.recoveries.push(silence);
        }
        evidence.handshakes = stage.handshakes().saturating_sub(self.handshakes);
        evidence.losses = words.iter().filter(|line| line.contains("lost")).count() as u64;
        problems.result().with_context(|| stage.logs())?;
        Ok(evidence)
    }
}

impl Ended {
    /// The caller says, between these moments, that the outcome is not known: exit code 253, and an error.
    ///
    /// # Errors
    /// When it says something else, or at another time.
    pub fn lost_between(&self, earliest: Instant, latest: Instant) -> Result<()> {
        let mut problems = Problems::default();
        let Self { code, at, words, .. } = self;
        problems.ensure(*code == Some(253), || format!("it ended with {code:?}, not with 253"));
        let said = words.iter().any(|line| line.starts_with("malai: error: "));
        problems.ensure(said, || format!("malai does not say why: {words:?}"));
        let (early, late) = (earliest.saturating_duration_since(*at), at.saturating_duration_since(latest));
        problems.ensure(early.is_zero(), || format!("it ended {early:.1?} too early: {words:?}"));
        problems.ensure(late.is_zero(), || format!("it ended {late:.1?} too late: {words:?}"));
        problems.result()
    }
}

/// The driver has started on the target exactly once.
///
/// # Errors
/// When it has not.
pub fn ran_once(stage: &Stage) -> Result<()> {
    let started = stage.web01.read(STARTED)?;
    ensure!(started.lines().count() == 1, "the command did not run once, but as processes {:?}", started);
    Ok(())
}

/// The longest time in which nothing of the command came.
fn silence(bytes: &[u8], arrivals: &[Arrival], from: Instant, until: Instant) -> Duration {
    let (mut longest, mut last, mut begin) = (Duration::ZERO, from, 0);
    for arrival in arrivals {
        let piece = bytes.get(begin..arrival.length).unwrap_or_default();
        begin = arrival.length;
        // malai's own words are none of the command's.
        if arrival.at <= from || arrival.at > until || lines::without_own(piece).is_empty() {
            continue;
        }
        longest = longest.max(arrival.at - last);
        last = arrival.at;
    }
    longest.max(until.saturating_duration_since(last))
}

impl Feeder {
    fn start(mut pipe: ChildStdin) -> Self {
        let (stop, stopped) = mpsc::channel();
        let written = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&written);
        thread::spawn(move || {
            while stopped.recv_timeout(INPUT) == Err(RecvTimeoutError::Timeout) {
                let number = count.load(Ordering::Relaxed) + 1;
                // A session that has ended reads no more; who follows it sees that.
                if pipe.write_all(lines::line('i', number).as_bytes()).is_err() {
                    return;
                }
                count.store(number, Ordering::Release);
            }
        });
        Self { stop: Some(stop), written }
    }
}
