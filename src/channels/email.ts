/**
 * The email channel: IMAP in (mail-inbox.ts), SMTP out, with any provider.
 *
 * The end of a mail is held back until Sent has a copy of it, marked as a draft; the mark goes once
 * the server has taken the mail. So `find` knows in a later process too: a copy without the mark
 * went out, where none is nothing did, and one with the mark may have: that is never sent again. A
 * server that did not answer this process has not taken the mail (RFC 5321, 4.2.5): sent again.
 */
import MailComposer from "nodemailer/lib/mail-composer";
import { config } from "../config.ts";
import { messageOf, UsageError } from "../errors.ts";
import { type Channel, type Host, type Outgoing, SendError } from "./channel.ts";
import { type Account, type EmailClock, type Inbox, openInbox } from "./mail-inbox.ts";
import { letterOf, messageIdOf, mustBeAddress } from "./mail-reply.ts";
import { confirmCopy, findCopy, type Folder, keepDraft, leave } from "./mail-servers.ts";
import { type Letter, markCopy, openFolder, openImap, openSmtp, readUrl } from "./mail-servers.ts";
import { type Server, submit, withdrawCopy, withImap, within } from "./mail-servers.ts";
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

/** How long a mail waits for the connection to Sent, and a copy of so many bytes to be there. */
const openMs = 10_000;
const copyMs = (bytes: number) => openMs + bytes / 200;

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
  const sender = openSender(account, (event, facts) => log(event, facts));
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
      const id = await run(sender.send(outgoing, signal));
      lastOut = clock.now();
      return id;
    },
    find: (outgoing, signal) => run(sender.find(outgoing, signal)),
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
    (await openSmtp(sends, AbortSignal.timeout(50_000))).quit();
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

// ── Out ─────────────────────────────────────────────────────────────────────────────────────────

function openSender(account: Account, log: Host["log"]): Pick<Channel, "send" | "find"> {
  const { own, imap } = account;
  /** Mails to which this process got no answer: the marks of their copies mean nothing. */
  const unanswered = new Set<string>();
  return {
    async send(outgoing, signal) {
      const { write } = config.serve.email;
      if (write === "read")
        throw new SendError("permanent", "No mail is sent: config.serve.email.write is read.");
      const { recipients: to, mail } = letterOf(outgoing, own, await contentsOf(outgoing));
      const raw = await new MailComposer(mail).compile().build();
      const letter = { id: messageIdOf(outgoing, own), from: own, to, raw };
      try {
        if (write === "draft") await draft(imap, letter, signal);
        else await sendAndCopy(account, letter, signal, log);
        return letter.id;
      } catch (error) {
        if (isInDoubt(error)) unanswered.add(letter.id);
        throw error;
      }
    },
    async find(outgoing, signal) {
      const id = messageIdOf(outgoing, own);
      const found = await withImap(
        imap,
        async (client) => {
          if (unanswered.has(id)) await withdrawCopy(await openFolder(client, "\\Sent"), { id });
          return findCopy(client, id);
        },
        signal,
      ).catch(toRetry);
      const isUnanswered = unanswered.delete(id);
      if (typeof found !== "string" && !isUnanswered) throw doubtOf(outgoing, own, found);
      return found === "there" ? id : null;
    },
  };
}

async function draft(server: Server, letter: Letter, signal: AbortSignal): Promise<void> {
  const keep = async (imap: Folder["imap"]) =>
    keepDraft(await openFolder(imap, "\\Drafts"), letter);
  await withImap(server, keep, signal).catch(toRetry);
}

const isInDoubt = (error: unknown) => error instanceof SendError && error.kind === "ambiguous";

/** A mail goes out without its copy where that cannot be had, and the log says so. */
async function sendAndCopy(
  { imap, smtp }: Account,
  letter: Letter,
  signal: AbortSignal,
  log: Host["log"],
): Promise<void> {
  const sent = openSent(imap, letter);
  const tell = (event: string) => (error: unknown) =>
    log(event, { id: letter.id, reason: messageOf(error) });
  const copy: { marking?: Promise<void> } = {};
  const mark = () => (copy.marking = sent.mark().catch(tell("not marked")));
  try {
    const rejected = await submit(smtp, letter, { ready: sent.ready, mark }, signal);
    if (rejected.length > 0) log("refused", { id: letter.id, to: rejected.join(", ") });
    await sent.settle(confirmCopy).catch(tell("not copied"));
  } catch (error) {
    await copy.marking;
    if (copy.marking && !isInDoubt(error))
      await sent.settle(withdrawCopy).catch(tell("not withdrawn"));
    throw error;
  } finally {
    await sent.end();
  }
}

/** Sent, over a connection that opens while the mail's own does. */
function openSent(server: Server, letter: Letter) {
  const ending = new AbortController();
  const connection = openImap(server, 1_000_000, ending.signal);
  const folder = connection.then((imap) => openFolder(imap, "\\Sent"));
  const opened = within(openMs, folder);
  const ms = copyMs(letter.raw.length);
  return {
    /** Resolves when it is open, or cannot be had. */
    ready: opened.catch(() => {}),
    mark: async () => within(ms, markCopy(await opened, letter)),
    /** Where that connection fails, over a new one. */
    async settle(work: (folder: Folder, letter: Letter) => Promise<void>): Promise<void> {
      const again = () =>
        withImap(server, async (imap) => work(await openFolder(imap, "\\Sent"), letter));
      await within(
        ms,
        opened.then((first) => work(first, letter)),
      ).catch(() => within(ms, again()));
    },
    async end(): Promise<void> {
      ending.abort();
      await connection.then(leave, () => {});
    },
  };
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

function doubtOf(outgoing: Outgoing, own: string, { path }: Folder): SendError {
  const { recipients, mail } = letterOf(outgoing, own, []);
  const sentence =
    `The mail "${mail.subject}" to ${recipients.join(", ")} may or may not have gone out: claw saw ` +
    `no answer to it. Its copy lies in ${path}, marked as a draft, and it is not sent again.`;
  return new SendError("permanent", sentence);
}

function toRetry(error: unknown): never {
  throw new SendError("retry", messageOf(error), error instanceof UsageError ? 600_000 : null);
}
