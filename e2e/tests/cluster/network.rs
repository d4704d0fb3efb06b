//! How machines find each other, and what never leaves a private cluster.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, malai, start, stop, text};
use malai_e2e::lab::{Host, Lab, Nat, Prefix, Router, Segment, Services};
use malai_e2e::trials;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        nothing_of_a_private_cluster_leaves_for_a_public_service,
        a_machine_is_found_at_its_fixed_address,
        a_machine_that_moved_is_found_by_what_it_announces,
        two_machines_behind_symmetric_nats_meet_at_the_clusters_own_relay,
    ]
}

fn nothing_of_a_private_cluster_leaves_for_a_public_service() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    company.allow(db01, &["web01"])?;
    company.ran_remotely(office.laptop(), web01)?;
    company.ran_remotely(web01, db01)?;
    stop(office.laptop())?;
    company.ran_remotely(office.laptop(), web01)?;
    let unknown = malai(["--connect-timeout", "2s", "db01.company", "--", "true"]);
    stop(db01)?;
    told(web01.run(unknown)?, 255, &["db01.company cannot be reached"])?;
    let multicast = Prefix::new(Ipv4Addr::new(224, 0, 0, 0), 4);
    for host in [office.laptop(), web01] {
        let outside = host.packets_outside(&[office.lan.prefix(), multicast])?;
        ensure!(outside.is_empty(), "{} sent {outside:?}", host.hostname());
        ensure!(host.packets()?.iter().any(|flow| office.lan.prefix().contains(flow.to)), "nothing was counted");
    }
    Ok(())
}

fn a_machine_is_found_at_its_fixed_address() -> Result<()> {
    let lab = Lab::new("fixed")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::on_disk("company", lab.host("laptop").on(&lan).boot()?, &["--private"])?;
    let (web01, db01) = (lab.host("web01").on(&lan).boot()?, lab.host("db01").on(&lan).boot()?);
    company.set("network", "discovery = []")?;
    company.rescan_with(&[])?;
    start(company.manager())?;
    db01.write("/root/malai-home/malai.toml", format!("listen = \"{}:4001\"\n", db01.ip()))?;
    company.join(&db01)?;
    company.join(&web01)?;
    company.allow(&db01, &["web01"])?;
    // web01 was never told where db01 is, and nothing is left that could tell.
    stop(company.manager())?;
    let quick = malai(["--connect-timeout", "2s", "db01.company", "--", "hostname"]);
    told(web01.run(quick)?, 255, &["db01.company cannot be reached"])?;
    start(company.manager())?;
    company.linked(&web01)?;
    company.publish("machine.db01", &format!("addresses = [\"{}:4001\"]", db01.ip()))?;
    stop(company.manager())?;
    company.ran_remotely(&web01, &db01)?;
    let addresses = company.status(&db01)?["addresses"].clone();
    assert_eq!(addresses, serde_json::json!([format!("{}:4001", db01.ip())]));
    Ok(())
}

fn a_machine_that_moved_is_found_by_what_it_announces() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    company.allow(db01, &["web01"])?;
    company.ran_remotely(web01, db01)?;
    let ports = company.status(db01)?["addresses"].clone();
    stop(db01)?;
    start(db01)?;
    assert_eq!(company.status(db01)?["addresses"], ports, "the port was not kept over a restart");
    company.ran_remotely(web01, db01)?;
    stop(db01)?;
    // Its port is taken: another one is chosen and announced.
    let port = text(&ports, "/0")?.rsplit(':').next().unwrap_or_default().to_owned();
    let _taken = db01.inside(|| {
        let address = format!("0.0.0.0:{port}");
        Ok(std::net::UdpSocket::bind(address)?)
    })?;
    start(db01)?;
    ensure!(company.status(db01)?["addresses"] != ports, "two programs have the same port");
    company.linked(db01)?;
    company.ran_remotely(web01, db01)
}

/// A host alone behind a router that shows another port to every destination.
pub(crate) fn behind_nat(lab: &Lab, internet: &Segment, name: &str) -> Result<(Host, Router)> {
    let lan = lab.segment(name)?;
    let router = lab.router(name).between(&lan, internet).nat(Nat::Symmetric).start()?;
    Ok((lab.host(name).on(&lan).boot()?, router))
}

fn two_machines_behind_symmetric_nats_meet_at_the_clusters_own_relay() -> Result<()> {
    let lab = Lab::new("relay")?;
    let internet = lab.internet()?;
    let server = lab.host("services").on(&internet).boot()?;
    let services = Services::start(&server)?;
    let (laptop, _router) = behind_nat(&lab, &internet, "laptop")?;
    let (web01, _other_router) = behind_nat(&lab, &internet, "web01")?;
    let company = Cluster::init_at("company", laptop, &services)?;
    company.join(&web01)?;
    company.ran_remotely(company.manager(), &web01)?;
    let path = company.machine_seen_from(company.manager(), &web01)?;
    ensure!(text(&path, "/connection/path")?.starts_with("relay "), "no relay was needed: {path}");
    // What web01 forgot of the manager's addresses, the cluster's own server tells.
    stop(&web01)?;
    web01.run(["rm", "-f", "/root/malai-home/clusters/company/peers"])?.success()?;
    start(&web01)?;
    company.linked(&web01)?;
    company.ran_remotely(company.manager(), &web01)?;
    for host in [company.manager(), &web01] {
        // What the other one says of its address inside is tried as well, in case both are there.
        let machines = [company.manager().ip(), web01.ip(), server.ip()];
        let outside = host.packets_outside(&[internet.prefix()])?;
        let public = outside.iter().filter(|flow| !machines.contains(&flow.to)).collect::<Vec<_>>();
        ensure!(public.is_empty(), "{} sent {public:?}", host.hostname());
    }
    Ok(())
}
