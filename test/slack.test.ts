/** The Slack channel against a Slack of the test's own: real sockets both ways. */
import { afterEach, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Host, Inbound } from "../src/channels/channel.ts";
import { type Outgoing, SendError } from "../src/channels/channel.ts";
import { readEnvelope, safeName, toPlain } from "../src/channels/slack-events.ts";
import { proxyFor } from "../src/channels/slack-socket.ts";
import { openSlack, testSlack } from "../src/channels/slack.ts";
import { config } from "../src/config.ts";
import { until } from "./claw.ts";
import { type SlackMessage, type SlackServer, startSlack } from "./slack-server.ts";

const { slack: settings } = config.serve;
const defaults = { ...settings };
const waits = { retryMs: 20, retryMaxMs: 100, refusedMs: 50, lastedMs: 0 };
const quick = { ...waits, pingMs: 50, closeMs: 100, quietMs: 50 };
const nobody = new AbortController().signal;

/** Keeps what it receives once `gate` opens, as a daemon would; `refuses` is a full disk. */
type Daemon = Host & ReturnType<typeof fresh>;
const fresh = () => {
  const [inbound, logged, threads]: [Inbound[], string[], Map<string, string>] = [
    [],
    [],
    new Map(),
  ];
  return { inbound, logged, threads, refuses: false, admitsAll: true, gate: Promise.resolve() };
};

function openDaemon(): Daemon {
  const base = mkdtempSync(join(tmpdir(), "claw-slack-"));
  cleanups.push(() => rmSync(base, { recursive: true, force: true }));
  const daemon: Daemon = {
    ...fresh(),
    async receive(inbound) {
      await daemon.gate;
      if (daemon.refuses) throw new Error("The disk is full.");
      daemon.inbound.push(inbound);
      if (inbound.type === "message") daemon.threads.set(inbound.externalId, inbound.thread);
    },
    admits: () => daemon.admitsAll,
    findThread: (ids) => ids.map((id) => daemon.threads.get(id)).find(Boolean) ?? null,
    readNote: () => Promise.resolve(null),
    writeNote: () => Promise.resolve(),
    newFolder: () => Promise.resolve(mkdtempSync(join(base, "m-"))),
    log: (event, facts) => void daemon.logged.push(`${event} ${JSON.stringify(facts ?? {})}`),
  };
  return daemon;
}

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  Object.assign(settings, defaults);
  for (const clean of cleanups.splice(0).toReversed()) await clean();
});

async function open(clock: Parameters<typeof openSlack>[0]["clock"] = {}) {
  const slack = startSlack({ users: { U1: "ann", U2: "bob" } });
  const daemon = openDaemon();
  const channel = openSlack({ ...optionsOf(slack), clock: { ...quick, ...clock } });
  cleanups.push(async () => {
    await channel.stop();
    slack.stop();
  });
  await channel.start(daemon);
  return { slack, daemon, channel };
}

const optionsOf = ({ env, url: apiUrl }: SlackServer) => {
  return { botToken: env.SLACK_BOT_TOKEN, appToken: env.SLACK_APP_TOKEN, apiUrl };
};
const outgoing = (rest: Partial<Outgoing>): Outgoing => {
  const usual = {
    createdAt: Date.now(),
    address: "C1",
    reply: null,
    text: "hello",
    files: [],
    automatic: false,
  };
  return { clientId: crypto.randomUUID(), ...usual, ...rest };
};
const messages = ({ inbound }: Daemon) => inbound.filter((one) => one.type === "message");
const texts = (daemon: Daemon) => messages(daemon).map(({ text }) => text);
/** Ann speaks, to claw alone unless it is said where. */
const say = (slack: SlackServer, text: string, rest: Partial<SlackMessage> = {}): Promise<string> =>
  slack.say({ channel: "D1", user: "U1", text, ...rest });

