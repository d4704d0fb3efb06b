// Keys, invites, snapshots, and what the config allows. docs/protocol.md, from "Snapshots" on, and docs/config.md.

import iroh from '@number0/iroh/index.js';
import { blake3 } from '@noble/hashes/blake3';
import { parse } from 'smol-toml';
import { decode, failure } from './wire.js';

const DIGITS = '0123456789abcdefghijklmnopqrstuv';
const PREFIX = 'malai cluster snapshot 1';
// What a machine's section may have. Another key could be a restriction, so that nothing runs under it.
const KNOWN = new Set([
  'id52', 'allow_from', 'allow_shell', 'allow_sessions', 'allow_control', 'username', 'users', 'addresses', 'grace',
  'accept_env', 'command',
]);

// Something that was told does not hold.
export class Invalid extends Error {}

// Bytes as base32 with the alphabet of an id52.
export function base32(bytes) {
  let [text, bits, count] = ['', 0, 0];
  for (const byte of bytes) {
    bits = (bits << 8) | byte;
    count += 8;
    for (; count >= 5; count -= 5) text += DIGITS[(bits >> (count - 5)) & 31];
    bits &= (1 << count) - 1;
  }
  return count > 0 ? text + DIGITS[(bits << (5 - count)) & 31] : text;
}

function unbase32(text) {
  const bytes = [];
  let [bits, count] = [0, 0];
  for (const letter of text) {
    const digit = DIGITS.indexOf(letter);
    if (digit < 0) throw new Invalid(`${letter} is no digit of base32`);
    bits = ((bits << 5) | digit) & 0xfff;
    count += 5;
    if (count >= 8) {
      count -= 8;
      bytes.push((bits >> count) & 255);
    }
  }
  return Buffer.from(bytes);
}

// The 32 bytes of an id52.
export function keyOf(text) {
  const key = unbase32(text);
  if (text.length !== 52 || base32(key) !== text) throw new Invalid(`${text} is no id52`);
  return key;
}

// What an invite token says.
export function invite(token) {
  if (!token.startsWith('malai1') || token.length > 16384) throw new Invalid('no invite token of version 1');
  const raw = unbase32(token.slice('malai1'.length).toLowerCase());
  const [packed, check] = [raw.subarray(0, -4), raw.subarray(-4)];
  if (Buffer.compare(Buffer.from(blake3(packed)).subarray(0, 4), check) !== 0) throw new Invalid('the invite token is not whole');
  return decode(packed);
}

// Generation, length and hash of a signed header, if the cluster signed it.
export function verifyHeader({ header, signature }, cluster) {
  if (header.length !== 112) throw new Invalid('a header of another length');
  try {
    iroh.EndpointId.fromBytes([...cluster]).verify([...header], iroh.Signature.fromBytes([...signature]));
  } catch {
    throw new Invalid('the header is not signed by the cluster');
  }
  if (header.subarray(0, 24).toString() !== PREFIX || Buffer.compare(header.subarray(24, 56), cluster) !== 0) {
    throw new Invalid('a header of another cluster, or of another version');
  }
  return { generation: header.readBigUInt64LE(56), length: header.readBigUInt64LE(72), hash: header.subarray(80) };
}

// A config that the cluster signed.
export class Snapshot {
  constructor(value, cluster) {
    this.value = value;
    this.signed = value.signed;
    const { generation, length, hash } = verifyHeader(this.signed, cluster);
    this.generation = generation;
    if (BigInt(value.text.length) !== length || Buffer.compare(Buffer.from(blake3(value.text)), hash) !== 0) {
      throw new Invalid('the text is not what was signed');
    }
    this.config = parse(value.text.toString());
    this.machines = new Map(Object.entries(this.config.machine ?? {}));
  }

  // The key of the cluster manager's machine.
  manager() {
    return keyOf(this.machines.get(this.config.cluster.manager).id52);
  }

  // The name of the machine with this key.
  nameOf(key) {
    const id52 = base32(key);
    return [...this.machines].find(([, machine]) => machine.id52 === id52)?.[0];
  }

  // Why this caller may run no command on this machine, as a failure; null where it may.
  refusal(me, caller) {
    const [name, who] = [this.nameOf(me), this.nameOf(caller)];
    if (who === undefined) return failure('not-a-member', 'the caller is not a machine of this cluster');
    if (name === undefined) return failure('denied', 'the target is not a machine of this cluster any more');
    const machine = this.machines.get(name);
    const unknown = Object.keys(machine).find((key) => !KNOWN.has(key));
    if (unknown !== undefined) return failure('unsupported', `\`${unknown}\` of [machine.${name}] is not known here`);
    const where = machine.allow_from === undefined ? 'defaults' : `machine.${name}`;
    if (this.#lists(machine.allow_from ?? this.config.defaults?.allow_from ?? [], who, new Set())) return null;
    const hint =
      `in cluster.toml on \`${this.config.cluster.manager}\`, under [machine.${name}]: add "${who}" to allow_from - ` +
      'then run `malai rescan` there';
    return failure('denied', `\`${who}\` is not in \`allow_from\` of [${where}]`, hint);
  }

  #lists(names, who, seen) {
    return names.some((name) => {
      if (name === '*' || name === who) return true;
      const group = this.config.group?.[name];
      if (group === undefined || seen.has(name)) return false;
      seen.add(name);
      return this.#lists(group.members ?? [], who, seen);
    });
  }
}
