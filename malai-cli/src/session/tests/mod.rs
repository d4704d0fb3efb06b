//! The loop against a daemon that speaks frames by hand.

mod arrival;
mod ask;
mod cuts;
mod detach;
mod frames;
mod hostile;
mod lab;
mod resume;
mod target;
mod watch;
