/**
 * What is put right on the way to a model and on the way back, whatever the wire.
 *
 * Out: messages in the strict order every server takes, strings without halves of characters. In:
 * tool calls with a name, an id of their own and arguments that are an object. Arguments that
 * cannot be read are never turned into `{}` in silence: the call is marked `invalid`.
 */
import type { Message, ToolCall, UserPart } from "../types.ts";

/**
 * The messages as every server takes them: user first, roles in turn, tool results before what else
 * the user said, no blank text, and no message of nothing.
 */
export function arrange(messages: readonly Message[]): Message[] {
  const arranged: Message[] = [];
  for (const message of messages) {
    const last = arranged.at(-1);
    if (message.role === "user") {
      const parts = message.parts.filter((part) => part.type !== "text" || part.text.trim());
      if (parts.length === 0) continue;
      if (last?.role === "user") last.parts = resultsFirst([...last.parts, ...parts]);
      else arranged.push({ role: "user", parts: resultsFirst(parts) });
    } else {
      const parts = message.parts.filter((part) => part.type !== "text" || part.text.trim());
      if (!parts.some((part) => part.type !== "thinking")) continue;
      if (last?.role === "assistant") last.parts = [...last.parts, ...parts];
      else if (last) arranged.push({ role: "assistant", parts });
      else arranged.push(opening(), { role: "assistant", parts });
    }
  }
  return arranged;
}

const opening = (): Message => ({ role: "user", parts: [{ type: "text", text: "(continued)" }] });

function resultsFirst(parts: UserPart[]): UserPart[] {
  const results = parts.filter((part) => part.type === "tool_result");
  return [...results, ...parts.filter((part) => part.type !== "tool_result")];
}

/** Every string in `value` without lone surrogates, which servers refuse or choke on. */
export function wellFormed<T>(value: T): T {
  return walk(value) as T;
}

function walk(value: unknown): unknown {
  if (typeof value === "string") return value.toWellFormed();
  if (Array.isArray(value)) return value.map(walk);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [walk(key), walk(item)]));
}

/** A call from what a stream gave. `taken` holds the ids of the session so far, and is added to. */
export function toCall(
  id: string,
  name: string,
  rawArguments: unknown,
  known: ReadonlySet<string>,
  taken: Set<string>,
): ToolCall {
  const { input, invalid } = readArguments(rawArguments);
  const call: ToolCall = {
    type: "tool_call",
    id: ownId(id, taken),
    name: clean(name, known),
    input,
  };
  return invalid === undefined ? call : { ...call, invalid };
}

/** The ids of all calls in `messages`. */
export function idsIn(messages: readonly Message[]): Set<string> {
  const ids = new Set<string>();
  for (const message of messages)
    for (const part of message.parts) if (part.type === "tool_call") ids.add(part.id);
  return ids;
}

/** `id`, or one made up where it is empty or another call of the session has it. */
function ownId(id: string, taken: Set<string>): string {
  let own = id;
  while (own === "" || taken.has(own)) own = `call_${crypto.randomUUID().slice(0, 8)}`;
  taken.add(own);
  return own;
}

/** Some models add `functions.` or leak tokens of their template into a name. */
function clean(name: string, known: ReadonlySet<string>): string {
  if (known.has(name)) return name;
  const bare = name
    .replace(/<\|.*$/s, "")
    .trim()
    .replace(/^functions[.:]/, "");
  if (known.has(bare)) return bare;
  const alike = [...known].filter((tool) => tool.toLowerCase() === bare.toLowerCase());
  return alike.length === 1 && alike[0] ? alike[0] : name;
}

function readArguments(raw: unknown): { input: Record<string, unknown>; invalid?: string } {
  if (typeof raw === "object" && raw !== null && !Array.isArray(raw)) return { input: { ...raw } };
  const text = typeof raw === "string" ? raw : JSON.stringify(raw ?? "");
  if (raw === null || raw === undefined || text.trim() === "") return { input: {} };
  try {
    const value: unknown = JSON.parse(text);
    // Some servers encode twice; a call without arguments may come as null.
    if (value === null || typeof value === "object" || typeof value === "string")
      return Array.isArray(value) ? { input: {}, invalid: text } : readArguments(value);
    return { input: {}, invalid: text };
  } catch {
    return { input: {}, invalid: text };
  }
}
