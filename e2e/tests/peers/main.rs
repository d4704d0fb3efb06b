//! Machines in other languages, written from `docs/protocol.md` (`e2e/peers`), in one cluster with malai's own.
//!
//! A command on *another* machine proves that it was another: its output carries that host's own name.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use libtest_mimic::{Failed, Trial};
use malai_e2e::cluster::{Cluster, SOON, audit, malai, running};
use malai_e2e::harness;
use malai_e2e::lab::peers::Language;
use malai_e2e::lab::{Host, Lab, Output, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

mod peer;

use peer::Peer;

fn main() -> ExitCode {
    let mut trials = malai_e2e::trials![three_languages_run_commands_on_each_other_in_one_cluster];
    for (claim, body) in [
        ("joins_and_is_a_machine_like_others", joins as fn(Language) -> Result<()>),
        ("of_another_version_is_unsupported", is_unsupported),
        ("runs_a_command_and_hears_how_it_ended", runs),
        ("that_sends_a_request_again_runs_it_once", runs_once),
        ("that_lost_its_connection_goes_on_at_the_byte", resumes),
        ("that_goes_for_good_ends_its_command", goes),
        ("serves_whom_the_config_allows_and_refuses_others", serves),
        ("is_followed_by_malai_over_a_lost_network", is_followed),
        ("ends_a_command_whose_caller_has_gone_or_may_no_more", ends),
        ("that_is_removed_runs_nothing_any_more", is_removed),
        ("says_when_it_stops_and_comes_back", stops),
    ] {
        trials.extend([("python", Language::Python), ("javascript", Language::JavaScript)].map(|(word, language)| {
            let story = move || body(language).map_err(|error| Failed::from(format!("{error:?}")));
            Trial::test(format!("a_{word}_peer_{claim}"), story)
        }));
    }
    harness::main_with_peers(trials)
}

/// A private cluster: laptop, its manager; `web01`, on which every machine may run commands; and a peer.
struct Office {
    company: Cluster,
    web01: Host,
    peer: Peer,
    _lab: Lab,
}

impl Office {
    fn open(language: Language) -> Result<Self> {
        let lab = Lab::new("peers")?;
        let lan = lab.segment("lan")?;
        let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
        let web01 = lab.host("web01").on(&lan).boot()?;
        company.join(&web01)?;
        company.allow(&web01, &["*"])?;
        let mut peer = Peer::start(lab.host("peer").on(&lan).boot()?, language)?;
        peer.join(&company)?;
        Ok(Self { company, web01, peer, _lab: lab })
    }

    fn laptop(&self) -> &Host {
        self.company.manager()
    }

    /// Waits until the manager knows that the peer holds its own newest config.
    fn spread(&self) -> Result<()> {
        wait_for(SOON, "the peer holds the newest config", || {
            let generation = self.company.generation(self.laptop())?;
            let seen = self.company.machine_seen_from(self.laptop(), self.peer.host())?;
            Ok((seen.get("generation") == Some(&generation.into())).then_some(()))
        })
    }

    /// Lets these machines run commands on the peer.
    fn allow(&self, from: &[&str]) -> Result<()> {
        self.company.allow(self.peer.host(), from)?;
        self.spread()
    }

    /// Runs `hello` on the peer.
    fn hello(&self, from: &Host, words: &[&str]) -> Result<Output> {
        self.company.run(from, self.peer.host(), &[&["hello"], words].concat())
    }
}

fn joins(language: Language) -> Result<()> {
    let mut office = Office::open(language)?;
    let config = office.company.config()?;
    ensure!(config.contains("[machine.peer]") && config.contains(office.peer.id52()), "{config}");
    let status = office.laptop().run(malai(["status"]))?.success()?.text();
    let line = status.lines().find(|line| line.trim_start().starts_with("peer ")).unwrap_or_default();
    ensure!(line.contains(office.peer.version()) && line.contains("connected, direct"), "{status}");
    office.laptop().run(malai(["ping", "peer.company", "-c", "2"]))?.success()?;
    office.peer.ask(json!({"do": "ping", "machine": "laptop"}))?;
    // It takes up what is published later, and says so.
    office.company.publish("defaults", "grace = \"5m\"")?;
    office.spread()
}

fn is_unsupported(language: Language) -> Result<()> {
    let mut office = Office::open(language)?;
    let closed = office.peer.ask(json!({"do": "greet", "machine": "laptop", "version": 2}))?;
    ensure!(closed.to_string().contains("(code 5)"), "{closed}");
    let token = office.company.invite(&[])?;
    let refused = office.peer.refused(json!({"do": "join", "token": token, "version": 2}))?;
    ensure!(refused == "unsupported", "{refused}");
    // What it is in its own version, it still is.
    office.hello(office.laptop(), &[])?.success()?;
    Ok(())
}

fn runs(language: Language) -> Result<()> {
    let mut office = Office::open(language)?;
    let ran = office.peer.ask(json!({
        "do": "run", "machine": "web01", "words": ["sh", "-c", "hostname; cat; echo err >&2; exit 7"], "stdin": "input",
    }))?;
    let wanted =
        json!({"code": 7, "ended_by": "self", "hostname": "web01", "stdout": "web01\ninput", "stderr": "err\n"});
    Peer::has(&ran, &wanted)?;
    let killed = office.peer.ask(json!({"do": "run", "machine": "web01", "words": ["sh", "-c", "kill -9 $$"]}))?;
    Peer::has(&killed, &json!({"code": 137}))?;
    office.company.allow(&office.web01, &["admins"])?;
    let refused = office.peer.refused(json!({"do": "run", "machine": "web01", "words": ["hostname"]}))?;
    ensure!(refused == "denied", "{refused}");
    let missing = office.peer.refused(json!({"do": "run", "machine": "db01", "words": ["hostname"]}))?;
    ensure!(missing == "unknown-target", "{missing}");
    Ok(())
}

fn runs_once(language: Language) -> Result<()> {
    let mut office = Office::open(language)?;
    let script = "echo ran >> /root/ran; hostname; cat; exit 3";
    let ran = office.peer.ask(json!({
        "do": "run", "machine": "web01", "words": ["sh", "-c", script], "stdin": "in", "twice": true,
    }))?;
    // Sent as if for the first time it is refused; marked as sent again it goes on with the session.
    let wanted =
        json!({"again": "conflict", "first": "superseded", "code": 3, "stdout": "web01\nin", "attachments": 2});
    Peer::has(&ran, &wanted)?;
    ensure!(office.web01.read("/root/ran")? == "ran\n", "it did not run once");
    // A peer keeps the same promise.
    let ran = office.peer.ask(json!({"do": "run", "machine": "web01", "words": ["cat", "/root/ran"]}))?;
    Peer::has(&ran, &json!({"stdout": "ran\n"}))
}

fn resumes(language: Language) -> Result<()> {
    let mut office = Office::open(language)?;
    let script =
        "i=0; while [ $i -lt 4000 ]; do echo line $i; i=$((i + 1)); [ $((i % 200)) -gt 0 ] || sleep 0.02; done; exit 5";
    let ran = office.peer.ask(json!({
        "do": "run", "machine": "web01", "words": ["sh", "-c", script], "after": 10_000, "then": "lose",
    }))?;
    let lines: String = (0..4000).map(|number| format!("line {number}\n")).collect();
    Peer::has(&ran, &json!({"code": 5, "hostname": "web01", "stdout": lines, "attachments": 2}))
}

fn goes(language: Language) -> Result<()> {
    let mut office = Office::open(language)?;
    for (how, pause) in [("reset", "61.125"), ("farewell", "61.375")] {
        let script = format!("hostname; sleep {pause} & wait");
        let order = json!({"do": "run", "machine": "web01", "words": ["sh", "-c", script], "after": 1, "then": how});
        let left = office.peer.ask(order)?;
        Peer::has(&left, &json!({"left": how}))?;
        wait_until(SOON, "all of the command is gone", || {
            running(&office.web01, &format!("sleep {pause}")).is_ok_and(|found| found == 0)
        })?;
    }
    wait_until(SOON, "the audit has both ends", || {
        let is_gone = |line: &&serde_json::Value| line.to_string().contains("caller-gone");
        audit(&office.web01).is_ok_and(|lines| lines.iter().filter(is_gone).count() == 2)
    })
}

fn serves(language: Language) -> Result<()> {
    let office = Office::open(language)?;
    let laptop = office.laptop();
    let said = office.hello(laptop, &["7", "3"])?.exited(7)?;
    ensure!(
        said.text() == "hello laptop, 1 from peer\nhello laptop, 2 from peer\nhello laptop, 3 from peer",
        "{}",
        said.text()
    );
    ensure!(said.error_text() == office.peer.signature(), "{}", said.error_text());
    let refused = office.hello(&office.web01, &[])?.exited(254)?;
    ensure!(refused.stdout.is_empty(), "it ran: {}", refused.text());
    ensure!(refused.error_text().contains("`web01` is not in `allow_from` of [defaults]"), "{}", refused.error_text());
    // By the directory web01 finds it, and by the new config it may.
    office.allow(&["admins", "web01"])?;
    ensure!(office.hello(&office.web01, &[])?.success()?.text() == "hello web01, 1 from peer");
    let other = office.company.run(laptop, office.peer.host(), &["uptime"])?.exited(127)?;
    ensure!(other.error_text().contains("one command, `hello`"), "{}", other.error_text());
    let detached = laptop.run(malai(["peer.company", "--detach", "--", "hello"]))?.exited(255)?;
    ensure!(detached.error_text().contains("`detach` is not known here"), "{}", detached.error_text());
    office.allow(&[])?;
    office.hello(laptop, &[])?.exited(254)?;
    Ok(())
}

fn is_followed(language: Language) -> Result<()> {
    let office = Office::open(language)?;
    let (laptop, host) = (office.laptop(), office.peer.host());
    let session = office.company.spawn(laptop, host, &["hello", "3", "10000"])?;
    session.wait_for_line("hello laptop, 100 from peer", SOON)?;
    host.link_down()?;
    session.wait_for_error_line("connection to peer.company lost", SOON)?;
    host.link_up()?;
    let output = session.output_within(SOON * 4)?.exited(3)?;
    ensure!(output.error_text().contains("is back after"), "{}", output.error_text());
    let lines: String = (1..=10_000).map(|number| format!("hello laptop, {number} from peer\n")).collect();
    ensure!(output.stdout == lines.as_bytes(), "{} bytes came, and not all and only those said", output.stdout.len());
    Ok(())
}

fn ends(language: Language) -> Result<()> {
    let mut office = Office::open(language)?;
    let begin = |office: &Office| {
        let session = office.company.spawn(office.laptop(), office.peer.host(), &["hello", "0", "90000"])?;
        session.wait_for_line("hello laptop, 100 from peer", SOON)?;
        anyhow::Ok(session)
    };
    begin(&office)?.signal(Signal::SIGKILL)?;
    office.peer.ended(&["caller-gone"])?;
    let session = begin(&office)?;
    office.allow(&["web01"])?;
    let output = session.output_within(SOON)?.exited(253)?;
    ensure!(output.error_text().contains("`laptop` is not in `allow_from`"), "{}", output.error_text());
    office.peer.ended(&["caller-gone", "revoked"])
}

fn is_removed(language: Language) -> Result<()> {
    let mut office = Office::open(language)?;
    let order = |file: &str| json!({"do": "run", "machine": "laptop", "words": ["touch", file]});
    office.company.allow(office.laptop(), &["*"])?;
    office.spread()?;
    office.peer.ask(order("/root/before"))?;
    office.laptop().run(malai(["cluster", "remove", "company", "peer"]))?.success()?;
    // Over the connection that there was it may also learn that nothing is known, since that is closed under it.
    wait_for(SOON, "it hears that it is no member", || {
        Ok((office.peer.refused(order("/root/after"))? == "not-a-member").then_some(()))
    })?;
    ensure!(office.laptop().exists("/root/before")? && !office.laptop().exists("/root/after")?, "it ran");
    office.company.run(&office.web01, office.peer.host(), &["hello"])?.exited(255)?;
    Ok(())
}

fn stops(language: Language) -> Result<()> {
    let Office { company, web01, peer, _lab } = Office::open(language)?;
    let id52 = peer.id52().to_owned();
    let host = peer.stop()?;
    // Long before its silence would tell.
    wait_for(SOON * 2 / 3, "the manager heard that it stops", || {
        let seen = company.machine_seen_from(company.manager(), &host)?;
        Ok(seen.get("connection").is_none_or(serde_json::Value::is_null).then_some(()))
    })?;
    company.run(company.manager(), &host, &["hello"])?.exited(255)?;
    let peer = Peer::start(host, language)?;
    company.linked(peer.host())?;
    let said = company.run(company.manager(), peer.host(), &["hello"])?.success()?;
    ensure!(said.text() == "hello laptop, 1 from peer", "{}", said.text());
    ensure!(company.config()?.contains(&id52), "it has another key");
    drop(web01);
    Ok(())
}

fn three_languages_run_commands_on_each_other_in_one_cluster() -> Result<()> {
    let lab = Lab::new("three")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let (mut python, mut javascript) = (
        Peer::start(lab.host("python").on(&lan).boot()?, Language::Python)?,
        Peer::start(lab.host("javascript").on(&lan).boot()?, Language::JavaScript)?,
    );
    python.join(&company)?;
    javascript.join(&company)?;
    company.allow(javascript.host(), &["python"])?;
    company.allow(python.host(), &["laptop", "javascript"])?;
    company.allow(company.manager(), &["javascript"])?;

    let said = company.run(company.manager(), python.host(), &["hello", "1"])?.exited(1)?;
    ensure!(said.text() == "hello laptop, 1 from python" && said.error_text() == "said in Python", "{}", said.text());

    // The address of the other peer is in no config: the directory tells it.
    let order = json!({
        "do": "run", "machine": "javascript", "words": ["hello", "2", "3000"], "after": 10_000, "then": "lose",
    });
    let ran = python.ask(order)?;
    let lines: String = (1..=3000).map(|number| format!("hello python, {number} from javascript\n")).collect();
    let stderr = "said in JavaScript\n";
    Peer::has(
        &ran,
        &json!({"code": 2, "hostname": "javascript", "stdout": lines, "stderr": stderr, "attachments": 2}),
    )?;

    let ran = javascript.ask(json!({"do": "run", "machine": "laptop", "words": ["sh", "-c", "hostname; exit 3"]}))?;
    Peer::has(&ran, &json!({"code": 3, "hostname": "laptop", "stdout": "laptop\n"}))?;

    for (from, to) in [(&mut python, "javascript"), (&mut javascript, "python")] {
        let once = from.ask(json!({"do": "run", "machine": to, "words": ["hello", "0", "1000"], "twice": true}))?;
        Peer::has(&once, &json!({"again": "conflict", "first": "superseded", "code": 0, "attachments": 2}))?;
        let closed = from.ask(json!({"do": "greet", "machine": to, "version": 2}))?;
        ensure!(closed.to_string().contains("(code 5)"), "{to}: {closed}");
        for how in ["reset", "farewell"] {
            let order = json!({"do": "run", "machine": to, "words": ["hello", "0", "90000"], "after": 1, "then": how});
            Peer::has(&from.ask(order)?, &json!({"left": how}))?;
        }
    }
    python.ended(&["self", "self", "caller-gone", "caller-gone"])?;
    javascript.ended(&["self", "self", "caller-gone", "caller-gone"])?;
    let refused = python.refused(json!({"do": "run", "machine": "laptop", "words": ["hostname"]}))?;
    ensure!(refused == "denied", "{refused}");
    Ok(())
}
