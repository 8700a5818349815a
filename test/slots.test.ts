/** When schedules are due: what is refused and how, and slots through every kind of clock change. */
import { describe, expect, test } from "bun:test";
import type { Timing } from "../src/store/schedules.ts";
import {
  nextSlot,
  readTiming,
  showTiming,
  slotsPassed,
  type TimingInput,
} from "../src/serve/slots.ts";

const at = (text: string) => Date.parse(text);
const now = at("2026-11-21T10:00:00Z");
const iso = (time: number | null) =>
  time === null ? null : new Date(time).toISOString().replace(":00.000Z", "Z");

const cron = (spec: string, timeZone: string) =>
  ({ kind: "cron", spec, timeZone, anchorAt: 0 }) satisfies Timing;

/** The first `count` slots after `from`, in UTC. */
function slots(timing: Timing, from: string, count: number): (string | null)[] {
  const found: (string | null)[] = [];
  for (let time: number | null = at(from); time !== null && found.length < count;) {
    time = nextSlot(timing, time);
    found.push(iso(time));
  }
  return found;
}

function refusal(input: TimingInput): string {
  try {
    return `taken: ${JSON.stringify(readTiming(input, now))}`;
  } catch (error) {
    return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  }
}

describe("what is read", () => {
  test.each([
    ["90s", 90_000],
    ["5m", 300_000],
    ["2h", 7_200_000],
    ["1d", 86_400_000],
    ["1h30m", 5_400_000],
    ["1h 30m", 5_400_000],
    ["45", 45_000],
    [300, 300_000],
  ])("every %p is %p ms", (every, ms) => {
    expect(readTiming({ every }, now)).toMatchObject({ kind: "every", spec: String(ms) });
  });

  test.each([
    ["2026-11-21T12:00+01:00", "2026-11-21T11:00Z"],
    ["2026-11-21T12:00Z", "2026-11-21T12:00Z"],
    ["2026-11-21 12:00", "2026-11-21T11:00Z"],
    ["2027-03-28T02:30", "2027-03-28T01:00Z"], // skipped: when the clock jumps
    ["2027-10-31T02:30", "2027-10-31T00:30Z"], // twice: the first
  ])("at %p in Berlin is %p", (text, right) => {
    const timing = readTiming({ at: text, tz: "Europe/Berlin" }, now);
    expect(iso(Number(timing.spec))).toBe(right);
  });

  test.each(["UTC", "Europe/Kiev", "Europe/Kyiv", "europe/berlin", "US/Eastern", "+02:00"])(
    "zone %p",
    (tz) => {
      expect(nextSlot(readTiming({ cron: "0 9 * * *", tz }, now), now)).toBeGreaterThan(now);
    },
  );

  test.each([
    ["0 9 * * MON-FRI", "2026-11-23T09:00Z"],
    ["@daily", "2026-11-22T00:00Z"],
    ["0 0 L * *", "2026-11-30T00:00Z"],
    ["0 0 * * 1#2", "2026-12-14T00:00Z"],
    ["0 0 * * 5L", "2026-11-27T00:00Z"],
    ["0 0 ? * 7", "2026-11-22T00:00Z"],
    ["0 0 13 * 5", "2026-11-27T00:00Z"], // a 13th, or a Friday
    ["0 0 29 2 *", "2028-02-29T00:00Z"],
    ["  0   9 * * * ", "2026-11-22T09:00Z"],
  ])("cron %p", (spec, first) => {
    expect(iso(nextSlot(readTiming({ cron: spec, tz: "UTC" }, now), now))).toBe(first);
  });

  test.each<[TimingInput, string[]]>([
    [{}, ["one of cron", "none"]],
    [{ cron: "* * * * *", every: "5m" }, ["cron and every"]],
    [{ cron: "", every: "", at: "" }, ["none"]],
    [{ every: "9s" }, ['"9s"', "at least 10s"]],
    [{ every: 5 }, ['"5"', "at least 10s"]],
    [{ every: "5 minutes" }, ['"5 minutes"', '"5m"']],
    [{ every: "-5m" }, ['"-5m"']],
    [{ every: "5m!" }, ['"5m!"']],
    [{ every: "9999d" }, ["at most 366 days"]],
    [{ cron: "* * * * * *" }, ["6 fields"]],
    [{ cron: "5 4" }, ["2 fields"]],
    [{ cron: "@secondly" }, ["@secondly"]],
    [{ cron: "@reboot" }, ["@reboot", "@daily"]],
    [{ cron: "0 0 30 2 *" }, ["0 0 30 2 *", "never comes"]],
    [{ cron: "60 * * * *" }, ["60", "0-59"]],
    [{ cron: "H * * * *" }, ["random"]],
    [{ cron: "0 0 15W * *" }, ["15W"]],
    [{ cron: "0 9 * * *", tz: "Berlin" }, ['"Berlin"', "Europe/Berlin"]],
    [{ cron: "0 9 * * *", tz: "Europe/Berln" }, ["Europe/Berlin"]],
    [{ every: "5m", tz: "CEST" }, ['"CEST"']],
    [{ at: "2026-11-21T09:59:59Z" }, ["in the past", "2026-11-21T"]],
    [{ at: "2027-02-30T10:00" }, ["2027-02-30", "would be right"]],
    [{ at: "2027-02-28T25:00" }, ["would be right"]],
    [{ at: "2027-02-28T10:00+25:00" }, ["would be right"]],
    [{ at: "2027-02-28" }, ["would be right"]],
    [{ at: "tomorrow at nine" }, ["tomorrow", "would be right"]],
  ])("%j is refused", (input, parts) => {
    const said = refusal(input);
    expect(said).toStartWith("UsageError: ");
    for (const part of parts) expect(said).toContain(part);
  });

  test("a timing is shown as it may be written", () => {
    const show = (input: TimingInput) =>
      showTiming(readTiming({ ...input, tz: "Europe/Berlin" }, now));
    expect(show({ every: "5400" })).toBe("every 1h30m");
    expect(show({ every: "90061" })).toBe("every 1d1h1m1s");
    expect(show({ cron: "0  9 * * *" })).toBe("cron 0 9 * * * (Europe/Berlin)");
    expect(show({ at: "2027-07-01T09:00" })).toBe("once 2027-07-01T09:00:00+02:00");
  });
});

