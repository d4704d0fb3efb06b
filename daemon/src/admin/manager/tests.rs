//! Rescan, snapshots made elsewhere, and the harness that the tests of enrolling use too.

use malai_protocol::home::Home;
use malai_protocol::local::{ClusterInit, Rescan as Ask, RescanOutcome};

use super::*;
use crate::admin::cluster_init;
use crate::store::keys::MachineKey;

pub(in crate::admin) const NOW: u64 = 1_700_000_000_000;
pub(in crate::admin) const YEAR: u64 = 365 * 24 * 3600 * 1000;

/// A home with the cluster `company`, whose manager is `laptop`.
pub(in crate::admin) struct Lab {
    _temp: tempfile::TempDir,
    pub(in crate::admin) home: Home,
    pub(in crate::admin) changes: Changes,
}

impl Lab {
    pub(in crate::admin) fn new() -> Self {
        let temp = tempfile::tempdir().expect("a directory");
        let home = Home::new(temp.path().join("home"));
        let changes = Changes::begin(&home).expect("free");
        let ask = ClusterInit { cluster: "company".into(), name: Some("laptop".into()), private: true, username: None };
        cluster_init(&changes, &ask, NOW).expect("made");
        Self { _temp: temp, home, changes }
    }

    pub(in crate::admin) fn manager(&self) -> Manager<'_> {
        Manager::load(&self.changes, "company").expect("loads")
    }

    pub(in crate::admin) fn dir(&self) -> ClusterDir {
        self.home.cluster("company")
    }

    pub(in crate::admin) fn edited(&self) -> String {
        std::fs::read_to_string(self.dir().config()).expect("reads")
    }

    pub(in crate::admin) fn edit(&self, change: impl Fn(String) -> String) {
        std::fs::write(self.dir().config(), change(self.edited())).expect("written");
    }

    /// Signs a snapshot with this cluster's key, as a stolen key would.
    pub(in crate::admin) fn elsewhere(&self, generation: u64, text: &str) -> Snapshot {
        let key = ClusterKey::load(&self.dir().cluster_key()).expect("reads").expect("is there");
        key.sign(generation, NOW, text.to_owned()).expect("signs")
    }
}

pub(in crate::admin) fn ask() -> Ask {
    Ask { cluster: None, check: false, yes: false, over: None }
}

pub(in crate::admin) fn machine() -> MachineId {
    MachineKey::generate().expect("randomness").id()
}

fn generation(manager: &Manager<'_>) -> u64 {
    manager.signed().expect("is signed").header().generation
}

#[test]
fn an_edit_takes_effect_as_the_next_generation_and_survives_a_restart() {
    let lab = Lab::new();
    lab.edit(|text| text + "\n# a comment\n");
    let mut manager = lab.manager();
    let before = generation(&manager);
    let RescanOutcome::Published(told) = manager.rescan(&ask(), NOW + 5000).expect("is in order") else {
        panic!("not signed")
    };
    let signed = manager.signed().expect("is signed");
    assert!(signed.header().generation > before);
    assert_eq!((told.generation, told.published), (signed.header().generation, false));
    assert_eq!(signed.text(), lab.edited());
    assert_eq!(lab.manager().snapshot(), Some(signed));
}

#[test]
fn an_unchanged_text_is_not_signed_again() {
    let lab = Lab::new();
    let mut manager = lab.manager();
    let before = manager.snapshot().cloned().expect("is signed");
    let RescanOutcome::Unchanged(told) = manager.rescan(&ask(), NOW + 1).expect("is in order") else {
        panic!("changed")
    };
    assert_eq!((told.generation, manager.snapshot()), (before.header().generation, Some(&before)));
}

#[test]
fn a_check_signs_nothing_and_shows_the_difference() {
    let lab = Lab::new();
    lab.edit(|text| text + "# one more line\n");
    let mut manager = lab.manager();
    let before = generation(&manager);
    let checked = manager.rescan(&Ask { check: true, ..ask() }, NOW + 1).expect("is in order");
    let RescanOutcome::Checked { diff } = checked else { panic!("not only checked") };
    assert!(diff.starts_with("--- signed\n+++ cluster.toml\n@@ "), "{diff}");
    assert!(diff.ends_with("\n+# one more line\n"), "{diff}");
    assert_eq!(generation(&lab.manager()), before);
}

