//! Hosts: their own name, files, processes, users; power and sleep; nothing left behind.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use malai_e2e::lab::{Cmd, Family, Host, Lab, Wire, wait_until};
use malai_e2e::trials;
use nix::sys::signal::Signal;

use crate::{SOON, ping};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_host_has_its_own_name_files_and_processes,
        a_host_has_the_kinds_of_addresses_that_it_was_given,
        a_user_of_one_host_is_none_of_another,
        a_host_without_cgroups_sees_none,
        a_command_that_hangs_is_killed_and_shown,
        a_child_is_followed_line_by_line_and_signalled,
        a_power_cut_ends_everything_but_the_disk,
        a_frozen_host_stops_and_resumes,
        nothing_is_left_of_a_lab,
        nothing_is_left_of_a_lab_that_panicked,
    ]
}

fn a_host_has_its_own_name_files_and_processes() -> Result<()> {
    let lab = Lab::new("own")?;
    let lan = lab.segment("lan")?;
    let web01 = lab.host("web01").on(&lan).boot()?;
    let db01 = lab.host("db01").on(&lan).boot()?;
    let outside = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    ensure!(outside != "web01");
    for host in [&web01, &db01] {
        assert_eq!(host.run(["hostname"])?.success()?.text(), host.hostname());
        assert_eq!(host.read("/etc/hostname")?.trim(), host.hostname());
    }
    assert_eq!(nix::unistd::gethostname()?.to_string_lossy(), outside);
    web01.write("/root/here/only", "web01")?;
    web01.write("/tmp/malai-lab-only", "web01")?;
    ensure!(web01.exists("/root/here/only")? && !db01.exists("/root/here")?);
    ensure!(!db01.exists("/tmp/malai-lab-only")? && !Path::new("/tmp/malai-lab-only").exists());
    let processes = web01.sh("echo /proc/[0-9]*")?.success()?.text();
    assert_eq!(processes.split(' ').count(), 2, "process 1 and the shell: {processes}");
    let environment = web01.run(["/usr/bin/env"])?.success()?.text();
    let names: Vec<_> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    let wanted = ["HOME", "LANG", "LOGNAME", "MALAI_HOME", "PATH", "USER"];
    ensure!(names.len() == wanted.len() && wanted.iter().all(|name| names.contains(name)), "{environment}");
    Ok(())
}

fn a_host_has_the_kinds_of_addresses_that_it_was_given() -> Result<()> {
    let lab = Lab::new("families")?;
    let lan = lab.segment("lan")?;
    let host = |name: &str, family| lab.host(name).on(&lan).family(family).boot();
    let (old, new, both) = (host("old", Family::V4)?, host("new", Family::V6)?, host("both", Family::Dual)?);
    let reaches = |from: &Host, to: &Host| {
        let mut reached = Vec::new();
        for address in to.addresses() {
            // A port of its own each time: a child that another test forks at this moment holds the last one until its exec.
            let listener = to.inside(|| Ok(TcpListener::bind(SocketAddr::new(address, 0))?))?;
            let address = listener.local_addr()?;
            // A host that has no address of that kind learns it at once.
            if from.inside(|| Ok(TcpStream::connect_timeout(&address, SOON).is_ok()))? {
                listener.accept()?;
                reached.push(if address.is_ipv4() { "IPv4" } else { "IPv6" });
            }
        }
        anyhow::Ok(reached)
    };
    assert_eq!((reaches(&both, &old)?, reaches(&both, &new)?), (vec!["IPv4"], vec!["IPv6"]));
    assert_eq!((reaches(&old, &both)?, reaches(&new, &both)?), (vec!["IPv4"], vec!["IPv6"]));
    assert_eq!((reaches(&old, &new)?, reaches(&new, &old)?), (vec![], vec![]));
    Ok(())
}

fn a_user_of_one_host_is_none_of_another() -> Result<()> {
    let lab = Lab::new("users")?;
    let (web01, db01) = (lab.host("web01").boot()?, lab.host("db01").boot()?);
    web01.add_user("deploy")?;
    let who = web01.run(Cmd::new(["sh", "-c", "id -un; pwd; echo $HOME"]).user("deploy"))?.success()?;
    assert_eq!(who.text(), "deploy\n/home/deploy\n/home/deploy");
    db01.run(["id", "deploy"])?.exited(1)?;
    ensure!(!std::fs::read_to_string("/etc/passwd")?.contains("/home/deploy"));
    Ok(())
}

fn a_host_without_cgroups_sees_none() -> Result<()> {
    let lab = Lab::new("cgroups")?;
    let (with, without) = (lab.host("with").boot()?, lab.host("without").without_cgroups().boot()?);
    without.run(["grep", "cgroup2", "/proc/self/mountinfo"])?.exited(1)?;
    with.sh("mkdir /sys/fs/cgroup/commands/a && echo $$ > /sys/fs/cgroup/commands/a/cgroup.procs")?.success()?;
    assert_eq!(with.run(["grep", "^0::", "/proc/self/cgroup"])?.text(), "0::/commands");
    without.freeze()?;
    without.thaw()
}

