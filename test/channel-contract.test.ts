/** Slack and email keep the contract of every channel. */
import { describe } from "bun:test";
import { join } from "node:path";
import PostalMime from "postal-mime";
import type { Incoming } from "../src/channels/channel.ts";
import { openEmail } from "../src/channels/email.ts";
import { openSlack } from "../src/channels/slack.ts";
import { type Arrived, type Rig, testChannel } from "./channel-contract.ts";
import { address, authservId, letter, missing, password, startMail } from "./mail-server.ts";
import { type SlackMessage, type SlackPost, startSlack } from "./slack-server.ts";

/** The expression that calls a channel's `open…` in another process. */
const program = (file: string, open: string, options: object) => {
  const path = join(import.meta.dir, "../src/channels", file);
  return `(await import(${JSON.stringify(path)})).${open}(${JSON.stringify(options)})`;
};

// ── Slack ───────────────────────────────────────────────────────────────────────────────────────

/** Ann and Bob speak to claw alone, or mention it in C1. */
async function openSlackRig(reach: Incoming["reach"]): Promise<Rig> {
  const people = { ann: "U1", bob: "U2" };
  const slack = startSlack({ users: { U1: "Ann", U2: "Bob" } });
  const { SLACK_BOT_TOKEN: botToken, SLACK_APP_TOKEN: appToken } = slack.env;
  const options = { botToken, appToken, apiUrl: slack.url };
  const clock = { retryMs: 20, retryMaxMs: 100, closeMs: 200, quietMs: 200 };
  const refused = "xoxb-refused-token";
  const said = new Map<string, SlackMessage>();

  /** In a direct message nobody opens threads. */
  const rootOf = (channel: string, ts = ""): string | undefined => {
    const known = [...slack.heard, ...slack.posts];
    const message = known.find((one) => one.channel === channel && one.ts === ts);
    return channel.startsWith("D") ? undefined : (message?.threadTs ?? message?.ts);
  };
  const placeOf = (channel: string, threadTs?: string | null) => ({
    to: channel.replace("D", "U"),
    thread: `${channel}:${threadTs ?? ""}`,
  });
  /** Not awaited: it resolves when claw has acknowledged, and here it may never do so. */
  const post = (message: SlackMessage) =>
    void slack.say(message).catch(() => "not acknowledged, or not in time");

  const seen = ({ channel, threadTs, text, args }: SlackPost): Arrived => {
    const ids = Array.isArray(args["files"]) ? args["files"].map(({ id }) => String(id)) : [];
    const files = ids.flatMap((id) => slack.files.get(id) ?? []);
    return { ...placeOf(channel, threadTs), text, files };
  };
  return {
    open: () => openSlack({ ...options, clock }),
    openRefused: () => openSlack({ ...options, botToken: refused }),
    program: program("slack.ts", "openSlack", options),
    secrets: [botToken, appToken, refused],
    people,
    reach,
    async say({ from, text: words, in: parent, file }) {
      const user = people[from];
      const usual = reach === "direct" ? user.replace("U", "D") : "C1";
      const [channel = usual, parentTs] = parent?.split("/") ?? [];
      const [ts, threadTs] = [slack.newTs(), rootOf(channel, parentTs)];
      const marked = words.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
      const text = channel === "C1" ? `<@${slack.botUser}> ${marked}` : marked;
      const files = file && [{ ...file, mimetype: file.mediaType }];
      const message = { channel, user, text, ts, threadTs, files };
      said.set(`${channel}/${ts}`, message);
      post(message);
      const root = channel === "C1" ? (threadTs ?? ts) : null;
      return { externalId: `${channel}/${ts}`, ...placeOf(channel, root) };
    },
    async again(externalId) {
      const message = said.get(externalId);
      if (message) post(message);
    },
    arrived: async () => slack.posts.filter(({ deleted }) => !deleted).map(seen),
    cut: async () => slack.cut(),
    nowhere() {
      slack.fail("chat.postMessage", { body: { ok: false, error: "channel_not_found" } });
      return "C0GONE";
    },
    [Symbol.asyncDispose]: async () => slack.stop(),
  };
}

