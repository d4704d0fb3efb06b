//! Relays of the cluster's own: pinned certificates, several of them, and what is said of one that cannot be used.
//!
//! Every machine here is alone behind a symmetric NAT, and there is no discovery: two of them meet at a relay or nowhere.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, malai, start, stop, text};
use malai_e2e::lab::{Child, Cmd, Host, Lab, Router, Segment, Services, Wire, wait_for};
use malai_e2e::trials;
use serde_json::Value;

use crate::network::behind_nat;
use crate::{goes_on, told};

/// The longest that commands may be without a relay when another one is there.
const FAILOVER: Duration = Duration::from_secs(10);

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_pinned_relay_is_used_though_its_certificate_is_expired_and_nobody_vouches_for_it,
        a_wrong_certificate_is_told_by_status_and_by_the_command_and_the_right_pin_mends_it,
        an_expired_certificate_without_a_pin_is_refused,
        a_relay_that_refuses_is_told_and_another_one_is_used,
        relays_are_exchanged_under_running_commands,
        commands_go_on_over_the_second_relay_when_the_first_dies,
        a_running_command_goes_on_when_the_first_relay_falls_silent,
        a_newcomers_ticket_is_shown_to_the_pinned_relay_alone,
    ]
}

/// Relays, and a cluster whose machines meet at them.
struct Far {
    company: Cluster,
    web01: Host,
    _internet: Segment,
    _lab: Lab,
    _routers: [Router; 2],
}

impl Far {
    /// Makes the cluster with these lines of `[network]`, and lets web01 in.
    fn open(lab: Lab, internet: Segment, network: &[String]) -> Result<Self> {
        let (laptop, router) = behind_nat(&lab, &internet, "laptop")?;
        let (web01, other) = behind_nat(&lab, &internet, "web01")?;
        let company = Cluster::on_disk("company", laptop, &[])?;
        for line in network.iter().map(String::as_str).chain(["discovery = []"]) {
            company.set("network", line)?;
        }
        // Signed, and not published: there is no daemon yet.
        told(company.rescan_with(&[])?, 1, &["not published"])?;
        start(company.manager())?;
        let at_relay = wait_for(SOON, "the manager is at a relay", || {
            let all = states(&company, company.manager())?;
            Ok(all.iter().any(|relay| relay.contains(" connected ")).then_some(()))
        });
        told_by(at_relay, &company, company.manager())?;
        company.join(&web01)?;
        Ok(Self { company, web01, _internet: internet, _lab: lab, _routers: [router, other] })
    }

    fn laptop(&self) -> &Host {
        self.company.manager()
    }

    /// Since when the connection from the manager to web01 is there, and its path.
    fn connection(&self) -> Result<(u64, String)> {
        let seen = self.company.machine_seen_from(self.laptop(), &self.web01)?;
        let since = seen.pointer("/connection/since_ms").and_then(Value::as_u64).context("no connection")?;
        Ok((since, text(&seen, "/connection/path")?.to_owned()))
    }

    /// A command that prints a line every tenth of a second.
    fn ticking(&self) -> Result<Child> {
        let child = self.company.spawn(
            self.laptop(),
            &self.web01,
            &["sh", "-c", "hostname; while sleep 0.1; do echo; done"],
        )?;
        child.wait_for_line("web01", SOON)?;
        Ok(child)
    }
}

fn pinned(services: &Services) -> String {
    with_pin(services, &services.sha256)
}

fn with_pin(services: &Services, sha256: &str) -> String {
    format!("{{ url = {:?}, sha256 = {sha256:?} }}", services.relay)
}

fn relays(all: &[&str]) -> String {
    format!("relays = [{}]", all.join(", "))
}

/// What a host's status says of each relay: `url state error`.
fn states(company: &Cluster, host: &Host) -> Result<Vec<String>> {
    let status = company.status(host)?;
    let all = status.get("relays").and_then(Value::as_array).context("no relays in the status")?;
    let word = |relay: &Value, key: &str| relay.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(all.iter().map(|r| [word(r, "url"), word(r, "state"), word(r, "error")].join(" ")).collect())
}

