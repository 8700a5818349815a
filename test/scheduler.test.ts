/** Schedules over a real store, by a clock that only the tests move; and `claw cron`. */
import { expect, test } from "bun:test";
import { SendError } from "../src/channels/channel.ts";
import { openDatabase, type Opened } from "../src/store/database.ts";
import type { ConversationKey } from "../src/store/messages.ts";
import {
  type NewSchedule,
  type Schedules,
  schedulesIn,
  settleRun,
} from "../src/store/schedules.ts";
import { readGate, scheduleTool } from "../src/serve/schedule-tool.ts";
import { openScheduler, type SchedulerOptions } from "../src/serve/scheduler.ts";
import { nextSlot, readTiming, type TimingInput } from "../src/serve/slots.ts";
import { newPlace, type Place, runClaw } from "./claw.ts";

const second = 1000;
const minute = 60 * second;
const start = Date.parse("2026-11-21T09:00:00Z"); // 10:00 in Berlin
const here = { id: "slack:C1", channel: "slack", thread: "C1", address: "C1", isolated: false };

/** A clock with one alarm a scheduler; `advance` rings them in order, and lets their work end. */
function newClock() {
  const alarms = new Set<{ at: number; work: () => void }>();
  const clock = {
    at: start,
    longestMs: 0,
    now: () => clock.at,
    setTimer(work: () => void, delayMs: number) {
      const alarm = { at: clock.at + delayMs, work };
      alarms.add(alarm);
      clock.longestMs = Math.max(clock.longestMs, delayMs);
      return () => void alarms.delete(alarm);
    },
    async advance(ms: number) {
      const end = clock.at + ms;
      for (;;) {
        for (let turn = 0; turn < 30; turn++) await Promise.resolve();
        const [next] = [...alarms].toSorted((one, other) => one.at - other.at);
        if (!next || next.at > end) break;
        alarms.delete(next);
        clock.at = Math.max(clock.at, next.at);
        next.work();
      }
      clock.at = end;
    },
  };
  return clock;
}

/** A daemon's schedules over the store in `place`; `woken` in milliseconds after the start. */
function newStage(place: Place, options: Partial<SchedulerOptions> = {}, clock = newClock()) {
  const opened = openDatabase(place.clawHome);
  const schedules = schedulesIn(opened);
  const woken: number[] = [];
  const told: string[] = [];
  const scheduler = openScheduler({
    schedules,
    locate: async () => here,
    wake: () => void woken.push(clock.at - start),
    tell: (schedule, why) => void told.push(`${schedule.name}: ${why}`),
    log: () => undefined,
    now: clock.now,
    setTimer: (work, delayMs) => clock.setTimer(work, delayMs),
    ...options,
  });
  return { opened, clock, schedules, scheduler, woken, told };
}

const timed = (input: TimingInput, more: Partial<NewSchedule> = {}): NewSchedule => ({
  ...readTiming({ tz: "Europe/Berlin", ...input }, start),
  name: "tea",
  message: "Make tea.",
  missed: "once",
  script: null,
  channel: "slack",
  target: "C1",
  conversationId: null,
  isolated: false,
  quiet: false,
  nextAt: nextSlot(readTiming({ tz: "Europe/Berlin", ...input }, start), start),
  ...more,
});

const messagesIn = ({ db }: Opened) =>
  db.query<{ id: string; body: string }, []>("SELECT external_id AS id, body FROM messages").all();

/** The turn that answered the newest message ends. */
function settle(opened: Opened, id: string, ok: boolean, now: number) {
  const [run] = schedulesIn(opened).runs(id, 1);
  opened.db.run("UPDATE messages SET state = 'done'");
  const outcome = { ok, detail: ok ? null : "The model is down.", costUsd: 0.25 };
  return settleRun(opened.db, { id, slotAt: run?.slotAt ?? 0 }, outcome, now);
}

