//! An attachment is lost, and another one goes on where it was.

use futures_util::SinkExt;

use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure;
use malai_protocol::plan::{CallerGone, Hello, Outcome};
use malai_protocol::session::{Ack, EndedBy, OUTPUT_WINDOW, STDIN_CREDIT, Signal, Superseded};
use nix::unistd::Pid;

use super::harness::{Caller, Lab, attachment, lives, patient, plan, process, script, within};
use super::pipes::{is_full, written};

/// Follows to the end, and returns what came on standard output after what was had before.
async fn rest(caller: Caller) -> String {
    caller.finish().await.text()
}

#[tokio::test]
async fn a_new_attachment_goes_on_at_the_byte_it_asks_for() {
    let mut lab = Lab::new().await;
    let counter = patient(script("echo first; read go; echo second; exit 3"));
    let counter = malai_protocol::plan::Plan { stdin: true, ..counter };
    let session = counter.session;
    let mut caller = lab.follow(counter, process(1)).await;
    let started = caller.started().await;
    assert_eq!(started.grace_ms, Some(60_000));
    caller.acks = false;
    assert_eq!(caller.wait_for(Kind::Stdout).await.payload, "first\n");
    drop(caller);

    // Two of the six bytes were written out.
    let mut caller = lab.resume(attachment(session, Some(process(1)), 2), 2).await;
    let attached = caller.attached().await;
    assert_eq!((attached.out_offset, attached.stdin_offset, attached.stdin_closed), (2, 0, false));
    assert_eq!(attached.started, Some(started));
    caller.stdin(b"\n").await;
    let done = caller.finish().await;
    assert_eq!(done.text(), "rst\nsecond\n");
    assert_eq!((done.code(), done.record().stdout_bytes), (Some(3), 13));
    lab.close().await;
}

#[tokio::test]
async fn a_signal_that_is_told_again_after_a_loss_is_sent_once() {
    let mut lab = Lab::new().await;
    let mut counter = patient(script("trap 'echo got' USR1; echo ready; while :; do read -r line && echo $line; done"));
    counter.stdin = true;
    let session = counter.session;
    let mut caller = lab.follow(counter, process(1)).await;
    assert_eq!(caller.wait_for(Kind::Stdout).await.payload, "ready\n");
    caller.send(Kind::Signal, &Signal { number: 10, order: 1 }).await;
    assert_eq!(caller.wait_for(Kind::Stdout).await.payload, "got\n");
    drop(caller);

    let mut caller = lab.resume(attachment(session, Some(process(1)), 2), 10).await;
    caller.attached().await;
    caller.send(Kind::Signal, &Signal { number: 10, order: 1 }).await;
    caller.stdin(b"nothing\n").await;
    assert_eq!(caller.wait_for(Kind::Stdout).await.payload, "nothing\n");
    caller.send(Kind::Signal, &Signal { number: 10, order: 2 }).await;
    assert_eq!(caller.wait_for(Kind::Stdout).await.payload, "got\n");
    lab.control.send(Kind::CallerGone, &CallerGone { session, follower: Some(process(1)), number: 2 }).await;
    lab.control.ended().await;
    lab.close().await;
}

#[tokio::test]
async fn a_command_that_nobody_follows_is_read_until_the_log_is_full_and_no_further() {
    let mut lab = Lab::new().await;
    let endless = patient(plan(&["cat", "/dev/zero"]));
    let session = endless.session;
    let mut caller = lab.follow(endless, process(1)).await;
    let pid = Pid::from_raw(caller.started().await.pid.try_into().expect("a pid"));
    drop(caller);
    within("the command waits", async {
        loop {
            let before = written(pid).expect("it runs");
            let full = is_full(pid).expect("it runs");
            // Whatever the executor would read of the first, it has time for while another runs from start to end.
            lab.run(plan(&["true"])).await;
            lab.control.ended().await;
            if full && is_full(pid).expect("it runs") && written(pid).expect("it runs") == before {
                break;
            }
        }
    })
    .await;
    // Some more is in the pipe.
    let wrote = written(pid).expect("it runs");
    assert!((OUTPUT_WINDOW..=OUTPUT_WINDOW + 3 * 65536).contains(&wrote), "{wrote}");

    let mut caller = lab.resume(attachment(session, Some(process(1)), 2), 0).await;
    assert_eq!(caller.attached().await.out_offset, 0);
    while caller.received < 2 * OUTPUT_WINDOW {
        caller.wait_for(Kind::Stdout).await;
    }
    lab.control.send(Kind::CallerGone, &CallerGone { session, follower: Some(process(1)), number: 2 }).await;
    lab.control.ended().await;
    lab.close().await;
}

