//! How long a running session's bytes take while the target has other work. It is a test file of its own, so that nothing
//! else runs beside it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use iroh::SecretKey;
use malai_e2e::cluster::{Cluster, SOON, malai, stop, text};
use malai_e2e::harness;
use malai_e2e::lab::{Child, Cmd, Lab};
use malai_e2e::trials;
use malai_protocol::id::MachineId;

/// Echoes that are measured before and after the config arrives.
const ECHOES: usize = 400;
/// Sets how often one is sent: as fast as a person types.
const ECHO_INTERVAL: Duration = Duration::from_millis(20);
/// Bounds the echo that all but one in a hundred keep within.
const MAX_ECHO_P99: Duration = Duration::from_millis(50);
/// Sets how many requests a second the member sends that may run nothing.
const FLOOD_RATE: &str = "1000";
/// Sets how much of a config arrives: less than the 4 MiB that are possible by what the config has besides.
const CONFIG_LEN: usize = 4 * 1024 * 1024 - 64 * 1024;

fn main() -> ExitCode {
    let trials = trials![
        a_running_sessions_echo_stays_under_50_ms_while_a_member_without_grants_floods_and_4_mib_of_config_arrive
    ];
    harness::main_with(trials, 1)
}

/// Measures how long single lines take to the command and back.
fn echoes(session: &mut Child, count: usize) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(count);
    for number in 0..count {
        let before = session.output_length();
        let begun = Instant::now();
        session.write(b"x\n")?;
        let at = session.wait_for_output_beyond(before, SOON)?;
        took.push(at.saturating_duration_since(begun));
        ensure!(session.output_length() == before + 2, "echo {number} is not one line");
        // The pace of typing, not a wait for anything.
        std::thread::sleep(ECHO_INTERVAL.saturating_sub(begun.elapsed()));
    }
    Ok(took)
}

fn p99(took: &[Duration]) -> Duration {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() * 99 / 100]
}

/// Returns tables of machines that nobody has, with ten named commands each, up to this many bytes.
fn machines(length: usize) -> Result<String> {
    let mut config = String::new();
    for number in 1u64.. {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&number.to_le_bytes());
        let id = MachineId::from_bytes(*SecretKey::from_bytes(&seed).public().as_bytes())?;
        let mut table = format!("\n[machine.shelf{number}]\nid52 = \"{id}\"\nallow_from = [\"laptop\"]\n");
        for command in 0..10 {
            let named = format!("[machine.shelf{number}.command.job{command}]\n");
            table += &format!(
                "{named}command = [\"/usr/bin/job\", \"--number\", \"{command}\"]\nallow_from = [\"laptop\"]\n"
            );
        }
        if config.len() + table.len() > length {
            break;
        }
        config.push_str(&table);
    }
    Ok(config)
}

fn a_running_sessions_echo_stays_under_50_ms_while_a_member_without_grants_floods_and_4_mib_of_config_arrive()
-> Result<()> {
    let lab = Lab::new("latency")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let [web01, mallory] = [lab.host("web01").on(&lan).boot()?, lab.host("mallory").on(&lan).boot()?];
    company.join(&web01)?;
    company.join(&mallory)?;
    // Its key speaks the wire by hand from now on.
    stop(&mallory)?;
    let words = [&company.target(&web01), "--", "sh", "-c", "hostname; exec cat"];
    let mut session = company.manager().spawn(malai(words).stdin_open())?;
    session.wait_for_line("web01", SOON)?;
    let quiet = echoes(&mut session, ECHOES)?;

    let status = company.status(&web01)?;
    let address = text(&status, "/addresses/0")?.to_owned();
    let cluster = text(&status, "/cluster")?.to_owned();
    let (key, target) = ("/root/malai-home/clusters/company/machine.key", company.id52(&web01)?);
    let flood = Cmd::new(["malai-lab-flood", key, &cluster, &target, &address, FLOOD_RATE]);
    let mut flood = mallory.spawn(flood.stdin_open())?;
    flood.wait_for_line("sent", SOON)?;
    let text = company.config()?;
    company.write_config(&format!("{text}{}", machines(CONFIG_LEN - text.len())?))?;
    let generation = company.generation(company.manager())? + 1;
    let rescan = company.manager().spawn(malai(["rescan", "company"]))?;
    let busy = echoes(&mut session, ECHOES)?;
    rescan.output_within(SOON)?.success()?;
    company.holds(&web01, generation)?;
    flood.close_stdin();
    let flooded = flood.output_within(SOON)?.success()?;
    session.close_stdin();
    session.output_within(SOON)?.success()?;

    let (quiet, busy) = (p99(&quiet), p99(&busy));
    let shown = format!("99 of 100 echoes took {quiet:?} before, and {busy:?} beside {}", flooded.text());
    ensure!(busy < MAX_ECHO_P99, "{shown}");
    println!("{shown}");
    Ok(())
}
