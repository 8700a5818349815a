/**
 * The mailbox: watches it over IMAP, and gives the daemon each mail that may be heard, in order.
 *
 * Invariants: UIDs and UIDVALIDITY are the truth, IDLE is a hint. The cursor moves past a mail, and
 * the mail becomes \\Seen, once the daemon holds it; a mail that cannot be stored is tried again and
 * nothing overtakes it. Who may be heard at all is decided on the headers, before a body is fetched.
 */
import { join } from "node:path";
import type { FetchQueryObject, ImapFlow, ImapFlowError, SearchObject } from "imapflow";
import type { Attachment } from "postal-mime";
import { z } from "zod";
import { config } from "../config.ts";
import { messageOf, UsageError } from "../errors.ts";
import type { Host, Incoming, Person, StoredFile } from "./channel.ts";
import { reasonToIgnore, replyOf } from "./mail-reply.ts";
import { leave, openImap, type Server, within } from "./mail-servers.ts";
import { type Mail, readMail } from "./mail.ts";

export type Account = { own: string; imap: Server; smtp: Server; authservId: string | null };

/** `sleep` ends early when the signal does. */
export type EmailClock = {
  now: () => number;
  sleep: (ms: number, signal: AbortSignal) => Promise<void>;
};

/** A larger mail is known by its headers alone. */
const maxMailBytes = 30_000_000;
const maxTextChars = 100_000;
/** A server that gives no sign of life for so long is gone. */
const signOfLifeMs = 20_000;
/** How long a mail that is being taken may hold up the end. */
const leaveMs = 2_000;

/** Up to where the mailbox was read. Mail below `oldUntil` was there before claw first looked. */
const cursorShape = z.object({
  uidValidity: z.string(),
  lastUid: z.number(),
  oldUntil: z.number(),
  unseenOnly: z.boolean(),
});
type Cursor = z.infer<typeof cursorShape>;

export type Inbox = {
  /** The first connection; rejects with UsageError where no retry can help. */
  started: Promise<void>;
  ended: Promise<void>;
  caughtUp(): Promise<void>;
  state: { since: number | null; lastIn: number | null; error: string | null };
};

/** Begins to receive; `leaving` ends it. */
export function openInbox(
  account: Account,
  host: Host,
  clock: EmailClock,
  leaving: AbortSignal,
): Inbox {
  const { mailbox, syncMs, firstDays } = config.serve.email;
  const state: Inbox["state"] = { since: null, lastIn: null, error: null };
  const { promise: started, resolve: onStart, reject: onRefusal } = Promise.withResolvers<void>();
  const waiting: (() => void)[] = [];
  const takes = openIntake(account, host);
  let hasConnected = false;
  let alarm = new AbortController();
  let failures = 0;

  async function receiveForEver(): Promise<void> {
    while (!leaving.aborted) {
      try {
        await receive();
      } catch (error) {
        if (leaving.aborted) break;
        const isRefused = error instanceof UsageError;
        if (isRefused) onRefusal(error); // Without effect after the first connection.
        if (isRefused && !hasConnected) return;
        const [firstMs, mostMs] = isRefused ? [60_000, 7_200_000] : [2_000, 300_000];
        const waitMs = Math.min(firstMs * 2 ** failures, mostMs) * (0.75 + Math.random() / 2);
        failures += 1;
        state.error = `Mail does not come in: ${messageOf(error)}`;
        host.log("disconnected", { reason: state.error, waitMs: Math.round(waitMs) });
        await clock.sleep(waitMs, leaving);
      }
    }
    for (const done of waiting) done();
    onStart();
  }

  /** One connection, until it breaks or claw leaves. */
  async function receive(): Promise<void> {
    const imap = await openImap(account.imap, 2 * maxMailBytes, leaving);
    const giveUp = () => setTimeout(() => imap.close(), leaveMs).unref();
    leaving.addEventListener("abort", giveUp, { once: true });
    try {
      await imap.mailboxOpen(mailbox).catch((error: unknown) => {
        const { mailboxMissing } = error as ImapFlowError;
        if (!mailboxMissing) throw error;
        throw new UsageError(`There is no mailbox "${mailbox}" (config.serve.email.mailbox).`);
      });
      for (const event of ["exists", "close"]) imap.on(event, () => alarm.abort());
      state.since = clock.now();
      host.log("connected");
      hasConnected = true;
      onStart();
      while (!leaving.aborted) {
        alarm = new AbortController();
        const served = waiting.length;
        await sync(imap);
        [failures, state.error] = [0, null];
        for (const done of waiting.splice(0, served)) done();
        imap.idle().catch(() => {}); // A hint at most: the next sync notices what broke.
        await clock.sleep(syncMs, AbortSignal.any([leaving, alarm.signal]));
      }
    } finally {
      state.since = null;
      leaving.removeEventListener("abort", giveUp);
      await leave(imap);
    }
  }

  async function sync(imap: ImapFlow): Promise<void> {
    await within(signOfLifeMs, imap.noop());
    let cursor = await readCursor(imap);
    const uids = await newUids(imap, cursor);
    for (const uid of uids) {
      if (leaving.aborted) return;
      const isKept = await takes(imap, uid, clock.now());
      cursor = { ...cursor, lastUid: uid };
      if (isKept) state.lastIn = clock.now();
      if (isKept || uid === uids.at(-1)) await host.writeNote(cursor);
    }
  }

  async function readCursor(imap: ImapFlow): Promise<Cursor> {
    if (!imap.mailbox) throw new Error(`${mailbox} was closed.`);
    const uidValidity = String(imap.mailbox.uidValidity);
    const { data: cursor } = cursorShape.safeParse(await host.readNote());
    if (cursor?.uidValidity === uidValidity) return cursor;
    if (cursor) host.log("mailbox renumbered", { was: cursor.uidValidity, is: uidValidity });
    const oldUntil = imap.mailbox.uidNext;
    const first = { uidValidity, lastUid: 0, oldUntil, unseenOnly: cursor === undefined };
    await host.writeNote(first);
    return first;
  }

  /** Those above the cursor, in order; of those that were there before, the young ones. */
  async function newUids(imap: ImapFlow, cursor: Cursor): Promise<number[]> {
    const { lastUid, oldUntil, unseenOnly } = cursor;
    const from = Math.max(lastUid + 1, oldUntil);
    const fresh = await search(imap, { uid: `${from}:*` });
    const since = new Date(clock.now() - firstDays * 86_400_000);
    const query = { uid: `${lastUid + 1}:${oldUntil}`, since, ...(unseenOnly && { seen: false }) };
    const old = lastUid + 1 < oldUntil ? await search(imap, query) : [];
    // "5:*" is also the last mail of a mailbox that ends at 4.
    const wanted = [...old.filter((uid) => uid < from), ...fresh.filter((uid) => uid >= from)];
    return wanted.toSorted((one, other) => one - other);
  }

  return {
    started,
    state,
    ended: receiveForEver(),
    caughtUp: () =>
      new Promise((resolve) => {
        if (leaving.aborted) return resolve();
        waiting.push(resolve);
        alarm.abort();
      }),
  };
}