testChannel("slack, direct", () => openSlackRig("direct"));
testChannel("slack, in a channel", () => openSlackRig("mention"));

// ── Email ───────────────────────────────────────────────────────────────────────────────────────

async function openEmailRig(): Promise<Rig> {
  const people = { ann: "ann@x.org", bob: "bob@x.org" };
  const mail = await startMail();
  const { imap: imapUrl, smtp: smtpUrl } = mail.urls.tls;
  const options = { address, imapUrl, smtpUrl, authservId, ca: mail.ca };
  const refused = "wr0ng-word";
  const wrongUrl = imapUrl.replace(encodeURIComponent(password), refused);
  /** The mail that began a mail's thread, by their ids. */
  const roots = new Map<string, string>();
  const raws = new Map<string, string>();
  /** A second or two between attempts is short here; a minute between syncs stays one. */
  const sleep = (ms: number, signal: AbortSignal) =>
    new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms < 10_000 ? 20 : ms);
      signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
      if (signal.aborted) resolve();
    });

  async function seen(raw: string): Promise<Arrived> {
    const { headers, messageId, references, text, attachments } = await PostalMime.parse(raw);
    const [id = "", root = id] = [messageId, references?.split(" ")[0]];
    roots.set(id, root);
    const files = attachments.map(({ filename, content }) => {
      const bytes = new Uint8Array(content instanceof ArrayBuffer ? content : []);
      return { name: filename ?? "", bytes };
    });
    const to = headers.find(({ key }) => key === "envelope-to")?.value ?? "";
    return { to, thread: root, text: text ?? "", files };
  }
  return {
    open: () => openEmail({ ...options, clock: { now: Date.now, sleep } }),
    openRefused: () => openEmail({ ...options, imapUrl: wrongUrl }),
    program: program("email.ts", "openEmail", options),
    secrets: [password, encodeURIComponent(password), refused],
    people,
    reach: "direct",
    async say({ from, text, in: parent, file }) {
      const number = raws.size + 1;
      const id = `m${number}@x.org`;
      const root = parent === undefined ? id : (roots.get(`<${parent}>`) ?? parent);
      const thread = parent ? `In-Reply-To: <${parent}>\nReferences: ${root} <${parent}>\n` : "";
      const words = "Content-Type: text/plain; charset=utf-8";
      const data = Buffer.from(file?.content ?? []).toString("base64");
      const mixed = `MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="cut"`;
      const encoding = `Content-Transfer-Encoding: base64\n\n${data.replaceAll(/.{76}/g, "$&\n")}`;
      const name = `Content-Disposition: attachment; filename="${file?.name}"`;
      const attached = `Content-Type: ${file?.mediaType}\n${name}\n${encoding}`;
      const body = `--cut\n${words}\n\n${text}\n--cut\n${attached}\n--cut--`;
      const parts = file ? { headers: mixed, body } : { headers: words, body: text };
      const headers = thread + parts.headers;
      raws.set(id, letter(number, { ...parts, from: people[from], headers }));
      roots.set(`<${id}>`, parent ? root : `<${id}>`);
      await mail.deliver(raws.get(id) ?? "");
      return { externalId: id, to: people[from], thread: roots.get(`<${id}>`) ?? "" };
    },
    async again(id) {
      await mail.deliver(raws.get(id) ?? "");
    },
    arrived: () => Promise.all(mail.received().map(seen)),
    async cut() {
      await mail.stopImap();
      await mail.startImap();
    },
    nowhere: () => "nobody@x.org",
    [Symbol.asyncDispose]: () => mail[Symbol.asyncDispose](),
  };
}

describe.skipIf(missing !== null)("with a mail server", () => {
  testChannel("email", openEmailRig);
});
