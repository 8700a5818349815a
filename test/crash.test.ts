/**
 * The daemon is killed at its n-th step, for every n until a run needs no kill: at each durable write,
 * each send, each read. The next daemon has to end what was begun: one answer, no more and no less.
 * Where a mail may or may not have gone out, it has to say so instead, once.
 *
 * strace kills it (`inject=…:signal=KILL:when=n`; -D makes the daemon our own child), so nothing in
 * the program knows of this. Over mail, and with files, the steps count from the model's answer on.
 */
import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { binary, newPlace, type Place, runClaw, until } from "./claw.ts";
import { letter, type MailServer, missing, startMail } from "./mail-server.ts";
import { framesOf, type Recorded, type Reply, sse, startScripted } from "./scripted.ts";
import { owner, type Served, startServe } from "./serve.ts";
import { type SlackServer, startSlack } from "./slack-server.ts";

const atOnce = 3;
const answer = "It is done.";

/** One command, then the answer, whatever the command's result says. */
const model = (request: Recorded) =>
  request.json.messages.at(-1).role === "tool"
    ? { text: answer }
    : { calls: [{ name: "Bash", input: { command: "echo ran >> ran.txt" } }] };

const answersIn = (slack: SlackServer) =>
  slack.posts.filter((post) => !post.deleted && post.text === answer);

/** Runs the daemon until it is killed at step n, or has answered. True: it was killed. */
async function runUntilKilled(
  place: Place,
  slack: SlackServer,
  env: Record<string, string>,
  step: string,
) {
  const [call] = step.split(":");
  const trace = [
    "-D",
    "-f",
    "-qq",
    "-o",
    "/dev/null",
    "-e",
    `trace=${call}`,
    "-e",
    `inject=${call}:signal=KILL:${step.split(":")[1]}`,
  ];
  const serve = ["serve", "--isolation", "bwrap", "--model", "openai/scripted"];
  const child = Bun.spawn(["strace", ...trace, binary, ...serve], {
    cwd: place.cwd,
    env: { ...place.env, ...slack.env, ...env, CLAW_OWNER: `slack:${owner}` },
    stdio: ["ignore", "ignore", "ignore"],
  });
  const inTime = Date.now() + 20_000;
  while (child.exitCode === null && child.signalCode === null && Date.now() < inTime) {
    if (answersIn(slack).length > 0 && slack.reactions.length === 0) {
      await Bun.sleep(150); // what follows the answer: the outbox's row
      break;
    }
    await Bun.sleep(10);
  }
  const wasKilled = child.exitCode !== null || child.signalCode !== null;
  child.kill("SIGKILL");
  await child.exited;
  return wasKilled;
}

/** False: the run needed no kill, so n was past its last step. */
async function killAt(step: string): Promise<boolean> {
  using place = newPlace();
  using slack = startSlack();
  using scripted = startScripted(model);
  const env = scripted.env("openai");
  const said = slack.say({ channel: "DOWNER1", user: owner, text: "do it" }).catch(() => null);
  const wasKilled = await runUntilKilled(place, slack, env, step);
  {
    await using served = await startServe(place, { slack, model: scripted });
    try {
      await until(() => answersIn(slack).length > 0, 20_000);
    } catch {
      throw new Error(`Killed at ${step}, and never answered:\n${served.err()}`);
    }
    await said;
    await Bun.sleep(200); // an answer too many would come now
    const posts = slack.posts.filter(({ deleted }) => !deleted).map(({ text }) => text);
    expect([step, posts]).toEqual([step, [answer]]);
  }
  await expectNothingStuck(place, step);
  const folder = [
    ...new Bun.Glob("groups/*").scanSync({ cwd: place.clawHome, onlyFiles: false }),
  ][0];
  const ran = join(place.clawHome, folder ?? "", "ran.txt");
  const times = existsSync(ran) ? readFileSync(ran, "utf8").split("\n").length - 1 : 0;
  expect([step, times <= 1]).toEqual([step, true]); // never again without the model's word
  return wasKilled;
}

