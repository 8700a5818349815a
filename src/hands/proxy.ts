/**
 * The way out of a sandbox, the host's end: a socket that speaks the proxy protocol (RFC 9110, 9.3.6),
 * ends TLS with a certificate of its own authority, and makes the requests that a route allows.
 *
 * Invariants: where a request goes is written in the table alone, and all of it is decided before a
 * name is looked up. A secret is put in last, sent to its route's hosts only, and taken out of what
 * comes back. A client can harm its own sandbox's way and no other; nothing it says is trusted.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { lookup } from "node:dns/promises";
import { once } from "node:events";
import { chmod, rename, rm, writeFile } from "node:fs/promises";
import * as http from "node:http";
import * as https from "node:https";
import { createServer, isIP, type LookupFunction, type Socket } from "node:net";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { createSecureContext, TLSSocket, type SecureContext } from "node:tls";
import type { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import type { EgressRow } from "../store/egress.ts";
import type { Route } from "../types.ts";
import { makeAuthority, type Authority } from "./certificates.ts";
import { envOf } from "./bridge.ts";
import { checkRoute, findHost, findRoute, hostOf, isPrivate } from "./routes.ts";
import type { NamedRoute, Refusal } from "./routes.ts";

export type EgressOptions = {
  routes: Record<string, Route>;
  /** `restMs`: how long a client may be silent between requests; `idleMs`: both sides in one. */
  limits: Omit<typeof config.egress, "routes"> & { restMs?: number; idleMs?: number };
  /** Asked at every request, so that a new secret holds at once. */
  secretOf: (name: string) => string | undefined;
  audit: (row: EgressRow) => void;
  /** What a conversation used since midnight; asked when its way opens. */
  spent: (conversation: string) => { requests: number; bytes: number };
  now: () => number;
  log: (event: string, facts?: Record<string, string | number | boolean | null>) => void;
};

/** `inside`: what the sandbox sees `folder` as. */
type Place = { conversation: string; folder: string; inside: string; token: string };

/** `env`: what programs inside need (proxy variables, CA variables, placeholders). */
export type Way = { env: Record<string, string>; close(): Promise<void> };

export type Egress = {
  /** Opens the way out of one sandbox: listens on `folder`/proxy.sock and writes `folder`/ca.pem. */
  open(options: Place & { routes: readonly string[] }): Promise<Way>;
  close(): Promise<void>;
};

/** Throws UsageError where the table, or a name in it, is wrong. */
export function openEgress(options: EgressOptions): Egress {
  const checked = Object.entries(options.routes).map(([name, route]) => checkRoute(name, route));
  const table = new Map(checked.map((route) => [route.name, route]));
  const authority = makeAuthority(options.now());
  const open = new Set<Exit>();
  const pick = (name: string): NamedRoute => {
    const route = table.get(name);
    if (route) return route;
    const names = [...table.keys()].join(", ") || "none";
    throw new UsageError(`There is no way out named "${name}". In config.egress.routes: ${names}.`);
  };
  return {
    async open(place) {
      const routes = place.routes.map(pick);
      const exit = new Exit(options, place, routes, authority);
      await exit.listen();
      open.add(exit);
      const env = envOf(join(place.inside, "ca.pem"), place.token);
      for (const name of routes.flatMap((route) => route.placeholders ?? []))
        env[name] = "put-in-by-the-host";
      return { env, close: () => (open.delete(exit), exit.close()) };
    },
    close: async () => void (await Promise.all([...open].map((exit) => exit.close()))),
  };
}

// ── One sandbox ─────────────────────────────────────────────────────────────────────────────────

/** A connection. `host`: what it was let through to; null before its CONNECT. */
type Visit = { socket: Socket; host: string | null; answer?: http.ServerResponse; rest?: Timer };

/** A request that was let through to its host. */
type Ask = {
  req: http.IncomingMessage;
  res: http.ServerResponse;
  row: EgressRow;
  route: NamedRoute;
};

