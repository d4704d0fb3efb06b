//! What `malai doctor` finds, and what it says mends it.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, json, malai, start, stop};
use malai_e2e::lab::{Host, Lab, Nat, Prefix, Services, wait_until};
use malai_e2e::trials;
use serde_json::Value;
use std::net::Ipv4Addr;

use crate::Office;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_healthy_private_cluster_is_in_order_and_nothing_outside_is_asked,
        a_key_that_others_can_read_is_broken_with_or_without_a_daemon,
        a_machine_that_holds_an_older_config_is_named,
        a_relay_is_tried_for_real_and_one_that_is_down_is_broken,
        udp_that_is_blocked_is_broken,
    ]
}

/// What `malai doctor --json` finds on a host, with the exit code that it has to have.
fn findings(host: &Host, code: i32) -> Result<Vec<Value>> {
    let document = json(&host.run(malai(["doctor", "--json"]))?.exited(code)?)?;
    let findings = document["findings"].as_array().context("no findings")?.clone();
    let broken = findings.iter().filter(|finding| finding["level"] == "broken").count();
    ensure!(document["broken"] == broken && (broken > 0) == (code == 1), "{document}");
    Ok(findings)
}

/// The finding about this, and its level.
fn about<'f>(findings: &'f [Value], area: &str, level: &str, words: &str) -> Result<&'f Value> {
    let fits = |finding: &&Value| {
        let text = |name: &str| finding[name].as_str().unwrap_or_default();
        text("area").starts_with(area) && text("level") == level && text("what").contains(words)
    };
    findings.iter().find(fits).with_context(|| format!("no {level} {area} with {words:?} in {findings:#?}"))
}

/// Every finding that is not in order says what mends it.
fn each_mends(findings: &[Value]) -> Result<()> {
    let silent: Vec<_> =
        findings.iter().filter(|finding| finding["level"] == "broken" && finding["mend"].is_null()).collect();
    ensure!(silent.is_empty(), "what mends {silent:#?}?");
    Ok(())
}

fn a_healthy_private_cluster_is_in_order_and_nothing_outside_is_asked() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    for (host, link) in [(office.laptop(), "is the cluster manager"), (web01, "to laptop, direct ")] {
        let found = findings(host, 0)?;
        about(&found, "link", "ok", link)?;
        about(&found, "files", "ok", "closed to others")?;
        about(&found, "machines", "ok", "1 of 1 answer")?;
        about(&found, "generation", "ok", "no machine announced a newer one")?;
        about(&found, "clock", "ok", "")?;
        about(&found, "executor", "ok", "answers")?;
        about(&found, "relays", "ok", "nothing outside the cluster is contacted")?;
        about(&found, "discovery mdns", "ok", "this machine answers in ")?;
        let multicast = Prefix::new(Ipv4Addr::new(224, 0, 0, 0), 4);
        let outside = host.packets_outside(&[office.lan.prefix(), multicast])?;
        ensure!(outside.is_empty(), "{} sent {outside:?}", host.hostname());
    }
    let text = web01.run(malai(["doctor"]))?.success()?.text();
    ensure!(text.lines().any(|line| line.starts_with("ok      company: link: to laptop")), "{text}");
    Ok(())
}

fn a_key_that_others_can_read_is_broken_with_or_without_a_daemon() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let key = "/root/malai-home/clusters/company/machine.key";
    web01.run(["chmod", "644", key])?.success()?;
    let found = findings(web01, 1)?;
    let readable = about(&found, "files", "broken", "can be read by other users (mode 0644)")?;
    assert_eq!(readable["mend"], format!("chmod 600 {key}"));
    stop(web01)?;
    let found = findings(web01, 1)?;
    about(&found, "files", "broken", "can be read by other users (mode 0644)")?;
    assert_eq!(about(&found, "daemon", "broken", "the network was not tried")?["mend"], "malai daemon");
    let text = web01.run(malai(["doctor"]))?.exited(1)?.text();
    ensure!(text.contains(&format!("\n        mend: chmod 600 {key}\n")), "{text}");
    web01.run(["chmod", "600", key])?.success()?;
    start(web01)?;
    office.company.linked(web01)?;
    findings(web01, 0)?;
    Ok(())
}

fn a_machine_that_holds_an_older_config_is_named() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, laptop, [web01]) = (&office.company, office.laptop(), &office.machines);
    let before = company.generation(laptop)?;
    stop(web01)?;
    company.publish("machine.web01", "grace = \"3s\"")?;
    let found = findings(laptop, 0)?;
    let older = about(&found, "generation", "note", &format!("web01 holds generation {before}, older than"))?;
    assert_eq!(older["mend"], "on web01: malai daemon");
    about(&found, "machines", "note", "web01 does not answer, last seen ")?;
    each_mends(&found)
}

fn a_relay_is_tried_for_real_and_one_that_is_down_is_broken() -> Result<()> {
    let lab = Lab::new("doctor")?;
    let internet = lab.internet()?;
    let server = lab.host("services").on(&internet).boot()?;
    let services = Services::start(&server)?;
    let company = Cluster::init_at("company", lab.host("laptop").on(&internet).boot()?, &services)?;
    let laptop = company.manager();
    let (relay, discovery) = (format!("relay {}", services.relay), format!("discovery {}", services.pkarr));
    let found = findings(laptop, 0)?;
    about(&found, &relay, "ok", "takes connections, answers in ")?;
    about(&found, "udp", "ok", "IPv4")?;
    about(&found, "nat", "ok", "seen from outside as ")?;
    wait_until(SOON, "the discovery service was told of this machine", || {
        findings(laptop, 0).is_ok_and(|found| about(&found, &discovery, "ok", "knows this machine").is_ok())
    })?;
    drop(services);
    let found = findings(laptop, 1)?;
    let down = about(&found, &relay, "broken", "Connection refused")?;
    ensure!(down["mend"].as_str().is_some_and(|mend| mend.starts_with("start the relay, or ")), "{down}");
    about(&found, &discovery, "broken", "")?;
    each_mends(&found)
}

fn udp_that_is_blocked_is_broken() -> Result<()> {
    let lab = Lab::new("blocked")?;
    let internet = lab.internet()?;
    let server = lab.host("services").on(&internet).boot()?;
    let services = Services::start(&server)?;
    let lan = lab.segment("lan")?;
    let _router = lab.router("firewall").between(&lan, &internet).nat(Nat::UdpBlocked).start()?;
    let company = Cluster::init_at("company", lab.host("laptop").on(&lan).boot()?, &services)?;
    let found = findings(company.manager(), 1)?;
    let blocked = about(&found, "udp", "broken", "through a relay only")?;
    ensure!(blocked["mend"].as_str().is_some_and(|mend| mend.contains("let UDP out")), "{blocked}");
    about(&found, &format!("relay {}", services.relay), "ok", "takes connections")?;
    each_mends(&found)
}
