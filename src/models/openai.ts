/**
 * Chat Completions, for every server that claims to speak it.
 *
 * Converts at this boundary and nowhere else. What a server refuses to be sent is learned from its
 * error and left out for the life of the model (`adapt`). What comes back is read in
 * openai-reply.ts.
 */
import OpenAI from "openai";
import type {
  AssistantPart,
  Delta,
  ImagePart,
  Model,
  ModelAnswer,
  ModelRequest,
  UserPart,
} from "../types.ts";
import { AttemptError, failureIn, fetchOrFail, type Endpoint } from "./failure.ts";
import { openReply } from "./openai-reply.ts";
import { arrange, wellFormed } from "./repair.ts";
import { withRetries, type Limits } from "./retry.ts";
import { readEvents } from "./sse.ts";

/** What this server takes. Starts with a guess; `adapt` learns. */
type Dialect = {
  usage: boolean;
  /** The names of the limit of output, in the order they are tried; none: it is left out. */
  limitNames: ("max_tokens" | "max_completion_tokens")[];
  /** The content of an assistant message that only calls tools. */
  emptyContent: "" | null;
  /** Whether reasoning goes back with the calls it led to. */
  reasoning: "never" | "where it is" | "always";
  /** Whether an assistant must speak between tool results and a user. */
  bridge: boolean;
};

type Body = OpenAI.ChatCompletionCreateParamsStreaming;
type WireMessage = OpenAI.ChatCompletionMessageParam & {
  reasoning_content?: string;
  reasoning_details?: unknown;
};

export function openOpenAI(
  endpoint: Endpoint,
  facts: Pick<Model, "id" | "contextTokens" | "price">,
  limits: Limits,
): Model {
  const client = new OpenAI({
    apiKey: endpoint.key ?? "none",
    baseURL: endpoint.baseUrl,
    adminAPIKey: null,
    // These come from variables that belong to OpenAI; no other provider is to see them.
    ...(endpoint.provider !== "openai" && { organization: null, project: null }),
    maxRetries: 0,
    timeout: 2 ** 31 - 1,
    logLevel: "off",
    fetch: fetchOrFail,
  });
  const dialect = guessDialect(endpoint);
  return {
    ...facts,
    stream: (request, signal) =>
      withRetries(
        async function* (attemptSignal, alive) {
          const response = await send(client, endpoint, dialect, request, attemptSignal);
          yield* readReply(response, endpoint, request, alive);
        },
        endpoint,
        limits,
        signal,
      ),
  };
}

async function send(
  client: OpenAI,
  endpoint: Endpoint,
  dialect: Dialect,
  request: ModelRequest,
  signal: AbortSignal,
): Promise<Response> {
  for (;;) {
    const body = wellFormed(toBody(endpoint, dialect, request));
    try {
      return await client.chat.completions.create(body, { signal }).asResponse();
    } catch (error) {
      const failure = failureIn(error);
      if (!failure || !adapt(dialect, failure)) throw error;
    }
  }
}

// ── What a server takes ─────────────────────────────────────────────────────────────────────────

function guessDialect({ provider, baseUrl }: Endpoint): Dialect {
  const limitNames: Dialect["limitNames"] = ["max_tokens", "max_completion_tokens"];
  return {
    usage: true,
    limitNames: baseUrl.includes("//api.openai.com/") ? limitNames.toReversed() : limitNames,
    emptyContent: null, // with "" some templates lose the model's tool format (ollama #14181)
    reasoning: /deepseek|moonshot/.test(`${provider} ${baseUrl}`) ? "where it is" : "never",
    bridge: false,
  };
}

/** What a refusal that speaks of something teaches. */
const lessons: [RegExp, (dialect: Dialect, detail: string) => void][] = [
  [/stream_options|include_usage/, (dialect) => (dialect.usage = false)],
  [
    /max_(completion_)?tokens/,
    (dialect, detail) => {
      const isTooMuch = /too (large|high)|at most|less than|maximum|exceed|[<>]/i.test(detail);
      dialect.limitNames.splice(0, isTooMuch ? 2 : 1);
    },
  ],
  [
    /reasoning_content/,
    (dialect, detail) =>
      (dialect.reasoning = /must|missing|required/i.test(detail) ? "always" : "never"),
  ],
  [/after.{0,12}tool/i, (dialect) => (dialect.bridge = true)],
  [/content.*(null|none|valid string)/is, (dialect) => (dialect.emptyContent = "")],
];

/** Changes the dialect by the first lesson that is new. False: there is none. */
function adapt(dialect: Dialect, { status, detail }: AttemptError): boolean {
  if (status !== 400 && status !== 422 && status !== 500) return false;
  const before = JSON.stringify(dialect);
  return lessons.some(([pattern, learn]) => {
    if (pattern.test(detail)) learn(dialect, detail);
    return JSON.stringify(dialect) !== before;
  });
}

// ── Out ─────────────────────────────────────────────────────────────────────────────────────────

function toBody(endpoint: Endpoint, dialect: Dialect, request: ModelRequest): Body {
  const { tools, maxOutputTokens } = request;
  const [limitName] = dialect.limitNames;
  return {
    model: endpoint.model,
    messages: toMessages(endpoint, dialect, request),
    ...(tools.length > 0 && {
      tools: tools.map(({ name, description, schema }) => ({
        type: "function" as const,
        function: { name, description, parameters: schema },
      })),
    }),
    ...(limitName && maxOutputTokens && { [limitName]: maxOutputTokens }),
    ...(dialect.usage && { stream_options: { include_usage: true } }),
    stream: true,
  };
}

