/**
 * `bun test/bench/serve.ts [PART…] [--seconds N] [--messages N] [--kills N]`: the built daemon from
 * Slack's socket to chat.postMessage. Parts: latency, load, idle, growth, schedule; else all of them.
 *
 * Each message holds a token, which its answer repeats: what was lost, doubled or disordered is
 * printed as a fault, and the exit code is then 1. Slack and the model run in this process: without
 * a core of their own, figures are bounds from above. Linux alone (/proc).
 */
import { readdirSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { newPlace, runClaw, until } from "../claw.ts";
import { type Recorded, type Reply, startScripted } from "../scripted.ts";
import { owner, saidIn, type Served, startServe } from "../serve.ts";
import { SlackServer } from "../slack-server.ts";

const flag = (value: string) => ({ type: "string" as const, default: value });
const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: flag("60"), messages: flag("10000"), kills: flag("1") },
});
type Row = [figure: string, measured: string, wanted?: string];
const faults: string[] = [];
const [conversations, rounds] = [1_000, 10];

// ── The daemon and what it talks to ─────────────────────────────────────────────────────────────

const now = () => performance.now();
const channelOf = (conversation: number) => `DBENCH${conversation}`;
const tokenOf = (conversation: number, n: number) => `c${conversation}m${n}`;
const tokensOf = (text: string): string[] => text.match(/\bc\d+m\d+\b/g) ?? [];

type Times = { ackMs: number; requestMs: number; postMs: number };

/** A Slack, the daemon that is connected to it, and the model behind that. */
class Rig extends SlackServer {
  readonly place = newPlace();
  /** When the model first saw each token, when it was answered; what each channel was answered. */
  readonly seenAt = new Map<string, number>();
  readonly answeredAt = new Map<string, number>();
  readonly answers = new Map<string, string[]>();
  readonly counts = { posts: 0, requestBytes: 0 };
  checksOrder = false;
  act = (request: Recorded): Reply => this.#answer(request);
  readonly #model = startScripted((request) => this.act(request));
  #served: Served | null = null;

  async serve(): Promise<this> {
    this.#served = await startServe(this.place, { slack: this, model: this.#model });
    return this;
  }
  kill = async () => this.#served?.[Symbol.asyncDispose](); // by -9
  process = () => readProcess(this.#served?.pid ?? 0);
  /** Resolves when it is acknowledged, with the milliseconds that took. */
  async send(conversation: number, n: number): Promise<number> {
    const text = `${tokenOf(conversation, n)}: say what you have seen, so that it can be checked.`;
    const at = now();
    await this.say({ channel: channelOf(conversation), user: owner, text });
    return now() - at;
  }
  /** Resolves when it is answered. */
  async ask(conversation: number, n: number): Promise<Times> {
    const [token, at] = [tokenOf(conversation, n), now()];
    const ackMs = await this.send(conversation, n);
    await until(() => this.answeredAt.has(token), 60_000);
    const since = (times: Map<string, number>) => (times.get(token) ?? NaN) - at;
    return { ackMs, requestMs: since(this.seenAt), postMs: since(this.answeredAt) };
  }
  /** The app hears what was posted, and so do we. What a call has to search is kept short. */
  override echo(...[place, event]: Parameters<SlackServer["echo"]>): void {
    super.echo(place, event);
    const { text, metadata, channel } = this.posts.at(-1) ?? { metadata: null };
    for (const list of [this.posts, this.heard, this.calls, this.acks])
      if (list.length > 1_000) list.splice(0, 500);
    if (event.subtype || !metadata || !channel) return; // a notice of progress
    const [at, tokens, before] = [now(), tokensOf(text), this.answers.get(channel) ?? []];
    if (tokens.length === 0) faults.push(`${channel} was told: ${text}`);
    for (const token of tokens) this.answeredAt.set(token, at);
    this.answers.set(channel, [...before, ...tokens]);
    this.counts.posts += 1;
  }
  #answer({ json, body }: Recorded): Reply {
    const at = now();
    this.#model.requests.length = 0;
    const messages: { role: string; content: unknown }[] = json.messages;
    const shown = (from: number) =>
      tokensOf(saidIn({ json: { messages: messages.slice(from) } }).join("\n"));
    const fresh = shown(messages.findLastIndex(({ role }) => role === "assistant") + 1);
    for (const token of fresh) this.seenAt.set(token, this.seenAt.get(token) ?? at);
    const all = this.checksOrder ? shown(0) : []; // of this conversation, once and in order
    if (all.some((token, n) => token !== all[0]?.replace(/m.*/, `m${n}`)))
      faults.push(`The model was shown ${all.join()}`);
    this.counts.requestBytes = body.length;
    const usage = { input: Math.round(body.length / 4), output: 40 };
    return { text: `New since my last answer: ${fresh.join(" ")}. There was nothing else.`, usage };
  }
  async [Symbol.asyncDispose]() {
    await this.kill();
    for (const part of [this.#model, this, this.place]) part[Symbol.dispose]();
  }
}

/** Calls `work` with 0 … count - 1 in that order, at most `width` at a time. */
async function inParallel(width: number, count: number, work: (n: number) => Promise<void>) {
  const left = Array(count).keys();
  const workers = Array.from({ length: width }, async () => {
    for (const n of left) await work(n);
  });
  await Promise.all(workers);
}

/** `childFaults`: the page faults of children that have ended, so that none goes unseen. */
function readProcess(pid: number) {
  const status = readFileSync(`/proc/${pid}/status`, "latin1");
  const sizeOf = (name: string) =>
    (Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)?.[1]) * 1024) / 1e6;
  const stat = statOf(pid);
  const children = readdirSync("/proc").filter((name) => statOf(Number(name))[1] === `${pid}`);
  const ticks = Number(stat[11]) + Number(stat[12]); // of 10 ms
  const [rssMb, peakMb] = [sizeOf("VmRSS"), sizeOf("VmHWM")];
  return { rssMb, peakMb, cpuMs: 10 * ticks, childFaults: stat[8], children: children.length };
}

