"""Frames on a QUIC stream: a kind, a length, a payload. docs/protocol.md, "The frame"."""

import asyncio
import enum
import struct

import cbor2
import iroh

HEADER = struct.Struct("<BI")
KIB = 1024


class Kind(enum.IntEnum):
    """What a frame is, of those that machines send each other."""

    OPEN = 0x01
    EXEC = 0x02
    ATTACH = 0x03
    STDIN = 0x04
    STDIN_EOF = 0x05
    SIGNAL = 0x06
    ACK = 0x08
    STOP_OUTPUT = 0x09
    GOODBYE = 0x0A
    LIST = 0x0B
    WAIT = 0x0C
    KILL = 0x0D
    REFUSED = 0x20
    STARTED = 0x21
    ATTACHED = 0x22
    SUPERSEDED = 0x23
    STDOUT = 0x24
    STDERR = 0x25
    STDIN_ACK = 0x26
    STDIN_CLOSED = 0x27
    EXIT = 0x28
    LISTED = 0x2A
    KILLED = 0x2B
    PEER_HELLO = 0x40
    ANNOUNCE = 0x41
    PULL = 0x42
    SNAPSHOT = 0x43
    PING = 0x44
    PONG = 0x45
    GONE = 0x46
    RESOLVE = 0x47
    REDEEM = 0x48
    KNOCK = 0x49
    WAITING = 0x4A
    RESOLVED = 0x4B


DATA = {Kind.STDIN, Kind.STDOUT, Kind.STDERR}
EMPTY = {Kind.STDIN_EOF, Kind.GOODBYE, Kind.STDIN_CLOSED, Kind.KILLED, Kind.PING, Kind.PONG, Kind.WAITING}
SHORT = {Kind.PEER_HELLO, Kind.ANNOUNCE, Kind.PULL, Kind.GONE, Kind.RESOLVE, Kind.REDEEM, Kind.KNOCK, Kind.RESOLVED}


def cap(kind):
    """Returns the most bytes that a payload of this kind may have."""
    if kind in EMPTY:
        return 0
    if kind in SHORT:
        return 2 * KIB
    return {Kind.EXEC: 1024 * KIB, Kind.SNAPSHOT: 4100 * KIB}.get(kind, 64 * KIB)


class Close(enum.IntEnum):
    """Why a connection is closed."""

    DONE = 0
    NOT_A_MEMBER = 1
    PROTOCOL = 2
    SHUTDOWN = 3
    BUSY = 4
    UNSUPPORTED = 5
    REPLACED = 6
    REMOVED = 7


class Reset(enum.IntEnum):
    """Why a stream is reset or stopped."""

    CALLER_GONE = 0x10
    LOST = 0x11
    PROTOCOL = 0x12


class WireError(Exception):
    """The stream or its connection is lost; `code` is that of the reset, where there was one."""

    def __init__(self, message, code=None):
        super().__init__(message)
        self.code = code


class ProtocolError(Exception):
    """The other side broke the protocol."""


class Refused(Exception):
    """A failure that the other side answered with."""

    def __init__(self, failure):
        super().__init__(failure.get("message", ""))
        self.failure = failure
        self.kind = failure.get("kind", "internal")


class Stream:
    """A bidirectional stream as frames."""

    def __init__(self, stream):
        self.send_half = stream.send()
        self.receive_half = stream.recv()
        self.buffer = bytearray()

    async def send(self, kind, value=None):
        """Sends one frame: raw bytes, nothing, or one CBOR value."""
        if kind in DATA:
            payload = value
        else:
            payload = b"" if kind in EMPTY else cbor2.dumps(value)
        try:
            await self.send_half.write_all(HEADER.pack(kind, len(payload)) + payload)
        except iroh.IrohError as error:
            raise WireError(error.message()) from error

    async def finish(self):
        """Ends the sending half in good order."""
        try:
            await self.send_half.finish()
        except iroh.IrohError as error:
            raise WireError(error.message()) from error

    async def reset(self, code):
        """Gives the stream up, in both directions."""
        for give_up in (self.send_half.reset, self.receive_half.stop):
            try:
                await give_up(int(code))
            except iroh.IrohError:
                # That half is over already.
                pass

    async def frame(self, within=None):
        """Returns the next frame as kind and value; `None` at the end in good order."""
        return await asyncio.wait_for(self._frame(), within)

    async def answer(self, *wanted, within=10):
        """Returns the next frame, which has to be of one of these kinds; raises `Refused` where it is that."""
        frame = await self.frame(within)
        if frame is None:
            raise WireError("the stream ended without an answer")
        if frame[0] == Kind.REFUSED and Kind.REFUSED not in wanted:
            raise Refused(frame[1])
        if frame[0] not in wanted:
            raise ProtocolError(f"{frame[0]!r} came, and not {wanted}")
        return frame

    async def _frame(self):
        if not await self._fill(HEADER.size):
            return None
        number, length = HEADER.unpack(self.buffer[: HEADER.size])
        try:
            kind = Kind(number)
        except ValueError as error:
            raise ProtocolError(f"a frame of unknown kind {number:#04x}") from error
        if length > cap(kind):
            raise ProtocolError(f"{length} bytes of {kind!r}")
        if not await self._fill(HEADER.size + length):
            raise WireError("the stream ended inside a frame")
        payload = bytes(self.buffer[HEADER.size : HEADER.size + length])
        del self.buffer[: HEADER.size + length]
        if kind in DATA or kind in EMPTY:
            return kind, payload
        try:
            return kind, cbor2.loads(payload)
        except (cbor2.CBORDecodeError, ValueError) as error:
            raise ProtocolError(f"a payload of {kind!r} that is no CBOR") from error

    async def _fill(self, wanted):
        """Reads until this many bytes are there; `False` when the stream ends before the first of them."""
        while len(self.buffer) < wanted:
            try:
                chunk = await self.receive_half.read(64 * KIB)
            except iroh.IrohError as error:
                raise WireError(error.message(), await self._reset_code()) from error
            if not chunk:
                if self.buffer:
                    raise WireError("the stream ended inside a frame")
                return False
            self.buffer += chunk
        return True

    async def _reset_code(self):
        try:
            return await asyncio.wait_for(self.receive_half.received_reset(), 1)
        except (iroh.IrohError, asyncio.TimeoutError):
            return None
