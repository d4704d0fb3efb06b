use malai_protocol::local::{CameBy, ClusterApprove, ClusterInvite, InviteState, RescanOutcome};
use malai_protocol::ticket::{Ticket, TicketError};

use super::*;
use crate::admin::manager::tests::{Lab, NOW, YEAR, ask, machine};

fn web01() -> NewMachine {
    NewMachine { name: "web01".parse().expect("a name"), id: machine(), groups: Vec::new(), username: None }
}

fn invite(lab: &Lab, name: Option<&str>, uses: u32) -> Invite {
    let ask = invitation(name, uses);
    lab.manager().invite(&ask, vec!["192.0.2.1:4002".into()], NOW).expect("invited").token.parse().expect("a token")
}

fn invitation(name: Option<&str>, uses: u32) -> ClusterInvite {
    ClusterInvite {
        cluster: "company".into(),
        name: name.map(str::to_owned),
        uses,
        expires_s: 3600,
        groups: vec!["admins".into()],
        username: Some("root".into()),
    }
}

fn redeem(lab: &Lab, invite: &Invite, key: MachineId, hostname: &str) -> Result<String, Failure> {
    lab.manager().redeem(&invite.secret, key, hostname, NOW + 1000).map(|changed| changed.machine)
}

fn signed(lab: &Lab) -> Config {
    lab.manager().config().expect("is signed")
}

#[test]
fn an_enrolled_machine_is_in_the_signed_text_and_in_the_edited_one() {
    let lab = Lab::new();
    lab.edit(|text| format!("# mine\n{text}# the end\n"));
    let enrolled = lab.manager().enrol(&web01(), NOW + 1).expect("enrolled");
    assert_eq!(enrolled.warning, None);
    assert_eq!(signed(&lab).machine("web01").map(|m| m.id), Some(enrolled.id));
    // What the administrator was writing is neither published nor lost.
    assert!(!lab.manager().signed().expect("is signed").text().contains("# mine"));
    let edited = lab.edited();
    assert!(
        edited.starts_with("# mine\n") && edited.contains("# the end") && edited.contains(&enrolled.id.to_string())
    );
}

#[test]
fn a_half_edited_file_does_not_stop_an_enrolment_but_stops_the_rescan() {
    let lab = Lab::new();
    let whole = lab.edited();
    lab.edit(|text| text + "[machine.half\n");
    let enrolled = lab.manager().enrol(&web01(), NOW + 1).expect("enrolled");
    let warning = enrolled.warning.expect("the file was not edited along");
    assert!(warning.contains("could not be edited") && warning.contains("line "), "{warning}");
    assert!(signed(&lab).machine("web01").is_some());
    assert!(lab.edited().ends_with("[machine.half\n"));
    assert_eq!(lab.manager().rescan(&ask(), NOW + 2).expect_err("is half").kind, Kind::BadConfig);
    // Mended, but without the machine: that is still not dropped by accident.
    lab.edit(|_| whole.clone());
    assert_eq!(lab.manager().rescan(&ask(), NOW + 3).expect_err("drops web01").kind, Kind::Conflict);
}

#[test]
fn a_rescan_that_would_drop_a_new_machine_shows_it_and_needs_yes() {
    let lab = Lab::new();
    let begun = lab.edited();
    lab.manager().enrol(&web01(), NOW + 1).expect("enrolled");
    lab.edit(|_| format!("{begun}# saved by an editor that had the old text\n"));
    let refused = lab.manager().rescan(&ask(), NOW + 2).expect_err("drops web01");
    assert!(refused.message.contains("cluster.toml: web01\n--- signed\n+++ cluster.toml\n"), "{refused}");
    assert!(refused.message.contains("\n-[machine.web01]\n"), "{refused}");
    assert!(refused.hint.is_some_and(|hint| hint.ends_with("malai rescan company --yes")));
    let yes = local::Rescan { yes: true, ..ask() };
    assert!(matches!(lab.manager().rescan(&yes, NOW + 3), Ok(RescanOutcome::Published(_))));
    assert!(signed(&lab).machine("web01").is_none());
}

