/**
 * The queue: conversations, and who works on them. Every SQL statement about that.
 *
 * Invariants: a conversation is worked on under a lease (owner, attempt); whoever lost it can write
 * nothing more. Its messages are taken in the transaction that puts them into the session's log, and
 * done or failed in the one that holds the turn's end and its answer.
 */
import type { Database } from "bun:sqlite";
import type { Opened } from "./database.ts";
import { type NewOutgoing, insertOutgoing } from "./outbox.ts";
import { appendEvents } from "./sessions.ts";
import {
  type ConversationKey,
  editMessage,
  findThread,
  makeReady,
  type Message,
  messagesOf,
  type NewMessage,
  storeMessage,
  wordsOf,
} from "./messages.ts";
import type { Event, LoggedEvent, Mode } from "../types.ts";

export type { ConversationKey, Message, MessageBody, MessageKind, NewMessage } from "./messages.ts";
export { storeMessage } from "./messages.ts";

export type Conversation = ConversationKey & {
  sessionId: string | null;
  model: string | null;
  mode: Mode | null;
  progressId: string | null;
  /** A turn was begun and has not ended: it goes on from the session's log. */
  openTurn: boolean;
  /** Failures of this turn so far, those of claw's own, and claims since a model last answered. */
  failures: number;
  faults: number;
  claims: number;
  /** The person was told that this turn is in trouble. */
  told: boolean;
  lastError: string | null;
  reply: Record<string, unknown> | null;
};

/** The right to work on a conversation, until somebody else has it. */
export type Lease = { conversationId: string; owner: string; attempt: number };

/** How a turn went. `skipped`: a schedule's script said that there was nothing to do. */
export type Outcome = {
  ok: boolean;
  detail: string | null;
  costUsd: number | null;
  skipped?: boolean;
};

/** What the end of a turn comes with. `ifPaused` goes out if its schedule is paused by its failure. */
export type Ending = {
  outcome: Outcome;
  outgoing: readonly NewOutgoing[];
  ifPaused?: NewOutgoing;
  /** The session that the conversation goes on with; null: a new one. Absent: the same. */
  sessionId?: string | null;
};

/** Writes down how a schedule's run went, inside the caller's transaction (schedules.ts). */
export type SettleRun = (
  db: Database,
  run: { id: string; slotAt: number },
  outcome: Outcome,
  now: number,
) => { paused: boolean } | null;

/** The lease was lost: what its holder did since is void. */
export class FencedError extends Error {
  override name = "FencedError";
}

export interface Queue {
  /** False: it was known. Commands and words make the conversation ready `gatherMs` from now. */
  store(message: NewMessage, now: number, gatherMs: number): Promise<boolean>;
  /** Changes or drops a message that no turn has taken yet; false: there is none. */
  edit(channel: string, externalId: string, text: string | null): Promise<boolean>;
  findThread(channel: string, ids: readonly string[]): string | null;
  /** null where nothing was said in it yet. */
  find(id: string): Conversation | null;

  /** The ready conversation that waited longest, now `owner`'s; null where none is ready. */
  claim(owner: string, now: number, leaseMs: number): Promise<Claim | null>;
  /** When the next conversation becomes ready, in milliseconds since 1970. */
  nextReadyAt(): number | null;
  /** Makes the leases of `owner` last on. */
  extend(owner: string, now: number, leaseMs: number): Promise<void>;
  /** Takes every lease from its holder: for the one daemon of this home, at its start. */
  freeAll(now: number): Promise<number>;
  /** Conversations with a turn that was begun and has not ended. */
  openTurns(): string[];
  /** Gives a conversation back as it is: its turn, where one is open, goes on at `readyAt`. */
  release(lease: Lease, release: Release, now: number): Promise<void>;
  /** Ends messages that no session's log holds, as a turn's end would; null: all that are open. */
  conclude(lease: Lease, ids: number[] | null, ending: Ending, now: number): Promise<void>;
  /** Ends a word with the answer to it; what it drops or changes needs the lease, which stays. */
  endWord(word: EndedWord, now: number): Promise<void>;

