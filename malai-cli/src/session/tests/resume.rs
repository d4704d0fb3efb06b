//! What a lost connection does, and what it does not.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::id::{FollowerId, Incarnation, MachineId};
use malai_protocol::session::{Ack, Attached, ExecSpec, Output, Sent, Signal, Started, StopOutput, Superseded};

use super::lab::{Lab, NEVER, SOON, Wish, attached, follower, incarnation, record, started};
use crate::session::InputBegin;
use crate::session::signals::{HUP, INT, TERM};

const BRIEF: Duration = Duration::from_millis(20);
/// Long enough for what a test does in between on a busy machine.
const A_WHILE: Duration = Duration::from_secs(1);

fn refusal(kind: failure::Kind) -> Failure {
    Failure::new(kind, "the reason")
}

#[tokio::test]
async fn output_goes_on_at_the_byte_that_was_received() {
    let mut lab = Lab::started(Wish::default()).await;
    lab.output(Kind::Stdout, b"one ").await;
    lab.output(Kind::Stderr, b"two ").await;
    lab.daemon = None;
    let attach = lab.attach().await;
    assert_eq!((attach.number, attach.follower, attach.out_offset), (2, follower(), 8));
    assert!(attach.binding && !attach.take_over && attach.owner.is_none(), "{attach:?}");
    lab.send(Kind::Attached, &attached(8, 0)).await;
    lab.output(Kind::Stdout, b"three").await;
    assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 13 });
    lab.daemon = None;
    assert_eq!((lab.attach().await.out_offset), 13);
    lab.send(Kind::Attached, &attached(13, 0)).await;
    lab.exit(&record(3, 9, 4)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    assert_eq!((lab.stdout.bytes(), lab.stderr.bytes()), (b"one three".to_vec(), b"two ".to_vec()));
    assert_eq!(lab.outcome().await.expect("a record").exit_code(), 3);
}

#[tokio::test]
async fn input_goes_on_at_the_byte_that_arrived_and_its_end_is_told_again() {
    let stdin = io::Cursor::new(b"0123456789");
    let mut lab = Lab::started(Wish { stdin: Some(Box::new(stdin)), ..Wish::default() }).await;
    assert_eq!(lab.next().await.payload, Bytes::from_static(b"0123456789"));
    assert_eq!(lab.next().await.kind, Kind::StdinEof);
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Attached, &attached(0, 4)).await;
    assert_eq!(lab.next().await.payload, Bytes::from_static(b"456789"));
    assert_eq!(lab.next().await.kind, Kind::StdinEof);
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Attached, &Attached { stdin_closed: true, ..attached(0, 10) }).await;
    lab.exit(&record(0, 0, 0)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    assert!(lab.outcome().await.is_ok());
}

#[tokio::test]
async fn a_request_is_sent_again_with_what_the_first_sending_met() {
    let mut lab = Lab::new(Wish::default()).await;
    lab.flight().await;
    lab.send(Kind::Sent, &Sent { met: Some(incarnation()), reached: None }).await;
    lab.daemon = None;
    for number in 2..5 {
        let resend = lab.again().await;
        assert_eq!((resend.number, resend.met), (number, Some(incarnation())));
        assert!(resend.since_ms < 60_000, "{resend:?}");
        // What a later sending meets proves nothing about the first.
        lab.send(Kind::Sent, &Sent { met: Some(Incarnation::from_bytes([9; 16])), reached: None }).await;
        lab.daemon = None;
    }
    lab.again().await;
    lab.send(Kind::Started, &started()).await;
    lab.exit(&record(0, 0, 0)).await;
    assert!(lab.outcome().await.is_ok());
}

#[tokio::test]
async fn a_first_sending_that_was_not_told_of_met_nobody_whatever_a_later_one_meets() {
    let mut lab = Lab::new(Wish::default()).await;
    lab.flight().await;
    lab.daemon = None;
    assert_eq!(lab.again().await.met, None);
    lab.send(Kind::Sent, &Sent { met: Some(incarnation()), reached: None }).await;
    lab.daemon = None;
    assert_eq!(lab.again().await.met, None);
}

