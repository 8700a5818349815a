/**
 * The email channel: IMAP in (mail-inbox.ts), SMTP out, with any provider.
 *
 * A sent mail's copy is appended to Sent once the server has taken it, over a connection opened
 * before, and never earlier: `find` takes a copy in Sent as proof that a mail went out. A crash in
 * the milliseconds between the two can bring a mail twice, where the provider keeps no copy by
 * itself; the other order could lose one without a word. Sends nothing twice by itself.
 */
import type { ImapFlow } from "imapflow";
import MailComposer from "nodemailer/lib/mail-composer";
import { config } from "../config.ts";
import { messageOf, UsageError } from "../errors.ts";
import { type Channel, type Host, type Outgoing, SendError } from "./channel.ts";
import { type Account, type EmailClock, type Inbox, openInbox } from "./mail-inbox.ts";
import { letterOf, messageIdOf, mustBeAddress } from "./mail-reply.ts";
import { findCopy, folderFor, keepCopy, type Letter, withImap, within } from "./mail-servers.ts";
import { openSmtp, readUrl, submit } from "./mail-servers.ts";
import { plainAddress } from "./mail.ts";

export type EmailOptions = {
  address: string;
  imapUrl: string;
  smtpUrl: string;
  /** What our own server calls itself in Authentication-Results; null: nobody is authenticated. */
  authservId: string | null;
  /** A certificate (PEM) to trust in place of the system's and those of NODE_EXTRA_CA_CERTS. */
  ca?: string;
  clock?: EmailClock;
};

/** How long a mail waits for the connection to Sent, and how long its copy may take. */
const copyMs = 10_000;

const noAuthserv =
  "EMAIL_AUTHSERV_ID is not set, so no sender can be authenticated and every mail is ignored: " +
  "set it to the first word of the Authentication-Results header of a mail that came in.";

/** Throws UsageError for a URL or an address that cannot be right. */
export function openEmail(options: EmailOptions): Channel {
  const account = readOptions(options);
  const { clock = systemClock } = options;
  const leaving = new AbortController();
  const jobs = new Set<Promise<unknown>>();
  let inbox: Inbox | null = null;
  let log: Host["log"] = () => {};
  let lastOut: number | null = null;
  const run = <T>(job: Promise<T>): Promise<T> => {
    jobs.add(job);
    return job.finally(() => jobs.delete(job));
  };

  return {
    name: "email",
    start(host) {
      log = (event, facts) => host.log(event, facts);
      inbox = openInbox(account, host, clock, leaving.signal);
      return inbox.started;
    },
    async caughtUp() {
      await inbox?.caughtUp();
    },
    async stop() {
      leaving.abort();
      await Promise.all([inbox?.ended, Promise.allSettled(jobs)]);
    },
    state() {
      const { since = null, lastIn = null, error = null } = inbox?.state ?? {};
      return { since, lastIn, lastOut, error: error ?? (account.authservId ? null : noAuthserv) };
    },
    compose: (markdown) => (markdown.trim() === "" ? [] : [markdown]),
    async send(outgoing, signal) {
      const id = await run(send(account, outgoing, signal, log));
      lastOut = clock.now();
      return id;
    },
    find: (outgoing, signal) => run(find(account, outgoing, signal)),
    async locate(target) {
      const address = mustBeAddress(target);
      return { thread: `${address} *`, address };
    },
  };
}

/** Logs in to both servers; a sentence. Throws UsageError that says what to do. */
export async function testEmail(options: EmailOptions): Promise<string> {
  const { own, imap: reads, smtp: sends } = readOptions(options);
  try {
    await withImap(reads, (imap) => imap.mailboxOpen(config.serve.email.mailbox));
    (await openSmtp(sends)).quit();
  } catch (error) {
    throw error instanceof UsageError ? error : new UsageError(messageOf(error));
  }
  return `${own} is read at ${reads.host} and sends by ${sends.host}.`;
}

function readOptions({ address, imapUrl, smtpUrl, authservId, ca }: EmailOptions): Account {
  const own = plainAddress(address);
  if (own === null)
    throw new UsageError(`EMAIL_ADDRESS is "${address}"; it takes an address such as claw@x.org.`);
  const imap = readUrl("EMAIL_IMAP_URL", imapUrl, ca);
  return { own, imap, smtp: readUrl("EMAIL_SMTP_URL", smtpUrl, ca), authservId };
}

const systemClock: EmailClock = {
  now: Date.now,
  sleep: (ms, signal) =>
    new Promise((resolve) => {
      const timer = setTimeout(resolve, signal.aborted ? 0 : ms);
      signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    }),
};

/** Sends, or drafts, one mail; its Message-ID. Throws SendError. */
async function send(
  { own, imap, smtp }: Account,
  outgoing: Outgoing,
  signal: AbortSignal,
  log: Host["log"],
): Promise<string> {
  const { write } = config.serve.email;
  if (write === "read")
    throw new SendError("permanent", "No mail is sent: config.serve.email.write is read.");
  const { recipients: to, mail } = letterOf(outgoing, own, await contentsOf(outgoing));
  const raw = await new MailComposer(mail).compile().build();
  const letter = { id: messageIdOf(outgoing, own), from: own, to, raw };
  if (write === "draft") {
    await withImap(imap, (client) => draft(client, letter), signal).catch(toRetry);
    return letter.id;
  }

  const [ready, outcome] = [Promise.withResolvers<void>(), Promise.withResolvers<boolean>()];
  const keep = async (client: ImapFlow) => {
    const path = await folderFor(client, "\\Sent");
    ready.resolve();
    if (await outcome.promise) await keepCopy(client, path, letter, ["\\Seen"]);
  };
  const copied = withImap(imap, keep);
  copied.catch(() => ready.resolve());
  try {
    const sentIsOpen = within(copyMs, ready.promise).catch(() => {});
    const rejected = await submit(smtp, letter, sentIsOpen, signal);
    if (rejected.length > 0) log("refused", { id: letter.id, to: rejected.join(", ") });
    outcome.resolve(true);
  } finally {
    outcome.resolve(false); // Without effect once it went out.
  }
  await within(copyMs, copied)
    .catch(() => within(copyMs, withImap(imap, keep)))
    .catch((error: unknown) => log("not copied", { id: letter.id, reason: messageOf(error) }));
  return letter.id;
}

async function draft(client: ImapFlow, letter: Letter): Promise<void> {
  const path = await folderFor(client, "\\Drafts");
  await keepCopy(client, path, letter, ["\\Draft", "\\Seen"]);
}

async function contentsOf({ files }: Outgoing): Promise<Uint8Array[]> {
  const read = ({ path, name }: { path: string; name: string }) =>
    Bun.file(path)
      .bytes()
      .catch(() => {
        throw new SendError("permanent", `The file ${name} cannot be read any more.`);
      });
  return Promise.all(files.map(read));
}

/** Asks the folder of what was sent, and that of all mail where there is one. */
async function find(
  { own, imap }: Account,
  outgoing: Outgoing,
  signal: AbortSignal,
): Promise<string | null> {
  const id = messageIdOf(outgoing, own);
  const isThere = await withImap(imap, (client) => findCopy(client, id), signal).catch(toRetry);
  return isThere ? id : null;
}

function toRetry(error: unknown): never {
  throw new SendError("retry", messageOf(error), error instanceof UsageError ? 600_000 : null);
}
