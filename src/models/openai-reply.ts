/**
 * Reads one streamed Chat Completions reply: chunks in, deltas and an answer out.
 *
 * What a reply means is decided by its content, never by its `finish_reason`. Each oddity handled
 * here is some server's habit: missing, constant or repeated indexes and ids, names repeated in each
 * chunk, arguments as objects, reasoning under five names, usage in three places. Never yields part
 * of a call as a call: a reply that breaks off is an `AttemptError`.
 */
import type {
  AssistantPart,
  Delta,
  ModelAnswer,
  ModelRequest,
  StopReason,
  Usage,
} from "../types.ts";
import { AttemptError } from "./failure.ts";
import { idsIn, toCall } from "./repair.ts";
import { countOf, done, recordOf, recordsOf, textOf, type Json } from "./sse.ts";

/** A tool call as it grows. */
type Slot = {
  id: string;
  index: number | null;
  name: string;
  args: string;
  /** Gemini's thought signature, to be given back as it is. */
  extra: Json | null;
};

type Reply = {
  text: string;
  thinking: string;
  /** OpenRouter's reasoning_details, merged. */
  details: Json[];
  slots: Slot[];
  usage: Json | null;
  finish: string;
  refused: boolean;
  complete: boolean;
};

export function openReply() {
  const reply: Reply = {
    text: "",
    thinking: "",
    details: [],
    slots: [],
    usage: null,
    finish: "",
    refused: false,
    complete: false,
  };
  const splitter = openSplitter();
  return {
    /** What a chunk adds, to be shown. */
    take(chunk: Json): Delta[] {
      const delta = takeChunk(reply, chunk);
      if (!delta) return [];
      const { text, thinking } = contentOf(delta);
      const split = splitter.push(text);
      mergeDetails(reply.details, recordsOf(delta["reasoning_details"]));
      reply.refused ||= textOf(delta["refusal"]) !== "";
      const shown = show(reply, thinking + split.thinking, split.text);
      for (const call of recordsOf(delta["tool_calls"])) shown.push(takeCall(reply.slots, call));
      return shown;
    },
    /** What was held back. Throws `AttemptError` if the reply is not complete. */
    end(): Delta[] {
      if (!reply.complete) throw new AttemptError("broken", "the answer never came to its end");
      const { text, thinking } = splitter.end();
      return show(reply, thinking, text);
    },
    answer: (provider: string, request: ModelRequest): ModelAnswer => ({
      type: "answer",
      parts: partsOf(reply, provider, request),
      stopReason: stopReasonOf(reply),
      usage: usageOf(reply.usage ?? {}),
    }),
  };
}

/** Notes what a chunk says about the reply as a whole; returns its delta, if it has one. */
function takeChunk(reply: Reply, chunk: Json): Json | null {
  if (chunk === done) reply.complete = true;
  const choice = recordsOf(chunk["choices"])[0] ?? {};
  const usage = recordOf(chunk["usage"]) ?? recordOf(recordOf(chunk["x_groq"])?.["usage"]) ?? null;
  reply.usage = usage ?? recordOf(choice["usage"]) ?? reply.usage;
  const finish = textOf(choice["finish_reason"]);
  if (finish === "error" || choice["error"])
    throw new AttemptError("status", JSON.stringify(choice["error"] ?? choice), 502);
  if (finish) reply.finish = finish;
  const delta = recordOf(choice["delta"]);
  // Plain JSON where a stream was asked for has a whole message; some streams repeat it at the end.
  const message =
    delta || reply.text || reply.slots.length > 0 ? null : recordOf(choice["message"]);
  const isUsageOnly = usage !== null && recordsOf(chunk["choices"]).length === 0;
  if (finish || message || isUsageOnly) reply.complete = true;
  return delta ?? message;
}

function show(reply: Reply, thinking: string, text: string): Delta[] {
  const shown: Delta[] = [];
  if (thinking) shown.push({ type: "thinking_delta", text: thinking });
  if (text) shown.push({ type: "text_delta", text });
  reply.thinking += thinking;
  reply.text += text;
  return shown;
}

// ── Text and reasoning ──────────────────────────────────────────────────────────────────────────

/** Text and reasoning of a delta: `content` may be a list (Mistral), reasoning has five names. */
function contentOf(delta: Json): { text: string; thinking: string } {
  const { content } = delta;
  const parts = recordsOf(content);
  const thoughts = parts.flatMap((part) => recordsOf(part["thinking"]));
  const named =
    textOf(delta["reasoning_content"]) ||
    textOf(delta["reasoning"]) ||
    textOf(delta["reasoning_text"]) ||
    recordsOf(delta["reasoning_details"]).map(thoughtOf).join("");
  return {
    text: textOf(content) + textsOf(parts) + textOf(delta["refusal"]),
    thinking: named + textsOf(thoughts),
  };
}

const textsOf = (parts: Json[]): string => parts.map((part) => textOf(part["text"])).join("");

const thoughtOf = (detail: Json): string => textOf(detail["text"]) || textOf(detail["summary"]);

/** Adds pieces of reasoning_details to what is there: text grows, the rest is kept as it came. */
function mergeDetails(details: Json[], pieces: Json[]): void {
  for (const piece of pieces) {
    const last = details.findLast(
      (detail) => detail["type"] === piece["type"] && detail["index"] === piece["index"],
    );
    if (!last) details.push({ ...piece });
    else {
      const grown = ["text", "summary"].filter(
        (field) => textOf(piece[field]) && textOf(last[field]),
      );
      const texts = grown.map((field) => [field, textOf(last[field]) + textOf(piece[field])]);
      const said = Object.entries(piece).filter(([, value]) => value !== null);
      Object.assign(last, Object.fromEntries(said), Object.fromEntries(texts));
    }
  }
}