#[test]
fn a_check_warns_of_a_wide_pattern_with_its_place_and_refuses_nothing() {
    let lab = Lab::new();
    let line = lab.edited().lines().count() + 2;
    lab.edit(|text| {
        text + "\n[machine.laptop.command.pull]\naccept_env = [\"GIT_*\"]\ncommand = [\"git\", \"pull\"]\n"
    });
    for check in [true, false] {
        let mut manager = lab.manager();
        manager.rescan(&Ask { check, ..ask() }, NOW + 1).expect("is in order");
        let [warning] = manager.warnings() else { panic!("{:?}", manager.warnings()) };
        let place = format!("{}: line {}, column 15: `GIT_*`", lab.dir().config().display(), line + 1);
        assert!(warning.starts_with(&place) && warning.ends_with("(name the variables that you need)"), "{warning}");
    }
}

#[test]
fn a_text_that_is_not_in_order_is_refused_with_every_position_and_nothing_is_signed() {
    let lab = Lab::new();
    let lines = lab.edited().lines().count();
    lab.edit(|text| text + "\n[machine.web01]\nid52 = \"x\"\nallow_form = []\n");
    let mut manager = lab.manager();
    let before = generation(&manager);
    let refused = manager.rescan(&ask(), NOW + 1).expect_err("is not in order");
    assert_eq!(refused.kind, Kind::BadConfig);
    for place in [format!("line {}, column", lines + 3), format!("line {}, column", lines + 4)] {
        assert!(refused.message.contains(&place), "{place}: {refused}");
    }
    assert_eq!(generation(&lab.manager()), before);
}

#[test]
fn a_text_for_another_key_or_another_manager_is_refused() {
    let lab = Lab::new();
    let other = ClusterKey::generate().expect("randomness").id();
    let own = lab.manager().id();
    lab.edit(|text| text.replace(&own.to_string(), &other.to_string()));
    let refused = lab.manager().rescan(&ask(), NOW + 1).expect_err("another cluster's");
    assert!(refused.message.contains("but the cluster key here is"), "{refused}");

    let lab = Lab::new();
    lab.edit(|text| text.replace(&lab.manager().machine.to_string(), &machine().to_string()));
    let refused = lab.manager().rescan(&ask(), NOW + 1).expect_err("another machine");
    assert!(refused.message.contains("which is not this machine"), "{refused}");
}

#[test]
fn a_clock_ten_years_off_never_stops_a_change() {
    let lab = Lab::new();
    let mut last = generation(&lab.manager());
    for (number, now) in [NOW + 10 * YEAR, NOW, 0, NOW - 10 * YEAR].into_iter().enumerate() {
        lab.edit(|text| format!("{text}# {number}\n"));
        let mut manager = lab.manager();
        assert!(matches!(manager.rescan(&ask(), now), Ok(RescanOutcome::Published(_))));
        assert!(generation(&manager) > last, "at {now}");
        last = generation(&manager);
    }
}

#[test]
fn a_foreign_snapshot_stops_publishing_until_it_is_named() {
    let lab = Lab::new();
    let mut manager = lab.manager();
    let theirs = generation(&manager) + 7;
    let text = format!("{}# made elsewhere\n", lab.edited());
    assert_eq!(manager.note_foreign(lab.elsewhere(theirs, &text)), Ok(true));

    let mut manager = lab.manager();
    assert!(manager.alarm().is_some_and(|alarm| alarm.contains(&format!("--over {theirs}"))));
    lab.edit(|text| text + "# made here\n");
    let refused = manager.rescan(&ask(), NOW).expect_err("is undecided");
    assert_eq!(refused.kind, Kind::Conflict);
    assert!(refused.message.contains("-# made elsewhere\n+# made here\n"), "{refused}");
    assert!(refused.hint.is_some_and(|hint| hint.ends_with(&format!("malai rescan company --over {theirs}"))));
    assert_eq!(manager.remove("laptop", false, NOW).expect_err("is undecided or the manager").kind, Kind::Conflict);
    manager.rescan(&Ask { over: Some(theirs + 1), ..ask() }, NOW).expect_err("another generation");

    let over = Ask { over: Some(theirs), ..ask() };
    assert!(matches!(manager.rescan(&over, NOW), Ok(RescanOutcome::Published(_))));
    assert!(generation(&manager) > theirs);
    assert!(lab.manager().alarm().is_none());
    assert!(!lab.dir().foreign_snapshot().exists());
    let refused = lab.manager().rescan(&over, NOW).expect_err("is settled");
    assert!(refused.message.contains("no foreign snapshot of generation"), "{refused}");
}

#[test]
fn an_unchanged_text_is_signed_again_over_a_foreign_snapshot() {
    let lab = Lab::new();
    let mut manager = lab.manager();
    let theirs = generation(&manager) + 1;
    assert_eq!(manager.note_foreign(lab.elsewhere(theirs, "# theirs\n")), Ok(true));
    assert!(matches!(manager.rescan(&Ask { over: Some(theirs), ..ask() }, NOW), Ok(RescanOutcome::Published(_))));
    assert!(generation(&manager) > theirs);
}

