/**
 * Shares the files of a search out to several threads, since its time goes into system calls that one
 * thread waits for one by one. A small search starts no thread.
 *
 * Invariant: the result does not depend on the threads. Shares are merged in the order of the files,
 * and what was given to a thread that does not start, or dies, is done here. A thread's module is
 * named by its whole URL: a relative one would be looked for in the folder claw was started in, and
 * run whatever lies there.
 */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import type { Pace } from "./pace.ts";
import { type Share, type Task, workOn } from "./task.ts";
import type { Path } from "./walk.ts";

export type Batch = { number: number; paths: Path[] };
export type Reply = { number: number; share: Share };

const BATCH_FILES = 100;
/** So many batches are done before threads are worth their start. */
const BATCHES_ALONE = 8;
/** A thread has so many, lest it wait for the next one. */
const BATCHES_AHEAD = 2;
const MAX_THREADS = 4;

/** In the binary the modules that are bundled together have no folders, entry points do. */
const THREAD_URL = new URL(
  Bun.isStandaloneExecutable ? "./tools/thread.js" : "./thread.ts",
  import.meta.url,
);

/** Merges the shares of all `paths`, or of those that there was time for. */
export async function shareOut(
  task: Task,
  paths: Iterator<Path>,
  pace: Pace,
  merge: (share: Share) => void,
): Promise<void> {
  const work = workOn(task);
  const deliver = inOrder(merge);
  const crew: Thread[] = [];
  let count = 0;
  try {
    while (!pace.isOver) {
      if (count === BATCHES_ALONE) crew.push(...startThreads(task, deliver));
      const batch = crew.find((thread) => thread.isDead)?.takeBack() ?? takeBatch(paths, count);
      if (batch?.number === count) count++;
      const free = crew.find((thread) => thread.isFree);
      if (batch && free) free.send(batch);
      else if (batch) deliver({ number: batch.number, share: await work(batch.paths, pace) });
      else if (crew.every((thread) => thread.isIdle)) break;
      if (crew.length > 0 || pace.isDue()) await pace.rest(batch ? 0 : 1);
    }
  } finally {
    for (const thread of crew) thread.end();
  }
}

function takeBatch(paths: Iterator<Path>, number: number): Batch | null {
  const batch: Batch = { number, paths: [] };
  while (batch.paths.length < BATCH_FILES) {
    const { done, value } = paths.next();
    if (done) break;
    batch.paths.push(value);
  }
  return batch.paths.length > 0 ? batch : null;
}

/** Takes shares as they come, and merges them by their number. */
function inOrder(merge: (share: Share) => void): (reply: Reply) => void {
  const early = new Map<number, Share>();
  let next = 0;
  return ({ number, share }) => {
    early.set(number, share);
    for (let due = early.get(next); due; due = early.get(next)) {
      early.delete(next++);
      merge(due);
    }
  };
}

function startThreads(task: Task, deliver: (reply: Reply) => void): Thread[] {
  const count = Math.min(MAX_THREADS, availableParallelism()) - 1;
  return Array.from({ length: count }, () => new Thread(task, deliver));
}

class Thread {
  isDead = false;
  readonly #worker: Worker;
  readonly #batches = new Map<number, Batch>();

  constructor(task: Task, deliver: (reply: Reply) => void) {
    this.#worker = new Worker(THREAD_URL, { workerData: task });
    this.#worker.on("message", (reply: Reply) => {
      if (this.#batches.delete(reply.number)) deliver(reply);
    });
    // Whatever it is, it happens here again if it is not the thread's own.
    this.#worker.on("error", () => (this.isDead = true));
    this.#worker.on("exit", () => (this.isDead = true));
  }

  get isIdle(): boolean {
    return this.#batches.size === 0;
  }

  get isFree(): boolean {
    return !this.isDead && this.#batches.size < BATCHES_AHEAD;
  }

  send(batch: Batch): void {
    this.#batches.set(batch.number, batch);
    this.#worker.postMessage(batch);
  }

  /** A batch that was not done. */
  takeBack(): Batch | undefined {
    const [batch] = this.#batches.values();
    if (batch) this.#batches.delete(batch.number);
    return batch;
  }

  end(): void {
    this.#worker.removeAllListeners();
    void this.#worker.terminate();
  }
}