const failureOf = (promise: Promise<unknown>): Promise<Error> => {
  const pass = promise.then(() => new Error("It did not fail."));
  return pass.catch((error: Error) => error);
};
/** How a send failed, and when it may be tried again. */
async function kindOf(promise: Promise<unknown>): Promise<string> {
  const error = await failureOf(promise);
  return error instanceof SendError ? `${error.kind} ${error.afterMs}` : error.message;
}
const no = (error: string, needed?: string) => ({ body: { ok: false, error, needed } });

test("an envelope is acknowledged only when the daemon has stored it", async () => {
  const { slack, daemon } = await open();
  const gate = Promise.withResolvers<void>();
  daemon.gate = gate.promise;
  const said = say(slack, "hi &lt;there&gt;");
  await Bun.sleep(100);
  expect([slack.acks.length, daemon.inbound.length]).toEqual([0, 0]);
  gate.resolve();
  const ts = await said;
  expect(slack.acks.length).toBe(1);
  const where = { externalId: `D1/${ts}`, thread: "D1", address: "D1", reach: "direct" };
  const from = { address: "U1", name: "ann" };
  const what = { from, text: "hi <there>", files: [], problems: [], at: Number(ts) * 1000 };
  expect<unknown[]>(daemon.inbound).toEqual([{ type: "message", ...where, ...what }]);
});

test("what could not be stored is not acknowledged, and comes again", async () => {
  const { slack, daemon } = await open();
  daemon.refuses = true;
  const said = say(slack, "hi");
  await until(() => daemon.logged.some((line) => line.includes("The disk is full.")));
  expect([slack.acks.length, daemon.inbound.length]).toEqual([0, 0]);
  daemon.refuses = false;
  slack.cut();
  await said;
  expect(texts(daemon)).toEqual(["hi"]);
});

test("a mention and its twin are one message, in a thread of its own", async () => {
  const { slack, daemon } = await open();
  const text = `hey <@${slack.botUser}>, ask <@U2> in <#C2|general>`;
  const one = `C1/${await say(slack, text, { channel: "C1" })}`;
  const other = `C1/${await say(slack, text, { channel: "C1" })}`;
  expect(messages(daemon).map(({ externalId }) => externalId)).toEqual([one, other]);
  const place = { thread: one.replace("/", ":"), address: one.replace("/", ":"), reach: "mention" };
  expect(messages(daemon)[0]).toMatchObject({ ...place, text: "hey ask @bob in #general" });
  expect(slack.acks.length).toBe(4);
});

test("what one channel says stays in order, and a slow one stops no other", async () => {
  const { slack, daemon } = await open();
  slack.fail("users.info", { status: 429, headers: { "retry-after": "60" } });
  const lines = Array.from({ length: 25 }, (_, at) => `line ${at}`);
  await Promise.all(lines.map((text) => say(slack, text)));
  expect(texts(daemon)).toEqual(lines);
  const gate = Promise.withResolvers<void>();
  daemon.receive = async (inbound) => {
    if (inbound.type === "message" && inbound.thread === "D1") await gate.promise;
    daemon.inbound.push(inbound);
  };
  const slow = say(slack, "slow");
  await slack.say({ channel: "D2", user: "U2", text: "quick" });
  gate.resolve();
  await slow;
  expect(texts(daemon).slice(-2)).toEqual(["quick", "slow"]);
});

