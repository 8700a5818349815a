/**
 * A Slack for tests: Web API and Socket Mode on one loopback port, as Slack's own clients want it
 * (slack-server.test.ts). Faithful where it hurts: a message and its `app_mention` twin come in
 * either order, the app hears its own posts, an envelope goes to one of the open sockets and again
 * to the next once its socket is gone. A TCP relay stands before it to break off or fall silent.
 */
import { connect, createServer, type Socket } from "node:net";
import { messageOf } from "../src/errors.ts";
import { recordOf, recordsOf, textOf, type Json } from "../src/models/json.ts";

type Place = { channel: string; ts: string; threadTs: string | null };
type Metadata = { event_type: string; event_payload: Json };
type Content = { text: string; blocks: unknown[]; metadata: Metadata | null };
/** `args` as the app sent them; a form's JSON fields are parsed, true and false are booleans. */
export type SlackPost = Place & Content & Fate & { args: Json; files?: Json[] };
type Fate = { edits: number; deleted: boolean };
export type SlackCall = { method: string; args: Json; at: number };
type FileOptions = { loginPage?: boolean; size?: number }; // what Slack claims
export type SlackFile = FileOptions & { name: string; mimetype: string; content: Uint8Array };
type Words = { channel: string; user: string; text: string; files?: SlackFile[] };
/** With `ts` of an earlier message it is delivered anew and stands in the history once. */
type MessageOptions = { threadTs?: string; ts?: string; botId?: string; subtype?: string };
export type SlackMessage = Words & MessageOptions;
type Reply = { status?: number; headers?: Record<string, string>; body?: unknown };
/** "drop-…": the connection is closed before anything is done, or when all is but the answer. */
export type SlackFailure = Reply | "drop-before" | "drop-after";
type EnvelopeType = "events_api" | "interactive" | "slash_commands";
type Line = Bun.ServerWebSocket<{ peerPort: number; isSilent: boolean }>;
type Said = Place & { message: Json };
type Waiting = { envelope: Json; line: Line | null; sent: number; settle(payload: unknown): void };
type Options = { port?: number; users?: Record<string, string> };
type Method = (slack: SlackServer, args: Json, token: string) => Json | Response;

const [team, app, botUser, botId] = ["T0CLAW", "A0CLAW", "UBOTCLAW", "BBOTCLAW"];
const [botToken, appToken] = ["xoxb-claw-test-bot", `xapp-1-${app}-claw-test-app`];
const about = { team_id: team, api_app_id: app };
const me = { team: "Claw", user: "claw", team_id: team, user_id: botUser, bot_id: botId };
const debug_info = { host: "applink-1", build_number: 1, approximate_connection_time: 18_060 };
const scopes =
  "chat:write,reactions:write,app_mentions:read,files:read,files:write,im:write,users:read,channels:read,channels:history,groups:history,im:history,mpim:history";
export const startSlack = (options: Options = {}): SlackServer => new SlackServer(options);

export class SlackServer implements Disposable {
  readonly botUser = botUser;
  readonly url: string;
  readonly env;
  /** What the app posted (changed in place), called, uploaded (by file id); reactions that stand. */
  readonly posts: SlackPost[] = [];
  readonly calls: SlackCall[] = [];
  readonly files = new Map<string, { name: string; bytes: Uint8Array }>();
  readonly reactions: { channel: string; ts: string; name: string }[] = [];
  readonly acks: { envelopeId: string; at: number }[] = [];
  /** Files that the app shares are seen so much later than it is told that they are. */
  shareMs = 0;
  /** Sockets that are open, and connections ever opened. */
  sockets = 0;
  connections = 0;
  readonly base: string;
  readonly nameOf: (user: string) => string;
  readonly heard: Said[] = [];
  readonly shared = new Map<string, SlackFile>();
  readonly directs = new Map<string, string>(); // a person's D channel
  readonly tickets = new Set<string>();
  readonly #failures: { method: string; how: SlackFailure }[] = [];
  readonly #waiting = new Map<string, Waiting>();
  #lines: Line[] = [];
  #us = 0;
  readonly #server: Bun.Server<Line["data"]>;
  readonly #relay: ReturnType<typeof openRelay>;

