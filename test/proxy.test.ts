/** The way out of a sandbox, over real sockets: what leaves, what does not, and what comes back. */
import { afterEach, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import * as http from "node:http";
import * as https from "node:https";
import {
  connect,
  createServer,
  type AddressInfo,
  type LookupFunction,
  type Socket,
} from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as tls from "node:tls";
import { config } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
import { openBridge } from "../src/hands/bridge.ts";
import { makeAuthority } from "../src/hands/certificates.ts";
import { openEgress, type Egress, type EgressOptions } from "../src/hands/proxy.ts";
import { openDatabase } from "../src/store/database.ts";
import { egressIn, type EgressRow } from "../src/store/egress.ts";
import type { Route } from "../src/types.ts";
import { until } from "./claw.ts";

const TOKEN = "token-of-this-sandbox";
const SECRET = "canary/SECRET+with=signs?>?>?~~~1234567890";

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const clean of cleanups.splice(0).toReversed()) await clean();
});

type Seen = {
  method: string;
  url: string;
  headers: [string, string][];
  body: string;
  ended: boolean;
};

/** A server that writes down what reaches it. */
async function upstream(
  answer: (req: http.IncomingMessage, res: http.ServerResponse, body: string) => unknown = (
    _,
    res,
  ) => res.end("fine"),
): Promise<{ origin: string; seen: Seen[] }> {
  const seen: Seen[] = [];
  const server = http.createServer((req, res) => {
    const { method = "", url = "", rawHeaders } = req;
    const headers = rawHeaders.flatMap((name, at): [string, string][] =>
      at % 2 ? [] : [[name.toLowerCase(), rawHeaders[at + 1] ?? ""]],
    );
    const one: Seen = { method, url, headers, body: "", ended: false };
    seen.push(one);
    res.on("close", () => (one.ended = true));
    req.on("data", (chunk: Buffer) => (one.body += chunk.toString("latin1")));
    req.on("end", () => answer(req, res, one.body));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  cleanups.push(() => (server.closeAllConnections(), server.close()));
  return { origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, seen };
}

const route = (origin: string | undefined, more: Partial<Route> = {}): Route => ({
  hosts: ["api.test"],
  methods: ["GET", "POST"],
  paths: ["/ok", "/ok/*"],
  secret: { name: "API_KEY", header: "authorization", as: "bearer" },
  ...(origin !== undefined && { origin }),
  ...more,
});

type Rig = {
  egress: Egress;
  folder: string;
  rows: EgressRow[];
  logs: string[];
  port: number;
  env: Record<string, string>;
  clock: { now: number };
};

/** A port that nobody listens on. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** An open way with its bridge; the token's owner is the only client. */
async function openRig(
  routes: Record<string, Route>,
  options: Partial<EgressOptions> & {
    names?: string[];
    limit?: Partial<EgressOptions["limits"]>;
  } = {},
): Promise<Rig> {
  const folder = mkdtempSync(join(tmpdir(), "claw-proxy-"));
  const [rows, logs, clock]: [EgressRow[], string[], { now: number }] = [
    [],
    [],
    { now: Date.now() },
  ];
  const egress = openEgress({
    routes,
    limits: {
      requestsPerDay: 1_000,
      bytesPerDay: 1_000_000_000,
      maxRequestBytes: 1_000_000,
      maxConnections: 16,
      ...options.limit,
    },
    secretOf: (name) => (name === "API_KEY" ? SECRET : undefined),
    audit: (row) => rows.push(row),
    spent: () => ({ requests: 0, bytes: 0 }),
    now: () => clock.now,
    log: (event, facts) => logs.push(`${event} ${JSON.stringify(facts)}`),
    ...options,
  });
  const names = options.names ?? Object.keys(routes);
  const way = await egress.open({
    conversation: "slack:C1",
    folder,
    inside: folder,
    routes: names,
    token: TOKEN,
  });
  const port = await freePort();
  const bridge = openBridge(join(folder, "proxy.sock"), port);
  cleanups.push(
    () => rmSync(folder, { recursive: true }),
    () => egress.close(),
    () => bridge.close(),
  );
  const env = Object.fromEntries(
    Object.entries(way.env).map(([name, value]) => [name, value.replace(":3128", `:${port}`)]),
  );
  return { egress, folder, rows, logs, port, env, clock };
}

const credentials = (token = TOKEN) => `Proxy-Authorization: Basic ${btoa(`claw:${token}`)}\r\n`;

/** All that comes until the other side ends; "" if it ends without a word. */
function readAll(socket: Socket): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  let text = "";
  socket.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")));
  socket.on("error", () => resolve(text));
  socket.on("close", () => resolve(text));
  return promise;
}

/** Sends bytes to the proxy as they are. */
async function say(rig: Rig, bytes: string): Promise<string> {
  const socket = connect(join(rig.folder, "proxy.sock"));
  socket.write(bytes, "latin1");
  return readAll(socket);
}

/** Where a sandbox's way begins: its bridge, if it has one. */
type Door = { folder: string; port?: number };

/** A connection to `host` within TLS. */
async function tunnel({ folder, port }: Door, host = "api.test"): Promise<tls.TLSSocket> {
  const socket = port ? connect(port, "127.0.0.1") : connect(join(folder, "proxy.sock"));
  socket.write(`CONNECT ${host}:443 HTTP/1.1\r\nHost: ${host}:443\r\n${credentials()}\r\n`);
  const [head] = await new Promise<Buffer[]>((resolve) =>
    socket.once("data", (...all: Buffer[]) => resolve(all)),
  );
  if (!head?.toString().includes(" 200 ")) throw new Error(head?.toString());
  const ca = await Bun.file(join(folder, "ca.pem")).text();
  const secure = tls.connect({ socket, servername: host, ca });
  await new Promise<void>((resolve, reject) =>
    secure.once("secureConnect", resolve).once("error", reject),
  );
  return secure;
}

/** Sends bytes within TLS as they are; the request has to end its connection. */
async function sayInside(rig: Door, bytes: string, host?: string): Promise<string> {
  const secure = await tunnel(rig, host);
  const text = readAll(secure);
  secure.write(bytes, "latin1");
  return text;
}

const get = (target: string, more = "", method = "GET") =>
  `${method} ${target} HTTP/1.1\r\nHost: api.test\r\n${more}Connection: close\r\n\r\n`;
const statusOf = (text: string): number => Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1] ?? 0);

