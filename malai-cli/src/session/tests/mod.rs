//! The loop against a daemon that speaks frames by hand.

mod cuts;
mod frames;
mod hostile;
mod lab;
mod resume;
mod target;