/// The same result, with what a host says of its relays when it is an error.
fn told_by<T>(result: Result<T>, company: &Cluster, host: &Host) -> Result<T> {
    result.with_context(|| format!("{} says: {:?}", host.hostname(), states(company, host)))
}

/// Waits until a host says this of a relay.
fn says(company: &Cluster, host: &Host, relay: &Services, words: &[&str]) -> Result<()> {
    let said = wait_for(SOON, &format!("{} says {words:?} of {}", host.hostname(), relay.relay), || {
        let all = states(company, host)?;
        let found = all.iter().find(|state| state.starts_with(&relay.relay));
        Ok(found.is_some_and(|state| words.iter().all(|word| state.contains(word))).then_some(()))
    });
    told_by(said, company, host)
}

fn a_pinned_relay_is_used_though_its_certificate_is_expired_and_nobody_vouches_for_it() -> Result<()> {
    let lab = Lab::new("pinned")?;
    let internet = lab.internet()?;
    let server = lab.host("relay").on(&internet).boot()?;
    let relay = Services::start_with(&server, &["--expired"])?;
    let far = Far::open(lab, internet, &[relays(&[&pinned(&relay)])])?;
    far.company.ran_remotely(far.laptop(), &far.web01)?;
    let (_, path) = far.connection()?;
    ensure!(path.starts_with("relay "), "no relay was needed: {path}");
    Ok(())
}

fn a_wrong_certificate_is_told_by_status_and_by_the_command_and_the_right_pin_mends_it() -> Result<()> {
    let lab = Lab::new("wrong-pin")?;
    let internet = lab.internet()?;
    let (server, other) = (lab.host("relay").on(&internet).boot()?, lab.host("other").on(&internet).boot()?);
    let (relay, second) = (Services::start(&server)?, Services::start(&other)?);
    let wrong = "ab".repeat(32);
    let far = Far::open(lab, internet, &[relays(&[&pinned(&relay), &with_pin(&second, &wrong)])])?;
    let (company, web01) = (&far.company, &far.web01);
    company.ran_remotely(far.laptop(), web01)?;
    for host in [far.laptop(), web01] {
        says(company, host, &second, &["failed", &second.sha256, &wrong])?;
        says(company, host, &relay, &["connected"])?;
    }
    // Without the good one nobody is reached, and the reason is told.
    drop(relay);
    let quick = malai(["--connect-timeout", "5s", "web01.company", "--", "true"]);
    wait_for(SOON, "web01 is not reached any more", || {
        let output = far.laptop().run(quick.clone())?;
        Ok((output.code() == Some(255)).then_some(output))
    })
    .and_then(|output| told(output, 255, &[&second.relay, "cannot be used", &second.sha256]))?;
    // The time says when the machine was seen; nothing about the relays is mixed in.
    let waiting = far.laptop().spawn(malai(["--wait", "web01.company", "--", "true"]))?;
    let line = waiting.wait_for_error_line("web01.company is not there", SOON)?;
    ensure!(line.starts_with("malai: web01.company is not there (last seen "), "{line}");
    ensure!(line.ends_with(" ago); waiting for it to come…"), "{line}");
    drop(waiting);
    // The mended config reaches web01 by hand: by no relay it could.
    company.set("network", &relays(&[&pinned(&second)]))?;
    company.rescan()?;
    says(company, far.laptop(), &second, &["connected"])?;
    Ok(())
}

fn an_expired_certificate_without_a_pin_is_refused() -> Result<()> {
    let lab = Lab::new("expired")?;
    let internet = lab.internet()?;
    let server = lab.host("relay").on(&internet).boot()?;
    let relay = Services::start_with(&server, &["--expired"])?;
    let laptop = lab.host("laptop").on(&internet).boot()?;
    let company = Cluster::on_disk("company", laptop, &[])?;
    company.set("network", &relays(&[&format!("{:?}", relay.relay)]))?;
    company.set("network", "discovery = []")?;
    company.set("network", &format!("ca = {:?}", relay.authority))?;
    told(company.rescan_with(&[])?, 1, &["not published"])?;
    start(company.manager())?;
    says(&company, company.manager(), &relay, &["failed", "expired"])
}

