//! One who looks on: replay, gaps, losses, and leaving.

use std::io;
use std::time::Duration;

use malai_protocol::codec::Kind;
use malai_protocol::failure::{self, Failure};
use malai_protocol::id::{FollowerId, Incarnation};
use malai_protocol::session::{Ack, Attach, Attached, ExitRecord, StdinAck, Superseded};
use tokio::time::timeout;

use super::lab::{Lab, NEVER, SOON, Wish, attached, follower, owner, record, started};
use crate::session::SessionEnd;
use crate::session::signals::{HUP, INT, QUIT, TERM};

const BRIEF: Duration = Duration::from_millis(20);
/// Long enough for what a test does in between on a busy machine.
const A_WHILE: Duration = Duration::from_secs(1);

fn watch(from_end: bool) -> Wish {
    Wish { watch: Some(from_end), ..Wish::default() }
}

/// The record at the end, and the text of all that was said: it is there when the session has ended, and not before.
async fn ended(lab: Lab) -> (ExitRecord, String) {
    let stderr = lab.stderr.clone();
    let record = lab.outcome().await.expect("a record");
    (record, String::from_utf8(stderr.bytes()).expect("text"))
}

#[tokio::test]
async fn what_is_kept_is_shown_and_the_record_is_the_end() {
    let mut lab = Lab::watching(Wish::default(), 0).await;
    lab.output(Kind::Stdout, b"earlier ").await;
    lab.output(Kind::Stderr, b"oh").await;
    lab.output(Kind::Stdout, b"now").await;
    while lab.expect::<Ack>(Kind::Ack).await.out_offset < 13 {}
    lab.exit(&record(3, 11, 2)).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    let stdout = lab.stdout.clone();
    assert_eq!(ended(lab).await, (record(3, 11, 2), "oh".to_owned()));
    assert_eq!(stdout.bytes(), b"earlier now");
}

#[tokio::test]
async fn a_place_is_taken_over_and_the_end_is_asked_for_only_until_the_session_is_followed() {
    let mut lab = Lab::new(watch(true)).await;
    let first: Attach = lab.flight().await.expect(Kind::Attach, "to follow").unwrap();
    assert!(first.take_over && first.or_watch && first.from_end && !first.binding, "{first:?}");
    assert_eq!((first.number, first.out_offset, first.owner, first.follower), (1, 0, Some(owner()), follower()));
    lab.send(Kind::Attached, &attached(100, 0)).await;
    lab.output(Kind::Stdout, b"new").await;
    assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 103 });
    lab.daemon = None;
    let second = lab.attach().await;
    assert!(!second.take_over && !second.or_watch && !second.from_end && !second.binding, "{second:?}");
    assert_eq!((second.number, second.out_offset, second.owner), (2, 103, Some(owner())));
    lab.send(Kind::Attached, &attached(103, 0)).await;
    lab.exit(&record(0, 103, 0)).await;
    assert_eq!(ended(lab).await, (record(0, 103, 0), String::new()), "what was before is not missed");
}

#[tokio::test]
async fn one_that_may_only_look_on_is_told_so_once_and_leaves_by_an_interrupt() {
    let mut lab = Lab::new(watch(false)).await;
    let _first: Attach = lab.flight().await.expect(Kind::Attach, "to follow").unwrap();
    lab.send(Kind::Attached, &Attached { watches: true, ..attached(0, 0) }).await;
    lab.output(Kind::Stdout, b"out").await;
    assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 3 });
    lab.daemon = None;
    assert!(!lab.attach().await.take_over);
    lab.send(Kind::Attached, &Attached { watches: true, ..attached(3, 0) }).await;
    lab.output(Kind::Stdout, b"put").await;
    assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 6 });
    lab.signal(&[INT]).await;
    assert_eq!(lab.rest().await, [Kind::Goodbye]);
    let stderr = lab.stderr.clone();
    assert!(matches!(lab.end().await, Ok(SessionEnd::Left { signal: INT, followed: true })));
    let said = String::from_utf8(stderr.bytes()).expect("text");
    assert_eq!(said.matches("this machine may only watch").count(), 1, "{said}");
    assert!(said.contains("`allow_control` of [machine.web01]"), "{said}");
}

#[tokio::test]
async fn earlier_output_that_is_not_kept_is_told_and_is_no_failure() {
    let mut lab = Lab::watching(Wish::default(), 7).await;
    lab.output(Kind::Stdout, b"abc").await;
    assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 10 });
    lab.exit(&record(0, 6, 4)).await;
    let words = "malai: the target no longer has the first 7 bytes of output\n".to_owned();
    assert_eq!(ended(lab).await, (record(0, 6, 4), words));
}

