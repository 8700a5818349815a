/**
 * What is put right on the way to a model and on the way back, whatever the wire.
 *
 * Out: messages in the strict order every server takes, strings without halves of characters. In:
 * tool calls with a name, an id of their own and arguments that are an object. They are mended only
 * where one meaning is left; what cannot be read is never turned into `{}` in silence: the call is
 * marked `invalid`.
 */
import type { AssistantPart, Message, ToolCall, UserPart } from "../types.ts";
import { parseJson, recordOf, scanJson, textOf, type Json, type Scan } from "./json.ts";

export type Part = UserPart | AssistantPart;
export type Turn = { role: "user" | "assistant"; parts: Part[] };

/**
 * The messages as every server takes them: user first, roles in turn, tool results before what else
 * the user said, no blank text, and no message of nothing.
 */
export function arrange(messages: readonly Message[]): Turn[] {
  const turns: Turn[] = [];
  for (const { role, parts } of messages) {
    const said: Part[] = parts.filter((part) => part.type !== "text" || part.text.trim());
    if (said.every(({ type }) => type === "thinking")) continue;
    const last = turns.at(-1);
    if (last?.role === role) last.parts.push(...said);
    else turns.push({ role, parts: said });
  }
  if (turns[0]?.role === "assistant")
    turns.unshift({ role: "user", parts: [{ type: "text", text: "(continued)" }] });
  const rank = ({ type }: Part) => (type === "tool_result" ? 0 : 1);
  for (const { parts } of turns) parts.sort((one, other) => rank(one) - rank(other));
  return turns;
}

/** Every string in `value` without lone surrogates, which servers refuse or choke on. */
export function wellFormed<Value>(value: Value): Value;
export function wellFormed(value: unknown): unknown {
  if (typeof value === "string") return value.toWellFormed();
  if (Array.isArray(value)) return value.map((item: unknown) => wellFormed(item));
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value);
  return Object.fromEntries(entries.map((pair) => wellFormed(pair)));
}

/** A call from what a stream gave. `taken` holds the ids of the session so far, and is added to. */
export function toCall(
  id: string,
  name: string,
  args: string,
  known: ReadonlySet<string>,
  taken: Set<string>,
): ToolCall {
  let own = id;
  while (own === "" || taken.has(own)) own = `call_${crypto.randomUUID().slice(0, 8)}`;
  taken.add(own);
  return { type: "tool_call", id: own, name: toKnown(name, known), ...readArguments(args) };
}

/**
 * The known name that is meant: some models add `functions.`, leak tokens of their template into a
 * name, write it in other letters, or leave out the server it belongs to. `name` where none is, or
 * more than one.
 */
export function toKnown(name: string, known: ReadonlySet<string>): string {
  if (known.has(name)) return name;
  const wanted = plain(
    name
      .replace(/<\|.*$/s, "")
      .trim()
      .replace(/^functions[.:]/i, ""),
  );
  const tools = [...known];
  const same = tools.filter((tool) => plain(tool) === wanted);
  const near = same.length > 0 ? same : tools.filter((tool) => plain(lastOf(tool)) === wanted);
  return near.length === 1 && wanted !== "" ? (near[0] ?? name) : name;
}

const plain = (name: string): string => name.toLowerCase().replace(/[-_]/g, "");

/** A tool's own name, without that of its MCP server; "" where it has none. */
const lastOf = (tool: string): string => /^mcp__.+?__(.+)$/.exec(tool)?.[1] ?? "";

function readArguments(text: string): Pick<ToolCall, "input" | "invalid"> {
  const input = isNothing(text) ? {} : readObject(text);
  return input ? { input } : { input: {}, invalid: text };
}

/** What servers send for a call without arguments. */
const isNothing = (text: string): boolean => /^\s*(null|"\s*"|"null")?\s*$/.test(text);

