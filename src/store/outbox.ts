/**
 * The outbox: what is to go out, and what became of it. Every SQL statement about it.
 *
 * Invariants: a row is inserted in the transaction that decided to send it, and once (its client id
 * is unique). pending → sending (durable before the channel is asked) → sent, failed, or unknown. A
 * row found in "sending" may have gone out: it is only sent again when the channel says that it has
 * not. Rows of one address go out in their order.
 */
import type { Database } from "bun:sqlite";
import type { Opened } from "./database.ts";
import type { StoredFile } from "../types.ts";

/** What a row holds besides where it goes; the fields are those of channels/channel.ts. */
export type OutgoingBody = {
  text: string;
  files: StoredFile[];
  reply: Record<string, unknown> | null;
  automatic: boolean;
  question?: string;
  /** A notice about another row that failed; if it fails itself, nobody is told. */
  aboutFailure?: boolean;
};

export type NewOutgoing = {
  clientId: string;
  channel: string;
  conversationId: string | null;
  address: string;
  body: OutgoingBody;
};

export type OutgoingRow = NewOutgoing & { id: number; attempt: number; createdAt: number };

export interface Outbox {
  add(rows: readonly NewOutgoing[], now: number): Promise<void>;
  /** The first row of each address that may go out by now, oldest first. */
  due(channel: string, now: number, limit: number): OutgoingRow[];
  /** When the next row may go out that may not now. */
  nextAt(channel: string, now: number): number | null;
  /** Rows that were being sent when their daemon died, or whose fate is not known. */
  ambiguous(channel: string): OutgoingRow[];
  begin(id: number): Promise<void>;
  succeed(id: number, remoteId: string, now: number): Promise<void>;
  /** Back to pending; surely not sent. */
  defer(id: number, retryAt: number, error: string): Promise<void>;
  /** It stays in "sending"; its channel is asked again later. */
  doubt(id: number, error: string): Promise<void>;
  /** It never goes out, or nobody can know; `notices` tell of it, in the same transaction. */
  fail(id: number, failure: Failure, now: number): Promise<void>;
}

export type Failure = {
  state: "failed" | "unknown";
  error: string;
  notices: readonly NewOutgoing[];
};

export function outboxIn({ db, write }: Opened): Outbox {
  return {
    add: (rows, now) =>
      write(() => {
        for (const row of rows) insertOutgoing(db, row, now);
      }),
    due: (channel, now, limit) =>
      db
        .query<Row, [string, number, number]>(
          `SELECT * FROM outbox o WHERE channel = ? AND state = 'pending' AND retry_at <= ?
             AND NOT EXISTS (SELECT 1 FROM outbox e WHERE e.channel = o.channel
               AND e.state IN ('pending', 'sending') AND e.id < o.id AND e.address = o.address)
           ORDER BY id LIMIT ?`,
        )
        .all(channel, now, limit)
        .map(toOutgoing),
    nextAt: (channel, now) =>
      db
        .query<{ at: number | null }, [string, number]>(
          `SELECT min(retry_at) AS at FROM outbox
           WHERE channel = ? AND state = 'pending' AND retry_at > ?`,
        )
        .get(channel, now)?.at ?? null,
    ambiguous: (channel) =>
      db
        .query<Row, [string]>(
          "SELECT * FROM outbox WHERE channel = ? AND state = 'sending' ORDER BY id",
        )
        .all(channel)
        .map(toOutgoing),
    begin: (id) =>
      write(() => {
        db.query("UPDATE outbox SET state = 'sending', attempt = attempt + 1 WHERE id = ?").run(id);
      }),
    succeed: (id, remoteId, now) =>
      write(() => {
        db.query(
          "UPDATE outbox SET state = 'sent', remote_id = ?, error = NULL, ended_at = ? WHERE id = ?",
        ).run(remoteId, now, id);
      }),
    defer: (id, retryAt, error) =>
      write(() => {
        db.query("UPDATE outbox SET state = 'pending', retry_at = ?, error = ? WHERE id = ?").run(
          retryAt,
          error,
          id,
        );
      }),
    doubt: (id, error) =>
      write(() => {
        db.query("UPDATE outbox SET error = ? WHERE id = ?").run(error, id);
      }),
    fail: (id, { state, error, notices }, now) =>
      write(() => {
        db.query("UPDATE outbox SET state = ?, error = ?, ended_at = ? WHERE id = ?").run(
          state,
          error,
          now,
          id,
        );
        for (const row of notices) insertOutgoing(db, row, now);
      }),
  };
}

/** Adds a row inside the caller's transaction; a client id that is there already is left alone. */
export function insertOutgoing(db: Database, row: NewOutgoing, now: number): void {
  db.query(
    `INSERT OR IGNORE INTO outbox
       (client_id, channel, conversation_id, address, body, state, created_at)
     VALUES (?, ?, ?, ?, ?, 'pending', ?)`,
  ).run(row.clientId, row.channel, row.conversationId, row.address, JSON.stringify(row.body), now);
}

type Row = {
  id: number;
  client_id: string;
  channel: string;
  conversation_id: string | null;
  address: string;
  body: string;
  attempt: number;
  created_at: number;
};

const toOutgoing = (row: Row): OutgoingRow => ({
  id: row.id,
  clientId: row.client_id,
  channel: row.channel,
  conversationId: row.conversation_id,
  address: row.address,
  body: JSON.parse(row.body),
  attempt: row.attempt,
  createdAt: row.created_at,
});