#[test]
fn a_machine_that_an_edit_takes_out_on_purpose_needs_no_yes() {
    let lab = Lab::new();
    let before = lab.edited();
    lab.manager().enrol(&web01(), NOW + 1).expect("enrolled");
    assert!(matches!(lab.manager().rescan(&ask(), NOW + 2), Ok(RescanOutcome::Unchanged(_))));
    lab.edit(|_| before.clone());
    assert!(matches!(lab.manager().rescan(&ask(), NOW + 3), Ok(RescanOutcome::Published(_))));
    assert!(signed(&lab).machine("web01").is_none());
}

#[test]
fn a_removed_machine_is_gone_from_both_texts_and_the_manager_stays() {
    let lab = Lab::new();
    let before = lab.edited();
    let machine = web01();
    lab.manager().enrol(&machine, NOW + 1).expect("enrolled");
    let removed = lab.manager().remove("web01", false, NOW + 2).expect("removed");
    assert_eq!((removed.id, removed.warning), (machine.id, None));
    assert!(signed(&lab).machine("web01").is_none());
    assert!(!lab.edited().contains("web01"));
    assert_eq!(lab.manager().remove("web01", false, NOW + 3).expect_err("is gone").kind, Kind::UnknownTarget);
    assert_eq!(lab.manager().remove("../x", false, NOW + 3).expect_err("no name").kind, Kind::UnknownTarget);
    assert_eq!(lab.manager().remove("laptop", false, NOW + 3).expect_err("is the manager").kind, Kind::Conflict);
    // Enrolled again, it counts as new again.
    lab.manager().enrol(&machine, NOW + 4).expect("enrolled");
    lab.edit(|_| before.clone());
    assert_eq!(lab.manager().rescan(&ask(), NOW + 5).expect_err("drops web01").kind, Kind::Conflict);
}

#[test]
fn a_redeemed_invite_enrols_with_its_name_groups_and_user() {
    let lab = Lab::new();
    let invite = invite(&lab, Some("web01"), 1);
    assert_eq!(invite.cluster, lab.manager().id());
    assert_eq!((invite.name.as_str(), invite.relays.as_deref()), ("company", Some(&[][..])));
    let key = machine();
    assert_eq!(redeem(&lab, &invite, key, "ip-10-0-0-7"), Ok("web01".into()));
    let config = signed(&lab);
    let web01 = config.machine("web01").expect("is there");
    assert_eq!((web01.id, web01.username.as_deref()), (key, Some("root")));
    assert!(config.groups["admins"].members.contains("web01"));
}

#[test]
fn an_invite_to_a_cluster_with_pinned_relays_carries_pins_and_a_ticket_that_expires_with_it() {
    let lab = Lab::new();
    assert_eq!(invite(&lab, Some("web01"), 1).ticket, None, "it has no relays");
    let relays = format!(
        "relays = [\"https://a.example.com\", {{ url = \"https://192.0.2.5:7443\", sha256 = \"{}\" }}]",
        "ab".repeat(32)
    );
    lab.edit(|text| text.replace("relays    = [] ", &format!("{relays} ")));
    lab.manager().rescan(&ask(), NOW + 1).expect("published");
    let invite = invite(&lab, Some("db01"), 1);
    assert_eq!(invite.relays.as_deref(), Some(&["https://a.example.com".to_owned()][..]));
    assert_eq!(invite.pinned.iter().map(|relay| relay.sha256).collect::<Vec<_>>(), [Some([0xab; 32])]);
    let ticket = Ticket::from_text(invite.ticket.as_deref().expect("a ticket")).expect("one");
    assert_eq!(ticket.verify(&invite.cluster, invite.expires_ms - 1), Ok(()));
    assert_eq!(ticket.verify(&invite.cluster, invite.expires_ms), Err(TicketError::Expired));
}

