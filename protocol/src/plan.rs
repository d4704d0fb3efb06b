//! Daemon to executor. The daemon has decided; the executor does as the plan says and asks nobody.
//!
//! An executor's socket begins with one [`Hello`] frame. On the control connection, of which the newest counts, the
//! daemon sends `Plan`, `CallerGone`, `End`, `Audited`, `Shutdown`, and the executor first `Sessions`, then `Ended`.
//! On an attachment's connection the frames of the session follow, in both directions. Any other question has its
//! connection to itself.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::id::{ClusterId, FollowerId, Incarnation, MachineId, SessionId};
use crate::local::LostLines;
pub use crate::local::Tree;
use crate::session::{EndedBy, ExitRecord, Resend};
use crate::sessions::Summary;

/// A session's full name: ids are chosen by callers, so only the pair is unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionName {
    /// The key whose connection the request came over.
    pub caller: MachineId,
    /// The id that the caller chose.
    pub id: SessionId,
}

/// What a connection to the executor is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hello {
    /// The daemon's own connection; a newer one replaces it.
    Control {
        /// The version of this protocol that the daemon speaks.
        version: u32,
    },
    /// The attachment that a plan comes with; the plan may arrive after it.
    Attach(Attachment),
    /// An attachment to a session that is there already. Answered by `Attached`, `Refused`, or `Missing`.
    Resume {
        /// Which session, and as whom.
        attachment: Attachment,
        /// Output up to here was written out by the follower.
        out_offset: u64,
        /// Only output that comes from now on is wanted.
        #[serde(default)]
        from_end: bool,
        /// It may take the place of another follower.
        #[serde(default)]
        take_over: bool,
        /// For a request that was sent again: whether this executor may answer `Missing`, so that it is run.
        #[serde(default)]
        resend: Option<Resend>,
    },
    /// Which sessions are there? Answered by `Inventory`, once or more.
    List,
    /// Leave, if there is nothing to come back for. Answered by `Retired`.
    Retire,
    /// How many faults were there? Answered by `Faults`.
    Faults,
    /// Waits until a session is over: answered by `Exit`, `Refused`, or `Missing`.
    Wait {
        /// Which.
        session: SessionName,
    },
    /// Signals a session's command, or ends the session: answered by `Killed`, or by what `Wait` is.
    Kill {
        /// Which.
        session: SessionName,
        /// The signal, by its number on Linux; absent = end it.
        signal: Option<u8>,
        /// For the record, in words.
        reason: String,
    },
}

/// Who follows a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Which session.
    pub session: SessionName,
    /// The key of the machine whence it is followed.
    pub by: MachineId,
    /// The process that follows; absent = one that never attaches again.
    #[serde(default)]
    pub follower: Option<FollowerId>,
    /// Counts this follower's attachments to this session, from 1.
    pub number: u32,
    /// The follower's going away ends the session.
    pub binding: bool,
    /// It only watches: it comes where nobody follows and nobody is waited for, and any that does more takes its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watches: bool,
}

/// What runs: all of it decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The session.
    pub session: SessionName,
    /// The cluster by whose config it was allowed.
    pub cluster: ClusterId,
    /// Program and arguments, exact.
    pub argv: Vec<ByteBuf>,
    /// The one word of `argv` is run by the user's login shell with `-c`.
    #[serde(default)]
    pub shell: bool,
    /// The user to run as; absent = the executor's own.
    #[serde(default)]
    pub user: Option<String>,
    /// Additions to the environment that the config allows.
    #[serde(default)]
    pub env: Vec<(ByteBuf, ByteBuf)>,
    /// The working directory; absent = the user's home.
    #[serde(default)]
    pub cwd: Option<ByteBuf>,
    /// Whether standard input follows; otherwise /dev/null.
    #[serde(default)]
    pub stdin: bool,
    /// Killed after so many milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Wait for every holder of the output pipes.
    #[serde(default)]
    pub wait_output: bool,
    /// The request was sent before: the executor decides by it whether it may run, in one step with taking the id.
    #[serde(default)]
    pub resend: Option<Resend>,
    /// How long the session waits for its caller to come back, in milliseconds.
    pub grace_ms: u64,
    /// It does not wait at all.
    #[serde(default)]
    pub kill_on_lost: bool,
    /// The request as it was decided, kept for deciding it anew and for the audit.
    pub request: Decided,
}

