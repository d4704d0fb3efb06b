//! What each fuzz target does with its input. Any input may come: a target fails only by a panic or by a broken
//! promise of the decoder, and tells whether it understood the input. `protocol/tests/corpus.rs` runs the same functions
//! over the kept corpus.

use bytes::BytesMut;
use malai_protocol::codec::{Frame, FrameCodec, HEADER_LEN, Kind};
use malai_protocol::config::{Config, MAX_PROBLEMS, Name, edit};
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::invite::Invite;
use malai_protocol::scan::{Direction, Scanner};
use malai_protocol::snapshot::Signed;
use malai_protocol::target::Target;
use malai_protocol::ticket::{TEXT_LEN, Ticket};
use malai_protocol::{failure, local, peer, plan, seal, session, sessions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::Decoder;

/// A byte stream, cut at a place that its first byte chooses: frames are within their caps and encode to the bytes that
/// they came from, and the scanner of the daemons in the middle lets nothing pass that the ends would not read.
pub fn frame(data: &[u8]) -> bool {
    let Some((cut, stream)) = data.split_first() else { return false };
    let parts = stream.split_at(usize::from(*cut).min(stream.len()));
    let decoded = decode(parts);
    for direction in [Direction::ToTarget, Direction::ToCaller] {
        let mut scanner = Scanner::new(direction);
        if scanner.feed(parts.0).and_then(|()| scanner.feed(parts.1)).is_ok() {
            let frames = decoded.as_ref().expect("the codec reads what the scanner lets pass");
            assert!(frames.iter().all(|frame| direction.allows(frame.kind)));
            assert_eq!(scanner.at_boundary(), bytes_of(frames) == stream);
        }
    }
    match decoded {
        Some(frames) => {
            assert!(stream.starts_with(&bytes_of(&frames)));
            bytes_of(&frames) == stream
        }
        None => false,
    }
}

/// The whole frames of a stream; None when it is refused.
fn decode(parts: (&[u8], &[u8])) -> Option<Vec<Frame>> {
    let (mut codec, mut source, mut frames) = (FrameCodec::new(), BytesMut::new(), Vec::new());
    for part in [parts.0, parts.1] {
        source.extend_from_slice(part);
        while let Some(frame) = codec.decode(&mut source).ok()? {
            assert!(frame.payload.len() <= frame.kind.cap());
            frames.push(frame);
        }
        // A decoder reserves what the next frame may have, and no more.
        let next = source.first().and_then(|number| Kind::from_number(*number)).map_or(0, Kind::cap);
        assert!(source.capacity() <= 2 * (parts.0.len() + parts.1.len() + HEADER_LEN + next));
    }
    Some(frames)
}

fn bytes_of(frames: &[Frame]) -> BytesMut {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| frame.write_to(&mut bytes));
    bytes
}

/// A control frame of the kind that the first byte names: what decodes encodes again, to a value that is the same.
pub fn control(data: &[u8]) -> bool {
    let Some((number, payload)) = data.split_first() else { return false };
    let Some(kind) = Kind::from_number(*number) else { return false };
    let frame = Frame { kind, payload: payload.to_vec().into() };
    match kind {
        Kind::Open => same::<peer::Open>(&frame),
        Kind::Exec => same::<session::ExecSpec>(&frame),
        Kind::Attach => same::<session::Attach>(&frame),
        Kind::List => same::<sessions::List>(&frame),
        Kind::Wait => same::<sessions::Wait>(&frame),
        Kind::Kill => same::<sessions::Kill>(&frame),
        Kind::Seal => same::<seal::Seal>(&frame),
        Kind::Proof => same::<seal::Proof>(&frame),
        Kind::Listed => same::<sessions::Listed>(&frame),
        Kind::Inventory => same::<plan::Inventory>(&frame),
        Kind::Retired => same::<plan::Retired>(&frame),
        Kind::Faults => same::<plan::Faults>(&frame),
        Kind::Signal => same::<session::Signal>(&frame),
        Kind::Ack => same::<session::Ack>(&frame),
        Kind::StopOutput => same::<session::StopOutput>(&frame),
        Kind::Refused => same::<failure::Failure>(&frame),
        Kind::Started => same::<session::Started>(&frame),
        Kind::Attached => same::<session::Attached>(&frame),
        Kind::Superseded => same::<session::Superseded>(&frame),
        Kind::Sent => same::<session::Sent>(&frame),
        Kind::StdinAck => same::<session::StdinAck>(&frame),
        Kind::Exit => same::<session::ExitRecord>(&frame),
        Kind::PeerHello => same::<peer::Hello>(&frame),
        Kind::Announce => same::<peer::Announce>(&frame),
        Kind::Pull => same::<peer::Pull>(&frame),
        Kind::Snapshot => same::<Signed>(&frame),
        Kind::Gone => same::<peer::Gone>(&frame),
        Kind::Resolve => same::<peer::Resolve>(&frame),
        Kind::Resolved => same::<peer::Resolved>(&frame),
        Kind::Redeem => same::<peer::Redeem>(&frame),
        Kind::Knock => same::<peer::Knock>(&frame),
        Kind::LocalHello => same::<local::Hello>(&frame),
        Kind::Request => same::<local::Request>(&frame),
        Kind::Response => same::<local::Response>(&frame),
        Kind::ExecutorHello => same::<plan::Hello>(&frame),
        Kind::Plan => same::<plan::Plan>(&frame),
        Kind::CallerGone => same::<plan::CallerGone>(&frame),
        Kind::End => same::<plan::End>(&frame),
        Kind::Sessions => same::<plan::Sessions>(&frame),
        Kind::Ended => same::<plan::Ended>(&frame),
        Kind::Audited => same::<plan::Audited>(&frame),
        Kind::Shutdown => same::<plan::Shutdown>(&frame),
        Kind::Stdin | Kind::Stdout | Kind::Stderr => false,
        Kind::StdinEof
        | Kind::Goodbye
        | Kind::StdinClosed
        | Kind::Waiting
        | Kind::Ping
        | Kind::Pong
        | Kind::Missing
        | Kind::Killed => false,
    }
}

