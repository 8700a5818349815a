/** The Slack of the tests is one that Slack's own clients accept. */
import { expect, test } from "bun:test";
import { SocketModeClient } from "@slack/socket-mode";
import { LogLevel, WebClient } from "@slack/web-api";
import { until } from "./claw.ts";
import { startSlack, type SlackServer } from "./slack-server.ts";

const quiet = {
  retryConfig: { retries: 0 },
  rejectRateLimitedCalls: true,
  logLevel: LogLevel.ERROR,
};

const webOf = (slack: SlackServer, token = slack.env.SLACK_BOT_TOKEN) =>
  new WebClient(token, { slackApiUrl: slack.url, ...quiet });

async function failureOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  return "";
}

/** A socket as claw would open one: acknowledges all it hears. */
async function listen(slack: SlackServer) {
  const web = webOf(slack, slack.env.SLACK_APP_TOKEN);
  const { url = "" } = await web.apps.connections.open();
  const socket = new WebSocket(url);
  // oxlint-disable-next-line no-explicit-any -- frames of every type
  const frames: any[] = [];
  let acks = true;
  socket.addEventListener("message", ({ data }) => {
    const frame = JSON.parse(String(data));
    frames.push(frame);
    if (acks && frame.envelope_id)
      socket.send(JSON.stringify({ envelope_id: frame.envelope_id, payload: { text: "seen" } }));
  });
  await until(() => frames.length > 0);
  return { socket, frames, mute: () => (acks = false) };
}

test("the official web client signs in, posts, changes, reads a thread and shares a file", async () => {
  using slack = startSlack({ users: { U1: "Ada" } });
  const web = webOf(slack);
  expect(await web.auth.test()).toMatchObject({ ok: true, user_id: slack.botUser });
  const metadata = { event_type: "claw", event_payload: { id: "a-1" } };
  const root = await web.chat.postMessage({ channel: "C1", text: "one & two", metadata });
  const ts = root.ts ?? "";
  const reply = { channel: "C1", text: "{three}", thread_ts: ts, unfurl_links: false };
  await web.chat.postMessage(reply);
  await web.chat.update({ channel: "C1", ts, text: "changed" });
  const file = Buffer.from([0, 1, 2, 255]);
  const upload = { file, filename: "a.bin", channel_id: "C1", thread_ts: ts, initial_comment: "a" };
  await web.filesUploadV2(upload);

  expect(slack.posts.map(({ text, threadTs, edits }) => [text, threadTs, edits])).toEqual([
    ["changed", null, 1],
    ["{three}", ts, 0],
    ["a", ts, 0],
  ]);
  expect(slack.posts[1]?.args).toMatchObject({ unfurl_links: false });
  expect([...slack.files.values()]).toEqual([{ name: "a.bin", bytes: new Uint8Array(file) }]);
  const first = await web.conversations.replies({ channel: "C1", ts, limit: 2 });
  expect(first.messages?.map(({ text }) => text)).toEqual(["changed", "{three}"]);
  expect(first.messages?.[0]?.metadata).toBeUndefined();
  const { next_cursor: cursor = "" } = first.response_metadata ?? {};
  const rest = { channel: "C1", ts, cursor, include_all_metadata: true };
  expect((await web.conversations.replies(rest)).messages?.map(({ text }) => text)).toEqual(["a"]);
  const talk = await web.conversations.history({ channel: "C1", include_all_metadata: true });
  expect(talk.messages).toMatchObject([{ text: "changed", metadata }]);
  expect((await web.users.info({ user: "U1" })).user?.name).toBe("Ada");
});

test("the web client hears why a call is refused", async () => {
  using slack = startSlack();
  const web = webOf(slack);
  const tooMany = Array.from({ length: 51 }, () => ({ type: "divider" }));
  const refusals: [Promise<unknown>, string][] = [
    [webOf(slack, "xoxb-other").auth.test(), "invalid_auth"],
    [web.apps.connections.open(), "invalid_auth"],
    [web.apiCall("nothing.here"), "unknown_method"],
    [web.chat.postMessage({ channel: "general", text: "a" }), "channel_not_found"],
    [web.chat.postMessage({ channel: "C1", text: "a".repeat(40_001) }), "msg_too_long"],
    [web.chat.postMessage({ channel: "C1", text: "a", blocks: tooMany }), "invalid_blocks"],
    [web.chat.update({ channel: "C1", ts: "1.2", text: "a" }), "message_not_found"],
    [web.conversations.replies({ channel: "C1", ts: "1.2" }), "thread_not_found"],
  ];
  for (const [call, code] of refusals)
    expect(await failureOf(call)).toBe(`An API error occurred: ${code}`);
  expect(slack.posts).toEqual([]);
});

test("a call can be refused, broken off before it, and broken off after it", async () => {
  using slack = startSlack();
  const web = webOf(slack);
  const say = (text: string) => failureOf(web.chat.postMessage({ channel: "C1", text }));
  slack.fail("chat.postMessage", { status: 429, headers: { "retry-after": "7" } });
  slack.fail("chat.postMessage", "drop-before");
  slack.fail("chat.postMessage", "drop-after");
  expect(await say("refused")).toContain("retry this request in 7 seconds");
  expect(await say("before")).toContain("request error");
  expect(await say("after")).toContain("request error");
  expect(await say("well")).toBe("");
  expect(slack.posts.map(({ text }) => text)).toEqual(["after", "well"]);
  expect(slack.calls.map(({ args }) => args.text)).toEqual(["refused", "before", "after", "well"]);
});

