/**
 * The Schedule tool: lets a model make, see and change the schedules of its own conversation, and of
 * no other. A call that is repeated adds nothing a second time; what cannot be is a result that the
 * model reads, in the sentence that a person gets. Also reads what a schedule's script says.
 */
import { z } from "zod";
import { UsageError } from "../errors.ts";
import type { ConversationKey } from "../store/messages.ts";
import type { Change, Schedule, Schedules } from "../store/schedules.ts";
import type { Tool } from "../types.ts";
import { nextSlot, readTiming, showTime, showTiming } from "./slots.ts";

export type ScheduleToolOptions = {
  schedules: Schedules;
  conversation: ConversationKey;
  /** Whether a script may be given: outside a sandbox it would run unasked. */
  takesScripts: boolean;
  now: () => number;
  changed: () => void;
};

const text = (what: string) => z.string().optional().describe(what);
const inputSchema = z.object({
  action: z.enum(["add", "list", "pause", "resume", "cancel", "change"]),
  id: text("of the schedule to pause, resume, cancel or change"),
  name: text("a few words; also finds a schedule where there is no id"),
  message: text("what you are to do each time; it is all you will be told"),
  cron: text('"30 8 * * 1-5": minute, hour, day, month, weekday'),
  tz: text('zone of cron and at: "Europe/Berlin"; default: the owner\'s'),
  every: z.string().or(z.number()).optional().describe('"90s", "5m", "1h30m", or seconds'),
  at: text('once: "2027-01-31T09:00", with or without an offset'),
  missed: z.enum(["skip", "once"]).optional().describe("a time when claw was off; default: once"),
  script: text('a Bash command run first; its last line {"wake": true|false, "data"?} decides'),
  isolated: z.boolean().optional().describe("run without this conversation's history; cheaper"),
});
type Input = z.infer<typeof inputSchema>;

export function scheduleTool(options: ScheduleToolOptions): Tool {
  const tool: Tool<Input> = {
    name: "Schedule",
    description:
      "Messages to yourself in this conversation, by the clock. add takes message and one of cron, every, at.",
    schema: inputSchema,
    readOnly: false,
    async run(input) {
      try {
        const content = await act(input, options);
        if (input.action !== "list") options.changed();
        return { content };
      } catch (error) {
        if (error instanceof UsageError) return { content: error.message, isError: true };
        throw error;
      }
    },
  };
  return tool as Tool;
}

async function act(input: Input, options: ScheduleToolOptions): Promise<string> {
  const { schedules, conversation, now } = options;
  const { action } = input;
  const open = schedules.list().filter(({ state }) => state !== "done");
  const own = open.filter((schedule) => belongs(schedule, conversation));
  if (action === "add") return add(input, own, options);
  const lines = own.map((one) => `${showSchedule(one)}\n  ${one.message}`);
  if (action === "list") return lines.join("\n") || "There are none.";
  const schedule = findSchedule(own, input.id || input.name || "");
  const { id, name } = schedule;
  if (action === "pause") return `Paused: ${showSchedule(await schedules.pause(id))}`;
  if (action === "resume")
    return `Resumed: ${showSchedule(await resume(schedules, schedule, now()))}`;
  if (action === "change")
    return `Changed: ${showSchedule(await schedules.change(id, readChange(input, schedule, now())))}`;
  await schedules.remove(id);
  return `Cancelled: ${id}  ${name}`;
}

/** Made in it, or meant for it, or the one whose own run this is. */
function belongs(schedule: Schedule, { id, channel, address, isolated }: ConversationKey): boolean {
  const mark = isolated ? id.lastIndexOf("#") : id.length;
  if (schedule.conversationId !== null) return schedule.conversationId === id.slice(0, mark);
  const isMeant = schedule.channel === channel && schedule.target === address;
  return isMeant || schedule.id === id.slice(mark + 1);
}

