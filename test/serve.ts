/** Starts the built daemon against a Slack and a model of the test's own. */
import { type Place, startClaw, until } from "./claw.ts";
import type { Scripted } from "./scripted.ts";
import type { SlackServer } from "./slack-server.ts";

export type Served = AsyncDisposable & {
  pid: number;
  /** stdout and stderr so far. */
  out(): string;
  err(): string;
  kill(signal: NodeJS.Signals): void;
  /** Resolves with the exit code. */
  exited: Promise<number>;
};

export const owner = "UOWNER1";

export type ServeOptions = {
  slack?: SlackServer;
  model: Scripted;
  env?: Record<string, string>;
  args?: string[];
  /** What the binary is run by. */
  wrap?: string[];
  /** Another binary than the built one. */
  binary?: string;
  /** Do not wait for the line that says it serves. */
  isEager?: boolean;
};

/** Resolves once it serves. */
export async function startServe(place: Place, options: ServeOptions): Promise<Served> {
  const { slack, model, env, args = ["--isolation", "bwrap"], wrap, binary, isEager } = options;
  const child = startClaw(place, ["serve", "--model", "openai/scripted", ...args], {
    wrap,
    binary,
    env: { ...slack?.env, ...model.env("openai"), CLAW_OWNER: `slack:${owner}`, ...env },
  });
  const printed = { out: "", err: "" };
  void follow(child.stdout, (text) => (printed.out += text));
  void follow(child.stderr, (text) => (printed.err += text));
  const served: Served = {
    pid: child.pid,
    out: () => printed.out,
    err: () => printed.err,
    kill: (signal) => child.kill(signal),
    exited: child.exited,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
  if (!isEager)
    await until(() => {
      if (child.exitCode !== null) throw new Error(`claw serve ended: ${printed.err}`);
      return printed.out.includes("claw is serving");
    });
  return served;
}

async function follow(stream: ReadableStream<Uint8Array>, take: (text: string) => void) {
  const decoder = new TextDecoder();
  for await (const chunk of stream) take(decoder.decode(chunk, { stream: true }));
}

/** The texts of the user's messages in a request, in order, of either wire. */
export function saidIn(request: {
  json: { messages: { role: string; content: unknown }[] };
}): string[] {
  return request.json.messages
    .filter(({ role }) => role === "user")
    .flatMap(({ content }) =>
      typeof content === "string"
        ? [content]
        : (content as { text?: string }[]).map(({ text }) => text ?? ""),
    );
}