  constructor({ port = 0, users = {} }: Options) {
    const websocket = {
      idleTimeout: 0, // Pings are our own: a silent socket must not be closed for want of pongs.
      open: (line: Line) => this.#open(line),
      message: (_: Line, frame: string | Buffer) => this.#takeAck(JSON.parse(String(frame))),
      close: (line: Line) => this.#close(line),
    };
    const fetch = (request: Request) => this.#answer(request, new URL(request.url));
    this.#server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch, websocket });
    this.#relay = openRelay(port, this.#server.port ?? 0);
    this.nameOf = (user) => users[user] ?? user.toLowerCase();
    this.base = `http://127.0.0.1:${this.#relay.port}`;
    this.url = `${this.base}/api/`;
    this.env = { SLACK_BOT_TOKEN: botToken, SLACK_APP_TOKEN: appToken, SLACK_API_URL: this.url };
    setInterval(() => this.#lines.forEach((line) => line.ping()), 3000).unref();
  }
  /** A person's message; resolves with its ts when all of it is acked, rejects after 5 s without. */
  async say(message: SlackMessage): Promise<string> {
    const { channel, user, text, ts = this.newTs(), threadTs: thread_ts, botId: bot_id } = message;
    const files = message.files?.map((file) => this.#share(file, user));
    const subtype = message.subtype ?? (files && "file_share");
    const twin = { type: "app_mention", channel, user, text, ts, event_ts: ts, thread_ts, files };
    const more = { channel_type: typeOf(channel), subtype, bot_id, team };
    const event: Json = { ...twin, type: "message", ...more };
    this.#remember(event);
    if (channel.startsWith("D")) this.directs.set(user, channel);
    const hasTwin = !channel.startsWith("D") && text.includes(`<@${botUser}>`);
    const events = hasTwin ? [event, twin] : [event];
    if (this.heard.length % 2 === 0) events.reverse(); // Slack promises no order either.
    await soon(Promise.all(events.map((one) => this.#postEvent(one))));
    return ts;
  }
  /** Any envelope, to its ack's payload. An event stands alone, or as `event` among `event_id` … */
  deliver(type: EnvelopeType, payload: Json): Promise<unknown> {
    if (type !== "events_api") return soon(this.#post(type, payload));
    const event = recordOf(payload.event) ?? payload;
    this.#remember(event);
    return soon(this.#postEvent(event, event === payload ? {} : payload));
  }
  /** A press on a button of a post. */
  async press(channel: string, ts: string, id: string, action_id: string, value: string) {
    const post = this.findPost(channel, ts);
    const has = (one: Json) => JSON.stringify(one).includes(JSON.stringify(action_id));
    const block = recordsOf(post?.blocks).find(has);
    if (!post || !block) throw new Error(`No button ${action_id} on ${channel} ${ts}.`);
    const actions = [{ type: "button", action_id, block_id: block.block_id, value, action_ts: ts }];
    const user = { id, name: this.nameOf(id), username: this.nameOf(id), team_id: team };
    const container = { type: "message", message_ts: ts, channel_id: channel };
    const where = { channel: { id: channel }, container, message: shapeOf(post, true) };
    await this.deliver("interactive", { type: "block_actions", ...about, user, ...where, actions });
  }
  /** Sends the frame; for refresh_requested the sockets of now are closed a second later. */
  disconnect(reason: "warning" | "refresh_requested" | "too_many_websockets" | "link_disabled") {
    const old = [...this.#lines];
    for (const line of old) line.send(JSON.stringify({ type: "disconnect", reason, debug_info }));
    if (reason === "refresh_requested")
      setTimeout(() => old.forEach((line) => line.close(1000)), 1000).unref();
  }
  /** Breaks every TCP connection, or those that come from a port; without a close frame. */
  cut(peerPort?: number): void {
    for (const [inner, client] of this.#relay.pairs)
      if (peerPort === undefined || inner.localPort === peerPort) client.destroy();
  }
  /** The open sockets carry nothing any more, either way, and break at the next connection. */
  silence(): void {
    for (const [inner, client] of this.#relay.pairs) {
      const line = this.#lines.find(({ data }) => data.peerPort === inner.localPort);
      if (!line) continue;
      line.data.isSilent = true;
      client.unpipe(inner).resume();
      inner.unpipe(client).resume();
    }
  }
  /** Answers the next calls of a method; "upload" and "download" are methods here. */
  fail(method: string, how: SlackFailure, times = 1): void {
    for (let n = 0; n < times; n += 1) this.#failures.push({ method, how });
  }
  stop(): void {
    this.#relay.listener.close();
    this.cut();
    void this.#server.stop(true);
  }
  [Symbol.dispose] = () => this.stop();
  #open(line: Line): void {
    for (const old of this.#lines) if (old.data.isSilent) old.terminate();
    this.connections += 1;
    this.sockets = this.#lines.push(line);
    const hello = { type: "hello", num_connections: this.sockets, debug_info };
    line.send(JSON.stringify({ ...hello, connection_info: { app_id: app } }));
    this.#sendWaiting();
  }
  #close(line: Line): void {
    this.#lines = this.#lines.filter((one) => one !== line);
    this.sockets = this.#lines.length;
    for (const waiting of this.#waiting.values()) if (waiting.line === line) waiting.line = null;
    this.#sendWaiting();
  }
  #sendWaiting(): void {
    for (const waiting of this.#waiting.values()) {
      const line = this.#lines[this.acks.length % this.#lines.length];
      if (!line || waiting.line) continue;
      const retry = waiting.sent > 0 && { retry_attempt: waiting.sent, retry_reason: "timeout" };
      line.send(JSON.stringify({ ...waiting.envelope, ...retry }));
      Object.assign(waiting, { line, sent: waiting.sent + 1 });
    }
  }
  #takeAck(ack: Json): void {
    const envelopeId = textOf(ack.envelope_id);
    this.acks.push({ envelopeId, at: Date.now() });
    this.#waiting.get(envelopeId)?.settle(ack.payload ?? null);
    this.#waiting.delete(envelopeId);
  }
  #post(type: EnvelopeType, payload: Json): Promise<unknown> {
    const { promise, resolve: settle } = Promise.withResolvers<unknown>();
    const [envelope_id, accepts_response_payload] = [newId("E"), type !== "events_api"];
    const envelope = { envelope_id, type, payload, accepts_response_payload };
    this.#waiting.set(envelope_id, { envelope, line: null, sent: 0, settle });
    this.#sendWaiting();
    return promise;
  }
  #postEvent(event: Json, rest: Json = {}): Promise<unknown> {
    const [event_id, event_time] = [newId("Ev"), Math.floor(Date.now() / 1000)];
    const authorizations = [{ team_id: team, user_id: botUser, is_bot: true }];
    const wrapper = { type: "event_callback", ...about, event_id, event_time, authorizations };
    return this.#post("events_api", { ...wrapper, event, ...rest });
  }
  /** The app hears what it does itself; nobody waits for these acks. */
  echo({ channel }: Place, event: Json): void {
    const [ts, channel_type] = [this.newTs(), typeOf(channel)];
    void this.#postEvent({ type: "message", channel, channel_type, ts, event_ts: ts, ...event });
  }
  /** A message of a person belongs to the history, once, however often it is delivered. */
  #remember(message: Json): void {
    const [channel, ts] = [textOf(message.channel), textOf(message.ts)];
    if (message.type !== "message" || "message" in message || "deleted_ts" in message) return;
    if (this.heard.some((one) => one.channel === channel && one.ts === ts)) return;
    this.heard.push({ channel, ts, threadTs: textOf(message.thread_ts) || null, message });
  }
  #share(file: SlackFile, user: string): Json {
    const { name, mimetype, size = file.content.length } = file;
    const id = newId("F");
    this.shared.set(id, file);
    const url_private = `${this.base}/download/${id}/${encodeURIComponent(name)}`;
    return { id, user, name, mimetype, size, url_private, url_private_download: url_private };
  }
  async #answer(request: Request, url: URL): Promise<Response | undefined> {
    const peerPort = this.#server.requestIP(request)?.port ?? 0;
    const [, room = "", id = ""] = url.pathname.split("/");
    const isLink = room === "link" && this.tickets.delete(url.searchParams.get("ticket") ?? "");
    const data = { peerPort, isSilent: false };
    if (isLink && this.#server.upgrade(request, { data })) return undefined;
    const method = room === "api" ? id : room;
    const at = this.#failures.findIndex((one) => one.method === method);
    const how = at < 0 ? "" : (this.#failures.splice(at, 1)[0]?.how ?? "");
    const args = await argsOf(request, url);
    if (room === "api") this.calls.push({ method, args, at: Date.now() });
    if (typeof how === "object") return responseOf(how.body, how);
    const token = request.headers.get("authorization")?.replace(/^Bearer /, "");
    const result = how === "drop-before" ? {} : call(this, method, { ...args, id }, token);
    if (how) this.cut(peerPort);
    return responseOf(result, { headers: { "x-oauth-scopes": scopes } });
  }
  findPost = (channel: unknown, ts: unknown) =>
    this.posts.find((one) => one.channel === channel && one.ts === ts && !one.deleted);
  /** A message's name: seconds with microseconds, later than every one before. */
  newTs = () => ((this.#us = Math.max(this.#us + 1, Date.now() * 1000)) / 1e6).toFixed(6);
}

/** Passes TCP connections on; one is known by the port that its inner half comes from. */
function openRelay(port: number, target: number) {
  const pairs = new Map<Socket, Socket>();
  const listener = createServer((client) => {
    const inner = connect(target, "127.0.0.1");
    pairs.set(inner, client);
    client.pipe(inner).pipe(client);
    const end = () => pairs.delete(inner) && [client, inner].forEach((one) => one.destroy());
    for (const socket of [client, inner]) socket.setNoDelay(true).on("error", end).on("close", end);
  }).listen(port, "127.0.0.1");
  const address = listener.address();
  if (typeof address !== "object" || !address) throw new Error(`Port ${port} is taken.`);
  return { listener, pairs, port: address.port };
}

async function argsOf(request: Request, url: URL): Promise<Json> {
  const type = request.headers.get("content-type") ?? "";
  const [part] = type.startsWith("multipart/") ? (await request.formData()).values() : [request];
  if (url.pathname.startsWith("/upload/"))
    return { bytes: new Uint8Array(typeof part === "object" ? await part.arrayBuffer() : []) };
  const body = await request.text();
  if (type.startsWith("application/json")) return recordOf(JSON.parse(body || "{}")) ?? {};
  const isData = /^(blocks|metadata|files|attachments)=|=(true|false)$/;
  const fields = [...url.searchParams, ...new URLSearchParams(body)];
  const valueOf = (k: string, v: string) => (isData.test(`${k}=${v}`) ? JSON.parse(v) : v);
  return Object.fromEntries(fields.map(([key, value]) => [key, valueOf(key, value)]));
}

function responseOf(body: unknown, init: ResponseInit): Response {
  if (body instanceof Response) return body;
  if (typeof body === "string") return new Response(body, init);
  return Response.json(body ?? { ok: false, error: "internal_error" }, init);
}

/** Throws what Slack answers as `error`. */
const refuse = (code: string): never => {
  throw new Error(code);
};
function call(slack: SlackServer, name: string, args: Json, token = ""): Json | Response {
  try {
    const wanted = { upload: token, download: token, "apps.connections.open": appToken }[name];
    if (token !== (wanted ?? botToken)) refuse(token ? "invalid_auth" : "not_authed");
    const result = (methods[name] ?? refuse("unknown_method"))(slack, args, token);
    return result instanceof Response ? result : { ok: true, ...result };
  } catch (error) {
    return { ok: false, error: messageOf(error) };
  }
}

const methods: Record<string, Method> = {
  "auth.test": ({ base: url }) => ({ url, ...me }),
  "apps.connections.open": ({ base, tickets }) => {
    const ticket = newId("");
    tickets.add(ticket);
    return { url: `${base.replace("http", "ws")}/link/?ticket=${ticket}&app_id=${app}` };
  },
  "chat.postMessage": (slack, args) => addPost(slack, args.channel, args),
  "chat.update": (slack, args) => changePost(slack, args, contentOf(args)),
  "chat.delete": (slack, args) => changePost(slack, args, { deleted: true }),
  "chat.postEphemeral": ({ newTs }, args) => ({ message_ts: newTs(), ...contentOf(args) }),
  "reactions.add": (slack, args) => react(slack, args, true),
  "reactions.remove": (slack, args) => react(slack, args, false),
  "conversations.open": (slack, args) => ({ channel: { id: channelOf(slack, args.users) } }),
  "conversations.info": (slack, args) => {
    const id = channelOf(slack, args.channel);
    const user = [...slack.directs].find(([, channel]) => channel === id)?.[0];
    const [is_im, name] = [id.startsWith("D"), id.toLowerCase()];
    return { channel: { id, name, is_im, is_channel: !is_im, is_member: !is_im, user } };
  },
  "conversations.history": (slack, args) => pageOf(talkOf(slack, args).toReversed(), args),
  "conversations.replies": (slack, args) => pageOf(talkOf(slack, args, textOf(args.ts)), args),
  "users.info": (slack, args) => {
    const id = userId.test(textOf(args.user)) ? textOf(args.user) : refuse("user_not_found");
    const [name, is_bot] = [slack.nameOf(id), id === botUser];
    const profile = { display_name: name, real_name: name };
    return { user: { id, team_id: team, name, real_name: name, is_bot, profile } };
  },
  "files.getUploadURLExternal": ({ base, shared }, args) => {
    const [id, name] = [newId("F"), textOf(args.filename)];
    if (!name || !(Number(args.length) > 0)) refuse("invalid_arguments");
    shared.set(id, { name, mimetype: "application/octet-stream", content: new Uint8Array() });
    return { file_id: id, upload_url: `${base}/upload/${id}` };
  },
  "files.completeUploadExternal": (slack, args) => {
    const files = recordsOf(args.files).map((file) => {
      const [id, { name, content: bytes }] = [textOf(file.id), fileOf(slack, file.id)];
      slack.files.set(id, bytes.length > 0 ? { name, bytes } : refuse("file_not_found"));
      return shownFile(id, name, textOf(file.title) || name, bytes.length);
    });
    const { channel_id, initial_comment: text } = args;
    const post = () => addPost(slack, channelOf(slack, channel_id), { ...args, text }, files);
    if (channel_id && slack.shareMs > 0) setTimeout(post, slack.shareMs);
    else if (channel_id) post();
    return { files };
  },
  upload: (slack, { id, bytes }) => {
    Object.assign(fileOf(slack, id), { content: bytes });
    return new Response("OK");
  },
  download: (slack, { id }, token) => {
    const { content, mimetype, loginPage = token !== botToken } = fileOf(slack, id);
    const headers = { "content-type": loginPage ? "text/html; charset=utf-8" : mimetype };
    const body = loginPage ? "<!DOCTYPE html><title>Sign in</title>" : new Uint8Array(content);
    return new Response(body, { headers });
  },
};
const fileOf = (slack: SlackServer, id: unknown): SlackFile =>
  slack.shared.get(textOf(id)) ?? refuse("file_not_found");
/** A file as a message of the history has it: https://docs.slack.dev/reference/objects/file-object */
function shownFile(id: string, name: string, title: string, size: number): Json {
  const created = Math.floor(Date.now() / 1000);
  const kind = { mimetype: "", filetype: "", pretty_type: "", mode: "hosted", editable: false };
  const access = {
    is_external: false,
    external_type: "",
    is_public: false,
    file_access: "visible",
  };
  const by = { user: botUser, user_team: team, display_as_bot: false, username: "" };
  return { id, created, timestamp: created, name, title, size, ...kind, ...by, ...access };
}
const userId = /^[UW][A-Z0-9]+$/;
function channelOf({ directs }: SlackServer, value: unknown): string {
  const id = textOf(value);
  if (userId.test(id) && !directs.has(id)) directs.set(id, `D${id.slice(1)}`);
  return directs.get(id) ?? (/^[CDG][A-Z0-9]+$/.test(id) ? id : refuse("channel_not_found"));
}

function contentOf(args: Json): Partial<Content> {
  const [text, blocks] = [textOf(args.text), recordsOf(args.blocks)];
  const sections = blocks.map((block) => textOf(recordOf(block.text)?.text));
  if (!text && blocks.length === 0 && !args.attachments && !args.files) refuse("no_text");
  if (text.length > 40_000) refuse("msg_too_long");
  if (blocks.length > 50 || sections.some((one) => one.length > 3000)) refuse("invalid_blocks");
  const event = recordOf(args.metadata);
  if (!event) return { text, blocks };
  const event_payload = recordOf(event.event_payload) ?? refuse("invalid_metadata_format");
  return { text, blocks, metadata: { event_type: textOf(event.event_type), event_payload } };
}

function addPost(slack: SlackServer, to: unknown, args: Json, files?: Json[]): Json {
  const [channel, ts, threadTs] = [channelOf(slack, to), slack.newTs(), textOf(args.thread_ts)];
  const place = { channel, ts, threadTs: threadTs || null, edits: 0, deleted: false, args, files };
  const post = { text: "", blocks: [], metadata: null, ...contentOf(args), ...place };
  slack.posts.push(post);
  slack.echo(post, shapeOf(post, false));
  return { channel, ts, message: shapeOf(post, true) };
}

function changePost(slack: SlackServer, { channel, ts }: Json, changes: Partial<SlackPost>): Json {
  const isTheirs = slack.heard.some((one) => one.channel === channel && one.ts === ts);
  const reason = isTheirs ? "cant_update_message" : "message_not_found";
  const post = slack.findPost(channel, ts) ?? refuse(reason);
  const [subtype, deleted_ts] = changes.deleted ? ["message_deleted", ts] : ["message_changed"];
  Object.assign(post, changes, { edits: post.edits + (changes.deleted ? 0 : 1) });
  slack.echo(post, { subtype, deleted_ts, message: deleted_ts ? undefined : shapeOf(post, false) });
  return { channel, ts, text: post.text, message: shapeOf(post, true) };
}

function react(slack: SlackServer, args: Json, isOn: boolean): Json {
  const [channel, ts, name] = [textOf(args.channel), textOf(args.timestamp), textOf(args.name)];
  const isHere = (one: Place) => one.channel === channel && one.ts === ts;
  if (![...slack.posts, ...slack.heard].some(isHere)) refuse("message_not_found");
  const at = slack.reactions.findIndex((one) => Bun.deepEquals(one, { channel, ts, name }));
  if (at >= 0 === isOn) refuse(isOn ? "already_reacted" : "no_reaction");
  return isOn
    ? { at: slack.reactions.push({ channel, ts, name }) }
    : { was: slack.reactions.splice(at, 1) };
}

function shapeOf({ ts, text, blocks, ...post }: SlackPost, withMetadata: boolean): Json {
  const edited = post.edits > 0 ? { user: botUser, ts } : undefined;
  const metadata = (withMetadata && post.metadata) || undefined;
  const { files } = post;
  // Slack names no bot on a message with files.
  const by = files ? { upload: false, display_as_bot: false } : { bot_id: botId, app_id: app };
  const own = { type: "message", user: botUser, ...by, edited, metadata };
  return { ...own, ts, thread_ts: post.threadTs ?? undefined, text, blocks, files };
}

/** All of a thread, or what stands in the channel itself. */
function talkOf(slack: SlackServer, args: Json, root?: string): Said[] {
  const [channel, isAll] = [channelOf(slack, args.channel), args.include_all_metadata === true];
  const posts = slack.posts.filter((one) => !one.deleted);
  const own = posts.map((one) => ({ ...one, message: shapeOf(one, isAll) }));
  const isIn = ({ ts, threadTs }: Place) => (threadTs ?? ts) === (root ?? ts);
  const here = [...slack.heard, ...own].filter((one) => one.channel === channel && isIn(one));
  if (root && here.length === 0) refuse("thread_not_found");
  return here.toSorted((a, b) => (a.ts < b.ts ? -1 : 1));
}

function pageOf(all: Said[], args: Json): Json {
  const [oldest, latest] = [textOf(args.oldest) || "0", textOf(args.latest) || "9"];
  const inside = all.filter(({ ts }) => ts > oldest && ts < latest);
  const [from, limit] = [Number(args.cursor ?? 0), Number(args.limit ?? 100)];
  const next_cursor = inside.length > from + limit ? `${from + limit}` : "";
  const messages = inside.slice(from, from + limit).map(({ message }) => message);
  return { messages, has_more: next_cursor !== "", response_metadata: { next_cursor } };
}

const newId = (kind: string) => kind + crypto.randomUUID().replaceAll("-", "").toUpperCase();
const typeOf = (channel: string) => ({ D: "im", G: "group" })[channel.charAt(0)] ?? "channel";
const late = () => Bun.sleep(5000).then(() => refuse("Not acknowledged in 5 s."));
const soon = <T>(promise: Promise<T>): Promise<T> => Promise.race([promise, late()]);