test("a request leaves with the secret, and the answer comes back", async () => {
  const { origin, seen } = await upstream();
  const rig = await openRig({ api: route(origin) });
  const text = await sayInside(rig, get("/ok?q=1", "X-Own: 1\r\n"));
  expect(statusOf(text)).toBe(200);
  expect(text).toEndWith("fine");
  expect(seen).toHaveLength(1);
  expect(seen[0]?.url).toBe("/ok?q=1");
  expect(seen[0]?.headers).toContainEqual(["authorization", `Bearer ${SECRET}`]);
  expect(seen[0]?.headers).toContainEqual(["x-own", "1"]);
  await until(() => rig.rows.length === 1);
  expect(rig.rows[0]).toMatchObject({
    conversation: "slack:C1",
    route: "api",
    method: "GET",
    host: "api.test",
    path: "/ok",
    status: 200,
    bytesSent: 0,
    bytesReceived: 4,
    why: null,
  });
});

test("CONNECT leads to listed hosts at port 443, and nowhere else", async () => {
  const { origin, seen } = await upstream();
  const rig = await openRig({ api: route(origin) });
  const refused = [
    "allowed.com:443",
    "api.test.evil.test:443",
    "evil-api.test:443",
    "api.test@evil.test:443",
    "api.test:443@evil.test:443",
    "api.test:80",
    "api.test:22",
    "api.test:0443",
    "api.test:",
    "api.test",
    "api.test..:443",
    ".api.test:443",
    "api.test%00.evil.test:443",
    "аpi.test:443",
    "http://api.test:443",
    "//api.test:443",
    "/api.test:443",
    "*.test:443",
    "127.0.0.1:443",
    "127.1:443",
    "0x7f.1:443",
    "0x7f000001:443",
    "2130706433:443",
    "2852039166:443",
    "169.254.169.254:443",
    "[::1]:443",
    "[::ffff:a9fe:a9fe]:443",
    "localhost:443",
  ];
  for (const target of refused) {
    const text = await say(
      rig,
      `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n${credentials()}\r\n`,
    );
    expect([target, [0, 400, 403].includes(statusOf(text))]).toEqual([target, true]);
  }
  for (const target of ["api.test:443", "API.TEST:443", "api.test.:443"]) {
    const socket = connect(join(rig.folder, "proxy.sock"));
    socket.write(`CONNECT ${target} HTTP/1.1\r\nHost: x\r\n${credentials()}\r\n`);
    const head = await new Promise<Buffer>((resolve) => socket.once("data", resolve));
    socket.destroy();
    expect([target, statusOf(head.toString())]).toEqual([target, 200]);
  }
  expect(seen).toEqual([]);
  expect(rig.rows[0]).toMatchObject({
    method: "CONNECT",
    host: "allowed.com:443",
    status: 403,
    route: null,
  });
});

test("who does not show the token of this sandbox gets nothing", async () => {
  const rig = await openRig({ api: route(undefined) });
  const ask = (line: string) => say(rig, `CONNECT api.test:443 HTTP/1.1\r\nHost: x\r\n${line}\r\n`);
  const silent = await ask("");
  expect(statusOf(silent)).toBe(407);
  expect(silent).toContain('\r\nproxy-authenticate: Basic realm="claw"\r\n');
  expect(rig.rows).toEqual([]); // programs ask first whether they have to say it
  for (const line of [
    credentials("token-of-another-sandbox"),
    credentials(""),
    credentials(`${TOKEN}x`),
    `Proxy-Authorization: Bearer ${TOKEN}\r\n`,
    `Authorization: Basic ${btoa(`claw:${TOKEN}`)}\r\nProxy-Authorization: Basic\r\n`,
  ])
    expect([line, statusOf(await ask(line))]).toEqual([line, 407]);
  expect(rig.rows).toHaveLength(5);
  expect(rig.rows.every(({ status }) => status === 407)).toBe(true);
});

test("without TLS nothing leaves", async () => {
  const { origin, seen } = await upstream();
  const rig = await openRig({ api: route(origin) });
  for (const bytes of [
    `GET ${origin}/ok HTTP/1.1\r\nHost: 127.0.0.1\r\n${credentials()}\r\n`,
    `GET http://api.test/ok HTTP/1.1\r\nHost: api.test\r\n${credentials()}\r\n`,
    `GET https://api.test/ok HTTP/1.1\r\nHost: api.test\r\n${credentials()}\r\n`,
    `GET /ok HTTP/1.1\r\nHost: api.test\r\n${credentials()}\r\n`,
    `GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n${credentials()}\r\n`,
  ])
    expect([bytes, statusOf(await say(rig, bytes))]).toEqual([bytes, 403]);
  // Bytes in the clear after CONNECT, and before its answer.
  const connecting = `CONNECT api.test:443 HTTP/1.1\r\nHost: x\r\n${credentials()}\r\n`;
  expect(await say(rig, connecting + get("/ok"))).not.toContain("fine");
  expect(seen).toEqual([]);
});

const head = (more: string) => `GET /ok HTTP/1.1\r\n${more}Connection: close\r\n\r\n`;
const post = (more: string, body = "") =>
  `POST /ok HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n${more}\r\n${body}`;