#[tokio::test]
async fn standard_input_goes_on_where_it_arrived_and_within_its_credit() {
    let mut lab = Lab::new().await;
    let mut cat = patient(plan(&["cat"]));
    cat.stdin = true;
    let session = cat.session;
    let mut caller = lab.follow(cat, process(1)).await;
    caller.started().await;
    let bytes: Vec<u8> = (0..STDIN_CREDIT).map(|at| (at % 251).to_le_bytes()[0]).collect();
    caller.stdin(&bytes[..100_000]).await;
    drop(caller);
    // How much of it arrived, the answer tells; all of that was said to have been sent.
    let mut caller = lab.resume(attachment(session, Some(process(1)), 2), 0).await;
    let attached = caller.attached().await;
    assert!(attached.stdin_offset <= 100_000 && attached.credit >= attached.stdin_offset, "{attached:?}");
    caller.stdin(&bytes[usize::try_from(attached.stdin_offset).expect("fits")..]).await;
    caller.raw(Frame::empty(Kind::StdinEof)).await;
    assert!(caller.finish().await.stdout == bytes);
    lab.close().await;
}

#[tokio::test]
async fn the_end_of_standard_input_is_not_forgotten() {
    let mut lab = Lab::new().await;
    let mut late = patient(script("cat; exec sleep 1000"));
    late.stdin = true;
    let session = late.session;
    let mut caller = lab.follow(late, process(1)).await;
    caller.started().await;
    caller.stdin(b"x").await;
    caller.raw(Frame::empty(Kind::StdinEof)).await;
    caller.wait_for(Kind::Stdout).await;
    drop(caller);
    let mut caller = lab.resume(attachment(session, Some(process(1)), 2), 1).await;
    let attached = caller.attached().await;
    assert_eq!((attached.stdin_offset, attached.stdin_closed), (1, true));
    caller.signal(15).await;
    caller.finish().await;
    lab.close().await;
}

#[tokio::test]
async fn a_newer_attachment_of_the_same_process_takes_the_place_and_an_older_one_changes_nothing() {
    let mut lab = Lab::new().await;
    let sleeper = patient(plan(&["sleep", "1000"]));
    let session = sleeper.session;
    let mut first = lab.follow(sleeper, process(1)).await;
    first.started().await;
    let mut third = lab.resume(attachment(session, Some(process(1)), 3), 0).await;
    third.attached().await;
    let said: Superseded = first.wait_for(Kind::Superseded).await.decode().expect("decodes");
    assert_eq!((said.by, said.follower), (session.caller, process(1)));
    assert!(first.next().await.is_none());
    for number in [1, 2, 3] {
        let mut stale = lab.resume(attachment(session, Some(process(1)), number), 0).await;
        assert_eq!(stale.refused().await.kind, failure::Kind::Unknown, "{number}");
        let gone = CallerGone { session, follower: Some(process(1)), number: number.min(2) };
        lab.control.send(Kind::CallerGone, &gone).await;
    }
    third.signal(2).await;
    assert_eq!(third.finish().await.record().exit_code(), 130);
    lab.close().await;
}

#[tokio::test]
async fn another_process_is_refused_unless_it_takes_over_and_then_the_first_is_told() {
    let mut lab = Lab::new().await;
    let sleeper = patient(plan(&["sleep", "1000"]));
    let session = sleeper.session;
    let mut first = lab.follow(sleeper, process(1)).await;
    first.started().await;
    let mut other = lab.resume(attachment(session, Some(process(2)), 9), 0).await;
    assert_eq!(other.refused().await.kind, failure::Kind::Conflict);

    let mut watching = attachment(session, Some(process(2)), 1);
    watching.binding = false;
    let hello = Hello::Resume { attachment: watching, out_offset: 0, from_end: false, take_over: true, resend: None };
    let mut other = lab.greet(hello).await;
    other.attached().await;
    let said: Superseded = first.wait_for(Kind::Superseded).await.decode().expect("decodes");
    assert_eq!(said.follower, process(2));
    // The first may not come back by itself, and neither going ends the command.
    let mut again = lab.resume(attachment(session, Some(process(1)), 2), 0).await;
    assert_eq!(again.refused().await.kind, failure::Kind::Conflict);
    for (process, number) in [(process(1), 1), (process(1), 2), (process(2), 1)] {
        lab.control.send(Kind::CallerGone, &CallerGone { session, follower: Some(process), number }).await;
    }
    other.signal(2).await;
    assert_eq!(other.finish().await.record().ended_by, EndedBy::Itself);
    lab.close().await;
}

#[tokio::test]
async fn a_caller_that_goes_after_its_attachment_was_lost_ends_the_command() {
    let mut lab = Lab::new().await;
    let sleeper = patient(plan(&["sleep", "1000"]));
    let session = sleeper.session;
    let mut caller = lab.follow(sleeper, process(1)).await;
    let pid = caller.started().await.pid;
    drop(caller);
    lab.control.send(Kind::CallerGone, &CallerGone { session, follower: Some(process(1)), number: 1 }).await;
    let Outcome::Exit(record) = lab.control.ended().await.outcome else { panic!("it ran") };
    assert_eq!(record.ended_by, EndedBy::CallerGone);
    assert!(!lives(pid));
    lab.close().await;
}

