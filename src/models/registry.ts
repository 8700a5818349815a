/**
 * From a name to a model: the order in which keys, base URLs and local servers are looked at.
 *
 * Resolving contacts nobody but a local server, and that only where no key decides. A provider's
 * SDK is loaded when its model is opened. A key goes to its own provider or to where the person
 * pointed that provider, never elsewhere.
 */
import { nearest } from "../args.ts";
import { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import type { Model } from "../types.ts";
import { isLoopback, type Endpoint } from "./failure.ts";
import { providers, type Provider } from "./providers.ts";
import type { Limits } from "./retry.ts";
import { recordOf, recordsOf, textOf } from "./sse.ts";

type Env = Record<string, string | undefined>;

/** No model is named, no key is set and no local server answers. */
export class NoModelError extends UsageError {
  override name = "NoModelError";
}

/** What may differ from run to run; what is left out comes from the config. */
export type ResolveOptions = Partial<Limits>;

/**
 * Opens the model that `name` means ("provider/name", a bare name, a provider, "demo"), or where it
 * is null the best there is. Throws `UsageError`; `NoModelError` where there is nothing at all.
 */
export async function resolveModel(
  name: string | null,
  env: Env,
  options: ResolveOptions = {},
): Promise<Model> {
  if (name === "demo") return (await import("./demo.ts")).openDemo();
  const { provider, model } = await choose(name?.trim() || null, env);
  const endpoint = endpointOf(provider, model, env);
  const id = `${provider.name}/${model}`;
  const facts = {
    id,
    contextTokens: entryFor(config.contextWindows, id) ?? config.contextTokens,
    price: entryFor(config.prices, id) ?? null,
  };
  const limits = { ...config.limits, stallMs: stallMsIn(env), ...options };
  return provider.wire === "anthropic"
    ? (await import("./anthropic.ts")).openAnthropic(endpoint, facts, limits)
    : (await import("./openai.ts")).openOpenAI(endpoint, facts, limits);
}

/** The config's entry for a model: its own, dated or not, else the longest that "*" makes fit. */
function entryFor<Value>(table: Record<string, Value>, id: string): Value | undefined {
  const undated = id.replace(/-\d{4}-?\d{2}-?\d{2}$/, "");
  const fitting = Object.keys(table)
    .filter((key) => key.endsWith("*") && id.startsWith(key.slice(0, -1)))
    .toSorted((one, other) => other.length - one.length);
  return table[id] ?? table[undated] ?? table[fitting[0] ?? ""];
}

function stallMsIn(env: Env): number {
  const raw = env["CLAW_STALL_MS"];
  if (!raw) return config.limits.stallMs;
  if (Number(raw) > 0) return Math.min(Number(raw), 2 ** 31 - 1);
  throw new UsageError(`CLAW_STALL_MS is "${raw}"; it takes a number of milliseconds above 0.`);
}

// ── Which ───────────────────────────────────────────────────────────────────────────────────────

type Choice = { provider: Provider; model: string };

async function choose(name: string | null, env: Env): Promise<Choice> {
  const [head = "", ...rest] = (name ?? "").split("/");
  const provider = providers.find((known) => known.name === head.toLowerCase());
  const model = rest.join("/");
  if (provider) return { provider, model: model || (await defaultModel(provider, env)) };
  const byKey = chooseByKey(name, env);
  const found = byKey ?? (await chooseServer(name, env));
  // "vendor/name" is a name only where vendors meet; elsewhere its first part is a typing error.
  if (name !== null && model && !takesVendors(found, byKey !== null, env))
    throw unknownProvider(head, name);
  if (!found) throw nothingFound(name);
  return { provider: found, model: name ?? (await defaultModel(found, env)) };
}

const takesVendors = (provider: Provider | null, byKey: boolean, env: Env): boolean =>
  provider !== null && (!byKey || provider.isGateway || baseUrlIn(provider, env) !== null);

/** The model's own provider, a base URL the person set, a key that tells its provider, any key. */
function chooseByKey(name: string | null, env: Env): Provider | null {
  const open = providers.filter((known) => !known.start && isOpen(known, env));
  const moved = open.find((known) => baseUrlIn(known, env));
  if (name === null) return moved ?? open[0] ?? null;
  const own = open.find((known) => known.models?.test(name.toLowerCase()));
  const telling = open.filter(
    (known) => known.prefix && keyOf(known, env)?.value.startsWith(known.prefix),
  );
  const gateway = telling.find((known) => known.isGateway);
  return own ?? moved ?? gateway ?? telling[0] ?? open[0] ?? null;
}

/** A local server that answers: one that has the model, else the first, unless vendors are named. */
async function chooseServer(name: string | null, env: Env): Promise<Provider | null> {
  const servers = providers.filter((known) => known.start);
  const lists = await Promise.all(servers.map((server) => listModels(server, env)));
  const find = (test: (names: string[]) => boolean) =>
    servers.find((_, index) => lists[index] && test(lists[index]));
  if (name === null) return find((names) => names.length > 0) ?? null;
  const owner = find((names) => names.includes(name) || names.includes(`${name}:latest`));
  return owner ?? (name.includes("/") ? null : find(() => true)) ?? null;
}

/** The model to use where none is named: the config's, or the first that a server has. */
async function defaultModel(provider: Provider, env: Env): Promise<string> {
  const { name } = provider;
  const isKeyless = keyOf(provider, env) === null && baseUrlIn(provider, env) !== null;
  const names = provider.start || isKeyless ? await listModels(provider, env) : null;
  const model = names?.[0] ?? config.defaultModels[name];
  if (model) return model;
  throw new UsageError(
    provider.start
      ? `No model is named and ${name} lists none. Start it with \`${provider.start}\`, or say --model ${name}/NAME.`
      : `No model of ${name} is named: say --model ${name}/NAME.`,
  );
}

function nothingFound(name: string | null): UsageError {
  if (name === null)
    return new NoModelError("No provider's key is set, and no local server answers.");
  const owner = providers.find((known) => known.models?.test(name.toLowerCase()));
  return new UsageError(
    owner
      ? `${name} needs a key: set ${owner.keys.join(" or ")}.`
      : `Nobody is there to ask for ${name}: set a provider's key, or start Ollama, LM Studio or vLLM.`,
  );
}

function unknownProvider(head: string, name: string): UsageError {
  const names = providers.map((known) => known.name);
  const near = nearest(head, names);
  const hint = near
    ? `Did you mean ${near}/${name.slice(head.length + 1)}?`
    : `There are ${names.join(", ")}.`;
  return new UsageError(`"${name}" names no provider: "${head}" is none. ${hint}`);
}

// ── Where ───────────────────────────────────────────────────────────────────────────────────────

type Key = { variable: string; value: string };

/** The provider's key: in its own variables, or in any other where the key's beginning tells. */
function keyOf(provider: Provider, env: Env): Key | null {
  const own = keysIn(provider.keys, env);
  if (baseUrlIn(provider, env)) return own[0] ?? null;
  const others = keysIn(
    providers.flatMap(({ keys }) => keys),
    env,
  );
  const telling = others.filter(({ value }) => ownerOf(value) === provider);
  return own.find(({ value }) => (ownerOf(value) ?? provider) === provider) ?? telling[0] ?? null;
}

const keysIn = (variables: readonly string[], env: Env): Key[] =>
  variables.flatMap((variable) => {
    const value = env[variable]?.trim();
    return value ? { variable, value } : [];
  });

const ownerOf = (key: string): Provider | undefined =>
  providers.find(({ prefix }) => prefix && key.startsWith(prefix));

const isOpen = (provider: Provider, env: Env): boolean =>
  keyOf(provider, env) !== null || baseUrlIn(provider, env) !== null;

const baseUrlVariableOf = ({ name }: Provider): string => `${name.toUpperCase()}_BASE_URL`;

/** Where the person moved a provider to, as a wire wants it; null: it is where it always is. */
function baseUrlIn(provider: Provider, env: Env): string | null {
  const variable = baseUrlVariableOf(provider);
  const raw = env[variable]?.trim() || (provider.name === "ollama" ? ollamaHost(env) : "");
  if (!raw) return null;
  const url = URL.parse(raw.includes("://") ? raw : `http://${raw}`);
  if (!url?.host)
    throw new UsageError(`${variable} is "${raw}"; it takes a URL like ${provider.baseUrl}.`);
  const endpoint =
    provider.wire === "anthropic"
      ? /(\/v1)?(\/messages)?$/
      : /(\/chat\/completions|\/completions|\/responses|\/models)?$/;
  url.pathname = url.pathname.replace(/\/+$/, "").replace(endpoint, "");
  if (provider.wire === "openai" && url.pathname === "/") url.pathname = "/v1";
  return url.href.replace(/\/+$/, "");
}

/** OLLAMA_HOST as Ollama reads it: a host, a port, both or a URL; 0.0.0.0 is what it listens on. */
function ollamaHost(env: Env): string {
  const raw = env["OLLAMA_HOST"]?.trim() ?? "";
  if (!raw || raw.includes("://")) return raw;
  const [, host, port = "11434"] = /^(.*?)(?::(\d+))?$/.exec(raw) ?? [];
  return `${!host || host === "0.0.0.0" ? "127.0.0.1" : host}:${port}`;
}

function endpointOf(provider: Provider, model: string, env: Env): Endpoint {
  const moved = baseUrlIn(provider, env);
  const key = keyOf(provider, env);
  if (!key && !moved && !provider.start) throw missingKey(provider, model, env);
  const baseUrl = moved ?? provider.baseUrl;
  return {
    provider: provider.name,
    model,
    baseUrl,
    key: key?.value ?? null,
    keyVariable: key?.variable ?? provider.keys[0] ?? "",
    baseUrlVariable: baseUrlVariableOf(provider),
    start: provider.start,
    ...(isLoopback(baseUrl) && { listModels: async () => (await listModels(provider, env)) ?? [] }),
  };
}

/** The most common first failure: a key of one provider, a model of another. */
function missingKey(provider: Provider, model: string, env: Env): UsageError {
  const { name, keys } = provider;
  const foreign = keysIn(keys, env)[0];
  const owner = foreign && ownerOf(foreign.value);
  const gateway = providers.find((known) => known.isGateway && keyOf(known, env));
  const hint = gateway
    ? ` With the key of ${gateway.name} it may be ${gateway.name}/${name}/${model}.`
    : "";
  return new UsageError(
    foreign && owner
      ? `${name}/${model} needs a key of ${name}, but ${foreign.variable} holds one of ${owner.name}.${hint}`
      : `${name}/${model} needs a key: set ${keys.join(" or ")}.${hint}`,
  );
}

/** What a server says it has; null where none answers in the time that a local one needs. */
async function listModels(provider: Provider, env: Env): Promise<string[] | null> {
  const baseUrl = baseUrlIn(provider, env) ?? provider.baseUrl;
  const path = provider.wire === "anthropic" ? "/v1/models" : "/models";
  const key = keyOf(provider, env)?.value;
  try {
    const response = await fetch(baseUrl + path, {
      headers: key ? { authorization: `Bearer ${key}` } : {},
      signal: AbortSignal.timeout(300),
      ...(isLoopback(baseUrl) && { proxy: false }),
    });
    const list = recordOf(await response.json())?.["data"];
    return Array.isArray(list) ? recordsOf(list).map(({ id }) => textOf(id)) : null;
  } catch {
    return null; // not there, or not a model server: the same to the caller
  }
}