/** Waits for what is under way. */
async function expectNothingStuck(place: Place, step: string): Promise<void> {
  const done = { queue: { waiting: 0, taken: 0 }, outbox: { pending: 0, sending: 0 } };
  for (const deadline = Date.now() + 20_000; ; await Bun.sleep(100)) {
    const { stdout } = await runClaw(place, ["status", "--json"]);
    const status = JSON.parse(stdout);
    if (Bun.deepMatch(done, status)) return;
    if (Date.now() > deadline) expect([step, status]).toMatchObject([step, done]);
  }
}

/** Every n, some at a time, until one run was not killed; the last n. */
async function atEveryStep(
  killAtN: (n: number, lane: number) => Promise<boolean>,
  first = 1,
): Promise<number> {
  let next = first;
  let isOver = false;
  const work = async (_: unknown, lane: number): Promise<void> => {
    while (!isOver) if (!(await killAtN(next++, lane))) isOver = true;
  };
  await Promise.all(Array.from({ length: atOnce }, work));
  return next;
}

for (const call of ["fsync", "sendto", "recvfrom"])
  test(`killed at every ${call}: one answer, nothing lost, nothing stuck`, async () => {
    const steps = await atEveryStep((n) => killAt(`${call}:when=${n}`));
    expect(steps).toBeGreaterThan(5);
  }, 300_000);

// ── From the model's answer on ──────────────────────────────────────────────────────────────────

/**
 * A model whose answers `reply` makes, and which has strace kill the daemon at a later step of the
 * first one that `isLast`.
 */
function startDeadlyModel(step: string, reply: (request: Recorded) => Reply & { isLast?: true }) {
  let served: Served | null = null;
  let strace: Bun.Subprocess | null = null;
  const model = startScripted((request) => ({
    async raw() {
      const { isLast, ...rest } = reply(request);
      if (isLast && served && !strace) strace = await attach(served.pid, step);
      return sse(framesOf(rest, request.wire));
    },
  }));
  return Object.assign(model, {
    /** Runs the daemon until it is killed, or, a little after it is done. True: it was killed. */
    async kill(daemon: Served, isDone: () => boolean): Promise<boolean> {
      served = daemon;
      let wasKilled = false;
      void daemon.exited.then(() => (wasKilled = true));
      await until(() => wasKilled || isDone(), 20_000);
      for (let ms = 0; ms < 400 && !wasKilled; ms += 10) await Bun.sleep(10); // the outbox's row
      const result = wasKilled;
      await daemon[Symbol.asyncDispose]();
      await strace?.exited;
      return result;
    },
  });
}

/** Resolves when each of its threads is traced. */
async function attach(pid: number, step: string): Promise<Bun.Subprocess> {
  const [call] = step.split(":");
  const inject = `inject=${call}:signal=KILL:${step.split(":")[1]}`;
  const options = ["-f", "-p", `${pid}`, "-o", "/dev/null", "-e", `trace=${call}`, "-e", inject];
  const stdio: ["ignore", "ignore", "pipe"] = ["ignore", "ignore", "pipe"];
  const strace = Bun.spawn(["strace", ...options], { stdio });
  const { value } = await strace.stderr.getReader().read();
  const said = new TextDecoder().decode(value);
  if (!said.includes("attached")) throw new Error(`strace does not attach: ${said}`);
  return strace;
}

// ── Mail ────────────────────────────────────────────────────────────────────────────────────────

let letters = 0;
/** Where the owner was told that a mail may or may not have gone out. */
const doubts: string[] = [];

