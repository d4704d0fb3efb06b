//! Who follows a session: at most one attachment at a time, and only a newer one of the same process takes its place, or
//! one that may. What is said of an older one counts for nothing. One that only watches has nobody's place: whatever it
//! does, those that do more are as they would be without it.

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
    /// It only watches, and a process is waited for that does more.
    Awaited,
}

/// Whether the place of the follower is free, as the one sees it who watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nobody follows, and nobody is waited for.
    Free,
    /// Nobody follows, and the process that did, or will, is waited for.
    Awaited,
    /// Somebody follows.
    Taken,
}

/// The attachment that is the current one, or was last.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    /// Of those that do more than watch.
    last: Option<Attachment>,
    /// Of those that only watch.
    watcher: Option<Attachment>,
    /// It is the watcher that follows.
    is_watched: bool,
    /// The last one's signals up to here were sent.
    signalled: u32,
}

/// Whether both are of one process of one machine; the name of another's process can be known to a machine.
fn is_same(one: &Attachment, other: &Attachment) -> bool {
    one.follower.is_some() && one.follower == other.follower && one.by == other.by
}

impl Followers {
    /// An attachment comes while the place is like this; `take_over`: it may take the place of another process.
    pub(crate) fn attach(&mut self, new: Attachment, take_over: bool, place: Place) -> Verdict {
        if new.watches {
            return self.watch(new, place);
        }
        if let Some(last) = &self.last {
            let same = is_same(last, &new);
            if same && new.number <= last.number {
                return Verdict::Stale;
            }
            if !same && !take_over && !self.is_watched {
                return Verdict::Taken;
            }
            if !same {
                self.signalled = 0;
            }
        }
        self.last = Some(new);
        self.is_watched = false;
        Verdict::Follows
    }

    fn watch(&mut self, new: Attachment, place: Place) -> Verdict {
        let same = self.watcher.as_ref().filter(|last| is_same(last, &new));
        if same.is_some_and(|last| new.number <= last.number) {
            return Verdict::Stale;
        }
        let replaces_itself = same.is_some() && self.is_watched;
        match place {
            Place::Taken if !replaces_itself => return Verdict::Taken,
            Place::Awaited => return Verdict::Awaited,
            Place::Taken | Place::Free => {}
        }
        (self.watcher, self.is_watched) = (Some(new), true);
        Verdict::Follows
    }

    /// Nobody follows any more.
    pub(crate) fn left(&mut self) {
        self.is_watched = false;
    }