#[tokio::test]
async fn input_follows_a_request_that_is_sent_again_only_when_its_place_is_known() {
    let answers = [
        (Frame::control(Kind::Attached, &attached(0, 4)).unwrap(), &b"456789"[..]),
        (Frame::control(Kind::Started, &started()).unwrap(), b"0123456789"),
    ];
    for (answer, rest) in answers {
        let stdin = io::Cursor::new(b"0123456789");
        let mut lab =
            Lab::new(Wish { stdin: Some(Box::new(stdin)), begin: InputBegin::AtOnce, ..Wish::default() }).await;
        lab.flight().await;
        assert_eq!(lab.next().await.payload, Bytes::from_static(b"0123456789"));
        lab.daemon = None;
        lab.again().await;
        lab.send_frame(answer).await;
        assert_eq!(lab.next().await.payload, rest);
    }
}

#[tokio::test]
async fn a_command_that_is_about_to_run_when_it_is_followed_starts_once() {
    let mut lab = Lab::new(Wish { json: true, ..Wish::default() }).await;
    lab.flight().await;
    lab.daemon = None;
    lab.again().await;
    lab.send(Kind::Attached, &Attached { started: None, ..attached(0, 0) }).await;
    lab.daemon = None;
    // It is not known to run: the request is what is sent.
    lab.again().await;
    lab.send(Kind::Attached, &Attached { started: None, ..attached(0, 0) }).await;
    lab.send(Kind::Started, &started()).await;
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Attached, &attached(0, 0)).await;
    lab.exit(&record(0, 0, 0)).await;
    let stdout = lab.stdout.clone();
    assert!(lab.outcome().await.is_ok());
    let text = String::from_utf8(stdout.bytes()).expect("text");
    assert_eq!(text.matches(r#""event":"started""#).count(), 1, "{text}");
}

#[tokio::test]
async fn a_command_that_could_not_be_started_says_so_on_a_later_attachment() {
    let mut lab = Lab::new(Wish::default()).await;
    lab.flight().await;
    lab.daemon = None;
    lab.again().await;
    lab.send(Kind::Attached, &Attached { started: None, ..attached(0, 0) }).await;
    lab.send(Kind::Refused, &refusal(failure::Kind::NotFound)).await;
    assert_eq!(lab.failure().await.0, 127);
}

#[tokio::test]
async fn not_reached_is_certain_only_when_nothing_was_sent() {
    let unreachable = refusal(failure::Kind::Unreachable);
    // Nothing was sent: certain.
    let mut lab = Lab::new(Wish::default()).await;
    lab.flight().await;
    lab.send(Kind::Refused, &unreachable).await;
    assert_eq!(lab.failure().await.0, 255);

    // The first sending was lost on the way, and a later one did not get there.
    let mut lab = Lab::new(Wish { answer: A_WHILE, ..Wish::default() }).await;
    lab.flight().await;
    lab.daemon = None;
    lab.again().await;
    lab.send(Kind::Refused, &unreachable).await;
    lab.again().await;
    lab.send(Kind::Refused, &unreachable).await;
    lab.fail_dials(Some(unreachable.clone())).await;
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253, "{why}");
    let words =
        "connection to web01.company lost before it answered; whether the command started is not known (the reason)";
    assert_eq!(why, words);

    // It was sent, and then the machine was gone.
    let mut lab = Lab::new(Wish { answer: A_WHILE, ..Wish::default() }).await;
    lab.flight().await;
    lab.send(Kind::Sent, &Sent { met: None, reached: None }).await;
    lab.send(Kind::Refused, &unreachable).await;
    lab.again().await;
    lab.daemon = None;
    lab.fail_dials(Some(unreachable)).await;
    assert_eq!(lab.failure().await.0, 253);
}

#[tokio::test]
async fn what_the_daemon_here_refuses_says_nothing_of_a_request_that_was_sent_before() {
    for (told, code) in [(false, 253), (true, 254)] {
        let mut lab = Lab::new(Wish::default()).await;
        lab.flight().await;
        lab.daemon = None;
        lab.again().await;
        if told {
            lab.send(Kind::Sent, &Sent { met: None, reached: None }).await;
        }
        lab.send(Kind::Refused, &refusal(failure::Kind::Denied)).await;
        assert_eq!(lab.failure().await.0, code, "answered by the target: {told}");
    }
}

