/**
 * `bun test/bench/serve.ts [PART…] [--seconds N] [--messages N]`: the built daemon from Slack's socket
 * to chat.postMessage and back, against a Slack and a model of the test's own. Parts: latency, load,
 * idle, growth, schedule; all of them where none is named.
 *
 * Every message holds a token of its own and the model repeats the tokens it has not yet answered, so
 * that each answer can be checked: what was lost, doubled or disordered is printed as a fault, and
 * the exit code is then 1. Slack and the model run in this process, on a core that the daemon may
 * want too: figures are upper bounds. Linux alone (/proc).
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { newPlace, runClaw, until } from "../claw.ts";
import { type Recorded, type Reply, startScripted } from "../scripted.ts";
import { owner, saidIn, startServe } from "../serve.ts";
import { SlackServer } from "../slack-server.ts";

type Row = { figure: string; measured: string; wanted?: string };
const faults: string[] = [];

// ── The daemon and what it talks to ─────────────────────────────────────────────────────────────

/** A Slack that says when something is posted, and forgets what is long past. */
class Slack extends SlackServer {
  onPost = (_channel: string, _text: string): void => {};
  constructor(readonly kept: number) {
    super({});
  }
  override echo(...[place, event]: Parameters<SlackServer["echo"]>): void {
    super.echo(place, event);
    if (event.subtype === undefined) this.onPost(place.channel, String(event.text));
    for (const list of [this.posts, this.heard, this.calls, this.acks])
      if (list.length > 2 * this.kept) list.splice(0, this.kept);
  }
}

const now = () => performance.now();
const tokensOf = (text: string): string[] => text.match(/\bc\d+m\d+\b/g) ?? [];
const channelOf = (conversation: number) => `DBENCH${conversation}`;
const tokenOf = (conversation: number, n: number) => `c${conversation}m${n}`;
const textOf = (token: string) =>
  `${token}: tell me which messages you have seen by now, so that each can be checked.`;

type Times = { ackMs: number; requestMs: number; postMs: number };

/** `kept`: how many messages Slack remembers at least. */
async function openRig(kept = 1_000) {
  const place = newPlace();
  const slack = new Slack(kept);
  /** When each token first reached the model; what was posted in each channel, in order. */
  const seenAt = new Map<string, number>();
  const answered = new Map<string, string[]>();
  const waiting = new Map<string, (at: number) => void>();
  let [posts, answers, requestBytes] = [0, 0, 0];
  /** Takes the place of the model's answer. */
  let act: ((request: Recorded) => Reply) | null = null;

  slack.onPost = (channel, text) => {
    posts += 1;
    const tokens = tokensOf(text);
    if (tokens.length === 0) faults.push(`${channel} was told: ${text}`);
    const list = answered.get(channel) ?? [];
    answered.set(channel, list);
    list.push(...tokens);
    answers += tokens.length;
    for (const token of tokens) waiting.get(token)?.(now());
  };

  function answer(request: Recorded): Reply {
    const at = now();
    model.requests.length = 0;
    requestBytes = request.body.length;
    const usage = { input: Math.round(requestBytes / 4), output: 40 };
    if (act) return act(request);
    const messages: { role: string; content: unknown }[] = request.json.messages;
    const end = messages.findLastIndex(({ role }) => role === "assistant") + 1;
    const said = (from: number) =>
      tokensOf(saidIn({ json: { messages: messages.slice(from) } }).join("\n"));
    const fresh = said(end);
    for (const token of fresh) if (!seenAt.has(token)) seenAt.set(token, at);
    if (kept > 1_000) checkOrder(said(0));
    return { text: `I have seen ${fresh.join(" ")} and nothing else since my last answer.`, usage };
  }

  const model = startScripted(answer);
  const serve = () => startServe(place, { slack, model });
  let served = await serve();
  return {
    place,
    slack,
    seenAt,
    answered,
    pid: () => served.pid,
    posts: () => posts,
    answers: () => answers,
    requestBytes: () => requestBytes,
    act: (script: typeof act) => (act = script),
    /** kill -9, and another daemon; resolves with the time until that one serves. */
    async restart(): Promise<number> {
      await served[Symbol.asyncDispose]();
      const at = now();
      served = await serve();
      return now() - at;
    },
    /** Says something and waits for the answer to it. */
    async ask(conversation: number, n: number): Promise<Times> {
      const [channel, token] = [channelOf(conversation), tokenOf(conversation, n)];
      const posted = Promise.withResolvers<number>();
      waiting.set(token, posted.resolve);
      const at = now();
      await slack.say({ channel, user: owner, text: textOf(token) });
      const ackMs = now() - at;
      const postMs = (await inTime(posted.promise, `the answer to ${token}`)) - at;
      waiting.delete(token);
      return { ackMs, requestMs: (seenAt.get(token) ?? NaN) - at, postMs };
    },
    async [Symbol.asyncDispose]() {
      await served[Symbol.asyncDispose]();
      model.stop();
      slack.stop();
      place[Symbol.dispose]();
    },
  };
}

