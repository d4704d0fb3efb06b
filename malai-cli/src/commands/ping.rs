//! `malai ping`.

use std::time::Duration;

use futures_util::StreamExt;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{self, MIN_PING_INTERVAL_MS, PingAnswer, PingOutcome, Request, Response};
use malai_protocol::target::Target;
use serde::Serialize;

use super::Context;
use crate::output::Output;
use crate::session::SignalStream;
use crate::{client, duration, stdio};

/// Is the exit code when no answer came, or none over a direct path where one was waited for.
const EXIT_NO_ANSWER: u8 = 1;

/// Show whether a machine answers, how fast, and over which path
///
/// Runs until interrupted, then prints a summary on standard error. Exits with 0 when an answer came (with --until-direct:
/// over a direct path), with 1 when none did, and with 255 when there was no connection at all within --connect-timeout.
/// Works for every machine of the cluster, without a grant.
#[derive(Debug, clap::Args)]
pub(crate) struct Ping {
    /// Stop after N pings; default: when interrupted
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Time between pings, at least 100ms
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "1s")]
    interval: Duration,
    /// End as soon as an answer comes over a direct path, without a relay
    #[arg(long)]
    until_direct: bool,
    /// How long to wait for the first connection
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10s")]
    connect_timeout: Duration,
    /// The machine: web01.company
    target: String,
}

fn interval(text: &str) -> Result<Duration, String> {
    let span = duration::parse(text)?;
    if duration::millis(span) < MIN_PING_INTERVAL_MS {
        return Err(format!("must be at least {MIN_PING_INTERVAL_MS}ms"));
    }
    Ok(span)
}

/// Is one line of `malai ping --json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line<'a> {
    /// An answer came.
    Answer { target: &'a str, seq: u64, rtt_us: u64, path: &'a str, direct: bool },
    /// No answer came.
    NoAnswer { target: &'a str, seq: u64, after_ms: u64 },
}

impl Ping {
    /// Pings until enough is known, and returns the exit code.
    ///
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        // A ping runs no command, so the user does not matter.
        let target = Target { user: None, ..self.target.parse()? };
        let mut tally = Tally::default();
        let ended = client::block_on(self.follow(cx, &target, &mut tally));
        if ended.is_ok() || tally.sent() > 0 {
            cx.out.last_note(&tally.summary());
        }
        ended?;
        let code = tally.code(self.until_direct);
        if code != 0 && self.until_direct && tally.answered > 0 {
            cx.out.last_note("no answer came over a direct path");
        }
        Ok(code)
    }

    fn request(&self, target: &Target) -> Request {
        Request::Ping(local::Ping {
            machine: target.machine.clone(),
            cluster: target.cluster.clone(),
            connect_timeout_ms: duration::millis(self.connect_timeout),
            interval_ms: duration::millis(self.interval),
            count: self.count,
        })
    }

    /// Shows each ping until there were enough, a signal comes, or the reader leaves.
    async fn follow(&self, cx: &Context, target: &Target, tally: &mut Tally) -> Result<(), Failure> {
        let mut signals = SignalStream::listen()?;
        let (name, request) = (target.to_string(), self.request(target));
        let mut frames = tokio::select! {
            _ = signals.next() => return Ok(()),
            begun = client::begin(&cx.home, &request, cx.out) => begun?,
        };
        loop {
            let response = tokio::select! {
                _ = signals.next() => return Ok(()),
                response = client::next(&mut frames) => response.map_err(broke_off)?,
            };
            match response {
                Response::Progress(words) => cx.out.note(&words),
                Response::Ping(answer) => {
                    tally.note(&answer.outcome);
                    show(cx.out, &name, &answer)?;
                    if self.until_direct && tally.direct || stdio::is_abandoned(&std::io::stdout()) {
                        return Ok(());
                    }
                }
                Response::Done => return Ok(()),
                Response::Failed(failure) => return Err(failure),
                _ => return Err(client::unexpected()),
            }
        }
    }
}

/// Reports that the daemon went away. Nothing was begun whose end could be unknown.
fn broke_off(failure: Failure) -> Failure {
    if failure.kind != Kind::Unknown {
        return failure;
    }
    Failure { kind: Kind::Internal, message: "the daemon here ended, or is too old for pings".into(), ..failure }
        .hint("see: malai daemon status; when it is of another version: malai daemon restart")
}

fn show(out: Output, target: &str, answer: &PingAnswer) -> Result<(), Failure> {
    if out.json { out.document(&line(target, answer)) } else { out.row(&words(target, answer)) }
}

fn line<'a>(target: &'a str, answer: &'a PingAnswer) -> Line<'a> {
    let (seq, direct) = (answer.seq, answer.outcome.is_direct());
    match &answer.outcome {
        PingOutcome::Answered { rtt_us, path } => Line::Answer { target, seq, rtt_us: *rtt_us, path, direct },
        PingOutcome::Lost { after_ms } => Line::NoAnswer { target, seq, after_ms: *after_ms },
    }
}

fn words(target: &str, PingAnswer { seq, outcome }: &PingAnswer) -> String {
    match outcome {
        PingOutcome::Answered { rtt_us, path } => format!("answer {seq} from {target}: {} ms, {path}", ms(*rtt_us)),
        PingOutcome::Lost { after_ms } => {
            let within = duration::words(Duration::from_millis(*after_ms));
            format!("no answer {seq} from {target} within {within}")
        }
    }
}

