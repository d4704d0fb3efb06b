//! Joining a cluster, over `malai-join/1` at the cluster key: the manager's desk, and the newcomer's side of it.

pub(crate) mod ask;
pub(crate) mod desk;
pub(crate) mod invite;
pub(crate) mod knock;