test("a request that its route does not allow never reaches its host", async () => {
  const { origin, seen } = await upstream();
  const rig = await openRig({ api: route(origin, { query: false }) });
  const refused: [string, ...number[]][] = [
    [get("/"), 403],
    [get("/OK"), 403],
    [get("/okay"), 403],
    [get("/ok/a/b"), 403],
    [get("/ok?"), 403],
    [get("/ok?q=1"), 403],
    [get("/ok", "", "DELETE"), 403],
    [get("/ok", "", "get"), 0, 403],
    [get("/ok", "", "HEAD"), 403],
    [get("/ok", "", "OPTIONS"), 403],
    [get("//evil.test/ok"), 400],
    [get("http://evil.test/ok"), 400],
    [get("https://api.test/ok"), 400],
    [get("/\\evil.test/ok"), 400],
    [get("\\\\evil.test/ok"), 0, 400],
    [get("*"), 400],
    [get("/ok/../secret"), 400],
    [get("/ok/./x"), 400],
    [get("/ok/.."), 400],
    [get("/ok/..;/x"), 400],
    [get("/ok/%2e%2e"), 400],
    [get("/ok/%2E"), 400],
    [get("/ok/a%2fb"), 403],
    [get("/ok/a%2Fb"), 403],
    [get("/ok/a%5cb"), 400],
    [get("/ok/a%00b"), 400],
    [get("/ok/a%0d%0aX:1"), 400],
    [get("/ok/%"), 400],
    [get("/ok/%zz"), 400],
    [get("/ok#x"), 400],
    [get("/ok/\x01"), 0, 400],
    [get("/ok/\xe9"), 0, 400],
    [get(`/ok/${"x".repeat(9_000)}`), 400],
    [head("Host: evil.test\r\n"), 403],
    [head("Host: api.test:80\r\n"), 403],
    [head("Host: api.test.evil.test\r\n"), 403],
    [head("Host: api.test, evil.test\r\n"), 403],
    [head("Host: \r\n"), 403],
    [head("Host: api.test\r\nHost: evil.test\r\n"), 400],
    [head("Host: api.test\r\nHost: api.test\r\n"), 400],
    [head(""), 400],
    [head("Host: api.test\r\nX: a\r\n folded\r\n"), 0, 400],
    [head("Host: api.test\r\nX : a\r\n"), 0, 400],
    [head("Host: api.test\r\nX: a\x00b\r\n"), 0, 400],
    [head("Host: api.test\r\nUpgrade: websocket\r\n").replace("close", "upgrade"), 403],
    [post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 0, 400],
    [post("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd"), 0, 400],
    [post("Content-Length: +3\r\n", "abc"), 0, 400],
    [post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 0, 400],
    [post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), 0, 400],
    [post("Transfer-Encoding: identity\r\n", ""), 0, 400],
    [`CONNECT api.test:443 HTTP/1.1\r\nHost: api.test\r\n${credentials()}\r\n`, 0],
    ["GET /ok\r\n\r\n", 0, 400],
    ["\x16\x03garbage\r\n\r\n", 0],
  ];
  for (const [bytes, ...statuses] of refused) {
    const status = statusOf(await sayInside(rig, bytes));
    expect([bytes, status, statuses.includes(status)]).toEqual([bytes, status, true]);
  }
  expect(seen).toEqual([]);
  expect(statusOf(await sayInside(rig, get("/ok/a%20b")))).toBe(200);
  expect(seen.map(({ url }) => url)).toEqual(["/ok/a%20b"]);
  expect(JSON.stringify(rig.rows)).not.toContain("q=1");
});

test("what a client claims to be is dropped, and one header is put in", async () => {
  const { origin, seen } = await upstream();
  const rig = await openRig({
    api: route(origin, { secret: { name: "API_KEY", header: "x-api-key", as: "plain" } }),
  });
  const dropped = [
    "Authorization: Bearer mine",
    "X-Api-Key: mine",
    "x-api-key: mine too",
    "Cookie: mine",
    "X-Goog-Api-Key: mine",
    "Private-Token: mine",
    "Proxy-Authorization: Basic mine",
    "Proxy-Anything: mine",
    "Connection: X-Named, keep-alive",
    "X-Named: mine",
    "TE: trailers",
    "Trailer: mine",
    "Keep-Alive: mine",
    "X-Forwarded-Host: mine",
    "X-Original-Url: /mine",
    "X-HTTP-Method-Override: DELETE",
    "Accept-Encoding: gzip",
    "Range: bytes=0-3",
  ];
  await sayInside(
    rig,
    get("/ok", `${dropped.join("\r\n")}\r\nIdempotency-Key: kept\r\nX-B: 1\r\nx-b: 2\r\n`),
  );
  expect(seen[0]?.headers).toEqual([
    ["host", origin.slice(7)],
    ["accept-encoding", "identity"],
    ["x-api-key", SECRET],
    ["idempotency-key", "kept"],
    ["x-b", "1"],
    ["x-b", "2"],
    ["connection", "close"],
  ]);
});

test("a route without its secret is closed, and a new secret holds at once", async () => {
  const { origin, seen } = await upstream();
  let secret: string | undefined;
  const rig = await openRig(
    {
      api: route(origin, {
        secret: { name: "API_KEY", header: "authorization", as: { basic: "bot" } },
      }),
    },
    { secretOf: () => secret },
  );
  for (const wrong of [undefined, "", "  ", "two\nlines", "ключ"]) {
    secret = wrong;
    const text = await sayInside(rig, get("/ok"));
    expect([wrong, statusOf(text)]).toEqual([wrong, 502]);
    expect(text).toContain("The host has no usable API_KEY");
  }
  expect(seen).toEqual([]);
  for (const one of ["first", "second"]) {
    secret = one;
    await sayInside(rig, get("/ok"));
  }
  const values = seen.map(({ headers }) => headers.find(([name]) => name === "authorization")?.[1]);
  expect(values).toEqual([`Basic ${btoa("bot:first")}`, `Basic ${btoa("bot:second")}`]);
});

test("bodies go through, up to the limit", async () => {
  const { origin, seen } = await upstream((_, res, body) => void res.end(`${body.length}`));
  const rig = await openRig({ api: route(origin) }, { limit: { maxRequestBytes: 1_000 } });
  const chunked = (size: number) =>
    post(
      "Transfer-Encoding: chunked\r\n",
      `${size.toString(16)}\r\n${"x".repeat(size)}\r\n0\r\n\r\n`,
    );
  expect(await sayInside(rig, post("Content-Length: 1000\r\n", "x".repeat(1_000)))).toEndWith(
    "1000",
  );
  expect(await sayInside(rig, chunked(1_000))).toContain("1000");
  expect(seen.map(({ body }) => body.length)).toEqual([1_000, 1_000]);
  expect(statusOf(await sayInside(rig, post("Content-Length: 1001\r\n", "x".repeat(1_001))))).toBe(
    413,
  );
  expect(seen).toHaveLength(2);
  expect(statusOf(await sayInside(rig, chunked(1_001)))).toBe(413);
  expect(seen.at(-1)?.ended).not.toBe(false);
});