async function killMailAt(step: string, mail: MailServer): Promise<boolean> {
  using place = newPlace();
  const id = (letters += 1);
  const from = `ada-${id}@home.test`;
  using model = startDeadlyModel(step, () => ({ text: answer, isLast: true }));
  const env = { ...mail.env, CLAW_OWNER: `email:${from}` };
  const mails = () => mail.received().filter((raw) => raw.includes(`Envelope-to: ${from}`));
  const served = await startServe(place, { model, env });
  await mail.deliver(letter(id, { from }));
  const wasKilled = await model.kill(served, () => mails().length > 0);
  {
    await using next = await startServe(place, { model, env });
    await until(() => mails().length > 0, 20_000).catch(() => {
      throw new Error(`Killed at ${step}, and all was lost:\n${next.err()}`);
    });
    await expectNothingStuck(place, step);
    await Bun.sleep(100); // a mail too many would come now
  }
  const replies = mails().filter((raw) => raw.includes("In-Reply-To"));
  const notices = mails().filter((raw) => !raw.includes("In-Reply-To"));
  expect([step, replies.length <= 1, notices.length <= 1]).toEqual([step, true, true]);
  for (const notice of notices) {
    const words = notice.replaceAll(/=\r?\n/g, "");
    for (const part of [`"Re: Mail ${id}"`, from, "may or may not have gone out", "draft"])
      expect([step, words]).toEqual([step, expect.stringContaining(part)]);
    doubts.push(step);
  }
  const copies = (await mail.mailbox("Sent")).filter(({ raw }) => raw.includes(`<m${id}@x.org>`));
  const areDrafts = copies.map(({ flags }) => flags.includes("\\Draft"));
  expect([step, areDrafts]).toEqual([step, [notices.length > 0]]);
  return wasKilled;
}

test.skipIf(missing !== null)(
  "mail, killed at every write, send, read: one answer, or one word that it may have gone out",
  async () => {
    await using stack = new AsyncDisposableStack();
    const kill = (call: string, first: number) => {
      const mails: MailServer[] = [];
      return atEveryStep(async (n, lane) => {
        mails[lane] ??= stack.use(await startMail());
        return killMailAt(`${call}:when=${n}`, mails[lane]);
      }, first);
    };
    // Before these the connections to both servers are not there.
    const lasts = await Promise.all([kill("fsync", 1), kill("sendto", 12), kill("recvfrom", 10)]);
    expect([lasts[0] > 3, lasts[1] > 20, lasts[2] > 15]).toEqual([true, true, true]);
    expect(doubts.length).toBeWithin(1, 20);
  },
  300_000,
);

// ── Files in Slack ──────────────────────────────────────────────────────────────────────────────

const report = { name: "report.txt", content: "All is well." };
const words = "The report.";

/** Writes a file, sends it, and answers. */
function sendReport({ json }: Recorded): Reply & { isLast?: true } {
  const said = json.messages as { tool_calls?: unknown[] }[];
  const steps = said.flatMap((one) => one.tool_calls ?? []).length;
  const { name: file_path, content } = report;
  if (steps === 0) return { calls: [{ name: "Write", input: { file_path, content } }] };
  const input = { text: words, files: [report.name] };
  return steps === 1 ? { calls: [{ name: "SendMessage", input }], isLast: true } : { text: answer };
}

/** How many times the report was sent, over all runs. */
let reports = 0;

async function killFilesAt(step: string): Promise<boolean> {
  using place = newPlace();
  using slack = startSlack();
  using model = startDeadlyModel(step, sendReport);
  const served = await startServe(place, { slack, model });
  void slack.say({ channel: "DOWNER1", user: owner, text: "report" }).catch(() => "killed");
  const wasKilled = await model.kill(served, () => answersIn(slack).length > 0);
  {
    await using next = await startServe(place, { slack, model });
    await until(() => answersIn(slack).length > 0, 20_000).catch(() => {
      throw new Error(`Killed at ${step}, and never answered:\n${next.err()}`);
    });
    await expectNothingStuck(place, step);
  }
  const posts = slack.posts.filter(({ deleted }) => !deleted);
  const texts = posts.map(({ text, files }) => (files ? files.map(({ name }) => name) : text));
  const isSent = texts.includes(words);
  reports += Number(isSent);
  const whole = [words, [report.name], answer];
  expect([step, texts]).toEqual([step, isSent ? whole : [answer]]);
  return wasKilled;
}

test("files in Slack, killed at every write, send, read: text and files, once", async () => {
  const kill = (call: string) => atEveryStep((n) => killFilesAt(`${call}:when=${n}`));
  const lasts = await Promise.all([kill("fsync"), kill("sendto"), kill("recvfrom")]);
  for (const last of lasts) expect(last).toBeGreaterThan(5);
  expect(reports).toBeGreaterThan(10);
}, 300_000);
