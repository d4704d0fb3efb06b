//! A command that is started and left.

use malai_protocol::codec::Kind;
use malai_protocol::failure::{self, Failure};
use malai_protocol::session::{Attached, ExecSpec, Sent};

use super::lab::{Lab, Wish, attached, incarnation, started};
use crate::session::SessionEnd;
use crate::session::signals::INT;

fn detached() -> Wish {
    Wish { detach: true, ..Wish::default() }
}

#[tokio::test]
async fn who_detaches_leaves_in_good_order_as_soon_as_the_command_runs() {
    let mut lab = Lab::new(detached()).await;
    let spec: ExecSpec = lab.flight().await.expect(Kind::Exec, "the command").unwrap();
    assert!(spec.detach && !spec.stdin, "{spec:?}");
    lab.send(Kind::Started, &started()).await;
    // What comes after it is not waited for.
    lab.output(Kind::Stdout, b"output").await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    let stdout = lab.stdout.clone();
    let SessionEnd::Detached(told) = lab.end().await.expect("runs") else { panic!("detached") };
    assert_eq!((told, stdout.bytes()), (started(), Vec::new()));
}

#[tokio::test]
async fn a_detached_command_is_sent_again_as_one_until_it_is_known_to_run() {
    let mut lab = Lab::new(detached()).await;
    lab.flight().await;
    lab.send(Kind::Sent, &Sent { met: Some(incarnation()), reached: None }).await;
    lab.daemon = None;
    lab.dialled().await;
    let spec: ExecSpec = lab.flight().await.expect(Kind::Exec, "the command").unwrap();
    let resend = spec.resend.expect("sent before");
    assert!(spec.detach && resend.number == 2 && resend.met == Some(incarnation()), "{spec:?}");
    // It was taken the first time, is about to run, and runs.
    lab.send(Kind::Attached, &Attached { started: None, ..attached(0, 0) }).await;
    lab.send(Kind::Started, &started()).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    assert!(matches!(lab.end().await, Ok(SessionEnd::Detached(_))));
}

#[tokio::test]
async fn a_detached_command_that_ran_since_the_first_sending_counts_as_started() {
    let mut lab = Lab::new(detached()).await;
    lab.flight().await;
    lab.daemon = None;
    lab.again().await;
    lab.send(Kind::Attached, &attached(0, 0)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    assert!(matches!(lab.end().await, Ok(SessionEnd::Detached(_))));
}

#[tokio::test]
async fn a_refused_or_interrupted_start_is_none() {
    let mut lab = Lab::new(detached()).await;
    lab.flight().await;
    lab.send(Kind::Refused, &Failure::new(failure::Kind::Denied, "no")).await;
    assert_eq!(lab.failure().await, (254, "no".into()));
    let mut lab = Lab::new(detached()).await;
    lab.flight().await;
    lab.signal(&[INT]).await;
    assert_eq!(lab.rest().await, [], "no goodbye to what may be about to start");
    let (code, why) = lab.failure().await;
    assert!(code == 253 && why.contains("whether the command started is not known"), "{code}: {why}");
}