fn same<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(frame: &Frame) -> bool {
    let Ok(value) = frame.decode::<T>() else { return false };
    // The input may be over the kind's cap here, and so may be what it encodes to.
    let Ok(again) = Frame::control(frame.kind, &value) else { return false };
    let decoded: T = again.decode().expect("what was encoded decodes");
    assert_eq!(decoded, value);
    true
}

/// A stored or received snapshot: none verifies that the cluster's key did not sign.
pub fn snapshot(data: &[u8]) -> bool {
    let frame = Frame { kind: Kind::Snapshot, payload: data.to_vec().into() };
    let Ok(signed) = frame.decode::<Signed>() else { return false };
    let Ok(snapshot) = signed.clone().verify(&cluster()) else { return false };
    assert_eq!(snapshot.to_signed(), signed);
    assert_eq!(snapshot.header().length, snapshot.text().len() as u64);
    true
}

/// A token: what parses is written to a token that means the same.
pub fn invite(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(invite) = text.parse::<Invite>() else { return false };
    assert_eq!(invite.to_token().parse(), Ok(invite));
    true
}

/// A relay ticket: what parses is written as it was, and does not show itself.
pub fn ticket(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(ticket) = Ticket::from_text(text) else { return false };
    assert_eq!((ticket.to_text().as_str(), text.len()), (text, TEXT_LEN));
    assert_eq!(format!("{ticket:?}"), "Ticket(…)");
    true
}

/// A target: what parses is written as it was, and what does not is refused in few words, for a terminal.
pub fn target(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match text.parse::<Target>() {
        Ok(target) => {
            assert_eq!(target.to_string(), text);
            assert_eq!(target.to_string().parse(), Ok(target));
            true
        }
        Err(failure) => {
            assert!(failure.message.len() < 2048, "{}", failure.message.len());
            assert!(!failure.message.contains(char::is_control));
            false
        }
    }
}

/// A config: the manager's reading and the members' agree, problems lie within the text, and malai's own edits of a
/// config in order can be undone.
pub fn config(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match Config::check(text) {
        Ok(config) => {
            assert_eq!(Config::read(text), Ok(config.clone()));
            assert!(config.machines.keys().all(|name| config.blocked(name).is_none()));
            edits(text, &config);
            true
        }
        Err(problems) => {
            assert!(!problems.is_empty() && problems.len() <= MAX_PROBLEMS && problems.is_sorted());
            let lines = text.matches('\n').count() + 1;
            assert!(problems.iter().all(|p| (1..=lines).contains(&p.line) && p.column >= 1), "{problems:?}");
            false
        }
    }
}

fn edits(text: &str, config: &Config) {
    let name: Name = "new-machine".parse().expect("a name");
    let id = MachineId::from_bytes(*cluster().as_bytes()).expect("a key");
    let groups = config.groups.keys().take(2).cloned().collect();
    let new = edit::NewMachine { name: name.clone(), id, groups, username: Some("deploy".into()) };
    if let Ok(more) = edit::add_machine(text, &new) {
        let less = edit::remove_machine(&more, &name).expect("what was added can be removed");
        assert_eq!(Config::check(&less).as_ref(), Ok(config));
    }
}

/// The cluster whose snapshots the corpus has; its secret key is 32 times 9.
fn cluster() -> ClusterId {
    "vkbi8e2qk33lmp7rf36m0bt1r68vrqvndc9sb3mn0blcgdf9uoc0".parse().expect("a cluster's id52")
}
