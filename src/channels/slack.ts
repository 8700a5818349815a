/**
 * The Slack channel: Socket Mode in, Web API out.
 *
 * Invariants: an envelope is acknowledged only after the daemon has stored what it says, and those
 * of one Slack channel are taken in order. A call is made once: its `SendError` says what became of
 * it, and the outbox decides. A text carries the client id that `find` looks for, and its files are
 * shared after it: whatever ends that, `find` looks for them too, and shares those that are not
 * there. No token is ever in an error or a log.
 */
import { z } from "zod";
import { messageOf, UsageError } from "../errors.ts";
import { type Channel, type Host, type Outgoing, SendError, type StoredFile } from "./channel.ts";
import { splitMrkdwn, toMrkdwn } from "./mrkdwn.ts";
import { type EventOptions, openEvents, type Read, readEnvelope } from "./slack-events.ts";
import { openSocket, type SlackSocket, socketClock } from "./slack-socket.ts";
import { install, openWeb, type SlackAccess, type Web } from "./slack-web.ts";

/**
 * `quietMs` after a hello, or the last envelope, nothing more waits at Slack. `shareMs` after the
 * call files are where they were shared: Slack answers first, and looks into them before it does it.
 */
const slackClock = { ...socketClock, quietMs: 1_000, shareMs: 10_000 };
type SlackClock = typeof slackClock;

export type SlackOptions = SlackAccess & { clock?: Partial<SlackClock> };

/** Throws UsageError where a token or the URL cannot be right. */
export function openSlack(options: SlackOptions): Channel {
  const clock = { ...slackClock, ...options.clock };
  const web = openWeb(options);
  const sender = openSender(web, clock.shareMs);
  const sending = new Set<Promise<string>>();
  const leaving = new AbortController();
  const times: { lastIn: number | null; lastOut: number | null } = { lastIn: null, lastOut: null };
  let [socket, intake]: [SlackSocket | null, Intake | null] = [null, null];
  return {
    name: "slack",
    ...sender,
    ...openShow(web),
    start(host) {
      const address = async () => {
        const { user_id: userId, bot_id: botId = null } = await web.identify();
        const bot = { userId, botId };
        intake ??= openIntake({ host, bot, web, signal: leaving.signal, now: clock.now });
        return web.connect();
      };
      const take = async (type: string, payload: unknown) => {
        if (await intake?.take(type, payload)) times.lastIn = clock.now();
      };
      socket = openSocket({ address, take, clock, log: (event, facts) => host.log(event, facts) });
      return socket.start();
    },
    async caughtUp() {
      for (let waitMs = 1; waitMs > 0 && !leaving.signal.aborted;) {
        const lastAt = (await intake?.settle()) ?? 0;
        const since = socket?.state.since ?? clock.now();
        waitMs = Math.max(since, lastAt) + clock.quietMs - clock.now();
        await Bun.sleep(Math.max(0, waitMs));
      }
    },
    async stop() {
      leaving.abort(new Error("claw is stopping"));
      await Promise.all([socket?.stop(), intake?.settle(), Promise.allSettled(sending)]);
    },
    state: () => ({ since: null, error: null, ...socket?.state, ...times }),
    compose: (markdown) => splitMrkdwn(toMrkdwn(markdown)),
    async send(outgoing, signal) {
      const job = sender.send(outgoing, signal);
      sending.add(job);
      const id = await job.finally(() => sending.delete(job));
      times.lastOut = clock.now();
      return id;
    },
  };
}

/** Asks Slack whether the tokens work; "workspace as botname". Throws UsageError with the cure. */
export async function testSlack(options: SlackOptions): Promise<string> {
  const web = openWeb(options);
  const { team, user, response_metadata } = await web.identify();
  await web.connect();
  const missing = scopes.filter((one) => !(response_metadata?.scopes ?? scopes).includes(one));
  if (missing.length === 0) return `${team} as ${user}`;
  const cure = `add them under OAuth & Permissions and ${install}`;
  throw new UsageError(`SLACK_BOT_TOKEN lacks the scopes ${missing.join(", ")}: ${cure}.`);
}

