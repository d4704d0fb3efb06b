// A small machine of a cluster, in JavaScript. README.md in the directory above says what it is for.
//
// It takes its orders from standard input, one JSON object a line, and answers each with one line, which has the
// order's `n`.

import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import readline from 'node:readline';
import iroh from '@number0/iroh/index.js';
import { run } from './caller.js';
import { Invalid, Snapshot, base32, invite, keyOf, verifyHeader } from './cluster.js';
import { Target } from './target.js';
import { Close, Kind, ProtocolError, Refused, Reset, Stream, WireError, decode, encode, failure, isSame, nameOf, sleep, within } from './wire.js';

const VERSION = 1;
const ALPN = [...Buffer.from('malai/1')];
const JOIN_ALPN = [...Buffer.from('malai-join/1')];
const MOST_PULLS = 4;
const MOST_ADDRESSES = 8;
const FIRST_FRAME = 10;
const STRANGER_HELLO = 2;
const EXPECTED = [WireError, ProtocolError, Refused, Invalid];

const endpointId = (key) => iroh.EndpointId.fromBytes([...key]);
// What the binding throws, in one line.
const lost = (error) => {
  throw new WireError(error.message);
};

// One connection to a machine.
class Link {
  constructor(connection, machine, dialled) {
    Object.assign(this, { connection, machine, dialled, control: null, callerOnly: false, executor: undefined, isMet: false });
    this.met = new Promise((meet) => {
      this.meet = () => {
        this.isMet = true;
        meet();
      };
    });
  }

  isOpen() {
    return this.connection.closeReason() === null;
  }

  // Streams may be opened to who was dialled, or has greeted and is no agent.
  isCallable() {
    return this.isOpen() && !this.callerOnly && (this.dialled || this.isMet);
  }

  // The code with which the connection was closed, which the binding tells within a text.
  closedWith() {
    const code = /\(code (\d+)\)/.exec(this.connection.closeReason() ?? '');
    return code === null ? undefined : Number(code[1]);
  }

  async open() {
    return new Stream(await this.connection.openBi().catch(lost));
  }

  close(code, why) {
    if (this.isOpen()) this.connection.close(BigInt(code), [...Buffer.from(why)]);
  }
}

// This machine.
class Peer {
  constructor(home) {
    this.home = home;
    fs.mkdirSync(home, { recursive: true, mode: 0o700 });
    this.key = this.#ownKey();
    this.me = Buffer.from(this.key.public().toBytes());
    this.boot = crypto.randomBytes(16);
    this.cluster = null;
    this.snapshot = null;
    this.links = new Set();
    // By id52: the addresses that a machine told of itself.
    this.told = new Map();
    this.pulls = 0;
    this.target = new Target(this);
  }

