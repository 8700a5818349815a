/**
 * Slack's Socket Mode on Bun's own WebSocket: one connection that carries envelopes, for ever.
 *
 * Invariants: an envelope is acknowledged on the socket that brought it, and only after `take` has
 * resolved for it; Slack sends the others again. There is one socket, but for the moment of a
 * refresh: then the new one has its hello before the old one is closed, and nothing falls between.
 * What counts as life is any frame, ping or pong, never how much people write. No address is ever
 * shown: it holds a ticket.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { messageOf, UsageError } from "../errors.ts";
import type { Host } from "./channel.ts";

export const socketClock = {
  now: (): number => Date.now(),
  /** A socket without a sign of life for `pings` pings is dead: that takes 32 s at most. */
  pingMs: 8_000,
  pings: 3,
  /** How long what is under way may take when a socket is left, and then the closing itself. */
  closeMs: 1_000,
  retryMs: 1_000,
  retryMaxMs: 30_000,
  /** A connection that lived this long was a good one: the next wait is `retryMs` again. */
  lastedMs: 30_000,
  /** The wait after an error that a person has to mend. */
  refusedMs: 300_000,
};
export type SocketClock = typeof socketClock;

export type SocketOptions = {
  /** Asks Slack for an address; UsageError: no retry can help. */
  address(): Promise<string>;
  /** Resolves when the envelope may be acknowledged; rejects when Slack shall send it again. */
  take(type: string, payload: unknown): Promise<unknown>;
  log: Host["log"];
  clock: SocketClock;
};

export type SlackSocket = {
  /** Resolves at the first hello; rejects with a UsageError before that, and has then stopped. */
  start(): Promise<void>;
  /** Takes nothing more, lets what is under way end, closes. */
  stop(): Promise<void>;
  /** Connected since; null while it is not. The last failure in a sentence, until it has passed. */
  readonly state: { readonly since: number | null; readonly error: string | null };
};

/** Why a connection is left. `isRefresh`: it still works, and Slack wants a new one. */
type End = { isRefresh: boolean; reason: string; refusal?: UsageError };
type Connection = { ended: Promise<End>; closed: Promise<void>; retire(): Promise<void> };

export function openSocket(options: SocketOptions): SlackSocket {
  const { clock, log } = options;
  const state: { since: number | null; error: string | null } = { since: null, error: null };
  const ready = new Set<Connection>();
  const ending = new AbortController();
  const first = Promise.withResolvers<void>();
  let running = Promise.resolve();

  /** Connects, and only then leaves what was there before. Resolves when the connection ends. */
  const live = async (): Promise<End> => {
    const address = await options.address();
    const connection = await connect(address, options, ending.signal);
    for (const old of ready) void old.retire();
    ready.add(connection);
    void connection.closed.then(() => {
      ready.delete(connection);
      if (ready.size === 0) state.since = null;
    });
    state.since ??= clock.now();
    state.error = null;
    log("connected");
    first.resolve();
    return connection.ended;
  };
  const run = async (): Promise<void> => {
    for (let failures = 0; !ending.signal.aborted;) {
      const began = clock.now();
      const { isRefresh, reason, refusal } = await live().catch(endOf);
      failures = clock.now() - began >= clock.lastedMs ? 1 : failures + 1;
      if (ending.signal.aborted || (isRefresh && failures === 1)) continue;
      if (refusal) first.reject(refusal);
      if (!isRefresh) state.error = reason;
      const waitMs = refusal ? clock.refusedMs : backoff(failures, clock);
      log("disconnected", { reason, waitMs });
      await sleep(waitMs, undefined, { signal: ending.signal }).catch(() => "woken by the end");
    }
  };
  const stop = async (): Promise<void> => {
    ending.abort();
    first.reject(new Error("Slack was stopped before it had connected."));
    const rest = Promise.race([running, sleep(clock.closeMs, null, { ref: false })]);
    await Promise.all([rest, ...[...ready].map((one) => one.retire())]);
  };
  first.promise.catch(stop); // who could not start it does not stop it
  return {
    state,
    stop,
    start() {
      running = run();
      return first.promise;
    },
  };
}

function endOf(error: unknown): End {
  const refusal = error instanceof UsageError ? error : undefined;
  return { isRefresh: false, reason: messageOf(error), refusal };
}

/** 1 s, 2 s, 4 s … with up to a half taken off, so that many clients do not come at once. */
const backoff = (failures: number, { retryMs, retryMaxMs }: SocketClock): number =>
  Math.round(Math.min(retryMaxMs, retryMs * 2 ** (failures - 1)) * (1 - Math.random() / 2));

