// Frames on a QUIC stream: a kind, a length, a payload. docs/protocol.md, "The frame".

import { Encoder } from 'cbor-x';

const KIB = 1024;
// Maps as plain maps, byte strings without a tag. Numbers beyond 32 bits are BigInt in both directions: as a Number cbor-x
// would write them as floats.
const cbor = new Encoder({ useRecords: false, tagUint8Array: false, variableMapSize: true });

export const encode = (value) => cbor.encode(value);
export const decode = (bytes) => cbor.decode(bytes);

export const Kind = {
  Open: 0x01,
  Exec: 0x02,
  Attach: 0x03,
  Stdin: 0x04,
  StdinEof: 0x05,
  Signal: 0x06,
  Ack: 0x08,
  StopOutput: 0x09,
  Goodbye: 0x0a,
  List: 0x0b,
  Wait: 0x0c,
  Kill: 0x0d,
  Refused: 0x20,
  Started: 0x21,
  Attached: 0x22,
  Superseded: 0x23,
  Stdout: 0x24,
  Stderr: 0x25,
  StdinAck: 0x26,
  StdinClosed: 0x27,
  Exit: 0x28,
  Listed: 0x2a,
  Killed: 0x2b,
  PeerHello: 0x40,
  Announce: 0x41,
  Pull: 0x42,
  Snapshot: 0x43,
  Ping: 0x44,
  Pong: 0x45,
  Gone: 0x46,
  Resolve: 0x47,
  Redeem: 0x48,
  Knock: 0x49,
  Waiting: 0x4a,
  Resolved: 0x4b,
};
const names = new Map(Object.entries(Kind).map(([name, number]) => [number, name]));
const data = new Set([Kind.Stdin, Kind.Stdout, Kind.Stderr]);
const empty = new Set([Kind.StdinEof, Kind.Goodbye, Kind.StdinClosed, Kind.Killed, Kind.Ping, Kind.Pong, Kind.Waiting]);
const caps = new Map([
  ...[...empty].map((kind) => [kind, 0]),
  ...['PeerHello', 'Announce', 'Pull', 'Gone', 'Resolve', 'Redeem', 'Knock', 'Resolved'].map((name) => [Kind[name], 2 * KIB]),
  [Kind.Exec, 1024 * KIB],
  [Kind.Snapshot, 4100 * KIB],
]);

export const nameOf = (kind) => names.get(kind);
export const Close = { Done: 0, NotAMember: 1, Protocol: 2, Shutdown: 3, Busy: 4, Unsupported: 5, Replaced: 6, Removed: 7 };
export const Reset = { CallerGone: 0x10, Lost: 0x11, Protocol: 0x12 };

// The stream or its connection is lost; `code` is that of the reset, where there was one.
export class WireError extends Error {
  constructor(message, code) {
    // The binding adds a stack of its own to its messages.
    super(String(message).split('\n')[0]);
    this.code = code;
  }
}

// The other side broke the protocol.
export class ProtocolError extends Error {}

// A failure that the other side answered with.
export class Refused extends Error {
  constructor(failure) {
    super(failure.message);
    this.failure = failure;
  }
}

export const failure = (kind, message, hint) => (hint === undefined ? { kind, message } : { kind, message, hint });
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
export const isSame = (one, other) => one !== undefined && other !== undefined && Buffer.compare(one, other) === 0;

// Waits for work, for this many seconds at most.
export async function within(seconds, work) {
  if (seconds === undefined) return work;
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new WireError(`nothing came within ${seconds} s`)), seconds * 1000);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

// A bidirectional stream as frames.
export class Stream {
  constructor(stream) {
    this.sendHalf = stream.send;
    this.receiveHalf = stream.recv;
    this.buffer = Buffer.alloc(0);
    this.sending = Promise.resolve();
  }

  // Sends one frame: raw bytes, nothing, or one CBOR value. Frames of several tasks go out one after the other.
  send(kind, value) {
    const payload = data.has(kind) ? value : empty.has(kind) ? Buffer.alloc(0) : encode(value);
    const header = Buffer.alloc(5);
    header.writeUInt8(kind);
    header.writeUInt32LE(payload.length, 1);
    const bytes = Buffer.concat([header, payload]);
    this.sending = this.sending.then(async () => {
      try {
        await this.sendHalf.writeAll([...bytes]);
      } catch (error) {
        throw new WireError(error.message);
      }
    });
    // An error is heard by those that wait for it; none has to.
    this.sending.catch(() => {});
    return this.sending;
  }

  // Ends the sending half in good order.
  async finish() {
    await this.sending;
    try {
      await this.sendHalf.finish();
    } catch (error) {
      throw new WireError(error.message);
    }
  }

  // Gives the stream up, in both directions.
  async reset(code) {
    // A half that is over already is as good.
    await this.sendHalf.reset(BigInt(code)).catch(() => {});
    await this.receiveHalf.stop(BigInt(code)).catch(() => {});
  }

  // The next frame as [kind, value]; null at the end in good order.
  frame(seconds) {
    return within(seconds, this.#frame());
  }

  // The next frame, which has to be of this kind; throws `Refused` where it is that.
  async answer(wanted, seconds = 10) {
    const frame = await this.frame(seconds);
    if (frame === null) throw new WireError('the stream ended without an answer');
    if (frame[0] === Kind.Refused && wanted !== Kind.Refused) throw new Refused(frame[1]);
    if (frame[0] !== wanted) throw new ProtocolError(`${nameOf(frame[0])} came, and not ${nameOf(wanted)}`);
    return frame[1];
  }

  async #frame() {
    if (!(await this.#fill(5))) return null;
    const [kind, length] = [this.buffer.readUInt8(0), this.buffer.readUInt32LE(1)];
    if (!names.has(kind)) throw new ProtocolError(`a frame of unknown kind ${kind}`);
    if (length > (caps.get(kind) ?? 64 * KIB)) throw new ProtocolError(`${length} bytes of ${nameOf(kind)}`);
    if (!(await this.#fill(5 + length))) throw new WireError('the stream ended inside a frame');
    const payload = this.buffer.subarray(5, 5 + length);
    this.buffer = this.buffer.subarray(5 + length);
    if (data.has(kind) || empty.has(kind)) return [kind, payload];
    try {
      return [kind, decode(payload)];
    } catch (error) {
      throw new ProtocolError(`a payload of ${nameOf(kind)} that is no CBOR: ${error.message}`);
    }
  }

  // Reads until this many bytes are there; false when the stream ends before the first of them.
  async #fill(wanted) {
    while (this.buffer.length < wanted) {
      let chunk;
      try {
        chunk = await this.receiveHalf.read(64 * KIB);
      } catch (error) {
        const code = await within(1, this.receiveHalf.receivedReset()).catch(() => null);
        throw new WireError(error.message, code ?? undefined);
      }
      if (chunk.length === 0) {
        if (this.buffer.length > 0) throw new WireError('the stream ended inside a frame');
        return false;
      }
      this.buffer = Buffer.concat([this.buffer, Buffer.from(chunk)]);
    }
    return true;
  }
}
