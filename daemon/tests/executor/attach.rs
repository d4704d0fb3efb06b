//! Attachments that must change nothing, and requests that are sent again.

use bytes::Bytes;

use malai_protocol::codec::{Frame, Kind, MAX_DATA};
use malai_protocol::failure;
use malai_protocol::id::Incarnation;
use malai_protocol::plan::{CallerGone, Hello, Plan, SessionName};
use malai_protocol::session::{Ack, EndedBy, Resend, STDIN_CREDIT};

use super::harness::{Caller, Lab, attachment, lives, other_caller, patient, plan, process, script};

/// Asks again for a request that was sent before.
async fn ask_again(lab: &Lab, session: SessionName, resend: Option<Resend>) -> Caller {
    let attachment = attachment(session, Some(process(1)), 2);
    lab.greet(Hello::Resume { attachment, out_offset: 0, from_end: false, take_over: false, resend }).await
}

#[tokio::test]
async fn a_session_that_is_not_known_is_missing_whoever_asks() {
    let mut lab = Lab::new().await;
    let sleeper = patient(plan(&["sleep", "1000"]));
    let session = sleeper.session;
    let mut caller = lab.follow(sleeper, process(1)).await;
    caller.started().await;
    // A wrong id, and the right one under another caller's key: the session of somebody else.
    let foreign = SessionName { caller: other_caller(), ..session };
    for name in [plan(&["true"]).session, foreign] {
        for out_offset in [0, u64::MAX] {
            let mut wrong = lab.resume(attachment(name, Some(process(1)), 2), out_offset).await;
            assert_eq!(wrong.next().await.expect("an answer").kind, Kind::Missing);
            assert!(wrong.next().await.is_none());
        }
        lab.control.send(Kind::CallerGone, &CallerGone { session: name, follower: Some(process(1)), number: 1 }).await;
    }
    caller.signal(2).await;
    assert_eq!(caller.finish().await.record().ended_by, EndedBy::Itself);
    lab.close().await;
}

#[tokio::test]
async fn an_attachment_that_asks_for_the_future_is_refused_and_changes_nothing() {
    let mut lab = Lab::new().await;
    let sleeper = patient(script("echo hi; exec sleep 1000"));
    let session = sleeper.session;
    let mut caller = lab.follow(sleeper, process(1)).await;
    caller.wait_for(Kind::Stdout).await;
    for out_offset in [4, 1000, u64::MAX] {
        let mut wrong = lab.resume(attachment(session, Some(process(1)), 2), out_offset).await;
        assert_eq!(wrong.refused().await.kind, failure::Kind::Unknown);
    }
    // Its follower goes on, and its number counts.
    caller.signal(2).await;
    assert_eq!(caller.finish().await.record().ended_by, EndedBy::Itself);
    // The same after the end.
    let mut wrong = lab.resume(attachment(session, Some(process(1)), 2), 4).await;
    assert_eq!(wrong.refused().await.kind, failure::Kind::Unknown);
    lab.close().await;
}

#[tokio::test]
async fn a_thousand_attachments_at_once_leave_one_that_works() {
    let mut lab = Lab::new().await;
    let mut cat = patient(plan(&["cat"]));
    cat.stdin = true;
    let session = cat.session;
    lab.follow(cat, process(1)).await.started().await;
    let mut all = Vec::new();
    for number in 2..1002 {
        all.push(lab.resume(attachment(session, Some(process(1)), number), 0).await);
    }
    let mut last = all.pop().expect("a thousand");
    last.wait_for(Kind::Attached).await;
    last.stdin(b"still there").await;
    last.raw(Frame::empty(Kind::StdinEof)).await;
    assert_eq!(last.finish().await.text(), "still there");
    for mut superseded in all {
        while let Some(frame) = superseded.next().await {
            assert!(matches!(frame.kind, Kind::Attached | Kind::Superseded), "{frame:?}");
        }
    }
    lab.close().await;
}

#[tokio::test]
async fn what_breaks_the_protocol_after_a_resume_only_loses_its_attachment() {
    let mut lab = Lab::new().await;
    let mut sleeper = patient(plan(&["sleep", "1000"]));
    sleeper.stdin = true;
    let session = sleeper.session;
    let mut caller = lab.follow(sleeper, process(1)).await;
    let pid = caller.started().await.pid;
    caller.stdin(&[0; 1000]).await;
    drop(caller);
    let more_than_credit = |from: u64| {
        let left = usize::try_from(STDIN_CREDIT - from).expect("fits") + MAX_DATA + 1;
        // What the pipe takes, it gives credit for.
        vec![Frame::data(Kind::Stdin, Bytes::from(vec![0; MAX_DATA])); left.div_ceil(MAX_DATA) + 1]
    };
    let future_ack = vec![Frame::control(Kind::Ack, &Ack { out_offset: 1 }).expect("fits")];
    let mut number = 2;
    for breaks in [None, Some(future_ack)] {
        let mut caller = lab.resume(attachment(session, Some(process(1)), number), 0).await;
        let attached = caller.attached().await;
        assert!(attached.stdin_offset <= attached.credit, "{attached:?}");
        for frame in breaks.unwrap_or_else(|| more_than_credit(attached.stdin_offset)) {
            if futures_util::SinkExt::send(&mut caller.framed, frame).await.is_err() {
                break;
            }
        }
        while caller.next().await.is_some() {}
        number += 1;
    }
    assert!(lives(pid));
    let mut caller = lab.resume(attachment(session, Some(process(1)), number), 0).await;
    caller.attached().await;
    caller.signal(2).await;
    assert_eq!(caller.finish().await.record().ended_by, EndedBy::Itself);
    lab.close().await;
}