// ── One connection ──────────────────────────────────────────────────────────────────────────────

const text = z.string().nullish();
const frames = z.object({
  type: z.string(),
  reason: text,
  envelope_id: text,
  payload: z.unknown().optional(),
});

/** Why Slack ends a connection at once; for every other reason it wants a new one first. */
const endings: Record<string, string> = {
  too_many_websockets: "Slack holds too many connections of this app: does another claw use it?",
  link_disabled: "Socket Mode is switched off for this app: switch it on in the app's settings.",
};

/** Resolves at hello. An abort ends it before that; after that, `retire` does. */
async function connect(address: string, options: SocketOptions, signal: AbortSignal) {
  const { clock, log } = options;
  signal.throwIfAborted();
  const socket = openWebSocket(address);
  const [hello, closed] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const ended = Promise.withResolvers<End>();
  const handling = new Set<Promise<void>>();
  let [missed, isReady] = [0, false];

  const drop = (reason: string): void => {
    clearInterval(pings);
    hello.reject(new Error(reason));
    ended.resolve({ isRefresh: false, reason });
    closed.resolve();
    socket.terminate();
  };
  const read = async (data: unknown): Promise<void> => {
    const { type, reason: why, envelope_id, payload } = frames.parse(JSON.parse(String(data)));
    const reason = why ?? "";
    const end = endings[reason];
    if (type === "disconnect") return end ? drop(end) : ended.resolve({ isRefresh: true, reason });
    if (type === "hello") {
      isReady = true;
      hello.resolve();
    }
    if (!envelope_id || signal.aborted) return;
    await options.take(type, payload);
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ envelope_id }));
  };
  const alive = (): void => {
    if (isReady) missed = 0; // until it is, nothing but hello counts
  };
  const pings = setInterval(() => {
    missed += 1; // counted, not timed: a machine that slept, or was busy, is no dead connection
    if (missed > clock.pings) drop("The connection fell silent.");
    else if (socket.readyState === WebSocket.OPEN) socket.ping();
  }, clock.pingMs);
  socket.addEventListener("message", ({ data }) => {
    alive();
    const job = read(data)
      .catch((error: unknown) => log("not taken", { reason: messageOf(error) }))
      .finally(() => handling.delete(job));
    handling.add(job);
  });
  for (const sign of ["ping", "pong"] as const) socket.addEventListener(sign, alive);
  socket.addEventListener("error", ({ message }) => drop(`No connection: ${causeIn(message)}.`));
  socket.addEventListener("close", ({ code }) => drop(`The connection was closed (${code}).`));
  const abandon = () => drop("It was given up.");
  signal.addEventListener("abort", abandon);
  await hello.promise.finally(() => signal.removeEventListener("abort", abandon));

  const retire = async (): Promise<void> => {
    await Promise.race([Promise.all(handling), sleep(clock.closeMs, null, { ref: false })]);
    socket.close(1000);
    await Promise.race([closed.promise, sleep(clock.closeMs, null, { ref: false })]); // Slack leaves TCP open
    drop("It was left.");
  };
  return { ended: ended.promise, closed: closed.promise, retire };
}

/** The end of what Bun says ("… to 'ADDRESS' failed: CAUSE"), since the address holds the ticket. */
const causeIn = (message: string): string => / failed: (.*)$/s.exec(message)?.[1] ?? "it broke";

export const isLoopback = (host: string): boolean => /^(localhost|127\..*|\[::1\])$/.test(host);

function openWebSocket(address: string): WebSocket {
  const { protocol, hostname } = new URL(address);
  if (protocol !== "wss:" && !(protocol === "ws:" && isLoopback(hostname)))
    throw new Error(`Slack named a connection without TLS, to ${hostname}: it is not used.`);
  return new WebSocket(address, { proxy: proxyFor(hostname, process.env) });
}

/** Bun's fetch heeds these variables by itself, its WebSocket does not. */
export function proxyFor(host: string, env: Record<string, string | undefined>) {
  const without = (env["NO_PROXY"] ?? env["no_proxy"] ?? "").split(",").map((one) => one.trim());
  const isWithout = (one: string) =>
    one === "*" || (one !== "" && `.${host}`.endsWith(`.${one.replace(/^\*?\./, "")}`));
  if (isLoopback(host) || without.some(isWithout)) return undefined;
  return env["HTTPS_PROXY"] || env["https_proxy"] || undefined;
}