/** "2 queued, 1 missed": minutes after the start. */
function states(schedules: Schedules, id: string): string {
  const runs = schedules.runs(id, 9);
  return runs.map(({ slotAt, state }) => `${(slotAt - start) / minute} ${state}`).join(", ");
}

test("a slot becomes a message at its time, and never sleeps longer than a minute", async () => {
  using place = newPlace();
  const { opened, clock, schedules, scheduler, woken } = newStage(place);
  const secret = { script: "true", quiet: true };
  const every = await schedules.add(timed({ every: "90s" }), start);
  const at = await schedules.add(timed({ at: "2026-11-21T10:10" }, secret), start);
  scheduler.changed();
  await clock.advance(2 * minute);
  expect(woken).toEqual([]); // nothing before catchUp
  clock.at = start;
  await scheduler.catchUp();
  for (let n = 0; n < 6; n++) {
    await clock.advance(95 * second);
    settle(opened, every.id, true, clock.at);
  }
  await clock.advance(minute);
  expect(woken).toEqual([90, 180, 270, 360, 450, 540, 600, 630].map((n) => n * second));
  expect(clock.longestMs).toBe(minute);
  const slotAt = start + 10 * minute;
  const sent = messagesIn(opened).find(({ id }) => id === `${at.id}@${slotAt}`);
  const schedule = { id: at.id, name: "tea", slotAt, ...secret };
  expect(JSON.parse(sent?.body ?? "")).toMatchObject({ text: "Make tea.", schedule });
  expect(schedules.list()[1]).toMatchObject({ state: "done", nextAt: null });
});

test("two daemons and a restart in the middle fire a slot once", async () => {
  using place = newPlace();
  const answers: (() => void)[] = [];
  const slow = () => new Promise<ConversationKey>((done) => answers.push(() => done(here)));
  const old = newStage(place, { locate: slow });
  const { clock } = old;
  const young = newStage(place, {}, clock);
  const { id } = await old.schedules.add(timed({ every: "1m" }), start);
  await old.scheduler.catchUp();
  await clock.advance(minute); // the first one asks where, and gets no answer
  old.scheduler.changed();
  expect(answers).toHaveLength(1);
  old.scheduler.stop();
  await young.scheduler.catchUp();
  for (const answer of answers) answer();
  await clock.advance(1);
  expect([...old.woken, ...young.woken]).toEqual([minute]);
  young.opened.db.run("UPDATE schedules SET next_at = ?", [start + minute]); // as if that had been lost
  await clock.advance(59 * second);
  expect(messagesIn(young.opened)).toHaveLength(1);
  await clock.advance(second); // and the one before is still at work
  expect(states(young.schedules, id)).toBe("2 skipped, 1 queued");
});

test.each([
  "once; every; 1m; 30; 30 queued, 1 missed; 29 missed, the first at 2026-11-21T10:01",
  "once; every; 1m; 120; 120 queued, 1 missed; 99 or more missed",
  "skip; every; 1m; 30.2; 1 missed; 30 missed",
  "skip; every; 1m; 30.05; 30 queued, 1 missed; 29 missed",
  "once; every; 1m; 1.2; 1 queued; ",
  "once; cron; 1 10 * * *; 59; 1 queued; ",
  "once; at; 2026-11-21T10:01; 120; 1 missed; 1 missed",
])("missed; timing; looked at after minutes; runs; why: %s", async (line) => {
  const [missed, kind = "", spec, minutes, right = "", why = ""] = line.split("; ");
  using place = newPlace();
  const { opened, clock, schedules, scheduler } = newStage(place);
  const policy = missed === "skip" ? "skip" : "once";
  const { id } = await schedules.add(timed({ [kind]: spec }, { missed: policy }), start);
  clock.at = start + Number(minutes) * minute;
  await scheduler.catchUp();
  await scheduler.catchUp();
  expect(states(schedules, id)).toBe(right);
  expect(schedules.runs(id, 9).at(-1)?.detail ?? "").toContain(why);
  expect(messagesIn(opened)).toHaveLength(right.includes("queued") ? 1 : 0);
  const [schedule] = schedules.list();
  expect(schedule?.state).toBe(kind === "at" ? "done" : "active");
  expect(schedule?.nextAt ?? Infinity).toBeGreaterThan(clock.at);
});

