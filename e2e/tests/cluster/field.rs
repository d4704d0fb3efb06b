//! What users of other tools reported, and had mended there: each is played on malai. The comments name the reports.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, malai, running, text};
use malai_e2e::lab::{Child, Host, Lab, wait_until};
use malai_e2e::trials;
use nix::sys::signal::Signal;

use crate::Office;

/// A process that has nothing to do uses less of a processor than this share.
const IDLE_CPU_SHARE: f64 = 0.2;
/// An idle process is watched for this time.
const IDLE_WATCH_TIME: Duration = Duration::from_secs(3);

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_process_that_outlives_its_command_holds_nothing_of_the_daemons,
        sixty_commands_at_once_have_each_their_own_code_and_words,
        an_input_of_one_byte_arrives_every_time,
        all_output_of_a_command_is_there_before_its_code_every_time,
        a_user_without_a_home_with_a_closed_one_or_with_many_groups_runs_commands,
        output_of_commands_is_in_no_log,
        a_caller_that_a_signal_ended_never_exits_with_0,
        a_caller_whose_reader_has_left_waits_without_spinning,
        a_daemon_on_a_full_disk_is_idle,
        a_hundred_commands_leave_no_descriptor_and_no_control_group_behind,
        a_command_restarts_the_daemon_that_it_came_through_and_ends_as_it_ends,
        a_command_makes_the_machine_leave_that_it_came_through,
    ]
}

/// The processes of malai that run on a host: daemon and executor.
fn daemons(host: &Host) -> Result<Vec<i32>> {
    host.inside(|| {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            let program = words.first().is_some_and(|word| word.ends_with("malai"));
            if program && words.get(1).is_some_and(|word| word == "daemon" || word == "executor") {
                found.push(pid);
            }
        }
        Ok(found)
    })
}

/// What is open in a process, a line for each descriptor.
fn open_in(host: &Host, pid: i32) -> Result<Vec<String>> {
    host.inside(|| {
        let mut open = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            open.push(format!("{} {}", entry.file_name().display(), target.display()));
        }
        open.sort();
        Ok(open)
    })
}

/// Processor time that a process has used, in clock ticks of 10 ms.
fn ticks(host: &Host, pid: i32) -> Result<u64> {
    host.inside(|| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, after_name) = stat.rsplit_once(')').context("no name in stat")?;
        let fields: Vec<_> = after_name.split_whitespace().collect();
        let [user, system] = [fields.get(11), fields.get(12)];
        Ok(user.context("no utime")?.parse::<u64>()? + system.context("no stime")?.parse::<u64>()?)
    })
}

/// Checks that these processes of a host do nothing for a while.
fn idle(host: &Host, pids: &[i32]) -> Result<()> {
    let before = pids.iter().map(|pid| ticks(host, *pid)).collect::<Result<Vec<_>>>()?;
    // The time itself is what is measured: what spins uses all of it.
    std::thread::sleep(IDLE_WATCH_TIME);
    for (pid, before) in pids.iter().zip(before) {
        let used = Duration::from_millis((ticks(host, *pid)? - before) * 10);
        let share = used.as_secs_f64() / IDLE_WATCH_TIME.as_secs_f64();
        ensure!(share < IDLE_CPU_SHARE, "process {pid} of {} used {share:.2} of a processor", host.hostname());
    }
    Ok(())
}

/// Tailscale 4992 (a process kept a device of the daemon's open, and the next daemon could not start), OpenSSH 1643.
fn a_process_that_outlives_its_command_holds_nothing_of_the_daemons() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let script = "setsid sleep 731 </dev/null >/dev/null 2>&1 & echo $!; hostname";
    let output = company.run(office.laptop(), web01, &["sh", "-c", script])?.success()?;
    let output = output.text();
    let (pid, name) = output.split_once('\n').context("two lines")?;
    assert_eq!(name, "web01");
    assert_eq!(open_in(web01, pid.parse()?)?, ["0 /dev/null", "1 /dev/null", "2 /dev/null"]);
    web01.run(malai(["daemon", "stop"]))?.success()?;
    web01.run(malai(["daemon"]))?.success()?;
    company.ran_remotely(office.laptop(), web01)?;
    assert_eq!(running(web01, "sleep 731")?, 1, "it was started to stay");
    Ok(())
}

