/**
 * The Messages API, for Anthropic and those who speak it too.
 *
 * Converts at this boundary and nowhere else. The order tools → system → messages is the order of
 * the prompt's cache; breakpoints stand at the end of each and move only forward, so that every
 * request reads what the one before it wrote. Thinking goes back unchanged, and only to the
 * provider it came from.
 */
import Anthropic from "@anthropic-ai/sdk";
import { config } from "../config.ts";
import type {
  AssistantPart,
  Delta,
  ImagePart,
  Model,
  ModelAnswer,
  ModelRequest,
  StopReason,
  ToolResultPart,
  UserPart,
} from "../types.ts";
import { AttemptError, failureIn, fetchOrFail, type Endpoint } from "./failure.ts";
import { arrange, idsIn, toCall, wellFormed } from "./repair.ts";
import { withRetries, type Limits } from "./retry.ts";
import { countOf, readEvents, recordOf, recordsOf, textOf, type Json } from "./sse.ts";

type Body = Anthropic.MessageCreateParamsStreaming;
type Block = Anthropic.ContentBlockParam;

const ephemeral = { type: "ephemeral" } as const;

export function openAnthropic(
  endpoint: Endpoint,
  facts: Pick<Model, "id" | "contextTokens" | "price">,
  limits: Limits,
): Model {
  const { key, keyVariable } = endpoint;
  const isToken = keyVariable === "ANTHROPIC_AUTH_TOKEN";
  const client = new Anthropic({
    ...(isToken ? { authToken: key } : { apiKey: key ?? "none" }),
    // The SDK sends a bearer token; servers that speak this API know the documented header.
    defaultHeaders: isToken || key === null ? {} : { "x-api-key": key },
    baseURL: endpoint.baseUrl,
    maxRetries: 0,
    timeout: 2 ** 31 - 1,
    logLevel: "off",
    openTelemetry: false,
    fetch: fetchOrFail,
  });
  const learned = { maxTokens: Infinity };
  return {
    ...facts,
    stream: (request, signal) =>
      withRetries(
        async function* (attemptSignal, alive) {
          const response = await send(client, endpoint, learned, request, attemptSignal);
          yield* readReply(response, endpoint, request, alive);
        },
        endpoint,
        limits,
        signal,
      ),
  };
}

/** Sends once more where the only fault is a limit of output above the model's own. */
async function send(
  client: Anthropic,
  endpoint: Endpoint,
  learned: { maxTokens: number },
  request: ModelRequest,
  signal: AbortSignal,
): Promise<Response> {
  const body = toBody(endpoint.model, endpoint.provider, request, learned.maxTokens);
  try {
    // Not messages.create(): that prints to the terminal where a model is old.
    return await client.post("/v1/messages", { body, signal, stream: true }).asResponse();
  } catch (error) {
    const most = /max_tokens: \d+ > (\d+)/.exec(failureIn(error)?.detail ?? "")?.[1];
    if (!most || Number(most) >= learned.maxTokens) throw error;
    learned.maxTokens = Number(most);
    return await send(client, endpoint, learned, request, signal);
  }
}

// ── Out ─────────────────────────────────────────────────────────────────────────────────────────

function toBody(model: string, provider: string, request: ModelRequest, most: number): Body {
  const { system, tools, maxOutputTokens = config.limits.maxOutputTokens } = request;
  const budget = typeof config.thinking === "number" ? config.thinking : 0;
  const body: Body = {
    model,
    max_tokens: Math.min(maxOutputTokens + budget, most),
    ...(config.thinking === "adaptive" && { thinking: { type: "adaptive" } }),
    ...(budget > 0 && { thinking: { type: "enabled", budget_tokens: budget } }),
    ...(tools.length > 0 && {
      tools: tools.map(({ name, description, schema }, index) => ({
        name,
        description,
        input_schema: { ...schema, type: "object" as const },
        ...(index === tools.length - 1 && { cache_control: ephemeral }),
      })),
    }),
    ...(system.trim() && {
      system: [{ type: "text" as const, text: system, cache_control: ephemeral }],
    }),
    messages: toMessages(request, provider),
    stream: true,
  };
  return wellFormed(body);
}

