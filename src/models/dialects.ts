/**
 * Tool calls that a model writes as text, in the dialects in use.
 *
 * `take` is given an answer's text in pieces of any size, and gives back what may be shown: all but
 * what could still become a call. Nothing is a call unless it names a known tool and its arguments
 * are an object with all that the tool's schema requires; and nothing is one inside of code or with
 * words behind it on its line. What is no call comes out as it came in, to the letter.
 */
import type { ToolSpec } from "../types.ts";
import { closeJson, scanJson, type Scan } from "./json.ts";
import { callOf, callsIn, mayBeCall, nameIn, readObject, readParameters } from "./repair.ts";
import { isCode, newPlace, notePlace, type TextCall, type Tools } from "./repair.ts";

export type Said = { text: string; thinking: string };

/** A piece of text that is calls. `strict`: it is none if anything but calls comes after. */
type Span = { from: number; end: number; calls: TextCall[]; strict: boolean };
/** `open`: could still become something. `channel`: what follows is that, up to the next token. */
type Found =
  | { is: "open" | "no" }
  | { is: "channel"; end: number; as: keyof Said }
  | ({ is: "calls" } & Omit<Span, "from">);
/** `text` begins at what may be a call; `scan` is kept from one look to the next. */
type Look = { text: string; tools: Tools; scan: Scan; mayClose: boolean };

const open: Found = { is: "open" };
const no: Found = { is: "no" };
const newScan = (): Scan => ({ at: -1, open: [], quoted: false });