test("failures put a schedule off to a later slot, and pause it after five", async () => {
  using place = newPlace();
  const { opened, clock, schedules, scheduler, woken } = newStage(place);
  const { id } = await schedules.add(timed({ every: "1m" }), start);
  await scheduler.catchUp();
  const ends: unknown[] = [];
  for (let waited = 0; waited < 40; waited++) {
    const before = woken.length;
    await clock.advance(minute);
    if (woken.length === before) continue;
    ends.push(settle(opened, id, waited === 2, clock.at + 5 * second));
  }
  expect(woken.map((ms) => ms / minute)).toEqual([1, 3, 4, 6, 9, 14, 23]); // 3 went well
  expect(ends.at(-1)).toEqual({ failures: 5, paused: true });
  expect(settle(opened, id, false, clock.at)).toEqual({ failures: 5, paused: false });
  expect(schedules.list()).toMatchObject([
    { state: "paused", nextAt: null, lastError: "The model is down.", last: { costUsd: 0.25 } },
  ]);
  expect(await schedules.resume(id, clock.at)).toMatchObject({ failures: 0 });
  await schedules.remove(id);
  expect(settle(opened, id, true, clock.at)).toBeNull();
});

test("a place that cannot be told now is waited for; one that never can is a failure", async () => {
  using place = newPlace();
  let error = new SendError("retry", "Slack is away.");
  const clock = newClock();
  const isAway = () => clock.at < start + 3 * minute;
  const locate = () => (isAway() ? Promise.reject(error) : Promise.resolve(here));
  const { schedules, scheduler, woken, told } = newStage(place, { locate }, clock);
  const { id } = await schedules.add(timed({ at: "2026-11-21T10:01" }), start);
  await scheduler.catchUp();
  await clock.advance(5 * minute);
  expect({ woken, told }).toEqual({ woken: [3 * minute], told: [] });
  error = new SendError("permanent", "There is no C1.");
  clock.at = start;
  await schedules.remove(id);
  const lost = await schedules.add(timed({ at: "2026-11-21T10:01" }), start);
  scheduler.changed();
  await clock.advance(5 * minute);
  expect(states(schedules, lost.id)).toBe("1 failed");
  expect(schedules.list()).toMatchObject([{ state: "done", lastError: "There is no C1." }]);
  expect(told).toEqual(["tea: There is no C1."]);
});

test("a run that is asked for comes besides the slots, also of a paused schedule", async () => {
  using place = newPlace();
  const { clock, schedules, scheduler, woken } = newStage(place);
  const { id } = await schedules.add(timed({ every: "1h" }), start);
  await schedules.pause(id);
  await scheduler.catchUp();
  await schedules.ask(id, (clock.at += 7 * second));
  const other = newStage(place, {}, clock);
  await Promise.all([scheduler.catchUp(), other.scheduler.catchUp()]);
  await clock.advance(120 * minute);
  expect([...woken, ...other.woken]).toEqual([7 * second]);
  expect(schedules.list()).toMatchObject([{ state: "paused", last: { state: "queued" } }]);
});

test("a schedule that is paused while its slot is being fired is not fired", async () => {
  using place = newPlace();
  const locate = ({ id }: { id: string }) => stage.schedules.pause(id).then(() => here);
  const stage = newStage(place, { locate });
  await stage.schedules.add(timed({ every: "1m" }), start);
  await stage.scheduler.catchUp();
  await stage.clock.advance(minute);
  expect(messagesIn(stage.opened)).toEqual([]);
});

