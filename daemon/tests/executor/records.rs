//! What the daemon is told, and what outlives daemon and executor.

use std::time::Duration;

use futures_util::StreamExt;

use malai_protocol::codec::Kind;
use malai_protocol::plan::{Audited, Outcome, Shutdown};
use malai_protocol::session::{DEFAULT_GRACE_MS, EndedBy, ExitRecord};

use super::harness::{Lab, lives, patient, plan, within};

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

/// The daemon goes: its control connection closes.
fn daemon_goes(lab: &mut Lab) {
    let (near, _far) = tokio::io::duplex(1);
    lab.control.framed = tokio_util::codec::Framed::new(near, malai_protocol::codec::FrameCodec::new());
}

#[tokio::test]
async fn when_the_daemon_goes_sessions_live_on_and_the_next_daemon_finds_them() {
    let mut lab = Lab::new().await;
    let sleeper = patient(plan(&["sleep", "1000"]));
    let mut caller = lab.start(sleeper.clone()).await;
    let pid = caller.started().await.pid;
    daemon_goes(&mut lab);
    // Longer than the executor would stay for nothing.
    tokio::time::sleep(Duration::from_secs(6)).await;
    lab.control = lab.new_control().await;
    assert_eq!(lab.control.sessions.live.iter().map(|live| live.session).collect::<Vec<_>>(), [sleeper.session]);
    assert!(lives(pid));
    caller.signal(15).await;
    assert_eq!(caller.finish().await.record().ended_by, EndedBy::Itself);
    lab.close().await;
}

#[tokio::test]
async fn an_executor_without_anything_to_come_back_for_ends_soon_after_its_daemon() {
    let mut lab = Lab::new().await;
    let done = plan(&["true"]);
    lab.run(done.clone()).await;
    lab.control.ended().await;
    lab.control.send(Kind::Audited, &Audited { session: done.session }).await;
    let Lab { task, control, connections: _kept, .. } = lab;
    drop(control);
    within("the executor ends", task).await.expect("no panic").expect("no error");
}

#[tokio::test]
async fn an_executor_whose_daemon_stays_away_ends_all_and_the_next_tells_what_it_had() {
    let mut lab = Lab::new().await;
    let (done, sleeper) = (plan(&["true"]), patient(plan(&["sleep", "1000"])));
    lab.run(done.clone()).await;
    let mut caller = lab.start(sleeper.clone()).await;
    let pid = caller.started().await.pid;
    let Lab { dir, task, control, connections: _kept, .. } = lab;
    drop(control);
    // Nothing but the time decides from here on, and all but a second of it passes at once. What ends a real process needs
    // real time.
    let (since, grace) = (tokio::time::Instant::now(), Duration::from_millis(DEFAULT_GRACE_MS));
    tokio::time::pause();
    tokio::time::sleep(grace.saturating_sub(Duration::from_secs(1))).await;
    tokio::time::resume();
    let frame = caller.framed.next().await.expect("open").expect("a frame");
    assert!(since.elapsed() >= grace, "{:?}", since.elapsed());
    let record: ExitRecord = frame.expect(Kind::Exit, "the end").expect("decodes");
    assert_eq!(record.ended_by, EndedBy::Grace);
    within("the executor ends", task).await.expect("no panic").expect("no error");
    assert!(!lives(pid));

    let lab = Lab::at(dir, true).await;
    let told = |session| lab.control.sessions.ended.iter().find(|ended| ended.session == session).expect("told");
    assert_eq!(told(done.session).request, done.request);
    assert_eq!(ended_by(&told(done.session).outcome), EndedBy::Itself);
    assert_eq!(ended_by(&told(sleeper.session).outcome), EndedBy::Grace);
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
