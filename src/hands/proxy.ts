/**
 * The way out of a sandbox, the host's end: a socket that speaks the proxy protocol (RFC 9110, 9.3.6),
 * ends TLS with a certificate of its own authority, and makes the requests that a route allows.
 *
 * Invariants: where a request goes is written in the table alone, and all of it is decided before a
 * name is looked up. A secret is put in last, sent to its route's hosts only, and taken out of what
 * comes back. A client can harm its own sandbox's way and no other; nothing it says is trusted.
 */
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
import { envOf } from "./bridge.ts";
import { makeAuthority, type Authority } from "./certificates.ts";
import { answerHead, checkHead, flow, openMask, reasonOf, refusalOf } from "./passage.ts";
import { requestHead, secretFor, showsToken, textOf, wireOf } from "./passage.ts";
import { checkRoute, findHost, findRoute, isPrivate, Refusal, type NamedRoute } from "./routes.ts";

export type EgressOptions = {
  routes: Record<string, Route>;
  /** `restMs`: how long a client may take to ask; `idleMs`: how long nothing may move in a request. */
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
      const placeholders = routes.flatMap((route) => route.placeholders ?? []);
      const env = envOf(join(place.inside, "ca.pem"), place.token, placeholders);
      return { env, close: () => (open.delete(exit), exit.close()) };
    },
    close: async () => void (await Promise.all([...open].map((exit) => exit.close()))),
  };
}

// ── One sandbox ─────────────────────────────────────────────────────────────────────────────────

/** A connection. `host`: what it was let through to; null before its CONNECT. */
type Visit = { socket: Socket; host: string | null; answer?: http.ServerResponse; rest?: Timer };

/** A request, its answer, and what ends both for the reason that it is given. */
type Asked = { req: http.IncomingMessage; res: http.ServerResponse; ending: AbortController };

/** Refusals of a day that are written down: a flood fills no disk. */
const MAX_REFUSALS = 200;

/** New connections a second, after a second's worth at once: TLS takes this process's time. */
const PER_SECOND = 100;

const STRANGER = new Refusal(407, "This sandbox's token is needed.");
const ONLY_TLS = new Refusal(403, "This proxy is for https:// alone.");
const USED_UP = new Refusal(429, "The day's requests or bytes are used up until midnight.");
const SILENT = new Refusal(504, "Nothing was heard from either side for too long.");
const LEFT = new Refusal(499, "The client left.");
const CODED = new Refusal(502, "The answer is compressed, and a secret in it would not be seen.");

class Exit {
  readonly #sockets = new Set<Socket>();
  readonly #visits = new WeakMap<object, Visit>();
  readonly #server = createServer((socket) => this.#admit(socket));
  /** Never listens: it is handed connections when they come, and again once their TLS is ours. */
  readonly #http = http.createServer((req, res) => void this.#serve(req, res));
  readonly #context: SecureContext;
  readonly #path: string;
  #day: number;
  #spent: { requests: number; bytes: number };
  #refused = 0;
  /** When the next connection is served, by performance.now(). */
  #turnAt = 0;