test("answers pass as they are, but for cookies and what belongs to a connection", async () => {
  const { origin } = await upstream((_, res) => {
    res.writeHead(
      302,
      [
        ["Location", "http://169.254.169.254/"],
        ["Set-Cookie", "a=1"],
        ["set-cookie", "b=2"],
        ["X-Twice", "1"],
        ["X-Twice", "2"],
        ["Keep-Alive", "timeout=99"],
        ["Connection", "X-Mine"],
        ["X-Mine", "1"],
      ].flat(),
    );
    res.end("gone");
  });
  const rig = await openRig({ api: route(origin) });
  const text = (await sayInside(rig, get("/ok"))).toLowerCase();
  expect(statusOf(text.toUpperCase())).toBe(302);
  expect(text).toContain("location: http://169.254.169.254/");
  expect(text).toContain("x-twice: 1\r\nx-twice: 2");
  for (const gone of ["cookie", "x-mine", "timeout=99"]) expect(text).not.toContain(gone);
});

const lower = (text: string) => text.replace(/%../g, (byte) => byte.toLowerCase());
/** As an echo service might give it back, and what of it must not be there. */
const forms = [
  SECRET,
  JSON.stringify(SECRET).slice(1, -1).replaceAll("/", "\\/"),
  encodeURIComponent(SECRET),
  lower(encodeURIComponent(SECRET)),
  ...["", "u:", "user:", "users:"].map((user) => btoa(user + SECRET)),
  btoa(SECRET).replaceAll("+", "-").replaceAll("/", "_"),
  Buffer.from(SECRET).toString("hex"),
  Buffer.from(SECRET).toString("hex").toUpperCase(),
];
const middle = (form: string) => form.slice(10, -10);

test("a secret is taken out of what comes back, wherever chunks are cut", async () => {
  const echo = `<${forms.join("|")}>`;
  const { origin } = await upstream(async (req, res) => {
    const at = Number(req.url?.split("/").at(-1));
    res.writeHead(200, { "x-echo": `Bearer ${SECRET}`, "content-length": echo.length });
    res.write(echo.slice(0, at));
    await Bun.sleep(2);
    res.write(echo.slice(at, at + 1));
    await Bun.sleep(2);
    res.end(echo.slice(at + 1));
  });
  const rig = await openRig({ api: route(origin) });
  const cuts = Array.from({ length: 60 }, (_, at) => at + 1).concat(100, 150, 200, echo.length - 1);
  const texts: string[] = [];
  for (let at = 0; at < cuts.length; at += 8) {
    const some = cuts.slice(at, at + 8).map((cut) => sayInside(rig, get(`/ok/${cut}`)));
    texts.push(...(await Promise.all(some)));
  }
  for (const [index, text] of texts.entries()) {
    expect([cuts[index], statusOf(text)]).toEqual([cuts[index], 200]);
    const body = text.slice(text.indexOf("\r\n\r\n") + 4);
    expect(body).toHaveLength(echo.length);
    for (const form of forms)
      expect([cuts[index], form, body.includes(middle(form))]).toEqual([cuts[index], form, false]);
    expect(text).toContain(`x-echo: Bearer ${"*".repeat(SECRET.length)}\r\n`);
    expect(text).not.toContain("canary");
  }
});

test("an answer that ends as the secret begins is whole", async () => {
  const { origin } = await upstream((_, res) => res.end(`x${SECRET.slice(0, 12)}`));
  const rig = await openRig({ api: route(origin) });
  expect(await sayInside(rig, get("/ok"))).toEndWith(`\r\n\r\nx${SECRET.slice(0, 12)}`);
});

test("an answer that cannot be searched for the secret does not come back", async () => {
  const { origin, seen } = await upstream((_, res) => {
    res.writeHead(200, { "content-encoding": "gzip" });
    res.write(Bun.gzipSync(SECRET)); // and it goes on
  });
  const rig = await openRig({ api: route(origin) });
  const text = await sayInside(rig, get("/ok"));
  expect(statusOf(text)).toBe(502);
  expect(text).toContain("compressed");
  await until(() => seen[0]?.ended === true);
});

test("without a secret an answer passes in whatever coding it has, and no credentials leave", async () => {
  const { origin, seen } = await upstream((_, res) => {
    res.writeHead(200, { "content-encoding": "gzip" });
    res.end(Bun.gzipSync("fine"));
  });
  const rig = await openRig({ api: route(origin, { secret: undefined }) });
  const text = await sayInside(rig, get("/ok", "Authorization: mine\r\nRange: bytes=0-3\r\n"));
  expect(statusOf(text)).toBe(200);
  expect(text.toLowerCase()).toContain("content-encoding: gzip");
  const names = seen[0]?.headers.map(([name]) => name);
  expect(names).toEqual(["host", "accept-encoding", "range", "connection"]);
});

test("events arrive one by one, and a client that leaves ends the request", async () => {
  let send: (text: string) => void = () => undefined;
  const { origin, seen } = await upstream((_, res) => {
    res.writeHead(200, { "content-type": "text/event-stream" });
    res.flushHeaders();
    send = (text) => void res.write(text);
  });
  const rig = await openRig({ api: route(origin) });
  const secure = await tunnel(rig);
  let text = "";
  secure.on("data", (chunk: Buffer) => (text += chunk.toString()));
  secure.write(get("/ok"));
  await until(() => text.includes("text/event-stream"));
  for (const event of ["data: one\n\n", "data: two\n\n", "data: three\n\n"]) {
    send(event);
    await until(() => text.includes(event));
  }
  expect(seen[0]?.ended).toBe(false);
  secure.destroy();
  await until(() => seen[0]?.ended === true);
  await until(() => rig.rows.length === 1);
  expect(rig.rows[0]).toMatchObject({ status: 200, why: "The client left." });
});

// ── Where it leads ──────────────────────────────────────────────────────────────────────────────

test("a name that leads to this machine or nowhere is not followed", async () => {
  const local = { hosts: ["localhost", "nowhere.invalid"] };
  const rig = await openRig({ api: route(undefined, local) });
  const ask = (host: string) => sayInside(rig, get("/ok").replace("api.test", host), host);
  const refused = await ask("localhost");
  expect(statusOf(refused)).toBe(403);
  expect(refused).toContain("localhost leads to an address that is not public");
  const lost = await ask("nowhere.invalid");
  expect(statusOf(lost)).toBe(502);
  expect(rig.logs).toHaveLength(1);
});