class Stop extends Error implements Refusal {
  constructor(
    readonly status: number,
    readonly why: string,
  ) {
    super(why);
  }
}

/** Refusals with a row each; after them one for each doubling, so that a flood fills no disk. */
const FULL_REFUSALS = 100;

class Exit {
  readonly #sockets = new Set<Socket>();
  readonly #visits = new WeakMap<object, Visit>();
  readonly #server = createServer((socket) => this.#admit(socket));
  /** Never listens: it is handed connections when they come, and again once their TLS is ours. */
  readonly #http = http.createServer((req, res) => void this.#serve(req, res));
  readonly #context: SecureContext;
  #spent: { requests: number; bytes: number };
  #day: number;
  #refused = 0;
  #gathered: EgressRow | null = null;

  constructor(
    readonly options: EgressOptions,
    readonly place: Place,
    readonly routes: NamedRoute[],
    readonly authority: Authority,
  ) {
    this.#context = createSecureContext(authority.issue(routes.flatMap(({ hosts }) => hosts)));
    [this.#day, this.#spent] = [dayOf(options.now()), { ...options.spent(place.conversation) }];
    this.#http.on("connect", (req, socket, early) => {
      // CONNECT inside of CONNECT, or bytes before its answer: nobody's.
      const visit = this.#visits.get(socket);
      if (visit?.host === null && early.length === 0) this.#connect(req, visit);
      else socket.destroy();
    });
    this.#http.on("clientError", (_, socket) => void socket.destroy());
  }

  async listen(): Promise<void> {
    const [path = "", ca = ""] = ["proxy.sock", "ca.pem"].map((name) =>
      join(this.place.folder, name),
    );
    await writeFile(`${ca}.new`, this.authority.certificate);
    await rename(`${ca}.new`, ca);
    await rm(path, { force: true }); // of a host that died
    this.#server.listen(path);
    await once(this.#server, "listening");
    await chmod(path, 0o666); // the user inside is another one; only the mount leads here
  }

  async close(): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await rm(join(this.place.folder, "proxy.sock"), { force: true });
    if (this.#gathered) this.options.audit(this.#gathered);
    this.#gathered = null;
  }

  #admit(socket: Socket): void {
    if (this.#sockets.size >= this.options.limits.maxConnections) return void socket.destroy();
    const visit: Visit = { socket, host: null };
    this.#sockets.add(socket);
    socket.on("error", () => socket.destroy());
    socket.on("close", () => {
      clearTimeout(visit.rest);
      this.#sockets.delete(socket);
    });
    this.#receive(socket, visit);
  }

  #receive(socket: Socket, visit: Visit): void {
    this.#visits.set(socket, visit);
    this.#rest(visit);
    this.#http.emit("connection", socket);
  }

  /** From here on the next request's head has to come in time, however busy its sender is. */
  #rest(visit: Visit): void {
    clearTimeout(visit.rest);
    const { restMs = 30_000 } = this.options.limits;
    if (!visit.socket.destroyed) visit.rest = setTimeout(() => visit.socket.destroy(), restMs);
  }

  #connect({ url = "", headers }: http.IncomingMessage, visit: Visit): void {
    const { socket } = visit;
    const said = headers["proxy-authorization"];
    const isOurs = isSame(said ?? "", basic("claw", this.place.token));
    const host = isOurs ? findHost(this.routes, url) : STRANGER;
    if (typeof host !== "string") {
      // Programs ask first whether they have to say who they are: that is no attempt.
      if (said !== undefined)
        this.#note({ ...this.#rowOf("CONNECT", url, ""), status: host.status, why: host.why });
      return void socket.resume().end(headOf(host)); // and who does not hang up has little time
    }
    socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
    const [secureContext, ALPNProtocols] = [this.#context, ["http/1.1"]];
    const secure = new TLSSocket(socket, { isServer: true, secureContext, ALPNProtocols });
    secure.on("error", () => socket.destroy());
    secure.on("close", () => socket.destroy());
    visit.host = host;
    this.#receive(secure, visit);
  }

  async #serve(req: http.IncomingMessage, res: http.ServerResponse): Promise<void> {
    const visit = this.#visits.get(req.socket);
    // One at a time: requests that do not wait for answers could be any number.
    if (!visit || visit.answer?.writableEnded === false) return void req.socket.destroy();
    visit.answer = res;
    clearTimeout(visit.rest);
    const { method = "", url: target = "" } = req;
    const row = this.#rowOf(method, visit.host ?? "", target);
    const ending = new AbortController();
    res.on("error", () => res.destroy());
    res.once("close", () => {
      if (!res.writableFinished) {
        ending.abort(LEFT);
        Object.assign(row, { status: row.status || LEFT.status, why: row.why ?? LEFT.why });
      }
      this.#note(row);
      this.#rest(visit);
    });
    try {
      if (visit.host === null) throw ONLY_TLS;
      this.#count(1, 0);
      judgeHead(req, visit.host);
      const route = findRoute(this.routes, { host: visit.host, method, target });
      if ("why" in route) throw new Stop(route.status, route.why);
      row.route = route.name;
      await this.#forward({ req, res, row, route }, ending);
    } catch (error) {
      this.#fail(res, row, ending.signal.aborted ? ending.signal.reason : error);
    }
  }

  async #forward({ req, res, row, route }: Ask, ending: AbortController): Promise<void> {
    const { maxRequestBytes, idleMs = 600_000 } = this.options.limits;
    const tooLarge = new Stop(413, `it has more than ${maxRequestBytes} bytes.`);
    if (Number(req.headers["content-length"] ?? 0) > maxRequestBytes) throw tooLarge;
    const secret = secretFor(route, this.options.secretOf);
    const goal = await goalOf(route, row.host);
    const { signal } = ending;
    signal.throwIfAborted();
    const idle = setTimeout(() => ending.abort(SILENT), idleMs);
    res.once("close", () => clearTimeout(idle));
    const count = (field: "bytesSent" | "bytesReceived", bytes: number) => {
      idle.refresh();
      row[field] += bytes;
      this.#count(0, bytes);
      if (row.bytesSent > maxRequestBytes) throw tooLarge;
    };
    const headers = ["Host", goal.authority, ...requestHeaders(req.rawHeaders, secret)];
    const { request } = goal.protocol === "http:" ? http : https;
    const asked = { ...goal, method: row.method, path: req.url, headers, agent: false, signal };
    const upstream = request(asked).on("error", () => {}); // `once` tells of it, or `pipeline`
    const answered = once(upstream, "response", { signal });
    const isEmpty = !(
      "transfer-encoding" in req.headers || Number(req.headers["content-length"]) > 0
    );
    if (isEmpty) upstream.end();
    else {
      const body = flow((chunk) => (count("bytesSent", chunk.length), chunk));
      // `req` lives on, for the answer; an answer that is there already counts more than a break.
      pipeline(req.iterator({ destroyOnReturn: false }), body, upstream).catch((error) => {
        if (!res.headersSent || error instanceof Stop) ending.abort(error);
      });
    }
    const [answer]: http.IncomingMessage[] = await answered;
    if (!answer) throw new Error("no answer");
    if (secret && (answer.headers["content-encoding"] ?? "identity") !== "identity")
      throw UNREADABLE;
    const mask = openMask(secret?.text ?? "");
    row.status = answer.statusCode ?? 502;
    res.writeHead(row.status, answerHeaders(answer.rawHeaders, mask.text)).flushHeaders();
    const pass = (chunk: Buffer) => (count("bytesReceived", chunk.length), mask.take(chunk));
    await pipeline(answer, flow(pass, mask.end), res, { signal });
  }

  /** Answers with what went wrong, or breaks off an answer that has begun. */
  #fail(res: http.ServerResponse, row: EgressRow, error: unknown): void {
    if (res.closed) return;
    const code = error instanceof Error && "code" in error ? String(error.code) : "it hung up";
    const down = new Stop(502, `${row.host} cannot be reached, or broke off (${code}).`);
    const { status, why } = error instanceof Stop ? error : down;
    Object.assign(row, { status, why });
    if (status === 502) this.options.log("way out failed", { route: row.route, why });
    if (res.headersSent) return void res.destroy();
    res.writeHead(status, { "content-type": "text/plain; charset=utf-8", connection: "close" });
    res.end(`claw: this did not leave the sandbox, or found no answer: ${why}\n`);
  }

  /** Throws where the day's limits are used up; every request counts, a refused one too. */
  #count(requests: number, bytes: number): void {
    const { limits, now } = this.options;
    const day = dayOf(now());
    if (day !== this.#day) [this.#day, this.#spent] = [day, { requests: 0, bytes: 0 }];
    const spent = this.#spent;
    [spent.requests, spent.bytes] = [spent.requests + requests, spent.bytes + bytes];
    if (spent.requests > limits.requestsPerDay || spent.bytes > limits.bytesPerDay) throw USED_UP;
  }

  #rowOf(method: string, host: string, target: string): EgressRow {
    const path = target.split("?", 1)[0]?.slice(0, 300) ?? "";
    const who = {
      conversation: this.place.conversation,
      at: this.options.now(),
      ms: 0,
      requests: 1,
    };
    const what = { route: null, method, host: host.slice(0, 260), path, status: 0, why: null };
    return { ...who, ...what, bytesSent: 0, bytesReceived: 0 };
  }

  #note(row: EgressRow): void {
    row.ms = this.options.now() - row.at;
    row.requests += this.#gathered?.requests ?? 0;
    this.#gathered = null;
    const isRefusal = row.why !== null && row.bytesSent + row.bytesReceived === 0;
    if (isRefusal && ++this.#refused > FULL_REFUSALS && Math.log2(this.#refused) % 1 > 0)
      this.#gathered = row;
    else this.options.audit(row);
  }
}

