/**
 * The table of providers: where each is, which variables hold its key, how its keys and its models
 * are told. Data only; registry.ts reads it. Base URLs are the providers' own documented ones.
 */

export type Provider = {
  name: string;
  wire: "anthropic" | "openai";
  baseUrl: string;
  /** The variables that may hold its key, in order; `<NAME>_API_KEY` where a row says nothing. */
  keys: readonly string[];
  /** How its keys begin, where that tells. A bare `sk-` is everybody's. */
  prefix?: string;
  /** Bare names that are its own models. */
  models?: RegExp;
  /** Serves other vendors' models, as `vendor/name`. */
  isGateway?: true;
  /** For a server on this machine: the command that starts it. Wants no key. */
  start?: string;
};

/** In the order in which they are preferred. Another region is another `<NAME>_BASE_URL`. */
export const providers: readonly Provider[] = [
  at("anthropic", "https://api.anthropic.com", {
    wire: "anthropic",
    keys: ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"],
    prefix: "sk-ant-",
    models: /claude/,
  }),
  at("openai", "https://api.openai.com/v1", { models: /^(gpt-|o\d|codex|chatgpt)/ }),
  at("openrouter", "https://openrouter.ai/api/v1", { prefix: "sk-or-", isGateway: true }),
  at("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", {
    keys: ["GEMINI_API_KEY", "GOOGLE_API_KEY"],
    prefix: "AIza",
    models: /gemini/,
  }),
  at("deepseek", "https://api.deepseek.com", { models: /deepseek/ }),
  at("groq", "https://api.groq.com/openai/v1", { prefix: "gsk_", isGateway: true }),
  at("mistral", "https://api.mistral.ai/v1", { models: /stral|mixtral/ }),
  at("xai", "https://api.x.ai/v1", { prefix: "xai-", models: /grok/ }),
  at("moonshot", "https://api.moonshot.ai/v1", { models: /kimi|moonshot/ }),
  at("kimi", "https://api.kimi.com/coding", {
    wire: "anthropic",
    keys: ["KIMI_CODING_API_KEY", "KIMI_API_KEY"],
    prefix: "sk-kimi-",
    models: /kimi/,
  }),
  at("zai", "https://api.z.ai/api/paas/v4", { models: /glm/ }),
  at("zhipu", "https://open.bigmodel.cn/api/paas/v4", {
    keys: ["ZHIPUAI_API_KEY", "ZAI_API_KEY"],
    models: /glm/,
  }),
  at("dashscope", "https://dashscope.aliyuncs.com/compatible-mode/v1", {
    keys: ["DASHSCOPE_API_KEY", "QWEN_API_KEY"],
    models: /qwen|qwq/,
  }),
  at("minimax", "https://api.minimax.io/anthropic", { wire: "anthropic", models: /minimax/ }),
  at("nvidia", "https://integrate.api.nvidia.com/v1", {
    keys: ["NVIDIA_NIM_API_KEY", "NVIDIA_API_KEY"],
    prefix: "nvapi-",
    isGateway: true,
  }),
  at("aihubmix", "https://aihubmix.com/v1", { isGateway: true }),
  at("orcarouter", "https://api.orcarouter.ai/v1", { prefix: "sk-orca-", isGateway: true }),
  at("siliconflow", "https://api.siliconflow.cn/v1", { isGateway: true }),
  at("novita", "https://api.novita.ai/openai", { isGateway: true }),
  at("volcengine", "https://ark.cn-beijing.volces.com/api/v3", {
    keys: ["ARK_API_KEY", "VOLCENGINE_API_KEY"],
    models: /doubao/,
  }),
  at("qianfan", "https://qianfan.baidubce.com/v2", { models: /ernie/ }),
  at("huggingface", "https://router.huggingface.co/v1", {
    keys: ["HF_TOKEN"],
    prefix: "hf_",
    isGateway: true,
  }),
  at("ollama", "http://127.0.0.1:11434/v1", { start: "ollama serve" }),
  at("lmstudio", "http://127.0.0.1:1234/v1", {
    keys: ["LM_API_TOKEN", "LM_STUDIO_API_KEY"],
    start: "lms server start",
  }),
  at("vllm", "http://127.0.0.1:8000/v1", { start: "vllm serve MODEL" }),
];

function at(name: string, baseUrl: string, more: Partial<Provider>): Provider {
  return { name, wire: "openai", baseUrl, keys: [`${name.toUpperCase()}_API_KEY`], ...more };
}