fn a_relay_that_refuses_is_told_and_another_one_is_used() -> Result<()> {
    let lab = Lab::new("refusing")?;
    let internet = lab.internet()?;
    let first = lab.host("first").on(&internet).boot()?;
    // The one that refuses is the nearer one: it would be the home of both for ever.
    let second = lab.host("second").on(&internet).via(&Wire::delay_ms(100)).boot()?;
    let refusing = Services::start_with(&first, &["--deny", "not on the list"])?;
    let good = Services::start(&second)?;
    let far = Far::open(lab, internet, &[relays(&[&pinned(&refusing), &pinned(&good)])])?;
    far.company.ran_remotely(far.laptop(), &far.web01)?;
    for host in [far.laptop(), &far.web01] {
        says(&far.company, host, &refusing, &["failed", "the relay refuses this machine: not on the list"])?;
        says(&far.company, host, &good, &["connected"])?;
    }
    Ok(())
}

fn relays_are_exchanged_under_running_commands() -> Result<()> {
    let lab = Lab::new("exchange")?;
    let internet = lab.internet()?;
    let (first, second) = (lab.host("first").on(&internet).boot()?, lab.host("second").on(&internet).boot()?);
    let db01 = lab.host("db01").on(&internet).boot()?;
    let (before, after) = (Services::start(&first)?, Services::start(&second)?);
    let far = Far::open(lab, internet, &[relays(&[&pinned(&before)])])?;
    let (company, laptop, web01) = (&far.company, far.laptop(), &far.web01);
    company.join(&db01)?;
    let path = || company.machine_seen_from(laptop, &db01);
    wait_for(SOON, "db01 is reached directly", || {
        Ok(text(&path()?, "/connection/path")?.starts_with("direct ").then_some(()))
    })?;
    let relayed = far.ticking()?;
    let direct = company.spawn(laptop, &db01, &["sh", "-c", "hostname; sleep 600"])?;
    direct.wait_for_line("db01", SOON)?;
    let (since, way) = far.connection()?;
    ensure!(way == format!("relay {}", before.relay), "the path is {way}");
    company.publish("network", &relays(&[&pinned(&after)]))?;
    for host in [laptop, web01, &db01] {
        says(company, host, &after, &["connected"])?;
    }
    // The same connection goes on, over the relay that is not named any more.
    let length = relayed.output_length();
    relayed.wait_for_output_beyond(length, SOON)?;
    ensure!(far.connection()? == (since, way), "the connection was not kept: {:?}", far.connection()?);
    // And when that relay is switched off, over the new one: there is no other way.
    drop(before);
    let begun = Instant::now();
    let length = relayed.output_length();
    relayed.wait_for_output_beyond(length + 50, SOON)?;
    ensure!(begun.elapsed() <= FAILOVER, "output came over the new relay after {:.1?}", begun.elapsed());
    company.ran_remotely(laptop, web01)?;
    goes_on(relayed)?;
    goes_on(direct)
}

/// Two relays, a cluster that has both, and a running command. Which of them its output comes by is not said before.
struct Pair {
    far: Far,
    running: Child,
    servers: [Host; 2],
    relays: Vec<Services>,
    /// Which one is in use.
    used: usize,
}

impl Pair {
    fn open(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let internet = lab.internet()?;
        let servers = [lab.host("first").on(&internet).boot()?, lab.host("second").on(&internet).boot()?];
        let both = [Services::start(&servers[0])?, Services::start(&servers[1])?];
        let far = Far::open(lab, internet, &[relays(&[&pinned(&both[0]), &pinned(&both[1])])])?;
        let running = far.ticking()?;
        let (_, path) = far.connection()?;
        let used = both.iter().position(|relay| path == format!("relay {}", relay.relay));
        Ok(Self {
            far,
            running,
            servers,
            relays: both.into(),
            used: used.with_context(|| format!("the path is {path}"))?,
        })
    }

    /// Both machines are at this relay, and not at that.
    fn moved(&self, to: &Services, from: &str, why: &str) -> Result<()> {
        for host in [self.far.laptop(), &self.far.web01] {
            says(&self.far.company, host, to, &["connected"])?;
            let all = states(&self.far.company, host)?;
            let left = all.iter().find(|state| state.starts_with(from));
            // Where it was not the home before, nothing is known of it.
            ensure!(left.is_some_and(|s| s.contains(why) || s.contains(" spare ")), "{} says {all:?}", host.hostname());
        }
        Ok(())
    }
}