/// What was asked and granted, in the words that a later decision and the audit need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The words that the caller sent.
    pub words: Vec<ByteBuf>,
    /// Whether they were literal.
    pub literal: bool,
    /// Whether the one word was for the user's shell.
    pub shell: bool,
    /// The user that the caller named.
    pub user: Option<String>,
    /// Names of the environment additions.
    pub env_names: Vec<String>,
    /// The named command that was granted, if one was.
    pub named: Option<String>,
    /// The hash of the words that the named command had ([`crate::access::Grant::named_words`]); absent = none was named,
    /// or an older daemon decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_words: Option<ByteBuf>,
    /// The user that was granted; absent = the daemon's own.
    pub run_as: Option<String>,
    /// The caller's reason.
    pub reason: Option<String>,
    /// When the daemon took the request, milliseconds since the epoch.
    pub since_ms: u64,
    /// It waits for nobody, and its output goes to the disk.
    #[serde(default)]
    pub detached: bool,
    /// What its lines of the audit name: they are written when its cluster is served no more, too. Absent from a request
    /// that was not granted, and in an executor's memory from a session that an older daemon planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditNames>,
}

/// The names in a session's lines of the audit, as they were when it was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditNames {
    /// The alias of the cluster.
    pub cluster: String,
    /// The caller's name in the config.
    pub who: Option<String>,
    /// The user that the command runs as.
    pub user: String,
}

/// The caller of an attachment went away for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerGone {
    /// Which session.
    pub session: SessionName,
    /// Whose attachment.
    #[serde(default)]
    pub follower: Option<FollowerId>,
    /// Its number; it counts only if that is, or was last, the current one and binding.
    pub number: u32,
}

/// End a session: its whole tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Which session.
    pub session: SessionName,
    /// Why; goes to the record.
    pub cause: EndedBy,
    /// The same in words for the caller.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Everything that the executor has, sent first on a control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// The version of this protocol that the executor speaks.
    pub version: u32,
    /// This life of the executor.
    pub incarnation: Incarnation,
    /// How a session's processes are found when it ends.
    pub tree: Tree,
    /// Live sessions.
    pub live: Vec<Live>,
    /// Ended sessions whose end the daemon has not confirmed.
    pub ended: Vec<Ended>,
    /// The program that it runs; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
    /// Not all of it fitted this frame: another `Sessions` follows with the rest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// A live session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Its name.
    pub session: SessionName,
    /// By which cluster's config.
    pub cluster: ClusterId,
    /// What was decided.
    pub request: Decided,
}

/// What went wrong in the executor itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Tasks and threads of this life of the executor that panicked.
    pub panics: u64,
}

/// Sessions that the executor has, and detached ones that are over and whose output it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// In the order in which they began.
    pub sessions: Vec<Known>,
    /// Another `Inventory` follows with the rest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// What the executor's log lacks; absent = nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_log: Option<LostLines>,
}

/// One session that the executor knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// By which cluster's config.
    pub cluster: ClusterId,
    /// What is told of it.
    pub summary: Summary,
}

/// A session ended, or never started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its name.
    pub session: SessionName,
    /// By which cluster's config.
    pub cluster: ClusterId,
    /// What was decided.
    pub request: Decided,
    /// How: a record, or why it did not start.
    pub outcome: Outcome,
}

/// What became of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It ran, and ended so.
    Exit(ExitRecord),
    /// There is no record: it never ran, or, with [`crate::failure::Kind::Unknown`], its executor died over it.
    Refused(crate::failure::Failure),
}

/// The end of a session is in the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audited {
    /// Which session.
    pub session: SessionName,
}

/// End every session with [`EndedBy::Shutdown`], then the executor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// For the records, in words.
    pub reason: String,
}

/// What tells one installed program from another that took its place under the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The device of its file.
    pub device: u64,
    /// The number of its file there.
    pub inode: u64,
    /// When the file was last changed, nanoseconds since the epoch.
    pub changed_ns: i64,
}

/// Whether the executor leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// It had nothing to come back for, takes nothing more, and ends. Otherwise nothing changed.
    pub leaves: bool,
}

/// The version of this protocol. Daemon and executor work with each other when theirs are neighbours: what the older one
/// does not know, the newer one does not ask of it.
///
/// * 2: detached sessions, questions, and `Retire`.
/// * 3: attachments that only watch.
pub const VERSION: u32 = 3;
/// From this version on an executor keeps detached sessions, and answers questions.
pub const QUESTIONS_MIN_VERSION: u32 = 2;
/// From this version on an executor knows attachments that only watch, and lets the going of another machine's end nothing.
pub const WATCHING_MIN_VERSION: u32 = 3;