fn a_command_that_hangs_is_killed_and_shown() -> Result<()> {
    let lab = Lab::new("hang")?;
    let host = lab.host("web01").boot()?;
    let begun = Instant::now();
    let hang = Cmd::new(["sh", "-c", "echo so far; sleep 600"]).timeout(Duration::from_millis(300));
    let Err(error) = host.run(hang) else { bail!("a command without end has ended") };
    let message = format!("{error:#}");
    ensure!(message.contains("on web01 did not end") && message.contains("so far"), "{message}");
    ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    Ok(())
}

fn a_child_is_followed_line_by_line_and_signalled() -> Result<()> {
    let lab = Lab::new("child")?;
    let host = lab.host("web01").boot()?;
    let mut child = host.spawn(Cmd::new(["sh", "-c", "read a; echo got $a; exec sleep 600"]).stdin_open())?;
    child.write(b"it\n")?;
    assert_eq!(child.wait_for_line("got", SOON)?, "got it");
    child.signal(Signal::SIGTERM)?;
    let output = child.output_within(SOON)?;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(15));
    assert_eq!(host.run(Cmd::new(["cat"]).stdin("through"))?.success()?.text(), "through");
    host.run(["sh", "-c", "exit 7"])?.exited(7)?;
    Ok(())
}

fn a_power_cut_ends_everything_but_the_disk() -> Result<()> {
    let lab = Lab::new("power")?;
    let lan = lab.segment("lan")?;
    let (web01, other) = (lab.host("web01").on(&lan).boot()?, lab.host("other").on(&lan).boot()?);
    web01.add_user("deploy")?;
    web01.write("/root/kept", "kept")?;
    web01.write("/run/lost", "lost")?;
    let child = web01.spawn(["sleep", "600"])?;
    web01.power_cut();
    ensure!(!child.wait(SOON)?.success());
    assert_eq!(ping(&other, &web01, 2, "0.1")?.len(), 0);
    ensure!(web01.run(["true"]).is_err(), "a host without power ran a command");
    web01.boot()?;
    assert_eq!(web01.read("/root/kept")?, "kept");
    ensure!(!web01.exists("/run/lost")?);
    web01.run(["id", "deploy"])?.success()?;
    assert_eq!(ping(&other, &web01, 1, "1")?.len(), 1);
    Ok(())
}

fn a_frozen_host_stops_and_resumes() -> Result<()> {
    let lab = Lab::new("freeze")?;
    let host = lab.host("laptop").boot()?;
    let child = host.spawn(["sh", "-c", "while echo tick; do sleep 0.01; done"])?;
    child.wait_for_line("tick", SOON)?;
    host.freeze()?;
    let shown = child.stdout().len();
    let mut shown_while_frozen = shown;
    // Nothing to wait for: it must stay as it is. The reader may still have had a last line in its hands.
    drop(wait_until(Duration::from_millis(300), "more comes", || {
        shown_while_frozen = child.stdout().len();
        shown_while_frozen > shown + "tick\n".len()
    }));
    ensure!(shown_while_frozen <= shown + "tick\n".len(), "a frozen host went on");
    host.thaw()?;
    wait_until(SOON, "a thawed host goes on", || child.stdout().len() > shown_while_frozen)
}

fn nothing_is_left_of_a_lab() -> Result<()> {
    let name = "vanishing";
    let lab = Lab::new(name)?;
    let lan = lab.segment("lan")?;
    let host = lab.host("web01").on(&lan).via(&Wire::delay_ms(1)).boot()?;
    let child = host.spawn([
        "sh",
        "-c",
        "setsid sleep 600 & setsid sleep 600 & mkdir /sys/fs/cgroup/commands/x; echo up; wait",
    ])?;
    child.wait_for_line("up", SOON)?;
    let process = child.pid();
    ensure!(!left_of(name)?.is_empty());
    let devices = interfaces()?;
    drop((lab, lan, host));
    drop(child);
    assert_eq!(left_of(name)?, Vec::<String>::new());
    assert_eq!(interfaces()?, devices);
    ensure!(!init_runs(process));
    Ok(())
}

fn nothing_is_left_of_a_lab_that_panicked() -> Result<()> {
    let name = "panicking";
    let story = || -> Result<()> {
        let lab = Lab::new(name)?;
        let host = lab.host("web01").boot()?;
        let _child = host.spawn(["sleep", "600"])?;
        std::panic::resume_unwind(Box::new("as a failed assertion would"));
    };
    ensure!(std::panic::catch_unwind(story).is_err());
    assert_eq!(left_of(name)?, Vec::<String>::new());
    Ok(())
}

/// Directories and control groups of this process's labs whose name ends so.
fn left_of(name: &str) -> Result<Vec<String>> {
    let groups = "/sys/fs/cgroup";
    let mut left = Vec::new();
    for directory in [std::env::temp_dir(), groups.into(), Path::new(groups).join("unified")] {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let found = entry?.file_name().to_string_lossy().into_owned();
            if found.starts_with(&format!("malai-lab-{}-", std::process::id())) && found.contains(name) {
                left.push(found);
            }
        }
    }
    Ok(left)
}

/// Processes that were started by this process and carry this hostname.
fn init_runs(process: i32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

/// The interfaces outside of every lab.
fn interfaces() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
