//! Standard output and error: read while there is room, drained to their end.

use std::future::pending;
use std::io;
use std::os::fd::AsFd as _;

use bytes::BytesMut;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::unix::pipe;

use malai_protocol::codec::MAX_DATA;
use malai_protocol::session::Output as Stream;

use super::following::Following;
use crate::executor::output::log::Log;

/// One command's output.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    lifted: bool,
    /// Bytes of standard output that were read for the caller.
    pub(crate) stdout_bytes: u64,
    /// The same of standard error.
    pub(crate) stderr_bytes: u64,
}

impl Output {
    /// Both pipes open.
    pub(crate) fn new(stdout: pipe::Receiver, stderr: pipe::Receiver) -> Self {
        Self { stdout: Some(stdout), stderr: Some(stderr), lifted: false, stdout_bytes: 0, stderr_bytes: 0 }
    }

    /// Whether both have ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// No process is left that could write: what the pipes hold is little, and is read without regard to the window.
    pub(crate) fn lift(&mut self) {
        self.lifted = true;
    }

    /// Closes one stream: the command gets SIGPIPE.
    pub(crate) fn stop(&mut self, stream: Stream) {
        *self.side(stream) = None;
    }

    fn side(&mut self, stream: Stream) -> &mut Option<pipe::Receiver> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// How much may be read now. `drops`: what nobody follows and does not fit is dropped.
    pub(crate) fn room(&self, following: &mut Following, drops: bool) -> usize {
        if self.lifted || drops { MAX_DATA } else { following.room().min(MAX_DATA) }
    }

    /// Waits until one of them has something, or ended; for ever without `room`.
    pub(crate) async fn ready(&self, room: usize) -> Stream {
        if room == 0 {
            return pending().await;
        }
        tokio::select! {
            () = readable(&self.stdout) => Stream::Stdout,
            () = readable(&self.stderr) => Stream::Stderr,
        }
    }

    /// Whether something lies in a pipe now, or its end does: asked of the system, since what the runtime knows of a pipe
    /// may be old when it had much to do.
    pub(crate) fn has_more(&self) -> bool {
        let pipes: Vec<&pipe::Receiver> = self.stdout.iter().chain(&self.stderr).collect();
        let mut fds: Vec<PollFd<'_>> = pipes.iter().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
        // Where the system does not tell, something may be there: it is asked again, and nothing is lost.
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }

    /// Reads once. True when something came.
    pub(crate) fn read(&mut self, stream: Stream, room: usize, log: &mut Log) -> bool {
        let Some(pipe) = self.side(stream) else {
            return false;
        };
        match log.read(stream, room, |mut buffer| pipe.try_read_buf(&mut buffer)) {
            Ok(0) => *self.side(stream) = None,
            Ok(length) => {
                match stream {
                    Stream::Stdout => self.stdout_bytes += length as u64,
                    Stream::Stderr => self.stderr_bytes += length as u64,
                }
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, ?stream, "cannot be read");
                *self.side(stream) = None;
            }
        }
        false
    }

    /// Reads all that still comes, to nowhere: processes that a command left behind get no SIGPIPE.
    pub(crate) async fn discard(mut self) {
        while !self.is_closed() {
            let stream = self.ready(MAX_DATA).await;
            let result = self.side(stream).as_ref().map(discard);
            let again = matches!(&result, Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock);
            if !again && !matches!(result, Some(Ok(1..))) {
                *self.side(stream) = None;
            }
        }
    }
}

async fn readable(pipe: &Option<pipe::Receiver>) {
    match pipe {
        // An error is seen by the read that follows.
        Some(pipe) => drop(pipe.readable().await),
        None => pending().await,
    }
}

fn discard(pipe: &pipe::Receiver) -> io::Result<usize> {
    let mut buffer = BytesMut::with_capacity(MAX_DATA);
    pipe.try_read_buf(&mut buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_lies_in_a_pipe_is_seen_before_the_runtime_has_heard_of_it() {
        let (stdout, reader) = pipe::pipe().unwrap();
        let (_stderr, errors) = pipe::pipe().unwrap();
        let mut output = Output::new(reader, errors);
        assert!(!output.has_more(), "nothing was written");
        nix::unistd::write(&stdout, b"x").unwrap();
        assert!(output.has_more());
        output.stop(Stream::Stdout);
        assert!(!output.has_more(), "nobody wants it any more");
    }

    #[tokio::test]
    async fn the_end_of_a_pipe_is_seen_before_the_runtime_has_heard_of_it() {
        let (_stdout, reader) = pipe::pipe().unwrap();
        let (stderr, errors) = pipe::pipe().unwrap();
        let output = Output::new(reader, errors);
        assert!(!output.has_more());
        drop(stderr);
        assert!(output.has_more());
    }
}