test("a thread's follow-up is overheard, and a first mention brings what was said before", async () => {
  const { slack, daemon } = await open();
  daemon.receive = async (inbound) => {
    daemon.inbound.push(inbound); // a daemon that keeps nothing of strangers' threads
    if (inbound.type === "message" && inbound.reach === "mention")
      daemon.threads.set(inbound.externalId, inbound.thread);
    await Promise.resolve();
  };
  const root = await say(slack, "lunch?", { channel: "C1" });
  const here = { channel: "C1", threadTs: root };
  await say(slack, `yes, ${"x".repeat(600)}`, { ...here, user: "U2" });
  await say(slack, `<@${slack.botUser}> book it`, here);
  await say(slack, "at noon", { ...here, user: "U2" });
  await say(slack, `<@${slack.botUser}> now`, here);
  const [first, second, third, fourth, fifth] = messages(daemon);
  expect(first).toMatchObject({ reach: "overheard", text: "lunch?" });
  expect(first?.thread).toBe(first?.externalId.replace("/", ":")); // no thread that claw is part of
  expect(second).toMatchObject({ reach: "overheard", thread: `C1:${root}` });
  expect(third).toMatchObject({ reach: "mention", text: "book it" });
  expect(third?.context).toBe(`ann: lunch?\nbob: yes, ${"x".repeat(490)}`);
  expect([fourth?.context, fifth?.context]).toEqual([undefined, "bob: at noon"]);
  slack.fail("conversations.replies", no("missing_scope", "channels:history"));
  const threadTs = await say(slack, "tea", { channel: "C1" });
  await say(slack, `<@${slack.botUser}> too`, { channel: "C1", threadTs });
  expect(messages(daemon).at(-1)?.problems.join()).toContain("channels:history");
});

test("edits and deletions of people are told, once and only if the text changed", async () => {
  const { slack, daemon } = await open();
  const said = { type: "message", channel: "C1", channel_type: "channel" };
  const change = (text: string, before: string) => {
    const [message, previous_message] = [text, before].map((one) => {
      return { type: "message", user: "U1", text: one, ts: "5.5" };
    });
    return { ...said, subtype: "message_changed", ts: "9.9", message, previous_message };
  };
  const gone = { ...said, subtype: "message_deleted", ts: "9.9", deleted_ts: "5.5" };
  const own = { ...gone, previous_message: { user: slack.botUser, text: "x", ts: "5.5" } };
  const [reaction, odd] = [
    { ...said, type: "reaction_added" },
    { ...said, user: "U1", ts: 5 },
  ];
  const events = [change("new <@U2>", "old"), change("same", "same"), gone, own, reaction, odd];
  for (const event of events) await slack.deliver("events_api", event);
  expect(daemon.inbound).toEqual([
    { type: "edit", externalId: "C1/5.5", text: "new @bob" },
    { type: "delete", externalId: "C1/5.5" },
  ]);
  expect(daemon.logged.filter((line) => line.startsWith("unreadable")).length).toBe(1);
});

test("bots, claw itself and channels that are not listed are not heard", async () => {
  const now = { ms: 1_000_000 };
  const { slack, daemon } = await open({ now: () => now.ms });
  const bot = { channel: "C1", user: "U9", botId: "B9" };
  await slack.say({ ...bot, text: "beep" });
  await slack.say({ channel: "C1", user: slack.botUser, text: "me" });
  await say(slack, "joined", { subtype: "channel_join" });
  expect(daemon.inbound).toEqual([]);
  Object.assign(settings, { bots: ["U9"], channels: ["C1"] });
  await slack.say({ channel: "C2", user: "U1", text: "elsewhere" });
  for (let at = 0; at < 22; at += 1) await slack.say({ ...bot, text: `beep ${at}` });
  expect(messages(daemon).length).toBe(20);
  now.ms += 61_000;
  await slack.say({ ...bot, text: "again" });
  await say(slack, "hi");
  expect(texts(daemon).slice(-2)).toEqual(["again", "hi"]);
});

test("a slash command is a direct message of its channel, once", async () => {
  const { slack, daemon } = await open();
  const sender = { user_id: "U1", user_name: "ann", channel_id: "C1", trigger_id: "13.37.ab" };
  const command = { command: "/claw", text: "status now", ...sender };
  expect(await slack.deliver("slash_commands", command)).toBe(null);
  await slack.deliver("slash_commands", command);
  expect(messages(daemon)).toMatchObject([
    { externalId: "C1/slash-13.37.ab", thread: "C1", reach: "direct", text: "status now" },
  ]);
});

