//! The lab checks itself first: whatever it claims to simulate has to show.

use std::net::UdpSocket;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use malai_e2e::harness::{self, trial};
use malai_e2e::lab::{Cmd, Host, Lab, Nat, Segment, Wire, wait_until};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    harness::main(vec![
        trial(
            "a_host_has_its_own_name_files_and_processes",
            a_host_has_its_own_name_files_and_processes,
        ),
        trial(
            "a_user_of_one_host_is_none_of_another",
            a_user_of_one_host_is_none_of_another,
        ),
        trial(
            "a_host_without_cgroups_sees_none",
            a_host_without_cgroups_sees_none,
        ),
        trial(
            "a_command_that_hangs_is_killed_and_shown",
            a_command_that_hangs_is_killed_and_shown,
        ),
        trial(
            "a_child_is_followed_line_by_line_and_signalled",
            a_child_is_followed_line_by_line_and_signalled,
        ),
        trial(
            "a_wire_of_25_ms_delays_a_ping_by_50",
            a_wire_of_25_ms_delays_a_ping_by_50,
        ),
        trial(
            "a_wire_that_loses_a_fifth_loses_a_fifth",
            a_wire_that_loses_a_fifth_loses_a_fifth,
        ),
        trial(
            "a_wire_of_1_mb_a_second_carries_no_more",
            a_wire_of_1_mb_a_second_carries_no_more,
        ),
        trial(
            "a_cut_wire_carries_nothing_until_mended",
            a_cut_wire_carries_nothing_until_mended,
        ),
        trial(
            "a_symmetric_nat_shows_a_port_for_each_destination",
            a_symmetric_nat_shows_a_port_for_each_destination,
        ),
        trial(
            "a_port_restricted_nat_keeps_the_port",
            a_port_restricted_nat_keeps_the_port,
        ),
        trial(
            "a_full_cone_nat_lets_anybody_in",
            a_full_cone_nat_lets_anybody_in,
        ),
        trial(
            "a_router_that_blocks_udp_lets_tcp_out",
            a_router_that_blocks_udp_lets_tcp_out,
        ),
        trial(
            "nothing_outside_is_reached_and_every_try_is_counted",
            nothing_outside_is_reached_and_every_try_is_counted,
        ),
        trial(
            "segments_do_not_reach_each_other",
            segments_do_not_reach_each_other,
        ),
        trial("a_link_goes_down_and_up", a_link_goes_down_and_up),
        trial(
            "a_host_roams_and_changes_its_address",
            a_host_roams_and_changes_its_address,
        ),
        trial(
            "a_power_cut_ends_everything_but_the_disk",
            a_power_cut_ends_everything_but_the_disk,
        ),
        trial(
            "a_frozen_host_stops_and_resumes",
            a_frozen_host_stops_and_resumes,
        ),
        trial("nothing_is_left_of_a_lab", nothing_is_left_of_a_lab),
        trial(
            "nothing_is_left_of_a_lab_that_panicked",
            nothing_is_left_of_a_lab_that_panicked,
        ),
    ])
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
    assert_eq!(
        processes.split(' ').count(),
        2,
        "process 1 and the shell: {processes}"
    );
    let environment = web01.run(["/usr/bin/env"])?.success()?.text();
    let names: Vec<_> = environment
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    let wanted = ["HOME", "LANG", "LOGNAME", "MALAI_HOME", "PATH", "USER"];
    ensure!(
        names.len() == wanted.len() && wanted.iter().all(|name| names.contains(name)),
        "{environment}"
    );
    Ok(())
}

fn a_user_of_one_host_is_none_of_another() -> Result<()> {
    let lab = Lab::new("users")?;
    let (web01, db01) = (lab.host("web01").boot()?, lab.host("db01").boot()?);
    web01.add_user("deploy")?;
    let who = web01
        .run(Cmd::new(["sh", "-c", "id -un; pwd; echo $HOME"]).user("deploy"))?
        .success()?;
    assert_eq!(who.text(), "deploy\n/home/deploy\n/home/deploy");
    db01.run(["id", "deploy"])?.exited(1)?;
    ensure!(!std::fs::read_to_string("/etc/passwd")?.contains("/home/deploy"));
    Ok(())
}

