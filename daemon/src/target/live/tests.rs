use std::sync::mpsc::channel;
use std::time::Duration;

use malai_protocol::home::Home;
use malai_protocol::id::Incarnation;
use malai_protocol::plan::{Ended, Outcome};
use nix::unistd::{Uid, User};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::net::counters::Registry;
use crate::store::audit::Audit;
use crate::store::keys::{ClusterKey, MachineKey};
use crate::supervisor::Event;
use crate::supervisor::slot::ExecutorSlot;
use crate::target::sessions::Sessions;

#[path = "../../../tests/support/plan.rs"]
mod plan;

/// A machine with an executor in this process, in whose cluster `caller` may run commands.
struct Scene {
    host: Arc<Host>,
    table: Arc<LiveTable>,
    key: ClusterKey,
    me: MachineId,
    caller: MachineId,
    events: mpsc::Receiver<Event>,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        let (sender, events) = mpsc::channel(16);
        let user = User::from_uid(Uid::effective()).expect("a user").map_or_else(String::new, |user| user.name);
        let sessions = Arc::new(Sessions::new(mpsc::unbounded_channel().0));
        let host = Host {
            agent: false,
            boot: Incarnation::from_bytes([1; 16]),
            user,
            root: Uid::effective().is_root(),
            audit: Arc::new(Audit::open(&home).expect("an audit")),
            metrics: Registry::default(),
            log: None,
            executor: ExecutorSlot::new(home.clone(), None, sender, Arc::clone(&sessions) as _),
            sessions: Arc::clone(&sessions),
            open: CancellationToken::new(),
            reload: mpsc::unbounded_channel().0,
            rebuilds: Default::default(),
            home,
        };
        let key = ClusterKey::generate().expect("a key");
        let id = || MachineKey::generate().expect("a key").id();
        let table = sessions.tables().of(key.id());
        Self { host: Arc::new(host), table, me: id(), caller: id(), key, events, _dir: dir }
    }

    /// The snapshot of this generation, in which these may run commands.
    fn held(&self, generation: u64, allowed: &str) -> Arc<Held> {
        let Self { me, caller, key, host, .. } = self;
        let text = format!(
            "[cluster]\nname = \"c\"\nid52 = \"{}\"\nmanager = \"me\"\n[machine.caller]\nid52 = \"{caller}\"\n\
             [machine.me]\nid52 = \"{me}\"\nusername = \"{}\"\nallow_from = [{allowed}]\n",
            key.id(),
            host.user
        );
        let snapshot = key.sign(generation, 1, text).expect("signs");
        Arc::new(Held::new(snapshot).expect("a config"))
    }

    fn plan(&self) -> Plan {
        let plan = plan::plan(&["sleep", "600"]);
        let session = SessionName { caller: self.caller, ..plan.session };
        Plan { session, cluster: self.key.id(), ..plan }
    }

    fn register(&self, plan: &Plan) -> Registered {
        self.table.register(plan.session, plan.request.clone()).expect("room").expect("a new id")
    }

    async fn ended(&mut self) -> Ended {
        match timeout(Duration::from_secs(20), self.events.recv()).await.expect("an end").expect("an event") {
            Event::Ended(ended) => ended,
            Event::Lost => panic!("the executor was lost"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_not_sent_when_another_snapshot_came_after_its_decision() {
    let scene = Scene::new();
    let executor = scene.host.executor.get().await.expect("an executor");
    let plan = scene.plan();
    let registered = scene.register(&plan);
    let sent = scene.table.send(plan, 1, || 2, &executor).await.expect("no failure");
    assert!(matches!(sent, Sent::Outdated));
    drop(registered);
    assert_eq!(scene.table.len(), 0, "what was not planned is no session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_that_withdraws_access_between_decision_and_plan_ends_the_session() {
    let mut scene = Scene::new();
    let executor = scene.host.executor.get().await.expect("an executor");
    let plan = scene.plan();
    let _registered = scene.register(&plan);
    let (compared, was_compared) = channel();
    let (go, may_go) = channel();
    let table = Arc::clone(&scene.table);
    let sending = tokio::spawn(async move {
        // The snapshot that was decided by is still held; the next one comes before the plan is on its way.
        let held_now = move || {
            compared.send(()).expect("the test waits");
            may_go.recv().expect("the test goes on");
            1
        };
        table.send(plan, 1, held_now, &executor).await
    });
    tokio::task::spawn_blocking(move || was_compared.recv()).await.expect("no panic").expect("compared");
    let (table, host, me) = (Arc::clone(&scene.table), Arc::clone(&scene.host), scene.me);
    let withdrawn = scene.held(2, "");
    let mut reviewing = tokio::spawn(async move { table.review(&withdrawn, &me, &host).await });
    let early = timeout(Duration::from_millis(300), &mut reviewing).await;
    assert!(early.is_err(), "it was reviewed beside a plan on its way, and did not see it");
    go.send(()).expect("the plan waits");
    assert!(matches!(sending.await.expect("no panic"), Ok(Sent::Yes)));
    reviewing.await.expect("no panic");
    let Outcome::Exit(record) = scene.ended().await.outcome else { panic!("it never ran") };
    assert_eq!(record.ended_by, EndedBy::Revoked);
    assert!(record.reason.is_some_and(|why| why.contains("`caller` is not in `allow_from`")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_leaves_access_as_it_was_ends_nothing() {
    let scene = Scene::new();
    let executor = scene.host.executor.get().await.expect("an executor");
    let plan = scene.plan();
    let registered = scene.register(&plan);
    let session = plan.session;
    let sent = scene.table.send(plan, 1, || 1, &executor).await.expect("no failure");
    assert!(matches!(sent, Sent::Yes));
    drop(registered);
    assert_eq!(scene.table.len(), 1, "a planned session stays until it ended");
    scene.table.review(&scene.held(2, "\"caller\""), &scene.me, &scene.host).await;
    assert_eq!(scene.table.refused(&scene.held(2, "\"caller\""), &scene.me, &scene.host).len(), 0);
    // An end follows the plan, and so comes to a session that is not there yet in the executor's eyes.
    let end = End { session, cause: EndedBy::Killed, reason: None };
    executor.end(end).await.expect("sent");
    let mut scene = scene;
    let Outcome::Exit(record) = scene.ended().await.outcome else { panic!("it never ran") };
    assert_eq!(record.ended_by, EndedBy::Killed, "the review ended it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_refused_when_it_was_sent_again_is_not_registered_any_more() {
    let scene = Scene::new();
    let plan = scene.plan();
    drop(scene.register(&plan));
    drop(scene.register(&plan));
    scene.table.spend(plan.session);
    assert!(matches!(scene.table.register(plan.session, plan.request), Some(Err(()))));
    assert_eq!(scene.table.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_an_earlier_daemon_is_decided_anew() {
    let scene = Scene::new();
    let Plan { session, cluster, request, .. } = scene.plan();
    let live = Live { session, cluster, request };
    assert!(!scene.table.has(&session));
    scene.table.adopt(&live);
    scene.table.adopted().await;
    assert!(scene.table.has(&session));
    assert_eq!(scene.table.refused(&scene.held(2, "\"caller\""), &scene.me, &scene.host).len(), 0);
    assert_eq!(scene.table.refused(&scene.held(3, ""), &scene.me, &scene.host).len(), 1);
}
