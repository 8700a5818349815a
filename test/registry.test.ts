/** From a name, keys, base URLs and local servers to a model. */
import { expect, test } from "bun:test";
import { config } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
import { providers } from "../src/models/providers.ts";
import { NoModelError, resolveModel } from "../src/models/registry.ts";
import type { ModelRequest } from "../src/types.ts";
import { startScripted, type Scripted } from "./scripted.ts";

type Env = Record<string, string | undefined>;

/** Local servers that are not there, so that what runs on this machine does not matter. */
const nowhere: Env = {
  OLLAMA_BASE_URL: "http://127.0.0.1:1",
  LMSTUDIO_BASE_URL: "http://127.0.0.1:1",
  VLLM_BASE_URL: "http://127.0.0.1:1",
};
const idOf = async (name: string | null, env: Env): Promise<string> =>
  (await resolveModel(name, { ...nowhere, ...env })).id;

async function refusal(name: string | null, env: Env): Promise<Error> {
  const error = await idOf(name, env).then(
    (id) => new Error(`resolved to ${id}`),
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(UsageError);
  return error as Error;
}

const request: ModelRequest = {
  system: "",
  tools: [],
  messages: [{ role: "user", parts: [{ type: "text", text: "hi" }] }],
};

/** The one request that a model of this name sends. */
async function sentTo(server: Scripted, name: string | null, env: Env) {
  const model = await resolveModel(name, { ...nowhere, ...env });
  for await (const output of model.stream(request, AbortSignal.timeout(5000)))
    if (output.type === "answer") break;
  return server.requests.at(-1)!;
}

// ── Which model ─────────────────────────────────────────────────────────────────────────────────

const anthropic = { ANTHROPIC_API_KEY: "sk-ant-x" };
const openai = { OPENAI_API_KEY: "sk-x" };
const openrouter = { OPENROUTER_API_KEY: "sk-or-x" };
const groq = { GROQ_API_KEY: "gsk_x" };
const local = { OPENAI_BASE_URL: "http://127.0.0.1:9/v1" };

const choices: [string | null, Env, string][] = [
  // explicit
  ["anthropic/claude-x", anthropic, "anthropic/claude-x"],
  ["OpenAI/gpt-x", openai, "openai/gpt-x"],
  ["openrouter/vendor/name:free", openrouter, "openrouter/vendor/name:free"],
  ["ollama/qwen3-coder:30b", {}, "ollama/qwen3-coder:30b"],
  ["ollama/hf.co/org/model:Q4", anthropic, "ollama/hf.co/org/model:Q4"],
  [" groq/openai/gpt-oss-120b ", groq, "groq/openai/gpt-oss-120b"],
  ["zhipu/glm-4.6", { ZAI_API_KEY: "x" }, "zhipu/glm-4.6"],
  ["gemini/gemini-x", { GOOGLE_API_KEY: "AIzaX" }, "gemini/gemini-x"],
  ["openrouter/vendor/name", { OPENAI_API_KEY: "sk-or-x" }, "openrouter/vendor/name"],
  ["anthropic", anthropic, `anthropic/${config.defaultModels["anthropic"]}`],
  // a model keyword whose provider has a key
  ["claude-x", { ...openai, ...anthropic }, "anthropic/claude-x"],
  ["gpt-x", { ...anthropic, ...openai }, "openai/gpt-x"],
  ["o3-mini", { ...anthropic, ...openai }, "openai/o3-mini"],
  ["GLM-4.6", { ...anthropic, ZAI_API_KEY: "x" }, "zai/GLM-4.6"],
  ["kimi-k2", { ...anthropic, MOONSHOT_API_KEY: "sk-x" }, "moonshot/kimi-k2"],
  ["kimi-k2", { MOONSHOT_API_KEY: "sk-kimi-x" }, "kimi/kimi-k2"],
  ["qwen3-max", { ...openai, DASHSCOPE_API_KEY: "sk-x" }, "dashscope/qwen3-max"],
  ["devstral-small", { ...openai, MISTRAL_API_KEY: "x" }, "mistral/devstral-small"],
  ["deepseek-chat", { ...openrouter, DEEPSEEK_API_KEY: "sk-x" }, "deepseek/deepseek-chat"],
  ["claude-x", { ...local, ...anthropic }, "anthropic/claude-x"],
  // the key's own beginning
  ["gpt-x", { OPENAI_API_KEY: "sk-or-x" }, "openrouter/gpt-x"],
  ["claude-x", openrouter, "openrouter/claude-x"],
  ["llama-x", { ...openai, ...groq }, "groq/llama-x"],
  ["llama-x", { ...anthropic, ...openrouter }, "openrouter/llama-x"],
  ["foo", { ...openai, ...anthropic }, "anthropic/foo"],
  ["foo", { DEEPSEEK_API_KEY: "nvapi-x" }, "nvidia/foo"],
  // the first provider with a key; a bare sk- says nothing
  ["foo", openai, "openai/foo"],
  ["foo", { ...openai, GROQ_API_KEY: "x" }, "openai/foo"],
  ["foo", { DEEPSEEK_API_KEY: "sk-x", MISTRAL_API_KEY: "x" }, "deepseek/foo"],
  ["meta-llama/llama-4", openrouter, "openrouter/meta-llama/llama-4"],
  ["Qwen/Qwen3", { HF_TOKEN: "hf_x" }, "huggingface/Qwen/Qwen3"],
  // where the person pointed a provider
  ["foo", local, "openai/foo"],
  ["foo", { ...local, ...openrouter }, "openai/foo"],
  ["foo", { ...local, OPENAI_API_KEY: "sk-or-x" }, "openai/foo"],
  ["org/foo:7b", local, "openai/org/foo:7b"],
  [
    "foo",
    { ANTHROPIC_BASE_URL: "http://127.0.0.1:9", ANTHROPIC_API_KEY: "x", ...openai },
    "anthropic/foo",
  ],
  // no name
  [null, { ...openai, ...anthropic }, `anthropic/${config.defaultModels["anthropic"]}`],
  [null, { ...openai, HF_TOKEN: "hf_x" }, `openai/${config.defaultModels["openai"]}`],
  [null, { OPENAI_API_KEY: "sk-or-x" }, `openrouter/${config.defaultModels["openrouter"]}`],
  ["", { ...local, ...openai }, `openai/${config.defaultModels["openai"]}`],
];

test.each(choices)("%s with %j is %s", async (name, env, wanted) => {
  expect(await idOf(name, env)).toBe(wanted);
});

test("with a key nobody is asked", async () => {
  using server = startScripted([]);
  const servers = { OLLAMA_BASE_URL: server.url, VLLM_BASE_URL: server.url };
  for (const name of ["foo", null, "anthropic", "ollama/foo"])
    await resolveModel(name, { ...anthropic, ...servers });
  expect(server.probes).toEqual([]);
});

test("the demo needs nothing", async () => {
  expect(await idOf("demo", {})).toBe("demo");
});

// ── Local servers ───────────────────────────────────────────────────────────────────────────────

test("a bare name goes to the local server that has it, else to the first that answers", async () => {
  using ollama = startScripted([], ["a:1"]);
  using vllm = startScripted([], ["org/c", "b:latest"]);
  const env = { OLLAMA_BASE_URL: ollama.url, VLLM_BASE_URL: `${vllm.url}/v1/` };
  expect(await idOf("a:1", env)).toBe("ollama/a:1");
  expect(await idOf("b", env)).toBe("vllm/b");
  expect(await idOf("org/c", env)).toBe("vllm/org/c");
  expect(await idOf("else", env)).toBe("ollama/else");
  expect((await refusal("who/else", env)).message).toMatch(/"who" is none/);
  expect(await idOf("else", { VLLM_BASE_URL: vllm.url })).toBe("vllm/else");
  expect(await idOf(null, env)).toBe("ollama/a:1");
  expect(await idOf("vllm", env)).toBe("vllm/org/c");
  expect(await idOf(null, { OLLAMA_HOST: `127.0.0.1:${ollama.port}`, OLLAMA_BASE_URL: "" })).toBe(
    "ollama/a:1",
  );
});

test("a server without a model, or one that is something else, is passed over", async () => {
  using empty = startScripted([], []);
  using site = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response("<html>") });
  using slow = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: async () => (await Bun.sleep(3000), Response.json({ data: [] })),
  });
  const env = {
    OLLAMA_BASE_URL: empty.url,
    LMSTUDIO_BASE_URL: site.url.href,
    VLLM_BASE_URL: slow.url.href,
  };
  const started = performance.now();
  expect(await refusal(null, env)).toBeInstanceOf(NoModelError);
  expect(performance.now() - started).toBeLessThan(1500);
  expect(await idOf("foo", env)).toBe("ollama/foo");
});