const scopes = (
  "app_mentions:read channels:history chat:write files:read files:write im:history im:write " +
  "reactions:write users:read"
).split(" ");

// ── In ──────────────────────────────────────────────────────────────────────────────────────────

/**
 * `take` resolves when an envelope may be acknowledged, with whether the daemon received anything;
 * `settle` when nothing is under way, with the time of the last envelope.
 */
type Intake = { take(type: string, payload: unknown): Promise<boolean>; settle(): Promise<number> };

function openIntake(options: EventOptions): Intake {
  const { host, bot, web } = options;
  const complete = openEvents(options);
  const received = new Map<string, true>();
  const lanes = new Map<string, Promise<unknown>>();
  let lastAt = 0;
  const store = async (read: Read): Promise<boolean> => {
    const id = read.inbound.type === "message" ? read.inbound.externalId : null;
    if (id !== null && received.has(id)) return false; // a mention's twin, or sent again
    const inbound = await complete(read);
    if (!inbound) return false;
    await host.receive(inbound);
    if (id !== null) keep(received, id, true);
    if (inbound.type === "answer") void endQuestion(web, host, read);
    return true;
  };
  const readIt = (type: string, payload: unknown): Read | null => {
    try {
      return readEnvelope(type, payload, bot);
    } catch (error) {
      host.log("unreadable", { type, reason: messageOf(error) });
      return null; // to have it again would not help
    }
  };
  return {
    async take(type, payload) {
      lastAt = options.now();
      const read = readIt(type, payload);
      if (!read) return false;
      const job = (lanes.get(read.channel) ?? Promise.resolve()).then(() => store(read));
      const settled = job.catch(() => "told to the socket");
      lanes.set(read.channel, settled);
      return job;
    },
    settle: async () => (await Promise.all(lanes.values())) && lastAt,
  };
}

/** Shows the answer where the buttons were, if it was that of somebody who may give one. */
async function endQuestion(
  web: Web,
  host: Host,
  { channel, inbound, asked: post }: Read,
): Promise<void> {
  if (inbound.type !== "answer" || !post) return;
  const thread = post.thread_ts ? `${channel}:${post.thread_ts}` : channel;
  const reach = channel.startsWith("D") ? "direct" : "mention";
  if (!host.admits({ from: inbound.from, reach, thread })) return;
  const text = `*${inbound.yes ? "Yes" : "No"}*, says <@${inbound.from.address}>.`;
  const context = { type: "context", elements: [{ type: "mrkdwn", text }] };
  const blocks = [...post.blocks.filter(({ type }) => type !== "actions"), context];
  await web.show("chat.update", { channel, ts: post.ts, text: post.text ?? "", blocks });
}

// ── Out ─────────────────────────────────────────────────────────────────────────────────────────

type Place = { channel: string; thread_ts?: string };
type Upload = { id: string; title: string };
type Message = z.infer<typeof message>;

const id = z.string();
const file = z.object({ name: id.nullish(), title: id.nullish(), size: z.number().nullish() });
const message = z.object({
  ts: id,
  user: id.optional(),
  metadata: z.object({ event_payload: z.record(id, z.unknown()) }).optional(),
  files: z.array(file).optional(),
});
const next = z.object({ next_cursor: z.string().optional() }).optional();
const page = z.object({ messages: z.array(message), response_metadata: next });
/** A clock may be wrong by this much, and `find` still looks back far enough. */
const skewMs = 3_600_000;

