/**
 * Reads what a server streams: server-sent events, or what comes in their place.
 *
 * Stands in for the SDKs' own decoders, which lose a last event without a blank line, know no plain
 * JSON in place of a stream, hide the comments that keep a slow stream alive, and take 15 times as
 * long (openai 6.49: quadratic in the size of a network read). Accepts comments, CRLF, `data:`
 * without a space, no `[DONE]`, no blank lines between events. Trusts nothing: what does not look
 * like an answer is an `AttemptError`.
 */
import { AttemptError, networkError } from "./failure.ts";

export type Json = Record<string, unknown>;

/** Stands for `data: [DONE]`. */
export const done: Json = {};

/** After the last event, how long the end of the body may take before the connection is dropped. */
const tailMs = 50;

/**
 * The events of a response, in batches as they arrive; `alive` is called for all bytes.
 * Throws `AttemptError` for an error in the stream, for a web page, and when the connection breaks.
 * Whoever made the request ends it, by its signal.
 */
export async function* readEvents(
  response: Response,
  alive: () => void,
): AsyncGenerator<readonly Json[]> {
  const reader = response.body?.getReader();
  if (!reader) return;
  const decoder = new TextDecoder();
  const lines = lineReader();
  let ended = false;
  while (!ended) {
    const { value, done: closed } = await reader.read().catch((error: unknown) => {
      throw networkError(error);
    });
    alive();
    const events = lines.push(closed ? decoder.decode() : decoder.decode(value, { stream: true }));
    if (closed) events.push(...lines.end());
    ended = closed || events.some((event) => event === done || event["type"] === "message_stop");
    if (events.length > 0) yield events;
  }
  // A body read to its end leaves the connection open for the next call.
  await Promise.race([reader.read().catch(() => undefined), Bun.sleep(tailMs)]);
}

function lineReader() {
  const events = eventReader();
  let pending = "";
  let isStream: boolean | null = null;
  const takeLines = (): Json[] => {
    const found: Json[] = [];
    let start = 0;
    for (let end = pending.indexOf("\n"); end !== -1; end = pending.indexOf("\n", start)) {
      events.take(pending.slice(start, end), found);
      start = end + 1;
    }
    pending = pending.slice(start);
    return found;
  };
  return {
    push(text: string): Json[] {
      pending += text;
      isStream ??= /^\s*$/.test(pending) ? null : !/^\s*[{[<]/.test(pending);
      return isStream && text.includes("\n") ? takeLines() : []; // joins whole lines only
    },
    end(): Json[] {
      if (isStream === false) return [readBody(pending.trim())];
      pending += "\n\n";
      return takeLines();
    },
  };
}

/** Lines to events. A payload that is JSON by itself is an event; others wait for the rest. */
function eventReader() {
  let name = "";
  let data = "";
  return {
    take(rawLine: string, found: Json[]): void {
      const line = rawLine.trimEnd();
      if (line === "") {
        if (data !== "") throw unreadable(name, data);
        name = "";
      } else if (line.startsWith("event:")) {
        name = line.slice(6).trim();
      } else if (line.startsWith("data:") || line.startsWith("{")) {
        const payload = line.startsWith("{") ? line : line.slice(5).trim();
        data = data === "" ? payload : `${data}\n${payload}`;
        const event = data.startsWith("[DONE]") ? done : parseObject(data);
        if (!event) return;
        found.push(event === done ? done : checked(name, event));
        data = "";
      }
    },
  };
}

function unreadable(name: string, data: string): AttemptError {
  return new AttemptError("status", data, name === "error" ? 500 : null);
}

/** A whole body that is no stream: one JSON object, or nothing that can be used. */
function readBody(body: string): Json {
  const object = parseObject(body);
  if (!object) throw new AttemptError("page", body, 200);
  return checked("", object);
}

function parseObject(text: string): Json | null {
  if (!/[}\]]$/.test(text)) return null;
  try {
    const value: unknown = JSON.parse(text);
    return recordOf(Array.isArray(value) ? value[0] : value); // Gemini wraps errors in a list
  } catch {
    return null; // the caller decides what a text that is no JSON means
  }
}

// ── Errors inside a stream ──────────────────────────────────────────────────────────────────────

/** The event, if it is none of the shapes in which servers send an error with status 200. */
function checked(name: string, event: Json): Json {
  const answers = "choices" in event || "content" in event || "usage" in event;
  const failed =
    name === "error" ||
    event["error"] ||
    event["type"] === "error" ||
    (!answers && ("detail" in event || ("message" in event && "code" in event)));
  if (!failed) return event;
  const error = recordOf(event["error"]) ?? event;
  throw new AttemptError("status", JSON.stringify(event), statusOf(error));
}

const statusByWord: [RegExp, number][] = [
  [/overloaded/, 529],
  [/rate.?limit|too_many|throttl|resource_exhausted/, 429],
  [/quota|billing/, 402],
  [/auth|api.?key/, 401],
  [/permission|forbidden/, 403],
  [/not.?found/, 404],
  [/too_large/, 413],
  [/invalid|bad.?request|unsupported|context/, 400],
];

/** The status that an error in a stream would have had; 500 where it does not say. */
function statusOf(error: Json): number {
  for (const field of ["status", "code", "http_code", "status_code"]) {
    const status = Number(error[field]);
    if (status >= 400 && status < 600) return status;
  }
  const words = `${textOf(error["type"])} ${textOf(error["code"])}`.toLowerCase();
  return statusByWord.find(([pattern]) => pattern.test(words))?.[1] ?? 500;
}

// ── Reading what may be of any shape ────────────────────────────────────────────────────────────

export function recordOf(value: unknown): Json | null {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Json)
    : null;
}

export const textOf = (value: unknown): string => (typeof value === "string" ? value : "");

export const recordsOf = (value: unknown): Json[] =>
  Array.isArray(value) ? value.map(recordOf).filter((record) => record !== null) : [];

/** A count of tokens; null where it is none. */
export const countOf = (value: unknown): number | null =>
  typeof value === "number" && value >= 0 ? value : null;