  /** What waits in a conversation, oldest first. */
  waiting(conversationId: string): Message[];
  /** What the open turn was made of, oldest first. */
  taken(conversationId: string): Message[];
  /** Words that wait, of all conversations: for the daemon's start. */
  words(): Message[];

  /**
   * `Store.append` under a lease. An `input` takes its messages; an `answer` is added to what the
   * conversation has spent; a `turn_end` needs `ending`, ends the messages and frees the conversation.
   */
  append(lease: Lease, log: Log, now: number, ending: Ending | null): Promise<LoggedEvent[]>;
  change(conversationId: string, change: Change): Promise<void>;
  spent(conversationId: string, now: number): { tokens: number; costUsd: number };
}

export type EndedWord = {
  id: number;
  outgoing: readonly NewOutgoing[];
  /** Drops what waited before it. */
  drops?: Lease;
  change?: Change;
};

export type Claim = { lease: Lease; conversation: Conversation };
export type Log = { sessionId: string; lastSeq: number; events: readonly Event[] };
export type Change = Partial<Pick<Conversation, "sessionId" | "model" | "mode" | "progressId">>;
export type Release = {
  /** null: when something new comes. */
  readyAt: number | null;
  /** Why, where it counts as a failure of the turn. */
  error: string | null;
  /** The failure is claw's own. */
  isFault?: boolean;
  outgoing: readonly NewOutgoing[];
};

export function queueIn({ db, write }: Opened, settle: SettleRun): Queue {
  return {
    store: (message, now, gatherMs) =>
      write(() => {
        if (!storeMessage(db, message, now)) return false;
        if (message.kind !== "context") makeReady(db, message.conversation.id, now, gatherMs);
        return true;
      }),
    edit: (channel, externalId, text) => write(() => editMessage(db, channel, externalId, text)),
    findThread: (channel, ids) => findThread(db, channel, ids),
    find: (id) => findConversation(db, id),

    claim: (owner, now, leaseMs) => write(() => claim(db, owner, now, leaseMs)),
    nextReadyAt: () =>
      db
        .query<{ at: number | null }, []>(
          "SELECT min(ready_at) AS at FROM conversations WHERE owner IS NULL AND ready_at IS NOT NULL",
        )
        .get()?.at ?? null,
    extend: (owner, now, leaseMs) =>
      write(() => {
        db.query("UPDATE conversations SET lease_until = ? WHERE owner = ?").run(
          now + leaseMs,
          owner,
        );
      }),
    freeAll: (now) =>
      write(
        () =>
          db
            .query(
              "UPDATE conversations SET owner = NULL, lease_until = NULL, ready_at = ? WHERE owner IS NOT NULL",
            )
            .run(now).changes,
      ),
    openTurns: () =>
      db
        .query<{ id: string }, []>("SELECT id FROM conversations WHERE open_turn = 1")
        .all()
        .map(({ id }) => id),
    release: (lease, release, now) => write(() => releaseLease(db, lease, release, now)),
    conclude: (lease, ids, ending, now) =>
      write(() => {
        fence(db, lease);
        const open = messagesOf(db, lease.conversationId, "waiting", "taken");
        for (const { id } of open)
          if (ids?.includes(id) ?? true)
            db.query("UPDATE messages SET state = 'taken' WHERE id = ?").run(id);
        endTurn(db, lease, { now, ending, settle });
      }),
    endWord: (word, now) => write(() => endWord(db, word, now)),

    waiting: (id) => messagesOf(db, id, "waiting"),
    taken: (id) => messagesOf(db, id, "taken"),
    words: () => wordsOf(db),

    append: (lease, log, now, ending) =>
      write(() => {
        fence(db, lease);
        const logged = appendEvents(db, log.sessionId, log.lastSeq, log.events);
        for (const event of log.events) project(db, lease, event, { now, ending, settle });
        return logged;
      }),
    change: (id, change) => write(() => changeConversation(db, id, change)),
    spent: (id, now) =>
      db
        .query<{ tokens: number; costUsd: number }, [string, string]>(
          "SELECT tokens, cost_usd AS costUsd FROM spending WHERE conversation_id = ? AND day = ?",
        )
        .get(id, dayOf(now)) ?? { tokens: 0, costUsd: 0 },
  };
}