#[test]
fn a_lost_reply_does_not_burn_an_invite_and_a_second_key_is_refused() {
    let lab = Lab::new();
    let invite = invite(&lab, Some("web01"), 1);
    let key = machine();
    for _ in 0..3 {
        assert_eq!(redeem(&lab, &invite, key, "web01"), Ok("web01".into()));
    }
    let generation = lab.manager().signed().expect("is signed").header().generation;
    let refused = redeem(&lab, &invite, machine(), "web02").expect_err("another machine");
    assert_eq!(refused.kind, Kind::Denied);
    assert_eq!(refused.message, "this invite was used already, by another machine");
    assert_eq!(lab.manager().signed().expect("is signed").header().generation, generation);
    // Even after it has expired, the first key gets its answer.
    let late = lab.manager().redeem(&invite.secret, key, "web01", NOW + 3_600_001).expect("the same answer");
    assert_eq!(late.publication.generation, generation);
}

#[test]
fn an_invite_that_was_bound_before_a_crash_is_redeemed_by_the_same_key_only() {
    let lab = Lab::new();
    let invite = invite(&lab, Some("web01"), 1);
    let (key, path) = (machine(), lab.dir().invites());
    let mut invites = Invites::load(&path, NOW).expect("loads");
    invites.bind(&invite.secret, key, Binding { name: "web01".into(), enrolled: false, at_ms: None });
    invites.save(&path).expect("stored");
    assert_eq!(redeem(&lab, &invite, machine(), "web02").expect_err("bound").kind, Kind::Denied);
    assert_eq!(redeem(&lab, &invite, key, "web01"), Ok("web01".into()));
}

#[test]
fn a_removed_machine_does_not_come_back_by_its_old_invite() {
    let lab = Lab::new();
    let invite = invite(&lab, None, 5);
    let key = machine();
    redeem(&lab, &invite, key, "web01").expect("enrolled");
    lab.manager().remove("web01", false, NOW + 2000).expect("removed");
    let refused = redeem(&lab, &invite, key, "web01").expect_err("was removed");
    assert_eq!(
        (refused.kind, refused.message.as_str()),
        (Kind::Denied, "this machine was enrolled as web01, and later removed")
    );
}

#[test]
fn a_removed_machine_does_not_come_back_although_the_disk_was_too_full_to_note_that_it_had_joined() {
    for by_edit in [false, true] {
        let lab = Lab::new();
        let (invite, key) = (invite(&lab, Some("web01"), 1), machine());
        redeem(&lab, &invite, key, "web01").expect("enrolled");
        let path = lab.dir().invites();
        let noted = std::fs::read_to_string(&path).expect("reads");
        assert!(noted.contains("\"enrolled\": true"), "{noted}");
        std::fs::write(&path, noted.replace("\"enrolled\": true", "\"enrolled\": false")).expect("as it was before");
        if by_edit {
            lab.edit(|text| text.replace(&format!("id52 = \"{key}\""), &format!("id52 = \"{}\"", machine())));
            lab.manager().rescan(&local::Rescan { yes: true, ..ask() }, NOW + 2000).expect("signed");
        } else {
            lab.manager().remove("web01", false, NOW + 2000).expect("removed");
        }
        assert!(signed(&lab).machine_by_id(&key).is_none());
        let refused = redeem(&lab, &invite, key, "web01").expect_err("was removed");
        assert!(refused.message.ends_with("later removed"), "{refused}");
    }
}

#[test]
fn an_expired_or_unknown_invite_is_denied_in_words() {
    let lab = Lab::new();
    let invite = invite(&lab, None, 1);
    let late = lab.manager().redeem(&invite.secret, machine(), "a", NOW + 3_600_000).expect_err("too late");
    assert_eq!((late.kind, late.message.as_str()), (Kind::Denied, "this invite has expired"));
    let unknown = lab.manager().redeem(&[7; 32], machine(), "a", NOW).expect_err("nobody's");
    assert_eq!(unknown.kind, Kind::Denied);
    assert!(unknown.message.contains("unknown invite"), "{unknown}");
    // A clock that went back does not make it more than what it was.
    lab.manager().redeem(&invite.secret, machine(), "a", NOW - 10 * YEAR).expect("still open");
    let later = lab.manager().redeem(&invite.secret, machine(), "b", NOW + 10 * YEAR).expect_err("forgotten");
    assert_eq!(later.kind, Kind::Denied);
}