/// Writes microseconds as milliseconds with one digit after the point.
fn ms(us: u64) -> String {
    format!("{:.1}", us as f64 / 1000.0)
}

/// Counts what came of all pings. One whose end is not known yet is not among them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    answered: u64,
    lost: u64,
    direct: bool,
    least_us: u64,
    most_us: u64,
    sum_us: u64,
}

impl Tally {
    fn note(&mut self, outcome: &PingOutcome) {
        self.direct |= outcome.is_direct();
        match outcome {
            PingOutcome::Lost { .. } => self.lost += 1,
            PingOutcome::Answered { rtt_us, .. } => {
                self.least_us = if self.answered == 0 { *rtt_us } else { self.least_us.min(*rtt_us) };
                self.most_us = self.most_us.max(*rtt_us);
                self.sum_us = self.sum_us.saturating_add(*rtt_us);
                self.answered += 1;
            }
        }
    }

    fn sent(&self) -> u64 {
        self.answered + self.lost
    }

    fn code(&self, until_direct: bool) -> u8 {
        let enough = if until_direct { self.direct } else { self.answered > 0 };
        if enough { 0 } else { EXIT_NO_ANSWER }
    }

    /// Returns how many of a hundred were lost: neither 0 nor 100 unless it is so exactly.
    fn lost_percent(&self) -> u64 {
        match (self.lost, self.answered) {
            (0, _) => 0,
            (_, 0) => 100,
            (lost, _) => ((lost as f64 * 100.0 / self.sent() as f64).round() as u64).clamp(1, 99),
        }
    }

    fn summary(&self) -> String {
        let Self { answered, least_us, most_us, sum_us, .. } = self;
        let counts = format!("{} sent, {answered} answered, {}% lost", self.sent(), self.lost_percent());
        match sum_us.checked_div(*answered) {
            None => counts,
            Some(mean) => format!("{counts}; {}/{}/{} ms (min/mean/max)", ms(*least_us), ms(mean), ms(*most_us)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: &str = "relay https://relay.example/";
    const DIRECT: &str = "direct 192.0.2.7:4001";

    fn answered(rtt_us: u64, path: &str) -> PingOutcome {
        PingOutcome::Answered { rtt_us, path: path.into() }
    }

    fn lost() -> PingOutcome {
        PingOutcome::Lost { after_ms: 1000 }
    }

    fn tally(outcomes: &[PingOutcome]) -> Tally {
        let mut tally = Tally::default();
        outcomes.iter().for_each(|outcome| tally.note(outcome));
        tally
    }

    #[test]
    fn a_line_tells_the_time_and_the_path_or_the_loss() {
        let line = |seq, outcome| words("web01.company", &PingAnswer { seq, outcome });
        assert_eq!(
            line(1, answered(12_345, RELAY)),
            "answer 1 from web01.company: 12.3 ms, relay https://relay.example/"
        );
        assert_eq!(line(2, answered(1_100, DIRECT)), "answer 2 from web01.company: 1.1 ms, direct 192.0.2.7:4001");
        assert_eq!(line(3, lost()), "no answer 3 from web01.company within 1 s");
    }

    #[test]
    fn a_line_of_json_has_its_event_and_the_exact_numbers() {
        let json = |seq, outcome| serde_json::to_value(line("web01.c", &PingAnswer { seq, outcome })).expect("json");
        assert_eq!(
            json(1, answered(12_345, RELAY)),
            serde_json::json!({ "event": "answer", "target": "web01.c", "seq": 1, "rtt_us": 12_345, "path": RELAY, "direct": false })
        );
        assert_eq!(json(2, answered(1, DIRECT))["direct"], true);
        assert_eq!(
            json(3, lost()),
            serde_json::json!({ "event": "no-answer", "target": "web01.c", "seq": 3, "after_ms": 1000 })
        );
    }

    #[test]
    fn the_summary_has_counts_loss_and_times() {
        let three = tally(&[answered(12_300, RELAY), answered(1_100, DIRECT), lost()]);
        assert_eq!(three.summary(), "3 sent, 2 answered, 33% lost; 1.1/6.7/12.3 ms (min/mean/max)");
        assert_eq!(tally(&[lost(), lost()]).summary(), "2 sent, 0 answered, 100% lost");
        assert_eq!(tally(&[]).summary(), "0 sent, 0 answered, 0% lost");
    }

    #[test]
    fn a_loss_is_never_rounded_to_none_or_all() {
        let of = |answered, lost| Tally { answered, lost, ..Tally::default() }.lost_percent();
        assert_eq!([of(1000, 1), of(1, 1000), of(1000, 0), of(0, 1000), of(1, 1)], [1, 99, 0, 100, 50]);
    }

    #[test]
    fn an_answer_is_enough_unless_a_direct_one_is_waited_for() {
        let relayed = tally(&[lost(), answered(1, RELAY)]);
        assert_eq!((relayed.code(false), relayed.code(true)), (0, 1));
        let direct = tally(&[answered(1, DIRECT), lost()]);
        assert_eq!((direct.code(false), direct.code(true)), (0, 0));
        assert_eq!(tally(&[lost()]).code(false), 1);
        assert_eq!(tally(&[]).code(false), 1);
    }

    #[test]
    fn an_interval_has_at_least_a_tenth_of_a_second() {
        assert_eq!(interval("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(interval("99ms"), Err("must be at least 100ms".into()));
        assert!(interval("0").is_err());
    }
}
