/**
 * Schedules and the history of their runs. Every SQL statement about the two.
 *
 * Invariants: a slot is one row of `runs`, its key (schedule, slot), written in one transaction with
 * the message it causes and with the schedule's next slot: neither a restart nor a second daemon
 * fires it again. Whoever moves a schedule on names the slot it saw: after a change by somebody else
 * it moves nothing. When slots are is not known here (serve/slots.ts).
 */
import type { Database } from "bun:sqlite";
import { config } from "../config.ts";
import type { Opened } from "./database.ts";
import { UsageError } from "../errors.ts";
import { type ConversationKey, storeMessage } from "./messages.ts";
import type { Outcome } from "./queue.ts";

/**
 * When. `spec` is a cron expression; or milliseconds, at anchorAt + n × spec for n from 1; or one
 * time. All times are milliseconds since 1970; `timeZone` is also the zone they are shown in.
 */
export type Timing = {
  kind: "cron" | "every" | "once";
  spec: string;
  timeZone: string;
  anchorAt: number;
};

export type Run = {
  slotAt: number;
  /** queued: its message is stored. skipped: there was nothing to do, or no need. */
  state: "queued" | "done" | "failed" | "missed" | "skipped";
  /** 0: asked for, and not fired yet. */
  startedAt: number;
  endedAt: number | null;
  costUsd: number | null;
  detail: string | null;
};

export type Schedule = Timing & {
  id: string;
  name: string;
  /** What the model is told at each slot. */
  message: string;
  missed: "skip" | "once";
  /** A command that decides whether the model is called. */
  script: string | null;
  channel: string;
  /** Where to, as `Channel.locate` takes it. */
  target: string;
  /** The conversation it was made in; null: `target` says where. */
  conversationId: string | null;
  /** It runs in a small context of its own. */
  isolated: boolean;
  /** It is silent unless it has something to say. */
  quiet: boolean;
  state: "active" | "paused" | "done";
  /** Not before then; after a failure it may lie between two slots. */
  nextAt: number | null;
  failures: number; // in a row
  lastError: string | null;
  createdAt: number;
  last: Run | null;
};

/** A new timing comes with its `nextAt`. */
export type Change = Partial<Omit<Schedule, "id" | "createdAt" | "last">>;
type Derived = "id" | "state" | "failures" | "lastError" | "createdAt" | "last";
/** `nextAt` is the first slot; without an id it gets one of 8 letters and digits. */
export type NewSchedule = Omit<Schedule, Derived> & { id?: string };

/** A run's key; `id` is its schedule's. */
export type Slot = { id: string; slotAt: number };
/** A slot whose time has come, or (`asked`) a run that a person wants now. */
export type Due = Slot & { schedule: Schedule; asked: boolean };
/** A slot is left for the one at `nextAt`. */
export type Passing = { nextAt: number | null; now: number };
/** `paused`: by this failure. */
export type Settled = { failures: number; paused: boolean };

export type Schedules = ReturnType<typeof schedulesIn>;

export function schedulesIn({ db, ...opened }: Opened) {
  const write = <T>(work: () => T) => opened.write(work);
  return {
    add: (schedule: NewSchedule, now: number) => write(() => add(db, schedule, now)),
    /** All, oldest first, each with its last run. */
    list: (): Schedule[] => select(db, "ORDER BY created_at, rowid"),
    change: (id: string, change: Change) => write(() => update(db, id, change)),
    pause: (id: string) => write(() => update(db, id, { state: "paused", nextAt: null })),
    /** Goes on at `nextAt`, failures forgotten. */
    resume: (id: string, nextAt: number) =>
      write(() => update(db, id, { state: "active", nextAt, failures: 0, lastError: null })),
    remove: (id: string) => write(() => db.run("DELETE FROM schedules WHERE id = ?", [id])),
    /** Asks for a run now, besides the slots, in whatever state the schedule is. */
    ask: (id: string, now: number) => write(() => addRun(db, id, now, 0)),
    /** Newest first. */
    runs: (id: string, limit: number) => runsOf(db, id, limit),

    due: (now: number) => due(db, now),
    /** When the next one is due, of all but these. */
    earliest(except: readonly string[]): number | null {
      const sql = `SELECT min(next_at) AS at FROM schedules
        WHERE state = 'active' AND id NOT IN (SELECT value FROM json_each(?))`;
      return db.query<{ at: number | null }, [string]>(sql).get(JSON.stringify(except))?.at ?? null;
    },
    /** False: it was fired or changed by somebody else, or the run before it is still at work. */
    fire: (slot: Due, to: ConversationKey, passing: Passing) =>
      write(() => fire(db, slot, to, passing)),
    /** Records a slot that cannot be fired; null where it was not ours to fire. */
    fail(slot: Due, detail: string, passing: Passing) {
      const settle = () => settleRun(db, slot, { ok: false, detail, costUsd: null }, passing.now);
      return write(() => (take(db, slot, passing) ? settle() : null));
    },
    /** Records a slot that nobody was there for. */
    miss: (slot: Due, detail: string, passing: Passing) =>
      write(() => take(db, slot, passing) && endRun(db, slot, "missed", passing.now, { detail })),
    /** Moves `nextAt` to a slot. */
    move: (schedule: Schedule, nextAt: number | null) => write(() => advance(db, schedule, nextAt)),
  };
}