#[test]
fn host_names_that_are_taken_get_a_number() {
    let lab = Lab::new();
    let invite = invite(&lab, None, 9);
    let long = "x".repeat(40);
    let mut names = Vec::new();
    for hostname in ["Web_01.example.com", "web-01", "web-01", "laptop", "admins", "", "status", &long, &long] {
        names.push(redeem(&lab, &invite, machine(), hostname).expect("enrolled"));
    }
    let x32 = "x".repeat(32);
    let x30 = format!("{}-2", "x".repeat(30));
    let wanted = ["web-01", "web-01-2", "web-01-3", "laptop-2", "admins-2", "host", "host-2", &x32, &x30];
    assert_eq!(names, wanted);
    assert_eq!(redeem(&lab, &invite, machine(), "tenth").expect_err("used up").kind, Kind::Denied);
}

#[test]
fn what_cannot_be_enrolled_is_not_promised() {
    let lab = Lab::new();
    invite(&lab, Some("web01"), 1);
    let refused = |ask: ClusterInvite| lab.manager().invite(&ask, Vec::new(), NOW).expect_err("refused").kind;
    let table = [
        (invitation(Some("laptop"), 1), Kind::Conflict),
        (invitation(Some("admins"), 1), Kind::Conflict),
        (invitation(Some("web01"), 1), Kind::Conflict),
        (invitation(Some("status"), 1), Kind::Usage),
        (invitation(Some("Web02"), 1), Kind::Usage),
        (invitation(Some("web02"), 2), Kind::Usage),
        (invitation(None, 0), Kind::Usage),
        (invitation(None, MAX_USES + 1), Kind::Usage),
        (ClusterInvite { expires_s: 0, ..invitation(None, 1) }, Kind::Usage),
        (ClusterInvite { expires_s: u64::MAX, ..invitation(None, 1) }, Kind::Usage),
        (ClusterInvite { groups: vec!["nobody".into()], ..invitation(None, 1) }, Kind::Usage),
        (ClusterInvite { username: Some("a b".into()), ..invitation(None, 1) }, Kind::Usage),
    ];
    for (ask, kind) in table {
        assert_eq!(refused(ask.clone()), kind, "{ask:?}");
    }
}

#[test]
fn a_name_for_more_than_one_newcomer_is_refused_with_what_to_do_instead() {
    let lab = Lab::new();
    let refused = lab.manager().invite(&invitation(Some("web02"), 2), Vec::new(), NOW).expect_err("refused");
    assert_eq!(refused.kind, Kind::Usage);
    let hint = refused.hint.expect("a hint");
    assert!(hint.contains("malai cluster invite company --uses 2"), "{hint}");
}

#[test]
fn open_invites_are_bounded_and_forgotten_a_day_after_they_expired() {
    let lab = Lab::new();
    let manager = lab.manager();
    for _ in 0..10 {
        manager.invite(&invitation(None, MAX_USES), Vec::new(), NOW).expect("invited");
    }
    let refused = manager.invite(&invitation(None, 1), Vec::new(), NOW).expect_err("no room");
    assert_eq!(refused.kind, Kind::Busy);
    let later = NOW + (3600 + 24 * 3600) * 1000;
    manager.invite(&invitation(None, MAX_USES), Vec::new(), later).expect("there is room again");
}

#[test]
fn the_disk_knows_no_secret_of_an_invite() {
    let lab = Lab::new();
    let invite = invite(&lab, None, 1);
    let secret = data_encoding::HEXLOWER.encode(invite.secret.as_slice());
    let text = std::fs::read_to_string(lab.dir().invites()).expect("reads");
    assert!(!text.contains(&secret) && !text.contains(&invite.to_token()));
}

