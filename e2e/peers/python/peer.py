"""A small machine of a cluster, in Python. README.md in the directory above says what it is for.

It takes its orders from standard input, one JSON object a line, and answers each with one line, which has the order's `n`.
"""

import asyncio
import json
import os
import pathlib
import re
import socket
import sys
import time

import cbor2
import iroh

import caller
from cluster import Invalid, Invite, Snapshot, failure, id52, key_of, verify_header
from target import Target
from wire import Close, Kind, ProtocolError, Refused, Reset, Stream, WireError

VERSION = 1
ALPN = b"malai/1"
JOIN_ALPN = b"malai-join/1"
MOST_PULLS = 4
FIRST_FRAME = 10
STRANGER_HELLO = 2


class Link:
    """One connection to a machine."""

    def __init__(self, connection, machine, dialled):
        self.connection = connection
        self.machine = machine
        self.dialled = dialled
        self.control = None
        self.met = asyncio.Event()
        self.caller_only = False
        self.executor = None
        self.generation = 0

    def is_open(self):
        return self.connection.close_reason() is None

    def is_callable(self):
        """Streams may be opened to who was dialled, or has greeted and is no agent."""
        return self.is_open() and not self.caller_only and (self.dialled or self.met.is_set())

    def closed_with(self):
        """Returns the code with which the connection was closed, which the binding tells within a text."""
        code = re.search(r"\(code (\d+)\)", self.connection.close_reason() or "")
        return code and int(code[1])

    async def open(self):
        """Opens a stream."""
        try:
            return Stream(await self.connection.open_bi())
        except iroh.IrohError as error:
            raise WireError(error.message()) from error

    def close(self, code, why):
        if self.is_open():
            self.connection.close(int(code), why.encode())


