//! Names for unit tests.

use malai_protocol::id::{ClusterId, MachineId, SessionId};
use malai_protocol::plan::{Decided, Live, Plan, SessionName};

/// The public key of RFC 8032's first test.
const KEY: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e, 0xe1, 0x72,
    0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

/// A session of this number.
pub(crate) fn session(number: u8) -> SessionName {
    let caller = MachineId::from_bytes(KEY).expect("a key");
    SessionName { caller, id: SessionId::from_bytes([number; 16]) }
}

/// The public key of RFC 8032's second test.
const OTHER: [u8; 32] = [
    0x3d, 0x40, 0x17, 0xc3, 0xe8, 0x43, 0x89, 0x5a, 0x92, 0xb7, 0x0a, 0xa7, 0x4d, 0x1b, 0x7e, 0xbc, 0x9c, 0x98, 0x2c,
    0xcf, 0x2e, 0xc4, 0x96, 0x8c, 0xc0, 0xcd, 0x55, 0xf1, 0x2a, 0xf4, 0x66, 0x0c,
];

/// The same of another caller.
pub(crate) fn other(number: u8) -> SessionName {
    SessionName { caller: MachineId::from_bytes(OTHER).expect("a key"), ..session(number) }
}

/// A live session of this number.
pub(crate) fn live(number: u8) -> Live {
    let request = Decided {
        words: vec![b"true".to_vec().into()],
        literal: true,
        shell: false,
        user: None,
        env_names: Vec::new(),
        named: None,
        named_words: None,
        run_as: None,
        reason: None,
        since_ms: 1,
        detached: false,
        audit: None,
    };
    Live { session: session(number), cluster: ClusterId::from_bytes(KEY).expect("a key"), request }
}

/// A plan for it.
pub(crate) fn plan_of(live: Live) -> Plan {
    let Live { session, cluster, request } = live;
    Plan {
        session,
        cluster,
        argv: request.words.clone(),
        shell: false,
        user: None,
        env: Vec::new(),
        cwd: None,
        stdin: false,
        timeout_ms: None,
        wait_output: false,
        resend: None,
        grace_ms: 60_000,
        kill_on_lost: false,
        request,
    }
}