#[test]
fn a_fork_is_foreign_and_what_was_made_here_is_not() {
    let lab = Lab::new();
    let mut manager = lab.manager();
    let own = manager.snapshot().cloned().expect("is signed");
    let held = own.header().generation;
    assert_eq!(manager.note_foreign(own), Ok(false));
    assert_eq!(manager.note_foreign(lab.elsewhere(held - 1, "# old\n")), Ok(false));
    assert_eq!(manager.note_foreign(lab.elsewhere(held, "# forked\n")), Ok(true));
    assert_eq!(manager.note_foreign(lab.elsewhere(held + 9, "# highest\n")), Ok(true));
    assert_eq!(manager.note_foreign(lab.elsewhere(held + 5, "# lower\n")), Ok(true));
    let kept = lab.manager().foreign.map(|foreign| foreign.header().generation);
    assert_eq!(kept, Some(held + 9));
}

#[test]
fn a_foreign_snapshot_that_a_crash_left_behind_is_settled_by_its_number() {
    let lab = Lab::new();
    let old = lab.elsewhere(generation(&lab.manager()) - 1, "# theirs\n");
    snapshot::save(&lab.dir().foreign_snapshot(), &old).expect("stored");
    assert!(lab.manager().alarm().is_none());
}

#[test]
fn the_highest_generation_is_an_error_and_not_a_fork() {
    let lab = Lab::new();
    let mut manager = lab.manager();
    assert_eq!(manager.note_foreign(lab.elsewhere(u64::MAX, "# the end\n")), Ok(true));
    let refused = manager.rescan(&Ask { over: Some(u64::MAX), ..ask() }, NOW).expect_err("no number is left");
    assert!(refused.message.contains("highest possible generation"), "{refused}");
}

#[test]
fn a_snapshot_that_was_changed_meanwhile_is_not_written_over() {
    let lab = Lab::new();
    let mut manager = lab.manager();
    let other = lab.elsewhere(generation(&manager) + 1, "# theirs\n");
    snapshot::save(&lab.dir().snapshot(), &other).expect("stored");
    lab.edit(|text| text + "# mine\n");
    assert_eq!(manager.rescan(&ask(), NOW).expect_err("changed meanwhile").kind, Kind::Conflict);
    assert_eq!(lab.manager().snapshot(), Some(&other));
}

#[test]
fn a_lost_snapshot_is_signed_again_and_a_broken_one_is_reported() {
    let lab = Lab::new();
    std::fs::remove_file(lab.dir().snapshot()).expect("removed");
    let refused = lab.manager().signed().expect_err("is lost").hint;
    assert!(refused.is_some_and(|hint| hint.ends_with("malai rescan company")));
    assert!(matches!(lab.manager().rescan(&ask(), NOW), Ok(RescanOutcome::Published(_))));

    std::fs::write(lab.dir().snapshot(), "broken").expect("written");
    let refused = Manager::load(&lab.changes, "company").expect_err("is broken");
    assert!(refused.hint.is_some_and(|hint| hint.contains("mv ")));
    assert_eq!(std::fs::read(lab.dir().snapshot()).expect("still there"), b"broken");
}

#[test]
fn what_cannot_be_stored_is_not_signed_in_memory_either() {
    let lab = Lab::new();
    lab.edit(|text| text + "# one more\n");
    let mut manager = lab.manager();
    let before = manager.snapshot().cloned();
    // A directory in its place: the comparison with the disk fails, as it would on a broken one.
    std::fs::rename(lab.dir().snapshot(), lab.dir().root().join("aside")).expect("moved");
    std::fs::create_dir(lab.dir().snapshot()).expect("made");
    manager.rescan(&ask(), NOW).expect_err("cannot be stored");
    assert_eq!(manager.snapshot(), before.as_ref());
}

#[test]
fn only_the_holder_of_the_cluster_key_manages() {
    let lab = Lab::new();
    std::fs::write(lab.dir().joining(), format!("cluster = \"{}\"\n", lab.manager().id())).expect("written");
    std::fs::remove_file(lab.dir().cluster_key()).expect("removed");
    let refused = Manager::load(&lab.changes, "company").expect_err("no cluster key");
    assert_eq!((refused.kind, refused.hint.as_deref()), (Kind::Conflict, Some("do it on laptop")));
}

#[test]
fn a_long_difference_is_cut_off() {
    let long: String = (0..100_000).map(|n| format!("# line {n}\n")).collect();
    let text = diff(("signed", ""), ("cluster.toml", &long));
    assert!(text.len() < MAX_DIFF_BYTES + 100);
    assert!(text.ends_with("more was cut off)\n"));
}