// ── What passes ─────────────────────────────────────────────────────────────────────────────────

const STRANGER = new Stop(407, "it does not show this sandbox's token.");
const ONLY_TLS = new Stop(403, "this proxy is for https:// alone.");
const USED_UP = new Stop(429, "the day's requests or bytes are used up; midnight brings new ones.");
const SILENT = new Stop(504, "nothing was heard from either side for too long.");
const LEFT = new Stop(499, "the client left.");
const UNREADABLE = new Stop(502, "the answer is compressed, and would hide a secret in it.");

const dayOf = (at: number): number => new Date(at).setHours(0, 0, 0, 0);
const basic = (user: string, password: string): string =>
  `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`;

function isSame(one: string, other: string): boolean {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(one), digest(other));
}

const headOf = ({ status, why }: Refusal): string =>
  `HTTP/1.1 ${status} ${http.STATUS_CODES[status]}\r\nproxy-authenticate: Basic realm="claw"\r\n` +
  `connection: close\r\ncontent-type: text/plain\r\n\r\nclaw: ${why}\n`;

/** What the parser lets through though others could read it otherwise. */
function judgeHead({ rawHeaders, headers }: http.IncomingMessage, host: string): void {
  const hosts = rawHeaders.filter((name, at) => at % 2 === 0 && /^host$/i.test(name));
  if (hosts.length !== 1 || !/^chunked$/i.test(headers["transfer-encoding"] ?? "chunked"))
    throw new Stop(400, "its head can be understood in more than one way.");
  if ("upgrade" in headers) throw new Stop(403, "connections are not upgraded.");
  if (hostOf(headers.host ?? "") !== host) throw new Stop(403, `its Host is not ${host}.`);
}

