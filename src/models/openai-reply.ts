/**
 * Reads one streamed Chat Completions reply, chunk by chunk.
 *
 * Each oddity handled here is some server's habit: missing, constant or repeated indexes and ids,
 * names repeated in each chunk, arguments as objects, reasoning under five names, usage in three
 * places, calls as text. An answer's parts are thinking, text, calls, in whatever order they come.
 */
import type { Delta, ModelRequest, Usage } from "../types.ts";
import { openDialects, type Said } from "./dialects.ts";
import { AttemptError } from "./failure.ts";
import { closeJson, countOf, parseJson, recordOf, recordsOf, textOf, type Json } from "./json.ts";
import { done } from "./sse.ts";
import { grow, newBlock, type Block, type Reader, type Reply } from "./wire.ts";

/** `request` tells which calls the text may hold; without it, text is text. */
export function openReader(reply: Reply, request?: Pick<ModelRequest, "tools">): Reader {
  const thinking = newBlock("thinking");
  const text = newBlock("text");
  const calls: Block[] = [];
  const details: Json[] = [];
  const split = openSplitter();
  const dialects = openDialects(request?.tools ?? []);
  let isFirst = true;
  const show = (said: Said) => [...grow(thinking, said.thinking), ...grow(text, said.text)];
  return {
    take(chunk) {
      const piece = takeChunk(reply, chunk, isFirst);
      if (!piece) return [];
      if (textOf(piece["refusal"])) reply.stop = "refusal";
      mergeDetails(details, recordsOf(piece["reasoning_details"]));
      const said = contentOf(piece);
      const { thinking: tagged, text: rest } = split(said.text);
      const plain = dialects.take(rest);
      const thought = said.thinking + tagged + plain.thinking;
      const shown = show({ thinking: thought, text: plain.text });
      const called = recordsOf(piece["tool_calls"]).flatMap((call) => takeCall(calls, call));
      isFirst &&= said.text === "" && calls.length === 0;
      return [...shown, ...called];
    },
    end() {
      const last = split("", true);
      const plain = dialects.take(last.text);
      const isFinished = /^(?:stop|end|eos|tool|function)/i.test(reply.stop);
      const { said, calls: written } = dialects.end(calls.length > 0, isFinished);
      const shown = show({
        thinking: last.thinking + plain.thinking + said.thinking,
        text: plain.text + said.text,
      });
      if (details.length > 0) thinking.signature = JSON.stringify(details);
      if (isFinished) for (const call of calls) call.text = closeJson(call.text);
      const own = written.map(({ name }) => newBlock("tool_call", { name }));
      const deltas = own.flatMap((call, nth) => grow(call, JSON.stringify(written[nth]?.input)));
      reply.blocks.push(thinking, text, ...calls, ...own);
      return [...shown, ...deltas];
    },
  };
}