export function openDialects(specs: readonly ToolSpec[]) {
  const tools: Tools = new Map(specs.map(({ name, schema }) => [name, schema]));
  let place = newPlace();
  const trigger = /[<[{`]/g;
  let held = "";
  let at = 0;
  let scan = newScan();
  let spans: Span[] = [];
  let channel: keyof Said | null = null;

  const advance = (end: number): void => {
    if (end === at) return;
    notePlace(place, held.slice(at, end));
    at = end;
    scan = newScan();
    spans = stillCalls(spans, held.slice(spans.at(-1)?.end ?? at, at));
  };
  const run = (isLast: boolean, mayClose: boolean): Said => {
    const said: Said = { text: "", thinking: "" };
    for (;;) {
      trigger.lastIndex = at;
      advance(channel ? bodyEnd(held, isLast) : (trigger.exec(held)?.index ?? held.length));
      if (spans.length === 0) {
        said[channel ?? "text"] += held.slice(0, at);
        held = held.slice(at);
        at = 0;
      }
      if (at === held.length || (channel && !/^<\|\w+\|>/.test(held))) return said;
      if (channel) {
        held = held.replace(/^<\|(?:end|return|call)\|>/, "");
        place = newPlace();
        channel = null;
      }
      const text = held.slice(at);
      const seen = isCode(place, text) ? no : look({ text, tools, scan, mayClose });
      if (seen.is === "open" && !isLast) return said;
      if (seen.is === "open") mayClose = false; // what could not be closed once is not tried again
      if (seen.is === "calls") {
        spans.push({ ...seen, from: at, end: at + seen.end });
        at += seen.end;
        scan = newScan();
      } else if (seen.is === "channel" && spans.length === 0) {
        held = held.slice(seen.end);
        channel = seen.as;
      } else if (held !== "") advance(at + 1);
    }
  };
  return {
    take(piece: string): Said {
      if (held === "" && !channel && !/[<[{`]/.test(piece)) {
        notePlace(place, piece);
        return { text: piece, thinking: "" };
      }
      held += piece;
      // A long call is looked at again only where it may have come to its end.
      const isWaiting = !channel && held.length - at > 400 && held.length > piece.length;
      if (isWaiting && !/[}\]>`]/.test(piece)) return { text: "", thinking: "" };
      return run(false, false);
    },
    /** `hasCalls`: the server gave calls itself, so text is text. `mayClose`: nothing was cut off. */
    end(hasCalls: boolean, mayClose: boolean): { said: Said; calls: TextCall[] } {
      if (hasCalls) return { said: { text: held, thinking: "" }, calls: [] };
      const said = run(true, mayClose);
      const ends = [0, ...spans.map(({ end }) => end)];
      const between = ends.map((end, index) => held.slice(end, spans[index]?.from));
      const kept = between.map((text) => (isBlank(text) ? "" : text.replace(closers, "")));
      if (spans.length > 0) said.text += kept.join("");
      return { said, calls: spans.flatMap(({ calls }) => calls) };
    },
  };
}

/** What closes a call, and ends a turn. */
const closers = /^(?:[^\S\n]|<\|\w+\|>|<\/\w+>)+/;

/** Nothing but space and closers, the last one perhaps not whole. */
const isBlank = (text: string): boolean =>
  /^(?:\s|<\|\w+\|>|<\/\w+>)*(?:<(?:\|\w*\|?|\/\w*)?)?$/.test(text);

/** The calls that `rest`, which follows the last of them, does not make part of an explanation. */
function stillCalls(spans: Span[], rest: string): Span[] {
  const last = spans.at(-1);
  if (!last || isBlank(rest)) return spans;
  if (last.strict) return spans.slice(0, spans.findLastIndex(({ strict }) => !strict) + 1);
  return rest.replace(closers, "").startsWith("\n") ? spans : spans.slice(0, -1);
}

// ── The dialects ────────────────────────────────────────────────────────────────────────────────

function look(seen: Look): Found {
  const { text } = seen;
  const tag =
    /^(?:<tool_call>\s*|(?=<function=)|\[TOOL_CALLS\]\s*|```\w*[^\S\n]*\n\s*|(?=\{))/.exec(text);
  if (/^<\|(?:start|channel)\|>/.test(text)) return lookChannel(seen);
  if (!tag) return mayBeTag(text) ? open : no;
  const [opener] = tag;
  const body = text.slice(opener.length, opener.length + 200);
  if (body === "") return open;
  if (body.startsWith("<") && !opener.startsWith("`")) return lookFunction(seen, opener.length);
  if (opener.startsWith("[") && /^[\w.-]/.test(body)) return lookNamed(seen, opener.length);
  if (!/^[{[]/.test(body) || !mayBeCall(body, seen.tools)) return no;
  const json = jsonAt(seen, opener.length);
  if (json === null) return open;
  const calls = callsIn(closeJson(json), seen.tools);
  if (!calls) return no;
  const end = opener.length + json.length;
  if (!opener.startsWith("`")) return { is: "calls", end, calls, strict: opener === "" };
  const fence = /^\s*```/.exec(text.slice(end))?.[0];
  if (fence) return { is: "calls", end: end + fence.length, calls, strict: true };
  return /^\s*`{0,2}$/.test(text.slice(end)) ? open : no;
}

const openers = ["<tool_call>", "<function=", "[TOOL_CALLS]", "<|channel|>", "<|start|>"];

/** Whether `text` is a beginning of what opens a call. */
const mayBeTag = (text: string): boolean =>
  openers.some((tag) => tag.startsWith(text)) || /^`{1,2}$|^```\w*[^\S\n]*$/.test(text);

/** The JSON at `from`, once it is whole; at the end of an answer also what may be closed. */
function jsonAt({ text, scan, mayClose }: Look, from: number): string | null {
  if (scan.at === -1) scan.at = from;
  const isWhole = scan.at > from && scan.open.length === 0;
  if (isWhole || scanJson(text, scan)) return text.slice(from, scan.at);
  if (!mayClose) return null;
  const [body = ""] = text.slice(from).split("</tool_call>", 1);
  return readObject(closeJson(body.trimEnd())) ? body.trimEnd() : null;
}

/** Mistral's `NAME[ARGS]{…}`. */
function lookNamed(seen: Look, from: number): Found {
  const begun = seen.text.slice(from, from + 200);
  const head = /^([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)/.exec(begun);
  if (head?.[1]) return lookArguments(seen, head[1], from + head[0].length);
  const mayCome = begun.length < 200 && /^[\w.-]+(?:\[[A-Z_]*\]?\w*)*\s*$/.test(begun);
  return mayCome ? open : no;
}

/** A call of which all but the arguments is known. */
function lookArguments(seen: Look, name: string, from: number): Found {
  const { text, tools } = seen;
  if (nameIn(name, tools) === null || !/^(?:\{|$)/.test(text.slice(from, from + 1))) return no;
  const json = jsonAt(seen, from);
  if (json === null) return open;
  return found(callOf(name, readObject(closeJson(json)), tools), from + json.length);
}

const found = (call: TextCall | null, end: number): Found =>
  call ? { is: "calls", end, calls: [call], strict: false } : no;

/** Qwen3-Coder's `<function=NAME><parameter=KEY>VALUE</parameter></function>`. */
function lookFunction({ text, tools }: Look, from: number): Found {
  const begun = text.slice(from, from + 200);
  const [opener, said = ""] = /^<function=([^<>\s]+)>/.exec(begun) ?? [];
  const mayCome = "<function=".startsWith(begun) || /^<function=[^<>\s]{0,180}$/.test(begun);
  if (opener === undefined) return mayCome ? open : no;
  const name = nameIn(said, tools);
  if (name === null) return no;
  const read = readParameters(text, from + opener.length, tools.get(name));
  if (!read) return open;
  return found(callOf(name, read.input, tools), read.end);
}

const channelHead =
  /^(?:<\|start\|>[\w .:=-]*)?(?:<\|channel\|>[\w .:=-]*)?(?:<\|constrain\|>\w* *)?<\|message\|>/;

/** A message of gpt-oss: who it is to and on what channel, then the body. */
function lookChannel(seen: Look): Found {
  const begun = seen.text.slice(0, 300);
  const head = channelHead.exec(begun)?.[0];
  const mayCome = begun.length < 300 && /^(?:(?!<.message)[\w .:=<|>-])*$/.test(begun);
  if (head === undefined) return mayCome ? open : no;
  const to = /\bto=([\w.:-]+)/.exec(head)?.[1];
  if (to !== undefined) return lookArguments(seen, to, head.length);
  const on = /<\|channel\|> *(\w+)/.exec(head)?.[1] ?? "";
  if (!["analysis", "final", "commentary"].includes(on)) return no;
  return { is: "channel", end: head.length, as: on === "analysis" ? "thinking" : "text" };
}

/** Where the body of a message ends for now: at a token, or at what may become one. */
function bodyEnd(text: string, isLast: boolean): number {
  const token = text.search(/<\|(?:end|return|call|start|channel)\|>/);
  const half = isLast ? -1 : text.search(/<(?:\|\w*\|?)?$/);
  return token !== -1 ? token : half !== -1 ? half : text.length;
}