// ── Turns ───────────────────────────────────────────────────────────────────────────────────────

type ConversationRow = {
  id: string;
  channel: string;
  thread: string;
  address: string;
  isolated: number;
  reply: string | null;
  session_id: string | null;
  model: string | null;
  mode: Mode | null;
  progress_id: string | null;
  open_turn: number;
  attempt: number;
  failures: number;
  faults: number;
  claims: number;
  told: number;
  last_error: string | null;
};

const toConversation = (row: ConversationRow): Conversation => ({
  id: row.id,
  channel: row.channel,
  thread: row.thread,
  address: row.address,
  isolated: row.isolated === 1,
  sessionId: row.session_id,
  model: row.model,
  mode: row.mode,
  progressId: row.progress_id,
  openTurn: row.open_turn === 1,
  failures: row.failures,
  faults: row.faults,
  claims: row.claims,
  told: row.told === 1,
  lastError: row.last_error,
  reply: row.reply === null ? null : JSON.parse(row.reply),
});

function findConversation(db: Database, id: string): Conversation | null {
  const row = db
    .query<ConversationRow, [string]>("SELECT * FROM conversations WHERE id = ?")
    .get(id);
  return row && toConversation(row);
}

/**
 * A lease that ends later than any could is from a clock that was set back since: it has ended too.
 * Its own owner never claims a conversation again that it still works on.
 */
function claim(db: Database, owner: string, now: number, leaseMs: number): Claim | null {
  const row = db
    .query<ConversationRow, Record<string, string | number>>(
      `UPDATE conversations
       SET owner = $owner, lease_until = $now + $lease, attempt = attempt + 1, claims = claims + 1,
         ready_at = NULL, session_id = coalesce(session_id, $session)
       WHERE id = coalesce(
         (SELECT id FROM conversations WHERE owner IS NOT NULL AND owner <> $owner
            AND (lease_until <= $now OR lease_until > $now + 2 * $lease) LIMIT 1),
         (SELECT id FROM conversations WHERE owner IS NULL AND ready_at <= $now
          ORDER BY ready_at LIMIT 1))
       RETURNING *`,
    )
    .get({ owner, now, lease: leaseMs, session: crypto.randomUUID() });
  if (row === null) return null;
  const lease = { conversationId: row.id, owner, attempt: row.attempt };
  return { lease, conversation: toConversation(row) };
}

function fence(db: Database, { conversationId, owner, attempt }: Lease): void {
  const row = db
    .query("SELECT 1 FROM conversations WHERE id = ? AND owner = ? AND attempt = ?")
    .get(conversationId, owner, attempt);
  if (row === null)
    throw new FencedError(`${conversationId} is worked on by somebody else by now (${attempt}).`);
}

function releaseLease(db: Database, lease: Lease, release: Release, now: number): void {
  fence(db, lease);
  const { readyAt, error, outgoing } = release;
  db.query(
    `UPDATE conversations
     SET owner = NULL, lease_until = NULL, claims = claims - 1, faults = faults + $fault,
       ready_at = coalesce(min($readyAt, ready_at), $readyAt, ready_at),
       failures = failures + ($error IS NOT NULL), last_error = coalesce($error, last_error),
       told = max(told, $tells)
     WHERE id = $id`,
  ).run({
    readyAt,
    error,
    fault: Number(release.isFault ?? false),
    tells: Number(outgoing.length > 0),
    id: lease.conversationId,
  });
  for (const row of outgoing) insertOutgoing(db, row, now);
}

