/**
 * The authority that sandboxes trust: it vouches for the hosts of their routes, so that the host can
 * read and complete their requests. X.509 as in RFC 5280, in DER (X.690), ECDSA P-256 (RFC 5480).
 *
 * Invariant: the authority's key is made in memory, never written and never handed out; the key of
 * a leaf leaves this process as little. Nothing is parsed here: all that is encoded is our own.
 */
import { generateKeyPairSync, randomBytes, sign, type KeyObject } from "node:crypto";

export type Authority = {
  /** Its certificate, as PEM: what programs inside have to trust. */
  certificate: string;
  /** A certificate and key, as PEM, for servers of these names, and of no others. */
  issue(hosts: readonly string[]): { cert: string; key: string };
};

const DAY_MS = 86_400_000;
/** Longer than a daemon runs; both are gone with it. */
const VALID_MS = 3_650 * DAY_MS;

/** `now`: milliseconds since 1970; certificates hold from a day before, for clocks that differ. */
export function makeAuthority(now: number): Authority {
  const keys = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const subject = nameOf(`claw ${randomBytes(4).toString("hex")}`);
  const keyId = randomBytes(20); // any value that is its own (RFC 5280, 4.2.1.2)
  const issuer = { subject, key: keys.privateKey };
  const certificate = certify(issuer, now, subject, keys.publicKey, [
    extension(BASIC_CONSTRAINTS, sequence(boolean, integer(Buffer.of(0))), "critical"),
    extension(KEY_USAGE, encode(0x03, Buffer.of(2, 0b0000_0100)), "critical"), // keyCertSign
    extension(SUBJECT_KEY_ID, encode(0x04, keyId)),
  ]);
  return {
    certificate,
    issue(hosts) {
      const leaf = generateKeyPairSync("ec", { namedCurve: "P-256" });
      const names = hosts.map((host) => encode(0x82, Buffer.from(host, "latin1")));
      const cert = certify(issuer, now, nameOf("claw sandbox"), leaf.publicKey, [
        extension(BASIC_CONSTRAINTS, sequence(), "critical"),
        extension(KEY_USAGE, encode(0x03, Buffer.of(7, 0b1000_0000)), "critical"), // signatures
        extension(EXTENDED_KEY_USAGE, sequence(SERVER_AUTH)),
        extension(SUBJECT_NAMES, sequence(...names)),
        extension(AUTHORITY_KEY_ID, sequence(encode(0x80, keyId))),
      ]);
      return { cert, key: leaf.privateKey.export({ type: "pkcs8", format: "pem" }).toString() };
    },
  };
}

/** RFC 5280, 4.1: Certificate ::= SEQUENCE { tbsCertificate, algorithm, signature }, as PEM. */
function certify(
  issuer: { subject: Buffer; key: KeyObject },
  now: number,
  subject: Buffer,
  publicKey: KeyObject,
  extensions: Buffer[],
): string {
  const serial = randomBytes(16);
  serial[0] = ((serial[0] ?? 0) & 0x3f) | 0x40; // positive, and no zeros in front
  const body = sequence(
    encode(0xa0, integer(Buffer.of(2))), // v3
    integer(serial),
    ECDSA_WITH_SHA256,
    issuer.subject,
    sequence(timeOf(now - DAY_MS), timeOf(now + VALID_MS)),
    subject,
    publicKey.export({ type: "spki", format: "der" }),
    encode(0xa3, sequence(...extensions)),
  );
  const signature = encode(0x03, Buffer.of(0), sign("sha256", body, issuer.key));
  const text = sequence(body, ECDSA_WITH_SHA256, signature).toString("base64");
  return `-----BEGIN CERTIFICATE-----\n${text.replace(/.{1,64}/g, "$&\n")}-----END CERTIFICATE-----\n`;
}

// ── DER ─────────────────────────────────────────────────────────────────────────────────────────

/** X.690, 8.1: a tag, the length (short, or with its own length in front), the content. */
function encode(tag: number, ...parts: Buffer[]): Buffer {
  const content = Buffer.concat(parts);
  const { length } = content;
  if (length > 0xffff) throw new RangeError(`${length} bytes are too many for one value`);
  const long = length < 0x100 ? [0x81, length] : [0x82, length >> 8, length];
  return Buffer.concat([Buffer.of(tag, ...(length < 0x80 ? [length] : long)), content]);
}

const sequence = (...parts: Buffer[]): Buffer => encode(0x30, ...parts);
const integer = (bytes: Buffer): Buffer => encode(0x02, bytes);
const boolean = Buffer.of(0x01, 1, 0xff); // TRUE
const oid = (hex: string): Buffer => encode(0x06, Buffer.from(hex, "hex"));

const ECDSA_WITH_SHA256 = sequence(oid("2a8648ce3d040302")); // 1.2.840.10045.4.3.2
const SERVER_AUTH = oid("2b06010505070301"); // 1.3.6.1.5.5.7.3.1
const SUBJECT_KEY_ID = oid("551d0e"); // 2.5.29.14, and so on
const KEY_USAGE = oid("551d0f");
const SUBJECT_NAMES = oid("551d11");
const BASIC_CONSTRAINTS = oid("551d13");
const AUTHORITY_KEY_ID = oid("551d23");
const EXTENDED_KEY_USAGE = oid("551d25");

const extension = (id: Buffer, value: Buffer, critical?: "critical"): Buffer =>
  sequence(id, ...(critical ? [boolean] : []), encode(0x04, value));

/** A name with one CN (2.5.4.3). */
const nameOf = (text: string): Buffer =>
  sequence(encode(0x31, sequence(oid("550403"), encode(0x0c, Buffer.from(text)))));

/** UTCTime up to 2049, which is as long as this encoding of ours lasts (RFC 5280, 4.1.2.5.1). */
const timeOf = (at: number): Buffer =>
  encode(0x17, Buffer.from(new Date(at).toISOString().replace(/^..|\.\d+|[-:T]/g, "")));
