//! A relay of one's own, on a host that is no machine of the cluster.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, json, malai, start, stop, text};
use malai_e2e::lab::{Child, Cmd, Host, Lab, Router, Segment, wait_for};
use malai_e2e::trials;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::network::behind_nat;
use crate::told;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_newcomer_joins_through_a_relay_that_admits_machines_only_and_commands_go_through_it,
        a_machine_that_is_removed_is_disconnected_from_the_relay_at_once_and_refused_afterwards,
        a_relay_that_restarts_serves_by_what_it_stored_while_the_manager_is_away,
        a_relay_is_told_by_another_machine_when_the_manager_cannot,
        a_relay_says_what_is_missing_before_it_runs,
        a_relay_runs_as_a_user_of_its_own_in_the_home_that_its_unit_gives_it,
    ]
}

/// A cluster whose manager is behind a symmetric NAT, and a relay on the internet; nothing else finds anybody.
struct Stage {
    company: Cluster,
    relay: Relay,
    routers: Vec<Router>,
    internet: Segment,
    lab: Lab,
}

/// A relay that runs.
struct Relay {
    host: Host,
    process: Option<Child>,
    entry: String,
    url: String,
}

impl Relay {
    /// Makes one for this cluster and starts it.
    fn begin(host: Host, token: &str) -> Result<Self> {
        let url = format!("https://{}:7443", host.ip());
        let made = host.run(malai(["relay", "init", token, "--url", &url]))?.success()?;
        let mut relay = Self { host, process: None, entry: made.text(), url };
        relay.start()?;
        Ok(relay)
    }

    fn start(&mut self) -> Result<()> {
        let process = self.host.spawn(malai(["relay", "run"]))?;
        process.wait_for_error_line("relay ready", SOON)?;
        self.process = Some(process);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let process = self.process.take().context("it does not run")?;
        process.signal(Signal::SIGTERM)?;
        process.output_within(SOON)?.success()?;
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        let status = json(&self.host.run(malai(["relay", "status", "--json"]))?.success()?)?;
        Ok(status.get("relay").context("no relay")?.clone())
    }

    fn number(&self, pointer: &str) -> Result<Option<u64>> {
        Ok(self.status()?.pointer(pointer).and_then(Value::as_u64))
    }

    fn holds(&self, generation: u64) -> Result<()> {
        let what = format!("the relay holds generation {generation}");
        wait_for(SOON * 2, &what, || Ok((self.number("/clusters/0/generation")? == Some(generation)).then_some(())))
    }

    fn connected(&self, count: u64) -> Result<()> {
        let what = format!("{count} are connected to the relay");
        wait_for(SOON * 2, &what, || Ok((self.number("/connected")? == Some(count)).then_some(())))
    }
}

impl Stage {
    fn open() -> Result<Self> {
        let lab = Lab::new("own-relay")?;
        let internet = lab.internet()?;
        let (laptop, router) = behind_nat(&lab, &internet, "laptop")?;
        let company = Cluster::on_disk("company", laptop, &["--private"])?;
        let relay = Relay::begin(lab.host("relay").on(&internet).boot()?, &company.invite(&["--relay"])?)?;
        company.set("network", &format!("relays = [{}]", relay.entry))?;
        company.set("network", "discovery = []")?;
        company.rescan_with(&[])?.exited(1)?;
        start(company.manager())?;
        let stage = Self { company, relay, routers: vec![router], internet, lab };
        stage.relay.holds(stage.company.generation(stage.company.manager())?)?;
        // The machine key and the cluster key.
        stage.relay.connected(2)?;
        wait_for(SOON, "the manager is known to be at the relay", || {
            let status = stage.company.status(stage.company.manager())?;
            let known = status.get("join_addresses").is_some_and(|all| all.to_string().contains(&stage.relay.url));
            Ok(known.then_some(()))
        })?;
        Ok(stage)
    }

    /// A machine behind a symmetric NAT of its own.
    fn join(&mut self, name: &str) -> Result<Host> {
        let (host, router) = behind_nat(&self.lab, &self.internet, name)?;
        self.routers.push(router);
        self.company.join(&host)?;
        Ok(host)
    }
}

fn a_newcomer_joins_through_a_relay_that_admits_machines_only_and_commands_go_through_it() -> Result<()> {
    let mut stage = Stage::open()?;
    let web01 = stage.join("web01")?;
    let company = &stage.company;
    company.ran_remotely(company.manager(), &web01)?;
    let path = company.machine_seen_from(company.manager(), &web01)?;
    ensure!(text(&path, "/connection/path")? == format!("relay {}/", stage.relay.url), "{path}");
    stage.relay.holds(company.generation(company.manager())?)?;
    stage.relay.connected(3)?;
    // By TCP alone it goes on.
    stage.routers.iter().try_for_each(|router| router.set_udp(false))?;
    company.ran_remotely(company.manager(), &web01)?;
    // A machine of another cluster, whose config names the same relay, is a stranger there.
    let (eve, _router) = behind_nat(&stage.lab, &stage.internet, "eve")?;
    let others = Cluster::on_disk("others", eve, &["--private"])?;
    others.set("network", &format!("relays = [{}]", stage.relay.entry))?;
    others.rescan_with(&[])?.exited(1)?;
    start(others.manager())?;
    wait_for(SOON, "the stranger is refused", || {
        Ok(stage.relay.number("/refused")?.filter(|refused| *refused >= 2).map(|_| ()))
    })?;
    let status = stage.relay.status()?;
    ensure!(
        status.pointer("/connected") == Some(&3.into()) && status.pointer("/by_ticket") == Some(&0.into()),
        "{status}"
    );
    company.ran_remotely(company.manager(), &web01)
}

