/**
 * A schedule's script: a command in the conversation's hands that decides whether the model is
 * called at all. Its last line is {"wake": true|false, "data"?}.
 */
import type { Message, Outcome } from "../queue.ts";
import type { Hands } from "../types.ts";
import type { Work } from "./daemon.ts";
import { letter } from "./letters.ts";
import { readGate } from "./schedule-tool.ts";

/** Whether the turn is to go on; the script's output is then part of the message. */
export async function runGate(work: Work, batch: Message[], hands: Hands): Promise<boolean> {
  const [message] = batch;
  const script = message?.body.schedule?.script;
  if (!message || !script) return true;
  const call = {
    type: "tool_call",
    id: crypto.randomUUID(),
    name: "Bash",
    input: { command: script },
  } as const;
  const output = await hands.run(call, work.signal);
  const gate = output.isError ? { error: output.content } : readGate(output.content);
  const { daemon, conversation, lease } = work;
  if ("error" in gate) {
    const detail = `The script of schedule "${message.body.schedule?.name}" failed: ${gate.error.slice(0, 500)}`;
    await conclude({ ok: false, detail, costUsd: 0 }, detail);
    return false;
  }
  daemon.log("script", { conversation: conversation.id, wake: gate.wake });
  if (gate.wake) {
    if (gate.data !== undefined) message.body.context = JSON.stringify(gate.data);
    return true;
  }
  await conclude({ ok: true, detail: null, costUsd: 0, skipped: true }, null);
  return false;

  function conclude(outcome: Outcome, sentence: string | null): Promise<void> {
    const outgoing = sentence === null ? [] : letter(work, crypto.randomUUID(), sentence);
    return daemon.queue.conclude(lease, [message?.id ?? 0], { outcome, outgoing }, daemon.now());
  }
}
