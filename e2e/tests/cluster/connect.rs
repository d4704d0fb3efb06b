//! `malai connect`: by all ways, or by one only, and what it says where that leads nowhere.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, json, malai, running, stop, text};
use malai_e2e::lab::{Host, Lab, Services};
use malai_e2e::trials;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        one_address_is_tried_alone_and_what_is_wrong_with_it_is_said,
        a_relay_is_tried_alone_even_where_a_direct_path_is_there,
        without_a_daemon_an_agent_connects,
    ]
}

/// The first address that a machine is reached at.
fn address(company: &Cluster, host: &Host) -> Result<String> {
    Ok(text(&company.status(host)?, "/addresses/0")?.to_owned())
}

fn one_address_is_tried_alone_and_what_is_wrong_with_it_is_said() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, laptop, [web01, db01]) = (&office.company, office.laptop(), &office.machines);
    let (here, other) = (address(company, web01)?, address(company, db01)?);
    let found = laptop.run(malai(["connect", "web01.company", "--at", &here]))?.success()?;
    ensure!(found.text().starts_with(&format!("web01.company: direct {here}, ")), "{}", found.text());
    ensure!(found.text().ends_with(" ms"), "{}", found.text());
    // Not the machine that is meant, nobody at all, and no address.
    let wrong = laptop.run(malai(["connect", "web01.company", "--at", &other]))?;
    told(wrong, 255, &["cannot be reached at", &other, "another machine answers there", "hint: "])?;
    let nobody = format!("{}:9", web01.ip());
    let none = malai(["connect", "web01.company", "--at", &nobody, "--connect-timeout", "2s"]);
    told(laptop.run(none)?, 255, &["no answer within 2 s", &nobody])?;
    told(laptop.run(malai(["connect", "web01.company", "--at", "web01"]))?, 2, &["neither IP:PORT nor"])?;
    // The connection that there is was not touched, and is what is told without an address.
    let document = json(&laptop.run(malai(["connect", "--json", "web01.company"]))?.success()?)?;
    assert_eq!(document["path"], format!("direct {here}"), "{document}");
    assert_eq!(document["found_by"], "it dialled", "{document}");
    company.ran_remotely(laptop, web01)?;
    Ok(())
}

fn a_relay_is_tried_alone_even_where_a_direct_path_is_there() -> Result<()> {
    let lab = Lab::new("relayed")?;
    let internet = lab.internet()?;
    let server = lab.host("services").on(&internet).boot()?;
    let services = Services::start(&server)?;
    let laptop = lab.host("laptop").on(&internet).boot()?;
    let web01 = lab.host("web01").on(&internet).boot()?;
    let company = Cluster::init_at("company", laptop, &services)?;
    company.join(&web01)?;
    company.ran_remotely(company.manager(), &web01)?;
    let by_relay = malai(["connect", "web01.company", "--at", &services.relay]);
    let found = company.manager().run(by_relay)?.success()?;
    ensure!(found.text().starts_with(&format!("web01.company: relay {}", services.relay)), "{}", found.text());
    let nowhere = format!("https://{}/", web01.ip());
    let wrong = malai(["connect", "web01.company", "--at", &nowhere, "--connect-timeout", "3s"]);
    told(company.manager().run(wrong)?, 255, &["the relay itself cannot be reached", &nowhere])?;
    stop(&web01)?;
    let gone = malai(["connect", "web01.company", "--at", &services.relay, "--connect-timeout", "3s"]);
    told(company.manager().run(gone)?, 255, &["the relay answers, but the machine is not connected to it"])?;
    Ok(())
}

fn without_a_daemon_an_agent_connects() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    let here = address(&office.company, web01)?;
    stop(laptop)?;
    let found = laptop.run(malai(["connect", "web01.company", "--at", &here]))?.success()?;
    ensure!(found.text().contains(&here), "{}", found.text());
    assert_eq!(running(laptop, "malai agent")?, 1);
    let by_all = laptop.run(malai(["connect", "web01.company"]))?.success()?;
    ensure!(by_all.text().ends_with("found by last known address"), "{}", by_all.text());
    Ok(())
}