test("the Schedule tool serves its own conversation, and adds nothing twice", async () => {
  using place = newPlace();
  const { clock, schedules } = newStage(place);
  const use = async (input: object, conversation = here) => {
    const clocks = { now: clock.now, changed: clock.now };
    const tool = scheduleTool({ schedules, conversation, takesScripts: true, ...clocks });
    const bench = { roots: [], stamps: new Map(), shells: new Map(), env: {} };
    const { content, isError } = await tool.run(input, bench, AbortSignal.timeout(1000));
    return `${isError ? "! " : ""}${content}`;
  };
  const tea = { action: "add", name: "tea", message: "Tea!", cron: "0 9 * * *", tz: "Asia/Tokyo" };
  expect(await use(tea)).toContain("(Asia/Tokyo); next 2026-11-22T09:00:00+09:00");
  expect(await use(tea)).toStartWith("! There is this schedule already");
  expect(await use({ ...tea, every: "1h" })).toStartWith("! A schedule takes one of cron");
  expect(await use({ action: "list" })).toContain("Tea!");
  const elsewhere = { ...here, id: "slack:C2", address: "C2" };
  expect(await use({ action: "list" }, elsewhere)).toBe("There are none.");
  expect(await use({ action: "cancel", id: schedules.list()[0]?.id }, elsewhere)).toStartWith("! ");
  expect(await use({ action: "pause", name: "TEA" })).toContain("; paused");
  expect(await use({ action: "change", name: "tea", tz: "UTC" })).toContain("(UTC); paused");
  expect(await use({ action: "resume", name: "tea" })).toContain("next 2026-11-22T09:00:00+00:00");
  const own = { ...here, id: `${here.id}#x`, isolated: true };
  expect(await use({ ...tea, name: "more" }, own)).toStartWith("! A schedule's own run");
  expect(await use({ action: "cancel", name: "tea" }, own)).toStartWith("Cancelled");
  expect(schedules.list()).toEqual([]);
});

test("a script's last line decides", () => {
  const output = 'checking\n{"wakeAgent":true,"data":{"n":1}}\n\n';
  expect(readGate(output)).toEqual({ wake: true, data: { n: 1 } });
  for (const wrong of ['{"wake": "yes"}', "null", "", '{"wake":true}\nbye'])
    expect(readGate(wrong)).toEqual({ error: expect.stringContaining("last line") });
});

test("claw cron adds, lists, asks, pauses and removes; and refuses with exit code 2", async () => {
  using place = newPlace();
  const cron = async (...args: string[]) => {
    const { code, stdout, stderr } = await runClaw(place, ["cron", ...args]);
    return code === 0 ? stdout : `${code} ${stderr}`;
  };
  const tea = ["add", "--name", "tea", "--message", "-- make tea"];
  const to = ["--channel=slack", "--to=C1:17.1", "--cron=0 9 * * *", "--tz=Asia/Tokyo"];
  expect(await cron(...tea, ...to)).toContain("Added");
  const row = JSON.parse(await cron("list", "--json"));
  expect(row.id).toMatch(/^[a-z2-9]{8}$/);
  expect(row).toMatchObject({ name: "tea", state: "active", last: null });
  expect(row.next).toMatch(/T09:00:00\+09:00$/);
  expect(await cron("pause", row.id)).toContain("paused");
  expect(await cron("resume", "tea")).toContain(row.next);
  expect(await cron("run", row.id)).toContain("Runs now");
  for (const [flags, says] of Object.entries({
    "--every 5m": "CLAW_OWNER",
    "--channel irc --to x --every 5m": "irc",
    "--channel slack --to #general --every 5m": "#general",
    "--channel email --to me --every 5m": "you@",
    "--channel slack --to C1 --every 5m --when now": "--when",
  }))
    expect(await cron(...tea, ...flags.split(" "))).toMatch(new RegExp(`^2 claw: .*${says}`));
  for (const wrong of ["remove coffee", "remove", "frob"])
    expect(await cron(...wrong.split(" "))).toStartWith("2 claw: ");
  expect(await cron("remove", "tea")).toContain("Removed");
});
