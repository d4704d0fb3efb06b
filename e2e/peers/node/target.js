// The target's side of sessions: one command, `hello`. docs/protocol.md, "A session" and "What a target has to serve".

import crypto from 'node:crypto';
import os from 'node:os';
import { Kind, ProtocolError, Reset, WireError, failure, isSame, nameOf, sleep } from './wire.js';

const WINDOW = 1024 * 1024;
const SYNC_WAIT_MS = 2000;
const GRACE_MS = 60_000;
// As many are remembered: an id runs once.
const MOST_IDS = 4096;
const MOST_GREETINGS = 100_000;
// After a hundred of them.
const PAUSE_MS = 50;
const PIECE = 64 * 1024;

// A command, and who follows it.
class Session {
  constructor(caller, request) {
    this.caller = caller;
    this.follower = request.follower;
    this.number = 1;
    this.binding = true;
    // The output, until its caller has it: where each piece begins, its kind and its bytes.
    this.pieces = [];
    this.total = 0;
    this.sent = { [Kind.Stdout]: 0, [Kind.Stderr]: 0 };
    this.acked = 0;
    this.since = Date.now();
    this.record = null;
    this.attachment = null;
    this.isOver = false;
    this.waiting = [];
  }

  // Wakes all that wait for something of it.
  change() {
    const waiting = this.waiting;
    this.waiting = [];
    waiting.forEach((wake) => wake());
  }

  changed() {
    return new Promise((wake) => this.waiting.push(wake));
  }

  // Takes output of the command, which waits while too much is not acknowledged.
  async write(kind, bytes) {
    while (this.total - this.acked >= WINDOW && this.record === null) await this.changed();
    if (this.record !== null) return;
    this.pieces.push([this.total, kind, bytes]);
    this.total += bytes.length;
    this.sent[kind] += bytes.length;
    this.change();
  }

  // The output from this offset on, as kind and bytes: as much as fits a frame and is of one stream.
  pieceAt(offset) {
    const first = this.pieces.findIndex(([begin, , bytes]) => begin + bytes.length > offset);
    const [begin, of] = this.pieces[first];
    const parts = [];
    for (let [at, length] = [first, begin - offset]; at < this.pieces.length && length < PIECE; at += 1) {
      const [, kind, bytes] = this.pieces[at];
      if (kind !== of) break;
      parts.push(bytes);
      length += bytes.length;
    }
    const from = offset - begin;
    return [of, Buffer.concat(parts).subarray(from, from + PIECE)];
  }

  // Makes the record, once.
  end(status, endedBy = 'self', reason) {
    if (this.record !== null) return;
    this.record = {
      status,
      ended_by: endedBy,
      stdout_bytes: this.sent[Kind.Stdout],
      stderr_bytes: this.sent[Kind.Stderr],
      duration_ms: Date.now() - this.since,
      ...(reason === undefined ? {} : { reason }),
    };
    this.change();
  }

  // Ends the command from outside.
  cut(endedBy, reason) {
    this.end({ signalled: { signal: 15, core: false } }, endedBy, reason);
  }
}

// All sessions of this machine.
export class Target {
  constructor(peer) {
    this.peer = peer;
    this.incarnation = crypto.randomBytes(16);
    this.since = Date.now();
    this.sessions = new Map();
    this.spent = new Set();
  }

  // Ends what the snapshot does not allow any more.
  enforce() {
    for (const session of this.sessions.values()) {
      const refused = this.peer.snapshot.refusal(this.peer.me, session.caller);
      if (refused !== null) session.cut('revoked', refused.message);
    }
  }

  // A caller went away for good, and its own stream could not tell.
  gone(caller, gone) {
    if (gone.owner !== undefined && !isSame(gone.owner, caller)) return;
    const name = nameFor(caller, gone.id);
    const session = this.sessions.get(name);
    if (session === undefined) {
      // It has not come, and is not to come any more.
      this.spent.add(name);
    } else if (isSame(session.follower, gone.follower) && gone.number >= session.number && session.binding) {
      session.cut('caller-gone', 'its caller went away');
    }
  }

