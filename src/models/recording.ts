/**
 * Recordings of what was said with a model's server: their lines, and how they are written.
 *
 * JSON lines, each written as it happens: what a kill leaves can be played as far as it goes.
 * Secrets stay out: of headers a few of the answer's are kept, and keys become "[secret]" wherever
 * they stand whole (not where an answer spells one over several events). In what is sent, the
 * workspace, the home and the day are marks, so that it compares equal when it is played in another
 * folder; an answer is kept as it came. replay.ts plays.
 */
import { closeSync, fchmodSync, fdatasyncSync, fstatSync, openSync } from "node:fs";
import { readFileSync, writeSync } from "node:fs";
import { z } from "zod";
import { messageOf, UsageError } from "../errors.ts";
import type { Model } from "../types.ts";
import { failureIn, fetchOrFail, networkError, type Endpoint } from "./failure.ts";
import { parseJson } from "./json.ts";
import type { Transport } from "./wire.ts";

type Env = Record<string, string | undefined>;

/** Where a conversation takes place: its real folder, and the file that it is recorded to. */
export type Scene = { workspace: string; recordTo?: string };

/** The model that speaks. */
export type Source = Pick<Model, "id" | "contextTokens" | "price"> & {
  wire: "anthropic" | "openai";
  endpoint: Endpoint;
};

// ── The file ────────────────────────────────────────────────────────────────────────────────────

const [number, string] = [z.number(), z.string()];
const cached = { cacheRead: number.optional(), cacheWrite: number.optional() };
const names = { provider: string, model: string, keyVariable: string, baseUrlVariable: string };
const source = z.object({
  id: string,
  contextTokens: number,
  price: z.object({ input: number, output: number, ...cached }).nullable(),
  wire: z.enum(["anthropic", "openai"]),
  endpoint: z.object({
    ...names,
    baseUrl: string,
    key: string.nullable(),
    start: string.optional(),
  }),
});
const failed = z.object({
  kind: z.enum(["refused", "network", "stall", "interrupted"]),
  detail: string,
});
const request = { at: number, method: string, path: string, body: z.unknown() };
const response = { status: number, headers: z.record(string, string) };

/** `n` counts requests, `at` is ms since 1970, `ms` what passed since the same request's last line. */
const step = { n: number, ms: number };
const line = z.discriminatedUnion("type", [
  z.object({ type: z.literal("recording"), places: z.array(string), source }),
  z.object({ type: z.literal("request"), n: number, ...request }),
  z.object({ type: z.literal("response"), ...step, ...response }),
  z.object({ type: z.literal("chunk"), ...step, text: string }),
  z.object({ type: z.literal("end"), ...step, failed: failed.optional() }),
]);
export type Line = z.infer<typeof line>;
type Failed = z.infer<typeof failed>;
type Change = (text: string) => string;

/** A new or empty file to append lines to; those of a request and of an end are synced. */
function createFile(path: string): (entry: Line) => void {
  const file = openFile(path);
  return (entry) => {
    writeSync(file, `${JSON.stringify(entry)}\n`);
    if (entry.type === "request" || entry.type === "end") fdatasyncSync(file);
  };
}

function openFile(path: string): number {
  try {
    const file = openSync(path, "a", 0o600);
    const stat = fstatSync(file);
    if (stat.isFile() && stat.size === 0) {
      fchmodSync(file, 0o600);
      return file;
    }
    closeSync(file);
  } catch (error) {
    throw new UsageError(`--record ${path} cannot be written: ${messageOf(error)}.`);
  }
  throw new UsageError(`--record ${path}: that is there already. Name a file that is not.`);
}

type Head = Extract<Line, { type: "recording" }>;