// ── One mail ────────────────────────────────────────────────────────────────────────────────────

/**
 * Takes one mail; true: the daemon holds it. Rejects when it could not be stored, or the connection
 * broke. What is ignored or cannot be read is passed over, with a line in the log.
 */
type Take = (imap: ImapFlow, uid: number, now: number) => Promise<boolean>;

const byUid = { uid: true };

// imapflow gives the same answer where nothing is there and where the connection broke.

async function search(imap: ImapFlow, query: SearchObject): Promise<number[]> {
  const found = await imap.search(query, byUid);
  if (!found) throw new Error("The mailbox cannot be searched.");
  return found;
}

/** null: it was deleted meanwhile. */
async function fetch(imap: ImapFlow, uid: number, query: FetchQueryObject) {
  const found = await imap.fetchOne(uid, query, byUid);
  if (!found) mustBeOpen(imap);
  return found || null;
}

function mustBeOpen(imap: ImapFlow): void {
  if (!imap.usable || !imap.mailbox) throw new Error("The connection broke.");
}

function openIntake({ own, authservId }: Account, host: Host): Take {
  const isFlood = openCap(host);
  const sentId = new RegExp(`^[\\w-]+@${RegExp.escape(own.slice(own.indexOf("@") + 1))}$`);

  const reasonAgainst = (mail: Mail) => {
    const isOurs = sentId.test(mail.id) && host.findThread([mail.id]) !== null;
    return isOurs ? "claw sent it" : reasonToIgnore(mail, own, authservId);
  };
  const read = (raw: Uint8Array = new Uint8Array(), uid: number) =>
    readMail(raw).catch((error: unknown) => {
      host.log("unreadable", { uid, reason: messageOf(error) });
      return null;
    });

  return async (imap, uid, now) => {
    const found = await fetch(imap, uid, { size: true, internalDate: true, headers: true });
    const { headers, size = 0, internalDate = "" } = found ?? {};
    const head = found && (await read(headers, uid));
    if (!head) return false;
    const { from } = head;
    const at = new Date(internalDate).getTime() || now;
    const reason = reasonAgainst(head);
    if (reason !== null) host.log("ignored", { uid, from: from?.address ?? null, reason });
    if (reason !== null || !from || isFlood(from.address, at, false)) return false;

    const isLarge = size > maxMailBytes;
    const whole = isLarge ? null : await fetch(imap, uid, { source: true });
    const mail = isLarge ? head : whole && (await read(whole.source, uid));
    if (!mail) return false;
    const problems = isLarge ? [tooLarge(size)] : [];
    await host.receive(await toIncoming({ ...mail, from }, own, at, problems, host));
    isFlood(from.address, at, true);
    if (!(await imap.messageFlagsAdd(uid, ["\\Seen"], byUid))) mustBeOpen(imap);
    return true;
  };
}