#[test]
fn a_newcomer_is_not_told_of_files_and_may_try_again() {
    let lab = Lab::new();
    let invite = invite(&lab, None, 1);
    let key = machine();
    let snapshot = lab.dir().snapshot();
    let mut manager = lab.manager();
    let aside = lab.dir().root().join("aside");
    std::fs::rename(&snapshot, &aside).expect("moved");
    let refused = manager.redeem(&invite.secret, key, "web01", NOW).expect_err("nothing can be signed");
    assert!(!refused.message.contains('/'), "{refused}");
    std::fs::rename(&aside, &snapshot).expect("back");
    assert_eq!(redeem(&lab, &invite, key, "web01"), Ok("web01".into()));
}

#[test]
fn an_approved_machine_is_named_by_the_administrator_or_by_its_host() {
    let lab = Lab::new();
    let ask = |name: Option<&str>| ClusterApprove {
        cluster: "company".into(),
        id: String::new(),
        name: name.map(str::to_owned),
        groups: Vec::new(),
        username: None,
    };
    let (first, second) = (machine(), machine());
    let approve = |id, hostname, name| lab.manager().approve(id, hostname, &ask(name), NOW + 1);
    assert_eq!(approve(first, None, None).expect_err("no name at all").kind, Kind::Usage);
    assert_eq!(approve(first, Some("db01.example.com"), None).expect("enrolled").machine, "db01");
    assert_eq!(approve(second, Some("db01"), Some("web01")).expect("enrolled").machine, "web01");
    let generation = lab.manager().signed().expect("is signed").header().generation;
    let again = approve(first, None, Some("db01")).expect("is there already");
    assert_eq!(again.publication.generation, generation);
    assert_eq!(approve(first, None, Some("other")).expect_err("another name").kind, Kind::Conflict);
    assert_eq!(approve(machine(), None, Some("web01")).expect_err("taken").kind, Kind::Conflict);
}

/// Makes an invite with this number of uses; returns its id too.
fn called(lab: &Lab, uses: u32) -> (String, Invite) {
    let invited = lab.manager().invite(&invitation(None, uses), Vec::new(), NOW).expect("invited");
    (invited.id, invited.token.parse().expect("a token"))
}

fn listed(lab: &Lab, now_ms: u64) -> Vec<InviteEntry> {
    lab.manager().invites(now_ms).expect("lists")
}

#[test]
fn invites_are_listed_with_what_they_promise_and_who_came_by_them() {
    let lab = Lab::new();
    let (id, invite) = called(&lab, 3);
    let (first, second) = (machine(), machine());
    redeem(&lab, &invite, first, "web01").expect("enrolled");
    redeem(&lab, &invite, second, "web02").expect("enrolled");
    lab.manager().remove("web02", false, NOW + 2000).expect("removed");
    let [entry] = listed(&lab, NOW + 3000).try_into().expect("one invite");
    assert_eq!((entry.id.as_str(), entry.state, entry.uses, entry.uses_left), (id.as_str(), InviteState::Open, 3, 1));
    assert_eq!((entry.expires_ms, entry.forgotten_ms), (NOW + 3_600_000, NOW + 90_000_000));
    assert_eq!((entry.groups.as_slice(), entry.username.as_deref()), (&["admins".to_owned()][..], Some("root")));
    let who: Vec<_> = entry.redeemed.iter().map(|r| (r.machine.as_str(), r.id, r.at_ms, r.removed)).collect();
    assert_eq!(who, [("web01", first, Some(NOW + 1000), false), ("web02", second, Some(NOW + 1000), true)]);
    // The id tells nothing of the secret, and is no token.
    let secret = data_encoding::HEXLOWER.encode(invite.secret.as_slice());
    assert!(id.len() == 8 && !secret.contains(&id) && !invite.to_token().contains(&id));
    redeem(&lab, &invite, machine(), "web03").expect("enrolled");
    let states = |now| {
        let mut states: Vec<_> = listed(&lab, now).iter().map(|entry| entry.state).collect();
        states.sort_by_key(|state| *state as u8);
        states
    };
    assert_eq!(states(NOW + 4000), [InviteState::UsedUp]);
    assert_eq!(states(NOW + 90_000_000 - 1), [InviteState::UsedUp]);
    assert_eq!(states(NOW + 90_000_000), []);
    let (_, _unused) = called(&lab, 1);
    assert_eq!(states(NOW + 3_600_000), [InviteState::UsedUp, InviteState::Expired]);
}