#[tokio::test]
async fn a_later_gap_is_told_and_the_record_stays_the_result() {
    let mut lab = Lab::watching(Wish { json: true, ..Wish::default() }, 0).await;
    lab.output(Kind::Stdout, b"abc").await;
    lab.daemon = None;
    assert_eq!(lab.attach().await.out_offset, 3);
    lab.send(Kind::Attached, &attached(8, 0)).await;
    lab.exit(&record(4, 8, 0)).await;
    assert_eq!(lab.rest().await.last(), Some(&Kind::Goodbye));
    let words = "malai: 5 bytes of output are missing here: the target no longer has them\n";
    let stdout = lab.stdout.clone();
    assert_eq!(ended(lab).await, (record(4, 8, 0), words.to_owned()));
    let events = String::from_utf8(stdout.bytes()).expect("text");
    let starts: Vec<&str> = events.lines().filter_map(|line| line.split(',').next()).collect();
    let expected = ["{\"event\":\"started\"", "{\"event\":\"stdout\"", "{\"event\":\"missing\"", "{\"event\":\"exit\""];
    assert_eq!(starts, expected, "{events}");
}

#[tokio::test]
async fn a_gap_in_the_middle_is_told_where_it_is() {
    let mut lab = Lab::watching(Wish::default(), 0).await;
    lab.output(Kind::Stdout, b"abc").await;
    lab.send(Kind::Attached, &attached(8, 0)).await;
    lab.output(Kind::Stdout, b"de").await;
    lab.exit(&record(4, 10, 0)).await;
    let stdout = lab.stdout.clone();
    let words = "malai: 5 bytes of output are missing here: the target no longer has them\n";
    assert_eq!(ended(lab).await, (record(4, 10, 0), words.to_owned()));
    assert_eq!(stdout.bytes(), b"abcde");
}

#[tokio::test]
async fn output_that_is_missing_without_a_word_is_never_a_success() {
    for (from, told) in [(0, (4, 0)), (0, (3, 1)), (7, (11, 0)), (7, (4, 5)), (7, (9, 0))] {
        let mut lab = Lab::watching(Wish::default(), from).await;
        lab.output(Kind::Stdout, b"out").await;
        lab.exit(&record(0, told.0, told.1)).await;
        let (code, why) = lab.failure().await;
        assert!(code == 253 && why.contains("not everything got through"), "{from} {told:?} {code}: {why}");
    }
}

#[tokio::test]
async fn a_target_that_repeats_output_is_not_understood() {
    let mut lab = Lab::watching(Wish::default(), 0).await;
    lab.output(Kind::Stdout, b"abc").await;
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Attached, &attached(2, 0)).await;
    let (code, why) = lab.failure().await;
    assert!(code == 253 && why.contains("repeats output"), "{code}: {why}");
}

#[tokio::test]
async fn offsets_at_the_end_of_all_numbers_break_nothing() {
    let mut lab = Lab::watching(Wish::default(), u64::MAX).await;
    lab.output(Kind::Stdout, b"abc").await;
    lab.exit(&record(0, 3, 0)).await;
    assert_eq!(lab.failure().await.0, 253);
}

#[tokio::test]
async fn an_interrupt_leaves_at_once_in_good_order_and_signals_nobody() {
    for number in [INT, TERM, HUP, QUIT] {
        let mut lab = Lab::watching(Wish::default(), 0).await;
        lab.output(Kind::Stdout, b"x").await;
        lab.expect::<Ack>(Kind::Ack).await;
        lab.signal(&[number]).await;
        assert_eq!(lab.rest().await, [Kind::Goodbye]);
        let end = lab.end().await;
        assert!(matches!(end, Ok(SessionEnd::Left { signal, followed: true }) if signal == number), "{end:?}");
    }
}

#[tokio::test]
async fn leaving_before_there_is_an_answer_or_while_it_is_lost_asks_for_nothing_more() {
    let mut lab = Lab::new(watch(false)).await;
    lab.flight().await;
    lab.signal(&[INT]).await;
    lab.rest().await;
    assert!(matches!(lab.end().await, Ok(SessionEnd::Left { signal: INT, followed: false })));

    let mut lab = Lab::watching(Wish { retry: NEVER, say: BRIEF, ..Wish::default() }, 0).await;
    lab.daemon = None;
    lab.attach().await;
    lab.daemon = None;
    lab.stderr.contains("the command goes on").await;
    lab.signal(&[INT]).await;
    let end = timeout(SOON, &mut lab.session).await.expect("in time").expect("no panic");
    assert!(matches!(end, Ok(SessionEnd::Left { signal: INT, followed: true })), "{end:?}");
    assert!(!lab.is_dialled(), "nobody is told that the caller is gone");
}

