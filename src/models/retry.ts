/**
 * Attempts at one model call: when to try again, how long to wait, when to give up.
 *
 * Invariant: once something of an answer was yielded, nothing is tried again. A wait lasts as long
 * as the server says, else 0.5 s, 1 s, 2 s … 10 s with jitter. A stream in which nothing arrives
 * for `stallMs`, before the first byte or between two, is given up.
 */
import { setTimeout as sleepFor } from "node:timers/promises";
import type { config } from "../config.ts";
import { ProviderError } from "../errors.ts";
import type { Delta, ModelAnswer } from "../types.ts";
import {
  AttemptError,
  briefly,
  explain,
  failureIn,
  isPassing,
  quote,
  serverDelayMs,
  type Endpoint,
} from "./failure.ts";

export type Limits = Pick<typeof config.limits, "stallMs" | "retryForMs" | "retryAfterMaxMs">;

export type Clock = {
  now(): number;
  sleep(ms: number, signal: AbortSignal): Promise<void>;
  /** 0 ≤ x < 1. */
  random(): number;
};

/** Runs once against the wire. `alive` is to be called whenever bytes arrive. */
export type Attempt = (
  signal: AbortSignal,
  alive: () => void,
) => AsyncIterable<Delta | ModelAnswer>;

/**
 * Yields what the first attempt that comes through yields, with a `retry` delta before each wait.
 * Throws `ProviderError` when the failure is final, the signal's reason when it is aborted.
 */
export async function* withRetries(
  attempt: Attempt,
  endpoint: Endpoint,
  limits: Limits,
  signal: AbortSignal,
  clock: Clock = systemClock,
): AsyncGenerator<Delta | ModelAnswer> {
  const startedAt = clock.now();
  for (let tries = 1; ; tries++) {
    let shownChars = 0;
    try {
      for await (const output of tryOnce(attempt, limits.stallMs, signal)) {
        shownChars += charsOf(output);
        yield output;
      }
      return;
    } catch (error) {
      const failure = failureIn(error);
      if (!failure) throw error;
      if (shownChars > 0) throw brokenOff(failure, endpoint, shownChars);
      const waitedMs = clock.now() - startedAt;
      const delayMs = delayBefore(failure, tries, waitedMs, limits, clock);
      if (delayMs === null) throw await explain(failure, endpoint, tries);
      yield { type: "retry", attempt: tries, delayMs, cause: briefly(failure, endpoint) };
      await clock.sleep(delayMs, signal);
    }
  }
}

/** One attempt, which ends with `signal`, and when nothing arrives for `stallMs`. */
async function* tryOnce(attempt: Attempt, stallMs: number, signal: AbortSignal) {
  const own = new AbortController();
  const stall = () => own.abort(new AttemptError("stall", `${stallMs / 1000} s`));
  const timer = setTimeout(stall, stallMs);
  const either = AbortSignal.any([signal, own.signal]);
  try {
    yield* attempt(either, () => void timer.refresh());
  } catch (error) {
    throw either.aborted ? either.reason : error;
  } finally {
    clearTimeout(timer);
    own.abort(); // drops the connection, should it still be open
  }
}

function charsOf(output: Delta | ModelAnswer): number {
  if (output.type === "text_delta" || output.type === "thinking_delta") return output.text.length;
  return output.type === "tool_delta" ? Math.max(1, output.chars) : 0;
}

function brokenOff(failure: AttemptError, endpoint: Endpoint, chars: number): ProviderError {
  const why = failure.kind === "stall" ? `sent nothing more for ${failure.detail}` : "broke off";
  const sentence = `The stream from ${endpoint.provider} ${why} after ${chars} characters.${quote(failure, endpoint)} Say "go on" to continue from what is there.`;
  return new ProviderError(sentence, failure.status, failure);
}

// ── Waiting ─────────────────────────────────────────────────────────────────────────────────────

/** How long to wait before the next attempt; null: give up. */
function delayBefore(
  failure: AttemptError,
  tries: number,
  waitedMs: number,
  limits: Limits,
  clock: Clock,
): number | null {
  if (!isPassing(failure)) return null;
  const backoffMs = Math.min(500 * 2 ** (tries - 1), 10_000) * (0.75 + clock.random() / 2);
  const saidMs = serverDelayMs(failure, clock.now());
  if (saidMs !== null) {
    // A server that says "at once" for ever is still not to be hammered.
    const delayMs = Math.max(saidMs, backoffMs / 4);
    return waitedMs + delayMs <= limits.retryAfterMaxMs ? delayMs : null;
  }
  // A stall may be longer than the whole time to retry in; it still gets one more attempt.
  if (failure.kind === "stall" && tries === 1) return backoffMs;
  return waitedMs + backoffMs <= limits.retryForMs ? backoffMs : null;
}

const systemClock: Clock = {
  now: () => performance.timeOrigin + performance.now(),
  random: () => Math.random(),
  sleep: async (ms, signal) => {
    await sleepFor(ms, null, { signal }).catch(() => signal.throwIfAborted());
  },
};