#[tokio::test]
async fn a_command_that_nobody_came_back_for_is_ended_after_its_grace_time_and_not_before() {
    let mut lab = Lab::new().await;
    let sleeper = malai_protocol::plan::Plan { grace_ms: 700, ..patient(plan(&["sleep", "1000"])) };
    let mut caller = lab.follow(sleeper, process(1)).await;
    let pid = caller.started().await.pid;
    drop(caller);
    let Outcome::Exit(record) = lab.control.ended().await.outcome else { panic!("it ran") };
    assert_eq!((record.ended_by, record.exit_code()), (EndedBy::Grace, 253));
    assert!(record.duration_ms >= 700 && !lives(pid));
    lab.close().await;
}

#[tokio::test]
async fn a_grace_time_without_bound_is_one() {
    let mut lab = Lab::new().await;
    let sleeper = malai_protocol::plan::Plan { grace_ms: u64::MAX, ..patient(plan(&["sleep", "1000"])) };
    let session = sleeper.session;
    lab.follow(sleeper, process(1)).await.started().await;
    // The daemon goes too, and comes back.
    lab.control = lab.new_control().await;
    let mut caller = lab.resume(attachment(session, Some(process(1)), 2), 0).await;
    caller.attached().await;
    caller.signal(2).await;
    assert_eq!(caller.finish().await.record().ended_by, EndedBy::Itself);
    lab.close().await;
}

#[tokio::test]
async fn a_command_that_is_not_to_go_on_alone_ends_with_its_attachment() {
    let mut lab = Lab::new().await;
    let sleeper = malai_protocol::plan::Plan { kill_on_lost: true, ..patient(plan(&["sleep", "1000"])) };
    let mut caller = lab.follow(sleeper, process(1)).await;
    assert_eq!(caller.started().await.grace_ms, Some(0));
    drop(caller);
    let Outcome::Exit(record) = lab.control.ended().await.outcome else { panic!("it ran") };
    assert_eq!(record.ended_by, EndedBy::Grace);
    assert!(record.reason.expect("a reason").contains("was not to go on alone"));
    lab.close().await;
}

#[tokio::test]
async fn what_a_command_said_last_waits_for_its_caller_and_then_its_record_does() {
    let mut lab = Lab::new().await;
    let quick = patient(script("echo last words; exit 4"));
    let session = quick.session;
    let mut caller = lab.follow(quick, process(1)).await;
    caller.started().await;
    drop(caller);
    lab.control.ended().await;
    lab.control.send(Kind::Audited, &malai_protocol::plan::Audited { session }).await;
    // Twice: the first time the caller does not say that it has it.
    let mut caller = lab.resume(attachment(session, Some(process(1)), 2), 0).await;
    caller.acks = false;
    caller.attached().await;
    caller.wait_for(Kind::Exit).await;
    drop(caller);
    let mut caller = lab.resume(attachment(session, Some(process(1)), 3), 0).await;
    caller.attached().await;
    let done = caller.finish().await;
    assert_eq!((done.text().as_str(), done.code()), ("last words\n", Some(4)));
    // Now it said so: the output is gone, and how much it was is told.
    let mut caller = lab.resume(attachment(session, Some(process(1)), 4), 0).await;
    let attached = caller.attached().await;
    assert_eq!((attached.out_offset, attached.stdin_closed, attached.started.is_some()), (11, true, true));
    assert_eq!(rest(caller).await, "");
    lab.close().await;
}

#[tokio::test]
async fn nothing_is_kept_for_a_caller_that_never_comes_back() {
    let mut lab = Lab::new().await;
    let quick = patient(script("echo last words"));
    let session = quick.session;
    let mut caller = lab.start(quick).await;
    caller.acks = false;
    caller.wait_for(Kind::Exit).await;
    drop(caller);
    // The record is, whoever asks for it.
    let mut caller = lab.resume(attachment(session, Some(process(1)), 1), 0).await;
    while caller.attached().await.out_offset == 0 {
        caller = lab.resume(attachment(session, Some(process(1)), 1), 0).await;
    }
    assert_eq!(rest(caller).await, "");
    lab.close().await;
}

#[tokio::test]
async fn an_acknowledgement_lets_go_of_what_came_before_it() {
    let mut lab = Lab::new().await;
    let sleeper = patient(script("echo 0123456789; exec sleep 1000"));
    let session = sleeper.session;
    let mut caller = lab.follow(sleeper, process(1)).await;
    caller.acks = false;
    caller.wait_for(Kind::Stdout).await;
    caller.send(Kind::Ack, &Ack { out_offset: 4 }).await;
    caller.framed.flush().await.expect("sent");
    // The next attachment shows that it was taken: it comes after it.
    caller.signal(18).await;
    let mut next = lab.resume(attachment(session, Some(process(1)), 2), 0).await;
    let mut from = next.attached().await.out_offset;
    let mut number = 3;
    while from == 0 {
        next = lab.resume(attachment(session, Some(process(1)), number), 0).await;
        from = next.attached().await.out_offset;
        number += 1;
        tokio::task::yield_now().await;
    }
    assert_eq!(from, 4);
    assert_eq!(next.wait_for(Kind::Stdout).await.payload, "456789\n");
    next.received = 11;
    next.signal(2).await;
    next.finish().await;
    lab.close().await;
}
