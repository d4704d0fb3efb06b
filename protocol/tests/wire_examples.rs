//! The byte examples and tables of docs/protocol.md, each against the code: they pin the encoding, and the document.
//! The kinds of failure, which it leaves to docs/exit-codes.md, are compared too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use ed25519_dalek::SigningKey;
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::{ClusterId, FollowerId, Incarnation, MachineId, SessionId};
use malai_protocol::invite::Invite;
use malai_protocol::local::{self, Request, Response, SessionTarget};
use malai_protocol::peer::{self, Announce, Close, Gone, Hello, Knock, Open, Pull, Redeem, Resolve, Resolved};
use malai_protocol::seal::{Epoch, Proof, Seal};
use malai_protocol::session::{
    Ack, Attach, Attached, EndedBy, ExecSpec, ExitRecord, Output, Reached, Resend, Sent, Signal, Started, Status,
    StdinAck, StopOutput, Superseded,
};
use malai_protocol::sessions::{Kill, List, Listed, State, Summary, Wait};
use malai_protocol::snapshot::{HEADER_LEN, Signed, Snapshot};
use malai_protocol::ticket::Ticket;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::{ByteArray, ByteBuf};
use tokio_util::codec::Decoder;

const DOCUMENT: &str = include_str!("../../docs/protocol.md");
/// Kinds from here on never leave the machine, and the document only lists their numbers.
const EXECUTOR_KINDS: u8 = 0x80;
/// The config text of the example snapshot.
const TEXT: &str = "[cluster]\n";

/// The first three test vectors of RFC 8032, section 7.1: cluster, laptop, web01.
const SECRETS: [&str; 3] = [
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
];

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap_or_else(|e| panic!("{e} in {text}"))
}

fn shown(bytes: &[u8]) -> String {
    let lines = bytes.chunks(32).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

fn key(number: usize) -> SigningKey {
    SigningKey::from_bytes(&hex(SECRETS[number]).try_into().expect("32 bytes"))
}

fn cluster() -> ClusterId {
    ClusterId::from_bytes(key(0).verifying_key().to_bytes()).expect("a key")
}

fn snapshot() -> Snapshot {
    Snapshot::sign(&key(0), 1_767_225_600_000, 1_767_225_600_000, TEXT.into()).expect("signs")
}

/// The bytes of every ```` ```hex NAME ```` block; `#` begins a comment.
fn documented() -> BTreeMap<&'static str, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("```hex ") {
            let block = lines.by_ref().take_while(|line| !line.starts_with("```"));
            let digits: String = block.map(|line| line.split('#').next().unwrap_or_default()).collect();
            assert!(found.insert(name, hex(&digits)).is_none(), "two examples are named {name}");
        }
    }
    found
}

/// The cells of the table rows whose first cell is accepted.
fn rows(first: impl Fn(&str) -> bool) -> Vec<Vec<&'static str>> {
    let cells = |line: &'static str| line.strip_prefix("| ")?.strip_suffix(" |").map(|row| row.split(" | ").collect());
    DOCUMENT.lines().filter_map(cells).filter(|row: &Vec<&str>| first(row[0])).collect()
}

/// What the examples are made of, and those that were used.
struct Examples {
    documented: BTreeMap<&'static str, Vec<u8>>,
    used: BTreeSet<&'static str>,
    kinds: BTreeSet<u8>,
}

impl Examples {
    fn bytes(&mut self, name: &'static str) -> Vec<u8> {
        self.used.insert(name);
        self.documented.get(name).unwrap_or_else(|| panic!("docs/protocol.md has no example {name}")).clone()
    }

    /// These bytes are what the code writes.
    fn is(&mut self, name: &'static str, wanted: &[u8]) {
        let bytes = self.bytes(name);
        assert!(bytes == wanted, "example {name} of docs/protocol.md has to be:\n{}", shown(wanted));
    }