test("a person's files lie on the disk before the message is received", async () => {
  const { slack, daemon } = await open();
  const [content, mimetype] = [new TextEncoder().encode("a,b\n"), "text/csv"];
  const files = [
    { name: "../.ssh/x.csv", mimetype, content },
    { name: "secret.csv", mimetype, content, loginPage: true },
    { name: "big.csv", mimetype, content, size: 30_000_000 },
    { name: "x.html", mimetype: "text/html", content },
  ];
  await say(slack, "look", { files });
  const [message] = messages(daemon);
  const stored = { name: "1-.._.ssh_x.csv", mediaType: mimetype, bytes: 4 };
  expect(message?.files).toMatchObject([stored, { name: "4-x.html" }]);
  expect(readFileSync(message?.files[0]?.path ?? "", "utf8")).toBe("a,b\n");
  expect(message?.problems.join("\n")).toMatch(/secret.csv.*files:read[^]*big.csv.*20000000/);
  daemon.admitsAll = false;
  await say(slack, "more", { files: [{ name: "y", mimetype, content }] });
  expect(messages(daemon)[1]).toMatchObject({ files: [], problems: [] });
});

test("the token goes nowhere but to Slack, and a claimed size is not believed", async () => {
  const seen: string[] = [];
  const fetch = ({ url }: Request) => new Response(`${seen.push(url)}`);
  using other = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch });
  const { slack, daemon } = await open();
  const said = { type: "message", channel: "D1", channel_type: "im", user: "U1", text: "" };
  const file = { name: "a.txt", mimetype: "text/plain", url_private_download: String(other.url) };
  await slack.deliver("events_api", { ...said, ts: "1.1", files: [file] });
  slack.fail("download", { status: 302, headers: { location: String(other.url) }, body: "" });
  const content = new Uint8Array(100);
  await say(slack, "", { files: [{ name: "b", mimetype: "x/y", content }] });
  settings.maxFileBytes = 50;
  await say(slack, "", { files: [{ name: "c", mimetype: "x/y", content, size: 1 }] });
  const problems = messages(daemon).map((one) => one.problems.join());
  expect(problems.join("\n")).toMatch(/^a.txt.*not Slack's.\nb.*not Slack's.\nc.*larger than 50/);
  expect(seen).toEqual([]);
});

async function fileNamed(daemon: Daemon, name: string, content: string) {
  const path = join(await daemon.newFolder(), "copy");
  await Bun.write(path, content);
  return { path, name, mediaType: "text/plain", bytes: content.length };
}
const shown = ({ posts }: SlackServer) =>
  posts.map(({ threadTs, text, files }) => {
    const names = files?.map(({ name, size }) => `${String(name)} ${String(size)}`);
    return `${threadTs}: ${names?.join(", ") ?? text}`;
  });

test("files are shared after their text, and once, whatever happens", async () => {
  const { slack, daemon, channel } = await open();
  const root = await say(slack, "a report?", { channel: "C1" });
  const files = [await fileNamed(daemon, "a & b.txt", "four"), await fileNamed(daemon, "c", "12")];
  const send = outgoing({ address: `C1:${root}`, files });
  slack.fail("upload", "drop-before");
  slack.fail("chat.postMessage", { status: 429, headers: { "retry-after": "1" } });
  expect(await kindOf(channel.send(send, nobody))).toBe("retry null");
  expect(await kindOf(channel.send(send, nobody))).toBe("retry 1000");
  expect(await channel.find(send, nobody)).toBe(null);
  slack.fail("files.completeUploadExternal", "drop-before");
  expect(await kindOf(channel.send(send, nobody))).toBe("ambiguous null");
  const whole = [`${root}: hello`, `${root}: a & b.txt 4, c 2`];
  expect(shown(slack)).toEqual(whole.slice(0, 1));
  // The next daemon, which knows nothing of it: it looks twice, and does what is missing.
  const next = openSlack({ ...optionsOf(slack), clock: { shareMs: 70 } });
  slack.fail("files.completeUploadExternal", "drop-after");
  for (const expected of ["retry 70", "retry null"])
    expect(await kindOf(next.find(send, nobody))).toBe(expected);
  const id = `C1/${slack.posts[0]?.ts}`;
  for (const one of [channel, next]) expect(await one.find(send, nobody)).toBe(id);
  expect(shown(slack)).toEqual(whole);
  const gone = outgoing({ files: [{ ...files[0]!, path: join(files[0]!.path, "none") }] });
  expect(await kindOf(channel.send(gone, nobody))).toBe("permanent null");
  expect(shown(slack)).toEqual(whole);
});