function toMessages(request: ModelRequest, provider: string): Anthropic.MessageParam[] {
  const messages = arrange(request.messages).map((message): Anthropic.MessageParam => {
    const { role, parts } = message;
    if (role === "user") return { role, content: parts.map(toUserBlock) };
    return { role, content: parts.flatMap((part) => toAssistantBlock(part, provider) ?? []) };
  });
  // Two breakpoints: a step may add more blocks than the 20 that a lookup goes back.
  for (const message of messages.filter(({ role }) => role === "user").slice(-2)) {
    const last = message.content.at(-1);
    if (typeof last === "object" && "type" in last && isCacheable(last))
      last.cache_control = ephemeral;
  }
  return messages;
}

type Cacheable =
  Anthropic.TextBlockParam | Anthropic.ImageBlockParam | Anthropic.ToolResultBlockParam;

const isCacheable = (block: Block): block is Cacheable =>
  block.type === "text" || block.type === "image" || block.type === "tool_result";

function toUserBlock(part: UserPart): Block {
  if (part.type === "text") return { type: "text", text: part.text };
  return part.type === "image" ? toImage(part) : toResult(part);
}

const toImage = ({ mediaType, data }: ImagePart): Anthropic.ImageBlockParam => ({
  type: "image",
  source: { type: "base64", media_type: mediaType, data },
});

function toResult({ id, content, images = [], isError }: ToolResultPart): Block {
  const text = content.trim() ? content : "(no output)";
  return {
    type: "tool_result",
    tool_use_id: wireId(id),
    content: images.length > 0 ? [{ type: "text", text }, ...images.map(toImage)] : text,
    ...(isError && { is_error: true }),
  };
}

function toAssistantBlock(part: AssistantPart, provider: string): Block | null {
  switch (part.type) {
    case "text":
      return { type: "text", text: part.text };
    case "tool_call":
      return { type: "tool_use", id: wireId(part.id), name: part.name, input: part.input };
    case "thinking":
      if (part.provider !== provider) return null;
      if (part.redacted !== undefined) return { type: "redacted_thinking", data: part.redacted };
      if (part.signature === undefined) return null;
      return { type: "thinking", thinking: part.text, signature: part.signature };
  }
}

/** Ids here are letters, digits, `_` and `-`; another provider's may hold more. */
const wireId = (id: string): string =>
  /^[\w-]{1,64}$/.test(id) ? id : `call_${Bun.hash(id).toString(36)}`;

// ── In ──────────────────────────────────────────────────────────────────────────────────────────

/** A content block as it grows. */
type Growing = {
  type: string;
  index: unknown;
  text: string;
  signature: string;
  id: string;
  name: string;
  /** The arguments, where they come whole instead of in pieces. */
  input: Json | null;
};

type Reply = { blocks: Growing[]; usage: Json; stop: string; complete: boolean };

async function* readReply(
  response: Response,
  { provider }: Endpoint,
  request: ModelRequest,
  alive: () => void,
): AsyncGenerator<Delta | ModelAnswer> {
  const reply: Reply = { blocks: [], usage: {}, stop: "", complete: false };
  for await (const events of readEvents(response, alive))
    for (const event of events) for (const delta of takeEvent(reply, event)) yield delta;
  if (!reply.complete) throw new AttemptError("broken", "the answer never came to its end");
  const taken = idsIn(request.messages);
  const known = new Set(request.tools.map((tool) => tool.name));
  const parts = reply.blocks.flatMap((block): AssistantPart[] => {
    if (block.type === "tool_use")
      return [toCall(block.id, block.name, block.input ?? block.text, known, taken)];
    return toPart(block, provider);
  });
  yield {
    type: "answer",
    parts,
    stopReason: stopReasonOf(reply.stop),
    usage: usageOf(reply.usage),
  };
}