async function add(input: Input, own: Schedule[], options: ScheduleToolOptions): Promise<string> {
  const { schedules, conversation, now } = options;
  const message = input.message?.trim();
  if (!message) throw new UsageError("add needs a message: what you are to do each time.");
  if (conversation.isolated) throw new UsageError("A schedule's own run adds no other schedule.");
  if (own.length >= 50) throw new UsageError("50 schedules are all a conversation may have.");
  const timing = readTiming(input, now());
  const name = input.name?.trim() || message.slice(0, 50).toWellFormed();
  const isSame = (one: Schedule) => one.name === name && one.message === message;
  const twin = own.find((one) => isSame(one) && showTiming(one) === showTiming(timing));
  if (twin) throw new UsageError(`There is this schedule already: ${showSchedule(twin)}`);
  const { channel, address: target, id: conversationId } = conversation;
  const { missed = "once", isolated = false } = input;
  const to = { channel, target, conversationId, isolated, quiet: false };
  const nextAt = nextSlot(timing, now());
  const what = { name, message, missed, script: input.script || null, nextAt };
  return `Added: ${showSchedule(await schedules.add({ ...timing, ...what, ...to }, now()))}`;
}

function readChange(input: Input, schedule: Schedule, now: number): Change {
  const { id, name, message, missed, script, isolated, tz, cron, every, at } = input;
  const change: Change = {};
  if (id && name) change.name = name;
  if (message) change.message = message;
  if (missed) change.missed = missed;
  if (script) change.script = script;
  if (isolated !== undefined) change.isolated = isolated;
  if (cron || every || at || tz) {
    const isZoneAlone = !cron && !every && !at && schedule.kind === "cron";
    const timing = readTiming(isZoneAlone ? { cron: schedule.spec, tz } : input, now);
    const begun = { nextAt: nextSlot(timing, now), state: "active" };
    Object.assign(change, timing, schedule.state === "paused" ? {} : begun);
  }
  if (Object.keys(change).length > 0) return change;
  throw new UsageError("change needs what is to be different: a message, a time, or id and name.");
}

/** By id, or by a name that only one has of those that are not done. Throws UsageError. */
export function findSchedule(among: readonly Schedule[], word: string): Schedule {
  const isNamed = ({ name, state }: Schedule) =>
    state !== "done" && name.toLowerCase() === word.toLowerCase();
  const named = among.filter((one) => one.id === word || isNamed(one));
  const [found, other] = named;
  if (found && !other) return found;
  const choices = (found ? named : among).map(({ id, name }) => `${id} (${name})`);
  const why = found ? `"${word}" is more than one schedule` : `There is no schedule "${word}"`;
  throw new UsageError(`${why}; give the id of one of these: ${choices.join(", ") || "none"}.`);
}

/** Throws UsageError where no slot is left. */
export function resume(schedules: Schedules, schedule: Schedule, now: number): Promise<Schedule> {
  const nextAt = nextSlot(schedule, now);
  if (nextAt !== null) return schedules.resume(schedule.id, nextAt);
  throw new UsageError(`The time of ${schedule.id} (${schedule.name}) has passed; make a new one.`);
}

export function showSchedule(schedule: Schedule): string {
  const { id, name, state, nextAt, timeZone, last } = schedule;
  const slot = nextAt === null ? null : nextSlot(schedule, nextAt - 1);
  const next = slot === null ? state : `next ${showTime(slot, timeZone)}`;
  const why = last?.detail ? ` (${last.detail})` : "";
  const before = last ? `; last ${showTime(last.slotAt, timeZone)} ${last.state}${why}` : "";
  return `${id}  ${name}: ${showTiming(schedule)}; ${next}${before}`;
}

/** What a script says on its last line: whether the model is to be called, and with what. */
export function readGate(output: string): { wake: boolean; data?: unknown } | { error: string } {
  const gate = z.object({ wake: z.boolean(), data: z.unknown().optional() });
  const line = output.trimEnd().split("\n").at(-1)?.trim() ?? "";
  try {
    const said: Record<string, unknown> = JSON.parse(line);
    return gate.parse({ wake: said["wakeAgent"], ...said });
  } catch {
    const got = line.slice(0, 200) || "nothing";
    return { error: `Its last line has to be {"wake": true|false, "data"?}; it was: ${got}` };
  }
}
