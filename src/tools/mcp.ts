/**
 * MCP servers on stdio. One starts with the first call that needs it, stays as long as the hands do,
 * and is started anew by the next call after it has died. Its tools are `mcp__SERVER__TOOL`.
 *
 * Invariant: a server is not to be trusted. What it says is bounded here (tools, results, images,
 * bytes), and one that dies, hangs or floods fails its own call and nothing else. The protocol's
 * package is loaded when a server starts, never before.
 */
import type { CallToolResult, Client, ContentBlock, Tool } from "@modelcontextprotocol/client";
import { config } from "../config.ts";
import { messageOf } from "../errors.ts";
import type { ImagePart, McpServer, ToolCall, ToolOutput, ToolSpec } from "../types.ts";
import { cutMiddle } from "./capture.ts";
import { endTree, MARK } from "./processes.ts";
import { imageTypeOf } from "./text.ts";

const { bashTimeoutMs, imageBytes, resultChars } = config.limits;

/** What a server may say: of its tools, in one result, and in bytes from one call to the next. */
export const MCP_LIMITS = { tools: 64, nameChars: 64, descriptionChars: 2_000, schemaChars: 10_000 };
const MAX_PAGES = 20;
const MAX_IMAGES = 8;
const MAX_BYTES = 50_000_000;
const STDERR_CHARS = 1_000;

/** Single underscores only: "mcp__a" is a rule about all tools of the server "a" and of no other. */
export const isServerName = (name: string): boolean =>
  name.length <= 32 && /^[a-z0-9-]+(_[a-z0-9-]+)*$/.test(name);
export const serverOf = (tool: string): string => /^mcp__(.*?)__/.exec(tool)?.[1] ?? "";

export type McpOptions = {
  cwd: string;
  /** What servers see besides what their config gives them; without secrets. */
  env: Record<string, string>;
  /** Default: config's of a command, and a minute. */
  callMs?: number;
  startMs?: number;
};

export type Mcp = {
  /** What a server has. Throws a sentence where that cannot be had, and the signal's reason. */
  list(server: string, signal: AbortSignal): Promise<ToolSpec[]>;
  /** Rejects with the signal's reason and with nothing else. */
  call(call: ToolCall, signal: AbortSignal): Promise<ToolOutput>;
  close(): Promise<void>;
};

export function openMcp(servers: Record<string, McpServer>, options: McpOptions): Mcp {
  const { callMs = bashTimeoutMs, startMs = 60_000 } = options;
  const all = new Map<string, Promise<Server>>();
  const start = (name: string): Promise<Server> => {
    const started = all.get(name) ?? startServer(name, servers[name], { ...options, startMs });
    all.set(name, started);
    const forget = () => all.get(name) === started && all.delete(name);
    started.then(({ ended }) => ended).then(forget, forget);
    return started;
  };
  return {
    async list(name, signal) {
      const server = await orAbort(start(name), signal);
      if (server.isStale) await orAbort(server.refresh(startMs), signal);
      return [...server.tools.values()].map(({ spec }) => spec);
    },
    async call({ name, input }, signal) {
      try {
        const server = await orAbort(start(serverOf(name)), signal);
        const output = await callTool(server, { name, input }, callMs, signal);
        const isOdd = server.isStale || output.isError;
        const toolsChanged = isOdd && (await orAbort(server.refresh(1_000), signal));
        return toolsChanged ? { ...output, toolsChanged } : output;
      } catch (error) {
        signal.throwIfAborted();
        return failed(messageOf(error));
      }
    },
    async close() {
      const ends = [...all.values()].map((one) => one.then(({ end }) => end()).catch(() => null));
      await Promise.all(ends);
    },
  };
}

const failed = (content: string): ToolOutput => ({
  content: cutMiddle(content, resultChars / 2, "a server's error is not shown in full"),
  isError: true,
});

async function orAbort<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  return Promise.race([promise, aborted.promise]).finally(() =>
    signal.removeEventListener("abort", onAbort),
  );
}
