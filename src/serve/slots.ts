/**
 * When a schedule is due: reads what a person or a model wrote as a timing, and computes its slots,
 * in milliseconds since 1970. Pure; it stores nothing and never waits.
 *
 * Cron expressions are looked up in wall-clock time (cron-parser, told that it is UTC) and brought
 * into their zone here. A slot that the clock skips is due when it jumps, one that it repeats the
 * first time only. An expression for every hour follows real time instead: it keeps its rhythm
 * through a repeated hour, and has no slot in a skipped one.
 */
import { CronExpressionParser } from "cron-parser";
import { nearest } from "../args.ts";
import { config } from "../config.ts";
import { messageOf, UsageError } from "../errors.ts";
import type { Timing } from "../store/schedules.ts";

export type TimingInput = { cron?: string; tz?: string; every?: string | number; at?: string };

const dayMs = 86_400_000;
const horizonMs = 5 * 366 * dayMs; // an expression without a slot in so long has none
const units: Record<string, number> = { d: dayMs, h: 3_600_000, m: 60_000, s: 1000 };

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────

/** Throws UsageError, in a sentence that says what would be right. */
export function readTiming(input: TimingInput, now: number): Timing {
  const given = (["cron", "every", "at"] as const).filter((name) => (input[name] ?? "") !== "");
  const [kind] = given;
  if (kind === undefined || given.length > 1)
    throw new UsageError(
      `A schedule takes one of cron ("30 8 * * 1-5"), every ("90s") and at ("2027-01-31T09:00"), ` +
        `not ${given.join(" and ") || "none"}.`,
    );
  const text = String(input[kind]).trim().replaceAll(/\s+/g, " ");
  const when = { timeZone: readZone(input.tz), anchorAt: now };
  if (kind === "cron") return { kind, spec: readCron(text, now), ...when };
  if (kind === "every") return { kind, spec: String(readEvery(text)), ...when };
  return { kind: "once", spec: String(readAt(text, when.timeZone, now)), ...when };
}

/** The zone of that name; without one config's, or the machine's. */
export function readZone(name: string | undefined): string {
  if (!name) return config.serve.schedules.timeZone ?? Temporal.Now.timeZoneId();
  try {
    return Temporal.Now.zonedDateTimeISO(name).timeZoneId;
  } catch {
    const zones = Intl.supportedValuesOf("timeZone");
    const city = zones.find((zone) => zone.toLowerCase().endsWith(`/${name.toLowerCase()}`));
    const right = city ?? nearest(name, zones) ?? "Europe/Berlin";
    throw new UsageError(`There is no time zone "${name}"; "${right}" would be one.`);
  }
}