describe("slots through clock changes", () => {
  test.each<[string, string, string, string[]]>([
    // Berlin: 02:00 → 03:00 on March 29 at 01:00Z; 03:00 → 02:00 on October 25 at 01:00Z
    ["30 2 * * *", "Europe/Berlin", "2026-03-28T00:00Z", ["28T01:30", "29T01:00", "30T00:30"]],
    ["0 3 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["29T01:00", "30T01:00"]],
    ["0,30 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["29T01:00", "29T01:30", "30T00:00"]],
    ["30 2 * * *", "Europe/Berlin", "2026-10-24T00:00Z", ["24T00:30", "25T00:30", "26T01:30"]],
    ["0 2,3 * * *", "Europe/Berlin", "2026-10-24T12:00Z", ["25T00:00", "25T02:00", "26T01:00"]],
    ["30 * * * *", "Europe/Berlin", "2026-03-29T00:00Z", ["29T00:30", "29T01:30", "29T02:30"]],
    [
      "*/30 * * * *",
      "Europe/Berlin",
      "2026-10-24T23:45Z",
      ["25T00:00", "25T00:30", "25T01:00", "25T01:30", "25T02:00"],
    ],
    ["0 * * * *", "Europe/Berlin", "2026-10-24T23:00Z", ["25T00:00", "25T01:00", "25T02:00"]],
    // New York: 02:00 → 03:00 on March 8 at 07:00Z; 02:00 → 01:00 on November 1 at 06:00Z
    ["30 2 * * *", "America/New_York", "2026-03-07T12:00Z", ["08T07:00", "09T06:30"]],
    ["30 1 * * *", "America/New_York", "2026-10-31T12:00Z", ["01T05:30", "02T06:30"]],
    [
      "*/20 1 * * *",
      "America/New_York",
      "2026-10-31T12:00Z",
      ["01T05:00", "01T05:20", "01T05:40", "02T06:00"],
    ],
    // Lord Howe: 02:00 → 02:30 on October 4 at 15:30Z the day before; 02:00 → 01:30 on April 5
    [
      "15 2 * * *",
      "Australia/Lord_Howe",
      "2026-10-02T00:00Z",
      ["02T15:45", "03T15:30", "04T15:15"],
    ],
    [
      "45 1 * * *",
      "Australia/Lord_Howe",
      "2026-04-03T00:00Z",
      ["03T14:45", "04T14:45", "05T15:15"],
    ],
    [
      "45 * * * *",
      "Australia/Lord_Howe",
      "2026-04-04T14:00Z",
      ["04T14:45", "04T15:15", "04T16:15"],
    ],
    // Cairo: 00:00 → 01:00 on April 24; 24:00 → 23:00 on October 29
    ["0 0 * * *", "Africa/Cairo", "2026-04-23T00:00Z", ["23T22:00", "24T21:00"]],
    ["30 23 * * *", "Africa/Cairo", "2026-10-29T00:00Z", ["29T20:30", "30T21:30"]],
    ["0 9 * * *", "UTC", "2026-03-28T12:00Z", ["29T09:00", "30T09:00"]],
  ])("%p in %s after %s", (spec, zone, from, days) => {
    const found = slots(cron(spec, zone), from, days.length);
    expect(found.map((slot) => slot?.slice(8, 16) ?? null)).toEqual(days);
  });

  test("every hour and every minute keep to real time, by a clock that is read minute by minute", () => {
    for (const [zone, from] of [
      ["Europe/Berlin", "2026-03-28T22:00Z"],
      ["Europe/Berlin", "2026-10-24T22:00Z"],
      ["Australia/Lord_Howe", "2026-04-04T12:00Z"],
      ["Australia/Lord_Howe", "2026-10-03T12:00Z"],
      ["Africa/Cairo", "2026-10-29T18:00Z"],
    ] as const)
      for (const [spec, step] of [
        ["*/10 * * * *", 10],
        ["7 * * * *", 60],
      ] as const) {
        const clock = new Intl.DateTimeFormat("en", { timeZone: zone, minute: "numeric" });
        const minutes = Array.from({ length: 480 }, (_, n) => at(from) + (n + 1) * 60_000);
        const right = minutes.filter(
          (time) => Number(clock.format(time)) % step === (step === 60 ? 7 : 0),
        );
        const found = slots(cron(spec, zone), from, right.length);
        expect({ zone, found }).toEqual({ zone, found: right.map(iso) });
      }
  });

  test("each wall-clock slot of a year fires once, in order, in a zone with changes", () => {
    for (const zone of [
      "Europe/Berlin",
      "America/New_York",
      "Australia/Lord_Howe",
      "Africa/Casablanca",
    ]) {
      const found: number[] = [];
      const timing = cron("15,45 1,2,3 * * *", zone);
      for (let time = nextSlot(timing, at("2026-01-01T00:00Z")); time !== null;) {
        if (time > at("2027-01-01T00:00Z")) break;
        found.push(time);
        time = nextSlot(timing, time);
      }
      expect(found).toEqual([...new Set(found)].toSorted((a, b) => a - b));
      const lost = zone === "Australia/Lord_Howe" ? 0 : 1; // 02:15 and 02:45 of a skipped hour are one
      expect({ zone, count: found.length }).toEqual({ zone, count: 365 * 6 - lost });
    }
  });
});

describe("every", () => {
  const every = (everyMs: number): Timing => {
    return { kind: "every", spec: String(everyMs), timeZone: "UTC", anchorAt: 1000 };
  };

  test("keeps to its anchor, however late it is asked", () => {
    expect(nextSlot(every(60_000), 1000)).toBe(61_000);
    expect(nextSlot(every(60_000), 61_000)).toBe(121_000);
    expect(nextSlot(every(60_000), 150_000_123)).toBe(150_001_000);
    expect(nextSlot(every(60_000), -5000)).toBe(61_000); // the clock was set back
  });

  test("what passed is counted to a hundred, and its latest found at once", () => {
    expect(slotsPassed(every(60_000), 60_999, 181_000)).toEqual({ count: 3, latest: 181_000 });
    expect(slotsPassed(every(60_000), 61_000, 120_000)).toEqual({ count: 0, latest: null });
    const years = at("2026-01-01T00:00Z");
    for (const timing of [
      every(10_000),
      cron("* * * * *", "Europe/Berlin"),
      cron("*/5 2 * * 0", "Europe/Berlin"),
    ]) {
      const { count, latest } = slotsPassed(timing, 0, years);
      expect(count).toBe(100);
      expect(latest).toBeLessThanOrEqual(years);
      expect(nextSlot(timing, latest ?? 0)).toBeGreaterThan(years);
    }
  });
});
