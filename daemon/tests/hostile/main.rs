//! Peers and local processes that break the rules: what they began ends, and everybody else is served.

#[path = "../support/mod.rs"]
mod support;

mod desk;
mod flood;
mod member;
mod socket;
mod stranger;
