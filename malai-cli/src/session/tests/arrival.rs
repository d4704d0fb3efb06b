//! Waiting for a machine that is not there.

use std::io;

use malai_protocol::codec::Kind;
use malai_protocol::failure::{self, Failure};
use malai_protocol::session::{ExecSpec, Sent};
use tokio::time::timeout;

use super::lab::{Lab, NEVER, SOON, Wish, incarnation, record, started};
use crate::session::signals::INT;
use crate::session::{InputBegin, SessionEnd};

fn waiting() -> Wish {
    Wish { wait: Some(NEVER), ..Wish::default() }
}

fn away() -> Failure {
    let why = "web01.company cannot be reached: no answer; last seen 40 s ago; relay https://r cannot be used: gone";
    Failure::new(failure::Kind::Unreachable, why).seen("last seen 40 s ago")
}

/// The request that comes next, which has to be one that is sent for the first time.
async fn first(lab: &mut Lab) {
    let spec: ExecSpec = lab.flight().await.expect(Kind::Exec, "the command").expect("sound");
    assert_eq!(spec.resend, None);
}

#[tokio::test]
async fn a_machine_that_is_not_there_is_told_once_and_asked_for_the_first_time_when_it_comes() {
    let mut lab = Lab::new(waiting()).await;
    for _ in 0..3 {
        first(&mut lab).await;
        lab.send(Kind::Refused, &away()).await;
        lab.dialled().await;
    }
    first(&mut lab).await;
    lab.send(Kind::Sent, &Sent { met: None, reached: None }).await;
    lab.send(Kind::Started, &started()).await;
    lab.exit(&record(0, 0, 0)).await;
    lab.rest().await;
    let words = "malai: web01.company is not there (last seen 40 s ago); waiting for it to come…\n";
    assert_eq!(String::from_utf8_lossy(&lab.stderr.bytes()), words);
    assert!(lab.outcome().await.is_ok());
}

#[tokio::test]
async fn a_request_that_was_on_its_way_is_never_sent_as_a_first_one_again() {
    let mut lab = Lab::new(waiting()).await;
    first(&mut lab).await;
    lab.send(Kind::Sent, &Sent { met: Some(incarnation()), reached: None }).await;
    lab.send(Kind::Refused, &away()).await;
    let resend = lab.again().await;
    assert_eq!((resend.number, resend.met), (2, Some(incarnation())));
}

#[tokio::test]
async fn what_else_is_refused_is_not_waited_for() {
    for kind in [failure::Kind::Denied, failure::Kind::UnknownTarget, failure::Kind::NotAMember] {
        let mut lab = Lab::new(waiting()).await;
        first(&mut lab).await;
        lab.send(Kind::Refused, &Failure::new(kind, "the reason")).await;
        assert_eq!(lab.failure().await, (kind.exit_code(), "the reason".into()));
    }
}

#[tokio::test]
async fn input_is_kept_back_until_the_request_is_on_its_way() {
    let stdin = io::Cursor::new(b"0123456789");
    let mut lab = Lab::new(Wish { stdin: Some(Box::new(stdin)), begin: InputBegin::AtOnce, ..waiting() }).await;
    first(&mut lab).await;
    lab.send(Kind::Refused, &away()).await;
    assert_eq!(lab.rest().await, [], "nothing follows the request");
    lab.dialled().await;
    first(&mut lab).await;
    lab.send(Kind::Sent, &Sent { met: None, reached: None }).await;
    assert_eq!(lab.next().await.kind, Kind::Stdin);
}

#[tokio::test]
async fn an_interrupt_hangs_up_and_is_certain_when_the_daemon_closes_without_having_sent() {
    let mut lab = Lab::new(waiting()).await;
    first(&mut lab).await;
    lab.signal(&[INT]).await;
    assert_eq!(lab.rest().await, [], "it hangs up and says no more");
    assert!(!lab.session.is_finished(), "it waits for the daemon's last word");
    lab.daemon = None;
    assert!(matches!(lab.end().await, Ok(SessionEnd::Left { signal: INT, followed: false })));
}

#[tokio::test]
async fn an_interrupt_that_is_sent_twice_at_once_ends_the_waiting_as_one_does() {
    let mut lab = Lab::new(Wish { same_signal: NEVER, ..waiting() }).await;
    first(&mut lab).await;
    lab.signal(&[INT, INT]).await;
    assert_eq!(lab.rest().await, [], "it hangs up and says no more");
    lab.daemon = None;
    assert!(matches!(lab.end().await, Ok(SessionEnd::Left { signal: INT, followed: false })));
}

#[tokio::test]
async fn an_interrupt_that_comes_too_late_is_an_unknown_outcome() {
    let mut lab = Lab::new(waiting()).await;
    first(&mut lab).await;
    lab.signal(&[INT]).await;
    lab.rest().await;
    lab.send(Kind::Sent, &Sent { met: None, reached: None }).await;
    let (code, why) = lab.failure().await;
    assert_eq!((code, why.contains("whether the command started is not known")), (253, true), "{why}");
}

#[tokio::test]
async fn a_waiting_that_is_over_is_a_machine_that_was_not_reached() {
    let mut lab = Lab::new(Wish { wait: Some(std::time::Duration::from_millis(1)), ..Wish::default() }).await;
    first(&mut lab).await;
    lab.send(Kind::Refused, &away()).await;
    let failed = timeout(SOON, lab.failure()).await.expect("in time");
    assert_eq!(failed, (255, away().message));
}
