/**
 * From what Slack sends to `Inbound`: whose message it is, where it belongs, what it says.
 *
 * Invariants: reading an envelope is pure and asks nobody; only a message that the daemon admits has
 * its files and the talk before it fetched. What could not be had is a sentence in `problems`; a
 * file that could not be written is an error, so that its message is not acknowledged.
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { config } from "../config.ts";
import { messageOf } from "../errors.ts";
import type { Host, Inbound, Incoming } from "./channel.ts";
import type { Bot, Web } from "./slack-web.ts";

const { slack } = config.serve;

// ── Reading an envelope ─────────────────────────────────────────────────────────────────────────

const [id, text] = [z.string(), z.string().nullish()];
const files = z.array(
  z.object({ name: text, mimetype: text, size: z.number().nullish(), url_private_download: text }),
);
const post = { ts: id, thread_ts: text, user: text, username: text, bot_id: text };
const words = z.object({ ...post, subtype: text, text, files: files.nullish() });
const changes = { deleted_ts: text, message: words.nullish(), previous_message: words.nullish() };
const talk = words.extend({ ...changes, channel: id, channel_type: text });
const command = z.object({ trigger_id: id, channel_id: id, user_id: id, user_name: text, text });
const asked = words.extend({ blocks: z.array(z.looseObject({ type: id })).default([]) });
const actions = z.array(z.object({ action_id: id, value: text }));
const place = { user: z.object({ id, name: text }), channel: z.object({ id }) };
const press = z.object({ ...place, message: asked, actions });
const history = z.object({ messages: z.array(words) });
const profile = z.object({ display_name: text, real_name: text });
const person = z.object({ user: z.object({ name: text, profile }) });
type Words = z.infer<typeof words>;
/** The post whose button was pressed. */
type Asked = z.infer<typeof asked>;

/** What an envelope says before anybody was asked: its texts have Slack's own marks. */
export type Read = { channel: string; inbound: Inbound; words?: Words; asked?: Asked };

/** Null: it is not for claw. Throws ZodError for what has not the shape that it should have. */
export function readEnvelope(type: string, payload: unknown, bot: Bot): Read | null {
  if (type === "slash_commands") return readCommand(command.parse(payload));
  if (type === "interactive") return readPress(payload);
  if (type !== "events_api") return null;
  const { event } = z.object({ event: z.looseObject({ type: id }) }).parse(payload);
  return /^(message|app_mention)$/.test(event.type) ? readTalk(talk.parse(event), bot) : null;
}

const isHeard = (channel: string): boolean =>
  channel.startsWith("D") || (slack.channels?.includes(channel) ?? true);

function readCommand(given: z.infer<typeof command>): Read | null {
  const { channel_id: channel, user_id: user, user_name: username } = given;
  const said = { ts: "", user, username, text: given.text };
  const externalId = `${channel}/slash-${given.trigger_id}`;
  const inbound = { ...draft(said, channel, "direct"), externalId };
  return isHeard(channel) ? { channel, inbound, words: said } : null;
}

function readPress(payload: unknown): Read | null {
  const { data } = press.safeParse(payload); // other interactions have other shapes
  const action = data?.actions.find((one) => /^claw_(yes|no)$/.test(one.action_id));
  if (!data || !action) return null;
  const [question, yes] = [action.value ?? "", action.action_id === "claw_yes"];
  const from = { address: data.user.id, name: data.user.name || data.user.id };
  const inbound: Inbound = { type: "answer", question, yes, from };
  return { channel: data.channel.id, inbound, asked: data.message };
}

const subtypes = ["", "file_share", "thread_broadcast", "me_message", "bot_message"];

function readTalk(event: z.infer<typeof talk>, bot: Bot): Read | null {
  const { channel, subtype, message, previous_message: before } = event;
  if (!isHeard(channel)) return null;
  if (subtype === "message_deleted" || message?.subtype === "tombstone") {
    const externalId = `${channel}/${event.deleted_ts ?? message?.ts}`;
    const isOurs = before && !isPersons(before, bot);
    return isOurs ? null : { channel, inbound: { type: "delete", externalId } };
  }
  if (subtype === "message_changed") {
    if (!message || !isPersons(message, bot) || message.text === before?.text) return null;
    const externalId = `${channel}/${message.ts}`;
    return { channel, inbound: { type: "edit", externalId, text: message.text ?? "" } };
  }
  if (!subtypes.includes(subtype ?? "") || !isPersons(event, bot)) return null;
  const isMention = new RegExp(`<@${bot.userId}[|>]`).test(event.text ?? "");
  const isDirect = event.channel_type === "im" || channel.startsWith("D");
  const reach = isDirect ? "direct" : isMention ? "mention" : "overheard";
  return { channel, inbound: draft(event, channel, reach), words: event };
}

