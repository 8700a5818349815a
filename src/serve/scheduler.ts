/**
 * The clock of the schedules: one timer, set to the slot that is due next.
 *
 * Invariants: what is due is read from the store each time, so that other processes may change it
 * (`changed`); a slot is fired by the store, once (schedules.ts). Slots that passed while nobody was
 * there end as one fired and one "missed", however many they were. Nothing is thrown from here: what
 * the store refuses is tried again.
 */
import { SendError } from "../channels/channel.ts";
import { config } from "../config.ts";
import { messageOf } from "../errors.ts";
import type { ConversationKey } from "../store/messages.ts";
import type { Due, Schedule, Schedules } from "../store/schedules.ts";
import { nextSlot, showTime, slotsPassed } from "./slots.ts";

export type SchedulerOptions = {
  schedules: Schedules;
  /** Where a schedule's turns happen. Throws SendError "retry" when that cannot be told now. */
  locate: (schedule: Schedule) => Promise<ConversationKey>;
  /** A message was stored in this conversation. */
  wake: (conversationId: string) => void;
  /** A schedule came to nothing, without a turn that could say so. */
  tell?: (schedule: Schedule, why: string) => void;
  log: (event: string, facts: Record<string, string | number>) => void;
  now?: () => number;
  /** Calls `work` once after `delayMs`; returns what takes that back. */
  setTimer?: (work: () => void, delayMs: number) => () => void;
};

export type Scheduler = {
  /** Begins, and resolves when what is due now has been fired or recorded. */
  catchUp(): Promise<void>;
  /** Schedules were changed. Nothing happens before `catchUp`. */
  changed(): void;
  /** Nothing new is fired. */
  stop(): void;
};

/** A slot so little late was not missed. */
const lateMs = 5000;
/** Clocks jump and machines sleep, and a timer of theirs does not say so. */
const maxSleepMs = 60_000;
/** What could not be done now is tried again after this. */
const retryMs = 30_000;

function setRealTimer(work: () => void, delayMs: number): () => void {
  const timer = setTimeout(work, delayMs);
  return () => clearTimeout(timer);
}

export function openScheduler(options: SchedulerOptions): Scheduler {
  const { schedules, log, now = Date.now, setTimer = setRealTimer } = options;
  /** Schedules that are left alone until then; Infinity while one is worked on. */
  const held = new Map<string, number>();
  const working = new Set<Promise<void>>();
  let state: "new" | "open" | "stopped" = "new";
  let clearTimer = (): void => undefined;

  function tick(): void {
    if (state !== "open") return;
    for (const [id, until] of held) if (until <= now()) held.delete(id);
    let due: Due[] = [];
    try {
      due = schedules.due(now());
    } catch (error) {
      log("schedules unread", { error: messageOf(error) });
    }
    for (const slot of due) if (!held.has(slot.id)) start(slot);
    arm();
  }

  function start(slot: Due): void {
    held.set(slot.id, Infinity);
    const work = pass(slot, options, now())
      .catch((error: unknown) => {
        log("schedule put off", { schedule: slot.id, error: messageOf(error) });
        return retryMs;
      })
      .then((waitMs) => {
        held.set(slot.id, now() + waitMs);
        working.delete(work);
        tick();
      });
    working.add(work);
  }

  function arm(): void {
    clearTimer();
    const wake = Math.min(...held.values(), earliest() ?? Infinity);
    clearTimer = setTimer(tick, Math.min(Math.max(wake - now(), 0), maxSleepMs));
  }

  function earliest(): number | null {
    try {
      return schedules.earliest([...held.keys()]);
    } catch {
      return now() + retryMs; // tick has said so, or will
    }
  }

  return {
    async catchUp() {
      if (state === "new") state = "open";
      tick();
      while (working.size > 0) await Promise.all(working);
    },
    changed: tick,
    stop() {
      state = "stopped";
      clearTimer();
    },
  };
}

/** Fires or records what is due of one schedule. Resolves with how long to leave it alone. */
async function pass(slot: Due, options: SchedulerOptions, now: number): Promise<number> {
  const { schedule, slotAt, asked } = slot;
  if (asked) return fire(slot, schedule.nextAt, options);
  const { count, latest } = slotsPassed(schedule, slotAt - 1, now);
  const nextAt = nextSlot(schedule, now);
  if (latest === null) {
    await options.schedules.move(schedule, nextAt); // a failure put it off to between two slots
    return 0;
  }
  const { graceMs } = config.serve.schedules;
  const isFired = now - latest < (schedule.missed === "once" ? Math.max(graceMs, lateMs) : lateMs);
  const missed = isFired ? count - 1 : count;
  if (missed === 0) return fire({ ...slot, slotAt: latest }, nextAt, options);

  const first = nextSlot(schedule, slotAt - 1) ?? slotAt;
  const since = showTime(first, schedule.timeZone);
  const why = `${missed}${count < 100 ? "" : " or more"} missed, the first at ${since}.`;
  const passing = { nextAt: isFired ? latest : nextAt, now };
  if (await options.schedules.miss({ ...slot, slotAt: first }, why, passing))
    options.log("schedule missed", { schedule: slot.id, slots: missed });
  return 0; // and what is to be fired is due again
}

async function fire(slot: Due, nextAt: number | null, options: SchedulerOptions): Promise<number> {
  const { schedules, locate, wake, log, now = Date.now } = options;
  const { id, schedule, slotAt } = slot;
  let to: ConversationKey;
  try {
    to = await locate(schedule);
  } catch (error) {
    return giveUp(slot, error, nextAt, options);
  }
  if (await schedules.fire(slot, to, { nextAt, now: now() })) {
    log("schedule fired", { schedule: id, conversation: to.id, lateMs: now() - slotAt });
    wake(to.id);
  }
  return 0;
}

/** There is no place for a slot: for now, which is waited for, or for good. */
async function giveUp(
  slot: Due,
  error: unknown,
  nextAt: number | null,
  { schedules, log, tell, now = Date.now }: SchedulerOptions,
): Promise<number> {
  const { id, schedule, slotAt } = slot;
  const why = messageOf(error);
  const isForNow = error instanceof SendError && error.kind === "retry";
  if (isForNow && now() - slotAt < config.serve.schedules.graceMs) {
    log("schedule put off", { schedule: id, error: why });
    return error.afterMs ?? retryMs;
  }
  log("schedule failed", { schedule: id, error: why });
  const settled = await schedules.fail(slot, why, { nextAt, now: now() });
  if (settled && (settled.paused || schedule.kind === "once")) tell?.(schedule, why);
  return 0;
}
