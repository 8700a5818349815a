/**
 * The tools that a conversation has besides those of its hands: SendMessage, Remember, Recall (and
 * Schedule, schedule-tool.ts). They run in the daemon and touch its store, never the machine.
 *
 * Invariants: a message goes only to the owner, to people the owner let in, and to conversations
 * that exist, so that a hijacked model can tell nobody else; a file is sent only from the
 * conversation's own folder, wherever links lead.
 */
import { mkdirSync, realpathSync, writeFileSync } from "node:fs";
import { basename, join, relative, resolve } from "node:path";
import { z } from "zod";
import type { Channel } from "../channels/channel.ts";
import { config } from "../config.ts";
import { messageOf } from "../errors.ts";
import { hiddenBy } from "../hands/mounts.ts";
import { readInside } from "../inside.ts";
import type { Memory } from "../store/memory.ts";
import type { Outbox } from "../store/outbox.ts";
import type { Conversation, Queue } from "../store/queue.ts";
import type { Store } from "../store/sessions.ts";
import { checkInput, specOf } from "../tools/tools.ts";
import type { Hands, StoredFile, Tool, ToolOutput } from "../types.ts";
import type { Access } from "./access.ts";
import { type Letter, toOutgoing } from "./letters.ts";

export type ToolsOptions = {
  conversation: Conversation;
  /** The conversation's workspace. */
  folder: string;
  /** Where files that are to be sent are copied to. */
  outgoingFolder: string;
  channels: ReadonlyMap<string, Channel>;
  access: Access;
  queue: Queue;
  outbox: Outbox;
  memory: Memory;
  store: Store;
  /** The outbox has something new. */
  wakeSenders(): void;
  now: () => number;
};

export const brainTools = (options: ToolsOptions): Tool[] => [
  sendMessage(options) as Tool,
  remember(options) as Tool,
  recall(options) as Tool,
];

/** `hands` with tools of the brain's own, which are asked for first. */
export function withTools(hands: Hands, tools: readonly Tool[]): Hands {
  const own = new Map(tools.map((tool) => [tool.name, tool]));
  const workbench = { roots: [], stamps: new Map(), shells: new Map(), env: {} };
  return {
    get tools() {
      return [...hands.tools, ...tools.map(specOf)];
    },
    ready: async (signal) => hands.ready?.(signal),
    isReadOnly: (name) => own.get(name)?.readOnly ?? hands.isReadOnly(name),
    isRunnable(call) {
      const tool = own.get(call.name);
      if (!tool) return hands.isRunnable(call);
      return call.invalid === undefined && !("error" in checkInput(tool, call.input));
    },
    async recover(call, signal) {
      const fate = own.has(call.name) ? null : await hands.recover?.(call, signal);
      return fate ?? { ran: "unknown", printed: "" };
    },
    async run(call, signal, onPrint) {
      const tool = own.get(call.name);
      if (!tool) return hands.run(call, signal, onPrint);
      if (call.invalid !== undefined)
        return failed(`The arguments of ${call.name} are no JSON object.`);
      const checked = checkInput(tool, call.input);
      if ("error" in checked) return failed(checked.error);
      try {
        return await tool.run(checked.input, workbench, signal);
      } catch (error) {
        return failed(`${call.name} failed: ${messageOf(error)}`);
      }
    },
    preview: (call) => (own.has(call.name) ? Promise.resolve(null) : hands.preview(call)),
    close: () => hands.close(),
  };
}

const failed = (content: string): ToolOutput => ({ content, isError: true });

// ── SendMessage ─────────────────────────────────────────────────────────────────────────────────

const messageInput = z.object({
  text: z.string().describe("markdown"),
  to: z
    .string()
    .optional()
    .describe(
      'default: this conversation. Else "slack:U123", "slack:C123:THREAD" or "email:a@b.org"',
    ),
  files: z.array(z.string()).optional().describe("paths of files in the workspace"),
});