fn a_host_without_cgroups_sees_none() -> Result<()> {
    let lab = Lab::new("cgroups")?;
    let (with, without) = (
        lab.host("with").boot()?,
        lab.host("without").without_cgroups().boot()?,
    );
    without
        .run(["grep", "cgroup2", "/proc/self/mountinfo"])?
        .exited(1)?;
    with.sh("mkdir /sys/fs/cgroup/commands/a && echo $$ > /sys/fs/cgroup/commands/a/cgroup.procs")?
        .success()?;
    assert_eq!(
        with.run(["grep", "^0::", "/proc/self/cgroup"])?.text(),
        "0::/commands"
    );
    without.freeze()?;
    without.thaw()
}

fn a_command_that_hangs_is_killed_and_shown() -> Result<()> {
    let lab = Lab::new("hang")?;
    let host = lab.host("web01").boot()?;
    let begun = Instant::now();
    let hang = Cmd::new(["sh", "-c", "echo so far; sleep 600"]).timeout(Duration::from_millis(300));
    let Err(error) = host.run(hang) else {
        bail!("a command without end has ended")
    };
    let message = format!("{error:#}");
    ensure!(
        message.contains("on web01 did not end") && message.contains("so far"),
        "{message}"
    );
    ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    Ok(())
}

fn a_child_is_followed_line_by_line_and_signalled() -> Result<()> {
    let lab = Lab::new("child")?;
    let host = lab.host("web01").boot()?;
    let mut child =
        host.spawn(Cmd::new(["sh", "-c", "read a; echo got $a; exec sleep 600"]).stdin_open())?;
    child.write(b"it\n")?;
    assert_eq!(child.wait_for_line("got", SOON)?, "got it");
    child.signal(Signal::SIGTERM)?;
    let output = child.output_within(SOON)?;
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&output.status),
        Some(15)
    );
    assert_eq!(
        host.run(Cmd::new(["cat"]).stdin("through"))?
            .success()?
            .text(),
        "through"
    );
    host.run(["sh", "-c", "exit 7"])?.exited(7)?;
    Ok(())
}

/// A lab of two hosts, the second behind this wire.
fn pair(name: &str, wire: &Wire) -> Result<(Lab, Host, Host)> {
    let lab = Lab::new(name)?;
    let lan = lab.segment("lan")?;
    let near = lab.host("near").on(&lan).boot()?;
    let far = lab.host("far").on(&lan).via(wire).boot()?;
    Ok((lab, near, far))
}

/// Round trips in milliseconds, one for every answer.
fn ping(from: &Host, to: &Host, count: u32, interval: &str) -> Result<Vec<f64>> {
    let (count, to) = (count.to_string(), to.ip().to_string());
    let output = from.run(["ping", "-n", "-c", &count, "-i", interval, "-W", "1", &to])?;
    let times = output.text();
    let times = times
        .lines()
        .filter_map(|line| line.split("time=").nth(1)?.split(' ').next());
    times
        .map(|time| time.parse().with_context(|| format!("{time} is no time")))
        .collect()
}

fn a_wire_of_25_ms_delays_a_ping_by_50() -> Result<()> {
    let wire = Wire::delay_ms(25);
    let (_lab, near, far) = pair("delay", &wire)?;
    let times = ping(&near, &far, 5, "0.1")?;
    assert_eq!(times.len(), 5);
    // The first one waits for the address to be resolved over the same wire.
    ensure!(times.iter().all(|time| *time >= 50.0), "{times:?}");
    ensure!(times.iter().skip(1).any(|time| *time < 60.0), "{times:?}");
    wire.set_delay(Duration::ZERO);
    let times = ping(&near, &far, 5, "0.1")?;
    ensure!(times.iter().any(|time| *time < 5.0), "{times:?}");
    Ok(())
}

