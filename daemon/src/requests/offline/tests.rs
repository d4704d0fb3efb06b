use malai_protocol::invite::Invite;
use malai_protocol::local::{ClusterApprove, ClusterInit, ClusterInvite, Rescan, RescanOutcome};

use super::*;
use crate::store::keys::MachineKey;
use crate::store::lock::{Lock, Part};

fn home() -> (tempfile::TempDir, Home) {
    let temp = tempfile::tempdir().expect("a directory");
    let home = Home::new(temp.path().join("home"));
    (temp, home)
}

fn init(cluster: &str) -> ClusterInit {
    ClusterInit { cluster: cluster.into(), name: Some("laptop".into()), private: false, username: None }
}

fn ask_offline(home: &Home, request: Request) -> Response {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(offline(home, request))
}

#[test]
fn without_a_daemon_the_disk_part_is_done_and_nothing_is_said_to_be_published() {
    let (_temp, home) = home();
    let Response::Made(_) = ask_offline(&home, Request::ClusterInit(init("company"))) else { panic!("not made") };
    let invite = ClusterInvite {
        cluster: "company".into(),
        name: Some("web01".into()),
        uses: 1,
        expires_s: 60,
        groups: Vec::new(),
        username: None,
    };
    let Response::Invited(invited) = ask_offline(&home, Request::ClusterInvite(invite)) else { panic!("not invited") };
    assert_eq!(invited.token.parse::<Invite>().map(|i| i.expires_ms), Ok(invited.expires_ms));
    let id = MachineKey::generate().expect("randomness").id();
    let approve = ClusterApprove {
        cluster: "company".into(),
        id: id.to_string(),
        name: Some("db01".into()),
        groups: Vec::new(),
        username: None,
    };
    let Response::Changed(changed) = ask_offline(&home, Request::ClusterApprove(approve)) else {
        panic!("not changed")
    };
    assert_eq!((changed.machine.as_str(), changed.id), ("db01", id));
    assert!(!changed.publication.published);
    assert_eq!(
        (changed.publication.holding, changed.publication.missing),
        (vec!["laptop".into()], vec!["db01".into()])
    );
    let rescan = Rescan { cluster: None, check: false, yes: false, over: None };
    let Response::Rescanned(all) = ask_offline(&home, Request::Rescan(rescan)) else { panic!("not rescanned") };
    assert!(matches!(&all[0].outcome, RescanOutcome::Unchanged(p) if !p.published && p.missing == ["db01"]));
    let Response::Failed(pending) = ask_offline(&home, Request::ClusterPending { cluster: "company".into() }) else {
        panic!("nobody can know")
    };
    assert_eq!(pending.hint.as_deref(), Some("malai daemon"));
}

#[test]
fn beside_a_daemon_nothing_is_changed_and_beside_an_agent_it_is() {
    let (_temp, home) = home();
    let daemon = Lock::take(&home, Part::Daemon).expect("free");
    let Response::Failed(refused) = ask_offline(&home, Request::ClusterInit(init("company"))) else {
        panic!("changed")
    };
    assert_eq!(refused.kind, Kind::Conflict);
    drop(daemon);
    let _agent = Lock::take(&home, Part::Agent).expect("free");
    assert!(matches!(ask_offline(&home, Request::ClusterInit(init("company"))), Response::Made(_)));
}