const sendMessage = (options: ToolsOptions): Tool<z.infer<typeof messageInput>> => ({
  name: "SendMessage",
  description:
    "Sends a message now, while you work on. Your answer at the end is sent by itself: use this for " +
    "something that cannot wait, for files, and for other people or conversations.",
  schema: messageInput,
  readOnly: false,
  async run({ text, to, files = [] }) {
    const target = await findTarget(to, options);
    if (typeof target === "string") return failed(target);
    const { channel, conversation } = target;
    const stored = files.map((path) => copyFile(path, options));
    const wrong = stored.find((file) => typeof file === "string");
    if (typeof wrong === "string") return failed(wrong);
    const parts = channel.compose(text);
    const attached = stored.filter((file) => typeof file !== "string");
    const key = crypto.randomUUID();
    const rows = toOutgoing({
      conversation,
      key,
      parts: parts.length > 0 ? parts : [""],
      files: attached,
    });
    await options.outbox.add(rows, options.now());
    options.wakeSenders();
    return { content: `On its way to ${conversation.channel}:${conversation.address}.` };
  },
});

type Target = { channel: Channel; conversation: Letter["conversation"] };

/** Where a message may go, or a sentence that says why not. */
async function findTarget(to: string | undefined, options: ToolsOptions): Promise<Target | string> {
  const { conversation, channels, access, queue } = options;
  const own = channels.get(conversation.channel);
  if (to === undefined)
    return own ? { channel: own, conversation } : "This channel is not connected.";
  const [, name = "", address = ""] = /^([a-z]+):(.+)$/.exec(to.trim()) ?? [];
  const channel = channels.get(name);
  const names = [...channels.keys()].join(", ");
  if (!channel) return `"${to}" begins with no channel that is connected; there are: ${names}.`;
  const existing = queue.find(`${name}:${address}`);
  if (existing) return { channel, conversation: existing };
  if (!access.isKnown(name, name === "email" ? address.toLowerCase() : address))
    return `${to} is neither the owner, nor somebody the owner let in, nor a conversation that exists. Ask the owner.`;
  const place = await channel.locate(address);
  const id = `${name}:${place.thread}`;
  const fresh = { ...conversation, id: null, channel: name, ...place, reply: null };
  return { channel, conversation: queue.find(id) ?? fresh };
}

/** A copy that the sender will read; or a sentence that says why not. */
function copyFile(path: string, { folder, outgoingFolder }: ToolsOptions): StoredFile | string {
  const real = realpathSync(folder);
  try {
    const place = resolve(real, path);
    const seen = [place, realpathSync(place)].map((one) => relative(real, one));
    if (seen.some(hiddenBy(config.sandbox.hides))) throw new Error("it is kept from sandboxes");
    const bytes = readInside(place, real);
    const to = join(outgoingFolder, crypto.randomUUID());
    mkdirSync(to, { recursive: true, mode: 0o700 });
    const copy = join(to, basename(path));
    writeFileSync(copy, bytes, { mode: 0o600 });
    return {
      path: copy,
      name: basename(path),
      mediaType: Bun.file(path).type,
      bytes: bytes.length,
    };
  } catch (error) {
    return `${path} cannot be sent: ${messageOf(error)}.`;
  }
}

// ── Memory ──────────────────────────────────────────────────────────────────────────────────────

const remember = ({ memory, conversation, now }: ToolsOptions): Tool<{ text: string }> => ({
  name: "Remember",
  description:
    "Keeps a fact for this conversation for good: preferences, names, decisions. One sentence. No secrets.",
  schema: z.object({ text: z.string().min(1).max(2000) }),
  readOnly: false,
  async run({ text }) {
    await memory.remember(conversation.id, text.trim(), now());
    return { content: "Remembered." };
  },
});

const recall = ({
  memory,
  store,
  conversation,
  folder,
}: ToolsOptions): Tool<{ query: string }> => ({
  name: "Recall",
  description:
    "Finds what was said in this conversation before, and what was remembered, by words.",
  schema: z.object({ query: z.string().min(1) }),
  readOnly: true,
  async run({ query }) {
    const words = query.toLowerCase().split(/\s+/);
    const facts = memory
      .memories(conversation.id)
      .filter((fact) => words.some((word) => fact.toLowerCase().includes(word)));
    const said = await store.search(query, 20, folder);
    const lines = [
      ...facts.map((fact) => `remembered: ${fact}`),
      ...said.map(
        ({ session, line }) => `${new Date(session.updatedAt).toISOString().slice(0, 10)}: ${line}`,
      ),
    ];
    return { content: lines.join("\n") || "Nothing was found; try other words." };
  },
});