/** The lines of a recording; the first tells the model and the places. */
export function readLines(path: string): [Head, ...Line[]] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new UsageError(`replay:${path} cannot be read: ${messageOf(error)}.`);
  }
  const whole = text.split("\n").slice(0, -1); // a kill may have cut off what follows
  const lines = whole.map((raw, index) => {
    const parsed = line.safeParse(parseJson(raw));
    if (parsed.success) return parsed.data;
    throw new UsageError(
      `Line ${index + 1} of ${path} is no line of a recording; --record FILE writes one.`,
    );
  });
  const [head, ...rest] = lines;
  if (head?.type === "recording") return [head, ...rest];
  throw new UsageError(`${path} is no recording, or an empty one; --record FILE writes one.`);
}

// ── Secrets and places ──────────────────────────────────────────────────────────────────────────

export const secret = "[secret]";
const secretNames = /KEY|TOKEN|SECRET|PASSW|CREDENTIAL|PASSPHRASE/i;
const keyShapes = /\b(?:sk-|gsk_|hf_|nvapi-|AIza|xox[abp]-|xapp-|gh[pos]_)[\w-]{12,}/g;

/** Every value that must not be written. Shorter ones are words such as "ollama", and no secrets. */
function secretsIn(env: Env, key: string | null): string[] {
  const values = Object.entries(env).flatMap(([name, value = ""]) => {
    const inUrl = URL.parse(value)?.password ?? "";
    return secretNames.test(name) ? [value.trim(), inUrl] : [inUrl];
  });
  return [...values, key ?? ""].filter((value) => value.length >= 8);
}

/** Replaces `pairs` in one pass, the longest first; the patterns go around what is looked for. */
function replacer(pairs: [from: string, to: string][], [before, after] = ["", ""]) {
  const byFrom = new Map(pairs);
  const words = [...byFrom.keys()].toSorted((one, other) => other.length - one.length);
  if (words.length === 0) return (text: string) => text;
  const pattern = new RegExp(
    `${before}(?:${words.map((word) => RegExp.escape(word)).join("|")})${after}`,
    "g",
  );
  return (text: string) => text.replace(pattern, (found) => byFrom.get(found) ?? found);
}

function cleaner(secrets: string[]): Change {
  const spellings = secrets.flatMap((value) => [
    value,
    encodeURIComponent(value),
    JSON.stringify(value).slice(1, -1),
  ]);
  const replace = replacer(spellings.map((value) => [value, secret]));
  return (text) =>
    replace(text)
      .replace(keyShapes, secret)
      .replace(/^(https?:\/\/)[^/@]+@/, `$1`);
}

export const placesOf = (scene: Scene, env: Env): string[] => [scene.workspace, env["HOME"] ?? ""];

/** Puts other folders in the place of these, where a path begins with one and goes on below it. */
export const mover = (from: string[], to: string[]) =>
  replacer(
    from
      .map((path, index): [string, string] => [path, to[index] ?? ""])
      .filter(([path]) => path.length > 1),
    ["(?<!(?<!\\\\)\\w)", "(?![\\w-])"],
  );

/** Makes of a body what compares equal when it is sent from elsewhere, on another day. */
export function normalizer(places: string[], clean: Change) {
  const mark = mover(places, ["[workspace]", "[home]"]);
  const day = (text: string) => text.replace(/^Date: \d{4}-\d\d-\d\d$/gm, "Date: [day]");
  return (body: unknown) => mapTexts(parseJson(String(body)), (text) => day(mark(clean(text))));
}

export const cleanerFor = (env: Env, key: string | null) => cleaner(secretsIn(env, key));

export function mapTexts<Value>(value: Value, change: Change): Value {
  const visit = (_: string, item: unknown) => (typeof item === "string" ? change(item) : item);
  return JSON.parse(JSON.stringify(value ?? null), visit) as Value;
}

// ── Writing ─────────────────────────────────────────────────────────────────────────────────────

const keptHeaders = ["content-type", "location", "retry-after", "retry-after-ms"];

