//! A target in memory, which keeps its session whatever becomes of the connections to it.

#![allow(clippy::unwrap_used, reason = "a test's scaffolding ends the test when it breaks")]

use bytes::{Buf, Bytes, BytesMut};
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::local::Request;
use malai_protocol::session::{Ack, Attach, Attached, ExecSpec, STDIN_CREDIT, Sent, StdinAck};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::codec::Decoder;

use super::lab::{incarnation, record, started};
use crate::client;

/// After how many bytes from and to the session a connection is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) up: usize,
    pub(super) down: usize,
}

/// No cut at all.
pub(super) const WHOLE: Cut = Cut { up: usize::MAX, down: usize::MAX };

/// The session of one command, which writes what is scripted and ends when its input has ended.
pub(super) struct Target {
    script: Vec<(Kind, Bytes)>,
    pub(super) stdin: Vec<u8>,
    eof: bool,
    /// How often the command was started.
    pub(super) runs: u32,
    number: u32,
    /// The most bytes that went up and down on one connection.
    pub(super) most: Cut,
}

impl Target {
    pub(super) fn new(script: Vec<(Kind, Bytes)>) -> Self {
        let most = Cut { up: 0, down: 0 };
        Self { script, stdin: Vec::new(), eof: false, runs: 0, number: 0, most }
    }

    /// All of one stream.
    pub(super) fn output(&self, of: Kind) -> Vec<u8> {
        let pieces = self.script.iter().filter(|(kind, _)| *kind == of);
        pieces.flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }

    /// Serves one connection until it is cut; whether the session ended in good order.
    pub(super) async fn serve(&mut self, stream: DuplexStream, cut: Cut) -> bool {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (mut codec, mut input, mut output) = (FrameCodec::new(), BytesMut::new(), BytesMut::new());
        let (mut up, mut down) = (0, 0);
        let mut buffer = vec![0; 8192];
        Frame::control(Kind::LocalHello, &client::hello()).unwrap().write_to(&mut output);
        while up < cut.up && down < cut.down {
            let (may_read, may_write) = (buffer.len().min(cut.up - up), output.len().min(cut.down - down));
            tokio::select! {
                n = reader.read(&mut buffer[..may_read]) => {
                    let n = n.unwrap();
                    if n == 0 {
                        return false;
                    }
                    input.extend_from_slice(&buffer[..n]);
                    up += n;
                }
                n = writer.write(&output[..may_write]), if may_write > 0 => {
                    let n = n.unwrap();
                    output.advance(n);
                    down += n;
                }
            }
            self.most = Cut { up: self.most.up.max(up), down: self.most.down.max(down) };
            while let Some(frame) = codec.decode(&mut input).unwrap() {
                if frame.kind == Kind::Goodbye {
                    return true;
                }
                for frame in self.take(&frame) {
                    frame.write_to(&mut output);
                }
            }
        }
        false
    }

    fn take(&mut self, frame: &Frame) -> Vec<Frame> {
        match frame.kind {
            Kind::LocalHello => Vec::new(),
            Kind::Request => {
                assert!(matches!(frame.decode().unwrap(), Request::Session(_)));
                Vec::new()
            }
            Kind::Exec => self.exec(&frame.decode().unwrap()),
            Kind::Attach => {
                let attach: Attach = frame.decode().unwrap();
                self.count(attach.number);
                assert_eq!(self.runs, 1, "only what was started is followed");
                self.attached(attach.out_offset)
            }
            Kind::Stdin => {
                self.stdin.extend_from_slice(&frame.payload);
                assert!(!self.eof, "nothing comes after the end");
                let offset = self.taken();
                let ack = StdinAck { offset, credit: offset + STDIN_CREDIT };
                vec![Frame::control(Kind::StdinAck, &ack).unwrap()]
            }
            Kind::StdinEof => {
                assert!(!std::mem::replace(&mut self.eof, true), "the end comes once");
                vec![self.exit()]
            }
            Kind::Ack => {
                let all: usize = self.script.iter().map(|(_, bytes)| bytes.len()).sum();
                assert!(frame.decode::<Ack>().unwrap().out_offset <= all as u64);
                Vec::new()
            }
            kind => panic!("{kind:?}"),
        }
    }

    /// The command reads in its own time: some of its input is not in its pipe yet.
    fn taken(&self) -> u64 {
        self.stdin.len().saturating_sub(1000) as u64
    }

    fn count(&mut self, number: u32) {
        assert!(number > self.number, "{number} after {}", self.number);
        self.number = number;
    }

    fn exec(&mut self, spec: &ExecSpec) -> Vec<Frame> {
        self.count(spec.resend.map_or(1, |resend| resend.number));
        if self.runs > 0 {
            assert!(spec.resend.is_some(), "a request that was sent before says so");
            return self.attached(0);
        }
        self.runs += 1;
        let sent = Sent { met: Some(incarnation()), reached: None };
        let mut frames =
            vec![Frame::control(Kind::Sent, &sent).unwrap(), Frame::control(Kind::Started, &started()).unwrap()];
        frames.extend(self.output_from(0));
        frames
    }

    fn attached(&self, out_offset: u64) -> Vec<Frame> {
        let attached = Attached {
            incarnation: incarnation(),
            started: Some(started()),
            out_offset,
            stdin_offset: self.stdin.len() as u64,
            credit: self.taken() + STDIN_CREDIT,
            stdin_closed: self.eof,
            watches: false,
        };
        let mut frames = vec![Frame::control(Kind::Attached, &attached).unwrap()];
        frames.extend(self.output_from(usize::try_from(out_offset).unwrap()));
        frames.extend(self.eof.then(|| self.exit()));
        frames
    }

    fn output_from(&self, offset: usize) -> Vec<Frame> {
        let mut skip = offset;
        let mut frames = Vec::new();
        for (kind, bytes) in &self.script {
            let rest = bytes.slice(skip.min(bytes.len())..);
            skip = skip.saturating_sub(bytes.len());
            frames.extend((!rest.is_empty()).then(|| Frame::data(*kind, rest)));
        }
        assert_eq!(skip, 0, "nobody received more than there is");
        frames
    }

    fn exit(&self) -> Frame {
        let [out, error] = [Kind::Stdout, Kind::Stderr].map(|kind| self.output(kind).len() as u64);
        Frame::control(Kind::Exit, &record(7, out, error)).unwrap()
    }
}
