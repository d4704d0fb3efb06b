//! Who follows a session: at most one attachment at a time, and only a newer one of the same process takes its place, or
//! one that may. What is said of an older one counts for nothing.

use malai_protocol::id::FollowerId;
use malai_protocol::plan::Attachment;

/// What becomes of an attachment that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It follows from here on, instead of any other.
    Follows,
    /// Its process has a newer one: it changes nothing.
    Stale,
    /// Another process follows, whose place it may not take.
    Taken,
}

/// The attachment that is the current one, or was last.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    last: Option<Attachment>,
    /// The last one's signals up to here were sent.
    signalled: u32,
}

impl Followers {
    /// An attachment comes; `take_over`: it may take the place of another process.
    pub(crate) fn attach(&mut self, new: Attachment, take_over: bool) -> Verdict {
        if let Some(last) = &self.last {
            let same = last.follower.is_some() && last.follower == new.follower;
            if same && new.number <= last.number {
                return Verdict::Stale;
            }
            if !same && !take_over {
                return Verdict::Taken;
            }
            if !same {
                self.signalled = 0;
            }
        }
        self.last = Some(new);
        Verdict::Follows
    }

    /// Whether the going of this attachment's caller ends the session. An attachment that never arrived counts too when
    /// the process that made it is the one that follows: it is gone, whichever of its attachments told so last.
    pub(crate) fn is_ended_by(&self, follower: Option<FollowerId>, number: u32) -> bool {
        // One that came before its attachment can only mean that one.
        self.last.is_none_or(|last| {
            let later = follower.is_some() && number > last.number;
            last.binding && last.follower == follower && (number == last.number || later)
        })
    }

    /// Whether the follower's signal of this order was not sent yet; from now on it was. Those of order 0 are not counted.
    pub(crate) fn is_new_signal(&mut self, order: u32) -> bool {
        let is_new = order == 0 || order > self.signalled;
        self.signalled = self.signalled.max(order);
        is_new
    }

    /// Whether the process that follows, or followed last, may come back.
    pub(crate) fn may_return(&self) -> bool {
        self.last.is_none_or(|last| last.follower.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::session;
    use super::*;

    fn attachment(follower: Option<u8>, number: u32, binding: bool) -> Attachment {
        let session = session(1);
        let follower = follower.map(|byte| FollowerId::from_bytes([byte; 16]));
        Attachment { session, by: session.caller, follower, number, binding }
    }

    fn id(byte: u8) -> Option<FollowerId> {
        Some(FollowerId::from_bytes([byte; 16]))
    }

    #[test]
    fn only_a_higher_number_of_the_same_process_takes_the_place() {
        let mut followers = Followers::default();
        assert_eq!(followers.attach(attachment(Some(1), 2, true), false), Verdict::Follows);
        for number in [0, 1, 2] {
            for take_over in [false, true] {
                assert_eq!(followers.attach(attachment(Some(1), number, true), take_over), Verdict::Stale);
            }
        }
        assert_eq!(followers.attach(attachment(Some(1), 3, true), false), Verdict::Follows);
    }

    #[test]
    fn another_process_needs_to_take_over_and_is_then_the_one_that_counts() {
        let mut followers = Followers::default();
        followers.attach(attachment(Some(1), 5, true), false);
        assert_eq!(followers.attach(attachment(Some(2), 9, false), false), Verdict::Taken);
        assert_eq!(followers.attach(attachment(None, 9, false), false), Verdict::Taken);
        assert_eq!(followers.attach(attachment(Some(2), 1, false), true), Verdict::Follows);
        assert_eq!(followers.attach(attachment(Some(1), 6, true), false), Verdict::Taken);
        assert!(!followers.is_ended_by(id(1), 5), "superseded");
        assert!(!followers.is_ended_by(id(2), 1), "not binding");
    }

    #[test]
    fn a_process_without_a_name_never_comes_back() {
        let mut followers = Followers::default();
        followers.attach(attachment(None, 1, true), false);
        assert!(!followers.may_return());
        assert_eq!(followers.attach(attachment(None, 2, true), false), Verdict::Taken);
        assert!(followers.is_ended_by(None, 1));
        assert!(!followers.is_ended_by(None, 2));
    }

    #[test]
    fn a_signal_that_is_told_again_is_new_once_and_another_process_begins_anew() {
        let mut followers = Followers::default();
        followers.attach(attachment(Some(1), 1, true), false);
        assert!(followers.is_new_signal(1) && followers.is_new_signal(2));
        followers.attach(attachment(Some(1), 2, true), false);
        let again: Vec<bool> = [1, 2, 3, 3].map(|order| followers.is_new_signal(order)).to_vec();
        assert_eq!(again, [false, false, true, false]);
        assert!(followers.is_new_signal(0) && followers.is_new_signal(0), "not counted");
        followers.attach(attachment(Some(2), 1, true), true);
        assert!(followers.is_new_signal(1));
    }

    #[test]
    fn only_the_going_of_the_current_binding_attachments_process_counts() {
        let mut followers = Followers::default();
        assert!(followers.is_ended_by(id(1), 1), "before any came");
        followers.attach(attachment(Some(1), 3, true), false);
        assert!(followers.is_ended_by(id(1), 3));
        assert!(followers.is_ended_by(id(1), 4), "its last attachment never arrived");
        assert!(!followers.is_ended_by(id(1), 2), "it attached again since");
        assert!(!followers.is_ended_by(id(2), 3));
        assert!(!followers.is_ended_by(None, 3));
    }
}