fn a_machine_that_is_removed_is_disconnected_from_the_relay_at_once_and_refused_afterwards() -> Result<()> {
    let mut stage = Stage::open()?;
    let (_web01, db01) = (stage.join("web01")?, stage.join("db01")?);
    stage.relay.connected(4)?;
    let refused = stage.relay.number("/refused")?;
    stage.company.manager().run(malai(["cluster", "remove", "company", "web01"]))?.success()?;
    stage.relay.connected(3)?;
    ensure!(stage.relay.number("/let_go")? == Some(1), "{}", stage.relay.status()?);
    // It comes back by itself, again and again.
    wait_for(SOON * 2, "it is refused", || Ok((stage.relay.number("/refused")? > refused).then_some(())))?;
    stage.relay.connected(3)?;
    stage.company.ran_remotely(stage.company.manager(), &db01)
}

fn a_relay_that_restarts_serves_by_what_it_stored_while_the_manager_is_away() -> Result<()> {
    let mut stage = Stage::open()?;
    let (web01, db01) = (stage.join("web01")?, stage.join("db01")?);
    stage.company.allow(&db01, &["web01"])?;
    let generation = stage.company.generation(stage.company.manager())?;
    stage.relay.holds(generation)?;
    stage.company.holds(&web01, generation)?;
    stage.company.holds(&db01, generation)?;
    stop(stage.company.manager())?;
    stage.relay.stop()?;
    told(stage.relay.host.run(malai(["relay", "status"]))?, 1, &[])?;
    stage.relay.start()?;
    stage.relay.connected(2)?;
    stage.relay.holds(generation)?;
    stage.company.ran_remotely(&web01, &db01)
}

fn a_relay_is_told_by_another_machine_when_the_manager_cannot() -> Result<()> {
    let mut stage = Stage::open()?;
    let _web01 = stage.join("web01")?;
    stage.routers.first().context("the manager's")?.set_udp(false)?;
    stage.company.publish("defaults", "grace = \"5m\"")?;
    stage.relay.holds(stage.company.generation(stage.company.manager())?)
}

fn a_relay_says_what_is_missing_before_it_runs() -> Result<()> {
    let lab = Lab::new("no-relay")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::on_disk("company", lab.host("laptop").on(&lan).boot()?, &["--private"])?;
    let host = lab.host("relay").on(&lan).boot()?;
    told(host.run(malai(["relay", "run"]))?, 255, &["there is no relay", "malai relay init"])?;
    let token = company.invite(&["--relay"])?;
    told(host.run(malai(["relay", "init", &token]))?, 2, &["--url is missing"])?;
    told(host.run(malai(["machine", "join", &token]))?, 2, &["is for a relay of", "without --relay"])?;
    let url = format!("https://{}:7443", host.ip());
    // An ordinary invite does as well, and is still good afterwards.
    let invite = company.invite(&["--name", "web01"])?;
    let init = malai(["relay", "init", "-", "--url", &url]).stdin(format!("{invite}\n"));
    told(host.run(init)?, 0, &["was not used", "malai rescan company"])?;
    let kept = host.sh("grep -rl secret /root/malai-home || true")?.text();
    ensure!(kept.is_empty(), "a secret is in {kept}");
    let mut relay = Relay { host, process: None, entry: String::new(), url };
    relay.start()?;
    told(relay.host.run(malai(["relay", "run"]))?, 255, &["a relay runs already"])?;
    relay.stop()
}

fn a_relay_runs_as_a_user_of_its_own_in_the_home_that_its_unit_gives_it() -> Result<()> {
    let lab = Lab::new("relay-user")?;
    let host = lab.host("relay").boot()?;
    host.add_user("ada")?;
    // Where systemd puts the home of a service with DynamicUser=, and how it leads there.
    let (private, home) = ("/tmp/lib/private/malai-relay", "/tmp/lib/malai-relay");
    let made = format!("install -d /tmp/lib/private && install -d -m 700 -o ada {private} && ln -s {private} {home}");
    host.sh(&made)?.success()?;
    let ada = |words: &[&str]| malai(words).user("ada").env("MALAI_HOME", home);
    let init = ["cluster", "init", "company", "--name", "laptop", "--private", "--username", "root"];
    host.run(malai(init))?.success()?;
    let token = host.run(malai(["cluster", "invite", "company", "--relay"]))?.success()?.text();
    host.run(ada(&["relay", "init", &token, "--url", "https://127.0.0.1:7443"]))?.success()?;
    let relay = host.spawn(ada(&["relay", "run"]))?;
    relay.wait_for_error_line("relay ready", SOON)?;
    let status = json(&host.run(ada(&["relay", "status", "--json"]))?.success()?)?;
    let pid = status.pointer("/relay/pid").and_then(Value::as_u64).context("no pid")?;
    let refused = host.run(Cmd::new(["cat", &format!("/proc/{pid}/environ")]).user("ada"))?;
    ensure!(refused.error_text().contains("Permission denied"), "{refused:?}");
    let refused = host.run(malai(["relay", "status"]).env("MALAI_HOME", home))?;
    told(refused, 255, &[private, "belongs to ada"])?;
    relay.signal(Signal::SIGTERM)?;
    relay.output_within(SOON)?.success()?;
    Ok(())
}