test("a keyless server behind OPENAI_BASE_URL: its first model, and a key that is none", async () => {
  using server = startScripted([{ text: "ok" }], ["qwen3", "other"]);
  const sent = await sentTo(server, null, { OPENAI_BASE_URL: server.url });
  expect(sent.json.model).toBe("qwen3");
  expect(sent.headers["authorization"]).toBe("Bearer none");
});

// ── Where it is ─────────────────────────────────────────────────────────────────────────────────

const addresses: [string, string, string][] = [
  ["OPENAI_BASE_URL", "", "/v1/chat/completions"],
  ["OPENAI_BASE_URL", "/", "/v1/chat/completions"],
  ["OPENAI_BASE_URL", "/v1", "/v1/chat/completions"],
  ["OPENAI_BASE_URL", "/v1//", "/v1/chat/completions"],
  ["OPENAI_BASE_URL", "/v1/chat/completions", "/v1/chat/completions"],
  ["OPENAI_BASE_URL", "/chat/completions/", "/v1/chat/completions"],
  ["OPENAI_BASE_URL", "/api/paas/v4", "/api/paas/v4/chat/completions"],
  ["DEEPSEEK_BASE_URL", "/v1", "/v1/chat/completions"],
  ["OLLAMA_BASE_URL", "", "/v1/chat/completions"],
  ["ANTHROPIC_BASE_URL", "", "/v1/messages"],
  ["ANTHROPIC_BASE_URL", "/v1/", "/v1/messages"],
  ["ANTHROPIC_BASE_URL", "/v1/messages", "/v1/messages"],
  ["ANTHROPIC_BASE_URL", "/anthropic", "/anthropic/v1/messages"],
];

