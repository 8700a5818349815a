/**
 * Plays a recording in a server's place: the recorded bytes go through the same reader.
 *
 * What the model sees (system, messages, tools) has to be what it saw; the first difference ends
 * the turn with its place. Ids may differ as long as they pair up. Folders in an answer's text and
 * calls become those of now. Nobody is contacted, and nothing waits unless CLAW_REPLAY_TIMED=1.
 */
import { setTimeout as sleepFor } from "node:timers/promises";
import { ProviderError } from "../errors.ts";
import { AttemptError } from "./failure.ts";
import { recordOf } from "./json.ts";
import {
  cleanerFor,
  mapTexts,
  mover,
  normalizer,
  placesOf,
  readLines,
  secret,
} from "./recording.ts";
import type { Line, Scene, Source } from "./recording.ts";
import type { Attempt, Clock } from "./retry.ts";
import type { Transport } from "./wire.ts";

type Env = Record<string, string | undefined>;
type Of<Type extends Line["type"]> = Extract<Line, { type: Type }>;

type Exchange = {
  request: Of<"request">;
  response?: Of<"response">;
  chunks: Of<"chunk">[];
  /** Missing where the recording was killed. */
  end?: Of<"end">;
};

type Pause = (ms: number, signal?: AbortSignal | null) => Promise<void>;

/** The model of a recording, and the way to it. Throws `UsageError` for a file that is none. */
export function openPlayer(
  path: string,
  scene: Scene,
  env: Env,
): { source: Source; transport: Transport } {
  const { head, exchanges } = readRecording(path);
  const places = placesOf(scene, env);
  const normalize = normalizer(places, cleanerFor(env, null));
  const move = mover(head.places, places);
  const pause: Pause = async (ms, signal) => {
    if (env["CLAW_REPLAY_TIMED"] === "1" && ms > 0)
      await sleepFor(ms, null, { signal: signal ?? undefined });
  };
  let position = 0;
  let fault: Error | null = null;
  const fail = (error: Error): Error => (fault = error);

  const around = (attempt: Attempt): Attempt =>
    async function* (signal, alive) {
      fault = null;
      try {
        for await (const output of attempt(signal, alive)) yield mapTexts(output, move);
      } catch (error) {
        throw signal.aborted ? error : (fault ?? error); // on its way here it was wrapped
      }
    };
  const play: Transport["fetch"] = async (_, init) => {
    const exchange = exchanges[position];
    if (!exchange) throw fail(pastTheEnd(path, position));
    const place = findDifference(seen(exchange.request.body), seen(normalize(init?.body)));
    if (place) throw fail(differs(path, exchange.request.n, place));
    position++;
    const { response } = exchange;
    await pause(response?.ms ?? exchange.end?.ms ?? 0, init?.signal);
    if (!response) throw fail(reasonOf(path, exchange));
    const headers = new Headers(response.headers);
    if (response.status >= 200 && response.status < 300)
      return new Response(
        bodyOf(exchange, pause, init?.signal, () => fail(reasonOf(path, exchange))),
        { headers },
      );
    const text = exchange.chunks.map((chunk) => chunk.text).join("");
    throw new AttemptError("status", text, response.status, headers);
  };
  const clock = () => openClock(exchanges, () => position, pause);
  return { source: head.source, transport: { fetch: play, around, clock } };
}

/** The clock of a call that decides about another attempt as then: by the time, and by what follows. */
function openClock(exchanges: Exchange[], position: () => number, pause: Pause): Clock {
  const start = position();
  const startOf = (exchange?: Exchange) => exchange?.request.at ?? 0;
  const next = () => exchanges[position()];
  const last = () => exchanges[position() - 1];
  const now = () => (position() === start ? startOf(next()) : endOf(last()));
  const isTriedAgain = () => Bun.deepEquals(last()?.request.body, next()?.request.body);
  return {
    now,
    random: () => (isTriedAgain() ? 0 : 1 - Number.EPSILON),
    async sleep(_, signal) {
      signal.throwIfAborted();
      await pause(startOf(next()) - now(), signal).catch(() => signal.throwIfAborted());
    },
  };
}

function readRecording(path: string): { head: Of<"recording">; exchanges: Exchange[] } {
  const [head, ...lines] = readLines(path);
  const exchanges: Exchange[] = [];
  for (const line of lines) {
    if (line.type === "request") exchanges[line.n - 1] = { request: line, chunks: [] };
    const exchange = line.type === "recording" ? undefined : exchanges[line.n - 1];
    if (line.type === "response" && exchange) exchange.response = line;
    if (line.type === "chunk") exchange?.chunks.push(line);
    if (line.type === "end" && exchange) exchange.end = line;
  }
  return { head, exchanges };
}

