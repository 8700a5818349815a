/**
 * `claw cron`: schedules from the shell. Writes them into the store and tells the daemon, if one
 * serves; fires nothing itself. Everything that is wrong is said before anything is written.
 */
import { clawHomeOf } from "../agent/session.ts";
import { type Args, type Flags, oneOf, parseArgs, valueOf } from "../args.ts";
import { openDatabase } from "../store/database.ts";
import { messageOf, UsageError } from "../errors.ts";
import { escapeLine } from "../escape.ts";
import { type Run, type Schedule, type Schedules, schedulesIn } from "../store/schedules.ts";
import { readOwners } from "../serve/access.ts";
import { readSecrets } from "../serve/secrets.ts";
import { findSchedule, resume, showSchedule } from "../serve/schedule-tool.ts";
import { nextSlot, readTiming, showTime } from "../serve/slots.ts";
import { askDaemon } from "../serve/socket.ts";

const addFlags: Flags["flags"] = {
  "--name": "one",
  "--message": "one",
  "--cron": "one",
  "--tz": "one",
  "--every": "one",
  "--at": "one",
  "--channel": "one",
  "--to": "one",
  "--missed": "one",
  "--script": "one",
  "--isolated": "none",
};

/** What stands after --to, by channel. */
const targets: Record<string, { shape: RegExp; example: string }> = {
  slack: { shape: /^[CDGUW][A-Z0-9]+(:\d+\.\d+)?$/, example: "C123, U123 or C123:1712.0001" },
  email: { shape: /^[^\s@,;<>"]+@[^\s@,;<>"]+\.[^\s@,;<>"]+$/, example: "you@example.org" },
};

/** Says what was changed; null: nothing was. */
type Action = (schedules: Schedules, args: Args) => Promise<string | null>;

const actions: Record<string, Action> = {
  list,
  add,
  async remove(schedules, args) {
    const { id, name } = wanted(schedules, args);
    await schedules.remove(id);
    return `Removed: ${id}  ${name}`;
  },
  pause: async (schedules, args) =>
    `Paused: ${showSchedule(await schedules.pause(wanted(schedules, args).id))}`,
  resume: async (schedules, args) =>
    `Resumed: ${showSchedule(await resume(schedules, wanted(schedules, args), Date.now()))}`,
  async run(schedules, args) {
    const schedule = wanted(schedules, args);
    await schedules.ask(schedule.id, Date.now());
    return `Runs now, besides its times: ${showSchedule(schedule)}`;
  },
};

export async function runCron(argv: string[]): Promise<number> {
  const [name = "list", ...rest] = argv[0]?.startsWith("-") ? ["list", ...argv] : argv;
  const action = Object.hasOwn(actions, name) ? actions[name] : undefined;
  if (!action)
    throw new UsageError(
      `claw cron knows no "${name}": list, add, remove ID, pause ID, resume ID or run ID.`,
    );
  const flags = { add: addFlags, list: { "--json": "none" as const } }[name] ?? {};
  const args = parseArgs(rest, { command: "cron", flags });
  const [least = 1, most = 1] = { add: [0, 0], list: [0, 1] }[name] ?? [];
  if (args.words.length < least || args.words.length > most)
    throw new UsageError(
      `claw cron ${name} takes ${most ? "one ID, or a name in quotes" : "flags alone"}, ` +
        `not "${args.words.join(" ")}".`,
    );
  const clawHome = clawHomeOf(process.env);
  const opened = openDatabase(clawHome);
  try {
    const line = await action(schedulesIn(opened), args);
    if (line === null) return 0;
    print(line);
    await poke(clawHome);
  } finally {
    opened.close();
  }
  return 0;
}

/** The daemon looks again; one that does not run reads the store when it starts. */
async function poke(clawHome: string): Promise<void> {
  try {
    if ((await askDaemon(clawHome, "/changed", "POST")) === null)
      console.error("No claw serve runs with this home; it takes effect when one does.");
  } catch (error) {
    console.error(`claw: ${messageOf(error)} It learns of this within a minute.`);
  }
}

const wanted = (schedules: Schedules, { words }: Args): Schedule =>
  findSchedule(schedules.list(), words[0] ?? "");

const print = (line: string) => console.log(escapeLine(line));

async function add(schedules: Schedules, args: Args): Promise<string> {
  const now = Date.now();
  const name = needed(args, "--name");
  const message = needed(args, "--message");
  const [cron, tz] = [valueOf(args, "--cron"), valueOf(args, "--tz")];
  const [every, at] = [valueOf(args, "--every"), valueOf(args, "--at")];
  const timing = readTiming({ cron, tz, every, at }, now);
  const schedule = await schedules.add(
    {
      ...timing,
      ...readTarget(valueOf(args, "--channel"), valueOf(args, "--to")),
      name,
      message,
      missed: oneOf(args, "--missed", ["once", "skip"]),
      script: valueOf(args, "--script")?.trim() || null,
      conversationId: null,
      isolated: args.flags.has("--isolated"),
      quiet: false,
      nextAt: nextSlot(timing, now),
    },
    now,
  );
  return `Added: ${showSchedule(schedule)}`;
}

function needed(args: Args, flag: string): string {
  const value = valueOf(args, flag)?.trim();
  if (value) return value;
  throw new UsageError(`claw cron add needs ${flag}. See \`claw help cron\`.`);
}

/** Without flags the owner's first address. */
function readTarget(channel?: string, to?: string): Pick<Schedule, "channel" | "target"> {
  if (channel === undefined && to === undefined) {
    const env = readSecrets(clawHomeOf(process.env), process.env);
    const [owner] = readOwners(env["CLAW_OWNER"]);
    if (owner) return readTarget(owner.channel, owner.address);
    throw new UsageError(
      "Where is it to go? Give --channel and --to, or set CLAW_OWNER (slack:U123), who gets it then.",
    );
  }
  if (channel === undefined || to === undefined)
    throw new UsageError("--channel and --to go together: --channel slack --to C123.");
  const target = Object.hasOwn(targets, channel) ? targets[channel] : undefined;
  if (!target)
    throw new UsageError(
      `There is no channel "${channel}"; there are ${Object.keys(targets).join(" and ")}.`,
    );
  if (target.shape.test(to))
    return { channel, target: channel === "email" ? to.toLowerCase() : to };
  throw new UsageError(`--to is "${to}"; ${channel} takes ${target.example}.`);
}

/** All schedules, or with an ID the history of one. */
async function list(schedules: Schedules, args: Args): Promise<null> {
  const json = args.flags.has("--json");
  const show = (row: object, line: string) =>
    json ? console.log(JSON.stringify(row)) : print(line);
  const one = args.words.length > 0 ? wanted(schedules, args) : null;
  for (const run of one ? schedules.runs(one.id, 200) : []) {
    const row = rowOf(run, one?.timeZone ?? "UTC");
    const cost = row.costUsd === null ? "" : `  $${row.costUsd.toFixed(4)}`;
    show(row, `${row.at}  ${row.state}${cost}  ${row.detail ?? ""}`);
  }
  const all = one ? [] : schedules.list();
  for (const schedule of all) {
    const { id, name, nextAt, timeZone, state, last, message, channel, target: to } = schedule;
    const slot = nextAt === null ? null : (nextSlot(schedule, nextAt - 1) ?? nextAt);
    const next = slot === null ? null : showTime(slot, timeZone);
    const row = { id, name, next, state, last: last && rowOf(last, timeZone) };
    show({ ...row, message, channel, to }, showSchedule(schedule));
  }
  if (!one && all.length === 0 && !json) console.error("There are no schedules.");
  return null;
}

function rowOf({ slotAt, state, detail, costUsd }: Run, timeZone: string) {
  return { at: showTime(slotAt, timeZone), state, detail, costUsd };
}
