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
  for (const deadline = Date.now() + 20_000; ; await Bun.sleep(50)) {
    const { stdout } = await runClaw(place, ["status", "--json"]);
    const status = JSON.parse(stdout);
    if (Bun.deepMatch(done, status)) return;
    if (Date.now() > deadline) expect([step, status]).toMatchObject([step, done]);
  }
}

/** Every n, some at a time, until one run was not killed; how many were begun. */
async function atEveryStep(lanes: number, killAtN: (n: number, lane: number) => Promise<boolean>) {
  let next = 1;
  let isOver = false;
  const work = async (_: unknown, lane: number): Promise<void> => {
    while (!isOver) if (!(await killAtN(next++, lane))) isOver = true;
  };
  await Promise.all(Array.from({ length: lanes }, work));
  return next;
}

for (const call of ["fsync", "sendto", "recvfrom"])
  test(`killed at every ${call}: one answer, nothing lost, nothing stuck`, async () => {
    const steps = await atEveryStep(atOnce, (n) => killAt(`${call}:when=${n}`));
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
      const exited = daemon.exited.then(() => true);
      const ended = until(isDone, 20_000).then(() => Bun.sleep(400)); // what follows: the row
      const wasKilled = await Promise.race([exited, ended.then(() => false)]);
      await daemon[Symbol.asyncDispose]();
      await Promise.allSettled([ended, strace?.exited]);
      return wasKilled;
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

/** How often the owner was told that a mail may or may not have gone out. */
const doubts: string[] = [];

async function killMailAt(step: string, mail: MailServer): Promise<boolean> {
  using place = newPlace();
  const number = Number(step.split("=")[1]);
  const from = `ada-${step.replaceAll(/\W/g, "-")}@home.test`;
  using model = startDeadlyModel(step, () => ({ text: answer, isLast: true }));
  const env = { ...mail.env, CLAW_OWNER: `email:${from}` };
  const mails = () => mail.received().filter((raw) => raw.includes(`Envelope-to: ${from}`));
  const served = await startServe(place, { model, env });
  await mail.deliver(letter(number, { from }));
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
    for (const part of [`"Re: Mail ${number}"`, from, "may or may not have gone out", "draft"])
      expect([step, words]).toEqual([step, expect.stringContaining(part)]);
    doubts.push(step);
  }
  await expectCopies(step, mail, from, notices.length > 0);
  return wasKilled;
}

/** One copy of each mail in Sent; that of the reply is marked if nobody knows whether it went out. */
async function expectCopies(step: string, mail: MailServer, to: string, isInDoubt: boolean) {
  const copies = (await mail.mailbox("Sent")).filter(({ raw }) => raw.includes(`To: ${to}`));
  const draft = ({ flags }: { flags: string[] }) => flags.includes("\\Draft");
  const isReply = ({ raw }: { raw: string }) => raw.includes("In-Reply-To");
  const seen = [
    copies.filter(isReply).map(draft),
    copies.filter((one) => !isReply(one)).map(draft),
  ];
  expect([step, ...seen]).toEqual([step, [isInDoubt], isInDoubt ? [false] : []]);
}

for (const call of ["fsync", "sendto", "recvfrom"])
  test.skipIf(missing !== null)(
    `mail, killed at every ${call}: one answer, or one word that it may have gone out`,
    async () => {
      doubts.length = 0;
      await using stack = new AsyncDisposableStack();
      const mails = await Promise.all(Array.from({ length: atOnce }, startMail));
      for (const mail of mails) stack.use(mail);
      const steps = await atEveryStep(atOnce, (n, lane) =>
        killMailAt(`${call}:when=${n}`, mails[lane]!),
      );
      console.log(call, steps, doubts);
      expect(steps).toBeGreaterThan(3);
      if (call !== "fsync") expect(doubts.length).toBeGreaterThan(0);
      expect(doubts.length).toBeLessThan(steps / 2);
    },
    300_000,
  );