#[test]
fn a_renamed_machine_is_listed_by_its_name_in_the_config() {
    let lab = Lab::new();
    let (_, invite) = called(&lab, 1);
    redeem(&lab, &invite, machine(), "web01").expect("enrolled");
    lab.edit(|text| text.replace("[machine.web01]", "[machine.front]").replace("\"web01\"", "\"front\""));
    lab.manager().rescan(&local::Rescan { yes: true, ..ask() }, NOW + 2000).expect("published");
    assert_eq!(listed(&lab, NOW + 3000)[0].redeemed[0].machine, "front");
}

#[test]
fn a_revoked_invite_is_refused_as_a_wrong_one_is() {
    let lab = Lab::new();
    let (id, invite) = called(&lab, 5);
    let key = machine();
    redeem(&lab, &invite, key, "web01").expect("enrolled");
    let ended = lab.manager().revoke_invite(&id, NOW + 2000).expect("revoked");
    assert_eq!((ended.id.as_str(), ended.state, ended.uses_left), (id.as_str(), InviteState::Revoked, 4));
    let wrong = lab.manager().redeem(&[7; 32], machine(), "web02", NOW + 3000).expect_err("nobody's");
    for key in [machine(), key] {
        assert_eq!(redeem(&lab, &invite, key, "web02").expect_err("revoked"), wrong);
    }
    assert!(signed(&lab).machine("web01").is_some(), "who came by it stays");
    let again = lab.manager().revoke_invite(&id, NOW + 3000).expect_err("is gone");
    assert_eq!((again.kind, again.message), (Kind::Conflict, format!("the invite {id} was revoked before")));
    assert_eq!(listed(&lab, NOW + 2000 + 24 * 3_600_000 - 1)[0].redeemed[0].machine, "web01");
    assert_eq!(listed(&lab, NOW + 2000 + 24 * 3_600_000), []);
    // Nor does a clock that went back open it again.
    lab.manager().redeem(&invite.secret, machine(), "web02", NOW - YEAR).expect_err("revoked");
}

#[test]
fn an_id_may_be_cut_short_while_it_means_one_invite_and_a_wrong_one_shows_those_that_there_are() {
    let lab = Lab::new();
    let ids: Vec<String> = (0..17).map(|_| called(&lab, 1).0).collect();
    // Of seventeen two begin alike.
    let alike = ids.iter().find(|id| ids.iter().filter(|other| other.starts_with(&id[..1])).count() > 1).expect("two");
    let refused = lab.manager().revoke_invite(&alike[..1], NOW).expect_err("more than one");
    assert!(refused.kind == Kind::UnknownTarget && refused.message.contains("more than one invite"), "{refused}");
    assert!(refused.hint.is_some_and(|hint| hint.contains(alike.as_str())));
    for wrong in ["", "xyz", "malai1abc", &"f".repeat(65)] {
        let refused = lab.manager().revoke_invite(wrong, NOW).expect_err("none");
        assert_eq!(refused.kind, Kind::UnknownTarget, "{wrong}");
        assert!(wrong.is_empty() || !refused.message.contains(wrong), "{refused}");
        assert!(refused.hint.is_some_and(|hint| hint.contains("malai cluster invites company lists all")));
    }
    let short = (1..=8).map(|n| &ids[0][..n]).find(|s| ids.iter().filter(|id| id.starts_with(s)).count() == 1);
    let ended = lab.manager().revoke_invite(&short.expect("unambiguous").to_uppercase(), NOW).expect("revoked");
    assert_eq!(ended.id, ids[0]);
}