fn a_wire_that_loses_a_fifth_loses_a_fifth() -> Result<()> {
    let wire = Wire::plain();
    let (_lab, near, far) = pair("loss", &wire)?;
    assert_eq!(ping(&near, &far, 1, "1")?.len(), 1);
    let (carried, dropped) = (wire.carried(), wire.dropped());
    wire.set_loss(0.2);
    let answers = ping(&near, &far, 500, "0.002")?.len();
    // An answer has to survive both directions: 0.8 x 0.8.
    ensure!((270..=370).contains(&answers), "{answers} of 500 answered");
    let (carried, dropped) = (wire.carried() - carried, wire.dropped() - dropped);
    let percent = dropped * 100 / (carried + dropped);
    ensure!(
        (10..=30).contains(&percent),
        "{percent} % of {} frames were lost",
        carried + dropped
    );
    Ok(())
}

fn a_wire_of_1_mb_a_second_carries_no_more() -> Result<()> {
    let wire = Wire::plain().rate(1_000_000);
    let (_lab, near, far) = pair("rate", &wire)?;
    let (to, receiver) = listen(&far, 9)?;
    let sender = near.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    // Address resolution first: the kernel does not keep a hundred packets for it.
    assert_eq!(ping(&near, &far, 1, "1")?.len(), 1);
    let begun = Instant::now();
    for _ in 0..100 {
        sender.send_to(&[0; 1000], &to)?;
    }
    let mut buffer = [0; 2000];
    for _ in 0..100 {
        receiver.recv(&mut buffer)?;
    }
    let taken = begun.elapsed();
    ensure!(
        taken >= Duration::from_millis(95) && taken < Duration::from_millis(400),
        "100 kB took {taken:?}"
    );
    Ok(())
}

fn a_cut_wire_carries_nothing_until_mended() -> Result<()> {
    let wire = Wire::delay_ms(1);
    let (_lab, near, far) = pair("cut", &wire)?;
    assert_eq!(ping(&near, &far, 1, "1")?.len(), 1);
    wire.cut();
    assert_eq!(ping(&near, &far, 2, "0.1")?.len(), 0);
    wire.mend();
    assert_eq!(ping(&near, &far, 1, "1")?.len(), 1);
    Ok(())
}

/// A socket on a host at this port, and its address.
fn listen(host: &Host, port: u16) -> Result<(String, UdpSocket)> {
    let address = format!("{}:{port}", host.ip());
    let socket = host.inside(|| Ok(UdpSocket::bind(&address)?))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok((address, socket))
}

/// A host behind a router of this kind, and two hosts on the internet.
struct Home {
    _router: malai_e2e::lab::Router,
    inside: Host,
    one: Host,
    two: Host,
    _lab: Lab,
}

fn home(nat: Nat) -> Result<Home> {
    let lab = Lab::new("nat")?;
    let (internet, lan) = (lab.internet()?, lab.segment("lan")?);
    let router = lab
        .router("home")
        .between(&lan, &internet)
        .nat(nat)
        .start()?;
    let inside = lab.host("inside").on(&lan).boot()?;
    let (one, two) = (
        lab.host("one").on(&internet).boot()?,
        lab.host("two").on(&internet).boot()?,
    );
    Ok(Home {
        _router: router,
        inside,
        one,
        two,
        _lab: lab,
    })
}

/// From which addresses two hosts on the internet see one socket behind a router.
fn seen_from(home: &Home) -> Result<[std::net::SocketAddr; 2]> {
    let socket = home
        .inside
        .inside(|| Ok(UdpSocket::bind("0.0.0.0:4000")?))?;
    let ((one, at_one), (two, at_two)) = (listen(&home.one, 9)?, listen(&home.two, 9)?);
    socket.send_to(b"x", one)?;
    socket.send_to(b"x", two)?;
    Ok([at_one.recv_from(&mut [0])?.1, at_two.recv_from(&mut [0])?.1])
}

fn a_symmetric_nat_shows_a_port_for_each_destination() -> Result<()> {
    let home = home(Nat::Symmetric)?;
    let [one, two] = seen_from(&home)?;
    ensure!(
        one.ip() == two.ip() && one.ip() != home.inside.ip(),
        "{one} {two}"
    );
    ensure!(one.port() != two.port(), "{one} {two}");
    Ok(())
}