/** Takes `<think>…</think>` out of the very beginning of a text that comes in pieces. */
function openSplitter() {
  let state: "start" | "thinking" | "gap" | "text" = "start";
  let held = "";
  const opener = "<think>";
  const closer = "</think>";

  const push = (piece: string): { text: string; thinking: string } => {
    if (state === "text") return { text: piece, thinking: "" };
    held += piece;
    if (state === "start") {
      const begun = held.trimStart();
      if (opener.startsWith(begun)) return { text: "", thinking: "" };
      state = begun.startsWith(opener) ? "thinking" : "text";
      if (state === "text") return { text: take(held.length), thinking: "" };
      held = begun.slice(opener.length);
    }
    let thinking = "";
    if (state === "thinking") {
      const end = held.indexOf(closer);
      thinking = take(end === -1 ? held.length - overlap(held, closer) : end);
      if (end === -1) return { text: "", thinking };
      held = held.slice(closer.length);
      state = "gap";
    }
    held = held.trimStart();
    if (held) state = "text";
    return { text: take(held.length), thinking };
  };
  const take = (length: number): string => {
    const taken = held.slice(0, length);
    held = held.slice(length);
    return taken;
  };
  const end = () =>
    state === "thinking" ? { text: "", thinking: held } : { text: held, thinking: "" };
  return { push, end };
}

/** How many characters at the end of `text` begin `word`. */
function overlap(text: string, word: string): number {
  let length = Math.min(text.length, word.length - 1);
  while (length > 0 && !text.endsWith(word.slice(0, length))) length--;
  return length;
}

// ── Tool calls ──────────────────────────────────────────────────────────────────────────────────

function takeCall(slots: Slot[], piece: Json): Delta {
  const called = recordOf(piece["function"]) ?? {};
  const id = textOf(piece["id"]);
  const index = countOf(piece["index"]);
  const name = textOf(called["name"]);
  const { arguments: raw } = called;
  const args = typeof raw === "string" ? raw : recordOf(raw) ? JSON.stringify(raw) : "";
  const slot = slotFor(slots, { id, index, name, args });
  slot.id ||= id;
  slot.name ||= name;
  slot.args += args;
  slot.extra ??= recordOf(piece["extra_content"]);
  return { type: "tool_delta", name: slot.name, chars: args.length };
}

/**
 * The call that a piece belongs to: by id, then by index, then the last one; or a new one.
 * One id may serve for all calls (llama.cpp), one index too (Ollama); both may be missing (Gemini).
 */
function slotFor(slots: Slot[], piece: Omit<Slot, "extra">): Slot {
  const { id, index } = piece;
  const sameIndex = (slot: Slot) => index === null || slot.index === null || slot.index === index;
  const byId = id ? slots.findLast((slot) => slot.id === id && sameIndex(slot)) : undefined;
  const slot = byId ?? slots.findLast(sameIndex);
  if (slot && !beginsAnother(slot, piece)) return slot;
  const fresh = { id: "", index, name: "", args: "", extra: null };
  slots.push(fresh);
  return fresh;
}

/** A name begins a new call, unless it only repeats or completes what the call has. */
function beginsAnother(slot: Slot, { id, name, args }: Omit<Slot, "extra">): boolean {
  if (!name || !slot.name) return false;
  if (name !== slot.name) return true;
  return (
    (args.trimStart().startsWith("{") && isWhole(slot.args)) ||
    (id !== "" && slot.id !== "" && id !== slot.id)
  );
}

function isWhole(json: string): boolean {
  if (!json.trimEnd().endsWith("}")) return false;
  try {
    JSON.parse(json);
    return true;
  } catch {
    return false; // a brace inside of what is still coming
  }
}

// ── The answer ──────────────────────────────────────────────────────────────────────────────────

function partsOf(reply: Reply, provider: string, request: ModelRequest): AssistantPart[] {
  const parts: AssistantPart[] = [];
  const { thinking, details, text } = reply;
  if (thinking || details.length > 0) {
    const signature = details.length > 0 ? { signature: JSON.stringify(details) } : {};
    parts.push({ type: "thinking", text: thinking, provider, ...signature });
  }
  if (text.trim()) parts.push({ type: "text", text });
  const known = new Set(request.tools.map((tool) => tool.name));
  const taken = idsIn(request.messages);
  for (const { id, name, args, extra } of reply.slots) {
    if (!name && !args) continue;
    const signature = extra ? JSON.stringify(extra) : "";
    if (signature) parts.push({ type: "thinking", text: "", provider, signature });
    parts.push(toCall(id, name, args, known, taken));
  }
  return parts;
}

function stopReasonOf({ finish, refused, slots }: Reply): StopReason {
  if (/length|max_tokens|context_window/.test(finish)) return "length";
  if (slots.length > 0) return "tool_calls";
  return refused || /filter|refusal|safety/i.test(finish) ? "refusal" : "end";
}

function usageOf(usage: Json): Usage {
  const details = recordOf(usage["prompt_tokens_details"]) ?? {};
  const cached =
    countOf(details["cached_tokens"]) ?? countOf(usage["prompt_cache_hit_tokens"]) ?? 0;
  const written = countOf(details["cache_write_tokens"]) ?? 0;
  const prompt = countOf(usage["prompt_tokens"]) ?? 0;
  return {
    inputTokens: Math.max(0, prompt - cached - written),
    outputTokens: countOf(usage["completion_tokens"]) ?? 0,
    cacheReadTokens: cached,
    cacheWriteTokens: written,
  };
}
