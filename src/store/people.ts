/**
 * Who was let in, and who knocks. Every SQL statement about people and pairing codes.
 *
 * Invariant: nobody is in this table but by the owner's word. A code is worth something for an hour,
 * once, and to nobody but the owner: it names who knocked, it is no password.
 */
import type { Database } from "bun:sqlite";
import { config } from "../config.ts";
import type { Opened } from "./database.ts";
import { UsageError } from "../errors.ts";
import { insertOutgoing, type NewOutgoing } from "./outbox.ts";

export type Pairing = {
  code: string;
  channel: string;
  address: string;
  name: string;
  expiresAt: number;
};

export interface People {
  isKnown(channel: string, address: string): boolean;
  /** A new code for a stranger, with the rows that tell of it; null: nothing is to be said (limits). */
  knock(
    channel: string,
    address: string,
    name: string,
    now: number,
    tell: (code: string) => readonly NewOutgoing[],
  ): Promise<string | null>;
  /** Codes that wait for the owner's word. */
  waiting(now: number): Pairing[];
  /** Lets the knocker of a code in, or not. Throws UsageError for a code that is not open. */
  decide(code: string, approved: boolean, now: number): Promise<Pairing>;
}

export function peopleIn({ db, write }: Opened): People {
  return {
    isKnown: (channel, address) =>
      db.query("SELECT 1 FROM people WHERE channel = ? AND address = ?").get(channel, address) !==
      null,
    knock: (channel, address, name, now, tell) =>
      write(() => {
        const code = knock(db, channel, address, name, now);
        if (code !== null) for (const row of tell(code)) insertOutgoing(db, row, now);
        return code;
      }),
    waiting: (now) => waiting(db, now),
    decide: (code, approved, now) => write(() => decide(db, code, approved, now)),
  };
}

const { validMs, maxOpen, perSenderMs } = config.serve.pairing;

function knock(db: Database, channel: string, address: string, name: string, now: number) {
  const last = db
    .query<{ at: number | null }, [string, string]>(
      "SELECT max(created_at) AS at FROM pairings WHERE channel = ? AND address = ?",
    )
    .get(channel, address);
  if (last?.at && last.at > now - perSenderMs) return null;
  if (waiting(db, now).filter((pairing) => pairing.channel === channel).length >= maxOpen)
    return null;
  const code = newCode();
  db.query("INSERT INTO pairings VALUES (?, ?, ?, ?, ?, ?, 'open')").run(
    code,
    channel,
    address,
    name,
    now,
    now + validMs,
  );
  return code;
}

/** Eight letters and digits that are hard to confuse: 32^8 codes. */
function newCode(): string {
  const signs = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
  return [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => signs[byte % 32]).join("");
}

const waiting = (db: Database, now: number): Pairing[] =>
  db
    .query<Pairing, [number]>(
      `SELECT code, channel, address, name, expires_at AS expiresAt FROM pairings
       WHERE state = 'open' AND expires_at > ? ORDER BY created_at`,
    )
    .all(now);

function decide(db: Database, code: string, approved: boolean, now: number): Pairing {
  const wanted = code.trim().toUpperCase();
  const pairing = waiting(db, now).find((one) => one.code === wanted);
  if (!pairing)
    throw new UsageError(
      `No pairing code "${code}" waits: it is wrong, used, or older than an hour. \`claw pair list\` shows those that do.`,
    );
  db.query("UPDATE pairings SET state = ? WHERE code = ?").run(
    approved ? "approved" : "denied",
    wanted,
  );
  if (approved)
    db.query("INSERT OR REPLACE INTO people VALUES (?, ?, ?, ?)").run(
      pairing.channel,
      pairing.address,
      pairing.name,
      now,
    );
  return pairing;
}