  constructor(
    readonly options: EgressOptions,
    readonly place: Place,
    readonly routes: NamedRoute[],
    readonly authority: Authority,
  ) {
    this.#context = createSecureContext(authority.issue(routes.flatMap(({ hosts }) => hosts)));
    this.#path = join(place.folder, "proxy.sock");
    [this.#day, this.#spent] = [dayOf(options.now()), { ...options.spent(place.conversation) }];
    this.#http.on("clientError", (_, socket) => void socket.destroy());
    this.#http.on("connect", (req, socket, early) => {
      const visit = this.#visits.get(socket);
      if (visit?.host === null && early.length === 0) this.#connect(req, visit);
      else socket.destroy(); // CONNECT inside of CONNECT, or bytes before its answer
    });
  }

  async listen(): Promise<void> {
    const ca = join(this.place.folder, "ca.pem");
    await writeFile(`${ca}.new`, this.authority.certificate);
    await rename(`${ca}.new`, ca);
    await rm(this.#path, { force: true }); // of a host that died
    this.#server.listen(this.#path);
    await once(this.#server, "listening");
    await chmod(this.#path, 0o666); // the user inside is another one; only the mount leads here
  }

  async close(): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await rm(this.#path, { force: true });
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
    this.#turnAt = Math.max(this.#turnAt, performance.now() - 1_000) + 1_000 / PER_SECOND;
    const waitMs = this.#turnAt - performance.now();
    if (waitMs <= 0) this.#receive(socket, visit);
    else visit.rest = setTimeout(() => this.#receive(socket, visit), waitMs);
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
    try {
      if (!showsToken(said ?? "", this.place.token)) throw STRANGER;
      visit.host = findHost(this.routes, url);
    } catch (error) {
      const refusal = refusalOf(error, url);
      // Programs ask first whether they have to say who they are: that is no attempt.
      if (said !== undefined) {
        this.#today().requests++;
        this.#note({ ...this.#rowOf("CONNECT", url, ""), ...reasonOf(refusal) });
      }
      return void socket.resume().end(wireOf(refusal)); // who does not hang up has little time
    }
    socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
    const [secureContext, ALPNProtocols] = [this.#context, ["http/1.1"]];
    const secure = new TLSSocket(socket, { isServer: true, secureContext, ALPNProtocols });
    secure.on("error", () => socket.destroy());
    secure.on("close", () => socket.destroy());
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
        row.status ||= LEFT.status;
        row.why ??= LEFT.message;
      }
      this.#note(row);
      this.#rest(visit);
    });
    try {
      this.#count(1, 0);
      if (visit.host === null) throw ONLY_TLS;
      checkHead(req, visit.host);
      const route = findRoute(this.routes, { host: visit.host, method, target });
      row.route = route.name;
      await this.#forward({ req, res, ending }, route, row);
    } catch (error) {
      this.#fail(res, row, ending.signal.aborted ? ending.signal.reason : error);
    }
  }

  async #forward({ req, res, ending }: Asked, route: NamedRoute, row: EgressRow): Promise<void> {
    const { maxRequestBytes, idleMs = 600_000 } = this.options.limits;
    const bytes = Number(req.headers["content-length"] ?? 0);
    const tooLarge = new Refusal(413, `It has more than ${maxRequestBytes} bytes.`);
    if (bytes > maxRequestBytes) throw tooLarge;
    const secret = secretFor(route, this.options.secretOf);
    const goal = await goalOf(route, row.host);
    const { signal } = ending;
    signal.throwIfAborted();
    const idle = setTimeout(() => ending.abort(SILENT), idleMs);
    const meter = (field: "bytesSent" | "bytesReceived", chunk: Buffer): Buffer => {
      idle.refresh();
      row[field] += chunk.length;
      this.#count(0, chunk.length);
      if (row.bytesSent > maxRequestBytes) throw tooLarge;
      return chunk;
    };
    const headers = requestHead(req.rawHeaders, goal.authority, secret);
    const asked = { ...goal, method: row.method, path: req.url, headers, agent: false, signal };
    const upstream = (goal.protocol === "http:" ? http : https).request(asked);
    upstream.on("error", () => undefined); // told by `once` or by `pipeline`, or too late to matter
    res.once("close", () => {
      clearTimeout(idle);
      upstream.destroy();
    });
    const answered = once(upstream, "response", { signal });
    if (bytes > 0 || "transfer-encoding" in req.headers) {
      const body = flow((chunk) => meter("bytesSent", chunk));
      // `req` lives on for the answer; one that has begun counts more than an upload that broke off.
      pipeline(req.iterator({ destroyOnReturn: false }), body, upstream).catch((error) => {
        if (!res.headersSent || error instanceof Refusal) ending.abort(error);
      });
    } else upstream.end();
    const [answer] = (await answered) as [http.IncomingMessage];
    if (secret && (answer.headers["content-encoding"] ?? "identity") !== "identity") throw CODED;
    const mask = openMask(secret?.text ?? "");
    row.status = answer.statusCode ?? 502;
    res.writeHead(row.status, answerHead(answer.rawHeaders, mask)).flushHeaders();
    const shown = flow((chunk) => mask.take(meter("bytesReceived", chunk)), mask.end);
    await pipeline(answer, shown, res, { signal });
  }

  /** Answers with what went wrong, or breaks off an answer that has begun. */
  #fail(res: http.ServerResponse, row: EgressRow, error: unknown): void {
    if (res.closed) return;
    const refusal = refusalOf(error, row.host);
    Object.assign(row, reasonOf(refusal));
    const { route, status, why } = row;
    if (status === 502) this.options.log("way out failed", { route, why });
    if (res.headersSent) return void res.destroy();
    res.writeHead(status, { "content-type": "text/plain; charset=utf-8", connection: "close" });
    res.end(textOf(refusal));
  }

  /** What was used since midnight. */
  #today(): { requests: number; bytes: number } {
    const [day, none] = [dayOf(this.options.now()), { requests: 0, bytes: 0 }];
    if (day !== this.#day) [this.#day, this.#refused, this.#spent] = [day, 0, none];
    return this.#spent;
  }

  /** Refuses where the day's limits are used up; every request counts, a refused one too. */
  #count(requests: number, bytes: number): void {
    const { requestsPerDay, bytesPerDay } = this.options.limits;
    const today = this.#today();
    today.requests += requests;
    today.bytes += bytes;
    if (today.requests > requestsPerDay || today.bytes > bytesPerDay) throw USED_UP;
  }

  #rowOf(method: string, host: string, target: string): EgressRow {
    const path = (target.split("?", 1)[0] ?? "").slice(0, 300);
    const time = { conversation: this.place.conversation, at: this.options.now(), ms: 0 };
    const asked = { route: null, method, host: host.slice(0, 260), path };
    return { ...time, ...asked, status: 0, bytesSent: 0, bytesReceived: 0, why: null };
  }

  #note(row: EgressRow): void {
    row.ms = this.options.now() - row.at;
    const isRefusal = row.why !== null && row.bytesSent + row.bytesReceived === 0;
    if (isRefusal && ++this.#refused === MAX_REFUSALS)
      row.why += " (the day's last that has a row)";
    if (!isRefusal || this.#refused <= MAX_REFUSALS) this.options.audit(row);
  }
}

/** Where a route leads. A name is resolved once, and what was checked is what is connected to. */
async function goalOf(route: Route, host: string) {
  if (route.origin !== undefined) {
    const { protocol, hostname, port, host: authority } = new URL(route.origin);
    const name = hostname.replace(/^\[(.*)\]$/, "$1");
    return { protocol, hostname: name, port, authority, servername: isIP(name) ? "" : name };
  }
  const found = await lookup(host, { all: true });
  if (found.some(({ address }) => isPrivate(address)))
    throw new Refusal(403, `${host} leads to an address that is not public.`);
  const pinned: LookupFunction = (_, __, done) => done(null, found);
  const name = { hostname: host, servername: host, authority: host };
  return { protocol: "https:", port: 443, ...name, lookup: pinned };
}

const dayOf = (at: number): number => new Date(at).setHours(0, 0, 0, 0);