/** An authority that nobody knows, and a server with its certificate for `name`. */
const foreign = makeAuthority(Date.now());
async function tlsServer(name: string): Promise<number> {
  const server = https.createServer(foreign.issue([name]), (_, res) => void res.end("fine"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  cleanups.push(() => (server.closeAllConnections(), server.close()));
  return (server.address() as AddressInfo).port;
}

test("node:https connects to the address it is given, and asks it for the name", async () => {
  const port = await tlsServer("right.test");
  const lookup: LookupFunction = (_, __, done) => done(null, [{ address: "127.0.0.1", family: 4 }]);
  const ask = (hostname: string) => {
    const { promise, resolve } = Promise.withResolvers<string>();
    const asked = {
      hostname,
      port,
      servername: hostname,
      ca: foreign.certificate,
      lookup,
      agent: false,
    };
    const req = https.get(asked, (answer) => resolve(`${answer.statusCode}`));
    req.on("error", (error) => resolve("code" in error ? String(error.code) : error.message));
    return promise;
  };
  expect(await ask("right.test")).toBe("200");
  expect(await ask("wrong.test")).toBe("ERR_TLS_CERT_ALTNAME_INVALID");
});

test("an upstream's certificate has to be trusted, and its host's", async () => {
  const [right, wrong] = [await tlsServer("localhost"), await tlsServer("other.test")];
  const routes = {
    right: route(`https://localhost:${right}`, { hosts: ["right.test"] }),
    wrong: route(`https://localhost:${wrong}`, { hosts: ["wrong.test"] }),
  };
  const ask = (rig: Door, host: string) =>
    sayInside(rig, get("/ok").replace("api.test", host), host);
  const rig = await openRig(routes);
  const stranger = await ask(rig, "right.test");
  expect(statusOf(stranger)).toBe(502);
  expect(stranger).toContain("UNABLE_TO_VERIFY");
  // Whom a process trusts is settled when it starts: one that trusts the authority of these two.
  const folder = join(rig.folder, "trusting");
  mkdirSync(folder);
  await Bun.write(join(rig.folder, "foreign.pem"), foreign.certificate);
  const limits = { requestsPerDay: 9, bytesPerDay: 1e9, maxRequestBytes: 1e9, maxConnections: 9 };
  const place = {
    conversation: "c",
    folder,
    inside: folder,
    token: TOKEN,
    routes: Object.keys(routes),
  };
  const script = `
    const { openEgress } = await import(${JSON.stringify(join(import.meta.dir, "../src/hands/proxy.ts"))});
    const [routes, limits, place] = ${JSON.stringify([routes, limits, place])};
    const zero = () => ({ requests: 0, bytes: 0 });
    const rest = { secretOf: () => "x", audit() {}, spent: zero, now: Date.now, log() {} };
    await openEgress({ routes, limits, ...rest }).open(place);
    console.log("open");`;
  const child = Bun.spawn([process.execPath, "-e", script], {
    env: { ...process.env, NODE_EXTRA_CA_CERTS: join(rig.folder, "foreign.pem") },
    stdout: "pipe",
  });
  cleanups.push(() => child.kill());
  await child.stdout.getReader().read();
  expect(statusOf(await ask({ folder }, "right.test"))).toBe(200);
  const refused = await ask({ folder }, "wrong.test");
  expect(statusOf(refused)).toBe(502);
  expect(refused).toContain("ERR_TLS_CERT_ALTNAME_INVALID");
});

test("an upstream that is down, silent or speaks no HTTP is told, without the secret", async () => {
  const servers = [
    "",
    "garbage",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
  ];
  const ports = await Promise.all(
    servers.map(async (text) => {
      const server = createServer((socket) => {
        socket.on("error", () => socket.destroy());
        if (text) socket.once("data", () => socket.end(`${text}${SECRET}\r\n\r\n`));
      });
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      cleanups.push(() => server.close());
      return (server.address() as AddressInfo).port;
    }),
  );
  for (const [port, status] of [
    [1, 502],
    [ports[0], 504],
    [ports[1], 502],
    [ports[2], 504],
  ]) {
    const rig = await openRig(
      { api: route(`http://127.0.0.1:${port}`) },
      { limit: { idleMs: 200 } },
    );
    const text = await sayInside(rig, get("/ok"));
    expect([port, text, [status, 502].includes(statusOf(text))]).toEqual([port, text, true]);
    await until(() => rig.rows.length === 1);
    expect(text + rig.logs.join() + JSON.stringify(rig.rows)).not.toContain(SECRET);
  }
});

// ── Limits ──────────────────────────────────────────────────────────────────────────────────────

test("a day has so many requests, refused ones too, and the next has them anew", async () => {
  const { origin, seen } = await upstream();
  const rig = await openRig(
    { api: route(origin) },
    { limit: { requestsPerDay: 5 }, spent: () => ({ requests: 2, bytes: 0 }) },
  );
  for (const [target, status] of [
    ["/ok", 200],
    ["/no", 403],
    ["/ok", 200],
    ["/ok", 429],
    ["/ok", 429],
  ] as const)
    expect(statusOf(await sayInside(rig, get(target)))).toBe(status);
  expect(seen).toHaveLength(2);
  rig.clock.now += 86_400_000;
  for (const _ of [1, 2, 3, 4])
    await say(rig, `CONNECT evil.test:443 HTTP/1.1\r\nHost: x\r\n${credentials()}\r\n`);
  expect(statusOf(await sayInside(rig, get("/ok")))).toBe(200);
  expect(statusOf(await sayInside(rig, get("/ok")))).toBe(429);
  rig.clock.now += 86_400_000;
  expect(statusOf(await sayInside(rig, get("/ok")))).toBe(200);
});

test("a day has so many bytes, and an answer that exceeds them is broken off", async () => {
  const { origin } = await upstream((_, res) => void res.end("x".repeat(100_000)));
  const rig = await openRig({ api: route(origin) }, { limit: { bytesPerDay: 150_000 } });
  expect(await sayInside(rig, get("/ok"))).toEndWith("x".repeat(100_000));
  const broken = await sayInside(rig, get("/ok"));
  expect(broken.length).toBeLessThan(100_000);
  await until(() => rig.rows.length === 2);
  expect(rig.rows[1]).toMatchObject({ status: 429 });
  expect(rig.rows[1]?.bytesReceived).toBeGreaterThan(0);
  const refused = await sayInside(rig, get("/ok"));
  expect(statusOf(refused)).toBe(429);
  expect(refused).toContain("midnight");
});

test("a flood of refusals leaves no more rows than a day may have", async () => {
  const rig = await openRig({ api: route(undefined) });
  const start = performance.now();
  const knock = () => say(rig, `CONNECT evil.test:443 HTTP/1.1\r\nHost: x\r\n${credentials()}\r\n`);
  for (let batch = 0; batch < 25; batch++) await Promise.all(Array.from({ length: 10 }, knock));
  expect(performance.now() - start).toBeGreaterThan(1_000); // 100 at once, and 100 a second
  expect(rig.rows).toHaveLength(200);
  expect(rig.rows.at(-1)?.why).toContain("last that has a row");
  rig.clock.now += 86_400_000;
  await sayInside(rig, get("/no"));
  await until(() => rig.rows.length === 201);
});

test("connections beyond the limit are closed, and those that end make room", async () => {
  const { origin } = await upstream();
  const rig = await openRig({ api: route(origin) }, { limit: { maxConnections: 4 } });
  const idle = Array.from({ length: 4 }, () => connect(join(rig.folder, "proxy.sock")));
  await Promise.all(
    idle.map((socket) => new Promise((resolve) => socket.once("connect", resolve))),
  );
  expect(await say(rig, `CONNECT api.test:443 HTTP/1.1\r\n\r\n`)).toBe("");
  for (const socket of idle) socket.destroy();
  await Bun.sleep(20);
  for (let index = 0; index < 30; index++)
    expect(statusOf(await sayInside(rig, get("/ok")))).toBe(200);
});

test("who is slow, silent or mad is put out, and others do not feel it", async () => {
  const { origin, seen } = await upstream();
  const hostile = await openRig(
    { api: route(origin) },
    { limit: { restMs: 300, maxConnections: 64 } },
  );
  const rig = await openRig({ api: route(origin) });
  const closed: string[] = [];
  const attack = (name: string, socket: Socket, bytes: string[] = []) => {
    socket.on("error", () => socket.destroy());
    socket.on("close", () => closed.push(name)).resume();
    for (const some of bytes) socket.write(some);
  };
  const plain = () => connect(join(hostile.folder, "proxy.sock"));
  attack("silent", plain());
  attack("half a head", plain(), ["CONNECT api.test:443 HTTP/1.1\r\nX-A:"]);
  attack("huge head", plain(), [`CONNECT api.test:443 HTTP/1.1\r\nX-A: ${"x".repeat(1_000_000)}`]);
  attack("many headers", plain(), [
    `CONNECT api.test:443 HTTP/1.1\r\n${"X-A: 1\r\n".repeat(50_000)}`,
  ]);
  attack("garbage", plain(), ["\x00\xff".repeat(10_000)]);
  attack("no TLS", plain(), [`CONNECT api.test:443 HTTP/1.1\r\nHost: x\r\n${credentials()}\r\n`]);
  attack("silent within TLS", await tunnel(hostile));
  attack("half a head within TLS", await tunnel(hostile), ["GET /ok HTTP/1.1\r\nHost:"]);
  attack("huge head within TLS", await tunnel(hostile), [
    `GET /ok HTTP/1.1\r\nX: ${"x".repeat(1_000_000)}`,
  ]);
  attack("many at once", await tunnel(hostile), [
    `GET /ok HTTP/1.1\r\nHost: api.test\r\n\r\n`.repeat(50),
  ]);
  const drip = await tunnel(hostile);
  attack("drip", drip, ["GET /ok HTTP/1.1\r\nHost: api.test\r\n"]);
  const dripping = setInterval(() => drip.destroyed || drip.write("X"), 20);
  cleanups.push(() => clearInterval(dripping));
  for (let index = 0; index < 1_000; index++) plain().on("error", () => undefined);
  expect(statusOf(await sayInside(rig, get("/ok")))).toBe(200);
  await until(() => closed.length === 11, 4_000);
  expect(seen.length).toBeLessThan(4);
  expect(statusOf(await sayInside(hostile, get("/ok")))).toBe(200);
});

test("a request in which nothing moves is ended", async () => {
  const { origin, seen } = await upstream((_, res) => void res.write("begun"));
  const rig = await openRig({ api: route(origin) }, { limit: { idleMs: 150 } });
  const text = await sayInside(rig, get("/ok"));
  expect(text).toContain("begun");
  await until(() => seen[0]?.ended === true && rig.rows.length === 1);
  expect(rig.rows[0]?.why).toContain("Nothing was heard");
  const slow = await upstream(async (_, res) => {
    for (const part of "slowly") {
      res.write(part);
      await Bun.sleep(50);
    }
    res.end(".");
  });
  const other = await openRig({ api: route(slow.origin) }, { limit: { idleMs: 150 } });
  expect(await sayInside(other, get("/ok"))).toContain("\r\n.\r\n");
});

test("closing ends what is open and takes the socket away", async () => {
  const { origin, seen } = await upstream((_, res) => void res.write("begun"));
  const rig = await openRig({ api: route(origin) });
  const secure = await tunnel(rig);
  secure
    .on("error", () => undefined)
    .resume()
    .write(get("/ok"));
  await until(() => seen.length === 1);
  await rig.egress.close();
  await until(() => secure.destroyed && seen[0]?.ended === true);
  expect(existsSync(join(rig.folder, "proxy.sock"))).toBe(false);
});

test("a name that the table does not have is a mistake, and the sandbox is told where to look", async () => {
  const rig = await openRig(
    { api: route(undefined, { placeholders: ["API_KEY"] }), other: route(undefined) },
    { names: ["api"] },
  );
  let failure: unknown;
  const place = { conversation: "c", folder: rig.folder, inside: "/box", token: TOKEN };
  await rig.egress
    .open({ ...place, routes: ["api", "nothing"] })
    .catch((error: unknown) => (failure = error));
  expect(failure).toBeInstanceOf(UsageError);
  expect(String(failure)).toContain(
    'no way out named "nothing". In config.egress.routes: api, other.',
  );
  const { env } = await rig.egress.open({ ...place, routes: ["api"] });
  expect(env["HTTPS_PROXY"]).toBe(`http://claw:${TOKEN}@127.0.0.1:3128`);
  expect(env["SSL_CERT_FILE"]).toBe("/box/ca.pem");
  expect(env["API_KEY"]).toBe("put-in-by-the-host");
  expect(JSON.stringify(env)).not.toContain(SECRET);
  expect(statSync(join(rig.folder, "proxy.sock")).mode & 0o777).toBe(0o666);
  expect(await Bun.file(join(rig.folder, "ca.pem")).text()).not.toContain("PRIVATE");
});

test("the log of a way is kept, and tells what a day has used", async () => {
  const home = mkdtempSync(join(tmpdir(), "claw-egress-"));
  const opened = openDatabase(home);
  cleanups.push(
    () => rmSync(home, { recursive: true }),
    () => opened.close(),
  );
  const log = egressIn(opened);
  const { origin } = await upstream();
  const now = Date.now();
  const audit = (row: EgressRow) => void log.add(row);
  const spent = (conversation: string) => log.spent(conversation, now);
  const rig = await openRig({ api: route(origin) }, { audit, spent });
  expect(spent("slack:C1")).toEqual({ requests: 0, bytes: 0 });
  await sayInside(rig, post("Content-Length: 3\r\n", "abc"));
  await sayInside(rig, get("/no?secret=1"));
  await until(() => log.list(9).length === 2);
  expect(log.list(9)).toMatchObject([
    { path: "/no", status: 403, route: null, why: expect.stringContaining("No route") },
    { path: "/ok", status: 200, route: "api", bytesSent: 3, bytesReceived: 4, why: null },
  ]);
  expect(spent("slack:C1")).toEqual({ requests: 2, bytes: 7 });
  expect(log.spent("slack:C1", now + 86_400_000)).toEqual({ requests: 0, bytes: 0 });
  expect(spent("slack:C2")).toEqual({ requests: 0, bytes: 0 });
  await log.forget(now + 60_000);
  expect(log.list(9)).toEqual([]);
});

// ── The bridge, and programs that know nothing of all this ──────────────────────────────────────

test("while the host is away clients are told so, and afterwards they are served", async () => {
  const { origin } = await upstream();
  const rig = await openRig({ api: route(origin) });
  const ask = async (): Promise<string> => {
    const socket = connect(rig.port, "127.0.0.1");
    socket.write(`CONNECT api.test:443 HTTP/1.1\r\nHost: x\r\n${credentials()}\r\n`);
    return (await new Promise<Buffer>((resolve) => socket.once("data", resolve))).toString();
  };
  expect(statusOf(await ask())).toBe(200);
  await rig.egress.close();
  const away = await ask();
  expect(statusOf(away)).toBe(502);
  expect(away).toContain("closed for the moment");
  const place = { conversation: "c", folder: rig.folder, inside: "/box", token: TOKEN };
  await rig.egress.open({ ...place, routes: ["api"] });
  expect(statusOf(await ask())).toBe(200);
});

test("the bridge carries ends in either direction, and no more than the other side takes", async () => {
  const folder = mkdtempSync(join(tmpdir(), "claw-bridge-"));
  const [path, port] = [join(folder, "proxy.sock"), await freePort()];
  let mode = "answer at the end";
  const late: string[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    let text = "";
    socket.on("error", () => socket.destroy());
    if (mode === "never read") return void socket.pause();
    if (mode === "answer first") socket.end("nothing more from here");
    socket.on("data", (chunk: Buffer) => (text += chunk.toString()));
    socket.on("end", () => (mode === "answer first" ? late.push(text) : socket.end(`had ${text}`)));
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const bridge = openBridge(path, port);
  cleanups.push(
    () => rmSync(folder, { recursive: true }),
    () => server.close(),
    () => bridge.close(),
  );
  const client = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  client.end("all of it");
  expect(await readAll(client)).toBe("had all of it");
  mode = "answer first";
  const slow = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  await new Promise((resolve) => slow.on("end", resolve).resume());
  slow.end("said afterwards");
  await until(() => late.length === 1);
  expect(late).toEqual(["said afterwards"]);
  const before = await new Promise<number>((resolve) =>
    server.getConnections((_, n) => resolve(n)),
  );
  expect(before).toBe(0);
  mode = "never read";
  const pusher = connect(port, "127.0.0.1");
  pusher.on("error", () => undefined).write(Buffer.alloc(50_000_000));
  await Bun.sleep(200);
  expect(pusher.writableLength).toBeGreaterThan(40_000_000);
  bridge.close();
  await until(() => pusher.destroyed);
});

/** Runs a program as in a sandbox: with the way's variables, and nothing else of ours. */
async function run(rig: Rig, command: string[], more: Record<string, string> = {}) {
  const { PATH = "" } = process.env;
  const env = { PATH, HOME: rig.folder, ...rig.env, ...more };
  const child = Bun.spawn(command, {
    cwd: rig.folder,
    env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, code] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { stdout, stderr, code };
}
const has = (program: string) => test.skipIf(Bun.which(program) === null);

has("curl")("curl", async () => {
  const { origin, seen } = await upstream(
    (req, res, body) => void res.end(`${req.method} ${body.length}`),
  );
  const rig = await openRig({ api: route(origin) }, { limit: { maxRequestBytes: 3_000_000 } });
  expect((await run(rig, ["curl", "-sS", "https://api.test/ok"])).stdout).toBe("GET 0");
  await Bun.write(join(rig.folder, "body"), Buffer.alloc(2_500_000, "x"));
  const upload = ["curl", "-sS", "--data-binary", "@body"]; // it asks with Expect: 100-continue
  expect((await run(rig, [...upload, "https://api.test/ok"])).stdout).toBe("POST 2500000");
  const two = await run(rig, ["curl", "-sS", "https://api.test/ok", "https://api.test/ok/2"]);
  expect(two.stdout).toBe("GET 0GET 0");
  expect(seen).toHaveLength(4);
  const refused = await run(rig, ["curl", "-sS", "https://api.test/no"]);
  expect(refused.stdout).toContain("No route allows it. Those to api.test allow: GET or POST /ok");
  await Bun.write(join(rig.folder, "large"), Buffer.alloc(3_500_000, "x"));
  const large = await run(rig, ["curl", "-sS", "--data-binary", "@large", "https://api.test/ok"]);
  expect(large.stdout).toContain("more than 3000000 bytes");
  expect((await run(rig, ["curl", "-sS", "https://evil.test/"])).stderr).toContain("403");
  expect((await run(rig, ["curl", "-sS", "http://api.test/ok"])).stdout).toContain(
    "for https:// alone",
  );
  expect((await run(rig, ["curl", "-sS", "--http2", "https://api.test/ok"])).stdout).toBe("GET 0");
});

/** Git's own server behind Basic authentication. */
function gitServer(root: string): string {
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    async fetch(request) {
      if (request.headers.get("authorization") !== `Basic ${btoa(`x-access-token:${SECRET}`)}`)
        return new Response("who?", { status: 401, headers: { "www-authenticate": "Basic" } });
      const { pathname, search } = new URL(request.url);
      const headers = [...request.headers].map(([name, value]) => [
        `HTTP_${name.toUpperCase().replaceAll("-", "_")}`,
        value,
      ]);
      const env = {
        ...process.env,
        ...Object.fromEntries(headers),
        GIT_PROJECT_ROOT: root,
        GIT_HTTP_EXPORT_ALL: "1",
        PATH_INFO: pathname,
        QUERY_STRING: search.slice(1),
        REQUEST_METHOD: request.method,
        CONTENT_TYPE: request.headers.get("content-type") ?? "",
        REMOTE_USER: "x",
      };
      const child = Bun.spawn(["git", "http-backend"], {
        env,
        stdin: await request.bytes(),
        stdout: "pipe",
      });
      const output = Buffer.from(await child.stdout.bytes());
      const end = output.indexOf("\r\n\r\n");
      const lines = output
        .subarray(0, end)
        .toString()
        .split("\r\n")
        .map((line) => line.split(": ") as [string, string]);
      const status = Number(lines.find(([name]) => name === "Status")?.[1]?.slice(0, 3) ?? 200);
      return new Response(output.subarray(end + 4), {
        status,
        headers: lines.filter(([name]) => name !== "Status"),
      });
    },
  });
  cleanups.push(() => server.stop(true));
  return `http://127.0.0.1:${server.port}`;
}

has("git")("git clones a private repository without its key, and pushes nothing", async () => {
  const root = mkdtempSync(join(tmpdir(), "claw-git-"));
  cleanups.push(() => rmSync(root, { recursive: true }));
  const script =
    "git init -q --bare acme/app.git && git init -q w && cd w && git config user.email a@b.c && git config user.name a && " +
    "head -c 300000 /dev/urandom > data && git add . && git commit -qm one && git push -q ../acme/app.git HEAD:main && git -C ../acme/app.git symbolic-ref HEAD refs/heads/main";
  expect(
    Bun.spawnSync(["sh", "-c", script], { cwd: root, env: { ...process.env, HOME: root } })
      .exitCode,
  ).toBe(0);
  const github = {
    ...config.egress.routes["github"],
    origin: gitServer(root),
    secret: { name: "API_KEY", header: "authorization", as: { basic: "x-access-token" } },
  } as Route;
  const rig = await openRig({ github });
  const clone = await run(rig, ["git", "clone", "-q", "https://github.com/acme/app.git", "app"], {
    GIT_TERMINAL_PROMPT: "0",
  });
  expect(clone).toMatchObject({ code: 0 });
  const same = Bun.spawnSync(["cmp", join(rig.folder, "app/data"), join(root, "w/data")]);
  expect(same.exitCode).toBe(0);
  const grep = Bun.spawnSync(["grep", "-r", SECRET, rig.folder]);
  expect(grep.stdout.toString()).toBe("");
  const push = await run(rig, ["git", "-C", "app", "push", "origin", "HEAD:evil"], {
    GIT_TERMINAL_PROMPT: "0",
  });
  expect(push.code).not.toBe(0);
  expect(rig.rows.map(({ route: name, status, path }) => [name, status, path])).toContainEqual([
    "github",
    200,
    "/acme/app.git/git-upload-pack",
  ]);
});

has("python3")("python's urllib", async () => {
  const { origin } = await upstream();
  const rig = await openRig({ api: route(origin) });
  const script =
    "import urllib.request as u; print(u.urlopen('https://api.test/ok').read().decode())";
  expect(await run(rig, ["python3", "-c", script])).toMatchObject({ stdout: "fine\n", code: 0 });
});

has("npm")("npm", async () => {
  const { origin } = await upstream((req, res) => {
    const tarball = "https://registry.test/thing/-/thing-1.2.3.tgz";
    const version = { name: "thing", version: "1.2.3", dist: { tarball } };
    const found = {
      name: "thing",
      "dist-tags": { latest: "1.2.3" },
      versions: { "1.2.3": version },
    };
    res.setHeader("content-type", "application/json");
    res.end(req.url === "/thing" ? JSON.stringify(found) : "{}");
  });
  const rig = await openRig({
    npm: { hosts: ["registry.test"], methods: ["GET"], paths: ["/*"], origin },
  });
  const view = [
    "npm",
    "view",
    "thing",
    "version",
    "--registry",
    "https://registry.test/",
    "--fetch-retries",
    "0",
  ];
  const { stdout, stderr } = await run(rig, view);
  expect([stdout.trim(), stderr]).toEqual(["1.2.3", expect.any(String)]);
});

test("bun's fetch, as claw itself asks", async () => {
  const { origin } = await upstream((_, res, body) => void res.end(`had ${body}`));
  const rig = await openRig({ api: route(origin) });
  const script =
    "console.log(await (await fetch('https://api.test/ok', { method: 'POST', body: 'this' })).text())";
  expect(await run(rig, [process.execPath, "-e", script])).toMatchObject({
    stdout: "had this\n",
    code: 0,
  });
});
