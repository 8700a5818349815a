/**
 * What is put right on the way to a model and on the way back, whatever the wire.
 *
 * Out: messages in the strict order every server takes, strings without halves of characters. In:
 * tool calls with a name, an id of their own and arguments that are an object. Arguments that
 * cannot be read are never turned into `{}` in silence: the call is marked `invalid`.
 */
import type { AssistantPart, Message, ToolCall, UserPart } from "../types.ts";
import { parseJson, recordOf } from "./json.ts";

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

/** Some models add `functions.` or leak tokens of their template into a name. */
function toKnown(name: string, known: ReadonlySet<string>): string {
  if (known.has(name)) return name;
  const bare = name.replace(/<\|.*$/s, "").trim();
  const wanted = bare.replace(/^functions[.:]/, "").toLowerCase();
  return [...known].find((tool) => tool.toLowerCase() === wanted) ?? name;
}

function readArguments(text: string): Pick<ToolCall, "input" | "invalid"> {
  const value = text.trim() === "" ? null : parseJson(text);
  if (typeof value === "string") return readArguments(value); // some servers encode twice
  if (value === null) return { input: {} };
  const input = recordOf(value);
  return input ? { input } : { input: {}, invalid: text };
}