test.each(addresses)("%s=http://…%s posts to %s", async (variable, path, wanted) => {
  using server = startScripted([{ text: "ok" }]);
  const provider = variable.replace("_BASE_URL", "").toLowerCase();
  const sent = await sentTo(server, `${provider}/m`, { [variable]: ` ${server.url}${path} ` });
  expect(sent.path).toBe(wanted);
  expect(sent.json.model).toBe("m");
});

test("a URL without a scheme is http, and what key goes there is the person's choice", async () => {
  using server = startScripted([{ text: "ok" }]);
  const env = { OPENAI_BASE_URL: `127.0.0.1:${server.port}/v1`, OPENAI_API_KEY: " sk-or-x\n" };
  expect((await sentTo(server, "foo", env)).headers["authorization"]).toBe("Bearer sk-or-x");
});

test("a token for Anthropic is sent as a bearer, a key also under its own header", async () => {
  using server = startScripted(() => ({ text: "ok" }));
  const at = { ANTHROPIC_BASE_URL: server.url };
  const token = await sentTo(server, "claude-x", { ...at, ANTHROPIC_AUTH_TOKEN: "tok" });
  expect(token.headers["authorization"]).toBe("Bearer tok");
  expect(token.headers["x-api-key"]).toBeUndefined();
  const key = await sentTo(server, "claude-x", { ...at, ...anthropic });
  expect(key.headers["x-api-key"]).toBe("sk-ant-x");
});