test("reactions stand until they are taken away; a person's file needs the token", async () => {
  using slack = startSlack();
  const [web, line] = [webOf(slack), await listen(slack)];
  const content = new TextEncoder().encode("hello");
  const files = [{ name: "a b.txt", mimetype: "text/plain", content }];
  const ts = await slack.say({ channel: "D7", user: "U1", text: "look", files });
  await web.reactions.add({ channel: "D7", timestamp: ts, name: "eyes" });
  expect(slack.reactions).toEqual([{ channel: "D7", ts, name: "eyes" }]);
  const again = web.reactions.add({ channel: "D7", timestamp: ts, name: "eyes" });
  expect(await failureOf(again)).toContain("already_reacted");
  await web.reactions.remove({ channel: "D7", timestamp: ts, name: "eyes" });
  expect(slack.reactions).toEqual([]);
  expect((await web.conversations.open({ users: "U1" })).channel?.id).toBe("D7");

  const { event } = line.frames[1].payload;
  expect(event).toMatchObject({ type: "message", subtype: "file_share", channel_type: "im" });
  const url: string = event.files[0].url_private_download;
  const authorization = `Bearer ${slack.env.SLACK_BOT_TOKEN}`;
  expect(await (await fetch(url, { headers: { authorization } })).text()).toBe("hello");
  expect(await (await fetch(url)).text()).toStartWith("<!DOCTYPE html>");
});

test("a mention has a twin; what was not acked comes to the next connection", async () => {
  using slack = startSlack();
  const first = await listen(slack);
  first.mute();
  const said = slack.say({ channel: "C1", user: "U1", text: `<@${slack.botUser}> hi` });
  await until(() => first.frames.length === 3);
  slack.cut();
  await until(() => slack.sockets === 0 && first.socket.readyState === WebSocket.CLOSED);
  const second = await listen(slack);
  const ts = await said;
  const payloads = second.frames.slice(1).map(({ payload }) => payload);
  const types = new Set(payloads.map(({ event }) => event.type));
  expect(types).toEqual(new Set(["app_mention", "message"]));
  expect(payloads.map(({ event }) => event.ts)).toEqual([ts, ts]);
  expect(payloads[0].event_id).not.toBe(payloads[1].event_id);
  expect(second.frames.slice(1).map((frame) => frame.retry_attempt)).toEqual([1, 1]);
  expect([slack.acks.length, slack.connections]).toEqual([2, 2]);
});

test("a silent socket carries nothing, stays open, and the next one gets what it did not", async () => {
  using slack = startSlack();
  const first = await listen(slack);
  slack.silence();
  const said = slack.say({ channel: "D1", user: "U1", text: "anybody?" });
  await Bun.sleep(100);
  expect([first.frames.length, first.socket.readyState]).toEqual([1, WebSocket.OPEN]);
  const second = await listen(slack);
  await said;
  expect(second.frames[1].payload.event.text).toBe("anybody?");
  await until(() => first.socket.readyState === WebSocket.CLOSED);
});

test("a button's press and a slash command are answered by their acks; a refresh closes", async () => {
  using slack = startSlack();
  const { frames, socket } = await listen(slack);
  const text = { type: "plain_text" as const, text: "Yes" };
  const button = { type: "button" as const, action_id: "yes", text };
  const blocks = [{ type: "actions" as const, block_id: "b7", elements: [button] }];
  const { ts = "" } = await webOf(slack).chat.postMessage({ channel: "D1", text: "?", blocks });
  await slack.press("D1", ts, "U1", "yes", "q-1");
  const pressed = frames.find(({ type }) => type === "interactive");
  const action = { action_id: "yes", block_id: "b7", value: "q-1" };
  expect(pressed.payload.actions).toMatchObject([action]);
  expect(await slack.deliver("slash_commands", { command: "/claw" })).toEqual({ text: "seen" });
  const event = { event_id: "Ev1", event: { type: "app_home_opened" } };
  await slack.deliver("events_api", event);
  expect(frames.at(-1).payload).toMatchObject(event);
  slack.disconnect("refresh_requested");
  await until(() => socket.readyState === WebSocket.CLOSED);
  expect(frames.at(-1)).toMatchObject({ type: "disconnect", reason: "refresh_requested" });
});

test("the official socket client connects, hears a message, and acknowledges it", async () => {
  using slack = startSlack();
  const clientOptions = { slackApiUrl: slack.url };
  const settings = { logLevel: LogLevel.ERROR, clientPingTimeout: 600, clientOptions };
  const client = new SocketModeClient({ appToken: slack.env.SLACK_APP_TOKEN, ...settings });
  const heard: string[] = [];
  client.on("message", ({ event, ack }) => {
    heard.push(event.text);
    void ack();
  });
  await client.start();
  await slack.say({ channel: "D1", user: "U1", text: "you there" });
  await Bun.sleep(1500); // Without pongs it would have hung up by now.
  expect([heard, slack.acks.length, slack.connections]).toEqual([["you there"], 1, 1]);
  await client.disconnect();
  await until(() => slack.sockets === 0);
});
