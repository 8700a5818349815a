/** The heartbeat and questions: what depends on config and on clocks, in process. */
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { config } from "../src/config.ts";
import { openAccess } from "../src/serve/access.ts";
import type { Daemon } from "../src/serve/daemon.ts";
import { keepHeartbeat, readHeartbeat } from "../src/serve/heartbeat.ts";
import { quietWord } from "../src/serve/prompt.ts";
import { openQuestions } from "../src/serve/questions.ts";
import { readWord } from "../src/serve/words.ts";
import { openDatabase } from "../src/store/database.ts";
import { peopleIn } from "../src/store/people.ts";
import type { Message } from "../src/store/queue.ts";
import { schedulesIn } from "../src/store/schedules.ts";
import { newPlace } from "./claw.ts";

function daemonIn(clawHome: string): Daemon {
  const opened = openDatabase(clawHome);
  const access = openAccess([{ channel: "slack", address: "U1" }], peopleIn(opened));
  const parts = { clawHome, access, schedules: schedulesIn(opened), now: () => 0, log: () => {} };
  return parts as Partial<Daemon> as Daemon;
}

test("the heartbeat is off, comes with its time in config, and goes with it", async () => {
  using place = newPlace();
  const daemon = daemonIn(place.clawHome);
  const settings = config.serve.schedules;
  expect(settings.heartbeatMs).toBeNull();
  await keepHeartbeat(daemon);
  expect(daemon.schedules.list()).toEqual([]);
  settings.heartbeatMs = 1_800_000;
  try {
    await keepHeartbeat(daemon);
    await keepHeartbeat(daemon);
    const [beat, ...more] = daemon.schedules.list();
    expect(more).toEqual([]);
    expect(beat).toMatchObject({ id: "heartbeat", isolated: true, quiet: true, target: "U1" });
    expect(beat?.nextAt).toBe(1_800_000);
  } finally {
    settings.heartbeatMs = null;
  }
  await keepHeartbeat(daemon);
  expect(daemon.schedules.list()).toEqual([]);
});

test("a beat calls no model while HEARTBEAT.md is missing or says nothing", async () => {
  using place = newPlace();
  const daemon = daemonIn(place.clawHome);
  const beat = { body: { schedule: { id: "heartbeat" } } } as Message;
  const file = join(place.clawHome, "HEARTBEAT.md");
  expect(await readHeartbeat(daemon, beat)).toBeNull();
  writeFileSync(file, "# Things to watch\n\n<!-- none -->\n");
  expect(await readHeartbeat(daemon, beat)).toBeNull();
  writeFileSync(file, "# Things to watch\n\n- the build\n");
  const text = await readHeartbeat(daemon, beat);
  expect([text?.includes("the build"), text?.includes(quietWord)]).toEqual([true, true]);
  const other = { body: { schedule: { id: "k3v9wq2m" } } } as Message;
  expect(await readHeartbeat(daemon, other)).toBeUndefined();
});

test("a question nobody answers is a no; one that is answered is answered once", async () => {
  const questions = openQuestions(20);
  const { signal } = new AbortController();
  expect(await questions.ask("c", async () => {}, signal)).toMatchObject({ allow: false });
  let id = "";
  const answer = questions.ask("c", async (given) => void (id = given), signal);
  await Bun.sleep(1);
  expect([questions.openIn("c"), questions.openIn("d")]).toEqual([id, null]);
  expect(questions.answer(id, true)).toBe(true);
  expect(await answer).toEqual({ allow: true });
  expect(questions.answer(id, false)).toBe(false);
});

test.each([
  ["stop", "stop"],
  ["/stop", "stop"],
  ["Stop!", "stop"],
  ["stop the server", null],
  ["new idea", null],
  ["help", "help"],
  ["model", "model"],
  ["model ollama/qwen3:8b", "model"],
  ["model trains are nice", null],
  ["model citizen", null],
  ["mode edit", "mode"],
  ["mode of transport", null],
  ["approve ABCD2345", "approve"],
  ["approve it", null],
  ["Ja", "yes"],
  ["no.", "no"],
  ["/usr/bin is full", null],
  ["/nonsense", "unknown"],
  ["stop\nplease", null],
])("%p is the order %p", (text, name) => {
  expect(readWord(text)?.name ?? null).toBe(name as never);
});
