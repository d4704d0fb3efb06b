//! What cannot be run is told apart, and is not run.

use std::os::unix::fs::PermissionsExt;

use malai_protocol::codec::Kind as Frames;
use malai_protocol::failure::Kind;
use malai_protocol::plan::{Audited, Outcome};

use super::harness::{Lab, plan, script};

/// Runs a plan that must be refused, and checks that the daemon is told the same.
async fn refused(lab: &mut Lab, plan: malai_protocol::plan::Plan) -> malai_protocol::failure::Failure {
    let session = plan.session;
    let done = lab.run(plan).await;
    let ended = lab.control.ended().await;
    assert_eq!(ended.session, session);
    assert_eq!(ended.outcome, Outcome::Refused(done.failure().clone()));
    assert!(done.stdout.is_empty() && done.stderr.is_empty());
    done.failure().clone()
}

#[tokio::test]
async fn a_missing_program_is_not_found() {
    let mut lab = Lab::new().await;
    let failure = refused(&mut lab, plan(&["no-such-program"])).await;
    assert_eq!(failure.kind, Kind::NotFound);
    assert!(failure.message.starts_with("no-such-program: not found in the PATH of "), "{failure}");
    assert_eq!(refused(&mut lab, plan(&["/no/such/program"])).await.kind, Kind::NotFound);
    assert_eq!(refused(&mut lab, plan(&[""])).await.kind, Kind::NotFound);
    lab.close().await;
}

#[tokio::test]
async fn what_is_there_but_cannot_be_executed_says_so() {
    let mut lab = Lab::new().await;
    let file = lab.path("file");
    std::fs::write(&file, "text").expect("writes");
    assert_eq!(refused(&mut lab, plan(&[&file])).await.kind, Kind::NotExecutable, "no x bit");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("chmod");
    assert_eq!(refused(&mut lab, plan(&[&file])).await.kind, Kind::NotExecutable, "no format");
    assert_eq!(refused(&mut lab, plan(&["/"])).await.kind, Kind::NotExecutable, "a directory");
    std::fs::write(&file, "#!/no/such/interpreter\n").expect("writes");
    let failure = refused(&mut lab, plan(&[&file])).await;
    assert_eq!(failure.kind, Kind::NotExecutable);
    assert!(failure.message.contains("interpreter"), "{failure}");
    lab.close().await;
}

#[tokio::test]
async fn a_missing_directory_is_not_a_missing_program() {
    let mut lab = Lab::new().await;
    let mut lost = plan(&["true"]);
    lost.cwd = Some(b"/no/such/directory".to_vec().into());
    let failure = refused(&mut lab, lost).await;
    assert_eq!(failure.kind, Kind::NoDirectory);
    assert!(failure.message.contains("/no/such/directory"), "{failure}");
    lab.close().await;
}

#[tokio::test]
async fn a_missing_user_is_named() {
    let mut lab = Lab::new().await;
    let mut nobody = plan(&["true"]);
    nobody.user = Some("no-such-user".into());
    assert_eq!(refused(&mut lab, nobody).await.kind, Kind::NoUser);
    lab.close().await;
}

#[tokio::test]
async fn what_no_system_call_takes_is_refused_as_usage() {
    let mut lab = Lab::new().await;
    let mut nul = plan(&["echo"]);
    nul.argv.push(b"a\0b".to_vec().into());
    assert_eq!(refused(&mut lab, nul).await.kind, Kind::Usage);
    assert_eq!(refused(&mut lab, plan(&[])).await.kind, Kind::Usage);
    let long = "x".repeat(200 * 1024);
    let failure = refused(&mut lab, plan(&["echo", &long])).await;
    assert_eq!(failure.kind, Kind::NotExecutable, "Linux takes no argument of this length");
    lab.close().await;
}

#[tokio::test]
async fn a_session_id_never_runs_twice() {
    let mut lab = Lab::new().await;
    let file = lab.path("runs");
    let once = script(&format!("echo x >> {file}"));
    assert_eq!(lab.run(once.clone()).await.code(), Some(0));
    assert!(matches!(lab.control.ended().await.outcome, Outcome::Exit(_)));
    // Before it is audited, and after.
    for _ in 0..2 {
        assert_eq!(lab.run(once.clone()).await.failure().kind, Kind::Unknown);
        assert!(matches!(lab.control.ended().await.outcome, Outcome::Refused(_)));
        lab.control.send(Frames::Audited, &Audited { session: once.session }).await;
    }
    // By another executor of the same home.
    let mut lab = Lab::at(lab.close().await, true).await;
    assert!(lab.control.sessions.ended.is_empty());
    assert_eq!(lab.run(once).await.failure().kind, Kind::Unknown);
    assert_eq!(std::fs::read_to_string(&file).expect("it ran once"), "x\n");
    lab.close().await;
}

#[tokio::test]
async fn a_plan_for_a_session_that_lives_changes_nothing() {
    let mut lab = Lab::new().await;
    let mut cat = plan(&["cat"]);
    cat.stdin = true;
    let mut caller = lab.start(cat.clone()).await;
    caller.started().await;
    lab.control.send(Frames::Plan, &cat).await;
    // A later plan shows that the second was taken, and nothing came of it.
    lab.run(plan(&["true"])).await;
    assert_ne!(lab.control.ended().await.session, cat.session);
    caller.stdin(b"still there").await;
    caller.raw(malai_protocol::codec::Frame::empty(Frames::StdinEof)).await;
    assert_eq!(caller.finish().await.text(), "still there");
    lab.close().await;
}
