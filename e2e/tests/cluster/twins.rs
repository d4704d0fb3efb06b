//! One key on two hosts: a copied image.

use std::net::SocketAddr;

use anyhow::Result;
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, malai, start};
use malai_e2e::lab::{Host, wait_until};
use malai_e2e::trials;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![one_key_on_two_hosts_is_told_on_the_manager_and_on_both_and_no_command_is_sent]
}

/// What `malai status` and `malai doctor` print there.
fn shown(host: &Host) -> Result<[String; 2]> {
    let status = host.run(malai(["status"]))?;
    let doctor = host.run(malai(["doctor"]))?;
    Ok([status, doctor].map(|output| format!("{}{}", output.text(), output.error_text())))
}

/// Whether an address of this host is in the text, with a port.
fn is_named(host: &Host, text: &str) -> bool {
    let addresses = host.addresses().into_iter().map(|ip| SocketAddr::new(ip, 0).to_string());
    addresses.into_iter().any(|address| text.contains(&format!("direct {}", address.trim_end_matches('0'))))
}

fn one_key_on_two_hosts_is_told_on_the_manager_and_on_both_and_no_command_is_sent() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, laptop, [web01]) = (&office.company, office.laptop(), &office.machines);
    company.ran_remotely(laptop, web01)?;
    let copy = office.lab.host("copy").on(&office.lan).boot()?;
    let image = web01.sh("tar -C /root -cf - --exclude='*.sock' malai-home | base64 -w0")?.success()?;
    copy.write("/root/image", image.text())?;
    copy.sh("base64 -d /root/image | tar -C /root -xf -")?.success()?;
    start(&copy)?;
    for (host, met) in [(laptop, vec![web01, &copy]), (web01, vec![&copy]), (&copy, vec![web01])] {
        let is_told = || {
            let names = |text: &String| text.contains("the key of") && met.iter().all(|other| is_named(other, text));
            shown(host).is_ok_and(|texts| texts.iter().all(names))
        };
        wait_until(SOON, &format!("status and doctor of {} name the address", host.hostname()), is_told)?;
        let is_logged = || host.read("/root/malai-home/daemon.log").is_ok_and(|log| log.contains("the key of"));
        wait_until(SOON, &format!("the log of {} says so", host.hostname()), is_logged)?;
    }
    let refused = company.run(laptop, web01, &["hostname"])?;
    told(refused, 255, &["two machines hold the key of web01", "malai cluster remove company web01"])?;
    Ok(())
}