function takeEvent(reply: Reply, event: Json): Delta[] {
  switch (event["type"]) {
    case "message": // plain JSON although a stream was asked for
      noteEnd(reply, event, event);
      reply.complete = true;
      return recordsOf(event["content"]).flatMap((block) => startBlock(reply, block, null));
    case "message_start":
      noteEnd(reply, recordOf(event["message"]) ?? {}, {});
      return [];
    case "content_block_start":
      return startBlock(reply, recordOf(event["content_block"]) ?? {}, event["index"]);
    case "content_block_delta":
      return growBlock(reply, recordOf(event["delta"]) ?? {}, event["index"]);
    case "message_delta":
      noteEnd(reply, event, recordOf(event["delta"]) ?? {});
      return [];
    case "message_stop":
      reply.complete = true;
      return [];
    default:
      return [];
  }
}

/** Usage comes in parts, each replacing what it names; a stop reason ends the answer. */
function noteEnd(reply: Reply, withUsage: Json, withStop: Json): void {
  const said = Object.entries(recordOf(withUsage["usage"]) ?? {});
  Object.assign(reply.usage, Object.fromEntries(said.filter(([, value]) => value !== null)));
  reply.stop = textOf(withStop["stop_reason"]) || reply.stop;
  reply.complete ||= reply.stop !== "";
}

function startBlock(reply: Reply, block: Json, index: unknown): Delta[] {
  const input = recordOf(block["input"]);
  const growing: Growing = {
    type: textOf(block["type"]),
    index,
    text: textOf(block["text"]) + textOf(block["thinking"]),
    signature: textOf(block["signature"]) || textOf(block["data"]),
    id: textOf(block["id"]),
    name: textOf(block["name"]),
    input: input && Object.keys(input).length > 0 ? input : null,
  };
  reply.blocks.push(growing);
  if (growing.type === "tool_use") return [{ type: "tool_delta", name: growing.name, chars: 0 }];
  return growing.text ? [shown(growing, growing.text)] : [];
}

function growBlock(reply: Reply, delta: Json, index: unknown): Delta[] {
  const block = reply.blocks.findLast((known) => known.index === index) ?? reply.blocks.at(-1);
  if (!block) return [];
  block.signature += textOf(delta["signature"]);
  const text = textOf(delta["text"]) + textOf(delta["thinking"]) + textOf(delta["partial_json"]);
  if (!text) return [];
  block.text += text;
  if (delta["type"] === "input_json_delta") block.input = null;
  return [shown(block, text)];
}

function shown({ type, name }: Growing, text: string): Delta {
  if (type === "tool_use") return { type: "tool_delta", name, chars: text.length };
  return { type: type === "thinking" ? "thinking_delta" : "text_delta", text };
}

function toPart({ type, text, signature }: Growing, provider: string): AssistantPart[] {
  if (type === "redacted_thinking")
    return [{ type: "thinking", text: "", provider, redacted: signature }];
  if (type === "thinking")
    return [{ type: "thinking", text, provider, ...(signature && { signature }) }];
  return type === "text" && text.trim() ? [{ type: "text", text }] : [];
}

function stopReasonOf(stop: string): StopReason {
  if (stop === "tool_use") return "tool_calls";
  if (stop === "max_tokens" || stop === "model_context_window_exceeded") return "length";
  return stop === "refusal" ? "refusal" : "end"; // end_turn, stop_sequence, pause_turn
}

const usageOf = (usage: Json): ModelAnswer["usage"] => ({
  inputTokens: countOf(usage["input_tokens"]) ?? 0,
  outputTokens: countOf(usage["output_tokens"]) ?? 0,
  cacheReadTokens: countOf(usage["cache_read_input_tokens"]) ?? 0,
  cacheWriteTokens: countOf(usage["cache_creation_input_tokens"]) ?? 0,
});
