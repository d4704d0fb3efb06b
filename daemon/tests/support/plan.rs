//! Plans, as a daemon sends them to an executor.

use malai_protocol::id::{ClusterId, MachineId, SessionId};
use malai_protocol::plan::{Decided, Plan, SessionName};
use serde_bytes::ByteBuf;

/// The public key of RFC 8032's first test: a caller, and a cluster.
const KEY: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e, 0xe1, 0x72,
    0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

/// A plan with a new id.
pub(crate) fn plan(argv: &[&str]) -> Plan {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("random");
    let words: Vec<ByteBuf> = argv.iter().map(|word| ByteBuf::from(word.as_bytes())).collect();
    Plan {
        session: SessionName { caller: MachineId::from_bytes(KEY).expect("a key"), id: SessionId::from_bytes(id) },
        cluster: ClusterId::from_bytes(KEY).expect("a key"),
        argv: words.clone(),
        shell: false,
        user: None,
        env: Vec::new(),
        cwd: None,
        stdin: false,
        timeout_ms: None,
        wait_output: false,
        resend: None,
        grace_ms: 0,
        kill_on_lost: true,
        request: Decided {
            words,
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
        },
    }
}
