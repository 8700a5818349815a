/**
 * Which conversation is worked on, and when: claims ready ones up to a limit, in the order in which
 * they became ready, and holds their leases.
 *
 * Invariants: a conversation is worked on once at a time; nobody waits for one that is stuck; a
 * message wakes its conversation at once, and time alone (a retry) by one timer. All state that has
 * to outlive the process is in the queue; what is here can be lost.
 */
import { messageOf } from "../errors.ts";
import { type Claim, FencedError, type Queue } from "../store/queue.ts";
import type { Log } from "./log.ts";

export type TurnsOptions = {
  queue: Queue;
  /** This process; see `self` in database.ts. */
  owner: string;
  maxTurns: number;
  /** Works on a claimed conversation and gives it back. Its signal says why to end early. */
  work: (claim: Claim, signal: AbortSignal) => Promise<void>;
  log: Log;
  now: () => number;
};

/** Why a turn is to end early. */
export type Cause = "word" | "shutdown";

export type Turns = {
  /** Something may be ready. */
  wake(): void;
  /** Ends the turn of a conversation, where one runs. */
  interrupt(conversationId: string): void;
  running(): { conversation: string; since: number }[];
  /** Resolves when nothing runs and nothing is ready. */
  idle(): Promise<void>;
  /** Claims nothing more, gives turns `graceMs`, then interrupts them; resolves when all have ended. */
  stop(graceMs: number): Promise<void>;
};

const LEASE_MS = 60_000;
const MAX_WAIT_MS = 60_000;
/** How long a conversation rests after a fault of ours. */
const FAULT_MS = 3_000;
/** How long nothing has to run until memory is given back. */
const REST_MS = 5_000;

type Job = { since: number; control: AbortController; ended: Promise<void> };

export function openTurns(options: TurnsOptions): Turns {
  const { queue, owner, maxTurns, work, log, now } = options;
  const jobs = new Map<string, Job>();
  let timer: ReturnType<typeof setTimeout> | undefined;
  let stopped = false;
  let claiming: Promise<void> | null = null;
  let again = false;

  const heartbeat = setInterval(() => {
    queue.extend(owner, now(), LEASE_MS).catch((error: unknown) => {
      log("leases not extended", { error: messageOf(error) });
    });
  }, LEASE_MS / 3);

  function wake(): void {
    if (claiming) again = true;
    else
      claiming = claimAll().finally(() => {
        claiming = null;
        if (again) wake();
      });
  }

  async function claimAll(): Promise<void> {
    again = false;
    clearTimeout(timer);
    try {
      while (!stopped && jobs.size < maxTurns) {
        const claim = await queue.claim(owner, now(), LEASE_MS);
        if (!claim) break;
        start(claim);
      }
      sleepUntil(queue.nextReadyAt());
    } catch (error) {
      log("queue failed", { error: messageOf(error) });
      sleepUntil(now() + FAULT_MS);
    }
  }

  function sleepUntil(at: number | null): void {
    if (stopped || at === null || jobs.size >= maxTurns) return;
    timer = setTimeout(wake, Math.min(Math.max(at - now(), 0), MAX_WAIT_MS));
  }

  function start(claim: Claim): void {
    const id = claim.conversation.id;
    const control = new AbortController();
    const ended = run(claim, control.signal).finally(() => {
      jobs.delete(id);
      wake();
      if (jobs.size === 0) rest();
    });
    jobs.set(id, { since: now(), control, ended });
  }

  let resting: ReturnType<typeof setTimeout> | undefined;
  /** Nothing has run for a while: what the turns left behind goes back to the system. */
  function rest(): void {
    clearTimeout(resting);
    resting = setTimeout(() => jobs.size === 0 && Bun.gc(true), REST_MS);
    resting.unref();
  }

  async function run(claim: Claim, signal: AbortSignal): Promise<void> {
    try {
      await work(claim, signal);
    } catch (error) {
      const conversation = claim.conversation.id;
      log("turn failed", { conversation, error: messageOf(error) });
      if (!(error instanceof FencedError)) await giveBack(claim, messageOf(error));
    }
  }

  /** Until the disk takes it: a lease that is not given back would hold the conversation. */
  async function giveBack({ lease }: Claim, error: string): Promise<void> {
    for (;;) {
      try {
        const release = { readyAt: now() + FAULT_MS, error, outgoing: [], isFault: true };
        return await queue.release(lease, release, now());
      } catch (failure) {
        if (stopped || failure instanceof FencedError) return;
        log("lease not given back", { error: messageOf(failure) });
        await Bun.sleep(FAULT_MS);
      }
    }
  }

  return {
    wake,
    interrupt: (id) => jobs.get(id)?.control.abort("word" satisfies Cause),
    running: () => [...jobs].map(([conversation, { since }]) => ({ conversation, since })),
    async idle() {
      while (claiming || jobs.size > 0)
        await Promise.all([claiming, ...[...jobs.values()].map(({ ended }) => ended)]);
    },
    async stop(graceMs) {
      stopped = true;
      clearTimeout(timer);
      clearTimeout(resting);
      const all = () => Promise.all([...jobs.values()].map(({ ended }) => ended));
      await Promise.race([all(), Bun.sleep(graceMs)]);
      for (const { control } of jobs.values()) control.abort("shutdown" satisfies Cause);
      await all();
      clearInterval(heartbeat);
    },
  };
}
