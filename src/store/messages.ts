/**
 * What people wrote, as rows. Every SQL statement about messages.
 *
 * Invariants: a message is stored once, by its channel and external id, together with the
 * conversation it belongs to. It is waiting, then taken (it is in a session's log), then done or
 * failed; only a waiting one is ever changed or dropped.
 */
import type { Database } from "bun:sqlite";
import type { StoredFile } from "../types.ts";

export type ConversationKey = {
  /** "slack:C1:1712.0001"; an isolated one ends in "#" and its schedule's id. */
  id: string;
  channel: string;
  /** In the channel's words; what a message is matched by. */
  thread: string;
  /** Where answers go. */
  address: string;
  /** Each turn starts from nothing. */
  isolated: boolean;
};

export type MessageBody = {
  text: string;
  /** The sender, as people call them. */
  name: string;
  subject?: string;
  context?: string;
  files: StoredFile[];
  problems: string[];
  /** Said in a place that others read too. */
  shared?: boolean;
  /** What the channel needs to answer this message. */
  reply?: Record<string, unknown>;
  schedule?: { id: string; name: string; slotAt: number; script?: string; quiet: boolean };
};

/**
 * command: to be answered. context: only seen with the next one. word: an order to claw itself
 * ("stop"). schedule: a command by the clock; its sender is "schedule".
 */
export type MessageKind = "command" | "context" | "word" | "schedule";

export type NewMessage = {
  channel: string;
  externalId: string;
  conversation: ConversationKey;
  kind: MessageKind;
  /** The address, in its channel's words. */
  sender: string;
  body: MessageBody;
  /** When it was sent, in milliseconds since 1970. */
  at: number;
};

export type Message = Omit<NewMessage, "conversation"> & { id: number; conversationId: string };

/**
 * Stores a message and its conversation, inside the caller's transaction. False: it was known. A
 * schedule's makes the conversation ready at once.
 */
export function storeMessage(db: Database, message: NewMessage, now: number): boolean {
  const { conversation, body } = message;
  const reply = body.reply === undefined ? null : JSON.stringify(body.reply);
  db.query(
    `INSERT INTO conversations (id, channel, thread, address, isolated, reply, created_at)
     VALUES (?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (id) DO UPDATE SET address = excluded.address, reply = coalesce(excluded.reply, reply)`,
  ).run(
    conversation.id,
    conversation.channel,
    conversation.thread,
    conversation.address,
    Number(conversation.isolated),
    reply,
    now,
  );
  const { changes } = db
    .query(
      `INSERT OR IGNORE INTO messages
         (channel, external_id, conversation_id, kind, sender, body, state, at, stored_at)
       VALUES (?, ?, ?, ?, ?, ?, 'waiting', ?, ?)`,
    )
    .run(
      message.channel,
      message.externalId,
      conversation.id,
      message.kind,
      message.sender,
      JSON.stringify(body),
      message.at,
      now,
    );
  if (changes > 0 && message.kind === "schedule") makeReady(db, conversation.id, now, 0);
  return changes > 0;
}

/** Makes a conversation ready soon. A burst moves that on, but not for ever. */
export function makeReady(db: Database, id: string, now: number, gatherMs: number): void {
  db.query(
    `UPDATE conversations SET ready_at = min($now + $gather, 10 * $gather + coalesce(
       (SELECT min(stored_at) FROM messages
        WHERE conversation_id = $id AND state = 'waiting' AND kind <> 'context'), $now))
     WHERE id = $id`,
  ).run({ id, now, gather: gatherMs });
}

export function editMessage(
  db: Database,
  channel: string,
  externalId: string,
  text: string | null,
): boolean {
  const where = "WHERE channel = ? AND external_id = ? AND state = 'waiting'";
  const done =
    text === null
      ? db.query(`UPDATE messages SET state = 'dropped' ${where}`).run(channel, externalId)
      : db
          .query(`UPDATE messages SET body = json_set(body, '$.text', ?) ${where}`)
          .run(text, channel, externalId);
  return done.changes > 0;
}

export function findThread(db: Database, channel: string, ids: readonly string[]): string | null {
  const find = db.query<{ thread: string }, [string, string, string, string, string, string]>(
    `SELECT thread FROM conversations WHERE id = coalesce(
       (SELECT conversation_id FROM messages WHERE channel = ? AND external_id = ?),
       (SELECT conversation_id FROM outbox WHERE client_id = ? AND channel = ?),
       (SELECT conversation_id FROM outbox WHERE channel = ? AND remote_id = ?))`,
  );
  for (const id of ids) {
    const row = find.get(channel, id, id, channel, channel, id);
    if (row) return row.thread;
  }
  return null;
}

type MessageRow = {
  id: number;
  channel: string;
  external_id: string;
  conversation_id: string;
  kind: MessageKind;
  sender: string;
  body: string;
  at: number;
};

const toMessage = (row: MessageRow): Message => ({
  id: row.id,
  channel: row.channel,
  externalId: row.external_id,
  conversationId: row.conversation_id,
  kind: row.kind,
  sender: row.sender,
  body: JSON.parse(row.body),
  at: row.at,
});

/** The messages of a conversation in one of these states, oldest first. */
export const messagesOf = (
  db: Database,
  id: string,
  ...states: ("waiting" | "taken")[]
): Message[] =>
  db
    .query<MessageRow, [string, string]>(
      `SELECT * FROM messages
       WHERE conversation_id = ? AND state IN (SELECT value FROM json_each(?)) ORDER BY id`,
    )
    .all(id, JSON.stringify(states))
    .map(toMessage);

/** Words that wait, in all conversations. */
export const wordsOf = (db: Database): Message[] =>
  db
    .query<MessageRow, []>(
      "SELECT * FROM messages WHERE kind = 'word' AND state = 'waiting' ORDER BY id",
    )
    .all()
    .map(toMessage);
