/**
 * Whether a schedule's slot calls the model at all: its script (a command in the conversation's
 * hands whose last line is {"wake": true|false, "data"?}), or for the heartbeat its file, decides.
 */
import type { Message, Outcome } from "../store/queue.ts";
import type { Hands } from "../types.ts";
import type { Work } from "./daemon.ts";
import { readHeartbeat } from "./heartbeat.ts";
import { letter } from "./letters.ts";
import { readGate } from "./schedule-tool.ts";
import type { Cause } from "./turns.ts";

/** False: there was nothing to do, and the slot has ended. What was found is added to the message. */
export async function runGate(work: Work, batch: Message[], hands: Hands): Promise<boolean> {
  const [message] = batch;
  if (message?.kind !== "schedule") return true;
  const beat = await readHeartbeat(work.daemon, message);
  if (beat === null) return conclude(work, message, nothingToDo);
  if (beat !== undefined) message.body.text = beat;
  const { script, name } = message.body.schedule ?? {};
  if (!script) return true;
  const input = { command: script };
  const call = { type: "tool_call", id: crypto.randomUUID(), name: "Bash", input } as const;
  const output = await hands.run(call, work.signal).catch((error: unknown) => {
    if (work.signal.reason === ("word" satisfies Cause)) return null;
    throw error;
  });
  if (output === null) return conclude(work, message, { ...nothingToDo, detail: "Stopped." });
  const { content, isError } = output;
  const gate = isError ? { error: content } : readGate(content);
  if ("error" in gate) {
    const detail = `The script of the schedule "${name}" failed. ${gate.error.slice(0, 500)}`;
    return conclude(work, message, { ok: false, detail, costUsd: 0 });
  }
  work.daemon.log("script", { conversation: work.conversation.id, wake: gate.wake });
  if (!gate.wake) return conclude(work, message, nothingToDo);
  if (gate.data !== undefined) message.body.context = JSON.stringify(gate.data);
  return true;
}

const nothingToDo: Outcome = { ok: true, detail: null, costUsd: 0, skipped: true };

async function conclude(work: Work, message: Message, outcome: Outcome): Promise<false> {
  const { daemon, lease } = work;
  const isNews = !outcome.ok && !failsAgain(work, [message]);
  const outgoing = isNews ? letter(work, crypto.randomUUID(), outcome.detail ?? "") : [];
  await daemon.queue.conclude(lease, [message.id], { outcome, outgoing }, daemon.now());
  return false;
}

/** Whether these are the slot of a schedule that failed before: that was told then. */
export function failsAgain({ daemon }: Work, messages: readonly Message[]): boolean {
  const ids = messages.map(({ body }) => body.schedule?.id);
  return daemon.schedules.list().some(({ id, failures }) => ids.includes(id) && failures > 0);
}
