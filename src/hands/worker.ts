/**
 * A worker, from inside (`claw hands`: runs tools, one reply to each request) and from outside
 * (`Worker`: the process that it is, for the host).
 *
 * Invariant: inside, stdout holds replies and nothing else; no permission is asked, for the host did,
 * and there is no key to lose. Outside, every question gets an answer, also when the worker dies, and
 * a worker that stops no call is killed. The walls between the two are sandbox.ts's work.
 */
import { messageOf, UsageError } from "../errors.ts";
import type { Hands } from "../types.ts";
import { openLocalHands } from "./hands.ts";
import { lineOf, parseReply, parseRequest, readLines, readStart } from "./wire.ts";
import type { Answer, Ended, Question, Reply, Request } from "./wire.ts";

// ── Inside ──────────────────────────────────────────────────────────────────────────────────────

/** Resolves with the exit code 0 once stdin has closed and everything that ran is ended. */
export async function runHands(argv: string[]): Promise<number> {
  if (argv.length > 0 || process.stdin.isTTY)
    throw new UsageError(
      "`claw hands` is started by claw itself, in a sandbox, and takes no words.",
    );
  // A stray console.log would be a broken reply.
  for (const name of ["log", "info", "debug"] as const) console[name] = console.error;
  const lines = readLines(Bun.stdin.stream());
  const { value } = await lines.next();
  if (value === undefined) return 0;
  const first = parseRequest(value);
  if (first.type !== "open") throw new Error(`the first request is "${first.type}", not "open"`);
  const hands = openLocalHands({ roots: first.roots });
  const running = new Map<number, AbortController>();
  say({ type: "ready" });
  for await (const line of lines) take(parseRequest(line), hands, running);
  for (const controller of running.values()) controller.abort();
  await hands.close();
  return 0;
}

function take(request: Request, hands: Hands, running: Map<number, AbortController>): void {
  switch (request.type) {
    case "open":
      throw new Error("a second open: a worker has one workspace");
    case "abort":
      return running.get(request.id)?.abort();
    case "preview":
      void hands
        .preview(request.call)
        .then((patch) => say({ type: "preview", id: request.id, patch }));
      return;
    case "run": {
      const { id, call } = request;
      const controller = new AbortController();
      running.set(id, controller);
      // Hands reject with the signal's reason and with nothing else.
      void hands
        .run(call, controller.signal)
        .then((output) => say({ type: "output", id, output }))
        .catch(() => say({ type: "aborted", id }))
        .finally(() => running.delete(id));
    }
  }
}

const say = (reply: Reply): void => void process.stdout.write(lineOf(reply));

// ── Outside ─────────────────────────────────────────────────────────────────────────────────────

/** How long a worker may take to end a call, or itself. */
const GRACE_MS = 900;

/** `kill` ends it and all that it started; `exited` resolves when that is done. */
export type Child = Pick<Piped, "stdin" | "stdout" | "stderr" | "exited"> & { kill(): void };
type Piped = Bun.Subprocess<"pipe", "pipe", "pipe">;

/** A process that is a worker, or holds one: from start to end. */
export class Worker {
  readonly #child: Child;
  readonly #onLeave: (why: string) => void;
  readonly #waiting = new Map<number, (answer: Answer) => void>();
  #lastId = 0;
  #leaves = "";
  #end: Ended | null = null;
  isReady = false;
  /** Resolves when the process is gone; everybody who waits has an answer then. */
  readonly ended: Promise<void>;

  /** `onLeave` is called once, as soon as there is no use in asking any more. */
  constructor(child: Child, onLeave: (why: string) => void) {
    [this.#child, this.#onLeave] = [child, onLeave];
    this.ended = this.#listen();
  }

  async ask(question: Question, signal?: AbortSignal): Promise<Answer> {
    if (this.#end) return this.#end;
    const id = ++this.#lastId;
    const { promise, resolve } = Promise.withResolvers<Answer>();
    let late: Timer | undefined;
    const onAbort = () => {
      this.send({ type: "abort", id });
      late = setTimeout(() => this.#kill("a call that was stopped did not end"), GRACE_MS);
    };
    this.#waiting.set(id, resolve);
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      this.send({ ...question, id });
      return await promise;
    } finally {
      clearTimeout(late);
      signal?.removeEventListener("abort", onAbort);
      this.#waiting.delete(id);
    }
  }

  send(request: Request): void {
    const { stdin } = this.#child;
    const write = async () => (await stdin.write(lineOf(request)), stdin.flush());
    // Where nobody reads any more, #listen tells all who wait.
    write().catch(() => undefined);
  }

  /** Lets commands end in order, within `GRACE_MS`. */
  async end(why: string): Promise<void> {
    this.#leave(why);
    const late = setTimeout(() => this.#kill(why), GRACE_MS);
    void Promise.resolve(this.#child.stdin.end()).catch(() => undefined);
    await this.ended;
    clearTimeout(late);
  }

  #leave(why: string): void {
    if (this.#leaves) return;
    this.#leaves = why;
    this.#onLeave(why);
  }

  #kill(why: string): void {
    this.#leave(why);
    this.#child.kill();
  }

  async #listen(): Promise<void> {
    const complaint = readStart(this.#child.stderr);
    try {
      for await (const line of readLines(this.#child.stdout)) this.#take(parseReply(line));
    } catch (error) {
      this.#kill(messageOf(error));
    }
    const code = await this.#child.exited;
    this.#leave((await complaint) || `exit code ${code}`);
    this.#end = { type: "ended", isReady: this.isReady, why: this.#leaves };
    for (const answer of this.#waiting.values()) answer(this.#end);
  }

  /** A reply to what was not asked is nobody's. */
  #take(reply: Reply): void {
    if (reply.type === "ready") this.isReady = true;
    else this.#waiting.get(reply.id)?.(reply);
  }
}