function readCron(spec: string, now: number): string {
  const refuse = (why: string) =>
    new UsageError(
      `cron is "${spec}", ${why}. It takes minute, hour, day of month, month and day of week, as ` +
        `in "30 8 * * 1-5", or a word like @daily.`,
    );
  const count = spec.split(" ").length;
  if (count !== 5 && (!spec.startsWith("@") || spec === "@secondly"))
    throw refuse(`which has ${count} fields and not five`);
  if (/\bH\b|H\(/.test(spec)) throw refuse("where H would be a number at random");
  try {
    CronExpressionParser.parse(spec);
  } catch (error) {
    if (!messageOf(error).includes("explicit day of month"))
      throw refuse(`which cannot be read (${messageOf(error)})`);
  }
  if (nextWall(spec, now) === null) throw refuse("a day that never comes");
  return spec;
}

/** Milliseconds of "90s", "1h30m", or a number of seconds. */
function readEvery(text: string): number {
  const { minEveryMs } = config.serve.schedules;
  const parts = /^\d+$/.test(text) ? [`${text}s`] : text.match(/\d+ ?[dhms]/gi);
  const times = parts?.map((part) => parseInt(part) * (units[part.slice(-1).toLowerCase()] ?? 0));
  const ms = times?.reduce((sum, one) => sum + one) ?? 0;
  const isRead = /^(\d+|(\d+ ?[dhms] ?)+)$/i.test(text);
  if (isRead && ms >= minEveryMs && ms <= 366 * dayMs) return ms;
  throw new UsageError(
    `every is "${text}"; it takes a time like "90s", "5m" or "1h30m", or a number of seconds, of ` +
      `at least ${showSpan(minEveryMs)} and at most 366 days.`,
  );
}

function readAt(text: string, timeZone: string, now: number): number {
  const at = readInstant(text, timeZone);
  if (at !== null && at > now) return at;
  const why =
    at === null
      ? `no date and time that exist; "${showTime(now + dayMs, timeZone)}" would be right`
      : `in the past: it is ${showTime(now, timeZone)} now`;
  throw new UsageError(`at is "${text}", which is ${why}.`);
}

/** Without a zone of its own, in `timeZone`. */
function readInstant(text: string, timeZone: string): number | null {
  const hasZone = /:\d\d.*(z|[+-]\d\d(:?\d\d)?)$/i.test(text);
  if (!hasZone && !/^\d{4}-\d\d-\d\d[t ]\d\d:\d\d(:\d\d(\.\d+)?)?$/i.test(text)) return null;
  try {
    return hasZone
      ? Temporal.Instant.from(text).epochMilliseconds
      : fromWall(Temporal.PlainDateTime.from(text), timeZone);
  } catch {
    return null; // 2026-02-30, 25:00: no clock ever shows it
  }
}

// ── Slots ───────────────────────────────────────────────────────────────────────────────────────

/** The first slot after that time, or null. */
export function nextSlot({ kind, spec, timeZone, anchorAt }: Timing, after: number): number | null {
  if (kind === "cron") return (isEveryHour(spec) ? nextReal : nextFixed)(spec, timeZone, after);
  const number = Number(spec);
  if (kind === "once") return number > after ? number : null;
  return anchorAt + number * Math.max(1, Math.floor((after - anchorAt) / number) + 1);
}

/** The slots after that time and up to `to`; `count` ends at 100. The work has a bound. */
export function slotsPassed(timing: Timing, after: number, to: number) {
  let latest: number | null = null;
  for (let count = 0; count < 100; count++) {
    const slot = nextSlot(timing, latest ?? after);
    if (slot === null || slot > to) return { count, latest };
    latest = slot;
  }
  return { count: 100, latest: latestSlot(timing, to) };
}

/** The last slot up to `to`, where there is one: looks back twice as far each time. */
function latestSlot(timing: Timing, to: number): number {
  for (let spanMs = 60_000; ; spanMs *= 2) {
    let latest: number | null = null;
    let slot = nextSlot(timing, to - spanMs);
    for (; slot !== null && slot <= to; slot = nextSlot(timing, slot)) latest = slot;
    if (latest !== null) return latest;
  }
}

const isEveryHour = (spec: string): boolean =>
  CronExpressionParser.parse(spec).fields.hour.values.length === 24;

/** The next wall-clock time of an expression, as if it were UTC. */
function nextWall(spec: string, wall: number): number | null {
  const span = { currentDate: wall, endDate: wall + horizonMs, tz: "UTC" };
  try {
    const cron = CronExpressionParser.parse(spec, span);
    return cron.next().getTime();
  } catch {
    return null; // out of the span; what cannot be read was refused before it was stored
  }
}

const zoned = (at: number, timeZone: string) =>
  Temporal.Instant.fromEpochMilliseconds(at).toZonedDateTimeISO(timeZone);
const offsetMs = (time: Temporal.ZonedDateTime) => time.offsetNanoseconds / 1e6;

/** A wall-clock time in a zone: of two the first, of none the moment when the clock jumps. */
function fromWall(wall: Temporal.PlainDateTime, timeZone: string): number {
  const time = wall.toZonedDateTime(timeZone, { disambiguation: "earlier" });
  if (time.toPlainDateTime().equals(wall)) return time.epochMilliseconds;
  return (time.getTimeZoneTransition("next") ?? time).epochMilliseconds;
}

function nextFixed(spec: string, timeZone: string, after: number): number | null {
  const start = after + offsetMs(zoned(after, timeZone));
  for (let wall = nextWall(spec, start); wall !== null; wall = nextWall(spec, wall)) {
    const at = fromWall(zoned(wall, "UTC").toPlainDateTime(), timeZone);
    if (at > after) return at;
  }
  return null;
}

function nextReal(spec: string, timeZone: string, after: number): number | null {
  const first = zoned(after + 1, timeZone);
  const wall = nextWall(spec, after + offsetMs(first));
  const end = first.getTimeZoneTransition("next")?.epochMilliseconds ?? Infinity;
  if (wall === null || wall - offsetMs(first) < end) return wall && wall - offsetMs(first);
  return nextReal(spec, timeZone, end - 1);
}

/** "2026-11-21T09:00:00+01:00" */
export const showTime = (at: number, timeZone: string): string =>
  zoned(at, timeZone).toString({ timeZoneName: "never", smallestUnit: "second" });

function showSpan(ms: number): string {
  const [unit, unitMs] = Object.entries(units).find(([, one]) => ms >= one) ?? ["s", 1000];
  const rest = ms % unitMs;
  return `${Math.floor(ms / unitMs)}${unit}${rest >= 1000 ? showSpan(rest) : ""}`;
}

/** "cron 30 8 * * 1-5 (Europe/Berlin)"; the same for timings that only began at different times. */
export function showTiming({ kind, spec, timeZone }: Timing): string {
  if (kind === "cron") return `cron ${spec} (${timeZone})`;
  if (kind === "every") return `every ${showSpan(Number(spec))}`;
  return `once ${showTime(Number(spec), timeZone)}`;
}