/** From the third field on, the state; nothing for what is no process. */
function statOf(pid: number): string[] {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    return []; // it ended while we looked
  }
}

const quantile = (values: number[], part: number): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length * part)] ?? NaN;
const show = (value: number, unit = "ms") => `${value.toFixed(value < 10 ? 2 : 1)} ${unit}`;
const median = (values: number[]) => show(quantile(values, 0.5));
const spread = (values: number[]) => `${median(values)}, p95 ${show(quantile(values, 0.95))}`;

// ── Parts ───────────────────────────────────────────────────────────────────────────────────────

async function measureLatency(): Promise<Row[]> {
  await using rig = await new Rig({}).serve();
  const [fresh, warm]: [Times[], Times[]] = [[], []];
  const states = [rig.process()];
  for (let n = 0; n < 200; n++) fresh.push(await rig.ask(n, 0));
  for (let n = 0; n < 200; n++) warm.push(await rig.ask(1_000, n));
  states.push(rig.process());
  const requests: number[] = [];
  const bash = { name: "Bash", input: { command: "true" } };
  rig.act = () => (requests.push(now()) < 3 ? { calls: [bash] } : { text: tokenOf(1_000, 200) });
  await rig.ask(1_000, 200);
  states.push(rig.process());
  const hasStarted = states.map(({ children, childFaults }) => `${children} ${childFaults}`);
  if (hasStarted[0] !== hasStarted[1]) faults.push("A turn without tools started a process.");
  if (hasStarted[1] === hasStarted[2]) faults.push("The watch for processes sees none.");
  const [first = NaN, second = NaN, third = NaN] = requests;
  const rows = (where: string, times: Times[]): Row[] => [
    [`message → acknowledged, ${where}`, spread(times.map((one) => one.ackMs)), "≤ 20 ms"],
    [`message → model request, ${where}`, spread(times.map((one) => one.requestMs))],
    [`message → answer posted, ${where}`, spread(times.map((one) => one.postMs))],
  ];
  return [
    ...rows("200 new conversations", fresh),
    ...rows("200 turns of one", warm),
    ["first tool call, with the sandbox's start", show(second - first), "≤ 500 ms"],
    ["second tool call", show(third - second), "≤ 5 ms"],
  ];
}

async function measureLoad(): Promise<Row[]> {
  await using rig = await new Rig({}).serve();
  rig.checksOrder = true;
  const [total, kills] = [conversations * rounds, Number(flags.kills)];
  const [acks, restarts]: [number[], number[]] = [[], []];
  const lives: ReturnType<typeof readProcess>[] = [];
  const begin = now();
  await inParallel(50, total, async (n) => {
    const pair = Math.floor(n / 2); // of neighbours, which may become one turn
    const sent = rig.send(pair % conversations, 2 * Math.floor(pair / conversations) + (n % 2));
    if (n > 0 && n % Math.ceil(total / (kills + 1)) === 0) {
      lives.push(rig.process());
      await rig.kill();
      const at = now();
      await rig.serve();
      restarts.push(now() - at);
    }
    acks.push(await sent);
  });
  await until(() => rig.answeredAt.size === total, 120_000).catch(() => faults.push("Too slow."));
  const seconds = (now() - begin) / 1_000;
  lives.push(rig.process());
  await checkLoad(rig);
  const cpuMs = lives.reduce((sum, life) => sum + life.cpuMs, 0) / total;
  return [
    [`${total} messages in ${conversations} conversations`, show(seconds, "s")],
    [
      "messages a second; the daemon's own CPU for one",
      `${(total / seconds).toFixed(0)}; ${show(cpuMs)}`,
    ],
    ["message → acknowledged", spread(acks), "< 3 s (Slack's limit)"],
    [`kill -9 → serving again, ${kills} times`, spread(restarts)],
    ["peak RSS", show(Math.max(...lives.map(({ peakMb }) => peakMb)), "MB")],
    ["posts", `${rig.counts.posts}`],
  ];
}