  #ownKey() {
    const file = path.join(this.home, 'machine.key');
    if (fs.existsSync(file)) return iroh.SecretKey.fromBytes([...fs.readFileSync(file)]);
    const key = iroh.SecretKey.generate();
    fs.writeFileSync(file, Buffer.from(key.toBytes()), { mode: 0o600, flag: 'wx' });
    return key;
  }

  // Binds, takes up the config that was kept, and serves.
  async start() {
    // Nothing but what is dialled: no relay, and no service that would look for others.
    const builder = iroh.Endpoint.builder();
    iroh.presetMinimal(builder);
    builder.relayMode(iroh.RelayMode.disabled());
    builder.bindAddr('0.0.0.0:0');
    builder.secretKey(this.key.toBytes());
    builder.alpns([ALPN]);
    this.endpoint = await builder.bind();
    const kept = path.join(this.home, 'snapshot');
    if (fs.existsSync(kept)) {
      const value = decode(fs.readFileSync(kept));
      this.cluster = value.cluster;
      this.snapshot = new Snapshot(value.snapshot, this.cluster);
      this.told = new Map(Object.entries(value.told));
    }
    this.spawn(this.#accept());
    this.spawn(this.#keepLink());
  }

  // Lets work go on by itself. What the other side does wrong is its own affair.
  spawn(work) {
    work.catch((error) => {
      if (!EXPECTED.some((kind) => error instanceof kind)) console.error(`peer: ${error.stack}`);
    });
  }

  // Says to all that it goes.
  async stop() {
    for (const link of this.links) link.close(Close.Shutdown, 'it stops');
    await this.endpoint.close();
  }

  // Decides by this snapshot from now on, keeps it, and tells the others, if it is newer than what is held.
  hold(snapshot) {
    if (this.snapshot !== null && snapshot.generation <= this.snapshot.generation) return;
    this.snapshot = snapshot;
    const written = path.join(this.home, 'snapshot.new');
    fs.writeFileSync(written, encode({ cluster: this.cluster, snapshot: snapshot.value, told: Object.fromEntries(this.told) }));
    fs.renameSync(written, path.join(this.home, 'snapshot'));
    this.target.enforce();
    for (const link of this.links) {
      if (snapshot.nameOf(link.machine) === undefined) link.close(Close.Removed, 'not a member of the cluster any more');
      else if (link.control !== null && link.isOpen()) {
        const told = { header: snapshot.signed, addresses: this.addresses(), enforced: snapshot.generation };
        this.spawn(link.control.send(Kind.Announce, told));
      }
    }
  }

  // Takes in a header and addresses that another machine told, and fetches what is newer.
  async hear(link, told) {
    if (told.addresses?.length > 0) this.told.set(base32(link.machine), told.addresses.slice(0, MOST_ADDRESSES));
    if (told.header === undefined) return;
    const { generation } = verifyHeader(told.header, this.cluster);
    if (generation > this.snapshot.generation) await this.pull(link, generation);
  }

  async pull(link, generation) {
    const stream = await link.open();
    await stream.send(Kind.Pull, { generation });
    await stream.finish();
    this.hold(new Snapshot(await stream.answer(Kind.Snapshot, 60), this.cluster));
  }

  // Waits until the snapshot is of this generation at least.
  async newerThan(generation, ms) {
    const until = Date.now() + ms;
    while (this.snapshot.generation < generation && Date.now() < until) await sleep(20);
  }

  addresses() {
    return this.endpoint.addr().directAddresses().slice(0, MOST_ADDRESSES);
  }

  greeting() {
    return {
      version: VERSION,
      header: this.snapshot.signed,
      addresses: this.addresses(),
      boot: this.boot,
      executor: this.target.incarnation,
      malai: 'a peer in JavaScript',
      clock_ms: BigInt(Date.now()),
      enforced: this.snapshot.generation,
    };
  }

  async #accept() {
    for (;;) {
      const incoming = await this.endpoint.acceptNext();
      if (incoming === null) return;
      this.spawn(this.#accepted(incoming));
    }
  }

  async #accepted(incoming) {
    const handshake = async () => (await incoming.accept()).connect();
    const connection = await within(FIRST_FRAME, handshake().catch(lost));
    const link = new Link(connection, Buffer.from(connection.remoteId().toBytes()), false);
    if (this.snapshot?.nameOf(link.machine) !== undefined) return this.#serve(link);
    if (this.snapshot === null || !(await this.#introduced(link).catch(() => false))) {
      link.close(Close.NotAMember, 'not a member of the cluster');
    }
  }

  // Hears the one greeting of a stranger, who may know of a newer config. True when it is served.
  async #introduced(link) {
    const stream = new Stream(await within(STRANGER_HELLO, link.connection.acceptBi().catch(lost)));
    const hello = await stream.answer(Kind.PeerHello, STRANGER_HELLO);
    if (!this.#speaks(link, hello)) return true;
    const told = hello.header && verifyHeader(hello.header, this.cluster);
    if (told === undefined || told.generation <= this.snapshot.generation) return false;
    await stream.send(Kind.PeerHello, this.greeting());
    await this.pull(link, told.generation);
    if (this.snapshot.nameOf(link.machine) === undefined) return false;
    this.spawn(this.#follow(link, stream, hello));
    this.spawn(this.#serve(link));
    return true;
  }

  // Makes a connection, and greets.
  async dial(machine) {
    const address = new iroh.EndpointAddr(endpointId(machine), null, await this.#where(machine));
    const connection = await within(FIRST_FRAME, this.endpoint.connect(address, ALPN).catch(lost));
    const link = new Link(connection, machine, true);
    const control = await link.open();
    await control.send(Kind.PeerHello, this.greeting());
    this.spawn(this.#greeted(link, control));
    this.spawn(this.#serve(link));
    return link;
  }

  // The addresses of a machine: of the config, from its greeting, and from the directory.
  async #where(machine) {
    const { addresses = [] } = this.snapshot.machines.get(this.snapshot.nameOf(machine));
    const known = new Set([...addresses, ...(this.told.get(base32(machine)) ?? [])]);
    for (const link of this.links) {
      if (!link.isCallable() || isSame(link.machine, machine)) continue;
      try {
        const stream = await link.open();
        await stream.send(Kind.Resolve, { machine, hops: 1 });
        await stream.finish();
        const resolved = await stream.answer(Kind.Resolved, 5);
        (resolved.addresses ?? []).forEach((one) => known.add(one));
      } catch (error) {
        if (!EXPECTED.some((kind) => error instanceof kind)) throw error;
      }
    }
    // This peer knows no relays.
    return [...known].filter((address) => !address.startsWith('http'));
  }

  // A connection over which streams may be opened.
  async link(machine) {
    return [...this.links].find((link) => isSame(link.machine, machine) && link.isCallable()) ?? this.dial(machine);
  }

  // Keeps a connection to the cluster manager, through which the others find this machine.
  async #keepLink() {
    for (;;) {
      if (this.snapshot !== null && !isSame(this.snapshot.manager(), this.me)) {
        try {
          await (await this.link(this.snapshot.manager())).connection.closed();
        } catch (error) {
          if (!(error instanceof WireError)) throw error;
        }
      }
      await sleep(200);
    }
  }

  // Reads the answer to this machine's greeting.
  async #greeted(link, control) {
    let hello;
    try {
      hello = await control.answer(Kind.PeerHello, FIRST_FRAME);
    } catch (error) {
      return link.close(Close.Protocol, error.message);
    }
    if (this.#speaks(link, hello)) await this.#follow(link, control, hello);
  }

  // Closes the connection of one that speaks another version, or needs what is not known here.
  #speaks(link, hello) {
    if (hello.version === VERSION && !hello.needs?.length) return true;
    const what = hello.version === VERSION ? hello.needs[0] : `version ${hello.version}`;
    link.close(Close.Unsupported, `${what} is not known here`);
    return false;
  }

  // Follows the control stream, whose end is that of the connection.
  async #follow(link, control, hello) {
    Object.assign(link, { control, callerOnly: hello.caller_only ?? false, executor: hello.executor });
    link.meet();
    try {
      await this.hear(link, hello);
      for (let frame = await control.frame(); frame !== null; frame = await control.frame()) {
        if (frame[0] !== Kind.Announce) throw new ProtocolError(`${nameOf(frame[0])} on the control stream`);
        await this.hear(link, frame[1]);
      }
      link.close(Close.Done, 'the control stream ended');
    } catch (error) {
      link.close(error instanceof WireError ? Close.Done : Close.Protocol, error.message);
      throw error;
    }
  }

  // Takes the streams that the other side opens.
  async #serve(link) {
    this.links.add(link);
    try {
      for (;;) this.spawn(this.#stream(link, new Stream(await link.connection.acceptBi().catch(lost))));
    } finally {
      this.links.delete(link);
      // Nothing more is waited for.
      link.meet();
    }
  }

  // Serves one stream, whose first frame says what it is for.
  async #stream(link, stream) {
    try {
      const frame = await stream.frame(FIRST_FRAME);
      if (frame === null) throw new ProtocolError('a stream without a frame');
      const [kind, value] = frame;
      if (kind === Kind.Open) return await this.target.session(link, stream, value);
      if (kind === Kind.PeerHello && !link.dialled && link.control === null) {
        if (!this.#speaks(link, value)) return;
        link.control = stream;
        await stream.send(Kind.PeerHello, this.greeting());
        return await this.#follow(link, stream, value);
      }
      await stream.send(...(await this.#answer(link, kind, value)));
      await stream.finish();
    } catch (error) {
      await stream.reset(error instanceof WireError ? Reset.Lost : Reset.Protocol);
      throw error;
    }
  }

  async #answer(link, kind, value) {
    switch (kind) {
      case Kind.Ping:
        return [Kind.Pong];
      case Kind.Pull:
        return [Kind.Snapshot, this.snapshot.value];
      case Kind.Gone:
        this.target.gone(link.machine, value);
        return [Kind.Pong];
      case Kind.Resolve: {
        if ((value.hops ?? 0) > 1) throw new ProtocolError('more hops than there are');
        const addresses = this.told.get(base32(value.machine));
        return [Kind.Resolved, addresses === undefined ? { heard_ms_ago: 0 } : { addresses, heard_ms_ago: 0 }];
      }
      default:
        throw new ProtocolError(`a stream that begins with ${nameOf(kind)}`);
    }
  }

  // Becomes a machine of the cluster by an invite.
  async join({ token, version = VERSION }) {
    const { cluster, secret, addresses = [] } = invite(token);
    const address = new iroh.EndpointAddr(endpointId(cluster), null, addresses);
    const connection = await within(FIRST_FRAME, this.endpoint.connect(address, JOIN_ALPN).catch(lost));
    try {
      const stream = new Stream(await connection.openBi().catch(lost));
      await stream.send(Kind.Redeem, { version, secret, hostname: os.hostname() });
      const announce = await stream.answer(Kind.Announce);
      const snapshot = new Snapshot(await stream.answer(Kind.Snapshot, 60), cluster);
      this.cluster = cluster;
      this.told.set(base32(snapshot.manager()), announce.addresses ?? []);
      this.hold(snapshot);
    } finally {
      connection.close(BigInt(Close.Done), []);
    }
    return { name: this.snapshot.nameOf(this.me), id52: base32(this.me) };
  }

  // Greets as one of another version does, and returns the code with which the connection is closed.
  async greet({ machine, version }) {
    const key = this.machine(machine);
    const address = new iroh.EndpointAddr(endpointId(key), null, await this.#where(key));
    const connection = await within(FIRST_FRAME, this.endpoint.connect(address, ALPN).catch(lost));
    const stream = new Stream(await connection.openBi().catch(lost));
    await stream.send(Kind.PeerHello, { version });
    return { closed: await within(FIRST_FRAME, connection.closed()) };
  }

  // Asks whether a machine is there.
  async ping({ machine }) {
    const stream = await (await this.link(this.machine(machine))).open();
    await stream.send(Kind.Ping);
    await stream.finish();
    await stream.answer(Kind.Pong);
    return {};
  }

  machine(name) {
    const machine = this.snapshot.machines.get(name);
    if (machine === undefined) throw new Refused(failure('unknown-target', `no machine is named ${name}`));
    return keyOf(machine.id52);
  }

  async order(order) {
    if (order.do === 'run') return run(this, order);
    // How each command of another machine ended here; null while it runs.
    if (order.do === 'sessions') return { ended_by: [...this.target.sessions.values()].map(({ record }) => record?.ended_by ?? null) };
    if (!['join', 'greet', 'ping'].includes(order.do)) throw new Error(`no order is named ${order.do}`);
    return this[order.do](order);
  }
}

async function answered(peer, order) {
  let answer;
  try {
    answer = { ok: true, ...(await peer.order(order)) };
  } catch (error) {
    // Whatever it is, the one who gave the order hears it.
    answer = { ok: false, ...(error instanceof Refused ? error.failure : { kind: 'internal', message: String(error) }) };
  }
  console.log(JSON.stringify({ n: order.n, ...answer }));
}

const peer = new Peer(process.argv[2]);
await peer.start();
console.log(JSON.stringify({ n: 0, ok: true }));
for await (const line of readline.createInterface({ input: process.stdin })) peer.spawn(answered(peer, JSON.parse(line)));
await peer.stop();
process.exit(0);