fn commands_go_on_over_the_second_relay_when_the_first_dies() -> Result<()> {
    let mut pair = Pair::open("failover")?;
    let dead = pair.relays.remove(pair.used);
    let url = dead.relay.clone();
    drop(dead);
    let died = Instant::now();
    let length = pair.running.output_length();
    let Far { company, web01, .. } = &pair.far;
    let command = company.run(company.manager(), web01, &["hostname"])?.success()?;
    ensure!(command.text() == "web01", "it ran on {}", command.text());
    pair.running.wait_for_output_beyond(length + 20, SOON)?;
    ensure!(died.elapsed() <= FAILOVER, "commands were without a relay for {:.1?}", died.elapsed());
    pair.moved(&pair.relays[0], &url, " failed ")?;
    // It is taken back when it is there again.
    let _again = Services::start(&pair.servers[pair.used])?;
    wait_for(Duration::from_secs(60), "nobody says any more that the first relay fails", || {
        let all = states(company, company.manager())?;
        Ok((!all.iter().any(|state| state.starts_with(&url) && state.contains(" failed "))).then_some(()))
    })?;
    goes_on(pair.running)
}

fn a_running_command_goes_on_when_the_first_relay_falls_silent() -> Result<()> {
    let pair = Pair::open("silence")?;
    // No connection to it ends; nothing is answered any more.
    pair.servers[pair.used].freeze()?;
    let length = pair.running.output_length();
    pair.running.wait_for_output_beyond(length + 20, FAILOVER)?;
    let other = &pair.relays[1 - pair.used];
    pair.moved(other, &pair.relays[pair.used].relay, "no answer within 2 s")?;
    pair.far.company.ran_remotely(pair.far.laptop(), &pair.far.web01)?;
    goes_on(pair.running)
}

fn a_newcomers_ticket_is_shown_to_the_pinned_relay_alone() -> Result<()> {
    let lab = Lab::new("ticket")?;
    let internet = lab.internet()?;
    let first = lab.host("first").on(&internet).boot()?;
    // The nearer one is the manager's first choice, which so is told why it cannot be.
    let second = lab.host("second").on(&internet).via(&Wire::delay_ms(100)).boot()?;
    let (closed, open) = (Services::start_with(&first, &["--ticket"])?, Services::start(&second)?);
    let laptop = lab.host("laptop").on(&internet).boot()?;
    let company = Cluster::on_disk("company", laptop, &[])?;
    let network = relays(&[&pinned(&closed), &format!("{:?}", open.relay)]);
    for line in [&network, "discovery = []", &format!("ca = {:?}", open.authority)] {
        company.set("network", line)?;
    }
    told(company.rescan_with(&[])?, 1, &["not published"])?;
    start(company.manager())?;
    says(&company, company.manager(), &open, &["connected"])?;
    let (web01, _router) = behind_nat(&lab, &internet, "web01")?;
    let token = company.invite(&["--name", "web01"])?;
    let join = Cmd::new(["malai", "machine", "join", &token]).env("MALAI_LOG", "trace");
    web01.run(join)?.success()?;
    let shown = |host: &Host| host.read("/root/malai-lab-net.shown");
    ensure!(shown(&first)?.contains("malaiticket1"), "no ticket was shown: {}", shown(&first)?);
    wait_for(SOON, "web01 is at the relay that is not pinned", || Ok(shown(&second)?.contains('-').then_some(())))?;
    ensure!(!shown(&second)?.contains("malaiticket1"), "the ticket was shown to others: {}", shown(&second)?);
    // The manager, which has no ticket, is told why that relay is of no use to it.
    says(&company, company.manager(), &closed, &["failed", "the relay refuses this machine: no ticket"])?;
    stop(&web01)?;
    let written = web01.run(["grep", "-rl", "malaiticket1", "/root/malai-home"])?;
    ensure!(written.text() == "/root/malai-home/clusters/company/joining.toml", "it is in {}", written.text());
    Ok(())
}
