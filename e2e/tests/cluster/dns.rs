//! Machines that are looked for by DNS, and a DNS server that lies: it says that each is at somebody else's address.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{malai, text};
use malai_e2e::lab::Host;
use malai_e2e::trials;

use crate::told;
use crate::ways::{Strangers, way};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_machine_is_found_by_dns,
        a_dns_server_that_names_somebody_elses_address_keeps_nobody_from_the_right_machine,
        a_dns_server_that_names_somebody_elses_address_alone_leads_nowhere,
    ]
}

/// How a lookup of a machine by DNS begins.
const IROH: &[u8] = b"\x05_iroh";
/// The question of a DNS message comes after its header (RFC 1035, section 4.1).
const HEADER: usize = 12;
const TXT: u16 = 16;

/// A host's DNS server, on that host; it goes with this value.
struct Dns {
    address: String,
    told: Arc<AtomicU64>,
}

impl Dns {
    /// Takes the address of the DNS server that the host asks, and says that every machine is at this address.
    fn at(host: &Host, address: &str) -> Result<Self> {
        let asked = host.read("/etc/resolv.conf")?;
        let asked = asked.lines().find_map(|line| line.strip_prefix("nameserver ")).context("it asks nobody")?;
        let asked: Ipv4Addr = asked.parse().context("no address")?;
        host.run(["ip", "address", "add", &format!("{asked}/32"), "dev", "lo"])?.success()?;
        let socket = host.in_network(|| UdpSocket::bind((asked, 53)).context("cannot bind the DNS server"))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (counter, record) = (Arc::new(AtomicU64::new(0)), format!("addr={address}"));
        let told = Arc::clone(&counter);
        thread::spawn(move || {
            // The other one is the value's.
            while Arc::strong_count(&counter) > 1 {
                let mut question = [0; 512];
                let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
                let answer = answer(question.get(..length).unwrap_or_default(), &record);
                let Some((answer, tells)) = answer else { continue };
                if socket.send_to(&answer, from).is_ok() && tells {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { address: address.to_owned(), told })
    }

    /// It was asked for a machine, and told that address.
    fn was_asked(&self) -> Result<()> {
        ensure!(self.told.load(Ordering::Relaxed) > 0, "it was not asked");
        Ok(())
    }
}

/// The answer to a question, and whether it tells the record: for a machine it does, and nothing for any other name.
fn answer(question: &[u8], record: &str) -> Option<(Vec<u8>, bool)> {
    let name = question.get(HEADER..)?;
    let end = HEADER + name.iter().position(|byte| *byte == 0)? + 1;
    let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
    let tells = name.starts_with(IROH) && kind == TXT;
    let mut answer = question.get(..2)?.to_vec();
    // An answer of an authority, to one question, with or without a record.
    answer.extend([0x84, 0, 0, 1, 0, u8::from(tells), 0, 0, 0, 0]);
    answer.extend(question.get(HEADER..end + 4)?);
    if tells {
        let length = u8::try_from(record.len()).ok()?;
        // The name of the question; TXT, IN, valid for a second.
        answer.extend([0xC0, 12, 0, 16, 0, 1, 0, 0, 0, 1, 0, length + 1, length]);
        answer.extend(record.as_bytes());
    }
    Some((answer, tells))
}

/// web01, which looks for others as these lines of `[network]` say, and a DNS server that says of every machine that it is
/// where this one is.
fn asking(network: &str, whose: fn(&Strangers) -> &Host) -> Result<(Strangers, Dns)> {
    let strangers = Strangers::with(network)?;
    let address = text(&strangers.company.status(whose(&strangers))?, "/addresses/0")?.to_owned();
    let dns = Dns::at(&strangers.web01, &address)?;
    Ok((strangers, dns))
}

const BY_DNS_ALONE: &str = "discovery = [\"dns\"]\ndirectory = false";

fn a_machine_is_found_by_dns() -> Result<()> {
    let (Strangers { company, web01, db01, .. }, dns) = &asking(BY_DNS_ALONE, |all| &all.db01)?;
    let (_, line) = way(company, web01, db01)?;
    ensure!(line.ends_with("found by dns"), "{line}");
    dns.was_asked()
}

fn a_dns_server_that_names_somebody_elses_address_keeps_nobody_from_the_right_machine() -> Result<()> {
    let (Strangers { company, web01, db01, .. }, dns) = &asking("discovery = [\"dns\"]", |all| &all.cache01)?;
    let (_, line) = way(company, web01, db01)?;
    ensure!(line.starts_with(&format!("direct {}:", db01.ip())), "{line}");
    ensure!(line.ends_with("found by directory (by cache01)"), "{line}");
    dns.was_asked()
}

fn a_dns_server_that_names_somebody_elses_address_alone_leads_nowhere() -> Result<()> {
    let (Strangers { company, web01, db01, .. }, dns) = &asking(BY_DNS_ALONE, |all| &all.cache01)?;
    let quick = malai(["--connect-timeout", "3s", &company.target(db01), "--", "hostname"]);
    let lie = format!("tried {} (dns), discovery", dns.address);
    let output = told(web01.run(quick)?, 255, &["db01.company cannot be reached", &lie])?;
    ensure!(output.text().is_empty(), "it ran on {}", output.text());
    dns.was_asked()
}