/** Where a route leads. A name is resolved once, and connected to at what was checked. */
async function goalOf(route: Route, host: string) {
  if (route.origin !== undefined) {
    const { protocol, hostname, port, host: authority } = new URL(route.origin);
    const name = hostname.replace(/^\[(.*)\]$/, "$1");
    return { protocol, hostname: name, port, authority, servername: isIP(name) ? "" : name };
  }
  const found = await lookup(host, { all: true });
  if (found.some(({ address }) => isPrivate(address)))
    throw new Stop(403, `${host} leads to an address that is not public.`);
  const pinned: LookupFunction = (_, __, done) => done(null, found);
  const port = 443;
  return {
    protocol: "https:",
    hostname: host,
    port,
    authority: host,
    servername: host,
    lookup: pinned,
  };
}

type Secret = { text: string; header: string; value: string };

function secretFor({ secret }: Route, secretOf: EgressOptions["secretOf"]): Secret | null {
  if (!secret) return null;
  const { name, header, as } = secret;
  const text = secretOf(name)?.trim() ?? "";
  if (!/^[\x21-\x7e]+$/.test(text))
    throw new Stop(502, `the host has no usable ${name} to put in.`);
  if (as === "plain") return { text, header, value: text };
  return { text, header, value: as === "bearer" ? `Bearer ${text}` : basic(as.basic, text) };
}