/** A message at the root of a channel begins a thread there; in a direct message nothing does. */
function draft(said: Words, channel: string, reach: Incoming["reach"]): Incoming {
  const root = said.thread_ts ?? (reach === "direct" ? null : said.ts);
  const thread = root === null ? channel : `${channel}:${root}`;
  const from = { address: authorOf(said), name: said.username ?? "" };
  const empty = { files: [], problems: [] };
  const [externalId, at] = [`${channel}/${said.ts}`, Number(said.ts) * 1000];
  const where = { externalId, thread, address: thread, reach };
  return { type: "message", ...where, from, text: said.text ?? "", ...empty, at };
}

const authorOf = ({ user, bot_id }: Words): string => user ?? bot_id ?? "";

/** A person's, or that of a bot whose words count as a person's; never claw's own. */
function isPersons({ user, bot_id, subtype }: Words, bot: Bot): boolean {
  if (user === bot.userId || (bot_id && bot_id === bot.botId)) return false;
  if (!bot_id && subtype !== "bot_message") return Boolean(user);
  return slack.bots.some((one) => one === user || one === bot_id);
}

/** Slack's marks as a person would write them; the mention of claw is left out. */
export function toPlain(marked: string, bot: Bot, nameOf: (user: string) => string): string {
  return marked
    .replaceAll(new RegExp(`<@${bot.userId}(\\|[^>]*)?>[,:]?[ \\t]?`, "g"), "")
    .replaceAll(/<([^<>|\n]+)\|?([^<>\n]*)>/g, (_, target: string, label: string) => {
      if (target.startsWith("@")) return `@${nameOf(target.slice(1))}`;
      if (target.startsWith("#")) return `#${label || target.slice(1)}`;
      if (target.startsWith("!")) return label || `@${target.slice(1)}`;
      const address = target.replace(/^mailto:/, "");
      return address.endsWith(label) ? address : `${label} (${address})`;
    })
    .replaceAll(/&(lt|gt|amp);/g, (_, name: string) => ({ lt: "<", gt: ">" })[name] ?? "&")
    .trim();
}

// ── Completing what was read ────────────────────────────────────────────────────────────────────

/** `signal` ends downloads; their messages are then not acknowledged, and come again. */
export type EventOptions = { host: Host; bot: Bot; web: Web; now(): number; signal: AbortSignal };

const [namesMax, contextMax, lineMax] = [1000, 20, 500];

