/**
 * What was typed and waits: prompts, commands, shell commands, in the order they were typed. Nothing
 * leaves it but to be run, or to go back into the input.
 */
import type { ImagePart, TextPart } from "../types.ts";

/** An input as it is sent: its parts, and what is said about its attachments. */
export type Prepared = { parts: (TextPart | ImagePart)[]; notes: string[] };

export type Queued = {
  kind: "prompt" | "shell" | "command";
  text: string;
  /** The text as it is shown. */
  label: string;
  /** A prompt's mentions, read; `done` is null until they are. */
  prepared: Promise<Prepared> | null;
  done: Prepared | null;
};

export class Queue {
  #items: Queued[] = [];

  get labels(): string[] {
    return this.#items.map(({ label }) => label);
  }

  get isEmpty(): boolean {
    return this.#items.length === 0;
  }

  /** Adds what was typed; `prepare` is called for a prompt. */
  push(kind: Queued["kind"], text: string, label: string, prepare: () => Promise<Prepared>): void {
    const item: Queued = { kind, text, label, prepared: null, done: null };
    this.#items.push(item);
    if (kind !== "prompt") return;
    item.prepared = prepare().then((done) => (item.done = done));
  }

  shift(): Queued | undefined {
    return this.#items.shift();
  }

  /** The prompts at its head that are ready; a command there waits for the turn's end. */
  takeReady(): { item: Queued; prepared: Prepared }[] {
    const taken: { item: Queued; prepared: Prepared }[] = [];
    for (let item = this.#items[0]; item?.done; item = this.#items[0]) {
      this.#items.shift();
      taken.push({ item, prepared: item.done });
    }
    return taken;
  }

  /** Empties it and returns the texts. */
  takeBack(): string[] {
    return this.#items.splice(0).map(({ text }) => text);
  }
}
