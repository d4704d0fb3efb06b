//! Who goes away without a word: the caller, the target, a daemon. What nobody comes back for does not stay behind, and
//! nobody is told 0.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, audit, daemon_status, malai, running, start, stop, text};
use malai_e2e::lab::{Child, Host, Lab, wait_until};
use malai_e2e::trials;
use nix::sys::signal::Signal;

use crate::{Office, goes_on, told};

/// A tree that nobody follows is gone after so long.
const TREE: Duration = Duration::from_secs(10);
/// A caller learns within so long that the target is lost.
const LOST: Duration = Duration::from_secs(60);
/// Found in the command line of every process of the commands below.
const MARK: &str = "60.0125";

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_caller_that_was_killed_leaves_nothing_behind,
        a_caller_that_was_killed_leaves_no_group_or_child_behind_where_cgroups_are_missing,
        a_kill_ends_what_forks_and_leaves_all_the_time,
        a_kill_ends_what_forks_and_leaves_all_the_time_where_cgroups_are_missing,
        a_kill_ends_what_another_user_forks_and_leaves_where_cgroups_are_missing,
        a_caller_that_lost_power_leaves_nothing_behind,
        a_target_that_lost_power_is_never_a_success,
        a_daemon_that_was_killed_leaves_its_sessions_to_the_next,
        an_executor_that_was_killed_is_never_a_success,
        a_session_outlives_a_callers_daemon_that_was_stopped,
        a_session_outlives_a_callers_daemon_that_was_killed,
        a_caller_that_was_killed_while_it_floods_standard_input_leaves_nothing_behind,
        background_processes_of_a_command_that_ended_by_itself_are_left_alone,
    ]
}

/// A command on web01 with a child, and a grandchild in a session of its own with this environment.
fn tree(office: &Office<1>, environment: &str) -> Result<Child> {
    let [web01] = &office.machines;
    let script = format!("sleep {MARK} & {environment} setsid sh -c 'sleep {MARK} & sleep {MARK}' & hostname; wait");
    let session = office.company.spawn(office.laptop(), web01, &["sh", "-c", &script])?;
    session.wait_for_line("web01", SOON)?;
    wait_until(SOON, "the whole tree runs", || running(web01, &format!("sleep {MARK}")).is_ok_and(|found| found >= 5))?;
    Ok(session)
}

fn nothing_is_left(host: &Host) -> Result<()> {
    let what = format!("no process of the command is left on {}", host.hostname());
    wait_until(TREE, &what, || running(host, MARK).is_ok_and(|found| found == 0))
}

/// How sessions' processes are found on a host, by its daemon's own words.
fn mode(host: &Host) -> Result<String> {
    text(&daemon_status(host)?, "/tree").map(str::to_owned)
}

fn a_caller_that_was_killed_leaves_nothing_behind() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    assert_eq!(mode(web01)?, "cgroup");
    let session = tree(&office, "env -i")?;
    session.signal(Signal::SIGKILL)?;
    nothing_is_left(web01)?;
    ended_by(web01, "caller-gone")
}

/// An office whose web01 has no cgroups.
fn without_cgroups() -> Result<Office<1>> {
    let lab = Lab::new("marker")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let web01 = lab.host("web01").on(&lan).without_cgroups().boot()?;
    company.join(&web01)?;
    let office = Office { company, machines: [web01], lan, lab };
    assert_eq!(mode(&office.machines[0])?, "marker");
    Ok(office)
}

fn a_caller_that_was_killed_leaves_no_group_or_child_behind_where_cgroups_are_missing() -> Result<()> {
    let office = without_cgroups()?;
    let [web01] = &office.machines;
    let session = tree(&office, "env")?;
    session.signal(Signal::SIGKILL)?;
    nothing_is_left(web01)?;
    ended_by(web01, "caller-gone")
}

/// How many processes fork and leave at the same time.
const FORKER_COUNT: usize = 30;
/// A word in the command lines of these processes.
const HOPS_MARK: &str = "forks-and-leaves";

/// Returns a script that starts [`FORKER_COUNT`] of those, and stays. Each leaves its session and its environment, waits a
/// little, starts the next one, and ends; after a minute all end.
fn bomb() -> String {
    let hop = format!(
        "sleep 0.2; : {HOPS_MARK}; [ \"$(date +%s)\" -lt \"$1\" ] || exit; \
         env -i PATH=\"$PATH\" setsid sh -c \"$0\" \"$0\" \"$1\" & exit"
    );
    format!(
        "trap '' TERM; hop='{hop}'; until=$(($(date +%s) + 60)); hostname; n=0; \
         while [ $n -lt {FORKER_COUNT} ]; do env -i PATH=\"$PATH\" setsid sh -c \"$hop\" \"$hop\" $until & n=$((n + 1)); done; \
         sleep 60"
    )
}

/// Starts it on web01, waits until it goes, ends it by `malai kill`, and looks that nothing of it is left.
fn is_gone_when_killed(office: &Office<1>, target: &str) -> Result<()> {
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    let name = laptop.run(malai(["--detach", target, "--", "sh", "-c", &bomb()]))?.exited(0)?.text();
    wait_until(SOON, "it forks and leaves", || running(web01, HOPS_MARK).is_ok_and(|found| found > FORKER_COUNT))?;
    let killed = laptop.run(malai(["kill", &name]))?.exited(0)?;
    ensure!(killed.error_text().ends_with("is ended"), "{}", killed.error_text());
    // One that forks and leaves is missed by some looks, and not by so many.
    for _ in 0..50 {
        let left = running(web01, HOPS_MARK)?;
        ensure!(left == 0, "it is said to be ended, and {left} processes are left");
    }
    ended_by(web01, "killed")
}

