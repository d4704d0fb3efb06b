//! By which way machines find each other, where the others do not lead there, and that it is told.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, malai, start, stop, text};
use malai_e2e::lab::{Host, Lab, wait_for};
use malai_e2e::trials;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        two_machines_that_never_met_find_each_other_through_a_third,
        a_machine_that_moved_is_found_through_one_that_it_told,
        on_one_network_the_first_command_takes_no_longer_than_a_second_by_mdns,
        without_any_discovery_the_first_command_takes_no_longer_than_a_second_by_the_last_known_address,
        a_discovery_server_that_is_down_is_named_and_other_ways_are_used,
        without_the_directory_nobody_is_asked,
    ]
}

/// What is forgotten so that a machine has to be found anew.
const PEERS: &str = "/root/malai-home/clusters/company/peers";

/// A private cluster, without any discovery unless it is said, in which web01 and db01 never met, cache01 met both, and the
/// manager is away.
pub(crate) struct Strangers {
    pub(crate) company: Cluster,
    pub(crate) web01: Host,
    pub(crate) db01: Host,
    pub(crate) cache01: Host,
    _lab: Lab,
}

impl Strangers {
    fn new() -> Result<Self> {
        Self::with("discovery = []")
    }

    /// With these lines of `[network]` for the time after they joined.
    pub(crate) fn with(network: &str) -> Result<Self> {
        let lab = Lab::new("strangers")?;
        let lan = lab.segment("lan")?;
        let company = Cluster::on_disk("company", lab.host("laptop").on(&lan).boot()?, &["--private"])?;
        company.set("network", "discovery = []")?;
        company.rescan_with(&[])?;
        start(company.manager())?;
        let host = |name: &str| -> Result<Host> {
            let host = lab.host(name).on(&lan).boot()?;
            company.join(&host)?;
            Ok(host)
        };
        let (web01, db01, cache01) = (host("web01")?, host("db01")?, host("cache01")?);
        company.allow(&db01, &["web01", "cache01"])?;
        company.allow(&cache01, &["web01", "db01"])?;
        company.ran_remotely(&web01, &cache01)?;
        company.ran_remotely(&cache01, &db01)?;
        network.lines().try_for_each(|line| company.set("network", line))?;
        company.rescan()?;
        let generation = company.generation(company.manager())?;
        [&web01, &db01, &cache01].into_iter().try_for_each(|host| company.holds(host, generation))?;
        // An agent keeps no connection: whoever it needs it has to find.
        stop(&web01)?;
        stop(company.manager())?;
        Ok(Self { company, web01, db01, cache01, _lab: lab })
    }
}

/// Runs a command and returns how long it took, and what `-v` says of the way.
#[allow(clippy::print_stdout, reason = "how long it took is a figure, and the trial's output")]
pub(crate) fn way(company: &Cluster, from: &Host, on: &Host) -> Result<(Duration, String)> {
    let begun = Instant::now();
    let target = company.target(on);
    let output = from.run(malai(["-v", &target, "--", "hostname"]))?.success()?;
    let took = begun.elapsed();
    ensure!(output.text() == on.hostname(), "it ran on {}", output.text());
    let errors = output.error_text();
    let start = format!("malai: {target}: ");
    let line = errors.lines().find_map(|line| line.strip_prefix(&start)).context(errors.clone())?;
    println!("{} to {target} in {took:?}: {line}", from.hostname());
    Ok((took, line.to_owned()))
}

fn two_machines_that_never_met_find_each_other_through_a_third() -> Result<()> {
    let Strangers { company, web01, db01, .. } = &Strangers::new()?;
    let (took, line) = way(company, web01, db01)?;
    ensure!(line.starts_with(&format!("direct {}:", db01.ip())), "{line}");
    ensure!(line.ends_with(" ms, found by directory (by cache01)"), "{line}");
    ensure!(took < Duration::from_secs(3), "it took {took:?}");
    let told = company.machine_seen_from(web01, db01)?;
    assert_eq!(told["connection"]["found_by"], "directory (by cache01)", "{told}");
    Ok(())
}

