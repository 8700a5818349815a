/** What a fork says in its config, seen in the daemon that it builds: who, which tools, what it may cost. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { newPlace, type Place, runClaw, until } from "./claw.ts";
import { startScripted } from "./scripted.ts";
import { owner, startServe } from "./serve.ts";
import { startSlack } from "./slack-server.ts";

/** A binary of this source with other words in src/config.ts. */
async function buildFork(place: Place, changes: [from: string, to: string][]): Promise<string> {
  const folder = join(place.cwd, "fork");
  expect(await runClaw(place, ["fork", folder])).toMatchObject({ code: 0 });
  const path = join(folder, "src/config.ts");
  let text = await Bun.file(path).text();
  for (const [from, to] of changes) {
    expect(text).toContain(from);
    text = text.replace(from, to);
  }
  await Bun.write(path, text);
  expect(await runClaw(place, ["build", folder])).toMatchObject({ code: 0 });
  return join(folder, "dist/claw");
}

test("a fork's config decides who may command, with which tools and budget, and beats a heart", async () => {
  using place = newPlace();
  using slack = startSlack();
  const binary = await buildFork(place, [
    [
      `usdPerDay: null },\n`,
      `usdPerDay: null },\n      "slack:DBOB": { who: ["UBOB"], tools: ["Read"], tokensPerDay: 20 },\n`,
    ],
    ["heartbeatMs: null", "heartbeatMs: 10_000"],
  ]);
  await Bun.write(join(place.clawHome, "HEARTBEAT.md"), "- look after the build\n");
  Bun.spawnSync(["chmod", "700", place.clawHome]);
  let beats = 0;
  using model = startScripted((request) => {
    if (!request.body.includes("look after the build")) return { text: "ok" };
    return { text: beats++ === 0 ? "NOTHING_TO_SAY" : "The build is red." };
  });
  await using _ = await startServe(place, { slack, model, binary });
  const posts = (channel: string) =>
    slack.posts.filter((post) => post.channel === channel).map(({ text }) => text);

  await slack.say({ channel: "DBOB", user: "UBOB", text: "I am a stranger by CLAW_OWNER" });
  await until(() => posts("DBOB").length === 1);
  const code = /\b[A-Z0-9]{8}\b/.exec(posts("DBOB")[0] ?? "")?.[0] ?? "";
  await runClaw(place, ["pair", "approve", code]);
  await slack.say({ channel: "DBOB", user: "UBOB", text: "first" });
  await until(() => posts("DBOB").length === 2);
  const tools = model.requests[0]!.json.tools as { function: { name: string } }[];
  expect(tools.map((tool) => tool.function.name)).toEqual(["Read"]);
  await slack.say({ channel: "DBOB", user: "UBOB", text: "second" }); // the first took 15 tokens
  await until(() => posts("DBOB").length === 3);
  await slack.say({ channel: "DBOB", user: "UBOB", text: "third" });
  await until(() => posts("DBOB").length === 4);
  expect(posts("DBOB").slice(1, 3)).toEqual(["ok", "ok"]);
  expect(posts("DBOB")[3]).toContain("budget of this conversation is spent: 30 of 20 tokens");

  await until(() => beats === 2, 30_000);
  await until(() => slack.posts.some(({ text }) => text === "The build is red."));
  expect(slack.posts.filter(({ text }) => text.includes("NOTHING_TO_SAY"))).toEqual([]);
  expect(slack.calls.some(({ args }) => args["users"] === owner)).toBe(true); // in the owner's DM
}, 90_000);