test("files that are seen late are not shared twice, nor taken for another's", async () => {
  const { slack, daemon, channel } = await open({ shareMs: 70 });
  const content = new TextEncoder().encode("abc");
  const send = outgoing({ address: "D1", text: "", files: [await fileNamed(daemon, "r", "abc")] });
  slack.shareMs = 50;
  slack.fail("files.completeUploadExternal", "drop-after");
  expect(await kindOf(channel.send(send, nobody))).toBe("ambiguous null");
  expect(await kindOf(channel.find(send, nobody))).toBe("retry 70");
  await Bun.sleep(70);
  expect(await channel.find(send, nobody)).toBe(`D1/${slack.posts[0]?.ts}`);
  expect(shown(slack)).toEqual(["null: r", "null: r 3"]);
  slack.fail("files.completeUploadExternal", "drop-before");
  const again = { ...send, clientId: crypto.randomUUID() };
  expect(await kindOf(channel.send(again, nobody))).toBe("ambiguous null");
  await say(slack, "mine", { files: [{ name: "r", mimetype: "text/plain", content }] });
  slack.shareMs = 0;
  for (const [name, words] of [
    ["r", "longer"],
    ["s", "abc"],
  ] as const) {
    const files = [await fileNamed(daemon, name, words)];
    await channel.send(outgoing({ address: "D1", text: "another", files }), nobody);
  }
  expect(await kindOf(channel.find(again, nobody))).toBe("retry 70");
  await channel.find(again, nobody);
  const others = ["null: another", "null: r 6", "null: another", "null: s 3"];
  expect(shown(slack).slice(2)).toEqual(["null: r", ...others, "null: r 3"]);
});

test("a send is posted where its address says, and found by its client id", async () => {
  const { slack, channel } = await open();
  const send = outgoing({ address: "U1", text: "*bold*" });
  const id = await channel.send(send, nobody);
  const [post] = slack.posts;
  expect(id).toBe(`${post?.channel}/${post?.ts}`);
  expect(post).toMatchObject({ text: "*bold*", threadTs: null, blocks: [] });
  expect(post?.metadata?.event_payload).toEqual({ client_id: send.clientId });
  expect(post?.args).toMatchObject({ mrkdwn: true, unfurl_links: false, unfurl_media: false });
  expect(channel.compose("**bold**")).toEqual(["*bold*"]);
  expect(channel.state().lastOut).toBeGreaterThan(0);
  expect(await channel.locate("U1")).toEqual({ thread: "D1", address: "D1" });
  expect(await channel.locate("C1:5.5")).toEqual({ thread: "C1:5.5", address: "C1:5.5" });
  for (const wrong of ["#general", "U1:5.5", "C1:x", ""])
    expect(await kindOf(channel.locate(wrong))).toBe("permanent null");
});

