/**
 * The host's end of a box (wire.ts): puts orders in, waits for their answers, and knows after its
 * own death which of them were given.
 *
 * Invariant: of `out` only the names that are waited for are looked at, as regular files of bounded
 * size that fit a schema; whatever else lies there, links and pipes included, is nobody's, so that a
 * hijacked worker harms itself alone. Every question gets an answer, also when the worker dies.
 */
import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
} from "node:fs";
import { type FSWatcher, lstatSync, mkdirSync, renameSync, unlinkSync } from "node:fs";
import { watch, writeFileSync } from "node:fs";
import { chown } from "node:fs/promises";
import { join } from "node:path";
import { messageOf } from "../errors.ts";
import type { Print, ToolCall } from "../types.ts";
import { MESSAGE_BYTES, newKey, type Opening, type Order, parseOrder, parseReply } from "./wire.ts";
import { PRINTED_BYTES, PULSE_MS, putMessage, type Reply } from "./wire.ts";

/** Events tell of an answer at once; where they do not come, this does. */
const TICK_MS = process.platform === "linux" ? 100 : 20;

/** From here on a silent worker is asked about, and from there on it is given up. */
const SILENT_MS = 3 * PULSE_MS;
const HUNG_MS = 15_000;

/** More files than this in a second are no answers. */
const MAX_EVENTS = 5_000;

/** More of "[", "{" or "," no answer has: its texts are short, and what is long in images has none. */
const MAX_MARKS = 300_000;

/** A reply, or that the worker is gone. */
export type Answer = Reply | { type: "ended"; why: string };

/** A worker's life: `gone` is aborted with why it ended, `cause` asks, and is null while it lives. */
export type Life = { readonly gone: AbortSignal; cause(): Promise<string | null> };

export class Mailbox {
  readonly #folder: string;
  /** Orders whose answer was handed over. */
  readonly #done = new Set<string>();

  constructor(folder: string) {
    this.#folder = folder;
  }

  readonly #in = (name: string) => join(this.#folder, "in", name);
  readonly #out = (name: string) => join(this.#folder, "out", name);