/** Each message was shown to the model and answered, once and in order, and nothing is left over. */
async function checkLoad({ answers, place }: Rig): Promise<void> {
  for (let conversation = 0; conversation < conversations; conversation++) {
    const wanted = Array.from({ length: rounds }, (_, n) => tokenOf(conversation, n)).join();
    const got = answers.get(channelOf(conversation))?.join();
    if (got !== wanted) faults.push(`${channelOf(conversation)} was answered ${got}`);
  }
  const { stdout } = await runClaw(place, ["status", "--json"]);
  const { queue, outbox, running, errors } = JSON.parse(stdout);
  const left = [queue, outbox, running, errors].flatMap((rows) => Object.values(rows));
  if (left.some(Boolean)) faults.push(`Left over: ${JSON.stringify(left)}`);
}

async function measureIdle(): Promise<Row[]> {
  await using rig = await new Rig({}).serve();
  const seconds = Number(flags.seconds);
  await Bun.sleep(3_000); // its start is over
  const { cpuMs: before } = rig.process();
  await Bun.sleep(seconds * 1_000);
  const { cpuMs, rssMb } = rig.process();
  return [
    [`RSS after ${seconds} s`, show(rssMb, "MB"), "≤ 120 MB"],
    [`CPU over ${seconds} s`, show((cpuMs - before) / seconds / 10, "% of a core"), "≤ 0.5 %"],
  ];
}

async function measureGrowth(): Promise<Row[]> {
  await using rig = await new Rig({}).serve();
  const [rows, times]: [Row[], number[]] = [[], []];
  await inParallel(8, Number(flags.messages), async (n) => {
    const { postMs } = await rig.ask(n % 100, Math.floor(n / 100));
    if (![1_000, 10_000, 100_000].includes(times.push(postMs))) return;
    const { rssMb, peakMb } = rig.process();
    const sizes = `${show(rssMb, "MB")}, peak ${show(peakMb, "MB")}`;
    rows.push([`RSS after ${times.length} messages in 100 conversations`, sizes]);
  });
  const ends = [times.slice(0, 1_000), times.slice(-1_000)].map(median);
  const bytes = Bun.file(`${rig.place.clawHome}/claw.db`).size;
  return [
    ...rows,
    ["a turn, 8 at a time, the first and the last 1,000", ends.join(" → ")],
    [`claw.db after ${flags.messages} messages`, show(bytes / 1e6, "MB")],
    ...(await measureLength(1_000)),
  ];
}

/** What the length of a conversation costs its next turn. */
async function measureLength(turns: number): Promise<Row[]> {
  await using rig = await new Rig({}).serve();
  const times: Times[] = [];
  for (let n = 0; n < turns; n++) times.push(await rig.ask(0, n));
  const ends = (of: (one: Times) => number) =>
    [times.slice(0, 50), times.slice(-50)].map((part) => median(part.map(of))).join(" → ");
  const where = `turns 1-50 → ${turns - 49}-${turns} of one conversation`;
  return [
    [`message → model request, ${where}`, ends(({ requestMs }) => requestMs)],
    [`model request → answer posted, ${where}`, ends((one) => one.postMs - one.requestMs)],
    [`model request ${turns}`, show(rig.counts.requestBytes / 1e3, "kB")],
  ];
}

async function measureSchedule(): Promise<Row[]> {
  await using rig = await new Rig({}).serve();
  const lateMs: number[] = [];
  rig.act = ({ body }) => {
    const [due = ""] = /(?<= due=..)[^"\\]+/.exec(body.slice(body.lastIndexOf("<schedule"))) ?? [];
    lateMs.push(Date.now() - Date.parse(due));
    return { text: tokenOf(0, lateMs.length) };
  };
  const what = `--name tick --message tick --every 10s --channel slack --to ${channelOf(0)}`;
  const { code, stderr } = await runClaw(rig.place, ["cron", "add", ...what.split(" ")]);
  if (code !== 0) throw new Error(stderr);
  await until(() => lateMs.length === 3, 60_000);
  return [["3 slots → model requests", lateMs.map((ms) => show(ms)).join(", "), "≤ 1 s"]];
}

const parts: Record<string, () => Promise<Row[]>> = {
  latency: measureLatency,
  load: measureLoad,
  idle: measureIdle,
  growth: measureGrowth,
  schedule: measureSchedule,
};
const table = ["| part | figure | measured | wanted |", "| --- | --- | --- | --- |"];
for (const name of positionals.length > 0 ? positionals : Object.keys(parts)) {
  const part = parts[name];
  if (!part) throw new Error(`There is no part "${name}"; there are ${Object.keys(parts).join()}.`);
  for (const [figure, measured, wanted = ""] of await part())
    table.push(`| ${name} | ${figure} | ${measured} | ${wanted} |`);
}
table.push("", `load of the machine: ${readFileSync("/proc/loadavg", "latin1").trim()}`);
table.push(...faults.slice(0, 20).map((fault) => `fault: ${fault}`), `faults: ${faults.length}`);
console.log(table.join("\n"));
process.exit(faults.length > 0 ? 1 : 0);