fn a_port_restricted_nat_keeps_the_port() -> Result<()> {
    let home = home(Nat::PortRestricted)?;
    let [one, two] = seen_from(&home)?;
    assert_eq!(one, two);
    ensure!(
        !stranger_gets_in(&home)?,
        "a stranger reached a port that never sent to it"
    );
    Ok(())
}

fn a_full_cone_nat_lets_anybody_in() -> Result<()> {
    let home = home(Nat::FullCone)?;
    let [one, two] = seen_from(&home)?;
    assert_eq!(one, two);
    ensure!(
        stranger_gets_in(&home)?,
        "a stranger did not reach an open port"
    );
    Ok(())
}

/// Whether a packet of a host arrives at a port that has only sent to another host.
fn stranger_gets_in(home: &Home) -> Result<bool> {
    let socket = home
        .inside
        .inside(|| Ok(UdpSocket::bind("0.0.0.0:5000")?))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let ((one, at_one), (_, at_two)) = (listen(&home.one, 10)?, listen(&home.two, 10)?);
    socket.send_to(b"x", one)?;
    let outer = at_one.recv_from(&mut [0])?.1;
    at_two.send_to(b"stranger", outer)?;
    at_one.send_to(b"friend", outer)?;
    let mut buffer = [0; 16];
    let mut arrived = Vec::new();
    while let Ok(length) = socket.recv(&mut buffer) {
        arrived.push(buffer.get(..length).unwrap_or_default().to_vec());
    }
    ensure!(
        arrived.contains(&b"friend".to_vec()),
        "not even the answer arrived"
    );
    Ok(arrived.contains(&b"stranger".to_vec()))
}

fn a_router_that_blocks_udp_lets_tcp_out() -> Result<()> {
    let home = home(Nat::UdpBlocked)?;
    let listener = home
        .one
        .inside(|| Ok(std::net::TcpListener::bind("0.0.0.0:9")?))?;
    let to = std::net::SocketAddr::from((home.one.ip(), 9));
    home.inside
        .inside(|| Ok(std::net::TcpStream::connect_timeout(&to, SOON)?))?;
    listener.accept()?;
    let socket = home.inside.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let (one, at_one) = listen(&home.one, 9)?;
    at_one.set_read_timeout(Some(Duration::from_millis(300)))?;
    socket.send_to(b"x", one)?;
    ensure!(at_one.recv(&mut [0]).is_err(), "UDP got out");
    Ok(())
}

fn nothing_outside_is_reached_and_every_try_is_counted() -> Result<()> {
    let lab = Lab::new("outside")?;
    let lan = lab.segment("lan")?;
    let (near, far) = (
        lab.host("near").on(&lan).boot()?,
        lab.host("far").on(&lan).boot()?,
    );
    let (to, receiver) = listen(&far, 4000)?;
    let socket = near.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    socket.send_to(b"x", &to)?;
    receiver.recv(&mut [0])?;
    socket.send_to(b"x", ("224.0.0.251", 5353))?;
    let allowed = [
        lan.prefix(),
        malai_e2e::lab::Prefix::new([224, 0, 0, 251].into(), 32),
    ];
    assert_eq!(near.packets_outside(&allowed)?, []);
    assert_eq!(
        near.packets()?.len(),
        2,
        "the neighbour and the multicast group: {:?}",
        near.packets()?
    );
    // An address of a documentation range, and the gateway's port mapping service.
    socket.send_to(b"x", ("203.0.113.7", 3478))?;
    socket.send_to(b"x", ("203.0.113.7", 3478))?;
    socket.send_to(b"x", (lan.gateway(), 5351))?;
    let mut outside = near.packets_outside(&allowed)?;
    outside.sort_by_key(|flow| flow.port);
    let seen: Vec<_> = outside
        .iter()
        .map(|flow| (flow.to.to_string(), flow.port, flow.packets))
        .collect();
    assert_eq!(
        seen,
        [
            ("203.0.113.7".to_owned(), 3478, 2),
            (lan.gateway().to_string(), 5351, 1)
        ]
    );
    near.run(["ping", "-c", "1", "-W", "1", "203.0.113.7"])?
        .exited(1)?;
    Ok(())
}

