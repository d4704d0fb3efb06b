//! The config of a cluster as it is served: held, fetched, stored, announced, and given to the network.

pub(crate) mod network;
pub(crate) mod spread;
pub(crate) mod sync;
pub(crate) mod tell;