#[tokio::test]
async fn a_target_that_cannot_know_whether_it_ran_is_believed() {
    let mut lab = Lab::new(Wish::default()).await;
    lab.flight().await;
    lab.daemon = None;
    lab.again().await;
    lab.send(Kind::Sent, &Sent { met: None, reached: None }).await;
    lab.send(Kind::Refused, &refusal(failure::Kind::Unknown)).await;
    assert_eq!(lab.failure().await, (253, "the reason".to_owned()));
}

#[tokio::test]
async fn who_did_not_read_a_request_that_is_sent_again_says_nothing_of_what_was_sent_before() {
    for later in [failure::Kind::Unreachable, failure::Kind::Busy] {
        let mut lab = Lab::new(Wish::default()).await;
        lab.flight().await;
        lab.daemon = None;
        lab.again().await;
        lab.send(Kind::Sent, &Sent { met: None, reached: None }).await;
        lab.send(Kind::Refused, &refusal(later)).await;
        assert_eq!(lab.again().await.number, 3, "{later:?}");
        lab.send(Kind::Sent, &Sent { met: None, reached: None }).await;
        lab.send(Kind::Refused, &refusal(failure::Kind::NotAMember)).await;
        let (code, why) = lab.failure().await;
        assert_eq!((code, why.contains("whether the command started is not known")), (253, true), "{why}");
    }
}

#[tokio::test]
async fn no_daemon_at_all_is_a_failure_before_the_first_request_and_a_loss_after_it() {
    let mut lab = Lab::started(Wish::default()).await;
    lab.daemon = None;
    lab.dialled().await;
    lab.daemon = None;
    lab.fail_dials(Some(refusal(failure::Kind::Internal))).await;
    lab.fail_dials(None).await;
    let dial = lab.dialled().await;
    assert!(dial.agent, "an agent takes over");
    lab.flight().await;
    lab.send(Kind::Attached, &attached(0, 0)).await;
    lab.exit(&record(0, 0, 0)).await;
    assert!(lab.outcome().await.is_ok());
}

#[tokio::test]
async fn at_once_after_a_loss_no_agent_is_started_and_then_one_is() {
    let mut lab = Lab::started(Wish::default()).await;
    for _ in 0..2 {
        lab.daemon = None;
        assert!(!lab.dialled().await.agent);
        lab.daemon = None;
        assert!(lab.dialled().await.agent);
        lab.flight().await;
        lab.send(Kind::Attached, &attached(0, 0)).await;
    }
}

#[tokio::test]
async fn a_target_that_is_not_there_yet_is_tried_again_and_one_that_knows_better_is_believed() {
    use failure::Kind::{
        Busy, Conflict, Denied, Internal, NotAMember, NotConfigured, Unknown, UnknownTarget, Unreachable,
    };
    for kind in [Unknown, Denied, NotAMember, UnknownTarget, Conflict] {
        let mut lab = Lab::started(Wish::default()).await;
        lab.daemon = None;
        for later in [Unreachable, NotConfigured, Busy, Internal] {
            lab.attach().await;
            lab.send(Kind::Refused, &refusal(later)).await;
        }
        lab.attach().await;
        lab.send(Kind::Refused, &refusal(kind)).await;
        let (code, why) = lab.failure().await;
        assert_eq!(code, 253, "{kind:?}: it did start");
        assert!(why.ends_with("cannot be followed again; whether it ended is not known: the reason"), "{why}");
    }
}

