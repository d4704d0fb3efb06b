//! Where machines are: the ways by which addresses are learnt, and which of them may be contacted.

pub(crate) mod directory;
pub(crate) mod hearsay;
pub(crate) mod mdns;
pub(crate) mod ways;