test("a failed send says whether it may be made again", async () => {
  const { slack, channel } = await open();
  const outcomes: [Parameters<SlackServer["fail"]>[1], string, boolean][] = [
    [{ status: 429, headers: { "retry-after": "7" } }, "retry 7000", false],
    [{ status: 429 }, "retry null", false],
    [no("not_in_channel"), "permanent null", false],
    [no("missing_scope", "chat:write"), "permanent null", false],
    [no("token_revoked"), "retry null", false],
    [no("internal_error"), "ambiguous null", false],
    [{ body: "<html>" }, "ambiguous null", false],
    [{ status: 503 }, "ambiguous null", false],
    ["drop-before", "ambiguous null", false],
    ["drop-after", "ambiguous null", true],
  ];
  for (const [how, outcome, isThere] of outcomes) {
    const send = outgoing({});
    slack.fail("chat.postMessage", how);
    expect(await kindOf(channel.send(send, nobody))).toBe(outcome);
    expect(await channel.find(send, nobody)).toBe(isThere ? `C1/${slack.posts[0]?.ts}` : null);
  }
  slack.fail("conversations.history", { status: 503 });
  expect(await kindOf(channel.find(outgoing({}), nobody))).toBe("retry null");
  expect(await kindOf(channel.send(outgoing({}), AbortSignal.abort()))).toBe("retry null");
  slack.stop(); // refused connections
  expect(await kindOf(channel.send(outgoing({}), nobody))).toBe("retry null");
});

test("a question has buttons until somebody who may has answered it", async () => {
  const { slack, daemon, channel } = await open();
  const text = "z".repeat(3500);
  await channel.send(outgoing({ address: "C1:5.5", text, question: "q1" }), nobody);
  const { ts = "", blocks } = slack.posts[0] ?? {};
  expect(JSON.stringify(blocks).match(/z+/g)?.join("")).toBe(text);
  daemon.admitsAll = false;
  await slack.press("C1", ts, "U9", "claw_yes", "q1");
  daemon.admitsAll = true;
  await slack.press("C1", ts, "U1", "claw_no", "q1");
  await until(() => slack.posts[0]?.edits === 1);
  expect(daemon.inbound).toMatchObject([
    { type: "answer", question: "q1", yes: true, from: { address: "U9" } },
    { type: "answer", question: "q1", yes: false, from: { address: "U1", name: "ann" } },
  ]);
  const after = JSON.stringify(slack.posts[0]?.blocks);
  expect([after.includes("button"), after.includes("*No*, says <@U1>")]).toEqual([false, true]);
});

test("a reaction and a message of progress come and go, and never throw", async () => {
  const { slack, channel } = await open();
  const ts = await say(slack, "hi", { channel: "C1" });
  for (const id of [`C1/${ts}`, "C1/slash-1.2"]) await channel.react?.(id, true);
  expect(slack.reactions).toEqual([{ channel: "C1", ts, name: "eyes" }]);
  for (const on of [false, false]) await channel.react?.(`C1/${ts}`, on);
  const id = (await channel.showProgress?.(`C1:${ts}`, null, "running **ls**")) ?? null;
  expect(await channel.showProgress?.(`C1:${ts}`, id, "done")).toBe(id);
  expect(slack.posts[0]).toMatchObject({ text: "done", edits: 1, threadTs: ts });
  expect(await channel.showProgress?.(`C1:${ts}`, id, null)).toBe(null);
  expect([slack.posts[0]?.deleted, slack.reactions]).toEqual([true, []]);
  expect(await channel.showProgress?.("nowhere", null, "x")).toBe(null);
});

test("a refresh has the new socket before the old one goes, and loses nothing", async () => {
  const { slack, daemon, channel } = await open();
  const { since } = channel.state();
  const numbers = Array.from({ length: 30 }, (_, at) => `${at}`);
  const said: Promise<string>[] = [];
  for (const text of numbers) {
    said.push(say(slack, text));
    if (text === "10") slack.disconnect("refresh_requested");
    if (text === "20") slack.disconnect("warning");
    await Bun.sleep(5);
    expect(channel.state().since).toBe(since);
  }
  await Promise.all(said);
  await until(() => slack.sockets === 1);
  expect(texts(daemon).toSorted()).toEqual(numbers.toSorted());
  expect(slack.connections).toBe(3);
});

