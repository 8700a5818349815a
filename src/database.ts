/**
 * The database file: opens it durably, brings its schema up to date, turns SQLite's errors into
 * sentences, and tells processes apart. What is in the tables is store.ts's business.
 *
 * Migrations are append-only and each runs in one transaction with its version number, so a kill in
 * the middle leaves the old schema.
 */
import { Database, SQLiteError } from "bun:sqlite";
import { chmodSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { messageOf, UsageError } from "./errors.ts";

/** Migration n brings the file from version n to n + 1. Append only; never edit one that shipped. */
const migrations: readonly string[] = [
  `CREATE TABLE sessions (
     id TEXT PRIMARY KEY,
     cwd TEXT NOT NULL,
     model TEXT NOT NULL,
     title TEXT NOT NULL,
     forked_from TEXT,
     created_at INTEGER NOT NULL,
     updated_at INTEGER NOT NULL,
     owner TEXT
   );
   CREATE INDEX sessions_by_cwd ON sessions (cwd, updated_at);
   CREATE TABLE events (
     id INTEGER PRIMARY KEY,
     session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
     seq INTEGER NOT NULL,
     at INTEGER NOT NULL,
     type TEXT NOT NULL,
     body TEXT NOT NULL,
     UNIQUE (session_id, seq)
   );
   CREATE INDEX inputs ON events (id) WHERE type = 'input';
   CREATE VIRTUAL TABLE words USING fts5 (text);
   CREATE TABLE rules (
     workspace TEXT NOT NULL,
     kind TEXT NOT NULL CHECK (kind IN ('allow', 'ask', 'deny')),
     rule TEXT NOT NULL,
     PRIMARY KEY (workspace, kind, rule)
   );`,
];

/** The home is ours alone: rules and sessions that others can write would be theirs to command. */
function checkHome(clawHome: string): void {
  try {
    mkdirSync(clawHome, { recursive: true, mode: 0o700 });
    const stat = statSync(clawHome);
    if (!stat.isDirectory()) throw new Error("it is not a folder");
    const uid = process.getuid?.();
    if (uid === undefined) return;
    if (stat.uid !== uid) throw new Error(`it belongs to user ${stat.uid}, not to ${uid}`);
    if (stat.mode & 0o022) throw new Error("others can write to it (chmod 700 would end that)");
    if (stat.mode & 0o077) chmodSync(clawHome, 0o700);
  } catch (error) {
    throw new UsageError(
      `claw cannot keep its state in ${clawHome}: ${messageOf(error)}. ` +
        "Mend that, or set CLAW_HOME to another folder.",
    );
  }
}

/** Opens `claw.db` in the folder `clawHome`, which is made (mode 0700) if need be. */
export function openDatabase(clawHome: string): { db: Database; path: string } {
  checkHome(clawHome);
  const path = join(clawHome, "claw.db");
  try {
    const db = new Database(path, { create: true, strict: true });
    db.run("PRAGMA busy_timeout = 5000");
    db.run("PRAGMA journal_mode = WAL");
    db.run("PRAGMA synchronous = FULL");
    db.run("PRAGMA foreign_keys = ON");
    db.run("PRAGMA trusted_schema = OFF");
    migrate(db, path);
    return { db, path };
  } catch (error) {
    throw explain(error, path);
  }
}

function migrate(db: Database, path: string): void {
  const version = () =>
    db.query<{ user_version: number }, []>("PRAGMA user_version").get()?.user_version ?? 0;
  if (version() === migrations.length) return;
  db.transaction(() => {
    const from = version(); // again, under the lock: another process may have been faster
    if (from > migrations.length)
      throw new UsageError(
        `${path} was written by a newer claw (version ${from}; this one knows ` +
          `${migrations.length}). Update claw, or set CLAW_HOME to another folder.`,
      );
    for (const sql of migrations.slice(from)) db.run(sql);
    db.run(`PRAGMA user_version = ${migrations.length}`);
  }).immediate();
}

/** SQLite's errors that a person can do something about, as sentences; the others as they are. */
export function explain(error: unknown, path: string): unknown {
  if (!(error instanceof SQLiteError)) return error;
  const code = error.code ?? "";
  if (code.startsWith("SQLITE_FULL"))
    return new Error(`The disk is full: ${path} could not be written. Free some space and go on.`);
  if (code.startsWith("SQLITE_CORRUPT") || code.startsWith("SQLITE_NOTADB"))
    return new UsageError(
      `${path} is damaged (${error.message}). Move it away and claw starts a new one; ` +
        `\`sqlite3 ${path} .recover\` may save what is in it.`,
    );
  if (code.startsWith("SQLITE_CANTOPEN") || code.startsWith("SQLITE_READONLY"))
    return new UsageError(
      `${path} cannot be written (${error.message}). Check its owner and mode, or set CLAW_HOME.`,
    );
  return new Error(`${path}: ${error.message}`, { cause: error });
}

/** A process, so that a reused pid is not taken for it: "pid:start time". */
export const self = () => (ownIdentity ??= `${process.pid}:${startOf(process.pid)}`);
let ownIdentity: string | undefined;

/** Whether the process that wrote `owner` still runs. */
export function isAlive(owner: string): boolean {
  const [pid = "", start] = owner.split(":");
  try {
    process.kill(Number(pid), 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EPERM") return false;
  }
  return startOf(Number(pid)) === start;
}

/** Linux: clock ticks from boot to the start of the process. Elsewhere "", and the pid decides. */
function startOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
  } catch {
    return ""; // no /proc, or the process is gone: then kill() above has said so
  }
}