const tooLarge = (bytes: number) =>
  `The mail has ${bytes} bytes, and ${maxMailBytes} is the most: nothing but its subject was read.`;

/** Whether a sender wrote more than config allows in the hour before `at`; `count` adds one. */
function openCap(host: Host): (address: string, at: number, count: boolean) => boolean {
  const { maxPerHour } = config.serve.email;
  const arrivals = new Map<string, number[]>();
  const told = new Set<string>();
  return (address, at, count) => {
    const recent = (arrivals.get(address) ?? []).filter((one) => at - one < 3_600_000);
    arrivals.set(address, count ? [...recent, at] : recent);
    if (recent.length < maxPerHour) return told.delete(address) && false;
    if (!told.has(address)) host.log("too many mails", { from: address, maxPerHour });
    told.add(address);
    return true;
  };
}

/** A thread belongs to the sender whose address it has: nobody lands in another's conversation. */
async function toIncoming(
  mail: Mail & { from: Person },
  own: string,
  arrivedAt: number,
  problems: string[],
  host: Host,
): Promise<Incoming> {
  const { from, ancestors, root } = mail;
  const known = ancestors.map((id) => host.findThread([id]));
  const ours = known.find((thread) => thread?.startsWith(`${from.address} `));
  const thread = ours ?? `${from.address} ${root}`;
  const isAdmitted = host.admits({ from, reach: "direct", thread });
  const stored = await storeFiles(isAdmitted ? mail.attachments : [], host);
  const text = mail.text.trim();
  const context = mail.quoted.trim().slice(0, maxTextChars).toWellFormed();
  if (text.length > maxTextChars)
    problems.push(`The text was cut: it has ${text.length} characters, ${maxTextChars} were read.`);
  return {
    type: "message",
    externalId: mail.id,
    thread,
    address: from.address,
    from,
    reach: "direct",
    reply: replyOf(mail, from.address, own, config.serve.email.replyToAll),
    ...(!ours && mail.subject !== "" && { subject: mail.subject }),
    text: text.slice(0, maxTextChars).toWellFormed(),
    ...(context !== "" && { context }),
    files: stored.files,
    problems: [...problems, ...stored.problems],
    at: Math.min(mail.sentAt ?? arrivedAt, arrivedAt),
  };
}

async function storeFiles(attachments: Attachment[], host: Host) {
  const { maxFiles, maxFileBytes } = config.serve.email;
  const files: StoredFile[] = [];
  const problems: string[] = [];
  const folder = attachments.length > 0 ? await host.newFolder() : "";
  for (const [index, attachment] of attachments.entries()) {
    const { content, mimeType: mediaType } = attachment;
    const name = safeName(attachment, index + 1, files);
    const bytes = typeof content === "string" ? Buffer.from(content) : new Uint8Array(content);
    const path = join(folder, name);
    if (files.length >= maxFiles) {
      const left = attachments.length - index;
      problems.push(`${left} more files were left out: of a mail's files ${maxFiles} are kept.`);
      break;
    }
    if (bytes.length <= maxFileBytes) {
      await Bun.write(path, bytes);
      files.push({ path, name, mediaType, bytes: bytes.length });
    } else problems.push(`${name} was left out: ${bytes.length} bytes, over ${maxFileBytes}.`);
  }
  return { files, problems };
}

/** A name that is one wherever it is written: no path, nothing invisible, not too long, not taken. */
function safeName({ filename, mimeType }: Attachment, number: number, files: StoredFile[]): string {
  const last = (filename ?? "").normalize("NFC").split(/[/\\]/).at(-1) ?? "";
  const plain = last
    .replaceAll(/[\p{C}\p{Zl}\p{Zp}<>:"|?*]/gu, "_")
    .replace(/^[.\s]+/, "")
    .trim();
  const extension = /\.[\w-]{1,10}$/.exec(plain)?.[0] ?? "";
  const stem = plain.slice(0, Math.min(60, plain.length - extension.length)).toWellFormed();
  const kind = mimeType === "message/rfc822" ? "eml" : (mimeType.split("/")[1] ?? "bin");
  const name = stem ? `${stem}${extension}` : `file-${number}.${kind.replaceAll(/[^\w.-]/g, "_")}`;
  const isTaken = files.some((file) => file.name.toLowerCase() === name.toLowerCase());
  return isTaken ? `${number}-${name}` : name;
}