async function inTime<T>(promise: Promise<T>, what: string): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error(`${what} did not come in 60 s.`)), 60_000);
  return Promise.race([promise, late.promise]).finally(() => clearTimeout(timer));
}

/** All that a model is shown of a conversation is of that one, once, and in order. */
function checkOrder(tokens: string[]): void {
  const [conversation] = tokens[0]?.split("m") ?? [];
  const inOrder = tokens.map((_, n) => `${conversation}m${n}`);
  if (tokens.join() !== inOrder.join()) faults.push(`The model was shown ${tokens.join()}`);
}

/** Calls `work` with 0 … count - 1, at most `width` at a time, in that order. */
async function inParallel(width: number, count: number, work: (n: number) => Promise<void>) {
  let next = 0;
  const worker = async () => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: width }, worker));
}

// ── Figures ─────────────────────────────────────────────────────────────────────────────────────

/** RSS now and at its peak, CPU time, children that live, page faults of children that ended. */
function readProcess(pid: number) {
  const status = readFileSync(`/proc/${pid}/status`, "latin1");
  const megabytes = (name: string) =>
    (Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)?.[1]) * 1024) / 1e6;
  const stat = statOf(pid);
  const children = readdirSync("/proc").filter((name) => statOf(Number(name))[1] === `${pid}`);
  const [rssMb, peakMb] = [megabytes("VmRSS"), megabytes("VmHWM")];
  const [cpuMs, childFaults] = [(Number(stat[11]) + Number(stat[12])) * 10, Number(stat[8])];
  return { rssMb, peakMb, cpuMs, children: children.length, childFaults };
}

/** From the third field (the state) on; nothing for what is no process any more. */
function statOf(pid: number): string[] {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    return []; // it ended while we looked
  }
}

function quantile(values: number[], part: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? NaN;
}
const median = (values: number[]) => quantile(values, 0.5);
const show = (value: number, unit: string) => `${value.toFixed(value < 10 ? 2 : 1)} ${unit}`;
const spread = (values: number[]) =>
  `${show(median(values), "ms")}, p95 ${show(quantile(values, 0.95), "ms")}`;

// ── Parts ───────────────────────────────────────────────────────────────────────────────────────

async function measureLatency(): Promise<Row[]> {
  await using rig = await openRig();
  const before = readProcess(rig.pid());
  const [fresh, warm]: Times[][] = [[], []];
  for (let n = 0; n < 200; n++) fresh?.push(await rig.ask(n, 0));
  for (let n = 0; n < 200; n++) warm?.push(await rig.ask(1_000, n));
  const after = readProcess(rig.pid());
  const started = (then: typeof before, at: typeof before) =>
    at.children > then.children || at.childFaults !== then.childFaults;
  if (started(before, after)) faults.push("A turn without tools started a process.");

  const marks: number[] = [];
  const bash = { name: "Bash", input: { command: "true" } };
  rig.act(() => {
    marks.push(now());
    const isDone = marks.length > 2;
    return isDone ? { text: tokenOf(1_000, 200) } : { calls: [bash] };
  });
  await rig.ask(1_000, 200).catch(() => faults.push("The turn with tools was not answered."));
  if (!started(after, readProcess(rig.pid()))) faults.push("The watch for processes sees none.");
  const [first = NaN, second = NaN, third = NaN] = marks;
  const rows = (name: string, all: Times[] = []): Row[] => [
    {
      figure: `message → acknowledged, ${name}`,
      measured: spread(all.map(({ ackMs }) => ackMs)),
      wanted: "≤ 20 ms",
    },
    {
      figure: `message → first model request, ${name}`,
      measured: spread(all.map(({ requestMs }) => requestMs)),
    },
    { figure: `message → answer posted, ${name}`, measured: spread(all.map((one) => one.postMs)) },
  ];
  return [
    ...rows("200 new conversations", fresh),
    ...rows("one of 200 turns", warm),
    { figure: "first tool call, sandbox and all", measured: show(second - first, "ms") },
    { figure: "second tool call, same sandbox", measured: show(third - second, "ms") },
  ];
}

