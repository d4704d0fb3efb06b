// The caller's side of a session: one command on one machine, once, to its record. docs/protocol.md, "A session".

import crypto from 'node:crypto';
import fs from 'node:fs';
import { Close, Kind, ProtocolError, Refused, Reset, WireError, failure, nameOf, sleep, within } from './wire.js';

const PATIENCE = 40;

// A clock that goes on while the machine sleeps.
const sinceBootMs = () => Math.round(Number(fs.readFileSync('/proc/uptime', 'utf8').split(' ')[0]) * 1000);

// One command, over as many streams as it takes.
class Run {
  constructor(peer, order) {
    this.peer = peer;
    this.order = order;
    this.machine = peer.machine(order.machine);
    this.request = {
      id: crypto.randomBytes(16),
      words: order.words.map((word) => Buffer.from(word)),
      literal: true,
      stdin: order.stdin !== undefined,
      follower: crypto.randomBytes(16),
    };
    this.number = 0;
    this.firstSent = null;
    this.started = null;
    this.output = { [Kind.Stdout]: [], [Kind.Stderr]: [] };
    this.received = 0;
    this.answer = {};
  }

  // Opens a stream for a session.
  async open() {
    const stream = await this.link.open();
    await stream.send(Kind.Open, { cluster: this.peer.cluster, generation: this.peer.snapshot.generation });
    return stream;
  }

  // Sends the request, or follows the command that runs, over a new stream.
  async ask() {
    this.link = await this.peer.link(this.machine);
    await within(PATIENCE, this.link.met);
    const stream = await this.open();
    this.number += 1;
    const { id, follower } = this.request;
    if (this.started !== null) {
      await stream.send(Kind.Attach, { id, follower, number: this.number, out_offset: this.received, binding: true });
    } else if (this.firstSent === null) {
      [this.firstSent, this.met] = [sinceBootMs(), this.link.executor];
      await stream.send(Kind.Exec, this.request);
    } else {
      await stream.send(Kind.Exec, { ...this.request, resend: this.resend() });
    }
    return stream;
  }

  resend() {
    const again = { number: this.number, since_ms: sinceBootMs() - this.firstSent };
    return this.met === undefined ? again : { ...again, met: this.met };
  }

  async run() {
    const until = Date.now() + PATIENCE * 1000;
    for (;;) {
      try {
        const record = await this.follow(await this.ask());
        return record === null ? this.answer : { ...this.answer, ...this.ended(record) };
      } catch (error) {
        this.checkClosed();
        // The attachment is lost, and nothing more is known by that.
        if (!(error instanceof WireError) || Date.now() > until) throw error;
        await sleep(100);
      }
    }
  }

  // Throws what the code means with which the other side closed the connection, where coming back would not help.
  checkClosed() {
    const code = this.link?.closedWith();
    if (![Close.NotAMember, Close.Removed, Close.Unsupported].includes(code)) return;
    // Only of one code, and of the first sending, it is certain that nothing was carried out.
    const ran = code !== Close.NotAMember || this.number > 1;
    throw new Refused(failure(ran ? 'unknown' : 'not-a-member', `the target closed the connection with code ${code}`));
  }

  ended(record) {
    const [stdout, stderr] = [Kind.Stdout, Kind.Stderr].map((kind) => Buffer.concat(this.output[kind]));
    if (record.stdout_bytes !== stdout.length || record.stderr_bytes !== stderr.length) {
      throw new ProtocolError('the record counts other bytes than those that came');
    }
    const { exited, signalled } = record.status;
    const code = exited === undefined ? 128 + signalled.signal : exited.code;
    return {
      code: record.ended_by === 'self' ? code : record.ended_by === 'timeout' ? 252 : 253,
      ended_by: record.ended_by,
      hostname: this.started.hostname,
      stdout: stdout.toString(),
      stderr: stderr.toString(),
      attachments: this.number,
    };
  }

  // Follows one stream to the record; null when the order has the caller leave before.
  async follow(stream) {
    if (this.started === null && this.order.stdin !== undefined) {
      await stream.send(Kind.Stdin, Buffer.from(this.order.stdin));
      await stream.send(Kind.StdinEof);
    }
    for (;;) {
      const frame = await stream.frame(PATIENCE);
      if (frame === null) throw new WireError('the stream ended without a record');
      const [kind, value] = frame;
      if (kind === Kind.Stdout || kind === Kind.Stderr) {
        this.output[kind].push(value);
        this.received += value.length;
        if (await this.leaves(stream)) return null;
        // Before it loses the connection it acknowledges nothing, so that the target has all of the output to send again.
        if (this.order.after === undefined) await stream.send(Kind.Ack, { out_offset: this.received });
      } else if (kind === Kind.Started) {
        this.started = value;
        if (this.order.twice) {
          delete this.order.twice;
          stream = await this.again(stream);
        }
      } else if (kind === Kind.Attached) {
        this.started = value.started ?? this.started;
        if (value.out_offset !== this.received) {
          throw new ProtocolError(`output goes on at ${value.out_offset}, and ${this.received} bytes are here`);
        }
      } else if (kind === Kind.Exit) {
        await stream.send(Kind.Goodbye);
        await stream.finish();
        return value;
      } else if (kind === Kind.Refused) {
        throw new Refused(value);
      } else if (kind !== Kind.StdinAck && kind !== Kind.StdinClosed) {
        throw new ProtocolError(`${nameOf(kind)} in a session`);
      }
    }
  }

  // Sends the same request twice more: without `resend`, which is refused, and with it, which goes on with the session.
  async again(first) {
    let stream = await this.open();
    await stream.send(Kind.Exec, this.request);
    const refused = await stream.answer(Kind.Refused);
    stream = await this.open();
    this.number += 1;
    await stream.send(Kind.Exec, { ...this.request, resend: this.resend() });
    this.started = (await stream.answer(Kind.Attached)).started;
    // All output comes again.
    this.output = { [Kind.Stdout]: [], [Kind.Stderr]: [] };
    this.received = 0;
    let last;
    do last = await first.frame(PATIENCE);
    while (last !== null && last[0] !== Kind.Superseded);
    Object.assign(this.answer, { again: refused.kind, first: last === null ? 'lost' : 'superseded' });
    return stream;
  }

  // Does what the order says about this much output: loses the connection, or goes for good.
  async leaves(stream) {
    if (this.order.after === undefined || this.received < this.order.after) return false;
    delete this.order.after;
    const how = this.order.then;
    if (how === 'lose') {
      this.link.close(Close.Done, 'the order says so');
      throw new WireError('the order says so');
    }
    if (how === 'reset') {
      await stream.sendHalf.reset(BigInt(Reset.CallerGone));
      // The target ends its side in good order when it has passed that on.
      while ((await stream.frame(PATIENCE)) !== null);
    } else {
      this.link.close(Close.Done, 'the order says so');
      const { id, follower } = this.request;
      const farewell = await (await this.peer.dial(this.machine)).open();
      await farewell.send(Kind.Gone, { id, follower, number: this.number });
      await farewell.finish();
      await farewell.answer(Kind.Pong);
    }
    this.answer.left = how;
    return true;
  }
}

// Runs a command on a machine, and returns how it ended.
export const run = (peer, order) => new Run(peer, order).run();
