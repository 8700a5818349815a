/**
 * An MCP server's process, as the protocol's package wants a transport: a message is a line of JSON.
 *
 * Invariant: `close` resolves when the process and all that it started are gone. What is no message
 * is dropped, and a server that sends more than an answer can hold is ended; memory does not grow.
 */
import type { Client, JSONRPCMessage } from "@modelcontextprotocol/client";
import { messageOf } from "../errors.ts";
import type { McpServer } from "../types.ts";
import { endTree, MARK } from "./processes.ts";

/** What a server may send until it is asked again; its images have to fit a worker's reply. */
const MAX_BYTES = 15_000_000;
const SAID_CHARS = 1_000;

/** What servers see besides what config gives them; `env` without secrets. */
export type Place = { cwd: string; env: Record<string, string> };

export type Pipe = Parameters<Client["connect"]>[0] & {
  /** How it ended, and what its stderr said last; "" for one that runs in silence. */
  complaint(): string;
};

/** Throws what the system says where it cannot start. */
export function openPipe({ command, args = [], env }: McpServer, place: Place): Pipe {
  const mark = crypto.randomUUID();
  const child = Bun.spawn([command, ...args], {
    cwd: place.cwd,
    env: { ...place.env, ...env, [MARK]: `${place.env[MARK] ?? ""}/${mark}` },
    stdio: ["pipe", "pipe", "pipe"],
    detached: true,
  });
  let [fault, said, bytes] = ["", "", 0];
  const read = async (): Promise<void> => {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const chunk of child.stdout) {
      bytes += chunk.length;
      if (bytes > MAX_BYTES) throw new Error(`it sent more than ${MAX_BYTES} bytes`);
      const text = decoder.decode(chunk, { stream: true });
      const end = text.lastIndexOf("\n");
      const lines = end < 0 ? [] : (rest + text.slice(0, end)).split("\n");
      rest = end < 0 ? rest + text : text.slice(end + 1);
      for (const message of lines.map(toMessage)) if (message) pipe.onmessage?.(message);
    }
  };
  const hear = async (): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const chunk of child.stderr)
      said = (said + decoder.decode(chunk, { stream: true })).slice(-SAID_CHARS);
  };
  let closed: Promise<void> | null = null;
  const end = async (): Promise<void> => {
    await endTree(mark, child.exitCode === null && child.signalCode === null ? child.pid : 0);
    pipe.onclose?.();
  };
  const pipe: Pipe = {
    async start() {
      void hear();
      const over = read().catch((error: unknown) => void (fault = messageOf(error)));
      void over.then(() => Promise.race([child.exited, Bun.sleep(100)])).then(() => pipe.close());
    },
    async send(message) {
      if ("id" in message && "method" in message) bytes = 0;
      void child.stdin.write(`${JSON.stringify(message)}\n`);
      await child.stdin.flush();
    },
    close: () => (closed ??= end()),
    complaint() {
      const { exitCode, signalCode } = child;
      const how =
        exitCode === null ? signalCode && `killed by ${signalCode}` : `exit code ${exitCode}`;
      const words = said.trim() && `it said last: ${said.trim()}`;
      return [fault || how, words].filter(Boolean).join("; ");
    },
  };
  return pipe;
}

/** null: none, as programs print all sorts of things. Its parts are checked by who takes it. */
function toMessage(line: string): JSONRPCMessage | null {
  try {
    const message: JSONRPCMessage | null = JSON.parse(line);
    return message?.jsonrpc === "2.0" ? message : null;
  } catch {
    return null;
  }
}
