/**
 * The way in: what a channel received becomes a row of the queue, or nothing.
 *
 * Invariants: a message is durable before its channel is told so; a stranger's words are not stored
 * and reach no model: a stranger gets one pairing answer. An order is an order only from somebody
 * who may command; what others say where claw takes part is context.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Channel, Host, Inbound, Incoming } from "../channels/channel.ts";
import { config } from "../config.ts";
import type { NewOutgoing } from "../store/outbox.ts";
import type { ConversationKey, NewMessage } from "../store/queue.ts";
import type { Daemon } from "./daemon.ts";
import { answerWord, isOrder } from "./orders.ts";
import { readWord } from "./words.ts";

/** What a channel may ask of this daemon. */
export function openHost(daemon: Daemon, channel: Channel): Host {
  const { queue, memory, clawHome } = daemon;
  return {
    receive: (inbound) => receive(daemon, channel, inbound),
    admits: (message) => kindOf(daemon, channel, message) !== null,
    findThread: (ids) => queue.findThread(channel.name, ids),
    readNote: async () => memory.readNote(channel.name),
    writeNote: (note) => memory.writeNote(channel.name, note),
    async newFolder() {
      const folder = join(clawHome, "incoming", crypto.randomUUID());
      mkdirSync(folder, { recursive: true, mode: 0o700 });
      return folder;
    },
    log: (event, facts) => daemon.log(event, { channel: channel.name, ...facts }),
  };
}

async function receive(daemon: Daemon, channel: Channel, inbound: Inbound): Promise<void> {
  switch (inbound.type) {
    case "edit":
      await daemon.queue.edit(channel.name, inbound.externalId, inbound.text);
      return;
    case "delete":
      await daemon.queue.edit(channel.name, inbound.externalId, null);
      return;
    case "answer":
      answerQuestion(daemon, channel.name, inbound.question, inbound.from.address, inbound.yes);
      return;
    case "message":
      return receiveMessage(daemon, channel, inbound);
    default:
      inbound satisfies never;
  }
}

const keyOf = (
  channel: Channel,
  { thread, address }: Pick<Incoming, "thread" | "address">,
): ConversationKey => ({
  id: `${channel.name}:${thread}`,
  channel: channel.name,
  thread,
  address,
  isolated: false,
});

/** What a message is to claw; null: nothing. */
function kindOf(
  { access, queue }: Daemon,
  channel: Channel,
  { from, reach, thread }: Pick<Incoming, "from" | "reach" | "thread">,
): "command" | "context" | null {
  const id = `${channel.name}:${thread}`;
  if (!access.isKnown(channel.name, from.address)) return null;
  const takesPart = queue.find(id) !== null;
  const isMeant = reach !== "overheard" || (takesPart && config.serve.slack.followThreads);
  if (isMeant && access.mayCommand(id, channel.name, from.address)) return "command";
  return takesPart ? "context" : null;
}

async function receiveMessage(daemon: Daemon, channel: Channel, message: Incoming): Promise<void> {
  const kind = kindOf(daemon, channel, message);
  const facts = { channel: channel.name, from: message.from.address, id: message.externalId };
  if (kind === null) {
    const isStranger = !daemon.access.isKnown(channel.name, message.from.address);
    daemon.log(isStranger ? "stranger" : "not for claw", facts);
    if (isStranger && message.reach !== "overheard") await answerStranger(daemon, channel, message);
    return;
  }
  const row = toRow(daemon, channel, message, kind);
  if (!(await daemon.queue.store(row, daemon.now(), config.serve.gatherMs))) return;
  daemon.log("received", { ...facts, conversation: row.conversation.id, kind: row.kind });
  if (row.kind === "command") void channel.react?.(message.externalId, true);
  if (row.kind === "word") await takeWords(daemon, row.conversation.id);
  daemon.wakeTurns();
}

function toRow(
  daemon: Daemon,
  channel: Channel,
  message: Incoming,
  kind: "command" | "context",
): NewMessage {
  const { from, text, files, problems, subject, context, reply } = message;
  const conversation = keyOf(channel, message);
  return {
    channel: channel.name,
    externalId: message.externalId,
    conversation,
    kind: kind === "command" && isWord(daemon, conversation.id, message) ? "word" : kind,
    sender: from.address,
    body: {
      text,
      name: from.name,
      files,
      problems,
      ...(subject !== undefined && { subject }),
      ...(context !== undefined && { context }),
      ...(reply !== undefined && { reply }),
      ...(message.reach !== "direct" && { shared: true }),
    },
    at: message.at,
  };
}

/** A yes is an order only while a question is open. */
function isWord({ questions }: Daemon, id: string, { text, files }: Incoming): boolean {
  const word = files.length > 0 ? null : readWord(text);
  if (word?.name === "yes" || word?.name === "no") return questions.openIn(id) !== null;
  return word !== null;
}

/** Carries out the orders that wait in a conversation, those about turns by ending the turn. */
export async function takeWords(daemon: Daemon, conversationId: string): Promise<void> {
  for (const message of daemon.queue.waiting(conversationId)) {
    if (message.kind !== "word") continue;
    if (isOrder(message)) {
      daemon.interrupt(conversationId);
      continue;
    }
    const word = readWord(message.body.text);
    const question = daemon.questions.openIn(conversationId);
    if (question && (word?.name === "yes" || word?.name === "no"))
      answerQuestion(daemon, message.channel, question, message.sender, word.name === "yes");
    await answerWord(daemon, message);
  }
}

/** The owner's word counts; where no owner is named, that of whoever may command. */
function answerQuestion(
  daemon: Daemon,
  channel: string,
  id: string,
  address: string,
  yes: boolean,
): void {
  const { access, questions } = daemon;
  const conversation = questions.conversationOf(id);
  if (conversation === null) return;
  const may =
    access.owners.length > 0
      ? access.isOwner(channel, address)
      : access.mayCommand(conversation, channel, address);
  daemon.log("answer to a question", { channel, conversation, from: address, yes, counts: may });
  if (may) questions.answer(id, yes);
}

/** One answer with a code, to the stranger alone, who may tell it to the owner. */
async function answerStranger(daemon: Daemon, channel: Channel, message: Incoming): Promise<void> {
  const { from, reply, reach, address } = message;
  const code = await daemon.people.knock(
    channel.name,
    from.address,
    from.name,
    daemon.now(),
    (code) => [
      notice(channel, {
        clientId: `claw-pairing-${code}`,
        address: reach === "direct" ? address : from.address,
        text: `I do not know you, so your message went nowhere. Tell my owner the code ${code}: within an hour it lets you in (\`claw pair approve ${code}\`). Then write again.`,
        reply: reply ?? null,
      }),
    ],
  );
  if (code !== null) daemon.log("pairing", { channel: channel.name, from: from.address });
  daemon.wakeSenders();
}

type Notice = {
  clientId: string;
  address: string;
  text: string;
  reply: Record<string, unknown> | null;
};

const notice = (channel: Channel, { clientId, address, text, reply }: Notice): NewOutgoing => ({
  clientId,
  channel: channel.name,
  conversationId: null,
  address,
  body: { text: channel.compose(text).join("\n"), files: [], reply, automatic: true },
});

/** What the owner is told, on the first of the owner's channels that is there. */
export function ownerNotices(daemon: Daemon, clientId: string, text: string): NewOutgoing[] {
  for (const { channel: name, address } of daemon.access.owners) {
    const channel = daemon.channels.get(name);
    if (channel) return [notice(channel, { clientId, address, text, reply: null })];
  }
  return [];
}