function toMessages(endpoint: Endpoint, dialect: Dialect, request: ModelRequest): WireMessage[] {
  const { system, messages } = request;
  const wire: WireMessage[] = system.trim() ? [{ role: "system", content: system }] : [];
  for (const message of arrange(messages))
    if (message.role === "user") wire.push(...userMessages(message.parts, endpoint, dialect));
    else wire.push(assistantMessage(message.parts, endpoint, dialect));
  return wire;
}

/** Results first, each a `tool` message of one string: many servers ignore or refuse more. */
function userMessages(parts: UserPart[], endpoint: Endpoint, dialect: Dialect): WireMessage[] {
  const results = parts.filter((part) => part.type === "tool_result");
  const wire: WireMessage[] = results.map(({ id, content }) => ({
    role: "tool",
    tool_call_id: wireId(id, endpoint),
    content: content || "(no output)",
  }));
  const rest: UserPart[] = results.flatMap(({ images = [] }) => images);
  if (rest.length > 0) rest.unshift({ type: "text", text: "The images of these results:" });
  rest.push(...parts.filter((part) => part.type !== "tool_result"));
  if (rest.length === 0) return wire;
  if (dialect.bridge && wire.length > 0) wire.push({ role: "assistant", content: "I see." });
  return [...wire, { role: "user", content: userContent(rest) }];
}

/** One string where there is no image: not every server takes a list. */
function userContent(parts: UserPart[]): string | OpenAI.ChatCompletionContentPart[] {
  const texts = parts.flatMap((part) => (part.type === "text" ? part.text : []));
  if (texts.length === parts.length) return texts.join("\n\n");
  return parts.flatMap((part): OpenAI.ChatCompletionContentPart[] => {
    if (part.type === "text") return [{ type: "text", text: part.text }];
    return part.type === "image" ? [{ type: "image_url", image_url: { url: toUrl(part) } }] : [];
  });
}

const toUrl = ({ mediaType, data }: ImagePart): string => `data:${mediaType};base64,${data}`;

function assistantMessage(
  parts: AssistantPart[],
  endpoint: Endpoint,
  dialect: Dialect,
): WireMessage {
  const own = parts.filter(
    (part) => part.type !== "thinking" || part.provider === endpoint.provider,
  );
  const text = own.map((part) => (part.type === "text" ? part.text : "")).join("");
  const calls = own.flatMap((part, index) => {
    if (part.type !== "tool_call") return [];
    const call = { name: part.name, arguments: JSON.stringify(part.input) };
    const extra = echoed(own[index - 1], endpoint);
    return [{ id: wireId(part.id, endpoint), type: "function" as const, function: call, ...extra }];
  });
  if (calls.length === 0) return { role: "assistant", content: text };
  const reasoning = own.map((part) => (part.type === "thinking" ? part.text : "")).join("");
  const details = own.flatMap((part) =>
    part.type === "thinking" ? readSignature(part.signature) : [],
  );
  const echo =
    dialect.reasoning === "always" || (dialect.reasoning !== "never" && reasoning !== "");
  return {
    role: "assistant",
    content: text || dialect.emptyContent,
    tool_calls: calls,
    ...(echo && { reasoning_content: reasoning }),
    ...(details.length > 0 && { reasoning_details: details }),
  };
}

/** OpenRouter's reasoning_details, kept as a signature; nothing where it is something else. */
function readSignature(signature = ""): unknown[] {
  return signature.startsWith("[") ? (JSON.parse(signature) as unknown[]) : [];
}

/**
 * Gemini wants its thought signature back on the call it came with. It is kept in a thinking part
 * right before that call; for a call that another model made, Google names a word that passes.
 */
function echoed(before: AssistantPart | undefined, { provider }: Endpoint): object {
  const signature = before?.type === "thinking" ? (before.signature ?? "") : "";
  if (signature.startsWith("{")) return { extra_content: JSON.parse(signature) as unknown };
  if (provider !== "gemini" || before?.type === "tool_call") return {};
  return { extra_content: { google: { thought_signature: "skip_thought_signature_validator" } } };
}

/** Mistral takes ids of 9 letters and digits, OpenAI of 40 characters; the same id, the same result. */
function wireId(id: string, { provider, model }: Endpoint): string {
  const mistral = provider === "mistral" || /mistral|devstral|codestral/i.test(model);
  if (mistral ? /^[a-zA-Z0-9]{9}$/.test(id) : id.length <= 40) return id;
  return Bun.hash(id).toString(36).padStart(9, "0").slice(-9);
}

// ── In ──────────────────────────────────────────────────────────────────────────────────────────

async function* readReply(
  response: Response,
  endpoint: Endpoint,
  request: ModelRequest,
  alive: () => void,
): AsyncGenerator<Delta | ModelAnswer> {
  const reply = openReply();
  for await (const events of readEvents(response, alive))
    for (const event of events) for (const delta of reply.take(event)) yield delta;
  for (const delta of reply.end()) yield delta;
  yield reply.answer(endpoint.provider, request);
}
