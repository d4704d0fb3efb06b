"""The caller's side of a session: one command on one machine, once, to its record. docs/protocol.md, "A session"."""

import asyncio
import os
import time

from cluster import failure
from wire import Close, Kind, ProtocolError, Refused, Reset, WireError

PATIENCE = 40


def since_boot_ms():
    """A clock that goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Run:
    """One command, over as many streams as it takes."""

    def __init__(self, peer, order):
        self.peer = peer
        self.order = order
        self.machine = peer.machine(order["machine"])
        self.request = {
            "id": os.urandom(16),
            "words": [word.encode() for word in order["words"]],
            "literal": True,
            "stdin": "stdin" in order,
            "follower": os.urandom(16),
        }
        self.number = 0
        self.first_sent = None
        self.met = None
        self.started = None
        self.output = {Kind.STDOUT: bytearray(), Kind.STDERR: bytearray()}
        self.answer = {}
        self.link = None

    def received(self):
        return sum(len(output) for output in self.output.values())

    async def ask(self):
        """Sends the request, or follows the command that runs, over a new stream."""
        self.link = await self.peer.link(self.machine)
        await asyncio.wait_for(self.link.met.wait(), PATIENCE)
        stream = await self.link.open()
        await stream.send(Kind.OPEN, {"cluster": self.peer.cluster, "generation": self.peer.snapshot.generation})
        self.number += 1
        if self.started is not None:
            ask = {"id": self.request["id"], "follower": self.request["follower"], "number": self.number}
            await stream.send(Kind.ATTACH, {**ask, "out_offset": self.received(), "binding": True})
        elif self.first_sent is None:
            self.first_sent, self.met = since_boot_ms(), self.link.executor
            await stream.send(Kind.EXEC, self.request)
        else:
            await stream.send(Kind.EXEC, {**self.request, "resend": self.resend()})
        return stream

    def resend(self):
        again = {"number": self.number, "since_ms": since_boot_ms() - self.first_sent}
        return again if self.met is None else {**again, "met": self.met}

    async def run(self):
        until = time.monotonic() + PATIENCE
        while True:
            try:
                record = await self.follow(await self.ask())
                break
            except (WireError, TimeoutError):
                self.check_closed()
                # The attachment is lost, and nothing more is known by that.
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)
        if record is None:
            return self.answer
        told = [record["stdout_bytes"], record["stderr_bytes"]]
        if told != [len(self.output[Kind.STDOUT]), len(self.output[Kind.STDERR])]:
            raise ProtocolError(f"the record counts {told}, and other bytes came")
        return {**self.answer, **self.ended(record)}

    def check_closed(self):
        """Raises what the code means with which the other side closed the connection, where coming back would not help."""
        code = self.link and self.link.closed_with()
        if code in (Close.NOT_A_MEMBER, Close.REMOVED, Close.UNSUPPORTED):
            # Only of one code, and of the first sending, it is certain that nothing was carried out.
            ran = code != Close.NOT_A_MEMBER or self.number > 1
            kind = "unknown" if ran else "not-a-member"
            raise Refused(failure(kind, f"the target closed the connection with {Close(code).name}"))

    def ended(self, record):
        status = record["status"]
        code = status["exited"]["code"] if "exited" in status else 128 + status["signalled"]["signal"]
        by = record["ended_by"]
        return {
            "code": code if by == "self" else 252 if by == "timeout" else 253,
            "ended_by": by,
            "hostname": self.started["hostname"],
            "stdout": self.output[Kind.STDOUT].decode(),
            "stderr": self.output[Kind.STDERR].decode(),
            "attachments": self.number,
        }

    async def follow(self, stream):
        """Follows one stream to the record; `None` when the order has the caller leave before."""
        if self.started is None and "stdin" in self.order:
            await stream.send(Kind.STDIN, self.order["stdin"].encode())
            await stream.send(Kind.STDIN_EOF)
        while (frame := await stream.frame(PATIENCE)) is not None:
            kind, value = frame
            if kind in self.output:
                self.output[kind] += value
                if await self.leaves(stream):
                    return None
                # Before it loses the connection it acknowledges nothing, so that the target has all of the output to send again.
                if "after" not in self.order:
                    await stream.send(Kind.ACK, {"out_offset": self.received()})
            elif kind == Kind.STARTED:
                self.started = value
                if self.order.get("twice"):
                    del self.order["twice"]
                    stream = await self.again(stream)
            elif kind == Kind.ATTACHED:
                self.attached(value)
            elif kind == Kind.EXIT:
                await stream.send(Kind.GOODBYE)
                await stream.finish()
                return value
            elif kind == Kind.REFUSED:
                raise Refused(value)
            elif kind == Kind.SUPERSEDED:
                raise ProtocolError("another process follows the command now")
            elif kind not in (Kind.STDIN_ACK, Kind.STDIN_CLOSED):
                raise ProtocolError(f"{kind!r} in a session")
        raise WireError("the stream ended without a record")

    def attached(self, attached):
        self.started = attached.get("started", self.started)
        if attached["out_offset"] != self.received():
            raise ProtocolError(f"output goes on at {attached['out_offset']}, and {self.received()} bytes are here")

    async def again(self, first):
        """Sends the same request twice more: without `resend`, which is refused, and with it, which goes on with the session."""
        stream = await self.link.open()
        opened = {"cluster": self.peer.cluster, "generation": self.peer.snapshot.generation}
        await stream.send(Kind.OPEN, opened)
        await stream.send(Kind.EXEC, self.request)
        _, refused = await stream.answer(Kind.REFUSED)
        stream = await self.link.open()
        await stream.send(Kind.OPEN, opened)
        self.number += 1
        await stream.send(Kind.EXEC, {**self.request, "resend": self.resend()})
        _, attached = await stream.answer(Kind.ATTACHED)
        self.started = attached["started"]
        # All output comes again.
        self.output = {kind: bytearray() for kind in self.output}
        while (frame := await first.frame(PATIENCE)) is not None and frame[0] != Kind.SUPERSEDED:
            pass
        self.answer |= {"again": refused["kind"], "first": "lost" if frame is None else frame[0].name.lower()}
        return stream

    async def leaves(self, stream):
        """Does what the order says about this much output: loses the connection, or goes for good."""
        after = self.order.get("after")
        if after is None or self.received() < after:
            return False
        del self.order["after"]
        how = self.order["then"]
        if how == "lose":
            self.link.close(Close.DONE, "the order says so")
            raise WireError("the order says so")
        if how == "reset":
            await stream.send_half.reset(int(Reset.CALLER_GONE))
            # The target ends its side in good order when it has passed that on.
            while (await stream.frame(PATIENCE)) is not None:
                pass
        elif how == "farewell":
            self.link.close(Close.DONE, "the order says so")
            gone = {key: self.request[key] for key in ("id", "follower")}
            stream = await (await self.peer.dial(self.machine)).open()
            await stream.send(Kind.GONE, {**gone, "number": self.number})
            await stream.finish()
            await stream.answer(Kind.PONG)
        self.answer["left"] = how
        return True


async def run(peer, order):
    """Runs a command on a machine, and returns how it ended."""
    return await Run(peer, order).run()
