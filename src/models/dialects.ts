/**
 * Tool calls that a model writes as text, in the dialects in use.
 *
 * `take` is given an answer's text in pieces of any size, and gives back what may be shown: all but
 * what could still become a call. Nothing is a call unless it names a known tool and its arguments
 * are an object with all that the tool's schema requires; and nothing is one inside of code or with
 * words behind it on its line. What is no call comes out as it came in, to the letter.
 */
import type { ToolSpec } from "../types.ts";
import { closeJson, parseJson, recordOf, recordsOf, scanJson, textOf } from "./json.ts";
import type { Json, Scan } from "./json.ts";
import { readObject, toKnown } from "./repair.ts";

export type Said = { text: string; thinking: string };
export type TextCall = { name: string; input: Json };

type Tools = ReadonlyMap<string, Json>;
/** A piece of text that is calls. `strict`: it is none if anything but calls comes after. */
type Span = { from: number; end: number; calls: TextCall[]; strict: boolean };
/** `open`: could still become something. `channel`: what follows is that, up to the next token. */
type Found =
  | { is: "open" | "no" }
  | { is: "channel"; end: number; as: keyof Said }
  | ({ is: "calls" } & Omit<Span, "from">);
/** `text` begins at what may be a call; `scan` is kept from one look to the next. */
type Look = { text: string; tools: Tools; scan: Scan; isLast: boolean; mayClose: boolean };

const open: Found = { is: "open" };
const no: Found = { is: "no" };
const newScan = (): Scan => ({ at: -1, open: [], quoted: false });

export function openDialects(specs: readonly ToolSpec[]) {
  const tools: Tools = new Map(specs.map(({ name, schema }) => [name, schema]));
  const place = { isFenced: false, ticks: 0, lead: "" };
  const trigger = /[<[{`]/g;
  let held = "";
  let at = 0;
  let scan = newScan();
  let spans: Span[] = [];
  let channel: keyof Said | null = null;

  const advance = (end: number): void => {
    notePlace(place, held.slice(at, end));
    at = end;
    scan = newScan();
    spans = stillCalls(spans, held.slice(spans.at(-1)?.end ?? at, at));
  };
  const release = (said: Said, as: keyof Said): void => {
    if (spans.length > 0) return;
    said[as] += held.slice(0, at);
    held = held.slice(at);
    at = 0;
  };
  const run = (isLast: boolean, mayClose: boolean): Said => {
    const said: Said = { text: "", thinking: "" };
    for (;;) {
      trigger.lastIndex = at;
      advance(channel ? bodyEnd(held, isLast) : (trigger.exec(held)?.index ?? held.length));
      release(said, channel ?? "text");
      if (at === held.length || (channel && !/^<\|\w+\|>/.test(held))) return said;
      if (channel) held = held.replace(/^<\|(?:end|return|call)\|>/, "");
      channel = null;
      const text = held.slice(at);
      const found = isCode(place, text) ? no : look({ text, tools, scan, isLast, mayClose });
      if (found.is === "open") return said;
      if (found.is === "calls") {
        spans.push({ ...found, from: at, end: at + found.end });
        at += found.end;
        scan = newScan();
      } else if (found.is === "channel" && spans.length === 0) {
        held = held.slice(found.end);
        channel = found.as;
      } else if (held !== "") advance(at + 1);
    }
  };
  return {
    take(piece: string): Said {
      const isDull = held === "" ? !/[<[{`]/.test(piece) : !/[}\]>`]/.test(piece);
      held += piece;
      if (isDull && held !== piece && !channel && held.length - at > 400)
        return { text: "", thinking: "" };
      return run(false, false);
    },
    /** `hasCalls`: the server gave calls itself, so text is text. `mayClose`: nothing was cut off. */
    end(hasCalls: boolean, mayClose: boolean): { said: Said; calls: TextCall[] } {
      if (hasCalls) return { said: { text: held, thinking: "" }, calls: [] };
      const said = run(true, mayClose);
      const ends = [0, ...spans.map(({ end }) => end)];
      const between = ends.map((end, index) => held.slice(end, spans[index]?.from));
      const kept = between.filter((text) => !isBlank(text));
      said.text += kept.join("");
      return { said, calls: spans.flatMap(({ calls }) => calls) };
    },
  };
}

/** Nothing but space and the tokens that end a turn, the last one perhaps not whole. */
const isBlank = (text: string): boolean =>
  /^(?:\s|<\|\w+\|>|<\/s>)*(?:<(?:\|\w*\|?|\/s?)?)?$/.test(text);

/** The calls that `rest`, which follows the last of them, does not make part of an explanation. */
function stillCalls(spans: Span[], rest: string): Span[] {
  const last = spans.at(-1);
  if (!last || isBlank(rest)) return spans;
  if (last.strict) return spans.slice(0, spans.findLastIndex(({ strict }) => !strict) + 1);
  return /^[^\S\n]*\n/.test(rest) ? spans : spans.slice(0, -1);
}

// ── Where code is ───────────────────────────────────────────────────────────────────────────────

type Place = { isFenced: boolean; ticks: number; lead: string };

function notePlace(place: Place, text: string): void {
  for (const [index, line] of text.split("\n").entries()) {
    if (index > 0) {
      if (place.lead.startsWith("```") && place.ticks < 6) place.isFenced = !place.isFenced;
      place.ticks = 0;
      place.lead = "";
    }
    if (line.includes("`")) place.ticks += line.split("`").length - 1;
    if (place.lead.length < 3)
      place.lead = (place.lead + line.slice(0, 200)).trimStart().slice(0, 3);
  }
}