#[tokio::test]
async fn a_command_that_is_still_starting_is_followed_and_says_later_that_it_runs() {
    let mut lab = Lab::new().await;
    loop {
        let quick = patient(plan(&["echo", "hi"]));
        let session = quick.session;
        lab.control.send(Kind::Plan, &quick).await;
        let mut caller = lab.resume(attachment(session, Some(process(1)), 2), 0).await;
        let first = caller.next().await.expect("an answer");
        if first.kind == Kind::Missing {
            // It came before its plan.
            continue;
        }
        let attached: malai_protocol::session::Attached = first.expect(Kind::Attached, "attached").expect("decodes");
        if attached.started.is_none() {
            caller.started().await;
            assert_eq!(caller.finish().await.text(), "hi\n");
            break;
        }
        caller.finish().await;
    }
    lab.close().await;
}

#[tokio::test]
async fn a_refusal_whose_answer_was_lost_is_told_again() {
    let mut lab = Lab::new().await;
    let missing = patient(plan(&["no-such-program"]));
    let session = missing.session;
    let refusal = lab.follow(missing, process(1)).await.refused().await;
    let resend = Resend { number: 2, met: None, since_ms: 0 };
    assert_eq!(ask_again(&lab, session, Some(resend)).await.refused().await, refusal);
    lab.close().await;
}

#[tokio::test]
async fn a_request_that_was_sent_again_runs_only_where_it_certainly_did_not() {
    let mut lab = Lab::new().await;
    let file = lab.path("runs");
    let once = |resend| Plan { resend, ..patient(script(&format!("echo x >> {file}"))) };
    let this = lab.control.sessions.incarnation;
    let other = Incarnation::from_bytes([9; 16]);
    // Another executor was met, or none, by one who began before this one.
    for met in [Some(other), None] {
        let unsure = once(Some(Resend { number: 2, met, since_ms: 60_000 }));
        assert_eq!(ask_again(&lab, unsure.session, unsure.resend).await.refused().await.kind, failure::Kind::Unknown);
        let refusal = lab.run(unsure).await;
        assert_eq!(refusal.failure().kind, failure::Kind::Unknown);
        assert!(refusal.failure().message.contains("sent before"), "{}", refusal.failure());
    }
    assert!(!std::path::Path::new(&file).exists());
    // This one was met and does not know it: it never arrived.
    let sure = once(Some(Resend { number: 2, met: Some(this), since_ms: 60_000 }));
    let mut answer = ask_again(&lab, sure.session, sure.resend).await;
    assert_eq!(answer.next().await.expect("an answer").kind, Kind::Missing);
    assert_eq!(lab.run(sure.clone()).await.code(), Some(0));
    // And now it did: the answer is its own record.
    let mut answer = ask_again(&lab, sure.session, sure.resend).await;
    assert!(answer.attached().await.started.is_some());
    assert_eq!(answer.finish().await.code(), Some(0));
    assert_eq!(std::fs::read_to_string(&file).expect("it ran"), "x\n");
    lab.close().await;
}

/// What this process has in memory, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("reads");
    let pages: u64 = statm.split(' ').nth(1).expect("a second field").parse().expect("a number");
    pages * 4096
}

#[tokio::test]
async fn an_idle_session_costs_little_memory_attached_or_not() {
    let mut lab = Lab::new().await;
    let before = resident();
    let mut callers = Vec::new();
    for number in 0..50 {
        let session = patient(script("head -c 300000 /dev/zero; echo done >&2; exec sleep 1000"));
        let mut caller = lab.follow(session, process(number)).await;
        caller.wait_for(Kind::Stderr).await;
        while caller.received < 300_005 {
            caller.next().await;
        }
        callers.push(caller);
    }
    let each = resident().saturating_sub(before) / 50;
    // Both ends, and the 64 KiB of each direction between them, are in this process.
    assert!(each < 1024 * 1024, "{each} bytes");
    drop(callers);
    lab.close().await;
}