/** When an exchange had ended, in ms since 1970. */
function endOf(exchange?: Exchange): number {
  if (!exchange) return 0;
  const { request, response, chunks, end } = exchange;
  return [response, ...chunks, end].reduce((at, step) => at + (step?.ms ?? 0), request.at);
}

/** The body, piece by piece; it ends as it did. */
function bodyOf(
  { chunks, end }: Exchange,
  pause: Pause,
  signal: AbortSignal | null | undefined,
  fail: () => Error,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let sent = 0;
  return new ReadableStream(
    {
      async pull(controller) {
        signal?.throwIfAborted();
        const chunk = chunks[sent++];
        await pause((chunk ?? end)?.ms ?? 0, signal);
        if (chunk) controller.enqueue(encoder.encode(chunk.text));
        else if (end && !end.failed) controller.close();
        else controller.error(fail());
      },
    },
    { highWaterMark: 0 },
  );
}

// ── Why it stops ────────────────────────────────────────────────────────────────────────────────

const again = "Record the conversation again.";

const pastTheEnd = (path: string, count: number) =>
  new ProviderError(
    `The recording ${path} ends after request ${count}, and this is one more. ${again}`,
  );

/** What ended an exchange before its answer did: what it was then, or that nobody wrote it down. */
function reasonOf(path: string, { request, end }: Exchange): Error {
  const { kind, detail } = end?.failed ?? { kind: null, detail: "" };
  if (kind !== null && kind !== "interrupted") return new AttemptError(kind, detail);
  const why = kind === null ? "The recording ends" : "The person interrupted";
  return new ProviderError(`${why} in the middle of request ${request.n} of ${path}. ${again}`);
}

type Difference = { place: string; was: unknown; is: unknown };

function differs(path: string, count: number, { place, was, is }: Difference): ProviderError {
  const start = typeof was === "string" && typeof is === "string" ? commonLength(was, is) - 20 : 0;
  const sentence = `Request ${count} differs from the recording ${path} at ${place}: ${shorten(was, start)} was recorded, and this is ${shorten(is, start)}.`;
  return new ProviderError(`${sentence} ${again}`);
}

function commonLength(one: string, other: string): number {
  let length = 0;
  while (length < one.length && one[length] === other[length]) length++;
  return length;
}

function shorten(value: unknown, start: number): string {
  if (value === undefined) return "nothing";
  const isText = typeof value === "string";
  const text = isText ? value : JSON.stringify(value);
  const from = Math.max(0, start);
  const part = `${from > 0 ? "…" : ""}${text.slice(from, from + 80)}${text.length > from + 80 ? "…" : ""}`;
  return isText ? JSON.stringify(part.toWellFormed()) : part;
}

// ── What a model sees ───────────────────────────────────────────────────────────────────────────

function seen(body: unknown): unknown {
  const { system, messages, tools } = recordOf(body) ?? {};
  return { system, messages, tools };
}

/** The first place where two values differ; null: none. `ids` pairs those that are random by nature. */
function findDifference(
  was: unknown,
  is: unknown,
  place = "",
  ids = new Map<string, string>(),
): Difference | null {
  if (typeof was === "string" && typeof is === "string") {
    const isId = /(\.tool_(call|use)_id|(tool_calls|content)\[\d+\]\.id)$/.test(place);
    if (isId && !ids.has(was)) ids.set(was, is);
    return (isId ? ids.get(was) === is : fits(was, is)) ? null : { place, was, is };
  }
  const [before, now] = [fieldsOf(was), fieldsOf(is)];
  if (!before || !now || Array.isArray(was) !== Array.isArray(is))
    return Object.is(was, is) ? null : { place, was, is };
  for (const key of new Set([...Object.keys(before), ...Object.keys(now)])) {
    if (key === "cache_control") continue; // the model does not see it
    const inside = Array.isArray(was) ? `${place}[${key}]` : `${place}${place && "."}${key}`;
    const found = findDifference(before[key], now[key], inside, ids);
    if (found) return found;
  }
  return null;
}

const fieldsOf = (value: unknown): Record<string, unknown> | null =>
  Array.isArray(value) ? Object.fromEntries(value.entries()) : recordOf(value);

/** Whether a recorded text is this one; what was a secret then may be anything now. */
function fits(was: string, is: string): boolean {
  if (was === is) return true;
  const [first = "", ...rest] = was.split(secret);
  const last = rest.pop();
  if (last === undefined || !is.startsWith(first) || !is.endsWith(last)) return false;
  let at = first.length;
  for (const piece of rest) {
    const found = is.indexOf(piece, at);
    if (found < 0) return false;
    at = found + piece.length;
  }
  return at <= is.length - last.length;
}
