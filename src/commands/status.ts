/**
 * `claw status`: what runs, what waits, what failed last. Asks the daemon, or reads the store where
 * none serves. Calls no model and changes nothing.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { clawHomeOf } from "../agent/session.ts";
import { openDatabase } from "../store/database.ts";
import { messageOf, UsageError } from "../errors.ts";
import { escapeLine } from "../escape.ts";
import { overviewIn } from "../store/overview.ts";
import { askDaemon } from "../serve/socket.ts";
import { nothingYet, parseStatus, readStatus, type Status } from "../serve/status.ts";

export async function runStatus(argv: string[]): Promise<number> {
  const odd = argv.find((arg) => arg !== "--json");
  if (odd !== undefined) throw new UsageError(`claw status takes no "${odd}", only --json.`);
  const [clawHome, now] = [clawHomeOf(process.env), Date.now()];
  const status = (await askServing(clawHome)) ?? readStored(clawHome, now);
  const json = argv.includes("--json");
  for (const line of json ? [JSON.stringify(status)] : describe(status, now))
    console.log(json && !process.stdout.isTTY ? line : escapeLine(line));
  if (!json && !existsSync(clawHome)) console.log(`Nothing was ever done in ${clawHome}.`);
  return 0;
}

/** null where no daemon serves; one that is stuck, or of another version, is told of. */
async function askServing(clawHome: string): Promise<Status | null> {
  try {
    const answer = await askDaemon(clawHome, "/status", "GET");
    const status = parseStatus(answer);
    if (status || answer === null) return status;
    console.error("claw: The daemon is of another version. What follows is from its store.");
  } catch (error) {
    console.error(`claw: ${messageOf(error)} What follows is from its store.`);
  }
  return null;
}

function readStored(clawHome: string, now: number): Status {
  if (!existsSync(join(clawHome, "claw.db"))) return readStatus(nothingYet, null, now);
  const opened = openDatabase(clawHome);
  try {
    return readStatus(overviewIn(opened), null, now);
  } finally {
    opened.close();
  }
}

// ── For people ──────────────────────────────────────────────────────────────────────────────────

/** Aligned lines; what is empty is left out. */
function describe(status: Status, now: number): string[] {
  const { serving, pid, since, version, model, isolation } = status;
  const head = serving
    ? `claw ${version} serves since ${relative(since, now)}: pid ${pid}, ${model}, ${isolation}`
    : `claw ${version} does not serve.`;
  const sections = Object.entries(sectionsOf(status, (at) => relative(at, now)));
  return [head, ...sections.flatMap(([title, rows]) => align(title, rows))];
}

type Part = string | number | null | false;

/** By title; in each row what it is about, and what there is to say. */
function sectionsOf(status: Status, ago: (at: string | null) => string): Record<string, Part[][]> {
  const { oldest, ...outbox } = status.outbox;
  const when = (what: string, at: string | null) => at && `${what} ${ago(at)}`;
  const counts = (amounts: Record<string, number>) =>
    Object.entries(amounts).map(([state, count]) => count > 0 && `${count} ${state}`);
  return {
    channels: status.channels.map(({ name, since, lastIn, lastOut, error }) => {
      const last = [when("last in", lastIn), when("last out", lastOut)];
      return [name, when("connected", since) ?? "not connected", ...last, error];
    }),
    running: status.running.map((one) => [one.conversation, one.doing, when("since", one.since)]),
    queue: [["", ...counts(status.queue)]],
    waiting: status.conversations
      .filter(({ waiting }) => waiting > 0)
      .map(({ id, waiting, ready, failures }) => {
        const failed = failures > 0 && `failed ${failures} times`;
        return [id, `${waiting} waiting`, when("turn", ready), failed];
      }),
    outbox: [["", ...counts(outbox), when("oldest", oldest)]],
    schedules: status.schedules.map(({ name, state, next, last, lastState }) => {
      const ran = last && `last ${ago(last)} (${lastState})`;
      return [name, state === "active" ? when("next", next) : state, ran];
    }),
    today: status.budgets.map(({ conversation, tokens, tokensPerDay, usd, usdPerDay }) => {
      const [ofTokens, ofUsd] = [
        tokensPerDay && ` of ${tokensPerDay}`,
        usdPerDay && ` of $${usdPerDay}`,
      ];
      return [
        conversation,
        `${tokens} tokens${ofTokens ?? ""}`,
        `$${usd.toFixed(4)}${ofUsd ?? ""}`,
      ];
    }),
    "way out": status.egress.map(({ conversation, host, requests, bytes, refused }) => {
      const size = `${(bytes / 1e6).toFixed(1)} MB`;
      return [
        conversation,
        `${host}: ${requests} requests`,
        size,
        refused > 0 && `${refused} refused`,
      ];
    }),
    errors: status.errors.map(({ at, where, error }) => [ago(at), `${where}: ${error}`]),
  };
}

function align(title: string, rows: Part[][]): string[] {
  const full = rows.filter((row) => row.slice(1).some(Boolean));
  const width = Math.min(40, Math.max(0, ...full.map(([name]) => String(name).length)));
  return full.map(([name, ...parts], index) => {
    const head = (index === 0 ? title : "").padEnd(11) + String(name).padEnd(width);
    return `${head}${name && "  "}${parts.filter(Boolean).join(", ")}`;
  });
}

const units = Object.entries({ d: 864e5, h: 36e5, min: 6e4, s: 1e3 });
/** "2 min ago", "in 3 h". */
function relative(at: string | null, now: number): string {
  const ms = Date.parse(at ?? "") - now;
  const [unit, size] = units.find(([, one]) => Math.abs(ms) >= one) ?? ["", 0];
  const amount = `${Math.floor(Math.abs(ms) / size)} ${unit}`;
  if (unit === "") return "now";
  return ms < 0 ? `${amount} ago` : `in ${amount}`;
}