  // Serves a stream that began with `Open`.
  async session(link, stream, opened) {
    const frame = await stream.frame(10);
    if (frame === null) throw new ProtocolError('a session without a request');
    const [kind, request] = frame;
    if (!isSame(opened.cluster, this.peer.cluster)) {
      return this.refuse(stream, failure('unknown-target', 'the request names another cluster'));
    }
    if (kind === Kind.Exec) return this.execute(link, stream, opened, request);
    if (kind === Kind.Attach) return this.attach(link, stream, request);
    if ([Kind.List, Kind.Wait, Kind.Kill].includes(kind)) {
      return this.refuse(stream, failure('unsupported', 'this machine answers no questions about sessions'));
    }
    throw new ProtocolError(`a session that begins with ${nameOf(kind)}`);
  }

  async refuse(stream, told) {
    await stream.send(Kind.Refused, told);
    await stream.finish();
  }

  async execute(link, stream, opened, request) {
    const { resend } = request;
    const name = nameFor(link.machine, request.id);
    const known = this.sessions.get(name);
    if (resend !== undefined && known !== undefined) {
      const again = { follower: request.follower, number: resend.number, out_offset: 0, binding: true };
      return this.follow(stream, known, again);
    }
    const refused = this.repeated(name, known, resend) ?? (await this.refusal(link.machine, opened, request));
    if (refused !== null) {
      // What was sent first must not run later.
      if (resend !== undefined) this.spent.add(name);
      return this.refuse(stream, refused);
    }
    const session = new Session(link.machine, request);
    if (resend !== undefined) session.number = resend.number;
    this.sessions.set(name, session);
    this.peer.spawn(this.hello(session, request.words));
    await stream.send(Kind.Started, this.started());
    // `hello` reads nothing.
    if (request.stdin) await stream.send(Kind.StdinClosed);
    await this.serve(stream, session, 0);
  }

  // Why an id that was used may not be used again.
  repeated(name, known, resend) {
    if (known !== undefined) return failure('conflict', 'a session with this id exists already');
    if (this.spent.has(name)) {
      const kind = resend === undefined ? 'conflict' : 'unknown';
      return failure(kind, 'a request with this id was refused, or given up by its caller');
    }
    if (resend === undefined) return null;
    const lives = BigInt(Date.now() - this.since) > BigInt(resend.since_ms) + 5000n;
    if (resend.met === undefined ? lives : isSame(resend.met, this.incarnation)) return null;
    return failure('unknown', 'this request was sent before, and what this machine knew of it then is gone');
  }

  // Why a command may not run, decided by the newest snapshot that there is.
  async refusal(caller, opened, request) {
    const need = request.needs?.[0] ?? (request.detach ? 'detach' : undefined);
    if (need !== undefined) return failure('unsupported', `\`${need}\` is not known here`);
    let refused = this.peer.snapshot.refusal(this.peer.me, caller);
    if (refused !== null && opened.generation > this.peer.snapshot.generation) {
      await this.peer.newerThan(opened.generation, SYNC_WAIT_MS);
      refused = this.peer.snapshot.refusal(this.peer.me, caller);
    }
    if (refused !== null) return refused;
    const asks = { shell: 'a shell', cwd: 'a directory', user: 'a user', env: 'variables' };
    for (const [key, what] of Object.entries(asks)) {
      if (request[key]?.length > 0 || request[key] === true) {
        return failure('unsupported', `this machine runs no command with ${what}`);
      }
    }
    const words = request.words.map((word) => word.toString());
    if (words[0] !== 'hello') return failure('not-found', 'this machine has one command, `hello`');
    if (words.length > 3 || !words.slice(1).every((word) => /^\d+$/.test(word)) || this.sessions.size >= MOST_IDS) {
      return failure('usage', 'say `hello [EXIT-CODE [TIMES]]`');
    }
    return null;
  }

  started() {
    return {
      incarnation: this.incarnation,
      hostname: os.hostname(),
      pid: process.pid,
      user: os.userInfo().username,
      grace_ms: GRACE_MS,
    };
  }

  // The command.
  async hello(session, words) {
    const [, code = 0, times = 1] = words.map((word) => Number(word));
    const who = this.peer.snapshot.nameOf(session.caller);
    for (let number = 1; number <= Math.min(times, MOST_GREETINGS); number += 1) {
      await session.write(Kind.Stdout, Buffer.from(`hello ${who}, ${number} from ${os.hostname()}\n`));
      if (number % 100 === 0) await sleep(PAUSE_MS);
    }
    await session.write(Kind.Stderr, Buffer.from('said in JavaScript\n'));
    session.end({ exited: { code: code % 256 } });
  }