/** Notes what a chunk says about the reply as a whole; returns its delta, if it has one. */
function takeChunk(reply: Reply, chunk: Json, isFirst: boolean): Json | null {
  const choices = recordsOf(chunk["choices"]);
  const choice = choices[0] ?? {};
  const finish = textOf(choice["finish_reason"]);
  if (finish === "error" || choice["error"])
    throw new AttemptError("status", JSON.stringify(choice["error"] ?? choice), 502);
  const usage = recordOf(chunk["usage"]) ?? recordOf(recordOf(chunk["x_groq"])?.["usage"]);
  const counted = usage ?? recordOf(choice["usage"]);
  if (counted) reply.usage = usageOf(counted);
  const delta = recordOf(choice["delta"]);
  // Plain JSON where a stream was asked for has a whole message; some streams repeat it at the end.
  const message = isFirst && !delta ? recordOf(choice["message"]) : null;
  const isLast = chunk === done || (usage !== null && choices.length === 0);
  reply.isComplete ||= isLast || finish !== "" || message !== null;
  if (reply.stop !== "refusal") reply.stop = finish || reply.stop;
  return delta ?? message;
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

// ── Text and reasoning ──────────────────────────────────────────────────────────────────────────

/** Text and reasoning of a delta: `content` may be a list (Mistral), reasoning has five names. */
function contentOf(delta: Json): Said {
  const { content } = delta;
  const parts = recordsOf(content);
  const thoughts = parts.flatMap((part) => recordsOf(part["thinking"]));
  const named =
    textOf(delta["reasoning_content"]) ||
    textOf(delta["reasoning"]) ||
    textOf(delta["reasoning_text"]) ||
    joined(recordsOf(delta["reasoning_details"]));
  return {
    text: textOf(content) + joined(parts) + textOf(delta["refusal"]),
    thinking: named + joined(thoughts),
  };
}

const joined = (parts: Json[]): string =>
  parts.map((part) => textOf(part["text"]) || textOf(part["summary"])).join("");

/** Adds pieces of OpenRouter's reasoning_details to what is there: text grows, the rest is kept. */
function mergeDetails(details: Json[], pieces: Json[]): void {
  for (const piece of pieces) {
    const last = details.findLast(
      (detail) => detail["type"] === piece["type"] && detail["index"] === piece["index"],
    );
    if (!last) {
      details.push({ ...piece });
      continue;
    }
    for (const [field, value] of Object.entries(piece)) {
      const begun = field === "text" || field === "summary" ? textOf(last[field]) : "";
      last[field] = begun ? begun + textOf(value) : (value ?? last[field]);
    }
  }
}

/** Takes `<think>…</think>` out of the very beginning of a text that comes in pieces. */
function openSplitter() {
  const opener = "<think>";
  const closer = "</think>";
  let state: "start" | "thinking" | "gap" | "text" = "start";
  let held = "";
  return (piece: string, isLast = false): Said => {
    const said = { text: "", thinking: "" };
    held += piece;
    const begun = held.trimStart();
    if (state === "start" && (isLast || !opener.startsWith(begun))) {
      state = begun.startsWith(opener) ? "thinking" : "text";
      if (state === "thinking") held = begun.slice(opener.length);
    }
    if (state === "thinking") {
      const end = held.indexOf(closer);
      const tag = held.lastIndexOf("<");
      const isHalf = tag !== -1 && !isLast && closer.startsWith(held.slice(tag));
      said.thinking = held.slice(0, end !== -1 ? end : isHalf ? tag : undefined);
      held = held.slice(said.thinking.length + (end === -1 ? 0 : closer.length));
      if (end !== -1) state = "gap";
    }
    if (state === "gap") {
      held = held.trimStart();
      if (held !== "") state = "text";
    }
    if (state === "text") {
      said.text = held;
      held = "";
    }
    return said;
  };
}

// ── Tool calls ──────────────────────────────────────────────────────────────────────────────────

type Piece = Pick<Block, "id" | "index" | "name" | "text">;

function takeCall(calls: Block[], said: Json): Delta[] {
  const called = recordOf(said["function"]) ?? {};
  const { arguments: raw } = called;
  const piece: Piece = {
    id: textOf(said["id"]),
    index: countOf(said["index"]),
    name: textOf(called["name"]),
    text: recordOf(raw) ? JSON.stringify(raw) : textOf(raw),
  };
  const call = callFor(calls, piece);
  call.id ||= piece.id;
  call.name ||= piece.name;
  const extra = recordOf(said["extra_content"]); // Gemini's thought signature
  if (extra) call.signature ||= JSON.stringify(extra);
  return grow(call, piece.text);
}

/**
 * The call that a piece belongs to: by id, then by index, then the last one; or a new one.
 * One id may serve for all calls (llama.cpp), one index too (Ollama); both may be missing (Gemini).
 */
function callFor(calls: Block[], piece: Piece): Block {
  const { id, index } = piece;
  const near = calls.filter((c) => index === null || c.index === null || c.index === index);
  const call = (id && near.findLast((known) => known.id === id)) || near.at(-1);
  if (call && !beginsAnother(call, piece)) return call;
  const fresh = newBlock("tool_call", { index });
  calls.push(fresh);
  return fresh;
}

/** A name begins a new call, unless it only repeats or completes what the call has. */
function beginsAnother(call: Block, { id, name, text }: Piece): boolean {
  if (!name || !call.name) return false;
  if (name !== call.name || (id !== "" && call.id !== "" && id !== call.id)) return true;
  return text.trimStart().startsWith("{") && parseJson(call.text) !== undefined;
}
