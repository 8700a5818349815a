/**
 * What is seen of claw from outside: counts, states, times, costs and failures. Every SQL statement
 * about that; it only reads.
 *
 * Invariant: one `read` is one moment of the database, and bounded, however old and full that is.
 * It never holds what somebody wrote: no message, no answer, no schedule's text.
 */
import type { Database } from "bun:sqlite";
import type { Opened } from "./database.ts";
import { dayOf } from "./queue.ts";

/** Times in milliseconds since 1970. What is bounded by time goes back seven days. */
export type Seen = {
  /** Those with work first, then by their last activity; at most 200. */
  conversations: SeenConversation[];
  queue: { waiting: number; taken: number; failed: number };
  /** `oldestAt`: since when the oldest row waits that has to go out. */
  outbox: Record<"pending" | "sending" | "failed" | "unknown", number> & {
    oldestAt: number | null;
  };
  schedules: SeenSchedule[];
  /** Of today, the dearest first. */
  spending: { conversation: string; tokens: number; costUsd: number }[];
  /** What left sandboxes today, by host; `refused` is among `requests`. At most 50. */
  egress: SeenEgress[];
  /** Newest first, at most 20. */
  errors: SeenError[];
};

export type SeenEgress = {
  conversation: string;
  host: string;
  requests: number;
  bytes: number;
  refused: number;
};

export type SeenConversation = {
  id: string;
  channel: string;
  /** A turn was begun and has not ended. */
  openTurn: boolean;
  /** A daemon holds it; whether that one still lives is not known here. */
  running: boolean;
  waiting: number;
  readyAt: number | null;
  failures: number;
  lastError: string | null;
  model: string | null;
  mode: string | null;
  lastAt: number;
};

export type SeenSchedule = {
  id: string;
  name: string;
  state: string;
  nextAt: number | null;
  lastAt: number | null;
  lastState: string | null;
};

/** `where` is a conversation, a channel's outbox or a schedule. */
export type SeenError = { at: number; where: string; error: string };

export interface Overview {
  read(now: number): Seen;
}

const LATELY_MS = 7 * 86_400_000;

export function overviewIn({ db }: Opened): Overview {
  return {
    read: (now) =>
      db.transaction((): Seen => {
        const since = now - LATELY_MS;
        const messages = countStates(db, "messages", since);
        const rows = countStates(db, "outbox", since);
        const [waiting, taken] = [messages("waiting"), messages("taken")];
        const [pending, sending, unknown] = [rows("pending"), rows("sending"), rows("unknown")];
        return {
          conversations: conversations(db),
          queue: { waiting, taken, failed: messages("failed") },
          outbox: { pending, sending, failed: rows("failed"), unknown, oldestAt: oldest(db) },
          schedules: schedules(db),
          spending: spending(db, now),
          egress: egress(db, now),
          errors: errors(db, since),
        };
      })(),
  };
}

type ConversationRow = Omit<SeenConversation, "openTurn" | "running"> & {
  openTurn: number;
  running: number;
};

/** The last activity is the session's last event, or the newest message that waits. */
const conversations = (db: Database): SeenConversation[] =>
  db
    .query<ConversationRow, []>(
      `SELECT c.id, c.channel, c.open_turn AS openTurn, c.owner IS NOT NULL AS running,
         count(m.id) AS waiting, c.ready_at AS readyAt, c.failures, c.last_error AS lastError,
         c.model, c.mode,
         max(c.created_at, coalesce(s.updated_at, 0), coalesce(max(m.stored_at), 0)) AS lastAt
       FROM conversations c LEFT JOIN sessions s ON s.id = c.session_id
         LEFT JOIN messages m ON m.conversation_id = c.id AND m.state = 'waiting'
           AND m.state IN ('waiting', 'taken') -- names the index
       GROUP BY c.id
       ORDER BY c.owner IS NOT NULL OR c.open_turn OR count(m.id) > 0 DESC, lastAt DESC LIMIT 200`,
    )
    .all()
    .map((row) => ({ ...row, openTurn: row.openTurn === 1, running: row.running === 1 }));

