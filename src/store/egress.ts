/**
 * What left the sandboxes: a row a request, of whom, where to and how much, and never what was said.
 * Every SQL statement about it.
 */
import type { Opened } from "./database.ts";

export type EgressRow = {
  conversation: string;
  /** When it began, and how long it took. */
  at: number;
  ms: number;
  /** The route's name; null where none was found. */
  route: string | null;
  method: string;
  host: string;
  /** Without a query. */
  path: string;
  status: number;
  /** Of bodies, seen from the sandbox. */
  bytesSent: number;
  bytesReceived: number;
  /** Why it was refused or broke off. */
  why: string | null;
};

export interface EgressLog {
  add(row: EgressRow): Promise<void>;
  /** What a conversation used since the midnight before `now`, of this machine's clock. */
  spent(conversation: string, now: number): { requests: number; bytes: number };
  /** The newest first. */
  list(limit: number): EgressRow[];
  /** Removes the rows of before `at`. */
  forget(at: number): Promise<void>;
}

export function egressIn({ db, write }: Opened): EgressLog {
  return {
    add: (row) =>
      write(() => {
        db.query(
          `INSERT INTO egress (conversation_id, at, ms, route, method, host, path, status, bytes_sent,
             bytes_received, why) VALUES ($conversation, $at, $ms, $route, $method, $host, $path,
             $status, $bytesSent, $bytesReceived, $why)`,
        ).run(row);
      }),
    spent: (conversation, now) =>
      db
        .query<{ requests: number; bytes: number }, [string, number]>(
          `SELECT count(*) AS requests,
             coalesce(sum(bytes_sent + bytes_received), 0) AS bytes
           FROM egress WHERE conversation_id = ? AND at >= ?`,
        )
        .get(conversation, new Date(now).setHours(0, 0, 0, 0)) ?? { requests: 0, bytes: 0 },
    list: (limit) =>
      db
        .query<EgressRow, [number]>(
          `SELECT conversation_id AS conversation, at, ms, route, method, host, path, status,
             bytes_sent AS bytesSent, bytes_received AS bytesReceived, why
           FROM egress ORDER BY id DESC LIMIT ?`,
        )
        .all(limit),
    forget: (at) => write(() => void db.query("DELETE FROM egress WHERE at < ?").run(at)),
  };
}