const flow = (pass: (chunk: Buffer) => Buffer, end?: () => Buffer) =>
  async function* (chunks: AsyncIterable<Buffer>) {
    for await (const chunk of chunks) yield pass(chunk);
    if (end) yield end();
  };

/** Hides a secret in what flows by, byte for byte, also where it lies across chunks. */
function openMask(secret: string) {
  const forms = secret === "" ? [] : formsOf(secret).map((form) => Buffer.from(form, "latin1"));
  const longest = Math.max(1, ...forms.map((form) => form.length));
  let kept: Buffer = Buffer.alloc(0);
  const hide = (bytes: Buffer): Buffer => {
    for (const form of forms)
      for (let at = bytes.indexOf(form); at >= 0; at = bytes.indexOf(form, at + 1))
        bytes.fill("*", at, at + form.length);
    return bytes;
  };
  return {
    text: (text: string) => hide(Buffer.from(text, "latin1")).toString("latin1"),
    /** Keeps the end back where a form may begin. */
    take(chunk: Buffer): Buffer {
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
  const hex = Buffer.from(secret).toString("hex");
  const base64 = [0, 1, 2].map((before) => {
    const text = Buffer.from(`${"\0".repeat(before)}${secret}`).toString("base64");
    return text.slice(Math.ceil((before * 8) / 6), Math.floor(((before + secret.length) * 8) / 6));
  });
  const lower = url.replace(/%../g, (byte) => byte.toLowerCase());
  const plain = [secret, json, json.replaceAll("/", "\\/"), url, lower, hex, hex.toUpperCase()];
  const safe = base64.map((form) => form.replaceAll("+", "-").replaceAll("/", "_"));
  return [...plain, ...[...base64, ...safe].filter((form) => form.length > 3)];
}

/** Of one connection alone (RFC 9110, 7.6.1). */
const HOP = /^(connection|keep-alive|te|trailer|transfer-encoding|upgrade|proxy-.*)$/;
/** Who a client claims to be, or what else it claims to ask; and what is written anew. */
const CLAIMS =
  /^(host|expect|accept-encoding|(.*-)?(authorization|token|password|api-key)|cookie2?|forwarded|x-forwarded-.*|x-http-method.*|x-method-override|x-original-url|x-rewrite-url)$/;

/** Pairs of a raw head without what is of its connection, or is named by `drop`. */
function headersOf(raw: readonly string[], drop: RegExp): [string, string][] {
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

function requestHeaders(raw: readonly string[], secret: Secret | null): string[] {
  const passed = headersOf(raw, CLAIMS).filter(([name]) => name !== secret?.header);
  if (!secret) return [...passed.flat(), "accept-encoding", "identity"];
  // Of a part of an answer, the secret could be a part.
  const whole = passed.filter(([name]) => !/^(if-)?range$/.test(name));
  return [...whole.flat(), "accept-encoding", "identity", secret.header, secret.value];
}
const answerHeaders = (raw: readonly string[], text: (shown: string) => string): string[] =>
  headersOf(raw, /^set-cookie2?$/)
    .flat()
    .map(text);