#[test]
fn a_removal_tells_of_the_open_invite_by_which_the_machine_came() {
    let lab = Lab::new();
    let (id, invite) = called(&lab, 3);
    redeem(&lab, &invite, machine(), "web01").expect("enrolled");
    let removed = lab.manager().remove("web01", false, NOW + 2000).expect("removed");
    let came = CameBy { id, uses_left: 2, expires_ms: invite.expires_ms, revoked: false };
    assert_eq!(removed.invites, [came]);
    // What that warns of: a new key comes back by it.
    redeem(&lab, &invite, machine(), "web01").expect("enrolled again");
    redeem(&lab, &invite, machine(), "web02").expect("enrolled");
    assert_eq!(lab.manager().remove("web01", false, NOW + 2000).expect("removed").invites, [], "it is used up");
    let (_, late) = called(&lab, 2);
    redeem(&lab, &late, machine(), "web03").expect("enrolled");
    let removed = lab.manager().remove("web03", true, NOW + 3_600_000).expect("removed");
    assert_eq!((removed.invites, removed.warning), (Vec::new(), None), "it has expired");
}

#[test]
fn a_removal_that_revokes_ends_the_invite_and_leaves_the_others_alone() {
    let lab = Lab::new();
    let ((id, invite), (other_id, other)) = (called(&lab, 5), called(&lab, 5));
    redeem(&lab, &invite, machine(), "web01").expect("enrolled");
    redeem(&lab, &other, machine(), "web02").expect("enrolled");
    let removed = lab.manager().remove("web01", true, NOW + 2000).expect("removed");
    assert_eq!(
        removed.invites,
        [CameBy { id: id.clone(), uses_left: 4, expires_ms: invite.expires_ms, revoked: true }]
    );
    let refused = redeem(&lab, &invite, machine(), "web01").expect_err("revoked");
    assert!(refused.message.contains("unknown invite"), "{refused}");
    redeem(&lab, &other, machine(), "web03").expect("open");
    let states = listed(&lab, NOW + 2000).into_iter().map(|entry| (entry.id, entry.state));
    let wanted = [(id, InviteState::Revoked), (other_id, InviteState::Open)];
    assert_eq!(states.collect::<std::collections::BTreeMap<_, _>>(), wanted.into_iter().collect());
}

#[test]
fn a_removal_that_cannot_be_signed_leaves_its_invite_open() {
    let lab = Lab::new();
    let (_, invite) = called(&lab, 5);
    redeem(&lab, &invite, machine(), "web01").expect("enrolled");
    let mut manager = lab.manager();
    // A directory in its place: nothing can be stored there.
    let (snapshot, aside) = (lab.dir().snapshot(), lab.dir().root().join("aside"));
    std::fs::rename(&snapshot, &aside).expect("moved");
    std::fs::create_dir(&snapshot).expect("made");
    manager.remove("web01", true, NOW + 2000).expect_err("cannot be stored");
    std::fs::remove_dir(&snapshot).expect("removed");
    std::fs::rename(&aside, &snapshot).expect("back");
    assert!(signed(&lab).machine("web01").is_some());
    assert_eq!(listed(&lab, NOW + 2000)[0].state, InviteState::Open);
    redeem(&lab, &invite, machine(), "web02").expect("open");
    // And a removal later, without the word for it, does not end it.
    lab.manager().remove("web01", false, NOW + 3000).expect("removed");
    assert_eq!(listed(&lab, NOW + 3000)[0].state, InviteState::Open);
}

#[test]
fn an_invite_that_was_to_end_with_a_removal_has_ended_when_a_crash_came_after_the_signature() {
    let lab = Lab::new();
    let (_, invite) = called(&lab, 5);
    let key = machine();
    redeem(&lab, &invite, key, "web01").expect("enrolled");
    let mut books = Invites::load(&lab.dir().invites(), NOW).expect("loads");
    books.end_with(&key, NOW);
    let marked = serde_json::to_vec(&books).expect("encodes");
    lab.manager().remove("web01", false, NOW + 2000).expect("removed");
    // The disk as the crash left it: marked, signed, and nothing after that.
    std::fs::write(lab.dir().invites(), marked).expect("written");
    redeem(&lab, &invite, machine(), "web02").expect_err("it has ended");
    assert_eq!(listed(&lab, NOW + 2000)[0].state, InviteState::Revoked);
}