/** `open` is the condition of the table's own index; `lost` is counted where it is new. */
const tables = {
  messages: { open: "'waiting', 'taken'", lost: "'failed'", cameAt: "stored_at" },
  outbox: { open: "'pending', 'sending'", lost: "'failed', 'unknown'", cameAt: "created_at" },
};

/** Ids grow with time: the search for where a time begins starts at the end. */
const isNew = (table: keyof typeof tables) =>
  `id > coalesce((SELECT id FROM ${table} WHERE ${tables[table].cameAt} <= $since
     ORDER BY id DESC LIMIT 1), 0)`;

function countStates(db: Database, table: keyof typeof tables, since: number) {
  const { open, lost } = tables[table];
  const rows = db
    .query<{ state: string; count: number }, { since: number }>(
      `SELECT state, count(*) AS count FROM ${table} WHERE state IN (${open}) GROUP BY state
       UNION ALL SELECT state, count(*) FROM ${table}
       WHERE state IN (${lost}) AND ${isNew(table)} GROUP BY state`,
    )
    .all({ since });
  return (state: string) => rows.find((row) => row.state === state)?.count ?? 0;
}

const oldest = (db: Database): number | null =>
  db
    .query<{ at: number | null }, []>(
      "SELECT min(created_at) AS at FROM outbox WHERE state IN ('pending', 'sending')",
    )
    .get()?.at ?? null;

const schedules = (db: Database): SeenSchedule[] =>
  db
    .query<SeenSchedule, []>(
      `SELECT s.id, s.name, s.state, s.next_at AS nextAt, r.started_at AS lastAt,
         r.state AS lastState
       FROM schedules s LEFT JOIN runs r ON r.schedule_id = s.id AND r.slot_at =
         (SELECT max(slot_at) FROM runs WHERE schedule_id = s.id)
       WHERE s.state <> 'done' ORDER BY s.next_at IS NULL, s.next_at, s.created_at LIMIT 200`,
    )
    .all();

/** By the machine's own day, as queue.ts writes it down. */
const spending = (db: Database, now: number): Seen["spending"] =>
  db
    .query<Seen["spending"][number], [string]>(
      `SELECT conversation_id AS conversation, tokens, cost_usd AS costUsd FROM spending
       WHERE day = ? ORDER BY cost_usd DESC, tokens DESC`,
    )
    .all(dayOf(now));

const egress = (db: Database, now: number): SeenEgress[] =>
  db
    .query<SeenEgress, [number]>(
      `SELECT conversation_id AS conversation, host, count(*) AS requests,
         sum(bytes_sent + bytes_received) AS bytes, count(why) AS refused
       FROM egress WHERE at >= ? GROUP BY 1, 2 ORDER BY requests DESC LIMIT 50`,
    )
    .all(new Date(now).setHours(0, 0, 0, 0));

/** A failure that a schedule's run and its conversation both know is told by each. */
const errors = (db: Database, since: number): SeenError[] =>
  db
    .query<SeenError, { since: number }>(
      `SELECT max(c.created_at, coalesce(s.updated_at, 0)) AS at, c.id AS "where",
         c.last_error AS error
       FROM conversations c LEFT JOIN sessions s ON s.id = c.session_id
       WHERE c.last_error IS NOT NULL AND max(c.created_at, coalesce(s.updated_at, 0)) > $since
       UNION ALL SELECT coalesce(ended_at, created_at), channel || ' outbox', error FROM outbox
       WHERE state <> 'sent' AND error IS NOT NULL AND ${isNew("outbox")}
       UNION ALL SELECT coalesce(r.ended_at, r.started_at), 'schedule ' || s.name,
         coalesce(r.detail, s.last_error, r.state)
       FROM schedules s JOIN runs r ON r.schedule_id = s.id AND r.slot_at > $since
       WHERE r.state IN ('failed', 'missed')
       ORDER BY at DESC LIMIT 20`,
    )
    .all({ since });
