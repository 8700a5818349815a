/**
 * What can go wrong between here and a model, and how a person is told.
 *
 * Every failure of an attempt becomes an `AttemptError`; every one that is final becomes a sentence
 * that names the cause and what to do next. A key never appears in either, nor does more than a
 * line of what a provider said.
 */
import { messageOf, ProviderError } from "../errors.ts";
import { parseJson, recordOf } from "./json.ts";

/** Where a model is reached. */
export type Endpoint = {
  provider: string;
  /** The model's name as this provider knows it. */
  model: string;
  /** Without a trailing slash; what a wire appends begins with one. */
  baseUrl: string;
  /** null: a server that wants none. */
  key: string | null;
  /** The variable that holds the key, or that would. */
  keyVariable: string;
  /** The variable that moves the provider elsewhere. */
  baseUrlVariable: string;
  /** For a local server: the command that starts it. */
  start?: string;
  /** For a local server: the names of the models it has. */
  listModels?: () => Promise<string[]>;
};

/**
 * One attempt that failed. `status`: the server said no, in its status or in its stream (then the
 * nearest status is given). `refused`, `network`: no connection, or one that broke. `stall`: nothing
 * came for too long. `broken`: the stream ended before the answer did. `page`: a web page came.
 */
export class AttemptError extends Error {
  override name = "AttemptError";
  readonly kind: "status" | "refused" | "network" | "stall" | "broken" | "page";
  readonly status: number | null;
  /** What was said: a body, or the network's error. Not for people before `quote` cleaned it. */
  readonly detail: string;
  readonly headers: Headers | null;

  constructor(
    kind: AttemptError["kind"],
    detail: string,
    status: number | null = null,
    headers: Headers | null = null,
  ) {
    super(status === null ? kind : `HTTP ${status}`);
    this.kind = kind;
    this.status = status;
    this.detail = detail;
    this.headers = headers;
  }
}

/** The conversation does not fit the model's context window. Compaction helps, a repeat does not. */
export class OverflowError extends ProviderError {
  override name = "OverflowError";
}

/** The `fetch` that both SDKs are given: it turns every failure into an `AttemptError`. */
export async function fetchOrFail(url: string | URL | Request, init?: RequestInit) {
  // A proxy in the environment is not for this machine's own servers.
  const isHere = isLoopback(url instanceof Request ? url.url : url.toString());
  // A redirect would take the key along to wherever it leads.
  const options: RequestInit = { ...init, redirect: "manual", ...(isHere && { proxy: false }) };
  const response = await fetch(url, options).catch((error: unknown) => {
    if (init?.signal?.aborted) throw error;
    throw networkError(error);
  });
  if (response.ok) return response;
  const body = await response.text().catch(() => ""); // the status says enough
  throw new AttemptError("status", body, response.status, response.headers);
}

/** What both SDKs are told: no retries, no time limit and no log of their own. */
export const quietly = {
  maxRetries: 0,
  timeout: 2 ** 31 - 1,
  logLevel: "off",
  fetch: fetchOrFail,
} as const;

export const isLoopback = (url: string): boolean =>
  /^https?:\/\/(localhost|127\.\d+\.\d+\.\d+|\[::1\])([:/]|$)/i.test(url);

export function networkError(error: unknown): AttemptError {
  const code = error instanceof Error && "code" in error ? `${String(error.code)}: ` : "";
  const message = messageOf(error).replace(/ For more information, pass.*/, ""); // Bun's, for programmers
  const isRefused = /refused|unable to connect/i.test(code + message);
  const detail = message.includes(code) ? message : code + message;
  return new AttemptError(isRefused ? "refused" : "network", detail);
}

/** The attempt's failure inside whatever an SDK wrapped around it; null: it is a bug of ours. */
export function failureIn(error: unknown): AttemptError | null {
  if (error instanceof AttemptError) return error;
  return error instanceof Error && error.cause ? failureIn(error.cause) : null;
}

// Gathered from OpenAI, Anthropic, Gemini, llama.cpp, vLLM, Ollama, LM Studio, OpenRouter and others.
const overflow =
  /context.{0,24}(length|window|size|limit|exceed)|(prompt|input|request|conversation).{0,40}(too long|too large|exceeds?)|too many (input )?tokens|tokens? (count )?exceeds|reduce the length|token limit|n_ctx/i;