function openSender(web: Web, shareMs: number): Pick<Channel, "send" | "find" | "locate"> {
  /** Messages whose files were looked for, and not seen, once. */
  const awaited = new Set<string>();

  const share = async (place: Place, uploads: Upload[]): Promise<void> => {
    const args = { files: uploads, channel_id: place.channel, thread_ts: place.thread_ts };
    if (uploads.length > 0) await web.write("files.completeUploadExternal", args, z.unknown());
  };
  const uploadAll = ({ files }: Outgoing, signal: AbortSignal): Promise<Upload[]> =>
    Promise.all(files.map((one) => upload(web, one, signal)));
  const areShared = async (place: Place, ts: string, files: StoredFile[]): Promise<boolean> => {
    const { user_id: us } = await web.identify().catch((error: unknown) => {
      throw new SendError("retry", messageOf(error));
    });
    const isShare = (one: Message) => one.user === us && carries(one, files);
    return (await search(web, place, ts, isShare)) !== null;
  };
  const look = async (outgoing: Outgoing, signal: AbortSignal): Promise<string | null> => {
    const { address, clientId, createdAt, files } = outgoing;
    const place = await placeOf(web, address);
    const isIt = (one: Message) => one.metadata?.event_payload["client_id"] === clientId;
    const ts = await search(web, place, String((createdAt - skewMs) / 1000), isIt);
    if (ts === null) return null;
    const isSecondLook = awaited.delete(clientId);
    if (files.length > 0 && !(await areShared(place, ts, files))) {
      if (isSecondLook) await share(place, await uploadAll(outgoing, signal));
      else awaited.add(clientId);
      if (!isSecondLook) throw new SendError("retry", "Its files are not seen yet.", shareMs);
    }
    return `${place.channel}/${ts}`;
  };
  return {
    async send(outgoing, signal) {
      const place = await placeOf(web, outgoing.address);
      const uploads = await uploadAll(outgoing, signal);
      if (signal.aborted) throw new SendError("retry", "It took too long; nothing was posted.");
      const args = { ...place, ...contentOf(outgoing) };
      const { ts } = await web.write("chat.postMessage", args, message);
      await share(place, uploads).catch((error: unknown) => {
        throw new SendError("ambiguous", messageOf(error)); // Its text is out.
      });
      return `${place.channel}/${ts}`;
    },
    find: (outgoing, signal) =>
      asked(look(outgoing, signal)).catch((error: unknown) => {
        if (!(error instanceof SendError) || error.kind !== "permanent") throw error;
        const what = `A message to ${outgoing.address}, or a file of it, may be missing`;
        throw new SendError("permanent", `${what}: ${error.message}`);
      }),
    async locate(target) {
      const { channel, thread_ts } = await placeOf(web, target);
      const thread = thread_ts ? `${channel}:${thread_ts}` : channel;
      return { thread, address: thread };
    },
  };
}

/** Whether a message has these files, in their order; Slack may have changed a name, not the title. */
const carries = ({ files: shown = [] }: Message, files: StoredFile[]): boolean =>
  shown.length === files.length &&
  files.every(({ name, bytes }, at) => {
    const one = shown[at];
    return one?.size === bytes && [one.name, one.title].includes(name);
  });

const noPreviews = { mrkdwn: true, unfurl_links: false, unfurl_media: false };

function contentOf({ text: given, files, question, clientId }: Outgoing): object {
  const text = given || files.map(({ name }) => name).join(", ");
  const metadata = { event_type: "claw", event_payload: { client_id: clientId } };
  if (question === undefined) return { text, ...noPreviews, metadata };
  const sections = splitMrkdwn(text, 3000).map((part) => {
    return { type: "section", expand: true, text: { type: "mrkdwn", text: part } };
  });
  const elements = ["Yes", "No"].map((word) => {
    const label = { type: "plain_text", text: word };
    const action_id = `claw_${word.toLowerCase()}`;
    return { type: "button", text: label, action_id, value: question };
  });
  return { text, ...noPreviews, metadata, blocks: [...sections, { type: "actions", elements }] };
}

