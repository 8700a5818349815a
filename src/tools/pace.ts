/**
 * How a long computation shares the process: it rests now and then, so that the event loop runs and
 * an abort is seen, and it ends when its time is over.
 */
import { config } from "../config.ts";

const PAUSE_MS = 20;

export class Pace {
  /** The time is over: what is done so far has to do. */
  isOver = false;
  readonly #end = performance.now() + config.limits.searchMs;
  readonly #signal: AbortSignal | null;
  #next = performance.now() + PAUSE_MS;

  /** Throws the signal's reason when aborted, as `rest` does. */
  constructor(signal: AbortSignal | null) {
    signal?.throwIfAborted();
    this.#signal = signal;
  }

  isDue(): boolean {
    return performance.now() > this.#next;
  }

  async rest(forMs = 0): Promise<void> {
    await (forMs > 0 ? Bun.sleep(forMs) : new Promise((wake) => setImmediate(wake)));
    this.#signal?.throwIfAborted();
    const now = performance.now();
    this.#next = now + PAUSE_MS;
    this.isOver = now > this.#end;
  }
}
