/**
 * What a failed turn comes to: whether it is tried again, when, and what the person is told. Pure.
 *
 * Invariant: a provider that is down is waited for, however long that takes; what the provider
 * refuses is tried a few times and then told, since waiting does not mend it.
 */
import { config } from "../config.ts";
import { messageOf, ProviderError } from "../errors.ts";
import { OverflowError } from "../models/failure.ts";

export type FailureClass = "down" | "overflow" | "refused";

export function classify(error: unknown): FailureClass {
  if (error instanceof OverflowError) return "overflow";
  if (!(error instanceof ProviderError)) return "refused";
  const { status } = error;
  const isPassing = status === null || status >= 500 || [408, 409, 429].includes(status);
  return isPassing ? "down" : "refused";
}

/** How long the next attempt waits, after `failures` before this one. */
export function waitMs(kind: FailureClass, failures: number): number {
  if (kind === "down") return Math.min(5_000 * 3 ** Math.min(failures, 10), 3_600_000);
  return kind === "overflow" ? 0 : 1_000 * 4 ** failures;
}

export const isLast = (kind: FailureClass, failures: number): boolean =>
  kind !== "down" && failures + 1 >= config.serve.maxFailures;

export const tellDown = (model: string, error: unknown): string =>
  `I cannot reach my model (${model}): ${messageOf(error)} Your message is safe and I keep trying; **stop** ends that.`;

export const tellGivenUp = (model: string, cause: string): string =>
  `I could not answer this. ${model}: ${cause} I tried ${config.serve.maxFailures} times and let it go; what you wrote is not part of our conversation any more. Send it again once that is mended.`;