    /// Whether the one that follows only watches.
    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched
    }

    /// Whether another machine than the session's owner follows, or followed last.
    pub(crate) fn is_anothers(&self) -> bool {
        self.last.is_some_and(|last| last.by != last.session.caller)
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
    use malai_protocol::id::MachineId;

    use super::*;
    use crate::executor::testing::{other, session};

    /// As most come: to a place that they need not ask for.
    fn come(followers: &mut Followers, new: Attachment, take_over: bool) -> Verdict {
        followers.attach(new, take_over, Place::Taken)
    }

    fn watching(by: MachineId, follower: u8, number: u32) -> Attachment {
        Attachment { by, watches: true, ..attachment(Some(follower), number, false) }
    }

    fn attachment(follower: Option<u8>, number: u32, binding: bool) -> Attachment {
        let session = session(1);
        let follower = follower.map(|byte| FollowerId::from_bytes([byte; 16]));
        Attachment { session, by: session.caller, follower, number, binding, watches: false }
    }

    fn id(byte: u8) -> Option<FollowerId> {
        Some(FollowerId::from_bytes([byte; 16]))
    }

    #[test]
    fn only_a_higher_number_of_the_same_process_takes_the_place() {
        let mut followers = Followers::default();
        assert_eq!(come(&mut followers, attachment(Some(1), 2, true), false), Verdict::Follows);
        for number in [0, 1, 2] {
            for take_over in [false, true] {
                assert_eq!(come(&mut followers, attachment(Some(1), number, true), take_over), Verdict::Stale);
            }
        }
        assert_eq!(come(&mut followers, attachment(Some(1), 3, true), false), Verdict::Follows);
    }

    #[test]
    fn another_process_needs_to_take_over_and_is_then_the_one_that_counts() {
        let mut followers = Followers::default();
        come(&mut followers, attachment(Some(1), 5, true), false);
        assert_eq!(come(&mut followers, attachment(Some(2), 9, false), false), Verdict::Taken);
        assert_eq!(come(&mut followers, attachment(None, 9, false), false), Verdict::Taken);
        assert_eq!(come(&mut followers, attachment(Some(2), 1, false), true), Verdict::Follows);
        assert_eq!(come(&mut followers, attachment(Some(1), 6, true), false), Verdict::Taken);
        assert!(!followers.is_ended_by(id(1), 5), "superseded");
        assert!(!followers.is_ended_by(id(2), 1), "not binding");
    }

    #[test]
    fn a_process_without_a_name_never_comes_back() {
        let mut followers = Followers::default();
        come(&mut followers, attachment(None, 1, true), false);
        assert!(!followers.may_return());
        assert_eq!(come(&mut followers, attachment(None, 2, true), false), Verdict::Taken);
        assert!(followers.is_ended_by(None, 1));
        assert!(!followers.is_ended_by(None, 2));
    }

    #[test]
    fn a_signal_that_is_told_again_is_new_once_and_another_process_begins_anew() {
        let mut followers = Followers::default();
        come(&mut followers, attachment(Some(1), 1, true), false);
        assert!(followers.is_new_signal(1) && followers.is_new_signal(2));
        come(&mut followers, attachment(Some(1), 2, true), false);
        let again: Vec<bool> = [1, 2, 3, 3].map(|order| followers.is_new_signal(order)).to_vec();
        assert_eq!(again, [false, false, true, false]);
        assert!(followers.is_new_signal(0) && followers.is_new_signal(0), "not counted");
        come(&mut followers, attachment(Some(2), 1, true), true);
        assert!(followers.is_new_signal(1));
    }

    #[test]
    fn only_the_going_of_the_current_binding_attachments_process_counts() {
        let mut followers = Followers::default();
        assert!(followers.is_ended_by(id(1), 1), "before any came");
        come(&mut followers, attachment(Some(1), 3, true), false);
        assert!(followers.is_ended_by(id(1), 3));
        assert!(followers.is_ended_by(id(1), 4), "its last attachment never arrived");
        assert!(!followers.is_ended_by(id(1), 2), "it attached again since");
        assert!(!followers.is_ended_by(id(2), 3));
        assert!(!followers.is_ended_by(None, 3));
    }

    #[test]
    fn one_that_watches_comes_only_where_nobody_follows_and_nobody_is_waited_for() {
        let (mut followers, guest) = (Followers::default(), other(1).caller);
        for place in [Place::Taken, Place::Awaited] {
            let wanted = if place == Place::Taken { Verdict::Taken } else { Verdict::Awaited };
            for take_over in [false, true] {
                assert_eq!(followers.attach(watching(guest, 7, 1), take_over, place), wanted);
            }
        }
        come(&mut followers, attachment(Some(1), 5, true), false);
        assert_eq!(followers.attach(watching(guest, 7, 1), false, Place::Taken), Verdict::Taken);
        assert_eq!(followers.attach(watching(guest, 7, 1), false, Place::Awaited), Verdict::Awaited);
        assert_eq!(followers.attach(watching(guest, 7, 1), false, Place::Free), Verdict::Follows);
        assert!(followers.is_watched());
        // It takes its own place, and nobody else that watches does.
        assert_eq!(followers.attach(watching(guest, 7, 1), false, Place::Taken), Verdict::Stale);
        assert_eq!(followers.attach(watching(guest, 7, 2), false, Place::Taken), Verdict::Follows);
        assert_eq!(followers.attach(watching(guest, 8, 9), false, Place::Taken), Verdict::Taken);
        assert_eq!(followers.attach(watching(session(1).caller, 7, 9), false, Place::Taken), Verdict::Taken);
    }

    #[test]
    fn one_that_watches_changes_nothing_for_those_that_do_more() {
        let (mut followers, guest) = (Followers::default(), other(1).caller);
        come(&mut followers, attachment(Some(1), 5, true), false);
        assert!(followers.is_new_signal(1));
        // Even as a process of the same name, and of any number.
        for number in [1, u32::MAX] {
            assert_eq!(followers.attach(watching(guest, 1, number), false, Place::Free), Verdict::Follows);
        }
        assert!(followers.is_ended_by(id(1), 5) && followers.is_ended_by(id(1), 6) && !followers.is_new_signal(1));
        assert!(!followers.is_anothers());
        assert_eq!(come(&mut followers, attachment(Some(1), 5, true), true), Verdict::Stale);
        assert_eq!(come(&mut followers, attachment(Some(1), 6, true), false), Verdict::Follows);
        assert!(!followers.is_watched());
        // Others that do more take the watcher's place without asking, and nobody else's.
        assert_eq!(come(&mut followers, attachment(Some(3), 1, true), false), Verdict::Taken);
        followers.attach(watching(guest, 2, 2), false, Place::Free);
        assert_eq!(come(&mut followers, attachment(Some(3), 1, true), false), Verdict::Follows);
        followers.attach(watching(guest, 2, 3), false, Place::Free);
        followers.left();
        assert_eq!(come(&mut followers, attachment(Some(4), 1, true), false), Verdict::Taken);
    }

    #[test]
    fn the_name_of_a_process_counts_for_its_own_machine_only() {
        let (mut followers, guest) = (Followers::default(), other(1).caller);
        come(&mut followers, attachment(Some(1), 5, true), false);
        let theirs = Attachment { by: guest, ..attachment(Some(1), 6, false) };
        assert_eq!(come(&mut followers, theirs, false), Verdict::Taken);
        assert_eq!(come(&mut followers, theirs, true), Verdict::Follows);
        assert!(followers.is_anothers());
    }
}