/** Opens the direct channel of a person. */
async function placeOf(web: Web, address: string): Promise<Place> {
  const [, name = "", thread_ts] = /^([CDGUW][A-Z0-9]+)(?::(\d+\.\d+))?$/.exec(address) ?? [];
  const isPerson = /^[UW]/.test(name);
  if (name !== "" && !isPerson) return { channel: name, thread_ts };
  if (name === "" || thread_ts) {
    const right = "a channel (C0123ABCD), a thread (C0123ABCD:1712.0001) or a person (U0123ABCD)";
    const wrong = `${JSON.stringify(address)} is no place in Slack`;
    throw new SendError("permanent", `${wrong}: name ${right}.`);
  }
  const shape = z.object({ channel: z.object({ id }) });
  const { channel } = await asked(web.ask("conversations.open", { users: name }, shape));
  return { channel: channel.id };
}

/** The `ts` of a message after `oldest`; the newest is looked at first in a channel, the oldest in a thread. */
async function search(
  web: Web,
  { channel, thread_ts: ts }: Place,
  oldest: string,
  matches: (one: Message) => unknown,
): Promise<string | null> {
  const method = ts ? "conversations.replies" : "conversations.history";
  const args = { channel, ts, oldest, limit: 200, include_all_metadata: true };
  for (let [pages, cursor] = [0, ""]; pages < 5; pages += 1) {
    const found = await asked(web.ask(method, { ...args, cursor: cursor || undefined }, page));
    const one = found.messages.find(matches);
    cursor = found.response_metadata?.next_cursor ?? "";
    if (one || cursor === "") return one?.ts ?? null;
  }
  throw new SendError("permanent", "There is too much to search it for the message.");
}

/** Nobody sees an upload before it is shared, so that whatever fails here may be repeated. */
async function upload(web: Web, { path, name }: StoredFile, signal: AbortSignal): Promise<Upload> {
  const { size: length } = Bun.file(path);
  if (length === 0) throw new SendError("permanent", `${name} is empty or gone.`);
  const shape = z.object({ upload_url: id, file_id: id });
  const args = { filename: name, length };
  const { upload_url, file_id } = await asked(web.ask("files.getUploadURLExternal", args, shape));
  const response = await web.upload(upload_url, Bun.file(path), signal).catch(messageOf);
  if (typeof response !== "string" && response.ok) return { id: file_id, title: name };
  const reason = typeof response === "string" ? response : `Slack answered ${response.status}`;
  throw new SendError("retry", `${name} could not be uploaded: ${reason}.`);
}

/** What shows that claw works; nothing of it is worth an error. */
function openShow(web: Web): Pick<Channel, "react" | "showProgress"> {
  return {
    async react(externalId, on) {
      const [channel, timestamp = ""] = externalId.split("/");
      if (!/^\d+\.\d+$/.test(timestamp)) return; // a slash command is no message
      const method = on ? "reactions.add" : "reactions.remove";
      await web.show(method, { channel, timestamp, name: "eyes" });
    },
    async showProgress(address, shown, markdown) {
      const [text] = markdown === null ? [] : splitMrkdwn(toMrkdwn(markdown));
      const [channel, ts] = shown?.split("/") ?? [];
      if (shown !== null)
        await web.show(text ? "chat.update" : "chat.delete", { channel, ts, text });
      if (shown !== null || !text) return text ? shown : null;
      const place = await placeOf(web, address).catch(() => null); // `send` will say so
      const post = place && (await web.show("chat.postMessage", { ...place, text, ...noPreviews }));
      const { data } = message.safeParse(post);
      return place && data ? `${place.channel}/${data.ts}` : null;
    },
  };
}

/** A call that shows or changes nothing can be made again, whatever became of it. */
async function asked<T>(call: Promise<T>): Promise<T> {
  return call.catch((error: unknown) => {
    const isUnsure = error instanceof SendError && error.kind === "ambiguous";
    throw isUnsure ? new SendError("retry", error.message) : error;
  });
}

function keep<K, V>(map: Map<K, V>, key: K, value: V): void {
  map.set(key, value);
  for (const old of map.size > 2000 ? map.keys().take(1) : []) map.delete(old);
}
