//! Routers: each kind of address translation behaves as its name says.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::lab::{Host, Lab, Nat, Router};
use malai_e2e::trials;

use crate::{SOON, listen};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_symmetric_nat_shows_a_port_for_each_destination,
        a_port_restricted_nat_keeps_the_port,
        a_full_cone_nat_lets_anybody_in,
        two_customers_of_a_carrier_reach_each_other_at_its_outer_address,
        a_router_that_blocks_udp_lets_tcp_out,
    ]
}

/// A host behind a router of this kind, and two hosts on the internet.
struct Home {
    _router: Router,
    inside: Host,
    one: Host,
    two: Host,
    _lab: Lab,
}

fn home(nat: Nat) -> Result<Home> {
    let lab = Lab::new("nat")?;
    let (internet, lan) = (lab.internet()?, lab.segment("lan")?);
    let router = lab.router("home").between(&lan, &internet).nat(nat).start()?;
    let inside = lab.host("inside").on(&lan).boot()?;
    let (one, two) = (lab.host("one").on(&internet).boot()?, lab.host("two").on(&internet).boot()?);
    Ok(Home { _router: router, inside, one, two, _lab: lab })
}

/// From which addresses two hosts on the internet see one socket behind a router.
fn seen_from(home: &Home) -> Result<[SocketAddr; 2]> {
    let socket = home.inside.inside(|| Ok(UdpSocket::bind("0.0.0.0:4000")?))?;
    let ((one, at_one), (two, at_two)) = (listen(&home.one, 9)?, listen(&home.two, 9)?);
    socket.send_to(b"x", one)?;
    socket.send_to(b"x", two)?;
    Ok([at_one.recv_from(&mut [0])?.1, at_two.recv_from(&mut [0])?.1])
}

fn a_symmetric_nat_shows_a_port_for_each_destination() -> Result<()> {
    let home = home(Nat::Symmetric)?;
    let [one, two] = seen_from(&home)?;
    ensure!(one.ip() == two.ip() && one.ip() != home.inside.ip(), "{one} {two}");
    ensure!(one.port() != two.port(), "{one} {two}");
    Ok(())
}

fn a_port_restricted_nat_keeps_the_port() -> Result<()> {
    let home = home(Nat::PortRestricted)?;
    let [one, two] = seen_from(&home)?;
    assert_eq!(one, two);
    ensure!(!stranger_gets_in(&home)?, "a stranger reached a port that never sent to it");
    Ok(())
}

fn a_full_cone_nat_lets_anybody_in() -> Result<()> {
    let home = home(Nat::FullCone)?;
    let [one, two] = seen_from(&home)?;
    assert_eq!(one, two);
    ensure!(stranger_gets_in(&home)?, "a stranger did not reach an open port");
    Ok(())
}

/// Behind a router of their own each, whose translation is translated once more.
fn two_customers_of_a_carrier_reach_each_other_at_its_outer_address() -> Result<()> {
    let lab = Lab::new("carrier")?;
    let (internet, carrier) = (lab.internet()?, lab.segment("carrier")?);
    let outer = lab.router("carrier").between(&carrier, &internet).nat(Nat::Carrier).start()?;
    let server = lab.host("server").on(&internet).boot()?;
    let mut customers = Vec::new();
    for name in ["one", "two"] {
        let lan = lab.segment(name)?;
        let router = lab.router(name).between(&lan, &carrier).start()?;
        customers.push((lab.host(name).on(&lan).boot()?, router));
    }
    let [(one, _), (two, _)] = customers.as_slice() else { anyhow::bail!("two customers") };
    let (address, at_server) = listen(&server, 9)?;
    let mut seen = Vec::new();
    let mut sockets = Vec::new();
    for (host, port) in [(one, 4000), (two, 4001)] {
        let socket = host.inside(|| Ok(UdpSocket::bind(("0.0.0.0", port))?))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send_to(b"x", &address)?;
        seen.push(at_server.recv_from(&mut [0])?.1);
        sockets.push(socket);
    }
    let ([from_one, from_two], [one, two]) = (seen.as_slice(), sockets.as_slice()) else {
        anyhow::bail!("two sockets")
    };
    ensure!(from_one.ip() == outer.outside() && from_two.ip() == outer.outside(), "{seen:?}");
    // Each has to send first: their own routers let nobody in uncalled.
    one.send_to(b"first", from_two)?;
    two.send_to(b"answer", from_one)?;
    let mut buffer = [0; 16];
    let (length, sender) = one.recv_from(&mut buffer)?;
    ensure!(buffer.get(..length) == Some(b"answer") && sender == *from_two, "{sender}");
    Ok(())
}

/// Whether a packet of a host arrives at a port that has only sent to another host.
fn stranger_gets_in(home: &Home) -> Result<bool> {
    let socket = home.inside.inside(|| Ok(UdpSocket::bind("0.0.0.0:5000")?))?;
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
    ensure!(arrived.contains(&b"friend".to_vec()), "not even the answer arrived");
    Ok(arrived.contains(&b"stranger".to_vec()))
}

fn a_router_that_blocks_udp_lets_tcp_out() -> Result<()> {
    let home = home(Nat::UdpBlocked)?;
    let listener = home.one.inside(|| Ok(TcpListener::bind("0.0.0.0:9")?))?;
    let to = SocketAddr::from((home.one.ip(), 9));
    home.inside.inside(|| Ok(TcpStream::connect_timeout(&to, SOON)?))?;
    listener.accept()?;
    let socket = home.inside.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let (one, at_one) = listen(&home.one, 9)?;
    at_one.set_read_timeout(Some(Duration::from_millis(300)))?;
    socket.send_to(b"x", one)?;
    ensure!(at_one.recv(&mut [0]).is_err(), "UDP got out");
    Ok(())
}