const spent =
  /insufficient.{0,3}(quota|balance|credit)|billing|credit balance|exceeded your current quota/i;

export function isOverflow({ kind, status, detail }: AttemptError): boolean {
  if (kind !== "status" || status === 429 || (status !== null && status >= 502)) return false;
  if (/max_(completion_)?tokens/.test(detail) && !/context|prompt/i.test(detail)) return false;
  return status === 413 || overflow.test(detail);
}

/** Nothing left to spend: waiting does not bring it back. Gemini's "quota" does come back, and says when. */
export function isSpent(failure: AttemptError): boolean {
  const { status, detail } = failure;
  if (status === 402 || detail.includes("insufficient_quota")) return true;
  if (status !== 400 && status !== 403 && status !== 429) return false;
  return spent.test(detail) && serverDelayMs(failure, 0) === null;
}

/**
 * How long the server asks to wait: `retry-after-ms`, `Retry-After` as seconds or as a date
 * (RFC 9110, 10.2.3), or words in the body such as "Please try again in 1m2.5s"; null: it does not.
 */
export function serverDelayMs({ headers, detail }: AttemptError, now: number): number | null {
  const ms = Number.parseFloat(headers?.get("retry-after-ms") ?? "");
  if (ms >= 0) return ms;
  const after = headers?.get("retry-after")?.trim() ?? "";
  if (/^\d+(\.\d+)?$/.test(after)) return Number(after) * 1000;
  const date = Date.parse(after);
  if (!Number.isNaN(date)) return Math.max(0, date - now);
  const words =
    /(?:try again in|retry in|retry after|"retryDelay":\s*")\s*(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)\s*(ms|s))?/i.exec(
      detail,
    );
  if (!words || !(words[1] ?? words[2] ?? words[3])) return null;
  const [, hours = "0", minutes = "0", rest = "0", unit] = words;
  const restMs = Number.parseFloat(rest) * (unit?.toLowerCase() === "ms" ? 1 : 1000);
  return Number(hours) * 3_600_000 + Number(minutes) * 60_000 + restMs;
}

/** Whether another try may help. All 4xx fail at once but 408, 409 and 429. */
export function isPassing(failure: AttemptError): boolean {
  if (failure.kind === "page" || isOverflow(failure) || isSpent(failure)) return false;
  const { status } = failure;
  return status === null || status >= 500 || [408, 409, 429].includes(status);
}

/** The failure in a few words, for a notice that a retry follows. */
export function briefly(failure: AttemptError, endpoint: Endpoint): string {
  const { kind, status } = failure;
  if (kind === "stall") return `${endpoint.provider} sent nothing for too long`;
  if (kind === "broken") return `${endpoint.provider} broke off before it answered`;
  if (kind !== "status") return `${endpoint.provider} cannot be reached`;
  if (status === 429) return `${endpoint.provider} limits the rate of requests (429)`;
  return `${endpoint.provider} failed (${status ?? "in its stream"})${quote(failure, endpoint)}`;
}

/** The final sentence. `tries` counts attempts; for a local server its models are looked up. */
export async function explain(
  failure: AttemptError,
  endpoint: Endpoint,
  tries: number,
): Promise<ProviderError> {
  const askedMs = serverDelayMs(failure, Date.now()) ?? 0;
  const wait = askedMs >= 1000 ? ` It asks to wait ${Math.ceil(askedMs / 1000)} s.` : "";
  const again = tries > 1 ? ` Tried ${tries} times.` : "";
  const sentence = await sentenceFor(failure, endpoint);
  const Kind = isOverflow(failure) ? OverflowError : ProviderError;
  const whole = sentence + quote(failure, endpoint) + wait + again;
  return new Kind(whole, failure.status, failure);
}