test("OpenAI's organisation goes to OpenAI alone", async () => {
  using server = startScripted(() => ({ text: "ok" }));
  process.env["OPENAI_ORG_ID"] = "org-1";
  try {
    const other = await sentTo(server, "groq/m", { GROQ_BASE_URL: server.url });
    expect(other.headers["openai-organization"]).toBeUndefined();
    const own = await sentTo(server, "openai/m", { OPENAI_BASE_URL: server.url });
    expect(own.headers["openai-organization"]).toBe("org-1");
  } finally {
    delete process.env["OPENAI_ORG_ID"];
  }
});

// ── What a person is told ───────────────────────────────────────────────────────────────────────

const mistakes: [string, Env, RegExp][] = [
  ["anthropic/claude-x", {}, /needs a key: set ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN\.$/],
  [
    "anthropic/claude-x",
    openrouter,
    /set ANTHROPIC_API_KEY.*may be openrouter\/anthropic\/claude-x/,
  ],
  ["openai/gpt-x", { OPENAI_API_KEY: "sk-or-x" }, /OPENAI_API_KEY holds one of openrouter/],
  ["gpt-x", {}, /gpt-x needs a key: set OPENAI_API_KEY\.$/],
  ["foo", {}, /Nobody is there to ask for foo/],
  ["opnai/gpt-x", openai, /"opnai" is none\. Did you mean openai\/gpt-x\?/],
  ["what/ever", anthropic, /"what" is none\. There are anthropic, openai,/],
  ["siliconflow", { SILICONFLOW_API_KEY: "x" }, /say --model siliconflow\/NAME/],
  ["ollama", {}, /Start it with `ollama serve`/],
  ["openrouter", {}, /set OPENROUTER_API_KEY/],
  ["foo", { OPENAI_BASE_URL: "http://" }, /OPENAI_BASE_URL is "http:\/\/"/],
  ["foo", { ...openai, CLAW_STALL_MS: "soon" }, /CLAW_STALL_MS is "soon"/],
];

test.each(mistakes)("%s with %j is refused", async (name, env, wanted) => {
  const error = await refusal(name, env);
  expect(error.message).toMatch(wanted);
  expect(error).not.toBeInstanceOf(NoModelError);
  expect(error.message).not.toMatch(/sk-/);
});

test("nothing at all is told apart from a mistake", async () => {
  expect(await refusal(null, {})).toBeInstanceOf(NoModelError);
});

// ── What is known of it ─────────────────────────────────────────────────────────────────────────

const known: [string, string | null, string | null][] = [
  ["openai/gpt-5", "openai/gpt-5", "openai/gpt-5*"],
  ["openai/gpt-5-mini-2025-08-07", "openai/gpt-5-mini", "openai/gpt-5*"],
  ["anthropic/claude-sonnet-4-5-20250929", "anthropic/claude-sonnet-4-5", "anthropic/*"],
  ["anthropic/claude-sonnet-5-5", "anthropic/claude-sonnet-5-5", "anthropic/claude-sonnet-5*"],
  ["openai/gpt-5-nano", null, "openai/gpt-5*"],
  ["openai/foo", null, null],
  ["ollama/foo:7b", "ollama/*", null],
];

test.each(known)("%s costs what %s does, and holds what %s does", async (name, price, window) => {
  const model = await resolveModel(name, { ...openai, ...anthropic });
  expect(model.price).toEqual(price === null ? null : config.prices[price]!);
  expect(model.contextTokens).toBe(
    window === null ? config.contextTokens : config.contextWindows[window]!,
  );
});

test("the table: each name and prefix once, each URL fit to be appended to", () => {
  const names = providers.map(({ name }) => name);
  const prefixes = providers.flatMap(({ prefix }) => prefix ?? []);
  expect(new Set(names).size).toBe(names.length);
  expect(new Set(prefixes).size).toBe(prefixes.length);
  for (const { baseUrl, keys, start } of providers) {
    expect(baseUrl).toMatch(start ? /^http:\/\/127\.0\.0\.1:\d+\/v1$/ : /^https:\/\/[^ ]+[^/]$/);
    expect(keys.every((key) => /^[A-Z_]+$/.test(key))).toBe(true);
  }
  expect(Object.keys(config.defaultModels).filter((name) => !names.includes(name))).toEqual([]);
});
