/**
 * What orders do (words.ts says which they are): `stop`, `new` and `undo` under the conversation's
 * lease, the others at once, beside whatever runs.
 *
 * Invariant: an order is carried out and answered in one transaction, and once.
 */
import { parseMode } from "../agent/permissions.ts";
import { messageOf, UsageError } from "../errors.ts";
import type { Change, Conversation, Message } from "../store/queue.ts";
import type { SessionInfo } from "../types.ts";
import type { Daemon, Work } from "./daemon.ts";
import { letter } from "./letters.ts";
import { help, readWord, type Word } from "./words.ts";

const nameOf = ({ kind, body }: Message): Word["name"] | null =>
  kind === "word" ? (readWord(body.text)?.name ?? "unknown") : null;

/** Whether a message is an order about turns, which waits for the running one to end. */
export const isOrder = (message: Message): boolean =>
  ["stop", "new", "undo"].includes(nameOf(message) ?? "");

/** Carries out the orders of a conversation whose turn has ended, and gives it back. */
export async function obey(work: Work, orders: readonly Message[]): Promise<void> {
  const { daemon, conversation, lease } = work;
  for (const order of orders) {
    const { text, change } = await carryOut(nameOf(order), daemon, conversation);
    Object.assign(conversation, change);
    const outgoing = letter(work, `word-${order.id}`, text);
    await daemon.queue.endWord({ id: order.id, outgoing, drops: lease, change }, daemon.now());
  }
  const readyAt = daemon.queue.waiting(conversation.id).length > 0 ? daemon.now() : null;
  await daemon.queue.release(lease, { readyAt, error: null, outgoing: [] }, daemon.now());
}

type Done = { text: string; change: Change };

async function carryOut(
  name: Word["name"] | null,
  daemon: Daemon,
  conversation: Conversation,
): Promise<Done> {
  if (name === "new") return { text: "A new conversation.", change: { sessionId: null } };
  if (name !== "undo") return { text: "Nothing was running.", change: {} };
  const id = conversation.sessionId;
  const session =
    id && (await daemon.store.hasSession(id)) ? await daemon.store.findSession(id) : null;
  if (!session) return { text: "There is nothing to undo.", change: {} };
  return {
    text: "I took back the last turn: I no longer know of it. Files and messages are as they are.",
    change: { sessionId: await forkBeforeTurn(daemon, session) },
  };
}

/** A copy of a session without its last turn; null where nothing would be left. */
export async function forkBeforeTurn(daemon: Daemon, session: SessionInfo): Promise<string | null> {
  const events = await daemon.store.readEvents(session.id);
  const last = events.findLast(({ event }) => event.type === "input" && event.origin === "person");
  const before = events.some(
    ({ seq, event }) =>
      (event.type === "turn_end" || event.type === "compaction") && seq < (last?.seq ?? 0),
  );
  if (!last || !before) return null;
  const info = { ...session, id: crypto.randomUUID(), forkedFrom: session.id };
  await daemon.store.forkSession(session.id, info, last.seq);
  await daemon.store.releaseSession(info.id);
  return info.id;
}

// ── At once ─────────────────────────────────────────────────────────────────────────────────────

/** Carries out an order that needs no lease. Repeats after a crash change nothing. */
export async function answerWord(daemon: Daemon, message: Message): Promise<void> {
  const conversation = daemon.queue.find(message.conversationId);
  const word = readWord(message.body.text) ?? { name: "unknown", text: message.body.text };
  if (!conversation) return;
  const isOwner = daemon.access.isOwner(message.channel, message.sender);
  const text = await say(word, { daemon, conversation, isOwner }).catch((error: unknown) => {
    if (error instanceof UsageError) return messageOf(error);
    throw error;
  });
  const outgoing =
    text === null ? [] : letter({ daemon, conversation }, `word-${message.id}`, text);
  await daemon.queue.endWord({ id: message.id, outgoing }, daemon.now());
  daemon.wakeSenders();
}

type Asked = { daemon: Daemon; conversation: Conversation; isOwner: boolean };

/** What an order is answered; null: nothing. Throws UsageError for one that makes no sense. */
async function say(word: Word, asked: Asked): Promise<string | null> {
  switch (word.name) {
    case "help":
      return help;
    case "status":
      return describeStatus(asked);
    case "cost":
      return describeCost(asked);
    case "model":
    case "mode":
      return word.value === null
        ? describeSetting(word.name, asked)
        : setSetting(word.name, word.value, asked);
    case "approve":
    case "deny":
      return decidePairing(word, asked);
    case "yes":
    case "no":
    case "stop":
    case "new":
    case "undo":
      return null;
    case "unknown":
      return `I know no order "${word.text}".\n\n${help}`;
    default:
      return word satisfies never;
  }
}

function describeStatus({ daemon, conversation }: Asked): string {
  const doing = daemon.doing.get(conversation.id)?.();
  const waiting = daemon.queue.waiting(conversation.id).filter(({ kind }) => kind !== "word");
  const lines = [
    doing ? `I am working: ${doing}.` : "Nothing is running here.",
    waiting.length > 0 ? `${waiting.length} of your messages wait.` : "",
    conversation.lastError ? `The last failure: ${conversation.lastError}` : "",
    ...[...daemon.channels.values()].map((channel) => {
      const { since, error } = channel.state();
      return `${channel.name}: ${since ? "connected" : `not connected${error ? ` (${error})` : ""}`}.`;
    }),
  ];
  return lines.filter(Boolean).join("\n\n");
}

function describeCost({ daemon, conversation }: Asked): string {
  const { tokens, costUsd } = daemon.queue.spent(conversation.id, daemon.now());
  return `Today, this conversation: ${tokens.toLocaleString("en")} tokens, $${costUsd.toFixed(4)}.`;
}

async function describeSetting(
  name: "model" | "mode",
  { daemon, conversation }: Asked,
): Promise<string> {
  const settings = daemon.access.settings(conversation.id);
  if (name === "mode") return `The mode here is ${conversation.mode ?? settings.mode}.`;
  const model = await daemon.model(conversation.model ?? settings.model);
  return `The model here is ${model.id}.`;
}

async function setSetting(name: "model" | "mode", value: string, asked: Asked): Promise<string> {
  const { daemon, conversation, isOwner } = asked;
  if (!isOwner) return `Only the owner sets the ${name}.`;
  if (name === "mode") await daemon.queue.change(conversation.id, { mode: parseMode(value) });
  else await daemon.queue.change(conversation.id, { model: (await daemon.model(value)).id });
  return `The ${name} here is ${value} from the next turn on.`;
}

async function decidePairing(
  word: Word & { code: string },
  { daemon, isOwner }: Asked,
): Promise<string> {
  if (!isOwner) return "Only the owner lets people in.";
  const { name, channel, address } = await daemon.people.decide(
    word.code,
    word.name === "approve",
    daemon.now(),
  );
  const who = `${name} (${channel}:${address})`;
  return word.name === "approve" ? `${who} may talk to me now.` : `${who} stays out.`;
}