/** What may follow an object that is whole: tokens of a template, brackets too many. */
const garbage = /^(?:\s|<\|[^|<>]*\|>|<\/\w+>|\[\/?[A-Z_]+\]|[}\]`])+$/;

/** The object that `text` holds, where there is no doubt which; null: there is none, or doubt. */
export function readObject(text: string, depth = 0): Json | null {
  const value = parseJson(text);
  if (typeof value === "string" && depth < 3) return readObject(value, depth + 1); // encoded twice
  if (value !== undefined) return recordOf(value);
  const scan: Scan = { at: 0, open: [], quoted: false };
  const isWhole = scanJson(text, scan);
  if (isWhole && garbage.test(text.slice(scan.at))) return readObject(text.slice(0, scan.at), 3);
  return recordOf(parseJson(fromPython(text)));
}

/** Python's words and quotes as JSON's; a string that holds a quote or a backslash stays. */
function fromPython(text: string): string {
  const words: Record<string, string> = { True: "true", False: "false", None: "null" };
  return text.replace(
    /"(?:[^"\\]|\\.)*"|'([^'"\\\n]*)'|\b(?:True|False|None)\b/gs,
    (whole: string, quoted?: string) =>
      quoted === undefined ? (words[whole] ?? whole) : JSON.stringify(quoted),
  );
}

// ── Calls out of text ───────────────────────────────────────────────────────────────────────────

/** The schemas of the known tools, by name. */
export type Tools = ReadonlyMap<string, Json>;
export type TextCall = { name: string; input: Json };

/** Whether JSON that begins so can be a call of a known tool. */
export function mayBeCall(json: string, tools: Tools): boolean {
  const begun = json.replace(/^\[\s*/, "");
  const [, key, value] = /^\{\s*["'](\w+)["'](?:\s*:\s*["']([^"'\\]*)["'])?/.exec(begun) ?? [];
  if (key === undefined) return /^(?:\{\s*(?:["']\w*)?)?$/.test(begun);
  if (key === "name") return value === undefined || nameIn(value, tools) !== null;
  if (key === "type") return value === undefined || value === "function";
  return ["arguments", "parameters", "function"].includes(key);
}

export function nameIn(name: string, tools: Tools): string | null {
  const known = toKnown(name, new Set(tools.keys()));
  return tools.has(known) ? known : null;
}

/** All of the calls that JSON holds, or null where one of them is none. */
export function callsIn(json: string, tools: Tools): TextCall[] | null {
  const value = json.startsWith("[") ? parseJson(json) : [readObject(json)];
  if (!Array.isArray(value)) return null;
  const calls = value.map((item: unknown) => {
    const said = recordOf(item) ?? {};
    const called = recordOf(said["function"]) ?? said;
    const given = called["arguments"] ?? called["parameters"];
    const input = typeof given === "string" ? readObject(given) : recordOf(given);
    return callOf(textOf(called["name"]), input, tools);
  });
  const sound = calls.filter((call) => call !== null);
  return sound.length > 0 && sound.length === calls.length ? sound : null;
}

/** The call of a known tool with at least what its schema requires, or null. */
export function callOf(said: string, input: Json | null, tools: Tools): TextCall | null {
  const name = nameIn(said, tools);
  const schema = name !== null && tools.get(name);
  if (!schema || !input) return null;
  const required = Array.isArray(schema["required"]) ? schema["required"] : [];
  return required.every((key) => Object.hasOwn(input, String(key))) ? { name, input } : null;
}

/** `<parameter=KEY>VALUE</parameter>`, any number, then `</function>`; null: not to its end yet. */
export function readParameters(text: string, from: number, schema: Json | undefined) {
  // A value may hold what looks like its end: it ends where another one follows, or the call's end.
  const parameter =
    /\s*<parameter=([^<>\s]+)>(.*?)<\/parameter>(?=\s*<(?:parameter=|\/function>))/sy;
  const closer = /\s*<\/function>/y;
  const types = recordOf(schema?.["properties"]) ?? {};
  const pairs: [string, unknown][] = [];
  for (closer.lastIndex = from; ; closer.lastIndex = parameter.lastIndex) {
    parameter.lastIndex = closer.lastIndex;
    const [, key, value] = parameter.exec(text) ?? [];
    if (key === undefined || value === undefined) break;
    pairs.push([key, valueOf(value, recordOf(types[key]))]);
  }
  return closer.test(text) ? { input: Object.fromEntries(pairs), end: closer.lastIndex } : null;
}

/** A value without the line breaks around it; JSON where the schema wants no string. */
function valueOf(raw: string, schema: Json | null): unknown {
  const text = raw.replace(/^\n|\n$/g, "");
  const types = [schema?.["type"] ?? "string"].flat();
  const value = types.includes("string") ? undefined : parseJson(text.trim());
  return value === undefined ? text : value;
}

/** Where in a text one is: in a code block or not, and what of the line is behind. */
export type Place = { isFenced: boolean; ticks: number; lead: string };

export const newPlace = (): Place => ({ isFenced: false, ticks: 0, lead: "" });

/** Goes on to behind `text`. */
export function notePlace(place: Place, text: string): void {
  const isPlain = !/[\n`]/.test(text);
  for (const [index, line] of (isPlain ? [text] : text.split("\n")).entries()) {
    if (index > 0) {
      if (place.lead.startsWith("```") && place.ticks < 6) place.isFenced = !place.isFenced;
      place.ticks = 0;
      place.lead = "";
    }
    if (!isPlain) place.ticks += line.split("`").length - 1;
    if (place.lead.length < 3) place.lead = (place.lead + line).trimStart().slice(0, 3);
  }
}

/** Whether what begins here is code; JSON and fences count only at the beginning of a line. */
export const isCode = ({ isFenced, ticks, lead }: Place, text: string): boolean =>
  isFenced || ticks % 2 === 1 || (/^[{`]/.test(text) && lead !== "");