fn a_machine_that_moved_is_found_through_one_that_it_told() -> Result<()> {
    let Strangers { company, web01, db01, cache01, .. } = &Strangers::new()?;
    way(company, web01, db01)?;
    stop(web01)?;
    // Its port is taken by another program, so that it starts at another one, and tells whom it calls.
    let before = text(&company.status(db01)?, "/addresses/0")?.to_owned();
    let port = before.rsplit(':').next().unwrap_or_default().to_owned();
    stop(db01)?;
    let _taken = wait_for(SOON, "its port is free", || {
        db01.inside(|| Ok(std::net::UdpSocket::bind(format!("0.0.0.0:{port}")).ok()))
    })?;
    start(db01)?;
    company.ran_remotely(db01, cache01)?;
    let (took, line) = way(company, web01, db01)?;
    ensure!(!line.contains(&before), "{line}");
    ensure!(line.ends_with("found by directory (by cache01)"), "{line}");
    ensure!(took < Duration::from_secs(3), "it took {took:?}");
    Ok(())
}

fn without_the_directory_nobody_is_asked() -> Result<()> {
    let Strangers { company, web01, db01, .. } = &Strangers::with("directory = false")?;
    let quick = malai(["--connect-timeout", "3s", &company.target(db01), "--", "true"]);
    told(web01.run(quick)?, 255, &["db01.company cannot be reached"])?;
    Ok(())
}

/// Both daemons are started, and web01 runs its first command on the laptop at once.
fn first_command(office: &Office<1>, forget: bool) -> Result<(Duration, String)> {
    let [web01] = &office.machines;
    stop(web01)?;
    stop(office.laptop())?;
    if forget {
        web01.run(["rm", "-f", PEERS])?.success()?;
    }
    start(office.laptop())?;
    start(web01)?;
    way(&office.company, web01, office.laptop())
}

fn on_one_network_the_first_command_takes_no_longer_than_a_second_by_mdns() -> Result<()> {
    let office = Office::open(["web01"])?;
    office.company.allow(office.laptop(), &["web01"])?;
    let (took, line) = first_command(&office, true)?;
    ensure!(line.ends_with("found by mdns"), "{line}");
    ensure!(took <= Duration::from_secs(1), "it took {took:?}");
    Ok(())
}

fn without_any_discovery_the_first_command_takes_no_longer_than_a_second_by_the_last_known_address() -> Result<()> {
    let office = Office::open(["web01"])?;
    office.company.set("network", "discovery = []")?;
    office.company.allow(office.laptop(), &["web01"])?;
    office.company.holds(&office.machines[0], office.company.generation(office.laptop())?)?;
    let (took, line) = first_command(&office, false)?;
    ensure!(line.ends_with("found by last known address"), "{line}");
    ensure!(took <= Duration::from_secs(1), "it took {took:?}");
    Ok(())
}

fn a_discovery_server_that_is_down_is_named_and_other_ways_are_used() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    // Nobody listens there.
    let server = format!("http://{}:9/pkarr", office.laptop().ip());
    office.company.set("network", &format!("discovery = [{server:?}]"))?;
    office.company.allow(office.laptop(), &["web01"])?;
    office.company.holds(web01, office.company.generation(office.laptop())?)?;
    let (_, line) = first_command(&office, false)?;
    ensure!(line.ends_with("found by last known address"), "{line}");
    wait_for(SOON, "the server is named in the status", || {
        let status = office.company.status(web01)?;
        Ok(status["discovery_failures"].to_string().contains(&server).then_some(()))
    })?;
    stop(office.laptop())?;
    let unreachable = malai(["--connect-timeout", "2s", "laptop.company", "--", "true"]);
    told(web01.run(unreachable)?, 255, &[&server])?;
    Ok(())
}