test("a cut, a refusal and silence are noticed, and the connection comes back", async () => {
  const { slack, daemon, channel } = await open();
  slack.cut();
  await until(() => slack.connections === 2 && slack.sockets === 1);
  slack.fail("apps.connections.open", no("invalid_auth"), 2);
  slack.disconnect("too_many_websockets");
  await until(() => channel.state().error?.includes("SLACK_APP_TOKEN") ?? false);
  expect(channel.state().since).toBe(null);
  await until(() => channel.state().since !== null && channel.state().error === null);
  await Bun.sleep(400); // quiet, but alive: pongs are enough
  expect(slack.connections).toBe(3);
  slack.silence();
  await until(() => slack.connections === 4 && slack.sockets === 1, 2000);
  await say(slack, "back");
  await channel.caughtUp();
  expect(messages(daemon).length).toBe(1);
  await channel.stop();
  await until(() => slack.sockets === 0);
  expect(daemon.logged.join("\n")).not.toMatch(/ticket|xoxb-c|xapp-1/);
});

test("a token that Slack refuses is named with its cure", async () => {
  using slack = startSlack();
  const options = optionsOf(slack);
  const { botToken, appToken } = options;
  expect(await testSlack(options)).toBe("Claw as claw");
  const wrong: [Partial<typeof options>, RegExp][] = [
    [{ botToken: "xoxb-no" }, /SLACK_BOT_TOKEN \(invalid_auth\).*xoxb-/],
    [{ appToken: "xapp-no" }, /SLACK_APP_TOKEN \(invalid_auth\).*connections:write/],
    [{ botToken: appToken, appToken: botToken }, /swap them/],
    [{ botToken: "xoxp-user" }, /SLACK_BOT_TOKEN is no bot token/],
    [{ apiUrl: "http://slack.example/api/" }, /https:/],
  ];
  for (const [part, sentence] of wrong) {
    const start = async () => openSlack({ ...options, ...part, clock: quick }).start(openDaemon());
    for (const work of [testSlack({ ...options, ...part }), start()]) {
      const error = await failureOf(work);
      expect([error.name, error.message]).toEqual(["UsageError", expect.stringMatching(sentence)]);
    }
  }
  slack.fail("auth.test", { status: 503 });
  const channel = openSlack({ ...options, clock: quick });
  await channel.start(openDaemon());
  await channel.stop();
  slack.fail("apps.connections.open", no("missing_scope", "connections:write"));
  expect((await failureOf(testSlack(options))).message).toMatch(/missing_scope connections:write/);
});

test("marks, file names and proxies", () => {
  const bot = { userId: "UB", botId: null };
  const plain = (text: string) => toPlain(text, bot, (id) => id.toLowerCase());
  const links = plain("<@UB>: see <http://a.b/c|this> &amp;lt; <mailto:a@b.c|a@b.c>");
  expect(links).toBe("see this (http://a.b/c) &lt; a@b.c");
  const marks = plain("<!here> <!subteam^S1|@ops> <#C1> <https://x.y> 1 &lt; 2");
  expect(marks).toBe("@here @ops #C1 https://x.y 1 < 2");
  expect(["..", "a/b\u202Ec", "", ".env"].map(safeName)).toEqual(["file", "a_b_c", "file", "env"]);
  expect(safeName(`${"é".repeat(300)}.txt`)).toMatch(/^é{30}é{26}\.txt$/);
  const env = { HTTPS_PROXY: "http://p:1", NO_PROXY: "x.org, .slack.com" };
  const proxies = ["a.slack.com", "slack.org", "127.0.0.1"].map((host) => proxyFor(host, env));
  expect(proxies).toEqual([undefined, "http://p:1", undefined]);
  expect(() => readEnvelope("events_api", {}, bot)).toThrow();
});