#[test]
fn books_that_cannot_be_read_keep_no_machine_in_the_cluster() {
    let lab = Lab::new();
    lab.manager().enrol(&web01(), NOW + 1).expect("enrolled");
    std::fs::write(lab.dir().invites(), "broken").expect("written");
    lab.manager().remove("web01", true, NOW + 2).expect_err("both, or neither");
    assert!(signed(&lab).machine("web01").is_some());
    let removed = lab.manager().remove("web01", false, NOW + 2).expect("removed");
    assert!(removed.warning.is_some_and(|warning| warning.starts_with("cannot tell by which invite it joined")));
}

#[test]
fn books_of_an_earlier_version_are_read() {
    let lab = Lab::new();
    let (id, invite) = called(&lab, 2);
    let key = machine();
    redeem(&lab, &invite, key, "web01").expect("enrolled");
    let text = std::fs::read_to_string(lab.dir().invites()).expect("reads");
    let mut books: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    books.as_object_mut().expect("an object").remove("revoked");
    for promise in books["by_hash"].as_object_mut().expect("an object").values_mut() {
        for binding in promise["redeemed"].as_object_mut().expect("an object").values_mut() {
            binding.as_object_mut().expect("an object").remove("at_ms");
        }
    }
    std::fs::write(lab.dir().invites(), books.to_string()).expect("written");
    let [entry] = listed(&lab, NOW).try_into().expect("one");
    assert_eq!((entry.id, entry.redeemed[0].at_ms, entry.uses), (id, None, 2));
}

#[test]
fn revoked_invites_give_way_to_new_ones_and_free_their_names() {
    let lab = Lab::new();
    let full: Vec<String> = (0..10).map(|_| called(&lab, MAX_USES).0).collect();
    let crowded = lab.manager().invite(&invitation(None, 1), Vec::new(), NOW).expect_err("no room");
    assert_eq!(crowded.kind, Kind::Busy);
    lab.manager().revoke_invite(&full[0], NOW).expect("revoked");
    let named = |name| lab.manager().invite(&invitation(Some(name), 1), Vec::new(), NOW);
    let id = named("web01").expect("there is room").id;
    assert_eq!(named("web01").expect_err("promised").kind, Kind::Conflict);
    lab.manager().revoke_invite(&id, NOW).expect("revoked");
    named("web01").expect("the name is free");
}

#[test]
fn a_list_that_an_earlier_version_signed_keeps_no_machine_in_and_no_newcomer_out() {
    let lab = Lab::new();
    lab.manager().enrol(&web01(), NOW + 1).expect("enrolled");
    let (_, invite) = called(&lab, 2);
    let old = lab.edited().replace("[defaults]\n", "[defaults]\naccept_env = [\"EDITOR\"]\n");
    assert_ne!(old, lab.edited());
    let generation = lab.manager().signed().expect("is signed").header().generation;
    crate::store::snapshot::save(&lab.dir().snapshot(), &lab.elsewhere(generation + 1, &old)).expect("stored");
    lab.edit(|_| old.clone());
    let removed = lab.manager().remove("web01", false, NOW + 2).expect("removed");
    assert_eq!(removed.warning, None);
    redeem(&lab, &invite, machine(), "web02").expect("enrolled");
    assert!(signed(&lab).machine("web01").is_none() && signed(&lab).machine("web02").is_some());
    assert!(lab.edited().contains("accept_env = [\"EDITOR\"]"));
    // The next edit by a person is refused.
    let refused = lab.manager().rescan(&ask(), NOW + 3).expect_err("in vain");
    assert!(refused.message.contains("`EDITOR` in `accept_env` names variables that no machine accepts"), "{refused}");
}
