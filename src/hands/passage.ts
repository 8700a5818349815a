/**
 * What passes through the way out: of a request's head, of an answer's head, of an answer's body;
 * and what is said instead. Pure but for the mask, which keeps the end of a chunk for the next.
 *
 * Invariant: exactly one header says who asks, and the host put it there; the secret that it holds
 * comes back in no form that a server is likely to give it.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { STATUS_CODES, type IncomingMessage } from "node:http";
import type { Route } from "../types.ts";
import { hostOf, Refusal } from "./routes.ts";

// ── Heads ───────────────────────────────────────────────────────────────────────────────────────

/** Refuses what a parser lets through though another could read it otherwise. */
export function checkHead({ rawHeaders, headers }: IncomingMessage, host: string): void {
  const hosts = rawHeaders.filter((name, at) => at % 2 === 0 && /^host$/i.test(name));
  if (hosts.length !== 1 || !/^chunked$/i.test(headers["transfer-encoding"] ?? "chunked"))
    throw new Refusal(400, "Its head can be understood in more than one way.");
  if ("upgrade" in headers) throw new Refusal(403, "Connections are not upgraded.");
  if (hostOf(headers.host ?? "") !== host) throw new Refusal(403, `Its Host is not ${host}.`);
}

/** Of one connection alone (RFC 9110, 7.6.1). */
const HOP = /^(connection|keep-alive|te|trailer|transfer-encoding|upgrade|proxy-.*)$/;
/** Who a client claims to be, what else it claims to ask, and what is written anew. */
const CLAIMS =
  /^(host|expect|accept-encoding|cookie2?|(.*-)?(authorization|token|password|api-key)|forwarded|x-(forwarded-.*|http-method.*|method-override|original-url|rewrite-url))$/;
const COOKIES = /^set-cookie2?$/;

/** Pairs of a raw head, without those of its connection and those that `drop` matches. */
function headersOf(raw: readonly string[], drop: RegExp): [name: string, value: string][] {
  const pairs = raw.flatMap((name, at): [string, string][] =>
    at % 2 === 0 ? [[name.toLowerCase(), raw[at + 1] ?? ""]] : [],
  );
  const own = pairs.filter(([name]) => name === "connection").map(([, value]) => value);
  const named = own
    .join(",")
    .toLowerCase()
    .split(/[\s,]+/);
  return pairs.filter(([name]) => !HOP.test(name) && !drop.test(name) && !named.includes(name));
}

/** The raw head of the request that is made for this one. */
export function requestHead(raw: readonly string[], host: string, secret: Secret | null): string[] {
  const always = ["host", host, "accept-encoding", "identity"];
  const passed = headersOf(raw, CLAIMS);
  if (!secret) return [...always, ...passed.flat()];
  // Of a part of an answer, a part of the secret could be a part.
  const whole = passed.filter(([name]) => name !== secret.header && !/^(if-)?range$/.test(name));
  return [...always, secret.header, secret.value, ...whole.flat()];
}

export const answerHead = (raw: readonly string[], mask: Mask): string[] =>
  headersOf(raw, COOKIES).flat().map(mask.text);

// ── Refusals ────────────────────────────────────────────────────────────────────────────────────

/** An error's code is shown, its message never: that may hold what the upstream said. */
export function refusalOf(error: unknown, host: string): Refusal {
  if (error instanceof Refusal) return error;
  const code = error instanceof Error && "code" in error ? String(error.code) : "it hung up";
  return new Refusal(502, `${host} cannot be reached, or broke off (${code}).`);
}

export const reasonOf = ({ status, message }: Refusal) => ({ status, why: message });

export const textOf = ({ message }: Refusal): string =>
  `claw: this did not leave the sandbox, or found no answer. ${message}\n`;

/** The answer to CONNECT, as it is on the wire. */
export const wireOf = (refusal: Refusal): string =>
  `HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status]}\r\nconnection: close\r\n` +
  `proxy-authenticate: Basic realm="claw"\r\ncontent-type: text/plain\r\n\r\n${textOf(refusal)}`;

// ── Bodies and secrets ──────────────────────────────────────────────────────────────────────────

/** `value`: what the header holds, `text` in it. */
export type Secret = { text: string; header: string; value: string };

const basic = (user: string, password: string): string =>
  `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`;

/** Whether a Proxy-Authorization shows the token; takes equally long for all that do not. */
export function showsToken(said: string, token: string): boolean {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(said), digest(basic("claw", token)));
}

/** null: the route has none. Refuses where the host has none to put in. */
export function secretFor(
  { secret }: Route,
  secretOf: (name: string) => string | undefined,
): Secret | null {
  if (!secret) return null;
  const { name, header, as } = secret;
  const text = secretOf(name)?.trim() ?? "";
  if (!/^[\x21-\x7e]+$/.test(text)) throw new Refusal(502, `The host has no usable ${name}.`);
  if (as === "plain") return { text, header, value: text };
  return { text, header, value: as === "bearer" ? `Bearer ${text}` : basic(as.basic, text) };
}

/** A body on its way through `pass`, and what `end` has left of it. */
export const flow = (pass: (chunk: Buffer) => Buffer, end?: () => Buffer) =>
  async function* (chunks: AsyncIterable<Buffer>) {
    for await (const chunk of chunks) yield pass(chunk);
    if (end) yield end();
  };

/** Hides a secret in what flows by, byte for byte, also where it lies across chunks. */
export type Mask = {
  text: (text: string) => string;
  /** What may go on; an end in which a form of the secret may begin is kept for the next. */
  take: (chunk: Buffer) => Buffer;
  end: () => Buffer;
};

export function openMask(secret: string): Mask {
  const forms = secret === "" ? [] : formsOf(secret).map((form) => Buffer.from(form));
  const longest = Math.max(1, ...forms.map((form) => form.length));
  let kept: Buffer = Buffer.alloc(0);
  const hide = (bytes: Buffer): Buffer => {
    for (const form of forms)
      for (let at = bytes.indexOf(form); at >= 0; at = bytes.indexOf(form, at + 1))
        bytes.fill("*", at, at + form.length);
    return bytes;
  };
  return {
    text: (text) => hide(Buffer.from(text, "latin1")).toString("latin1"),
    take(chunk) {
      const bytes = hide(Buffer.concat([kept, chunk]));
      let end = Math.max(0, bytes.length - longest + 1);
      const begins = (form: Buffer) =>
        form.subarray(0, bytes.length - end).equals(bytes.subarray(end));
      while (end < bytes.length && !forms.some(begins)) end++;
      kept = bytes.subarray(end);
      return bytes.subarray(0, end);
    },
    end: () => kept,
  };
}

/** As it is, in JSON, in a URL, in hexadecimal, and in base64 wherever it lies in what is encoded. */
function formsOf(secret: string): string[] {
  const json = JSON.stringify(secret).slice(1, -1);
  const url = encodeURIComponent(secret);
  const lower = url.replace(/%../g, (byte) => byte.toLowerCase());
  const hex = Buffer.from(secret).toString("hex");
  const base64 = [0, 1, 2].map((before) => {
    const text = Buffer.from("\0".repeat(before) + secret).toString("base64");
    return text.slice(Math.ceil((before * 8) / 6), Math.floor(((before + secret.length) * 8) / 6));
  });
  const safe = base64.map((form) => form.replaceAll("+", "-").replaceAll("/", "_"));
  const encoded = [...base64, ...safe].filter((form) => form.length > 3);
  const plain = [secret, json, json.replaceAll("/", "\\/"), url, lower, hex, hex.toUpperCase()];
  return [...new Set([...plain, ...encoded])];
}