function endWord(db: Database, { id, drops, change, outgoing }: EndedWord, now: number): void {
  const end = "UPDATE messages SET state = 'done', ended_at = ? WHERE id = ? AND state = 'waiting'";
  if (db.query(end).run(now, id).changes === 0) return; // done before a crash
  if (drops) {
    fence(db, drops);
    db.query(
      `UPDATE messages SET state = 'dropped', ended_at = ?
       WHERE conversation_id = ? AND state = 'waiting' AND id < ? AND kind IN ('command', 'context')`,
    ).run(now, drops.conversationId, id);
    if (change) changeConversation(db, drops.conversationId, change);
  }
  for (const row of outgoing) insertOutgoing(db, row, now);
}

type Projection = { now: number; ending: Ending | null; settle: SettleRun };

/** What an event means for the queue. */
function project(db: Database, lease: Lease, event: Event, projection: Projection): void {
  const { conversationId: id } = lease;
  if (event.type === "input") {
    for (const message of event.messages ?? [])
      db.query("UPDATE messages SET state = 'taken' WHERE id = ?").run(message);
    db.query("UPDATE conversations SET open_turn = 1 WHERE id = ?").run(id);
  }
  if (event.type === "answer") {
    const { inputTokens, outputTokens, cacheReadTokens, cacheWriteTokens } = event.usage;
    const tokens = inputTokens + outputTokens + cacheReadTokens + cacheWriteTokens;
    db.query("UPDATE conversations SET claims = 0 WHERE id = ?").run(id);
    db.query(
      `INSERT INTO spending VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE
       SET tokens = tokens + excluded.tokens, cost_usd = cost_usd + excluded.cost_usd`,
    ).run(id, dayOf(projection.now), tokens, event.costUsd ?? 0);
  }
  if (event.type === "turn_end") endTurn(db, lease, projection);
}

function endTurn(db: Database, lease: Lease, { now, ending, settle }: Projection): void {
  if (!ending) throw new Error("A turn of a conversation ended without saying how.");
  const { conversationId: id } = lease;
  const { outcome, outgoing, ifPaused } = ending;
  for (const { body } of messagesOf(db, id, "taken"))
    if (body.schedule && settle(db, body.schedule, outcome, now)?.paused && ifPaused)
      insertOutgoing(db, ifPaused, now);
  db.query(
    "UPDATE messages SET state = ?, ended_at = ? WHERE conversation_id = ? AND state = 'taken'",
  ).run(outcome.ok ? "done" : "failed", now, id);
  for (const row of outgoing) insertOutgoing(db, row, now);
  db.query(
    `UPDATE conversations
     SET owner = NULL, lease_until = NULL, open_turn = 0, failures = 0, faults = 0, claims = 0, told = 0,
       last_error = $error, session_id = CASE isolated WHEN 1 THEN NULL ELSE session_id END,
       ready_at = CASE WHEN EXISTS (SELECT 1 FROM messages WHERE conversation_id = $id
         AND state = 'waiting' AND kind <> 'context') THEN $now ELSE NULL END
     WHERE id = $id`,
  ).run({ error: outcome.ok ? null : outcome.detail, id, now });
  if (ending.sessionId !== undefined) changeConversation(db, id, { sessionId: ending.sessionId });
}

const columns = {
  sessionId: "session_id",
  model: "model",
  mode: "mode",
  progressId: "progress_id",
} as const;

function changeConversation(db: Database, id: string, change: Change): void {
  for (const [name, column] of Object.entries(columns)) {
    const value = change[name as keyof Change];
    if (value !== undefined)
      db.query(`UPDATE conversations SET ${column} = ? WHERE id = ?`).run(value, id);
  }
}

/** The machine's own day: "2026-11-21". */
export function dayOf(now: number): string {
  const date = new Date(now);
  const two = (part: number) => String(part).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}
