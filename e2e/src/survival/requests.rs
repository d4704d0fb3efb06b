//! Requests that are cut before their answer, at random points: each runs exactly once, or is reported as not run or as
//! unknown.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::lines::draw;
use super::stage::{Stage, pid};
use super::traffic::{CODE, GIVEN_UP};
use super::{Evidence, Problems, Row, Scale};
use crate::cluster::{malai, start};
use crate::lab::{Child, Host, wait_for};

/// Requests that are under way when one fault happens.
const AT_ONCE: u64 = 5;
/// What a frame needs for each way: a request has its answer after twice that.
const DELAY: Duration = Duration::from_millis(75);
/// In which milliseconds after the requests begin a fault happens: until the last has its answer.
const WITHIN: u64 = 250;
/// Where each request says that it ran.
const RAN: &str = "/root/ran";

pub(super) fn rows(scale: Scale) -> Vec<Row> {
    let count = scale.pick(40, 200);
    vec![Row::new(format!("{count}_requests_that_are_cut_each_run_once_or_are_not_said_to_have_run"), move || {
        cut_requests(count)
    })]
}

/// What happens to requests.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Partition(Duration),
    CallersDaemon,
    TargetsDaemon,
    Executor,
}

const FAULTS: [Fault; 5] = [
    Fault::Partition(Duration::from_millis(1500)),
    Fault::TargetsDaemon,
    Fault::Partition(Duration::from_secs(7)),
    Fault::CallersDaemon,
    Fault::Executor,
];

fn cut_requests(count: u64) -> Result<Evidence> {
    let stage = Stage::segment()?;
    stage.wire.set_delay(DELAY);
    stage.web01.run(["mkdir", RAN])?.success()?;
    let mut problems = Problems::default();
    let (mut ended, mut unanswered) = (Vec::new(), 0);
    for (round, fault) in (0..count / AT_ONCE).zip(FAULTS.iter().cycle()) {
        let requests = cut(&stage, round, *fault, &mut unanswered)?;
        for (file, request) in requests {
            let output = request.output_within(GIVEN_UP)?;
            ended.push((file, *fault, output));
        }
        wait_for(GIVEN_UP, &format!("commands run again after {fault:?}"), || {
            Ok(stage.company.ran_remotely(&stage.laptop, &stage.web01).ok())
        })?;
    }
    // Otherwise nothing was cut. On a busy machine a fault comes later than its random point, and more have an answer.
    problems
        .ensure(unanswered >= count / 10, || format!("only {unanswered} requests had no answer when the fault came"));
    let mut evidence = Evidence::default();
    for (file, fault, output) in ended {
        let ran = runs(&stage.web01, &file)?;
        let (kind, holds) = match output.code() {
            Some(code) if code == CODE => (0, ran == 1 && output.stdout == b"ran\n"),
            Some(255) => (1, ran == 0 && output.stdout.is_empty()),
            Some(253) => (2, ran <= 1),
            _ => (2, false),
        };
        evidence.requests[kind] += 1;
        problems.ensure(holds, || {
            let (status, said) = (output.status, output.error_text());
            format!("{fault:?}: {file} ran {ran} times, and ended with {status}, {:?}, {said}", output.text())
        });
    }
    problems.result()?;
    Ok(evidence)
}

/// Sends some requests, and has a fault happen at a random point; what had the fault is whole again at the end.
fn cut(stage: &Stage, round: u64, fault: Fault, unanswered: &mut u64) -> Result<Vec<(String, Child)>> {
    let victim = match fault {
        Fault::Partition(_) => None,
        Fault::CallersDaemon => Some((&stage.laptop, pid(&stage.laptop, "/pid")?)),
        Fault::TargetsDaemon => Some((&stage.web01, pid(&stage.web01, "/pid")?)),
        Fault::Executor => Some((&stage.web01, pid(&stage.web01, "/executor_pid")?)),
    };
    let code = CODE.to_string();
    let mut requests = Vec::new();
    for number in 0..AT_ONCE {
        let file = format!("{RAN}/{round}-{number}");
        let words = ["--lost-after", "20s", "web01.company", "--", "malai-lab-driver", "once", &file, &code];
        let request = stage.laptop.spawn(malai(words))?;
        requests.push((file, request));
    }
    // The random point, not a wait for anything.
    thread::sleep(Duration::from_millis(draw(7, round, WITHIN)));
    *unanswered += requests.iter().filter(|(_, request)| request.output_length() == 0).count() as u64;
    match (fault, victim) {
        (Fault::Partition(length), _) => {
            stage.wire.cut();
            thread::sleep(length);
            stage.wire.mend();
        }
        (_, Some((host, pid))) => {
            host.run(["kill", "-KILL", &pid])?.success()?;
            if !matches!(fault, Fault::Executor) {
                start(host)?;
            }
        }
        (_, None) => {}
    }
    Ok(requests)
}

/// How often a request ran.
fn runs(host: &Host, file: &str) -> Result<usize> {
    if !host.exists(file)? {
        return Ok(0);
    }
    Ok(host.read(file)?.lines().count())
}
