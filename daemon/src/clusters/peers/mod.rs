//! Connections to the other machines of a cluster: how they are found, made, kept alive and made again, and what is greeted
//! and announced over them.

pub(crate) mod accept;
pub(crate) mod dial;
pub(crate) mod directory;
pub(crate) mod greet;
pub(crate) mod link;
pub(crate) mod pulse;
pub(crate) mod recover;
pub(crate) mod removed;
pub(crate) mod serve;
pub(crate) mod twins;
