//! What the daemon is told, and what outlives daemon and executor.

use malai_protocol::codec::Kind;
use malai_protocol::plan::{Audited, Outcome, Shutdown};
use malai_protocol::session::EndedBy;

use super::harness::{Lab, lives, plan, within};

fn ended_by(outcome: &Outcome) -> EndedBy {
    match outcome {
        Outcome::Exit(record) => record.ended_by,
        Outcome::Refused(failure) => panic!("{failure}"),
    }
}

#[tokio::test]
async fn a_new_daemon_is_told_of_live_sessions_and_of_unconfirmed_ends() {
    let mut lab = Lab::new().await;
    let (confirmed, ended, live) = (plan(&["true"]), plan(&["false"]), plan(&["sleep", "1000"]));
    lab.run(confirmed.clone()).await;
    lab.run(ended.clone()).await;
    lab.control.send(Kind::Audited, &Audited { session: confirmed.session }).await;
    let mut caller = lab.start(live.clone()).await;
    caller.started().await;

    let control = lab.new_control().await;
    assert_eq!(control.sessions.live.len(), 1);
    assert_eq!((control.sessions.live[0].session, &control.sessions.live[0].request), (live.session, &live.request));
    let told: Vec<_> = control.sessions.ended.iter().map(|ended| ended.session).collect();
    assert_eq!(told, [ended.session]);
    assert_eq!(control.sessions.incarnation, lab.control.sessions.incarnation);
    lab.control = control;
    lab.close().await;
}

#[tokio::test]
async fn when_the_daemon_goes_sessions_end_and_the_next_daemon_is_told() {
    let mut lab = Lab::new().await;
    let sleeper = plan(&["sleep", "1000"]);
    let mut caller = lab.start(sleeper.clone()).await;
    let pid = caller.started().await.pid;
    // Only the control connection goes: the attachment's caller hears why.
    let (near, _far) = tokio::io::duplex(1);
    lab.control.framed = tokio_util::codec::Framed::new(near, malai_protocol::codec::FrameCodec::new());
    assert_eq!(caller.finish().await.record().ended_by, EndedBy::Shutdown);
    assert!(!lives(pid));
    let control = lab.new_control().await;
    assert_eq!(ended_by(&control.sessions.ended[0].outcome), EndedBy::Shutdown);
    lab.control = control;
    lab.close().await;
}

#[tokio::test]
async fn an_executor_whose_daemon_stays_away_ends_and_the_next_tells_what_it_had() {
    let mut lab = Lab::new().await;
    let done = plan(&["true"]);
    lab.run(done.clone()).await;
    let Lab { dir, task, control, connections: _kept, .. } = lab;
    drop(control);
    within("the executor ends", task).await.expect("no panic").expect("no error");

    let lab = Lab::at(dir, true).await;
    let ended = &lab.control.sessions.ended;
    assert_eq!((ended.len(), ended[0].session, &ended[0].request), (1, done.session, &done.request));
    assert_eq!(ended_by(&ended[0].outcome), EndedBy::Itself);
    lab.close().await;
}

#[tokio::test]
async fn a_shutdown_ends_all_sessions_tells_everybody_and_ends_the_executor() {
    let mut lab = Lab::new().await;
    let sessions = [plan(&["sleep", "1000"]), plan(&["sleep", "1000"])];
    let mut callers = Vec::new();
    for session in &sessions {
        let mut caller = lab.start(session.clone()).await;
        caller.started().await;
        callers.push(caller);
    }
    lab.control.send(Kind::Shutdown, &Shutdown { reason: "`malai daemon stop`".into() }).await;
    for caller in callers {
        let record = caller.finish().await.end.expect("it ran");
        assert_eq!((record.ended_by, record.reason.as_deref()), (EndedBy::Shutdown, Some("`malai daemon stop`")));
    }
    for _ in &sessions {
        let session = lab.control.ended().await.session;
        lab.control.send(Kind::Audited, &Audited { session }).await;
    }
    within("the executor ends", &mut lab.task).await.expect("no panic").expect("no error");
}

#[tokio::test]
async fn requests_of_any_size_are_told_whole() {
    let mut lab = Lab::new().await;
    let mut large = Vec::new();
    for _ in 0..8 {
        let mut plan = plan(&["true"]);
        plan.request.words = vec![serde_bytes::ByteBuf::from(vec![0xff; 1024 * 1024])];
        lab.run(plan.clone()).await;
        assert_eq!(lab.control.ended().await.request, plan.request);
        large.push(plan.session);
    }
    let mut control = lab.new_control().await;
    let mut told: Vec<_> = control.sessions.ended.iter().map(|ended| ended.session).collect();
    let mut more = control.sessions.more;
    assert!(more, "8 MiB do not fit one frame");
    while more {
        use futures_util::StreamExt;
        let frame = within("the rest", control.framed.next()).await.expect("open").expect("a frame");
        let part: malai_protocol::plan::Sessions = frame.expect(Kind::Sessions, "the rest").expect("decodes");
        told.extend(part.ended.iter().map(|ended| ended.session));
        more = part.more;
    }
    told.sort_unstable();
    large.sort_unstable();
    assert_eq!(told, large);
    lab.control = control;
    lab.close().await;
}