/**
 * Writes down how a run ended, once, inside the caller's transaction. A failure puts a repeating
 * schedule off (1 minute, doubled by each failure in a row, a day at most) and pauses it in the end.
 * null: there is no such schedule any more.
 */
export function settleRun(db: Database, run: Slot, outcome: Outcome, now: number): Settled | null {
  const [schedule] = select(db, "WHERE id = ?", run.id);
  if (!schedule) return null;
  const { ok, skipped, detail } = outcome;
  const isFirst = endRun(db, run, ok ? (skipped ? "skipped" : "done") : "failed", now, outcome);
  if (!isFirst) return { failures: schedule.failures, paused: false };
  const failures = ok ? 0 : schedule.failures + 1;
  const change: Change = { failures, lastError: ok ? null : detail };
  const paused = schedule.state === "active" && failures >= config.serve.schedules.pauseAfter;
  if (paused) Object.assign(change, { state: "paused", nextAt: null });
  else if (!ok && schedule.nextAt !== null && schedule.kind !== "once")
    change.nextAt = Math.max(schedule.nextAt, now + Math.min(30_000 * 2 ** failures, 86_400_000));
  update(db, run.id, change);
  return { failures, paused };
}

// ── Slots ───────────────────────────────────────────────────────────────────────────────────────

const isAsked = "state = 'queued' AND started_at = 0";

function due(db: Database, now: number): Due[] {
  const sql = `SELECT id, next_at AS slotAt, 0 AS asked FROM schedules
      WHERE state = 'active' AND next_at <= ?
    UNION ALL SELECT schedule_id, slot_at, 1 FROM runs WHERE ${isAsked}`;
  const slots = db.query<Slot & { asked: number }, [number]>(sql).all(now);
  return slots.flatMap((slot) => {
    const [schedule] = select(db, "WHERE id = ?", slot.id);
    return schedule ? [{ ...slot, schedule, asked: slot.asked === 1 }] : [];
  });
}

function fire(db: Database, slot: Due, to: ConversationKey, passing: Passing): boolean {
  if (!take(db, slot, passing)) return false;
  const { id, slotAt, schedule: own } = slot;
  if (isAtWork(db, slot)) {
    endRun(db, slot, "skipped", passing.now, { detail: "The run before it had not ended." });
    return false;
  }
  const { name, script, quiet } = own;
  const schedule = { id, name, slotAt, quiet, ...(script !== null && { script }) };
  const body = { text: own.message, name, files: [], problems: [], schedule };
  const as = { channel: "schedule", kind: "schedule", sender: "schedule" } as const;
  const externalId = `${id}@${slotAt}`;
  return storeMessage(db, { ...as, externalId, conversation: to, body, at: slotAt }, passing.now);
}

/** Whether this slot is still to be passed, and by this call. */
function take(db: Database, { id, slotAt, schedule, asked }: Due, passing: Passing): boolean {
  const { nextAt, now } = passing;
  if (!asked) return advance(db, schedule, nextAt) && addRun(db, id, slotAt, now);
  const sql = `UPDATE runs SET started_at = ? WHERE schedule_id = ? AND slot_at = ? AND ${isAsked}`;
  return db.query(sql).run(now, id, slotAt).changes > 0;
}