/** The way to a server that writes down what passes. Throws `UsageError` where `path` cannot be. */
export function openRecorder(path: string, from: Source, scene: Scene, env: Env): Transport {
  const append = createFile(path);
  const secrets = secretsIn(env, from.endpoint.key);
  const clean = cleaner(secrets);
  const places = placesOf(scene, env);
  const normalize = normalizer(places, clean);
  let count = 0;
  let attemptSignal: AbortSignal | null = null;

  const whyEnded = (error: unknown) => endingOf(error, attemptSignal, clean);
  return {
    around: (attempt) => (signal, alive) => {
      attemptSignal = signal;
      return attempt(signal, alive);
    },
    async fetch(url, init) {
      if (count === 0)
        append({ type: "recording", places, source: mapTexts(source.parse(from), clean) });
      const exchange = openExchange(append, ++count, clean, secrets);
      const { pathname, search } = new URL(url instanceof Request ? url.url : url);
      const sent = { method: init?.method ?? "GET", path: clean(pathname + search) };
      append({ type: "request", n: count, at: Date.now(), ...sent, body: normalize(init?.body) });
      try {
        const answer = await fetchOrFail(url, init);
        exchange.answer(answer.status, answer.headers);
        return copied(answer, exchange, whyEnded);
      } catch (error) {
        const failure = failureIn(error);
        if (failure?.kind !== "status" || failure.status === null) exchange.end(whyEnded(error));
        else {
          exchange.answer(failure.status, failure.headers ?? new Headers());
          exchange.take(failure.detail);
          exchange.end();
        }
        throw error;
      }
    },
  };
}

/** Why there was no more: the signal knows that better than the error that it caused. */
function endingOf(error: unknown, signal: AbortSignal | null, clean: Change): Failed {
  const failure = failureIn(signal?.aborted ? signal.reason : error);
  if (signal?.aborted && !failure) return { kind: "interrupted", detail: "" };
  const { kind, detail } = failure ?? networkError(error);
  const isTold = kind === "stall" || kind === "refused";
  return { kind: isTold ? kind : "network", detail: clean(detail) };
}

type Exchange = ReturnType<typeof openExchange>;

/** Writes one exchange. The beginning of a secret at the end of a chunk waits for the next chunk. */
function openExchange(append: (entry: Line) => void, n: number, clean: Change, secrets: string[]) {
  let lastAt = performance.now();
  let held = "";
  const passedMs = () => {
    const before = lastAt;
    lastAt = performance.now();
    return Math.round(lastAt - before);
  };
  const take = (text: string, isLast = false): void => {
    const known = clean(held + text);
    held = isLast ? "" : beginningIn(known, secrets);
    const ready = known.slice(0, known.length - held.length);
    if (ready !== "") append({ type: "chunk", n, ms: passedMs(), text: ready });
  };
  return {
    answer(status: number, all: Headers): void {
      const kept = keptHeaders.flatMap((name): [string, string][] => {
        const value = all.get(name);
        return value === null ? [] : [[name, clean(value)]];
      });
      append({ type: "response", n, ms: passedMs(), status, headers: Object.fromEntries(kept) });
    },
    take,
    end(why?: Failed): void {
      take("", true);
      append({ type: "end", n, ms: passedMs(), ...(why && { failed: why }) });
    },
  };
}

/** The longest end of `text` with which a secret begins. */
function beginningIn(text: string, secrets: string[]): string {
  const most = Math.max(0, ...secrets.map(({ length }) => length - 1));
  for (let start = Math.max(0, text.length - most); start < text.length; start++) {
    const end = text.slice(start);
    if (secrets.some((value) => value.startsWith(end))) return end;
  }
  return "";
}

/** The answer, each piece written down before it is handed on. */
function copied(answer: Response, exchange: Exchange, whyEnded: (error: unknown) => Failed) {
  const reader = answer.body?.getReader();
  if (!reader) return answer;
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const piece = await reader.read().catch((error: unknown) => {
          exchange.end(whyEnded(error));
          throw error;
        });
        exchange.take(
          piece.done ? decoder.decode() : decoder.decode(piece.value, { stream: true }),
        );
        if (!piece.done) return controller.enqueue(piece.value);
        exchange.end();
        controller.close();
      },
      cancel: (reason) => reader.cancel(reason),
    },
    { highWaterMark: 0 },
  );
  return new Response(body, { status: answer.status, headers: answer.headers });
}