const conversations = 1_000;
const rounds = 10;

async function measureLoad(): Promise<Row[]> {
  await using rig = await openRig(30_000);
  const total = conversations * rounds;
  const acks: number[] = [];
  const peaks: number[] = [];
  let restartMs = NaN;
  const begin = now();
  await inParallel(50, total, async (n) => {
    if (n === total / 2) {
      peaks.push(readProcess(rig.pid()).peakMb);
      restartMs = await rig.restart();
    }
    const [conversation, round] = [n % conversations, Math.floor(n / conversations)];
    const [channel, at] = [channelOf(conversation), now()];
    await rig.slack.say({ channel, user: owner, text: textOf(tokenOf(conversation, round)) });
    acks.push(now() - at);
  });
  const saidMs = now() - begin;
  await settle(rig.answers, total);
  const totalMs = now() - begin;
  peaks.push(readProcess(rig.pid()).peakMb);
  checkAnswers(rig);
  await checkNothingWaits(rig);
  return [
    {
      figure: `${total} messages in ${conversations} conversations`,
      measured: show(totalMs / 1000, "s"),
    },
    { figure: "messages a second", measured: show(total / (totalMs / 1000), "") },
    { figure: "all of them acknowledged after", measured: show(saidMs / 1000, "s") },
    { figure: "acknowledged under load", measured: spread(acks), wanted: "< 3 s (Slack's limit)" },
    { figure: "kill -9 → serving again", measured: show(restartMs, "ms") },
    {
      figure: "peak RSS",
      measured: peaks.map((peak) => show(peak, "MB")).join(", after the kill "),
    },
    { figure: "posts (a burst is one turn)", measured: String(rig.posts()) },
  ];
}

type Rig = Awaited<ReturnType<typeof openRig>>;

/** Waits until `count` is reached, or has not moved for half a minute. */
async function settle(count: () => number, wanted: number): Promise<void> {
  for (let [last, at] = [count(), now()]; last < wanted && now() - at < 30_000;) {
    await Bun.sleep(5);
    if (count() !== last) [last, at] = [count(), now()];
  }
}

/** Each message was shown to the model and answered, once and in order. */
function checkAnswers({ answered, seenAt }: Rig): void {
  for (let conversation = 0; conversation < conversations; conversation++) {
    const wanted = Array.from({ length: rounds }, (_, n) => tokenOf(conversation, n));
    const unseen = wanted.filter((token) => !seenAt.has(token));
    if (unseen.length > 0) faults.push(`The model never saw ${unseen.join()}`);
    const got = answered.get(channelOf(conversation)) ?? [];
    if (got.join() !== wanted.join()) faults.push(`${channelOf(conversation)} got ${got.join()}`);
  }
}

async function checkNothingWaits({ place }: Rig): Promise<void> {
  const { stdout } = await runClaw(place, ["status", "--json"]);
  const { queue, outbox, running, errors } = JSON.parse(stdout);
  const { oldest: _, ...rows } = outbox;
  const left = [...Object.values(queue), ...Object.values(rows)].some((count) => count !== 0);
  if (left || running.length > 0 || errors.length > 0)
    faults.push(`claw status: ${JSON.stringify({ queue, outbox, running, errors })}`);
}

async function measureIdle({ seconds }: Options): Promise<Row[]> {
  await using rig = await openRig();
  await Bun.sleep(3_000); // its start is over
  const before = readProcess(rig.pid());
  await Bun.sleep(seconds * 1_000);
  const after = readProcess(rig.pid());
  const cpu = (after.cpuMs - before.cpuMs) / (seconds * 10);
  return [
    { figure: `RSS after ${seconds} s`, measured: show(after.rssMb, "MB"), wanted: "≤ 120 MB" },
    { figure: `CPU over ${seconds} s`, measured: show(cpu, "% of a core"), wanted: "≤ 0.5 %" },
  ];
}