  /** Empties it for a new worker; `user`: whose `out` is, where that is not us. */
  async reset(opening: Opening, user: { uid: number; gid: number } | null): Promise<void> {
    this.#done.clear();
    for (const name of ["in", "out"]) {
      await removeAll(join(this.#folder, name));
      mkdirSync(join(this.#folder, name), { recursive: true, mode: 0o755 });
    }
    if (user) await chown(join(this.#folder, "out"), user.uid, user.gid);
    putMessage(this.#in("open.json"), opening);
    this.renew();
  }

  /** Shows the worker that its host lives. */
  renew(): void {
    writeFileSync(this.#in("lease"), String(Date.now()));
  }

  /** Resolves with null when the worker is ready, or with why it never will be. */
  async opened(life: Life, limitMs: number): Promise<string | null> {
    const { promise, resolve } = Promise.withResolvers<string | null>();
    const look = () => void (this.#exists("ready") && resolve(null));
    const silence = askWhenSilent(() => 0, life, resolve, limitMs);
    const stop = this.#onChange("ready", look, silence);
    return promise.finally(stop).finally(onGone(life, resolve));
  }

  /** Gives an order; `wait` has its answer. */
  post(order: Order): string {
    const key = newKey();
    putMessage(this.#in(`${key}.json`), order);
    return key;
  }

  /** Asks that a call be ended; its answer still comes. */
  stop(key: string): void {
    writeFileSync(this.#in(`${key}.stop`), "");
  }

  /** The answer to an order, or why there will be none. */
  async wait(key: string, life: Life, onPrint?: Print): Promise<Answer> {
    const { promise, resolve } = Promise.withResolvers<Answer>();
    const end = (why: string) => {
      look(); // its last answer may have come between
      resolve({ type: "ended", why });
    };
    let seen = 0;
    const look = () => {
      if (onPrint) seen += this.#readPrinted(key, seen, onPrint);
      const answer = this.#read(key);
      if (answer) resolve(answer);
    };
    const silence = askWhenSilent(() => this.#modifiedAt("pulse"), life, end, HUNG_MS);
    const stop = this.#onChange(`${key}.json`, look, silence);
    const answer = await promise.finally(stop).finally(onGone(life, end));
    this.#done.add(key);
    return answer;
  }

  /** Forgets the orders whose answers were handed over; to be called once these are kept. */
  sweep(): void {
    for (const key of this.#done)
      for (const path of [
        this.#in(`${key}.json`),
        this.#in(`${key}.stop`),
        this.#out(`${key}.json`),
        this.#out(`${key}.text`),
      ])
        forget(path);
    this.#done.clear();
  }

  /** The order that this or an earlier host gave for a call; null: none did. */
  find({ id, name }: ToolCall): string | null {
    const orders = readdirOf(this.#in(".")).filter((one) => /^[0-9a-f].*\.json$/.test(one));
    const found = orders.find((one) => {
      const { type, call } = parseOrder(readFileSync(this.#in(one), "utf8"));
      return type === "run" && call.id === id && call.name === name;
    });
    return found?.slice(0, -".json".length) ?? null;
  }

  hasBegun(key: string): boolean {
    return this.#exists(`${key}.text`);
  }

  /** How the output of a call began. */
  printed(key: string): string {
    const parts: Uint8Array[] = [];
    this.#readPrinted(key, 0, (bytes) => parts.push(bytes));
    return Buffer.concat(parts).toString();
  }

  answer(key: string): Answer | null {
    return this.#read(key);
  }

  #read(key: string): Answer | null {
    try {
      const bytes = readBounded(this.#out(`${key}.json`), 0, MESSAGE_BYTES);
      return bytes && parseReply(checkCost(bytes.toString()));
    } catch (error) {
      return { type: "ended", why: messageOf(error) };
    }
  }

  #readPrinted(key: string, from: number, onPrint: Print): number {
    try {
      const bytes = readBounded(this.#out(`${key}.text`), from, PRINTED_BYTES);
      if (bytes?.length) onPrint(bytes);
      return bytes?.length ?? 0;
    } catch {
      return 0; // not what a worker makes: nothing was printed
    }
  }

  readonly #exists = (name: string): boolean => this.#modifiedAt(name) > 0;
  readonly #modifiedAt = (name: string): number =>
    lstatSync(this.#out(name), { throwIfNoEntry: false })?.mtimeMs ?? 0;

  /** Calls `look` now, when `name` appears, and at every tick; returns what ends that. */
  #onChange(name: string, look: () => void, onTick: (passedMs: number) => void): () => void {
    let events = 0;
    const watcher = watchFolder(this.#out("."), (changed) => {
      if (changed === name) look();
      if (++events > MAX_EVENTS) watcher?.close();
    });
    const timer = setInterval(() => {
      events = 0;
      look();
      onTick(TICK_MS);
    }, TICK_MS);
    look();
    return () => {
      watcher?.close();
      clearInterval(timer);
    };
  }
}

/**
 * What to do at every tick: as soon as `pulse` stands still, asks for the cause, and at the limit
 * gives up. Counts ticks: a machine that slept has heard no pulse either.
 */
function askWhenSilent(
  pulse: () => number,
  life: Life,
  end: (why: string) => void,
  limitMs: number,
): (passedMs: number) => void {
  let [silentMs, nextMs, last] = [0, SILENT_MS, 0];
  return (passedMs) => {
    const now = pulse();
    silentMs = now === last ? silentMs + passedMs : 0;
    if (silentMs === 0) nextMs = SILENT_MS;
    last = now;
    if (silentMs > limitMs) return end(`it did not answer for ${Math.round(limitMs / 1000)} s`);
    if (silentMs < nextMs) return;
    nextMs += 1000;
    void life.cause().then((why) => why !== null && end(why));
  };
}

/** Tells why a worker is gone, if need be at once; returns what ends that. */
function onGone({ gone }: Life, end: (why: string) => void): () => void {
  const tell = () => end(String(gone.reason));
  if (gone.aborted) tell();
  gone.addEventListener("abort", tell, { once: true });
  return () => gone.removeEventListener("abort", tell);
}

/** Of a regular file, from an offset on; null: it is not there. Throws for all else. */
function readBounded(path: string, from: number, maxBytes: number): Buffer | null {
  let file: number;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw new Error("what it gave is no file", { cause: error });
  }
  try {
    const stat = fstatSync(file);
    if (!stat.isFile()) throw new Error("what it gave is no file");
    if (stat.size > maxBytes) throw new Error(`what it gave is longer than ${maxBytes} bytes`);
    const bytes = Buffer.alloc(Math.max(0, stat.size - from));
    return bytes.subarray(0, readSync(file, bytes, 0, bytes.length, from));
  } finally {
    closeSync(file);
  }
}

/** Throws for what no tool gives and JSON.parse would take seconds and gigabytes for. */
function checkCost(text: string): string {
  const isCheap = ["[", "{", ","].every((mark) => text.split(mark, MAX_MARKS).length < MAX_MARKS);
  if (isCheap) return text;
  throw new Error("what it gave has too many parts");
}

/**
 * Removes what a worker made, however deep, and whatever it allowed; it lies aside at once, so that
 * nothing of it is ever taken for another's. A program does it: fs.rm takes hours for 30,000 levels.
 */
export async function removeAll(path: string): Promise<void> {
  if (!lstatSync(path, { throwIfNoEntry: false })) return;
  const aside = `${path}.${newKey()}`;
  renameSync(path, aside);
  const remove = 'chmod -R u+rwX "$1"; rm -rf "$1"';
  await Bun.spawn(["sh", "-c", remove, "sh", aside], { stdio: ["ignore", "ignore", "ignore"] })
    .exited;
}

const readdirOf = (path: string): string[] =>
  lstatSync(path, { throwIfNoEntry: false }) ? readdirSync(path) : [];

/** null where the machine has no more watches to give: the ticks remain. */
function watchFolder(path: string, onChange: (name: string | null) => void): FSWatcher | null {
  try {
    return watch(path, (_, name) => onChange(name));
  } catch {
    return null;
  }
}

function forget(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // It was never there, or the worker made a folder of it, which goes with the box.
  }
}
