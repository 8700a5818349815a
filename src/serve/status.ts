/**
 * What `claw status --json` and `GET /status` say, put together from the store and, where one
 * serves, from the daemon's memory. Pure.
 *
 * Invariant: times are ISO strings, amounts numbers, and nothing in it was written by a person or a
 * model but the names of schedules. No message, no secret.
 */
import { z } from "zod";
import { version } from "../../package.json";
import type { ChannelState } from "../channels/channel.ts";
import type {
  Overview,
  Seen,
  SeenConversation,
  SeenEgress,
  SeenSchedule,
} from "../store/overview.ts";
import { settingsOf } from "./access.ts";

/** What only the daemon knows. Times in milliseconds since 1970. */
export type Live = {
  pid: number;
  since: number;
  model: string;
  isolation: string;
  channels: ({ name: string } & ChannelState)[];
  running: { conversation: string; since: number; doing: string }[];
};

/** A row as others see it: `nextAt` in milliseconds is `next`, a date. */
type Dated<Row> = {
  [Key in keyof Row as Key extends `${infer Name}At` ? Name : Key]: Key extends `${string}At`
    ? string | null
    : Row[Key];
};

export type Status = {
  serving: boolean;
  pid: number | null;
  since: string | null;
  version: string;
  model: string | null;
  isolation: string | null;
  channels: {
    name: string;
    since: string | null;
    lastIn: string | null;
    lastOut: string | null;
    error: string | null;
  }[];
  conversations: Dated<SeenConversation>[];
  running: { conversation: string; since: string | null; doing: string }[];
  queue: Seen["queue"];
  outbox: Dated<Seen["outbox"]>;
  schedules: Dated<SeenSchedule>[];
  /** Of today; a limit is null where config sets none. */
  budgets: {
    conversation: string;
    tokens: number;
    usd: number;
    tokensPerDay: number | null;
    usdPerDay: number | null;
  }[];
  /** Requests out of sandboxes today, by host. */
  egress: SeenEgress[];
  errors: { at: string | null; where: string; error: string }[];
};

/** `live`: null where no daemon serves; then nothing is connected and nothing runs. */
export function readStatus(overview: Overview, live: Live | null, now: number): Status {
  const seen = overview.read(now);
  const running = live?.running ?? [];
  const isRunning = (id: string) => running.some(({ conversation }) => conversation === id);
  return {
    serving: live !== null,
    pid: live?.pid ?? null,
    since: isoOf(live?.since),
    version,
    model: live?.model ?? null,
    isolation: live?.isolation ?? null,
    channels: (live?.channels ?? []).map(({ name, since, lastIn, lastOut, error }) => {
      return { name, since: isoOf(since), lastIn: isoOf(lastIn), lastOut: isoOf(lastOut), error };
    }),
    conversations: seen.conversations.map((one) => dated({ ...one, running: isRunning(one.id) })),
    running: running.map((one) => ({ ...one, since: isoOf(one.since) })),
    queue: seen.queue,
    outbox: dated(seen.outbox),
    schedules: seen.schedules.map(dated),
    budgets: seen.spending.map(({ conversation, tokens, costUsd }) => {
      const { tokensPerDay, usdPerDay } = settingsOf(conversation);
      return { conversation, tokens, usd: costUsd, tokensPerDay, usdPerDay };
    }),
    egress: seen.egress,
    errors: seen.errors.map((one) => ({ ...one, at: isoOf(one.at) })),
  };
}

/** A home without a database. */
export const nothingYet: Overview = {
  read: () => ({
    queue: { waiting: 0, taken: 0, failed: 0 },
    outbox: { pending: 0, sending: 0, failed: 0, unknown: 0, oldestAt: null },
    conversations: [],
    schedules: [],
    spending: [],
    egress: [],
    errors: [],
  }),
};

/** What a daemon of this version answered; null for one of another version. */
export function parseStatus(answer: unknown): Status | null {
  const isOurs = z.looseObject({ serving: z.boolean(), version: z.literal(version) });
  return isOurs.safeParse(answer).success ? (answer as Status) : null;
}

const isoOf = (at: unknown): string | null =>
  typeof at === "number" ? new Date(at).toISOString() : null;

function dated<Row extends object>(row: Row): Dated<Row> {
  const entries = Object.entries(row).map(([name, value]) =>
    name.endsWith("At") ? [name.slice(0, -2), isoOf(value)] : [name, value],
  );
  return Object.fromEntries(entries) as Dated<Row>;
}