/** False: it is not active any more, or somebody else has moved it. */
function advance(db: Database, { id, nextAt: old }: Schedule, nextAt: number | null): boolean {
  const sql = `UPDATE schedules SET next_at = $next, state = iif($next IS NULL, 'done', state)
    WHERE id = $id AND state = 'active' AND next_at = $old`;
  return db.query(sql).run({ id, old, next: nextAt }).changes > 0;
}

/** By its message: a run whose message was dropped never ends. */
function isAtWork(db: Database, { id, slotAt }: Slot): boolean {
  const sql = `SELECT 1 FROM runs JOIN messages AS m
      ON m.channel = 'schedule' AND m.external_id = schedule_id || '@' || slot_at
    WHERE schedule_id = ? AND slot_at <> ? AND m.state IN ('waiting', 'taken')`;
  return db.query(sql).get(id, slotAt) !== null;
}

// ── Rows ────────────────────────────────────────────────────────────────────────────────────────

function runsOf(db: Database, id: string, limit: number): Run[] {
  const sql = `SELECT slot_at AS slotAt, state, started_at AS startedAt, ended_at AS endedAt,
    cost_usd AS costUsd, detail FROM runs WHERE schedule_id = ? ORDER BY slot_at DESC LIMIT ?`;
  return db.query<Run, [string, number]>(sql).all(id, limit);
}

/** False: there is a run of this slot. Of each schedule the newest 200 runs are kept. */
function addRun(db: Database, id: string, slotAt: number, startedAt: number): boolean {
  const old = `DELETE FROM runs WHERE schedule_id = $id AND state <> 'queued' AND slot_at <= (
    SELECT slot_at FROM runs WHERE schedule_id = $id ORDER BY slot_at DESC LIMIT 1 OFFSET 200)`;
  db.query(old).run({ id });
  const sql = `INSERT OR IGNORE INTO runs (schedule_id, slot_at, state, started_at)
    VALUES (?, ?, 'queued', ?)`;
  return db.query(sql).run(id, slotAt, startedAt).changes > 0;
}

type End = { detail: string | null; costUsd?: number | null };

/** False: it had ended already. */
function endRun(db: Database, run: Slot, state: Run["state"], now: number, how: End): boolean {
  const sql = `UPDATE runs SET state = ?, detail = ?, cost_usd = ?, ended_at = ?
    WHERE schedule_id = ? AND slot_at = ? AND state = 'queued'`;
  const { detail, costUsd = null } = how;
  return db.query(sql).run(state, detail, costUsd, now, run.id, run.slotAt).changes > 0;
}

const fields =
  "id, name, message, kind, spec, timeZone, missed, script, channel, target, conversationId, " +
  "isolated, quiet, state, anchorAt, nextAt, failures, lastError, createdAt";
const columnOf = (field: string) => field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const selected = fields.replaceAll(/\w+/g, (field) => `${columnOf(field)} AS ${field}`);

type Row = Omit<Schedule, "isolated" | "quiet" | "last"> & { isolated: number; quiet: number };

function select(db: Database, where: string, ...values: (string | number)[]): Schedule[] {
  const sql = `SELECT ${selected} FROM schedules ${where}`;
  const rows = db.query<Row, (string | number)[]>(sql).all(...values);
  return rows.map((row) => {
    const [last = null] = runsOf(db, row.id, 1);
    return { ...row, isolated: row.isolated === 1, quiet: row.quiet === 1, last };
  });
}

function add(db: Database, schedule: NewSchedule, now: number): Schedule {
  const row = { id: newId(), state: "active", createdAt: now, ...schedule };
  const names = Object.keys(row).join(", ");
  const values = names.replaceAll(/\w+/g, "$$$&");
  db.query(`INSERT INTO schedules (${columnOf(names)}) VALUES (${values})`).run(row);
  return update(db, row.id, { failures: 0 });
}

function update(db: Database, id: string, change: Change): Schedule {
  const values = Object.keys(change).map((name) => `${columnOf(name)} = $${name}`);
  db.query(`UPDATE schedules SET ${values.join()} WHERE id = $id`).run({ ...change, id });
  const [schedule] = select(db, "WHERE id = ?", id);
  if (!schedule) throw new UsageError(`There is no schedule ${id} any more.`);
  return schedule;
}

/** Easy to type: nothing that looks like another letter. */
function newId(): string {
  const letters = "abcdefghijkmnpqrstuvwxyz23456789";
  return [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => letters[byte % 32]).join("");
}
