"""Keys, invites, snapshots, and what the config allows. docs/protocol.md, from "Snapshots" on, and docs/config.md."""

import base64
import struct
import tomllib

import cbor2
import iroh
from blake3 import blake3

HEADER = struct.Struct("<24s32sQQQ32s")
PREFIX = b"malai cluster snapshot 1"
# What a machine's section may have. Another key could be a restriction, so that nothing runs under it.
KNOWN = {
    "id52", "allow_from", "allow_shell", "allow_sessions", "allow_control", "username", "users", "addresses", "grace",
    "accept_env", "command",
}  # fmt: skip


class Invalid(Exception):
    """Something that was told does not hold."""


def id52(key):
    """Returns a key as text."""
    return base64.b32hexencode(key).decode().rstrip("=").lower()


def key_of(text):
    """Returns the 32 bytes of an id52."""
    if len(text) != 52 or text != text.lower():
        raise Invalid(f"{text!r} is no id52")
    key = base64.b32hexdecode(text.upper() + "====")
    if id52(key) != text:
        raise Invalid(f"{text!r} is no id52")
    return key


class Invite:
    """An invite token."""

    def __init__(self, token):
        if not token.startswith("malai1") or len(token) > 16384:
            raise Invalid("no invite token of version 1")
        text = token[len("malai1") :].upper()
        try:
            raw = base64.b32hexdecode(text + "=" * (-len(text) % 8))
        except ValueError as error:
            raise Invalid("the invite token is not whole") from error
        packed, check = raw[:-4], raw[-4:]
        if blake3(packed).digest()[:4] != check:
            raise Invalid("the invite token is not whole")
        invite = cbor2.loads(packed)
        self.cluster = invite["cluster"]
        self.name = invite["name"]
        self.secret = invite["secret"]
        self.addresses = invite.get("addresses", [])


def verify_header(signed, cluster):
    """Returns generation, length and hash of a signed header, if the cluster signed it."""
    header = signed["header"]
    if len(header) != HEADER.size:
        raise Invalid("a header of another length")
    try:
        key = iroh.EndpointId.from_bytes(cluster)
        key.verify(header, iroh.Signature.from_bytes(signed["signature"]))
    except iroh.IrohError as error:
        raise Invalid("the header is not signed by the cluster") from error
    prefix, named, generation, _issued, length, digest = HEADER.unpack(header)
    if prefix != PREFIX or named != cluster:
        raise Invalid("a header of another cluster, or of another version")
    return generation, length, digest


class Snapshot:
    """A config that the cluster signed."""

    def __init__(self, value, cluster):
        self.value = value
        self.signed = value["signed"]
        self.generation, length, digest = verify_header(self.signed, cluster)
        text = value["text"]
        if len(text) != length or blake3(text).digest() != digest:
            raise Invalid("the text is not what was signed")
        self.config = tomllib.loads(text.decode())
        self.machines = self.config.get("machine", {})

    def manager(self):
        """Returns the key of the cluster manager's machine."""
        return key_of(self.machines[self.config["cluster"]["manager"]]["id52"])

    def name_of(self, key):
        """Returns the name of the machine with this key; `None` where there is none."""
        text = id52(key)
        return next((name for name, machine in self.machines.items() if machine.get("id52") == text), None)

    def refusal(self, me, caller):
        """Returns why this caller may run no command on this machine, as a failure; `None` where it may."""
        name, who = self.name_of(me), self.name_of(caller)
        if who is None:
            return failure("not-a-member", "the caller is not a machine of this cluster")
        if name is None:
            return failure("denied", "the target is not a machine of this cluster any more")
        machine, defaults = self.machines[name], self.config.get("defaults", {})
        unknown = sorted(set(machine) - KNOWN)
        if unknown:
            return failure("unsupported", f"`{unknown[0]}` of [machine.{name}] is not known here")
        where = f"machine.{name}" if "allow_from" in machine else "defaults"
        allowed = machine.get("allow_from", defaults.get("allow_from", []))
        if self._lists(allowed, who, set()):
            return None
        manager = self.config["cluster"]["manager"]
        hint = f"in cluster.toml on `{manager}`, under [machine.{name}]: add \"{who}\" to allow_from - then run `malai rescan` there"
        return failure("denied", f"`{who}` is not in `allow_from` of [{where}]", hint)

    def _lists(self, names, who, seen):
        for name in names:
            if name in ("*", who):
                return True
            group = self.config.get("group", {}).get(name)
            if group is not None and name not in seen:
                seen.add(name)
                if self._lists(group.get("members", []), who, seen):
                    return True
        return False


def failure(kind, message, hint=None):
    """Returns a failure as it travels."""
    told = {"kind": kind, "message": message}
    return told if hint is None else {**told, "hint": hint}
