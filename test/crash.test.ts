/**
 * The daemon is killed at its n-th step, for every n until a run needs no kill: at each durable write,
 * each send, each read. The next daemon has to end what was begun: one answer, no more and no less.
 *
 * strace kills it (`inject=…:signal=KILL:when=n`; -D makes the daemon our own child), so nothing in
 * the program knows of this.
 */
import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { binary, newPlace, type Place, runClaw, until } from "./claw.ts";
import { type Recorded, startScripted } from "./scripted.ts";
import { owner, startServe } from "./serve.ts";
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
  const { stdout } = await runClaw(place, ["status", "--json"]);
  const status = JSON.parse(stdout) as { queue: object; outbox: object; running: unknown[] };
  expect([step, status.queue]).toMatchObject([step, { waiting: 0, taken: 0 }]);
  expect([step, status.outbox]).toMatchObject([step, { pending: 0, sending: 0 }]);
  const folder = [
    ...new Bun.Glob("groups/*").scanSync({ cwd: place.clawHome, onlyFiles: false }),
  ][0];
  const ran = join(place.clawHome, folder ?? "", "ran.txt");
  const times = existsSync(ran) ? readFileSync(ran, "utf8").split("\n").length - 1 : 0;
  expect([step, times <= 1]).toEqual([step, true]); // never again without the model's word
  return wasKilled;
}

for (const call of ["fsync", "sendto", "recvfrom"])
  test(`killed at every ${call}: one answer, nothing lost, nothing stuck`, async () => {
    let next = 1;
    let isOver = false;
    const work = async (): Promise<void> => {
      while (!isOver) if (!(await killAt(`${call}:when=${next++}`))) isOver = true;
    };
    await Promise.all(Array.from({ length: atOnce }, work));
    expect(next).toBeGreaterThan(5);
  }, 300_000);