  async attach(link, stream, ask) {
    if (ask.owner !== undefined && !isSame(ask.owner, link.machine)) {
      return this.refuse(stream, failure('denied', "the session is another machine's"));
    }
    const session = this.sessions.get(nameFor(link.machine, ask.id));
    if (session === undefined) {
      return this.refuse(stream, failure('unknown', 'this machine does not know this session, or no more'));
    }
    await this.follow(stream, session, ask);
  }

  // Goes on with a session over another stream.
  async follow(stream, session, ask) {
    if (session.isOver) {
      // Only the record is kept: there is nobody whose place could be taken.
      await stream.send(Kind.Attached, this.attached(session.total));
      await stream.send(Kind.Exit, session.record);
      return stream.finish();
    }
    const offset = Number(ask.out_offset ?? 0);
    const same = isSame(session.follower, ask.follower);
    if (same && ask.number <= session.number) {
      return this.refuse(stream, failure('unknown', 'a later attachment follows this session already'));
    }
    if (!same && !ask.take_over) {
      return this.refuse(stream, failure('conflict', 'another process follows this session already'));
    }
    if (offset > session.total) return this.refuse(stream, failure('unknown', 'so much was not sent'));
    const old = session.attachment;
    Object.assign(session, { follower: ask.follower, number: ask.number, binding: ask.binding ?? false, attachment: null });
    if (old !== null) this.peer.spawn(this.supersede(old, session));
    await stream.send(Kind.Attached, this.attached(offset));
    await this.serve(stream, session, offset);
  }

  async supersede(old, session) {
    session.change();
    await old.stream.send(Kind.Superseded, { by: session.caller, follower: session.follower });
    await old.stream.finish();
  }

  attached(offset) {
    const { incarnation } = this;
    return { incarnation, started: this.started(), out_offset: offset, stdin_offset: 0, credit: 0, stdin_closed: true };
  }

  // Sends output from this offset on, and then the record; reads what the caller says meanwhile.
  async serve(stream, session, offset) {
    const mine = { stream };
    session.attachment = mine;
    this.peer.spawn(this.tell(mine, session, offset));
    try {
      if (await this.heed(stream, session)) {
        Object.assign(session, { isOver: true, pieces: [] });
      } else if (session.attachment === mine) {
        this.peer.spawn(this.waitForReturn(session));
      }
    } catch (lost) {
      if (session.attachment !== mine) return;
      if (lost instanceof WireError && lost.code === Reset.CallerGone && session.binding) {
        session.attachment = null;
        session.cut('caller-gone', 'its caller went away');
        // So the caller's daemon knows that it was passed on.
        return stream.finish();
      }
      this.peer.spawn(this.waitForReturn(session));
      throw lost;
    } finally {
      if (session.attachment === mine) session.attachment = null;
      session.change();
    }
  }

  async tell(mine, session, offset) {
    const isCurrent = () => session.attachment === mine;
    while (isCurrent()) {
      while (offset < session.total && isCurrent()) {
        const [kind, bytes] = session.pieceAt(offset);
        await mine.stream.send(kind, bytes);
        offset += bytes.length;
      }
      if (session.record !== null && offset === session.total) {
        if (isCurrent()) await mine.stream.send(Kind.Exit, session.record);
        return;
      }
      if (offset === session.total) await session.changed();
    }
  }

  // Heeds the caller's frames; true when it has all and said goodbye.
  async heed(stream, session) {
    for (;;) {
      const frame = await stream.frame();
      if (frame === null) return false;
      const [kind, value] = frame;
      if (kind === Kind.Goodbye) {
        await stream.finish();
        return session.record !== null;
      }
      if (kind === Kind.Ack) {
        const offset = Number(value.out_offset);
        if (offset > session.total) throw new ProtocolError('an acknowledgement of what was not sent');
        session.acked = Math.max(session.acked, offset);
        session.change();
      } else if (kind === Kind.Signal) {
        session.end({ signalled: { signal: value.number, core: false } });
      } else if (![Kind.Stdin, Kind.StdinEof, Kind.StopOutput].includes(kind)) {
        throw new ProtocolError(`${nameOf(kind)} in a session`);
      }
    }
  }

  // The attachment is lost: the command goes on, and its caller may come back for a while.
  async waitForReturn(session) {
    const { number } = session;
    await sleep(GRACE_MS);
    if (session.number === number && session.attachment === null) {
      session.cut('grace', `nobody came back for ${GRACE_MS / 1000} s`);
    }
  }
}

const nameFor = (caller, id) => Buffer.concat([caller, id]).toString('hex');