fn a_kill_ends_what_forks_and_leaves_all_the_time() -> Result<()> {
    let office = Office::open(["web01"])?;
    is_gone_when_killed(&office, "web01.company")
}

fn a_kill_ends_what_forks_and_leaves_all_the_time_where_cgroups_are_missing() -> Result<()> {
    let office = without_cgroups()?;
    is_gone_when_killed(&office, "web01.company")
}

fn a_kill_ends_what_another_user_forks_and_leaves_where_cgroups_are_missing() -> Result<()> {
    let office = without_cgroups()?;
    let [web01] = &office.machines;
    web01.add_user("deploy")?;
    office.company.publish("machine.web01", "users = [\"deploy\"]")?;
    office.company.holds(web01, office.company.generation(office.laptop())?)?;
    is_gone_when_killed(&office, "deploy@web01.company")
}

/// The last line of the audit says who ended the session.
fn ended_by(host: &Host, who: &str) -> Result<()> {
    wait_until(SOON, &format!("the audit says {who}"), || {
        let last = audit(host).ok().and_then(|mut lines| lines.pop());
        last.is_some_and(|line| text(&line, "/outcome").is_ok_and(|outcome| outcome.starts_with(who)))
    })
}

fn a_caller_that_lost_power_leaves_nothing_behind() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    office.company.publish("machine.web01", "grace = \"3s\"")?;
    office.company.holds(web01, office.company.generation(office.laptop())?)?;
    let _session = tree(&office, "env -i")?;
    office.laptop().power_cut();
    // Nobody tells web01: it has to notice by itself that nothing comes any more.
    wait_until(LOST, "no process of the command is left on web01", || {
        running(web01, MARK).is_ok_and(|found| found == 0)
    })
}

fn a_target_that_lost_power_is_never_a_success() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let words = ["--lost-after", "5s", "web01.company", "--", "sh", "-c", "hostname; sleep 600"];
    let session = office.laptop().spawn(malai(words))?;
    session.wait_for_line("web01", SOON)?;
    web01.power_cut();
    told(session.output_within(LOST)?, 253, &["web01.company", "not known"])?;
    web01.boot()?;
    start(web01)?;
    company.linked(web01)?;
    company.ran_remotely(office.laptop(), web01)
}

fn kill(host: &Host, pointer: &str) -> Result<()> {
    let status = daemon_status(host)?;
    let pid = status.pointer(pointer).with_context(|| format!("no {pointer} in {status}"))?;
    host.run(["kill", "-KILL", &pid.to_string()])?.success()?;
    Ok(())
}

fn a_daemon_that_was_killed_leaves_its_sessions_to_the_next() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let session = tree(&office, "env -i")?;
    kill(web01, "/pid")?;
    start(web01)?;
    company.linked(web01)?;
    company.ran_remotely(office.laptop(), web01)?;
    goes_on(session)?;
    ended_by(web01, "self")?;
    let lines = audit(web01)?;
    let events: Vec<&str> = lines.iter().map(|line| text(line, "/event")).collect::<Result<_>>()?;
    assert_eq!(events, ["start", "start", "end", "end"], "the session of the killed daemon ended last");
    Ok(())
}

fn an_executor_that_was_killed_is_never_a_success() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let session = tree(&office, "env -i")?;
    kill(web01, "/executor_pid")?;
    told(session.output_within(SOON)?, 253, &["web01.company"])?;
    ended_by(web01, "unknown")?;
    nothing_is_left(web01)?;
    company.ran_remotely(office.laptop(), web01)
}

fn a_session_outlives_a_callers_daemon_that_was_stopped() -> Result<()> {
    let office = Office::open(["web01"])?;
    let session = tree(&office, "env -i")?;
    stop(office.laptop())?;
    // An agent takes its place.
    session.wait_for_error_line("is back after", SOON)?;
    goes_on(session)
}

fn a_session_outlives_a_callers_daemon_that_was_killed() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let session = tree(&office, "env -i")?;
    kill(office.laptop(), "/pid")?;
    session.wait_for_error_line("is back after", SOON)?;
    start(office.laptop())?;
    office.company.linked(web01)?;
    office.company.ran_remotely(office.laptop(), web01)?;
    goes_on(session)
}

fn a_caller_that_was_killed_while_it_floods_standard_input_leaves_nothing_behind() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        let line = format!("exec malai web01.company -- sh -c 'hostname; exec sleep {MARK}' </dev/zero");
        let session = office.laptop().spawn(["sh", "-c", &line])?;
        session.wait_for_line("web01", SOON)?;
        session.signal(signal)?;
        assert_eq!(session.output_within(SOON)?.code(), code);
        nothing_is_left(web01)?;
    }
    Ok(())
}

fn background_processes_of_a_command_that_ended_by_itself_are_left_alone() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let script = format!("sleep {MARK} >/dev/null 2>&1 & hostname");
    let output = company.run(office.laptop(), web01, &["sh", "-c", &script])?.success()?;
    assert_eq!(output.text(), "web01");
    company.ran_remotely(office.laptop(), web01)?;
    ensure!(running(web01, &format!("sleep {MARK}"))? == 1, "the background process did not outlive its command");
    Ok(())
}