async function measureGrowth({ messages }: Options): Promise<Row[]> {
  const rows: Row[] = [];
  await using rig = await openRig();
  const times: number[] = [];
  await inParallel(8, messages, async (n) => {
    times.push((await rig.ask(n % 100, Math.floor(n / 100))).postMs);
    if (![1_000, 10_000, 100_000].includes(times.length)) return;
    const { rssMb, peakMb } = readProcess(rig.pid());
    const measured = `${show(rssMb, "MB")}, peak ${show(peakMb, "MB")}`;
    rows.push({ figure: `RSS after ${times.length} messages in 100 conversations`, measured });
  });
  const ends = [times.slice(0, 1_000), times.slice(-1_000)].map((part) => show(median(part), "ms"));
  const file = statSync(join(rig.place.clawHome, "claw.db")).size / 1e6;
  return [
    ...rows,
    { figure: "a turn, 8 at a time, first and last 1,000", measured: ends.join(" → ") },
    { figure: "claw.db", measured: show(file, "MB") },
    ...(await measureLength()),
  ];
}

/** What the length of a conversation costs its next turn. */
async function measureLength(turns = 1_000): Promise<Row[]> {
  await using rig = await openRig();
  const times: Times[] = [];
  for (let n = 0; n < turns; n++) times.push(await rig.ask(0, n));
  const ends = [times.slice(0, 50), times.slice(-50)];
  const row = (name: string, of: (one: Times) => number): Row => ({
    figure: `one conversation, turns 1-50 → ${turns - 49}-${turns}: ${name}`,
    measured: ends.map((part) => show(median(part.map(of)), "ms")).join(" → "),
  });
  return [
    row("a turn", ({ postMs }) => postMs),
    row("message → model request", ({ requestMs }) => requestMs),
    row("model request → posted", ({ postMs, requestMs }) => postMs - requestMs),
    { figure: "its last request", measured: show(rig.requestBytes() / 1e3, "kB") },
  ];
}

async function measureSchedule(): Promise<Row[]> {
  await using rig = await openRig();
  const lateMs: number[] = [];
  rig.act(({ body }) => {
    const [due = ""] = /(?<=due=..)[^"\\]+/.exec(body.slice(body.lastIndexOf("<schedule"))) ?? [];
    lateMs.push(Date.now() - Date.parse(due));
    return { text: `c0m${lateMs.length}` };
  });
  const flags = ["--name", "tick", "--message", "tick", "--every", "10s"];
  const to = ["--channel", "slack", "--to", channelOf(0)];
  const { code, stderr } = await runClaw(rig.place, ["cron", "add", ...flags, ...to]);
  if (code !== 0) faults.push(`claw cron add ended with ${code}: ${stderr}`);
  else await until(() => lateMs.length === 3, 60_000);
  const measured = lateMs.map((ms) => show(ms, "ms")).join(", ");
  return [{ figure: "slot → first model request, 3 slots", measured, wanted: "≤ 1 s" }];
}

// ── All of it ───────────────────────────────────────────────────────────────────────────────────

const parts: Record<string, (options: Options) => Promise<Row[]>> = {
  latency: measureLatency,
  load: measureLoad,
  idle: measureIdle,
  growth: measureGrowth,
  schedule: measureSchedule,
};

type Options = { seconds: number; messages: number };

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: "string", default: "60" },
    messages: { type: "string", default: "10000" },
  },
});
const options = { seconds: Number(values.seconds), messages: Number(values.messages) };
const lines = ["| part | figure | measured | wanted |", "| --- | --- | --- | --- |"];
const loads = [loadavg()[0]];
for (const name of positionals.length > 0 ? positionals : Object.keys(parts)) {
  const part = parts[name];
  if (!part) throw new Error(`There is no part "${name}"; there are ${Object.keys(parts).join()}.`);
  for (const { figure, measured, wanted = "" } of await part(options))
    lines.push(`| ${name} | ${figure} | ${measured} | ${wanted} |`);
  loads.push(loadavg()[0]);
}
console.log(lines.join("\n"));
console.log(`\nload average of the machine: ${loads.map((load) => load?.toFixed(1)).join(" → ")}`);
for (const fault of faults.slice(0, 20)) console.log(`FAULT ${fault}`);
if (faults.length > 0) console.log(`${faults.length} faults`);
process.exit(faults.length > 0 ? 1 : 0);