/// OpenSSH 1570: codes were mixed up where several commands shared one connection.
fn sixty_commands_at_once_have_each_their_own_code_and_words() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let start = |n: i32| -> Result<(i32, Child)> {
        let script = format!("hostname; echo out {n}; echo err {n} >&2; exit {n}");
        Ok((n, company.spawn(office.laptop(), web01, &["sh", "-c", &script])?))
    };
    let commands = (1..=60).map(start).collect::<Result<Vec<_>>>()?;
    for (n, command) in commands {
        let output = command.output_within(SOON)?.exited(n)?;
        assert_eq!((output.text(), output.error_text()), (format!("web01\nout {n}"), format!("err {n}")));
    }
    Ok(())
}

/// Kubernetes 61557: piping a byte into a command hung now and then, because the end of the input got lost.
fn an_input_of_one_byte_arrives_every_time() -> Result<()> {
    let office = Office::open(["web01"])?;
    let line = "for i in $(seq 50); do printf a | malai web01.company -- sh -c 'cat; hostname' || echo failed; done";
    let output = office.laptop().sh(line)?.success()?;
    assert_eq!(output.text(), ["aweb01"; 50].join("\n"));
    Ok(())
}

/// Kubernetes 124571: the end of a long output was missing, and the code was 0.
fn all_output_of_a_command_is_there_before_its_code_every_time() -> Result<()> {
    let office = Office::open(["web01"])?;
    let line = "for i in $(seq 10); do malai -n web01.company -- sh -c 'seq 300000; hostname' | tail -n 2; done";
    let output = office.laptop().sh(line)?.success()?;
    assert_eq!(output.text(), ["300000\nweb01"; 10].join("\n"));
    Ok(())
}

/// Tailscale 5224 (no home), 8118 (a home that others cannot enter), 11682 and 4938 (further groups).
fn a_user_without_a_home_with_a_closed_one_or_with_many_groups_runs_commands() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    web01.sh("useradd --no-create-home --home-dir /nonexistent homeless")?.success()?;
    web01.add_user("closed")?;
    web01.sh("chmod 2750 ~closed; for i in $(seq 40); do groupadd g$i; usermod -aG g$i closed; done")?.success()?;
    company.publish("machine.web01", "users = [\"homeless\", \"closed\"]")?;
    let run = |user: &str, script: &str| -> Result<String> {
        let target = format!("{user}@web01.company");
        Ok(office.laptop().run(malai([target.as_str(), "--", "sh", "-c", script]))?.success()?.text())
    };
    assert_eq!(run("homeless", "hostname; pwd; echo $HOME")?, "web01\n/\n/nonexistent");
    assert_eq!(run("closed", "hostname; pwd; id -G | wc -w")?, "web01\n/home/closed\n41");
    web01.sh("chmod 000 ~closed; chown root ~closed")?.success()?;
    assert_eq!(run("closed", "hostname; pwd; echo $PWD")?, "web01\n/\n/");
    Ok(())
}

/// Teleport 6556: what commands wrote stood in the log of the target's daemon.
fn output_of_commands_is_in_no_log() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let script = "hostname; echo seen-by-nobody-$((40+2)); echo seen-by-nobody-$((40+2)) >&2; cat";
    let words = ["web01.company", "--", "sh", "-c", script];
    let output = office.laptop().run(malai(words).stdin("typed-by-nobody-42\n"))?.success()?;
    assert_eq!(output.text(), "web01\nseen-by-nobody-42\ntyped-by-nobody-42");
    for host in [company.manager(), web01] {
        let found =
            host.sh("grep -r -l -E '(seen|typed)-by-nobody-42' \"${MALAI_HOME:-$HOME/.malai}\" /var/log; true")?;
        assert_eq!(found.success()?.text(), "", "on {}", host.hostname());
    }
    Ok(())
}

/// OpenSSH 3281: a client that a signal had ended exited with 0.
fn a_caller_that_a_signal_ended_never_exits_with_0() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    for signal in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGALRM,
        Signal::SIGKILL,
    ] {
        let session = company.spawn(office.laptop(), web01, &["sh", "-c", "hostname; exec sleep 732"])?;
        session.wait_for_line("web01", SOON)?;
        session.signal(signal)?;
        let status = session.wait(SOON)?;
        ensure!(!status.success(), "{signal}: {status}");
        wait_until(SOON, "the command is gone", || running(web01, "sleep 732").is_ok_and(|found| found == 0))?;
    }
    Ok(())
}