fn segments_do_not_reach_each_other() -> Result<()> {
    let lab = Lab::new("apart")?;
    let (one, two) = (lab.segment("one")?, lab.segment("two")?);
    let (here, there) = (
        lab.host("here").on(&one).boot()?,
        lab.host("there").on(&two).boot()?,
    );
    assert_eq!(ping(&here, &there, 2, "0.1")?.len(), 0);
    let both = lab.host("both").on(&one).on(&two).boot()?;
    assert_eq!(ping(&both, &there, 1, "1")?.len(), 1);
    Ok(())
}

fn a_link_goes_down_and_up() -> Result<()> {
    for wire in [None, Some(Wire::plain())] {
        let lab = Lab::new("link")?;
        let lan = lab.segment("lan")?;
        let far = lab.host("far").on(&lan).boot()?;
        let builder = lab.host("near").on(&lan);
        let near = match &wire {
            Some(wire) => builder.via(wire).boot()?,
            None => builder.boot()?,
        };
        near.link_down()?;
        near.run(["ping", "-c", "1", &far.ip().to_string()])?
            .exited(2)?;
        near.link_up()?;
        assert_eq!(ping(&near, &far, 1, "1")?.len(), 1);
    }
    Ok(())
}

fn a_host_roams_and_changes_its_address() -> Result<()> {
    let lab = Lab::new("roam")?;
    let (one, two): (Segment, Segment) = (lab.segment("one")?, lab.segment("two")?);
    let (here, there) = (
        lab.host("here").on(&one).boot()?,
        lab.host("there").on(&two).boot()?,
    );
    let laptop = lab.host("laptop").on(&one).boot()?;
    assert_eq!(ping(&laptop, &here, 1, "1")?.len(), 1);
    let before = laptop.ip();
    laptop.change_address()?;
    ensure!(laptop.ip() != before && one.prefix().contains(laptop.ip()));
    assert_eq!(ping(&here, &laptop, 1, "1")?.len(), 1);
    laptop.move_to(&two, Some(&Wire::delay_ms(10)))?;
    ensure!(two.prefix().contains(laptop.ip()), "{}", laptop.ip());
    let times = ping(&there, &laptop, 1, "1")?;
    ensure!(
        times.len() == 1 && times.iter().all(|time| *time >= 20.0),
        "{times:?}"
    );
    assert_eq!(ping(&here, &laptop, 2, "0.1")?.len(), 0);
    Ok(())
}

fn a_power_cut_ends_everything_but_the_disk() -> Result<()> {
    let lab = Lab::new("power")?;
    let lan = lab.segment("lan")?;
    let (web01, other) = (
        lab.host("web01").on(&lan).boot()?,
        lab.host("other").on(&lan).boot()?,
    );
    web01.add_user("deploy")?;
    web01.write("/root/kept", "kept")?;
    web01.write("/run/lost", "lost")?;
    let child = web01.spawn(["sleep", "600"])?;
    web01.power_cut();
    ensure!(!child.wait(SOON)?.success());
    assert_eq!(ping(&other, &web01, 2, "0.1")?.len(), 0);
    ensure!(
        web01.run(["true"]).is_err(),
        "a host without power ran a command"
    );
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
    ensure!(
        shown_while_frozen <= shown + "tick\n".len(),
        "a frozen host went on"
    );
    host.thaw()?;
    wait_until(SOON, "a thawed host goes on", || {
        child.stdout().len() > shown_while_frozen
    })
}

/// Directories and control groups of this process's labs whose name ends so.
fn left_of(name: &str) -> Result<Vec<String>> {
    let groups = "/sys/fs/cgroup";
    let mut left = Vec::new();
    for directory in [
        std::env::temp_dir(),
        groups.into(),
        Path::new(groups).join("unified"),
    ] {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let found = entry?.file_name().to_string_lossy().into_owned();
            if found.starts_with(&format!("malai-lab-{}-", std::process::id()))
                && found.contains(name)
            {
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

/// The interfaces outside of every lab.
fn interfaces() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
