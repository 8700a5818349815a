/**
 * The heartbeat: a schedule that reads HEARTBEAT.md of claw's home and says something only when
 * there is something to say. Off unless config gives it a time.
 *
 * Invariant: it runs isolated, in the smallest context, and no model is called while the file is
 * missing or blank.
 */
import { join } from "node:path";
import { config } from "../config.ts";
import type { Message } from "../store/queue.ts";
import type { Daemon } from "./daemon.ts";
import { quietWord } from "./prompt.ts";
import { nextSlot, readTiming } from "./slots.ts";

const id = "heartbeat";

/** Makes, changes or removes the schedule, as config says. */
export async function keepHeartbeat({ schedules, access, now, log }: Daemon): Promise<void> {
  const everyMs = config.serve.schedules.heartbeatMs;
  const [owner] = access.owners;
  const found = schedules.list().find((schedule) => schedule.id === id);
  if (found && everyMs !== null && found.spec === String(everyMs)) return;
  if (found) await schedules.remove(id);
  if (everyMs === null) return;
  if (!owner) return log("no heartbeat", { why: "CLAW_OWNER names nobody it could speak to" });
  const timing = readTiming({ every: everyMs / 1000 }, now());
  const what = { id, name: id, message: "HEARTBEAT.md", script: null, missed: "skip" } as const;
  const where = { channel: owner.channel, target: owner.address, conversationId: null };
  const how = { isolated: true, quiet: true, nextAt: nextSlot(timing, now()) };
  await schedules.add({ ...timing, ...what, ...where, ...how }, now());
}

/** What a beat tells the model; null: nothing. Undefined: the message is no beat. */
export async function readHeartbeat(
  { clawHome }: Daemon,
  { body }: Message,
): Promise<string | null | undefined> {
  if (body.schedule?.id !== id) return undefined;
  const file = Bun.file(join(clawHome, "HEARTBEAT.md"));
  const text = (await file.exists()) ? (await file.text()).trim() : "";
  if (text.replaceAll(/<!--[\s\S]*?-->|^#.*$/gm, "").trim() === "") return null;
  return `${text}\n\nIf nothing of this needs to be said or done now, answer with ${quietWord} alone.`;
}