#[tokio::test]
async fn a_loss_that_lasts_is_told_once_and_its_end_too() {
    let mut lab = Lab::started(Wish { json: true, say: BRIEF, ..Wish::default() }).await;
    lab.daemon = None;
    lab.attach().await;
    lab.stderr.contains("malai: connection to web01.company lost, the command goes on; retrying…\n").await;
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Attached, &attached(0, 0)).await;
    lab.stderr.contains("malai: connection to web01.company is back after 0 s\n").await;
    lab.exit(&record(0, 0, 0)).await;
    let (stdout, stderr) = (lab.stdout.clone(), lab.stderr.clone());
    assert!(lab.outcome().await.is_ok());
    assert_eq!(String::from_utf8_lossy(&stderr.bytes()).lines().count(), 2);
    let text = String::from_utf8(stdout.bytes()).expect("text");
    let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("json")).collect();
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().expect("a name")).collect();
    assert_eq!(names, ["started", "lost", "back", "exit"]);
    assert!(events[2]["after_ms"].as_u64().expect("a number") >= 20);
}

#[tokio::test]
async fn a_short_loss_is_not_told() {
    let mut lab = Lab::started(Wish { json: true, say: SOON, ..Wish::default() }).await;
    for _ in 0..3 {
        lab.daemon = None;
        lab.attach().await;
        lab.send(Kind::Attached, &attached(0, 0)).await;
    }
    lab.exit(&record(0, 0, 0)).await;
    let (stdout, stderr) = (lab.stdout.clone(), lab.stderr.clone());
    assert!(lab.outcome().await.is_ok());
    assert_eq!(stderr.bytes(), b"");
    assert_eq!(String::from_utf8_lossy(&stdout.bytes()).lines().count(), 2);
}

#[tokio::test]
async fn a_loss_that_lasts_too_long_leaves_the_outcome_unknown() {
    let mut lab = Lab::started(Wish { lost: A_WHILE, ..Wish::default() }).await;
    lab.output(Kind::Stdout, b"abc").await;
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Refused, &refusal(failure::Kind::Unreachable)).await;
    lab.fail_dials(Some(refusal(failure::Kind::Unreachable))).await;
    let stdout = lab.stdout.clone();
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    let words = "connection to web01.company lost for 1 s; whether the command ended is not known, and it may still run \
                 there until 10 min after the loss (the reason)";
    assert_eq!(why, words);
    assert_eq!(stdout.bytes(), b"abc", "what arrived is written");
}

#[tokio::test]
async fn the_time_without_a_loss_does_not_count() {
    let mut lab = Lab::started(Wish { lost: 2 * A_WHILE, ..Wish::default() }).await;
    for _ in 0..4 {
        lab.daemon = None;
        lab.attach().await;
        tokio::time::sleep(A_WHILE * 6 / 10).await;
        lab.send(Kind::Attached, &attached(0, 0)).await;
    }
    lab.exit(&record(0, 0, 0)).await;
    assert!(lab.outcome().await.is_ok());
}

#[tokio::test]
async fn the_target_says_how_long_a_loss_may_last_and_no_number_of_its_breaks_the_clock() {
    for (grace_ms, ends) in [(1000, true), (u64::MAX, false)] {
        let mut lab = Lab::new(Wish::default()).await;
        lab.flight().await;
        lab.send(Kind::Started, &Started { grace_ms: Some(grace_ms), ..started() }).await;
        lab.daemon = None;
        lab.attach().await;
        if ends {
            let (code, why) = lab.failure().await;
            assert_eq!(code, 253);
            assert!(why.contains("lost for 1 s"), "{why}");
        } else {
            lab.send(Kind::Attached, &attached(0, 0)).await;
            lab.exit(&record(0, 0, 0)).await;
            assert!(lab.outcome().await.is_ok());
        }
    }
}

#[tokio::test]
async fn a_command_that_ends_with_its_connection_is_asked_for_its_record_and_not_for_long() {
    let wish = || Wish { kill_on_lost: true, ending: A_WHILE, ..Wish::default() };
    let mut lab = Lab::new(wish()).await;
    let spec: ExecSpec = lab.flight().await.decode().expect("a command");
    assert!(spec.kill_on_lost);
    lab.send(Kind::Started, &started()).await;
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Attached, &attached(0, 0)).await;
    lab.exit(&record(9, 0, 0)).await;
    assert_eq!(lab.outcome().await.expect("a record").exit_code(), 9);

    let mut lab = Lab::started(wish()).await;
    lab.daemon = None;
    lab.attach().await;
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("which ends the command (--kill-on-lost); how it ended is not known"), "{why}");
}