class Peer:
    """This machine."""

    def __init__(self, home):
        self.home = home
        self.key = self._own_key()
        self.boot = os.urandom(16)
        self.cluster = None
        self.snapshot = None
        self.links = []
        self.told = {}
        self.pulls = 0
        self.tasks = set()
        self.target = Target(self)
        self.endpoint = None

    def _own_key(self):
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.home / "machine.key"
        if path.exists():
            return iroh.SecretKey.from_bytes(path.read_bytes())
        key = iroh.SecretKey.generate()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.to_bytes())
        return key

    @property
    def me(self):
        return self.key.public().to_bytes()

    async def start(self):
        """Binds, takes up the config that was kept, and serves."""
        # Nothing but what is dialled: no relay, and no service that would look for others.
        options = iroh.EndpointOptions(
            preset=iroh.preset_minimal(),
            relay_mode=iroh.RelayMode.disabled(),
            bind_addr="0.0.0.0:0",
            secret_key=self.key.to_bytes(),
            alpns=[ALPN],
        )
        self.endpoint = await iroh.Endpoint.bind(options)
        kept = self.home / "snapshot"
        if kept.exists():
            value = cbor2.loads(kept.read_bytes())
            self.cluster = value["cluster"]
            self.snapshot = Snapshot(value["snapshot"], self.cluster)
            self.told = value["told"]
        self.spawn(self._accept())
        self.spawn(self._keep_link())

    def spawn(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task):
        self.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, (WireError, ProtocolError, Refused, Invalid, TimeoutError)):
            print(f"peer: {error!r}", file=sys.stderr, flush=True)

    async def stop(self):
        """Says to all that it goes."""
        for link in self.links:
            link.close(Close.SHUTDOWN, "it stops")
        await self.endpoint.close()

    # The snapshot.

    def hold(self, snapshot):
        """Decides by this snapshot from now on, keeps it, and tells the others, if it is newer than what is held."""
        if self.snapshot is not None and snapshot.generation <= self.snapshot.generation:
            return
        self.snapshot = snapshot
        self._keep()
        self.target.enforce()
        for link in self.links:
            if snapshot.name_of(link.machine) is None:
                link.close(Close.REMOVED, "not a member of the cluster any more")
            elif link.control is not None and link.is_open():
                told = {"header": snapshot.signed, "addresses": self.addresses(), "enforced": snapshot.generation}
                self.spawn(link.control.send(Kind.ANNOUNCE, told))

    def _keep(self):
        value = {"cluster": self.cluster, "snapshot": self.snapshot.value, "told": self.told}
        written = self.home / "snapshot.new"
        written.write_bytes(cbor2.dumps(value))
        written.replace(self.home / "snapshot")

    async def hear(self, link, told):
        """Takes in a header and addresses that another machine told, and fetches what is newer."""
        if told.get("addresses"):
            self.told[link.machine] = told["addresses"][:8]
        if told.get("header"):
            generation, _, _ = verify_header(told["header"], self.cluster)
            link.generation = generation
            if generation > self.snapshot.generation:
                await self.pull(link, generation)

    async def pull(self, link, generation):
        stream = await link.open()
        await stream.send(Kind.PULL, {"generation": generation})
        await stream.finish()
        _, value = await stream.answer(Kind.SNAPSHOT, within=60)
        self.hold(Snapshot(value, self.cluster))

    async def newer_than(self, generation, within):
        """Waits until the snapshot is of this generation at least."""
        until = time.monotonic() + within
        while self.snapshot.generation < generation and time.monotonic() < until:
            await asyncio.sleep(0.02)

    # Connections.

    def addresses(self):
        return self.endpoint.addr().direct_addresses()[:8]

    def greeting(self):
        return {
            "version": VERSION,
            "header": self.snapshot.signed,
            "addresses": self.addresses(),
            "boot": self.boot,
            "executor": self.target.incarnation,
            "malai": "a peer in Python",
            "clock_ms": time.time_ns() // 1_000_000,
            "enforced": self.snapshot.generation,
        }

    async def _accept(self):
        while True:
            incoming = await self.endpoint.accept_next()
            if incoming is None:
                return
            self.spawn(self._accepted(incoming))

    async def _accepted(self, incoming):
        try:
            connection = await asyncio.wait_for((await incoming.accept()).connect(), FIRST_FRAME)
        except (iroh.IrohError, TimeoutError):
            return
        link = Link(connection, connection.remote_id().to_bytes(), dialled=False)
        if self.snapshot is None:
            return link.close(Close.NOT_A_MEMBER, "not a member of the cluster")
        if self.snapshot.name_of(link.machine) is not None:
            return await self._serve(link)
        await self._introduced(link)

    async def _introduced(self, link):
        """Hears the one greeting of a stranger, who may know of a newer config."""
        try:
            stream = Stream(await asyncio.wait_for(link.connection.accept_bi(), STRANGER_HELLO))
            _, hello = await stream.answer(Kind.PEER_HELLO, within=STRANGER_HELLO)
            if not self._speaks(link, hello):
                return
            header = hello.get("header")
            if header and verify_header(header, self.cluster)[0] > self.snapshot.generation:
                await stream.send(Kind.PEER_HELLO, self.greeting())
                await self.pull(link, verify_header(header, self.cluster)[0])
            if self.snapshot.name_of(link.machine) is not None:
                self.spawn(self._follow(link, stream, hello))
                return await self._serve(link)
        except (iroh.IrohError, WireError, ProtocolError, Refused, Invalid, TimeoutError):
            pass
        link.close(Close.NOT_A_MEMBER, "not a member of the cluster")

    async def dial(self, machine):
        """Makes a connection, and greets."""
        address = iroh.EndpointAddr(iroh.EndpointId.from_bytes(machine), None, await self._where(machine))
        try:
            connection = await asyncio.wait_for(self.endpoint.connect(address, ALPN), FIRST_FRAME)
        except iroh.IrohError as error:
            raise WireError(error.message()) from error
        link = Link(connection, machine, dialled=True)
        control = await link.open()
        await control.send(Kind.PEER_HELLO, self.greeting())
        self.spawn(self._greeted(link, control))
        self.spawn(self._serve(link))
        return link

    async def _where(self, machine):
        """Returns the addresses of a machine: of the config, from its greeting, and from the directory."""
        name = self.snapshot.name_of(machine)
        known = set(self.told.get(machine, [])) | set(self.snapshot.machines[name].get("addresses", []))
        for link in [link for link in self.links if link.is_callable() and link.machine != machine]:
            try:
                stream = await link.open()
                await stream.send(Kind.RESOLVE, {"machine": machine, "hops": 1})
                await stream.finish()
                _, resolved = await stream.answer(Kind.RESOLVED, within=5)
                known |= set(resolved.get("addresses", []))
            except (WireError, ProtocolError, Refused, TimeoutError):
                continue
        # This peer knows no relays.
        return [address for address in known if not address.startswith("http")]

    async def link(self, machine):
        """Returns a connection over which streams may be opened."""
        for link in self.links:
            if link.machine == machine and link.is_callable():
                return link
        return await self.dial(machine)

    async def _keep_link(self):
        """Keeps a connection to the cluster manager, through which the others find this machine."""
        while True:
            if self.snapshot is not None and self.snapshot.manager() != self.me:
                try:
                    link = await self.link(self.snapshot.manager())
                    await link.connection.closed()
                except (WireError, TimeoutError):
                    pass
            await asyncio.sleep(0.2)

    async def _greeted(self, link, control):
        """Reads the answer to this machine's greeting."""
        try:
            _, hello = await control.answer(Kind.PEER_HELLO, within=FIRST_FRAME)
        except (WireError, ProtocolError, TimeoutError) as error:
            return link.close(Close.PROTOCOL, str(error))
        if self._speaks(link, hello):
            await self._follow(link, control, hello)

    def _speaks(self, link, hello):
        """Closes the connection of one that speaks another version, or needs what is not known here."""
        if hello["version"] != VERSION:
            link.close(Close.UNSUPPORTED, f"version {hello['version']} is not known here")
            return False
        if hello.get("needs"):
            link.close(Close.UNSUPPORTED, f"{hello['needs'][0]} is not known here")
            return False
        return True

    async def _follow(self, link, control, hello):
        """Follows the control stream, whose end is that of the connection."""
        link.control = control
        link.caller_only = hello.get("caller_only", False)
        link.executor = hello.get("executor")
        link.met.set()
        try:
            await self.hear(link, hello)
            while (frame := await control.frame()) is not None:
                if frame[0] != Kind.ANNOUNCE:
                    raise ProtocolError(f"{frame[0]!r} on the control stream")
                await self.hear(link, frame[1])
            link.close(Close.DONE, "the control stream ended")
        except WireError:
            link.close(Close.DONE, "the control stream is lost")
        except (ProtocolError, Invalid) as error:
            link.close(Close.PROTOCOL, str(error))

    async def _serve(self, link):
        """Takes the streams that the other side opens."""
        self.links.append(link)
        try:
            while True:
                self.spawn(self._stream(link, Stream(await link.connection.accept_bi())))
        except iroh.IrohError:
            pass
        finally:
            self.links.remove(link)
            # Nothing more is waited for.
            link.met.set()

    async def _stream(self, link, stream):
        """Serves one stream, whose first frame says what it is for."""
        try:
            frame = await stream.frame(FIRST_FRAME)
            if frame is None:
                raise ProtocolError("a stream without a frame")
            kind, value = frame
            if kind == Kind.OPEN:
                return await self.target.session(link, stream, value)
            if kind == Kind.PEER_HELLO and not link.dialled and link.control is None:
                if self._speaks(link, value):
                    link.control = stream
                    await stream.send(Kind.PEER_HELLO, self.greeting())
                    await self._follow(link, stream, value)
                return
            await stream.send(*await self._answer(link, kind, value))
            await stream.finish()
        except (ProtocolError, KeyError, TypeError, TimeoutError):
            await stream.reset(Reset.PROTOCOL)
        except WireError:
            await stream.reset(Reset.LOST)

    async def _answer(self, link, kind, value):
        if kind == Kind.PING:
            return Kind.PONG, None
        if kind == Kind.PULL:
            if self.pulls >= MOST_PULLS:
                return Kind.REFUSED, failure("busy", "the snapshot is fetched often enough already")
            return Kind.SNAPSHOT, self.snapshot.value
        if kind == Kind.GONE:
            self.target.gone(link.machine, value)
            return Kind.PONG, None
        if kind == Kind.RESOLVE:
            if value.get("hops", 0) > 1:
                raise ProtocolError("more hops than there are")
            addresses = self.told.get(value["machine"], [])
            return Kind.RESOLVED, {"addresses": addresses, "heard_ms_ago": 0} if addresses else {"heard_ms_ago": 0}
        raise ProtocolError(f"a stream that begins with {kind!r}")

    # Orders.

    async def join(self, token, version=VERSION):
        """Becomes a machine of the cluster by an invite."""
        invite = Invite(token)
        address = iroh.EndpointAddr(iroh.EndpointId.from_bytes(invite.cluster), None, invite.addresses)
        connection = await asyncio.wait_for(self.endpoint.connect(address, JOIN_ALPN), FIRST_FRAME)
        stream = Stream(await connection.open_bi())
        redeem = {"version": version, "secret": invite.secret, "hostname": socket.gethostname()}
        await stream.send(Kind.REDEEM, redeem)
        try:
            _, announce = await stream.answer(Kind.ANNOUNCE)
            _, value = await stream.answer(Kind.SNAPSHOT, within=60)
        finally:
            connection.close(int(Close.DONE), b"")
        snapshot = Snapshot(value, invite.cluster)
        self.cluster = invite.cluster
        self.told[snapshot.manager()] = announce.get("addresses", [])
        self.hold(snapshot)
        return {"name": self.snapshot.name_of(self.me), "id52": id52(self.me)}

    async def greet(self, machine, version):
        """Greets as one of another version does, and returns the code with which the connection is closed."""
        key = self.machine(machine)
        address = iroh.EndpointAddr(iroh.EndpointId.from_bytes(key), None, await self._where(key))
        connection = await asyncio.wait_for(self.endpoint.connect(address, ALPN), FIRST_FRAME)
        stream = Stream(await connection.open_bi())
        await stream.send(Kind.PEER_HELLO, {"version": version})
        closed = await asyncio.wait_for(connection.closed(), FIRST_FRAME)
        return {"closed": closed}

    async def ping(self, machine):
        """Asks whether a machine is there."""
        stream = await (await self.link(self.machine(machine))).open()
        await stream.send(Kind.PING)
        await stream.finish()
        await stream.answer(Kind.PONG)
        return {}

    def machine(self, name):
        if name not in self.snapshot.machines:
            raise Refused(failure("unknown-target", f"no machine is named {name}"))
        return key_of(self.snapshot.machines[name]["id52"])

    async def order(self, order):
        """Does one order, and returns its answer."""
        do = order["do"]
        if do == "join":
            return await self.join(order["token"], order.get("version", VERSION))
        if do == "greet":
            return await self.greet(order["machine"], order["version"])
        if do == "ping":
            return await self.ping(order["machine"])
        if do == "run":
            return await caller.run(self, order)
        if do == "sessions":
            # How each command of another machine ended here; null while it runs.
            records = [session.record for session in self.target.sessions.values()]
            return {"ended_by": [record and record["ended_by"] for record in records]}
        raise ValueError(f"no order is named {do}")


def say(answer):
    print(json.dumps(answer, separators=(",", ":")), flush=True)


async def answered(peer, order):
    try:
        answer = {"ok": True, **await peer.order(order)}
    except Refused as refused:
        answer = {"ok": False, **refused.failure}
    except Exception as error:  # noqa: BLE001 - whatever it is, the one who gave the order hears it
        answer = {"ok": False, "kind": "internal", "message": repr(error)}
    say({"n": order["n"], **answer})


async def main():
    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    peer = Peer(pathlib.Path(sys.argv[1]))
    await peer.start()
    say({"n": 0, "ok": True})
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        peer.spawn(answered(peer, json.loads(line)))
    await peer.stop()


asyncio.run(main())
