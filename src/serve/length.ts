/**
 * Conversations that last for months: when one has become too long, and how it is made short.
 *
 * Invariant: what was said stays in the log; only what the model is given becomes a summary.
 */
import { summarize } from "../agent/context.ts";
import type { Session } from "../agent/session.ts";
import { config } from "../config.ts";
import { messageOf, ProviderError } from "../errors.ts";
import type { Daemon } from "./daemon.ts";

/** Whether the last request filled so much of the window that the next may not fit. */
export function isFull({ events, messages, model }: Session): boolean {
  const last = events.findLast(({ event }) => event.type === "answer")?.event;
  if (last?.type !== "answer") return false;
  const { inputTokens, cacheReadTokens, cacheWriteTokens, outputTokens } = last.usage;
  const told = inputTokens + cacheReadTokens + cacheWriteTokens + outputTokens;
  const guessed = JSON.stringify(messages).length / 4; // some servers tell nothing
  return Math.max(told, guessed) > model.contextTokens * config.serve.fullAt;
}

/** A new session that begins with the summary of this one; its id. Throws as models do. */
export async function startFromSummary(
  { store, now }: Daemon,
  session: Session,
  signal: AbortSignal,
): Promise<string> {
  const summary = await summarize(session.model, session, "", signal);
  if (!summary) throw new ProviderError(`${session.model.id} gave an empty summary.`);
  const id = crypto.randomUUID();
  const { cwd, model, title, id: forkedFrom } = session.info;
  const [createdAt, updatedAt] = [now(), now()];
  await store.createSession({ id, cwd, model, title, createdAt, updatedAt, forkedFrom });
  await store.append(id, 0, [{ type: "compaction", summary }]);
  await store.releaseSession(id);
  return id;
}

/** Makes an open turn's session short in place; what cannot be done is left to the next attempt. */
export async function shorten(session: Session, signal: AbortSignal): Promise<string | null> {
  try {
    const summary = await summarize(session.model, session, "", signal);
    if (summary) await session.log({ type: "compaction", summary });
    return null;
  } catch (error) {
    signal.throwIfAborted();
    return messageOf(error);
  }
}