    fn frame(&mut self, name: &'static str, frame: &Frame) {
        self.is(name, &frame.to_bytes());
        let mut bytes = BytesMut::from(&self.bytes(name)[..]);
        assert_eq!(FrameCodec::new().decode(&mut bytes).expect(name).as_ref(), Some(frame), "{name}");
        assert!(bytes.is_empty(), "{name}: one frame");
        self.kinds.insert(frame.kind as u8);
    }

    /// These bytes are what the code writes for this value, and it reads them back.
    fn control<T>(&mut self, name: &'static str, kind: Kind, value: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let frame = Frame::control(kind, value).expect(name);
        self.frame(name, &frame);
        assert_eq!(&frame.decode::<T>().expect(name), value, "{name}");
    }

    /// The code reads these bytes as this value, although it would write others.
    fn reads_as<T>(&mut self, name: &'static str, kind: Kind, value: &T)
    where
        T: DeserializeOwned + PartialEq + Debug,
    {
        let mut bytes = BytesMut::from(&self.bytes(name)[..]);
        let frame = FrameCodec::new().decode(&mut bytes).expect(name).expect(name);
        assert_eq!(frame.kind, kind, "{name}");
        assert_eq!(&frame.decode::<T>().expect(name), value, "{name}");
    }

    fn empty(&mut self, name: &'static str, kind: Kind) {
        self.frame(name, &Frame::empty(kind));
    }

    fn data(&mut self, name: &'static str, kind: Kind, bytes: &'static [u8]) {
        self.frame(name, &Frame::data(kind, Bytes::from_static(bytes)));
    }
}

fn words(words: &[&str]) -> Vec<ByteBuf> {
    words.iter().map(|word| ByteBuf::from(word.as_bytes())).collect()
}

fn exec() -> ExecSpec {
    ExecSpec {
        id: SessionId::from_bytes(std::array::from_fn(|i| i as u8)),
        words: words(&["uptime"]),
        literal: true,
        shell: false,
        env: Vec::new(),
        cwd: None,
        user: None,
        stdin: false,
        timeout_ms: None,
        wait_output: false,
        reason: None,
        follower: None,
        resend: None,
        kill_on_lost: false,
        detach: false,
        needs: Vec::new(),
    }
}

fn follower() -> FollowerId {
    FollowerId::from_bytes([0xcc; 16])
}

fn local_socket(examples: &mut Examples) {
    let hello = local::Hello { version: local::VERSION, malai: "0.1.0".into(), pid: 4242, agent: false };
    examples.control("local-hello", Kind::LocalHello, &hello);
    let target = SessionTarget {
        machine: "web01".into(),
        cluster: Some("company".into()),
        connect_timeout_ms: 10_000,
        gone_timeout_ms: None,
        wait: false,
        attachment: None,
    };
    examples.control("request-session", Kind::Request, &Request::Session(target));
    examples.control("request-status", Kind::Request, &Request::Status);
    examples.control("request-probe", Kind::Request, &Request::Probe);
    let pending = Request::ClusterPending { cluster: "company".into() };
    examples.control("request-cluster-pending", Kind::Request, &pending);
    let waits = "waiting for the cluster manager of company";
    examples.control("response-progress", Kind::Response, &Response::Progress(waits.into()));
    examples.control("response-done", Kind::Response, &Response::Done);
    let failure = Failure::new(FailureKind::Conflict, "the name web01 is taken").hint("choose another with --name");
    examples.control("response-failed", Kind::Response, &Response::Failed(failure));
}

fn session_from_the_caller(examples: &mut Examples) {
    examples.control("exec", Kind::Exec, &exec());
    let full = ExecSpec {
        words: words(&["cat", "/etc/motd"]),
        env: vec![(ByteBuf::from("LANG"), ByteBuf::from("C"))],
        cwd: Some(ByteBuf::from("/srv")),
        user: Some("deploy".into()),
        stdin: true,
        timeout_ms: Some(5000),
        reason: Some("release 7".into()),
        ..exec()
    };
    examples.control("exec-full", Kind::Exec, &full);
    examples.reads_as("exec-minimal", Kind::Exec, &ExecSpec { literal: false, ..exec() });
    let again = Resend { number: 2, met: Some(Incarnation::from_bytes([0xaa; 16])), since_ms: 1500 };
    examples.control("exec-again", Kind::Exec, &ExecSpec { follower: Some(follower()), resend: Some(again), ..exec() });
    let attach = Attach {
        owner: None,
        id: exec().id,
        follower: follower(),
        number: 3,
        out_offset: 65_536,
        binding: true,
        take_over: false,
        from_end: false,
        or_watch: false,
    };
    examples.control("attach", Kind::Attach, &attach);
    let owner = MachineId::from_bytes(key(1).verifying_key().to_bytes()).expect("a key");
    let other = Attach { owner: Some(owner), number: 1, out_offset: 0, binding: false, take_over: true, ..attach };
    examples.control("attach-other", Kind::Attach, &Attach { or_watch: true, ..other });
    examples.data("stdin", Kind::Stdin, b"hi\n");
    examples.empty("stdin-eof", Kind::StdinEof);
    examples.control("signal", Kind::Signal, &Signal { number: 15, order: 0 });
    examples.control("ack", Kind::Ack, &Ack { out_offset: 65_536 });
    examples.control("stop-output", Kind::StopOutput, &StopOutput { stream: Output::Stdout });
    examples.empty("goodbye", Kind::Goodbye);
}

fn questions(examples: &mut Examples) {
    let laptop = MachineId::from_bytes(key(1).verifying_key().to_bytes()).expect("a key");
    examples.control("list", Kind::List, &List {});
    let summary = Summary {
        owner: laptop,
        id: exec().id,
        command: "make all".into(),
        detached: true,
        user: Some("deploy".into()),
        since_ms: 1_767_225_600_000,
        state: State::Running,
    };
    examples.control("listed", Kind::Listed, &Listed { sessions: vec![summary.clone()], more: false });
    let record = ExitRecord {
        status: Status::Exited { code: 2 },
        ended_by: EndedBy::Itself,
        stdout_bytes: 70_000,
        stderr_bytes: 12,
        duration_ms: 61_000,
        output_open: false,
        reason: None,
        left: 0,
    };
    let over = Summary { user: None, state: State::Ended(record), ..summary };
    examples.control("listed-ended", Kind::Listed, &Listed { sessions: vec![over], more: true });
    examples.control("wait", Kind::Wait, &Wait { owner: None, id: exec().id });
    examples.control("kill", Kind::Kill, &Kill { owner: Some(laptop), id: exec().id, signal: Some(1) });
    examples.empty("killed", Kind::Killed);
}

fn session_from_the_target(examples: &mut Examples) {
    let denied = Failure::new(FailureKind::Denied, "`web01` is not in `allow_from` of [defaults]")
        .hint("in cluster.toml on `laptop`, under [machine.laptop]: allow_from = [\"admins\", \"web01\"]");
    examples.control("refused", Kind::Refused, &denied);
    let started = Started {
        incarnation: Incarnation::from_bytes([0xaa; 16]),
        hostname: "web01".into(),
        pid: 1234,
        user: "deploy".into(),
        grace_ms: None,
    };
    examples.control("started", Kind::Started, &started);
    let attached = Attached {
        incarnation: started.incarnation,
        started: Some(started),
        out_offset: 65_536,
        stdin_offset: 3,
        credit: 262_147,
        stdin_closed: false,
        watches: false,
    };
    examples.control("attached", Kind::Attached, &attached);
    let watching = Attached { started: None, out_offset: 0, stdin_closed: true, watches: true, ..attached.clone() };
    examples.control("attached-watches", Kind::Attached, &watching);
    let web01 = MachineId::from_bytes(key(2).verifying_key().to_bytes()).expect("a key");
    examples.control("superseded", Kind::Superseded, &Superseded { by: web01, follower: follower() });
    examples.control("sent", Kind::Sent, &Sent { met: Some(attached.incarnation), reached: None });
    let reached = Reached { path: "direct 192.0.2.7:4001".into(), rtt_us: 1200, found_by: Some("mdns".into()) };
    let sent = Sent { met: Some(attached.incarnation), reached: Some(reached) };
    examples.control("sent-reached", Kind::Sent, &sent);
    examples.data("stdout", Kind::Stdout, b"hi\n");
    examples.data("stderr", Kind::Stderr, b"oh\n");
    examples.control("stdin-ack", Kind::StdinAck, &StdinAck { offset: 65_536, credit: 327_680 });
    examples.empty("stdin-closed", Kind::StdinClosed);
    let record = ExitRecord {
        status: Status::Exited { code: 0 },
        ended_by: EndedBy::Itself,
        stdout_bytes: 3,
        stderr_bytes: 0,
        duration_ms: 12,
        output_open: false,
        reason: None,
        left: 0,
    };
    examples.control("exit", Kind::Exit, &record);
    let revoked = ExitRecord {
        status: Status::Signalled { signal: 15, core: false },
        ended_by: EndedBy::Revoked,
        reason: Some("`laptop` is not in `allow_from` of [machine.web01]".into()),
        ..record
    };
    examples.control("exit-revoked", Kind::Exit, &revoked);
}

fn between_machines(examples: &mut Examples) {
    let header = snapshot().signed_header().clone();
    let hello = Hello {
        version: peer::VERSION,
        needs: Vec::new(),
        header: Some(header.clone()),
        addresses: vec!["192.0.2.7:4001".into()],
        caller_only: false,
        boot: Some(Incarnation::from_bytes([0xbb; 16])),
        executor: None,
        malai: "0.1.0".into(),
        clock_ms: None,
        enforced: None,
        epoch: None,
    };
    examples.control("peer-hello", Kind::PeerHello, &hello);
    let clock =
        Hello { header: None, addresses: Vec::new(), boot: None, clock_ms: Some(1_767_225_600_000), ..hello.clone() };
    examples.control("peer-hello-clock", Kind::PeerHello, &clock);
    let epoch = Some(Epoch { number: 1, key: ByteArray::new([0xee; 32]) });
    let enforced = Some(1_767_225_600_000);
    let full = Hello { header: None, addresses: Vec::new(), boot: None, enforced, epoch, ..hello };
    examples.control("peer-hello-enforced", Kind::PeerHello, &full);
    examples.control("announce", Kind::Announce, &Announce::of(header.clone()));
    let full = Announce { enforced, epoch, ..Announce::of(header) };
    examples.control("announce-enforced", Kind::Announce, &full);
    examples.control("open", Kind::Open, &Open { cluster: cluster(), generation: 1_767_225_600_000 });
    examples.control("pull", Kind::Pull, &Pull { generation: 1_767_225_600_000 });
    examples.control("snapshot", Kind::Snapshot, &snapshot().to_signed());
    examples.empty("ping", Kind::Ping);
    let gone = Gone { owner: None, id: exec().id, follower: follower(), number: 3 };
    examples.control("gone", Kind::Gone, &gone);
    examples.empty("pong", Kind::Pong);
    let web01 = MachineId::from_bytes(key(2).verifying_key().to_bytes()).expect("a key");
    let laptop = MachineId::from_bytes(key(1).verifying_key().to_bytes()).expect("a key");
    examples.control("resolve", Kind::Resolve, &Resolve { machine: web01, hops: 1 });
    let resolved = Resolved { addresses: vec!["192.0.2.7:4001".into()], said_by: Some(laptop), heard_ms_ago: 1500 };
    examples.control("resolved", Kind::Resolved, &resolved);
    examples.control("resolved-unknown", Kind::Resolved, &Resolved::default());
}

fn seals(examples: &mut Examples) {
    let seal = Seal {
        cluster: cluster(),
        target: MachineId::from_bytes(key(2).verifying_key().to_bytes()).expect("a key"),
        epoch: 1,
        nonce: ByteArray::new([0xdd; 16]),
        header: snapshot().signed_header().clone(),
        ephemeral: ByteArray::new([0xef; 32]),
        first: ByteArray::new([0xf0; 32]),
        signature: ByteArray::new([0xf1; 64]),
    };
    examples.control("seal", Kind::Seal, &seal);
    examples.control("proof", Kind::Proof, &Proof { bytes: 65_536, hash: ByteArray::new([0xf2; 32]) });
}

fn joining(examples: &mut Examples) {
    let redeem = Redeem { version: peer::VERSION, secret: ByteArray::new([0x5a; 32]), hostname: "web01".into() };
    examples.control("redeem", Kind::Redeem, &redeem);
    examples.control("knock", Kind::Knock, &Knock { version: peer::VERSION, hostname: "web01".into() });
    examples.empty("waiting", Kind::Waiting);
}

#[test]
fn every_example_is_what_the_code_writes_and_reads() {
    let mut examples = Examples { documented: documented(), used: BTreeSet::new(), kinds: BTreeSet::new() };
    local_socket(&mut examples);
    session_from_the_caller(&mut examples);
    session_from_the_target(&mut examples);
    questions(&mut examples);
    between_machines(&mut examples);
    seals(&mut examples);
    joining(&mut examples);

    let signed = snapshot().to_signed();
    let mut cbor = Vec::new();
    ciborium::into_writer(&signed, &mut cbor).expect("encodes");
    let header = snapshot().header().to_bytes();
    assert_eq!(header.len(), HEADER_LEN);
    assert!(cbor.windows(HEADER_LEN).any(|window| window == header), "the header travels as it is signed");
    examples.is("snapshot-header", &header);

    let all: BTreeSet<_> = examples.documented.keys().copied().collect();
    assert_eq!(all, examples.used, "examples that nothing checks");
    let without: Vec<_> =
        Kind::ALL.iter().filter(|k| (**k as u8) < EXECUTOR_KINDS && !examples.kinds.contains(&(**k as u8))).collect();
    assert!(without.is_empty(), "kinds without an example: {without:?}");
}

#[test]
fn the_example_snapshot_verifies_against_the_cluster_key() {
    let bytes = documented().remove("snapshot").expect("an example");
    let frame = FrameCodec::new().decode(&mut BytesMut::from(&bytes[..])).expect("a frame").expect("whole");
    let signed: Signed = frame.decode().expect("decodes");
    assert_eq!(signed.verify(&cluster()).expect("verifies").text(), TEXT);
}

#[test]
fn the_examples_keys_have_the_documented_id52() {
    for number in 0..3 {
        let id = MachineId::from_bytes(key(number).verifying_key().to_bytes()).expect("a key").to_string();
        assert!(DOCUMENT.contains(&id), "docs/protocol.md does not name {id}");
    }
}

#[test]
fn the_example_token_is_what_the_code_writes_and_reads() {
    let invite = Invite {
        cluster: cluster(),
        name: "company".into(),
        secret: ByteArray::new([0x5a; 32]),
        expires_ms: 1_767_229_200_000,
        addresses: vec!["192.0.2.1:4002".into()],
        relays: Some(Vec::new()),
        discovery: None,
        ca: None,
        pinned: Vec::new(),
        ticket: None,
    };
    let token = invite.to_token();
    assert!(DOCUMENT.lines().any(|line| line == token), "docs/protocol.md needs this token:\n{token}");
    assert_eq!(token.parse(), Ok(invite));
}

#[test]
fn the_example_ticket_is_what_the_code_writes_and_reads() {
    let ticket = Ticket::sign(&key(0), 1_767_229_200_000, [0x5a; 16]).expect("signs");
    let text = ticket.to_text();
    assert!(DOCUMENT.lines().any(|line| line == text), "docs/protocol.md needs this ticket:\n{text}");
    assert_eq!(Ticket::from_text(&text), Ok(ticket));
}

#[test]
fn the_table_of_kinds_has_every_kind_with_its_number_and_cap() {
    let size = |cap: usize| match (cap / 1024, cap % 1024) {
        (0, 0) => "0".to_owned(),
        (kib, 0) if kib % 1024 == 0 => format!("{} MiB", kib / 1024),
        (kib, 0) if kib < 1024 => format!("{kib} KiB"),
        (kib, 0) => format!("{} MiB + {} KiB", kib / 1024, kib % 1024),
        _ => format!("{cap}"),
    };
    let wanted: Vec<Vec<String>> = Kind::ALL
        .iter()
        .filter(|kind| (**kind as u8) < EXECUTOR_KINDS)
        .map(|kind| vec![format!("`{:#04x}`", *kind as u8), format!("`{kind:?}`"), size(kind.cap())])
        .collect();
    let written: Vec<Vec<&str>> = rows(|first| first.starts_with("`0x") && first.len() == 6);
    let written: Vec<Vec<&str>> = written.into_iter().map(|row| row[..3].to_vec()).collect();
    assert_eq!(written, wanted);
    let last = Kind::ALL.iter().map(|kind| *kind as u8).max().expect("kinds");
    assert!(DOCUMENT.contains(&format!("`{EXECUTOR_KINDS:#04x}` to `{last:#04x}`")), "up to {last:#04x}");
}

#[test]
fn the_table_of_close_codes_has_every_code() {
    let written = rows(|first| first.parse::<u64>().is_ok());
    for (number, row) in written.iter().enumerate() {
        let code = Close::from_number(number as u64).expect("a code");
        assert_eq!(row[..2], [number.to_string(), format!("`{code:?}`")]);
    }
    assert_eq!(Close::from_number(written.len() as u64), None);
}

#[test]
fn the_table_of_reset_codes_has_every_code() {
    let named =
        [("CALLER_GONE", peer::RESET_CALLER_GONE), ("LOST", peer::RESET_LOST), ("PROTOCOL", peer::RESET_PROTOCOL)];
    for (name, number) in named {
        assert!(DOCUMENT.contains(&format!("| {name} | `{number:#04x}` |")), "{name}");
    }
}

#[test]
fn the_table_of_failures_has_names_and_exit_codes_as_the_code_has_them() {
    let table = include_str!("../../docs/exit-codes.md");
    let cells = |line: &'static str| line.strip_prefix("| `")?.split_once("` | ");
    let mut count = 0;
    for (name, rest) in table.lines().filter_map(cells) {
        let Some(code) = rest.split(' ').next().and_then(|code| code.parse::<u8>().ok()) else { continue };
        let frame = Frame::control(Kind::Refused, &BTreeMap::from([("kind", name), ("message", "")])).expect("fits");
        let kind = frame.decode::<Failure>().expect("a failure").kind;
        assert_eq!((kind.name(), kind.exit_code()), (name, code));
        count += 1;
    }
    assert!(count >= 17, "{count} kinds of failure are listed");
}

/// The document says so of all numbers, since some libraries write a large one as a float.
#[test]
fn a_number_is_read_in_any_length_and_a_float_or_a_tagged_key_is_not() {
    let frame = |payload: &str| Frame { kind: Kind::Pull, payload: Bytes::from(hex(payload)) };
    let generation = "a1 6a 67656e65726174696f6e";
    for long in ["05", "1805", "190005", "1a00000005", "1b0000000000000005"] {
        assert_eq!(frame(&format!("{generation} {long}")).decode::<Pull>().expect(long), Pull { generation: 5 });
    }
    for float in ["f94500", "fa40a00000", "fb4014000000000000"] {
        assert!(frame(&format!("{generation} {float}")).decode::<Pull>().is_err(), "{float}");
    }
    // A map and its texts may have their lengths in a longer form, too.
    let long = frame("b90001 790 00a 67656e65726174696f6e 05");
    assert_eq!(long.decode::<Pull>().expect("lengths"), Pull { generation: 5 });
}