/** Whether what begins here is code; JSON and fences count only at the beginning of a line. */
const isCode = ({ isFenced, ticks, lead }: Place, text: string): boolean =>
  isFenced || ticks % 2 === 1 || (/^[{`]/.test(text) && lead !== "");

// ── The dialects ────────────────────────────────────────────────────────────────────────────────

function look(seen: Look): Found {
  const { text, isLast } = seen;
  const tag =
    /^(?:<tool_call>\s*|(?=<function=)|\[TOOL_CALLS\]\s*|```\w*[^\S\n]*\n\s*|(?=\{))/.exec(text);
  if (/^<\|(?:start|channel)\|>/.test(text)) return lookChannel(seen);
  if (!tag) return !isLast && mayBeTag(text) ? open : no;
  const [opener] = tag;
  const body = text.slice(opener.length, opener.length + 200);
  if (body === "") return isLast ? no : open;
  if (body.startsWith("<") && !opener.startsWith("`")) return lookFunction(seen, opener.length);
  if (opener.startsWith("[") && /^[\w.-]/.test(body)) return lookNamed(seen, opener.length);
  if (!/^[{[]/.test(body) || !mayName(body, seen.tools)) return no;
  const json = jsonAt(seen, opener.length, opener.startsWith("<") ? "</tool_call>" : "");
  if (json === null) return isLast ? no : open;
  const value = json.startsWith("[") ? parseJson(json) : [readObject(json)];
  const calls = callsIn(value, seen.tools);
  if (!calls) return no;
  const end = opener.length + json.length;
  if (!opener.startsWith("`")) return closed(seen, end, calls, opener === "");
  if (/^\s*```/.test(text.slice(end))) return { ...closed(seen, end, calls, true) };
  return !isLast && /^\s*`{0,2}$/.test(text.slice(end)) ? open : no;
}

/** Whether `text` is a beginning of what opens a call. */
const mayBeTag = (text: string): boolean =>
  ["<tool_call>", "<function=", "[TOOL_CALLS]", "<|channel|>", "<|start|>"].some((tag) =>
    tag.startsWith(text),
  ) || /^`{1,2}$|^```\w*[^\S\n]*$/.test(text);

/** What comes after the calls' JSON, closing tags and all. */
function closed({ text }: Look, from: number, calls: TextCall[], strict: boolean): Found {
  const tail = /^\s*(?:<\/tool_call>|```)/.exec(text.slice(from, from + 200))?.[0] ?? "";
  return { is: "calls", end: from + tail.length, calls, strict };
}

/** The JSON at `from`, once it is whole; at the end of an answer also what may be closed. */
function jsonAt(
  { text, scan, isLast, mayClose }: Look,
  from: number,
  closer: string,
): string | null {
  if (scan.at === -1) scan.at = from;
  if (scanJson(text, scan)) return text.slice(from, scan.at);
  if (!isLast || !mayClose) return null;
  const end = closer ? text.indexOf(closer, from) : -1;
  const body = text.slice(from, end === -1 ? undefined : end);
  return readObject(closeJson(body.trimEnd())) ? body : null;
}

/** Whether JSON that begins so can be a call of a known tool. */
function mayName(json: string, tools: Tools): boolean {
  const begun = json.replace(/^\[\s*/, "");
  const [, key, value] = /^\{\s*["'](\w+)["'](?:\s*:\s*["']([^"'\\]*)["'])?/.exec(begun) ?? [];
  if (key === undefined) return /^(?:\{\s*(?:["']\w*)?)?$/.test(begun);
  if (key === "name") return value === undefined || nameIn(value, tools) !== null;
  if (key === "type") return value === undefined || value === "function";
  return ["arguments", "parameters", "function"].includes(key);
}

function nameIn(name: string, tools: Tools): string | null {
  const known = toKnown(name, new Set(tools.keys()));
  return tools.has(known) ? known : null;
}

/** All of the calls, or null where one of them is none. */
function callsIn(value: unknown, tools: Tools): TextCall[] | null {
  const calls = recordsOf(value).map((said) => {
    const called = recordOf(said["function"]) ?? said;
    const given = called["arguments"] ?? called["parameters"];
    return toCall(
      textOf(called["name"]),
      textOf(given) ? readObject(textOf(given)) : recordOf(given),
      tools,
    );
  });
  const sound = calls.filter((call) => call !== null);
  return sound.length > 0 && sound.length === calls.length ? sound : null;
}

function toCall(said: string, input: Json | null, tools: Tools): TextCall | null {
  const name = nameIn(said, tools);
  const schema = name !== null && tools.get(name);
  if (!schema || !input) return null;
  const required = Array.isArray(schema["required"]) ? schema["required"] : [];
  return required.every((key) => Object.hasOwn(input, String(key))) ? { name, input } : null;
}

/** Mistral's `NAME[ARGS]{…}`. */
function lookNamed(seen: Look, from: number): Found {
  const { text, tools, isLast } = seen;
  const head = /^([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)/.exec(
    text.slice(from, from + 200),
  );
  if (!head?.[1])
    return !isLast && /^[\w.-]+(?:\[[A-Z_]*\]?\w*)*$/.test(text.slice(from)) ? open : no;
  if (nameIn(head[1], tools) === null) return no;
  const start = from + head[0].length;
  const json = jsonAt(seen, start, "");
  if (json === null) return isLast ? no : open;
  const call = toCall(head[1], readObject(json), tools);
  return call ? { is: "calls", end: start + json.length, calls: [call], strict: false } : no;
}

/** Qwen3-Coder's `<function=NAME><parameter=KEY>VALUE</parameter></function>`. */
function lookFunction(seen: Look, from: number): Found {
  const { text, tools, isLast } = seen;
  const head = /^<function=([^<>\s]+)>/.exec(text.slice(from, from + 200));
  if (!head?.[1])
    return !isLast &&
      ("<function=".startsWith(text.slice(from)) || /^<function=[^<>\s]*$/.test(text.slice(from)))
      ? open
      : no;
  const name = nameIn(head[1], tools);
  if (name === null) return no;
  const whole =
    /^(?:\s*<parameter=[^<>\s]+>.*?<\/parameter>(?=\s*<(?:parameter=|\/function>)))*\s*<\/function>/s.exec(
      text.slice(from + head[0].length),
    );
  if (!whole) return isLast ? no : open;
  const types = recordOf(tools.get(name)?.["properties"]) ?? {};
  const pairs = [
    ...whole[0].matchAll(
      /<parameter=([^<>\s]+)>(.*?)<\/parameter>(?=\s*<(?:parameter=|\/function>))/gs,
    ),
  ];
  const input = Object.fromEntries(
    pairs.map(([, key = "", value = ""]) => [key, valueOf(value, recordOf(types[key]))]),
  );
  const call = toCall(name, input, tools);
  return call ? closed(seen, from + head[0].length + whole[0].length, [call], false) : no;
}

/** A value without the line breaks around it; JSON where the schema wants no string. */
function valueOf(raw: string, schema: Json | null): unknown {
  const text = raw.replace(/^\n|\n$/g, "");
  const isString = !schema?.["type"] || schema["type"] === "string";
  return isString ? text : (parseJson(text.trim()) ?? text);
}

/** A message of gpt-oss: who it is to and on what channel, then the body. */
function lookChannel(seen: Look): Found {
  const { text, tools, isLast } = seen;
  const head = /^[^]*?<\|message\|>/.exec(text.slice(0, 300))?.[0];
  if (!head) return isLast || text.length >= 300 ? no : open;
  const to = /\bto=([\w.:-]+)/.exec(head)?.[1];
  const on = /<\|channel\|>\s*(\w+)/.exec(head)?.[1] ?? "";
  if (to === undefined && !["analysis", "final", "commentary"].includes(on)) return no;
  if (to === undefined)
    return { is: "channel", end: head.length, as: on === "analysis" ? "thinking" : "text" };
  if (nameIn(to, tools) === null) return no;
  const json = jsonAt(seen, head.length, "");
  if (json === null) return isLast ? no : open;
  const call = toCall(to, readObject(json), tools);
  const token =
    /^\s*<\|\w+\|>/.exec(
      text.slice(head.length + json.length, head.length + json.length + 40),
    )?.[0] ?? "";
  const end = head.length + json.length + (/call|end/.test(token) ? token.length : 0);
  return call ? { is: "calls", end, calls: [call], strict: false } : no;
}

/** Where the body of a message ends for now: at a token, or at what may become one. */
function bodyEnd(text: string, isLast: boolean): number {
  const token = text.search(/<\|(?:end|return|call|start|channel)\|>/);
  const half = isLast ? -1 : text.search(/<(?:\|\w*\|?)?$/);
  return token !== -1 ? token : half !== -1 ? half : text.length;
}
