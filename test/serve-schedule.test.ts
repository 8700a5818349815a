/** Schedules in the built daemon: by the command, by the tool, with a script, in their thread. */
import { expect, test } from "bun:test";
import { newPlace, type Place, runClaw, until } from "./claw.ts";
import { startScripted } from "./scripted.ts";
import { owner, saidIn, startServe } from "./serve.ts";
import { startSlack } from "./slack-server.ts";

const inSeconds = (seconds: number) => new Date(Date.now() + seconds * 1000).toISOString();

async function addCron(place: Place, ...flags: string[]): Promise<void> {
  const run = await runClaw(place, [
    "cron",
    "add",
    "--name",
    "test",
    "--message",
    "tell me",
    ...flags,
  ]);
  if (run.code !== 0) throw new Error(run.stderr);
}

test("once: fires at its time in the channel it names, and is done", async () => {
  using place = newPlace();
  using slack = startSlack();
  using model = startScripted(() => ({ text: "It is time." }));
  await using _ = await startServe(place, { slack, model });
  const at = inSeconds(2);
  await addCron(place, "--at", at, "--channel", "slack", "--to", owner);
  await until(() => slack.posts.length > 0);
  const lateMs = model.requests[0]!.at - Date.parse(at);
  expect([lateMs >= 0, lateMs < 1000]).toEqual([true, true]);
  expect(slack.posts.map(({ channel, text }) => [channel[0], text])).toEqual([
    ["D", "It is time."],
  ]);
  expect(saidIn(model.requests[0]!).at(-1)).toContain("tell me");
  await until(() => slack.posts[0]?.text === "It is time.");
  const { stdout } = await runClaw(place, ["cron", "list", "--json"]);
  expect(JSON.parse(stdout)).toMatchObject({ name: "test", next: null, state: "done" });
}, 20_000);

test("what the tool makes in a thread comes back into that thread, with its history", async () => {
  using place = newPlace();
  using slack = startSlack();
  const input = { action: "add", message: "remind", at: inSeconds(2) };
  using model = startScripted((request) => {
    const said = saidIn(request).join("\n");
    if (said.includes("<schedule")) return { text: "Here I am." };
    const called = request.json.messages.at(-1).role === "tool";
    return called ? { text: "I will." } : { calls: [{ name: "Schedule", input }] };
  });
  await using _ = await startServe(place, { slack, model });
  const ts = await slack.say({ channel: "C1", user: owner, text: `<@${slack.botUser}> later` });
  await until(() => slack.posts.some(({ text }) => text === "Here I am."));
  expect(slack.posts.map(({ threadTs }) => threadTs)).toEqual([ts, ts]);
  expect(saidIn(model.requests.at(-1)!).join("\n")).toContain("later");
}, 20_000);

test("a script decides whether the model is called; what it found is told to the model", async () => {
  using place = newPlace();
  using slack = startSlack();
  using model = startScripted(() => ({ text: "News." }));
  await using _ = await startServe(place, { slack, model });
  const to = ["--channel", "slack", "--to", owner];
  const silent = `echo looking; echo '{"wake": false}'`;
  const loud = `echo '{"wake": true, "data": {"found": 42}}'`;
  await addCron(place, "--at", inSeconds(1), ...to, "--script", silent);
  await addCron(place, "--at", inSeconds(2), ...to, "--script", loud);
  await until(() => slack.posts.length > 0);
  expect(model.requests).toHaveLength(1);
  expect(model.requests[0]!.body).toContain('\\"found\\":42');
  const { stdout } = await runClaw(place, ["cron", "list"]);
  expect(stdout).toContain("skipped");
}, 20_000);

test("a slot that was missed while claw was off runs once after the start, or not", async () => {
  using place = newPlace();
  using slack = startSlack();
  using model = startScripted(() => ({ text: "Late." }));
  const to = ["--channel", "slack", "--to", owner];
  await addCron(place, "--at", inSeconds(1), ...to);
  await addCron(place, "--name", "skipped", "--at", inSeconds(1), ...to, "--missed", "skip");
  await Bun.sleep(7000); // a slot less than 5 s late was not missed
  await using _ = await startServe(place, { slack, model });
  await until(() => slack.posts.length > 0);
  await Bun.sleep(300);
  expect(slack.posts).toHaveLength(1);
  const { stdout } = await runClaw(place, ["cron", "list"]);
  expect(stdout).toContain("missed");
}, 30_000);

test("what makes no sense is refused with what would be right", async () => {
  using place = newPlace();
  const to = ["--channel", "slack", "--to", "C123"];
  const cases: [string[], RegExp][] = [
    [["--at", "2020-01-01T00:00", ...to], /past/],
    [["--at", "2027-02-30T00:00", ...to], /2027-02-30/],
    [["--every", "5s", ...to], /10/],
    [["--every", "soon", ...to], /soon/],
    [["--cron", "0 0 30 2 *", ...to], /0 0 30 2/],
    [["--cron", "61 * * * *", ...to], /61/],
    [["--cron", "0 8 * * *", "--tz", "Mars/Olympus", ...to], /Mars/],
    [["--cron", "0 8 * * *", "--every", "1h", ...to], /one of/],
    [["--every", "1h", "--channel", "pigeon", "--to", "x"], /pigeon/],
    [["--every", "1h", "--channel", "email", "--to", "nobody"], /nobody/],
    [["--every", "1h", "--colour", "red", ...to], /colour/],
  ];
  for (const [flags, words] of cases) {
    const run = await runClaw(place, ["cron", "add", "--name", "n", "--message", "m", ...flags]);
    expect([flags, run.code, words.test(run.stderr) ? "" : run.stderr]).toEqual([flags, 2, ""]);
  }
});