/// OpenSSH 2469 and 3405: a client whose output was closed hung, or used a whole processor.
fn a_caller_whose_reader_has_left_waits_without_spinning() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let line = "malai -n web01.company -- sh -c 'echo first; exec sleep 733' | head -n 1 & \
                until pgrep -f 'sleep 733' >/dev/null; do sleep 0.05; done; echo there; wait";
    let session = office.laptop().spawn(["sh", "-c", line])?;
    wait_until(SOON, "the command runs", || running(web01, "sleep 733").is_ok_and(|found| found > 0))?;
    session.wait_for_line("there", SOON)?;
    let callers = office.laptop().sh("pgrep -x malai")?.success()?.text();
    let callers = callers.lines().map(str::parse).collect::<Result<Vec<i32>, _>>()?;
    ensure!(callers.len() >= 3, "daemon, executor and the caller should be there: {callers:?}");
    idle(office.laptop(), &callers)?;
    idle(web01, &daemons(web01)?)?;
    session.signal(Signal::SIGKILL)
}

/// Teleport 3081: a daemon whose disk was full used a whole processor.
fn a_daemon_on_a_full_disk_is_idle() -> Result<()> {
    let lab = Lab::new("full")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let web01 = lab.host("web01").on(&lan).boot()?;
    let home = "/root/malai-home";
    web01.sh(&format!("mkdir -p {home} && mount -t tmpfs -o size=3m,mode=700 tmpfs {home}"))?.success()?;
    company.join(&web01)?;
    web01.sh(&format!("cat /dev/zero > {home}/filler 2>/dev/null; true"))?.success()?;
    // A withdrawal that cannot be stored waits for room.
    company.allow(&web01, &[])?;
    wait_until(SOON, "the alarm is raised", || {
        company.status(&web01).is_ok_and(|status| text(&status, "/alarm").is_ok_and(|alarm| !alarm.is_empty()))
    })?;
    let pids = daemons(&web01)?;
    ensure!(pids.len() >= 2, "daemon and executor should run: {pids:?}");
    idle(&web01, &pids)
}

/// Teleport 36487 and Tailscale 8119: each command left something behind, until no further one could start.
fn a_hundred_commands_leave_no_descriptor_and_no_control_group_behind() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let many = |count: u32| -> Result<()> {
        let line = format!("for i in $(seq {count}); do malai -n web01.company -- hostname; done | sort | uniq -c");
        let counted = office.laptop().sh(&line)?.success()?.text();
        assert_eq!(counted.split_whitespace().collect::<Vec<_>>(), [count.to_string().as_str(), "web01"]);
        Ok(())
    };
    let counts = |host: &Host| -> Result<Vec<usize>> {
        let mut counts = Vec::new();
        for pid in daemons(host)? {
            counts.push(open_in(host, pid)?.len());
        }
        Ok(counts)
    };
    let groups = "find /sys/fs/cgroup -type d -path '*malai*' | wc -l";
    many(20)?;
    let before = (counts(office.laptop())?, counts(web01)?, web01.sh(groups)?.success()?.text());
    many(100)?;
    let settled = || -> Result<bool> {
        let after = (counts(office.laptop())?, counts(web01)?, web01.sh(groups)?.success()?.text());
        let grown = |before: &[usize], after: &[usize]| after.iter().sum::<usize>() > before.iter().sum::<usize>() + 4;
        Ok(!grown(&before.0, &after.0) && !grown(&before.1, &after.1) && after.2 == before.2)
    };
    wait_until(SOON, "nothing of the hundred commands is left", || settled().is_ok_and(|settled| settled))
}

/// Tailscale 9780: an upgrade through the tool restarted the tool, which ended the upgrade.
fn a_command_restarts_the_daemon_that_it_came_through_and_ends_as_it_ends() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    for _ in 0..3 {
        let script =
            "export MALAI_HOME=/root/malai-home; malai daemon restart 2>/dev/null; echo restarted $?; hostname; exit 7";
        let output = company.run(office.laptop(), web01, &["sh", "-c", script])?.exited(7)?;
        assert_eq!(output.text(), "restarted 0\nweb01");
    }
    Ok(())
}

/// Tailscale 10850: a logout through the tool ended the tool, which ended the logout half-way.
fn a_command_makes_the_machine_leave_that_it_came_through() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    company
        .run(office.laptop(), web01, &["env", "MALAI_HOME=/root/malai-home", "malai", "machine", "leave", "company"])?
        .exited(253)?;
    let left = || {
        web01.run(malai(["status"])).is_ok_and(|status| status.error_text().contains("no cluster was made or joined"))
    };
    wait_until(SOON, "web01 has left", left)
}
