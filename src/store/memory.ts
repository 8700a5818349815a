/**
 * Small things that outlive a session: what a conversation was told to remember, and notes that a
 * channel keeps for itself (a mailbox cursor). Every SQL statement about them.
 *
 * Invariant: a memory belongs to one conversation and is never shown in another.
 */
import type { Opened } from "./database.ts";

export interface Memory {
  /** A fact once; the same text again changes nothing. */
  remember(conversationId: string, text: string, now: number): Promise<void>;
  /** The newest 200, oldest first. */
  memories(conversationId: string): string[];
  /** null where nothing was written. */
  readNote(name: string): unknown;
  writeNote(name: string, note: unknown): Promise<void>;
}

export function memoryIn({ db, write }: Opened): Memory {
  return {
    readNote: (name) => {
      const row = db
        .query<{ body: string }, [string]>("SELECT body FROM notes WHERE name = ?")
        .get(name);
      return row === null ? null : JSON.parse(row.body);
    },
    writeNote: (name, note) =>
      write(() => {
        db.query("INSERT OR REPLACE INTO notes VALUES (?, ?)").run(name, JSON.stringify(note));
      }),
    remember: (id, text, now) =>
      write(() => {
        db.query("INSERT OR IGNORE INTO memories (conversation_id, text, at) VALUES (?, ?, ?)").run(
          id,
          text,
          now,
        );
      }),
    memories: (id) =>
      db
        .query<{ text: string }, [string]>(
          "SELECT text FROM memories WHERE conversation_id = ? ORDER BY id DESC LIMIT 200",
        )
        .all(id)
        .map(({ text }) => text)
        .toReversed(),
  };
}