#[tokio::test]
async fn a_reader_that_leaves_does_not_close_the_commands_pipe() {
    let mut lab = Lab::watching(Wish::default(), 0).await;
    lab.stdout.set(|state| state.error = Some(io::ErrorKind::BrokenPipe));
    lab.output(Kind::Stdout, b"x").await;
    let kinds = lab.rest().await;
    assert!(!kinds.contains(&Kind::StopOutput) && kinds.ends_with(&[Kind::Goodbye]), "{kinds:?}");
    assert!(matches!(lab.end().await, Ok(SessionEnd::Left { signal: 13, followed: true })));
}

#[tokio::test]
async fn output_that_cannot_be_written_ends_the_following_and_says_why() {
    let mut lab = Lab::watching(Wish::default(), 0).await;
    lab.stdout.set(|state| state.error = Some(io::ErrorKind::StorageFull));
    lab.output(Kind::Stdout, b"x").await;
    assert!(!lab.rest().await.contains(&Kind::StopOutput));
    let (code, why) = lab.failure().await;
    assert!(code == 255 && why.ends_with("the command on web01.company goes on"), "{code}: {why}");
}

#[tokio::test]
async fn a_session_whose_end_nobody_knows_is_shown_and_then_unknown() {
    let mut lab = Lab::watching(Wish::default(), 0).await;
    lab.output(Kind::Stdout, b"last words").await;
    lab.send(Kind::Refused, &Failure::new(failure::Kind::Unknown, "its end was not recorded")).await;
    let stdout = lab.stdout.clone();
    assert_eq!(lab.failure().await, (253, "its end was not recorded".into()));
    assert_eq!(stdout.bytes(), b"last words");
}

#[tokio::test]
async fn whoever_is_superseded_says_by_whom() {
    let mut lab = Lab::watching(Wish::default(), 0).await;
    lab.send(Kind::Superseded, &Superseded { by: owner(), follower: FollowerId::from_bytes([7; 16]) }).await;
    let (code, why) = lab.failure().await;
    assert!(
        code == 253
            && why.contains(&format!("followed from elsewhere now, by process 07070707 of machine {}", owner())),
        "{why}"
    );
}

#[tokio::test]
async fn a_first_refusal_is_told_as_it_is_and_a_later_one_may_pass() {
    for kind in [failure::Kind::Unreachable, failure::Kind::Denied, failure::Kind::Unknown] {
        let mut lab = Lab::new(watch(false)).await;
        lab.flight().await;
        lab.send(Kind::Refused, &Failure::new(kind, "the reason")).await;
        assert_eq!(lab.failure().await, (kind.exit_code(), "the reason".into()));
    }
    let mut lab = Lab::watching(Wish::default(), 0).await;
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Refused, &Failure::new(failure::Kind::Unreachable, "the reason")).await;
    lab.attach().await;
    lab.send(Kind::Attached, &attached(0, 0)).await;
    lab.exit(&record(0, 0, 0)).await;
    assert!(lab.outcome().await.is_ok());
}

#[tokio::test]
async fn a_loss_before_the_answer_asks_again_and_still_takes_the_place() {
    let mut lab = Lab::new(watch(true)).await;
    lab.flight().await;
    lab.daemon = None;
    let attach = lab.attach().await;
    assert!(attach.number == 2 && attach.take_over && attach.from_end, "{attach:?}");
    lab.send(Kind::Attached, &Attached { started: None, ..attached(0, 0) }).await;
    lab.send(Kind::Started, &started()).await;
    lab.exit(&record(0, 0, 0)).await;
    assert!(lab.outcome().await.is_ok());
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_no_unknown_outcome() {
    let mut lab = Lab::new(Wish { answer: A_WHILE, ..watch(false) }).await;
    lab.flight().await;
    let (code, why) = lab.failure().await;
    assert_eq!((code, why.as_str()), (255, "web01.company did not answer in time"));
}

#[tokio::test]
async fn a_loss_that_lasts_is_given_up_as_unknown() {
    let mut lab = Lab::watching(Wish { lost: BRIEF, ..Wish::default() }, 0).await;
    lab.output(Kind::Stdout, b"x").await;
    lab.expect::<Ack>(Kind::Ack).await;
    // The next connection is there, and nobody greets on it.
    lab.daemon = None;
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    assert_eq!(why, "connection to web01.company lost for 20 ms; whether the command ended is not known");
}

#[tokio::test]
async fn what_another_executor_keeps_of_a_session_is_followed_as_before() {
    let mut lab = Lab::watching(Wish::default(), 0).await;
    lab.output(Kind::Stdout, b"abc").await;
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Attached, &Attached { incarnation: Incarnation::from_bytes([9; 16]), ..attached(3, 0) }).await;
    lab.send(Kind::StdinAck, &StdinAck { offset: 5, credit: 5 }).await;
    lab.exit(&record(0, 3, 0)).await;
    assert!(lab.outcome().await.is_ok());
}