#[tokio::test]
async fn a_superseded_session_says_by_whom_and_never_tries_again() {
    let by: MachineId = MachineId::from_bytes({
        let mut base = [0x66; 32];
        base[0] = 0x58;
        base
    })
    .expect("the base point of the curve is a key");
    let mut lab = Lab::started(Wish::default()).await;
    lab.send(Kind::Superseded, &Superseded { by, follower: FollowerId::from_bytes([0xab; 16]) }).await;
    assert_eq!(lab.rest().await, []);
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains(&format!("followed from elsewhere now, by process abababab of machine {by}")), "{why}");
}

#[tokio::test]
async fn signals_that_were_sent_before_a_loss_are_sent_again_and_say_so() {
    let mut lab = Lab::started(Wish { second_int: Duration::ZERO, ..Wish::default() }).await;
    lab.signal(&[INT]).await;
    assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number: INT, order: 1 });
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Attached, &attached(0, 0)).await;
    assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number: INT, order: 1 });
    lab.signal(&[TERM]).await;
    assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number: TERM, order: 2 });
    lab.exit(&record(0, 0, 0)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
}

#[tokio::test]
async fn signals_during_a_loss_reach_the_command_when_it_is_followed_again() {
    let mut lab = Lab::started(Wish { second_int: Duration::ZERO, ..Wish::default() }).await;
    lab.daemon = None;
    lab.attach().await;
    lab.signal(&[INT, HUP, INT]).await;
    lab.signal(&[TERM; 14]).await;
    lab.send(Kind::Attached, &attached(0, 0)).await;
    // So many are kept, the last ones.
    for (order, number) in (2..).zip([HUP, INT].into_iter().chain([TERM; 14])) {
        assert_eq!(lab.expect::<Signal>(Kind::Signal).await, Signal { number, order });
    }
    lab.exit(&record(0, 0, 0)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
}

#[tokio::test]
async fn the_caller_can_leave_while_the_connection_is_lost() {
    for (signals, ending, words) in
        [(vec![INT, INT], NEVER, "interrupted twice"), (vec![TERM], BRIEF, "the command did not react to the signal")]
    {
        let mut lab = Lab::started(Wish { ending, ..Wish::default() }).await;
        lab.daemon = None;
        lab.attach().await;
        signals.iter().for_each(|number| lab.signals.send(*number).expect("listens"));
        assert_eq!(lab.rest().await, [], "closed without a goodbye");
        let (code, why) = lab.failure().await;
        assert_eq!(code, 253);
        assert!(why.starts_with(words) && why.contains("is lost"), "{why}");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_between_two_tries_has_the_daemon_tell_the_target() {
    let mut lab = Lab::started(Wish { retry: NEVER, ..Wish::default() }).await;
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Refused, &refusal(failure::Kind::Unreachable)).await;
    assert_eq!(lab.rest().await, [], "the next try is far away");
    lab.signals.send(INT).expect("listens");
    lab.signals.send(INT).expect("listens");
    assert_eq!(lab.attach().await.number, 3);
    assert_eq!(lab.rest().await, [], "closed without a goodbye");
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert!(why.contains("interrupted twice"), "{why}");
}

#[tokio::test]
async fn a_reader_that_left_during_a_loss_stops_the_stream_on_the_next_connection_too() {
    let mut lab = Lab::started(Wish::default()).await;
    lab.stdout.set(|state| state.error = Some(io::ErrorKind::BrokenPipe));
    lab.output(Kind::Stdout, b"abc").await;
    for _ in 0..2 {
        lab.daemon = None;
        lab.attach().await;
        lab.send(Kind::Attached, &attached(3, 0)).await;
        assert_eq!(lab.expect::<StopOutput>(Kind::StopOutput).await, StopOutput { stream: Output::Stdout });
    }
    lab.exit(&record(141, 3, 0)).await;
    assert_eq!(lab.outcome().await.expect("a record").exit_code(), 141);
}