/** Asks for what an envelope does not say. Resolves with null for a bot that talks too much. */
export function openEvents(options: EventOptions): (read: Read) => Promise<Inbound | null> {
  const { host, bot, web } = options;
  const names = new Map<string, string>();
  const nameOf = (user: string) => names.get(user) ?? user;
  const allows = openGuard(() => options.now());

  const learn = async (ids: string[]): Promise<void> => {
    const wanted = [...new Set(ids)].filter((user) => /^[UW]/.test(user) && !names.has(user));
    const ask = async (user: string) => {
      const { profile: shown, name } = (await web.ask("users.info", { user }, person)).user;
      names.set(user, shown.display_name || shown.real_name || name || user);
    };
    await Promise.allSettled(wanted.slice(0, contextMax).map(ask)); // else their ids must do
    for (const old of [...names.keys()].slice(0, -namesMax)) names.delete(old);
  };
  const plain = async (marked: string): Promise<string> => {
    await learn([...marked.matchAll(/<@(\w+)/g)].map(([, user = ""]) => user));
    return toPlain(marked, bot, nameOf);
  };
  /** Adds what was said in the thread since the daemon last heard of it. */
  const recall = async (incoming: Incoming, channel: string, root: string, before: string) => {
    const knows = (ts: string) => host.findThread([`${channel}/${ts}`]) === incoming.thread;
    if (slack.followThreads && knows(root)) return;
    const args = { channel, ts: root, latest: before, limit: 200 };
    const { messages } = await web.ask("conversations.replies", args, history);
    const earlier = messages.filter(({ ts }) => ts < before).slice(-contextMax);
    const fresh = earlier.slice(earlier.findLastIndex(({ ts }) => knows(ts)) + 1);
    await learn(fresh.map(authorOf));
    const lines = fresh.map(async (one) => {
      const line = `${one.username || nameOf(authorOf(one))}: ${await plain(one.text ?? "")}`;
      return line.slice(0, lineMax).toWellFormed();
    });
    if (fresh.length > 0) incoming.context = (await Promise.all(lines)).join("\n");
  };

  return async ({ channel, inbound, words: said }) => {
    if (inbound.type === "edit") return { ...inbound, text: await plain(inbound.text) };
    if (inbound.type !== "message" || !said) return inbound;
    const { address, name } = inbound.from;
    if (said.bot_id && !allows(`${address} ${channel}`)) return null;
    await learn([address]);
    const from = { address, name: name || nameOf(address) };
    const incoming = {
      ...inbound,
      from,
      text: await plain(inbound.text),
      at: inbound.at || options.now(),
    };
    if (!host.admits(incoming)) return incoming;
    const root = said.thread_ts ?? said.ts;
    if (root !== said.ts && incoming.reach !== "overheard")
      await recall(incoming, channel, root, said.ts).catch((error: unknown) =>
        incoming.problems.push(`What was said before is missing: ${messageOf(error)}`),
      );
    if (said.files?.length) await fetchFiles(said.files, incoming, options);
    return incoming;
  };
}

/** At most 20 messages a minute of one bot in a channel, then none for a minute: bots loop. */
function openGuard(now: () => number): (pair: string) => boolean {
  const pairs = new Map<string, { times: number[]; quietUntil: number }>();
  return (pair) => {
    const [at, known] = [now(), pairs.get(pair) ?? { times: [], quietUntil: 0 }];
    if (at < known.quietUntil) return false;
    const times = [...known.times.filter((one) => one > at - 60_000), at];
    const isLoop = times.length > 20;
    pairs.set(pair, { times, quietUntil: isLoop ? at + 60_000 : 0 });
    return !isLoop;
  };
}

// ── Files ───────────────────────────────────────────────────────────────────────────────────────

type File = z.infer<typeof files>[number];

async function fetchFiles(given: File[], incoming: Incoming, options: EventOptions) {
  const { problems } = incoming;
  const folder = await options.host.newFolder();
  for (const [index, file] of given.slice(0, slack.maxFiles).entries()) {
    const name = safeName(`${given.length > 1 ? `${index + 1}-` : ""}${file.name ?? "file"}`);
    const content = await fetchFile(file, options).catch((error: unknown) => {
      options.signal.throwIfAborted();
      problems.push(`${name} could not be had: ${messageOf(error)}.`);
    });
    if (!content) continue;
    const path = join(folder, name);
    await writeFile(path, content, { flag: "wx", flush: true });
    const mediaType = file.mimetype || "application/octet-stream";
    incoming.files.push({ path, name, mediaType, bytes: content.length });
  }
  if (given.length > slack.maxFiles)
    problems.push(`Only ${slack.maxFiles} of the ${given.length} files were taken.`);
}

/** No folder, nothing hidden, nothing that turns text around; 240 bytes at most. */
export const safeName = (name: string): string =>
  name
    .replaceAll(/[\p{C}/\\:*?"<>|]/gu, "_")
    .replace(/^[.\s]+/, "")
    .replace(/^(.{30}).+(.{30})$/u, "$1$2") || "file";

/** Throws why it cannot be had, in half a sentence. */
async function fetchFile(file: File, { web, signal }: EventOptions): Promise<Buffer> {
  const { url_private_download: address, size, mimetype } = file;
  if (!address) throw new Error("Slack names no address to fetch it from");
  if ((size ?? 0) > slack.maxFileBytes)
    throw new Error(`it is larger than ${slack.maxFileBytes} bytes`);
  const { content, isPage } = await web.download(address, slack.maxFileBytes, signal);
  if (!isPage || mimetype?.startsWith("text/html")) return content;
  throw new Error("Slack sent a login page in its place (the app needs the scope files:read)");
}
