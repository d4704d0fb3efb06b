//! Wires and segments: conditions that show, links that change, packets that are counted.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::lab::{Host, Lab, Prefix, Wire};
use malai_e2e::trials;

use crate::{listen, ping};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_wire_of_25_ms_delays_a_ping_by_50,
        a_wire_that_loses_a_fifth_loses_a_fifth,
        a_wire_of_1_mb_a_second_carries_no_more,
        a_cut_wire_carries_nothing_until_mended,
        a_link_goes_down_and_up,
        a_host_roams_and_changes_its_address,
        segments_do_not_reach_each_other,
        nothing_outside_is_reached_and_every_try_is_counted,
    ]
}

/// A lab of two hosts, the second behind this wire.
fn pair(name: &str, wire: &Wire) -> Result<(Lab, Host, Host)> {
    let lab = Lab::new(name)?;
    let lan = lab.segment("lan")?;
    let near = lab.host("near").on(&lan).boot()?;
    let far = lab.host("far").on(&lan).via(wire).boot()?;
    Ok((lab, near, far))
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
    ensure!((10..=30).contains(&percent), "{percent} % of {} frames were lost", carried + dropped);
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
    ensure!(taken >= Duration::from_millis(95) && taken < Duration::from_millis(400), "100 kB took {taken:?}");
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
        near.run(["ping", "-c", "1", &far.ip().to_string()])?.exited(2)?;
        near.link_up()?;
        assert_eq!(ping(&near, &far, 1, "1")?.len(), 1);
    }
    Ok(())
}

fn a_host_roams_and_changes_its_address() -> Result<()> {
    let lab = Lab::new("roam")?;
    let (one, two) = (lab.segment("one")?, lab.segment("two")?);
    let (here, there) = (lab.host("here").on(&one).boot()?, lab.host("there").on(&two).boot()?);
    let laptop = lab.host("laptop").on(&one).boot()?;
    assert_eq!(ping(&laptop, &here, 1, "1")?.len(), 1);
    let before = laptop.ip();
    laptop.change_address()?;
    ensure!(laptop.ip() != before && one.prefix().contains(laptop.ip()));
    assert_eq!(ping(&here, &laptop, 1, "1")?.len(), 1);
    laptop.move_to(&two, Some(&Wire::delay_ms(10)))?;
    ensure!(two.prefix().contains(laptop.ip()), "{}", laptop.ip());
    let times = ping(&there, &laptop, 1, "1")?;
    ensure!(times.len() == 1 && times.iter().all(|time| *time >= 20.0), "{times:?}");
    assert_eq!(ping(&here, &laptop, 2, "0.1")?.len(), 0);
    Ok(())
}

fn segments_do_not_reach_each_other() -> Result<()> {
    let lab = Lab::new("apart")?;
    let (one, two) = (lab.segment("one")?, lab.segment("two")?);
    let (here, there) = (lab.host("here").on(&one).boot()?, lab.host("there").on(&two).boot()?);
    assert_eq!(ping(&here, &there, 2, "0.1")?.len(), 0);
    let both = lab.host("both").on(&one).on(&two).boot()?;
    assert_eq!(ping(&both, &there, 1, "1")?.len(), 1);
    Ok(())
}

fn nothing_outside_is_reached_and_every_try_is_counted() -> Result<()> {
    let lab = Lab::new("outside")?;
    let lan = lab.segment("lan")?;
    let (near, far) = (lab.host("near").on(&lan).boot()?, lab.host("far").on(&lan).boot()?);
    let (to, receiver) = listen(&far, 4000)?;
    let socket = near.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    socket.send_to(b"x", &to)?;
    receiver.recv(&mut [0])?;
    socket.send_to(b"x", ("224.0.0.251", 5353))?;
    let allowed = [lan.prefix(), Prefix::new([224, 0, 0, 251].into(), 32)];
    assert_eq!(near.packets_outside(&allowed)?, []);
    assert_eq!(near.packets()?.len(), 2, "the neighbour and the multicast group: {:?}", near.packets()?);
    // An address of a documentation range, and the gateway's port mapping service.
    socket.send_to(b"x", ("203.0.113.7", 3478))?;
    socket.send_to(b"x", ("203.0.113.7", 3478))?;
    socket.send_to(b"x", (lan.gateway(), 5351))?;
    let mut outside = near.packets_outside(&allowed)?;
    outside.sort_by_key(|flow| flow.port);
    let seen: Vec<_> = outside.iter().map(|flow| (flow.to.to_string(), flow.port, flow.packets)).collect();
    assert_eq!(seen, [("203.0.113.7".to_owned(), 3478, 2), (lan.gateway().to_string(), 5351, 1)]);
    near.run(["ping", "-c", "1", "-W", "1", "203.0.113.7"])?.exited(1)?;
    Ok(())
}