async function sentenceFor(failure: AttemptError, endpoint: Endpoint): Promise<string> {
  const { provider, baseUrl, baseUrlVariable, start } = endpoint;
  switch (failure.kind) {
    case "refused": {
      const hint = isLoopback(baseUrl) ? "Start the server" : "Check the network and HTTPS_PROXY";
      const cure = start ? `Start it with \`${start}\`` : hint;
      return `Nothing answers at ${baseUrl} (connection refused). ${cure}, or check ${baseUrlVariable}.`;
    }
    case "network":
      return /cert|TLS|SSL/i.test(failure.detail)
        ? `The certificate of ${baseUrl} is not trusted: name its authority in NODE_EXTRA_CA_CERTS.`
        : `${provider} cannot be reached at ${baseUrl}. Check the network, HTTPS_PROXY and ${baseUrlVariable}.`;
    case "stall":
      return `${provider} sent nothing for ${failure.detail} (CLAW_STALL_MS sets how long to wait). Try again, or choose another --model.`;
    case "broken":
      return `${provider} broke off: ${failure.detail}. Try again.`;
    case "page":
      return `${baseUrl} answered with something that is no model's answer. Check ${baseUrlVariable}: it usually ends in /v1; or a proxy is in the way.`;
    case "status":
      return await statusSentence(failure, endpoint);
  }
}

async function statusSentence(failure: AttemptError, endpoint: Endpoint): Promise<string> {
  const { provider, model, key, keyVariable, baseUrl, baseUrlVariable } = endpoint;
  const { status } = failure;
  const code = status ?? "in its stream";
  const moved = failure.headers?.get("location");
  if (isOverflow(failure))
    return `The conversation is too long for ${provider}/${model}: /compact shortens it, /clear starts anew.`;
  if (status !== null && status < 400 && moved)
    return `${baseUrl} redirects (${code}): set ${baseUrlVariable} to where it is now, as ${moved} tells.`;
  if (isSpent(failure))
    return `${provider} says that the account behind ${keyVariable} has nothing left to spend (${code}). Add credit, or choose another --model.`;
  if ((status === 401 || status === 403) && key === null)
    return `${provider} wants a key (${code}): set ${keyVariable}.`;
  if (status === 401)
    return `The key in ${keyVariable} was refused by ${provider} (401). Check it, and that it is ${provider}'s: a key of one provider opens no other's models.`;
  if (status === 403) return `The key in ${keyVariable} may not use ${model} at ${provider} (403).`;
  if (status === 404) return await missingModel(endpoint);
  if (status === 429)
    return `${provider} limits the rate of requests (429). Wait a while, or choose another --model.`;
  if (status !== null && status < 500) return `${provider} refused the request (${code}).`;
  return `${provider} failed (${code}). Try again later, or choose another --model.`;
}

async function missingModel(endpoint: Endpoint): Promise<string> {
  const { provider, model, listModels, baseUrl, baseUrlVariable } = endpoint;
  const missing = `${provider} has no model "${model}" at ${baseUrl} (404).`;
  if (!listModels) return `${missing} Check the name, and ${baseUrlVariable} if it is set.`;
  const names = await listModels();
  const cure = provider === "ollama" ? ` Fetch it with \`ollama pull ${model}\`.` : "";
  const there = names.length > 0 ? `It has ${names.slice(0, 10).join(", ")}.` : "It has none.";
  return `${missing} ${there}${cure}`;
}

/** What was said from there, in one clean line of 300 characters at most, as ` It said: "…"`. */
export function quote({ kind, detail }: AttemptError, { key }: Endpoint): string {
  if (kind === "stall" || kind === "broken" || kind === "refused") return ""; // our own words
  let text = messageIn(parseJson(detail)) ?? detail;
  if (key !== null && key.length >= 8) text = text.replaceAll(key, "[key]");
  text = text
    .replace(/\b(?:sk-|gsk_|hf_|nvapi-|AIza)[\w*.…-]{4,}/g, "[key]")
    .replace(/[\p{Cc}\p{Cf}\s]+/gu, " ")
    .trim();
  if (text === "") return "";
  return ` It said: "${text.length > 300 ? `${text.slice(0, 299)}…` : text}"`;
}

/** The human part of an error body, wherever a server puts it. */
function messageIn(value: unknown): string | null {
  if (typeof value === "string") return value;
  const record = recordOf(Array.isArray(value) ? value[0] : value);
  if (!record) return null;
  return messageIn(record["error"]) ?? messageIn(record["message"]) ?? messageIn(record["detail"]);
}
