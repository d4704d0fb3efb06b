"""The target's side of sessions: one command, `hello`. docs/protocol.md, "A session" and "What a target has to serve"."""

import asyncio
import os
import pwd
import socket
import time

from cluster import failure
from wire import Kind, ProtocolError, Reset, WireError

WINDOW = 1024 * 1024
SYNC_WAIT = 2
GRACE = 60
# As many are remembered: an id runs once.
MOST_IDS = 4096
MOST_GREETINGS = 100_000
# After a hundred of them, in seconds.
PAUSE = 0.05
PIECE = 64 * 1024


class Session:
    """A command, and who follows it."""

    def __init__(self, caller, request):
        self.caller = caller
        self.id = request["id"]
        self.follower = request.get("follower")
        self.number = 1
        self.binding = True
        # The output: all of it, until its caller has it. `pieces` has where each begins, its kind and its length.
        self.log = bytearray()
        self.pieces = []
        self.total = 0
        self.sent = {Kind.STDOUT: 0, Kind.STDERR: 0}
        self.acked = 0
        self.since = time.monotonic()
        self.record = None
        self.task = None
        self.attachment = None
        self.changed = asyncio.Event()

    def change(self):
        """Wakes all that wait for something of it."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def write(self, kind, data):
        """Takes output of the command, which waits while too much is not acknowledged."""
        while self.total - self.acked >= WINDOW:
            await self.changed.wait()
        self.pieces.append((self.total, kind, len(data)))
        self.log += data
        self.total += len(data)
        self.sent[kind] += len(data)
        self.change()

    def end(self, status, ended_by="self", reason=None):
        """Makes the record, once."""
        if self.record is not None:
            return
        self.record = {
            "status": status,
            "ended_by": ended_by,
            "stdout_bytes": self.sent[Kind.STDOUT],
            "stderr_bytes": self.sent[Kind.STDERR],
            "duration_ms": int((time.monotonic() - self.since) * 1000),
        }
        if reason is not None:
            self.record["reason"] = reason
        self.change()

    def cut(self, ended_by, reason):
        """Ends the command from outside."""
        if self.record is None:
            if self.task is not None:
                self.task.cancel()
            self.end({"signalled": {"signal": 15, "core": False}}, ended_by, reason)

    def piece_at(self, offset):
        """Returns the output from this offset on, as kind and bytes: as much as fits a frame and is of one stream."""
        until, of = offset, None
        for begin, kind, length in self.pieces:
            if begin + length <= offset:
                continue
            of = of or kind
            if kind != of or until - offset >= PIECE:
                break
            until = begin + length
        return of, bytes(self.log[offset : min(until, offset + PIECE)])


class Target:
    """All sessions of this machine."""

    def __init__(self, peer):
        self.peer = peer
        self.incarnation = os.urandom(16)
        self.since = time.monotonic()
        self.sessions = {}
        self.spent = set()

    def enforce(self):
        """Ends what the snapshot does not allow any more."""
        for session in self.sessions.values():
            refused = self.peer.snapshot.refusal(self.peer.me, session.caller)
            if refused is not None:
                session.cut("revoked", refused["message"])

    def gone(self, caller, gone):
        """A caller went away for good, and its own stream could not tell."""
        if gone.get("owner", caller) != caller:
            return
        session = self.sessions.get((caller, gone["id"]))
        if session is None:
            # It has not come, and is not to come any more.
            self.spent.add((caller, gone["id"]))
        elif session.follower == gone["follower"] and gone["number"] >= session.number and session.binding:
            session.cut("caller-gone", "its caller went away")

    async def session(self, link, stream, opened):
        """Serves a stream that began with `Open`."""
        frame = await stream.frame(10)
        if frame is None:
            raise ProtocolError("a session without a request")
        kind, request = frame
        if opened["cluster"] != self.peer.cluster:
            return await self.refuse(stream, failure("unknown-target", "the request names another cluster"))
        if kind == Kind.EXEC:
            return await self.execute(link, stream, opened, request)
        if kind == Kind.ATTACH:
            return await self.attach(link, stream, request)
        if kind in (Kind.LIST, Kind.WAIT, Kind.KILL):
            return await self.refuse(stream, failure("unsupported", "this machine answers no questions about sessions"))
        raise ProtocolError(f"a session that begins with {kind!r}")

    async def refuse(self, stream, told):
        await stream.send(Kind.REFUSED, told)
        await stream.finish()

    async def execute(self, link, stream, opened, request):
        name, resend = (link.machine, request["id"]), request.get("resend")
        known = self.sessions.get(name)
        if resend is not None and known is not None:
            again = {"follower": request.get("follower"), "number": resend["number"], "out_offset": 0, "binding": True}
            return await self.follow(stream, known, again)
        refused = self.repeated(name, known, resend) or await self.refusal(link.machine, opened, request)
        if refused is not None:
            if resend is not None:
                # What was sent first must not run later.
                self.spent.add(name)
            return await self.refuse(stream, refused)
        session = self.sessions[name] = Session(link.machine, request)
        if resend is not None:
            session.number = resend["number"]
        session.task = self.peer.spawn(self.hello(session, request["words"]))
        await stream.send(Kind.STARTED, self.started())
        if request.get("stdin"):
            # `hello` reads nothing.
            await stream.send(Kind.STDIN_CLOSED)
        await self.serve(stream, session, 0)

    def repeated(self, name, known, resend):
        """Returns why an id that was used may not be used again."""
        if known is not None:
            return failure("conflict", "a session with this id exists already")
        if name in self.spent:
            kind = "conflict" if resend is None else "unknown"
            return failure(kind, "a request with this id was refused, or given up by its caller")
        if resend is None:
            return None
        met, alive_ms = resend.get("met"), (time.monotonic() - self.since) * 1000
        if met == self.incarnation if met is not None else alive_ms > resend["since_ms"] + 5000:
            return None
        return failure("unknown", "this request was sent before, and what this machine knew of it then is gone")

    async def refusal(self, caller, opened, request):
        """Returns why a command may not run, decided by the newest snapshot that there is."""
        unsupported = next((need for need in request.get("needs", [])), None)
        if unsupported is not None or request.get("detach"):
            return failure("unsupported", f"`{unsupported or 'detach'}` is not known here")
        refused = self.peer.snapshot.refusal(self.peer.me, caller)
        if refused is not None and opened["generation"] > self.peer.snapshot.generation:
            await self.peer.newer_than(opened["generation"], SYNC_WAIT)
            refused = self.peer.snapshot.refusal(self.peer.me, caller)
        if refused is not None:
            return refused
        for key, what in (("shell", "a shell"), ("env", "variables"), ("cwd", "a directory"), ("user", "a user")):
            if request.get(key):
                return failure("unsupported", f"this machine runs no command with {what}")
        words = request["words"]
        if not words or words[0] != b"hello":
            return failure("not-found", "this machine has one command, `hello`")
        if len(words) > 3 or not all(word.isdigit() for word in words[1:]) or len(self.sessions) >= MOST_IDS:
            return failure("usage", "say `hello [EXIT-CODE [TIMES]]`")
        return None

    def started(self):
        return {
            "incarnation": self.incarnation,
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "grace_ms": GRACE * 1000,
        }

    async def hello(self, session, words):
        """The command."""
        code = int(words[1]) % 256 if len(words) > 1 else 0
        times = min(int(words[2]), MOST_GREETINGS) if len(words) > 2 else 1
        who = self.peer.snapshot.name_of(session.caller)
        for number in range(1, times + 1):
            await session.write(Kind.STDOUT, f"hello {who}, {number} from {socket.gethostname()}\n".encode())
            if number % 100 == 0:
                await asyncio.sleep(PAUSE)
        await session.write(Kind.STDERR, b"said in Python\n")
        session.end({"exited": {"code": code}})

    async def attach(self, link, stream, ask):
        session = self.sessions.get((link.machine, ask["id"]))
        if ask.get("owner", link.machine) != link.machine:
            return await self.refuse(stream, failure("denied", "the session is another machine's"))
        if session is None:
            return await self.refuse(stream, failure("unknown", "this machine does not know this session, or no more"))
        await self.follow(stream, session, ask)

    async def follow(self, stream, session, ask):
        """Goes on with a session over another stream."""
        if session.attachment == "over":
            # Only the record is kept: there is nobody whose place could be taken.
            await stream.send(Kind.ATTACHED, self.attached(session.total))
            await stream.send(Kind.EXIT, session.record)
            return await stream.finish()
        offset = ask.get("out_offset", 0)
        same = session.follower is not None and session.follower == ask["follower"]
        if same and ask["number"] <= session.number:
            return await self.refuse(stream, failure("unknown", "a later attachment follows this session already"))
        if not same and not ask.get("take_over"):
            return await self.refuse(stream, failure("conflict", "another process follows this session already"))
        if offset > session.total:
            return await self.refuse(stream, failure("unknown", "so much was not sent"))
        session.follower, session.number = ask["follower"], ask["number"]
        session.binding = ask.get("binding", False)
        if session.attachment is not None:
            old, writer = session.attachment
            writer.cancel()
            self.peer.spawn(self.supersede(old, session))
        await stream.send(Kind.ATTACHED, self.attached(offset))
        await self.serve(stream, session, offset)

    async def supersede(self, stream, session):
        await stream.send(Kind.SUPERSEDED, {"by": session.caller, "follower": session.follower})
        await stream.finish()

    def attached(self, offset):
        return {
            "incarnation": self.incarnation,
            "started": self.started(),
            "out_offset": offset,
            "stdin_offset": 0,
            "credit": 0,
            "stdin_closed": True,
        }

    async def serve(self, stream, session, offset):
        """Sends output from this offset on, and then the record; reads what the caller says meanwhile."""
        writer = self.peer.spawn(self.tell(stream, session, offset))
        mine = session.attachment = (stream, writer)
        try:
            if await self.heed(stream, session):
                session.attachment = "over"
                session.log, session.pieces = bytearray(), []
            elif session.attachment == mine:
                self.peer.spawn(self.wait_for_return(session))
        except WireError as lost:
            if session.attachment != mine:
                return
            if lost.code == Reset.CALLER_GONE and session.binding:
                session.cut("caller-gone", "its caller went away")
                writer.cancel()
                # So the caller's daemon knows that it was passed on.
                return await stream.finish()
            self.peer.spawn(self.wait_for_return(session))
            raise
        finally:
            if session.attachment == mine:
                session.attachment = None
                writer.cancel()

    async def tell(self, stream, session, offset):
        while True:
            changed = session.changed
            while offset < session.total:
                kind, data = session.piece_at(offset)
                await stream.send(kind, data)
                offset += len(data)
            if session.record is not None and offset == session.total:
                return await stream.send(Kind.EXIT, session.record)
            await changed.wait()

    async def heed(self, stream, session):
        """Heeds the caller's frames; `True` when it has all and said goodbye."""
        while (frame := await stream.frame()) is not None:
            kind, value = frame
            if kind == Kind.GOODBYE:
                await stream.finish()
                return session.record is not None
            if kind == Kind.ACK:
                if value["out_offset"] > session.total:
                    raise ProtocolError("an acknowledgement of what was not sent")
                session.acked = max(session.acked, value["out_offset"])
                session.change()
            elif kind == Kind.SIGNAL:
                if session.record is None:
                    session.task.cancel()
                    session.end({"signalled": {"signal": value["number"], "core": False}})
            elif kind not in (Kind.STDIN, Kind.STDIN_EOF, Kind.STOP_OUTPUT):
                raise ProtocolError(f"{kind!r} in a session")
        return False

    async def wait_for_return(self, session):
        """The attachment is lost: the command goes on, and its caller may come back for a while."""
        number = session.number
        await asyncio.sleep(GRACE)
        if session.number == number and session.attachment is None:
            session.cut("grace", f"nobody came back for {GRACE} s")
