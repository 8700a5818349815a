/** The email channel against Dovecot and Exim, over TLS, STARTTLS and plain text on loopback. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Socket } from "bun";
import { type Host, type Incoming, type Outgoing, SendError } from "../src/channels/channel.ts";
import { type EmailOptions, openEmail, testEmail } from "../src/channels/email.ts";
import { readUrl, withImap } from "../src/channels/mail-servers.ts";
import { config } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
import { until } from "./claw.ts";
import { address, authservId, letter, missing, password, startMail } from "./mail-server.ts";
import type { LetterParts, MailServer } from "./mail-server.ts";

const folder = mkdtempSync(join(tmpdir(), "claw-email-"));
let mail: MailServer;
let count = 0;

/** What a daemon keeps, and a channel that gives it what comes in. */
function openDaemon(options: Partial<EmailOptions> = {}, note: unknown = null) {
  const received: Incoming[] = [];
  const logged: Record<string, unknown>[] = [];
  const threads = new Map<string, string>();
  const kept = { note, fails: 0, onReceive: async () => {} };
  const host: Host = {
    async receive(inbound) {
      await kept.onReceive();
      kept.fails -= 1;
      if (kept.fails >= 0) throw new Error("the disk is full");
      if (inbound.type !== "message") return;
      if (!threads.has(inbound.externalId)) received.push(inbound);
      threads.set(inbound.externalId, inbound.thread);
    },
    admits: ({ from }) => from.address !== "stranger@y.org",
    findThread: (ids) => ids.map((id) => threads.get(id)).find(Boolean) ?? null,
    readNote: async () => kept.note,
    writeNote: async (value) => void (kept.note = value),
    newFolder: async () => mkdtempSync(join(folder, "files-")),
    log: (event, facts) => logged.push({ event, ...facts }),
  };
  const channel = openEmail({ ...account("tls"), ...options });
  const parts = { channel, received, logged, threads, kept };
  return {
    ...parts,
    ids: () => received.map(({ externalId }) => externalId),
    get: (id: string) => received.find(({ externalId }) => externalId === id),
    start: () => channel.start(host),
    send: (part: Partial<Outgoing> = {}) => channel.send(outgoing(part), noSignal()),
    [Symbol.asyncDispose]: () => channel.stop(),
  };
}

async function startDaemon(options?: Partial<EmailOptions>, note?: unknown) {
  const daemon = openDaemon(options, note);
  await daemon.start();
  await daemon.channel.caughtUp();
  return daemon;
}

const account = (kind: "tls" | "startTls" | "plain", host = "localhost") => ({
  address,
  imapUrl: mail.urls[kind].imap.replace("localhost", host),
  smtpUrl: mail.urls[kind].smtp.replace("localhost", host),
  authservId,
  ca: mail.ca,
});

/** Puts a mail into the mailbox as the provider's server would; its Message-ID. */
async function deliver(parts: LetterParts = {}, box?: ".Sent"): Promise<string> {
  count += 1;
  await mail.deliver(letter(count, parts), new Date(), box);
  return `m${count}@x.org`;
}

const message = { text: "Some **words**.", reply: null, files: [], automatic: false, createdAt: 1 };
const outgoing = (part: Partial<Outgoing> = {}): Outgoing => {
  const clientId = `claw-${crypto.randomUUID()}`;
  return { clientId, address: "owner@x.org", ...message, ...part };
};
const failureOf = (job: Promise<unknown>) => job.catch((error: unknown) => error);
const noSignal = () => new AbortController().signal;
const { syncMs, maxPerHour } = config.serve.email;
const untilAborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve());
  });
/** Waits for nothing but the next sync. */
const hurried = (ms: number, signal: AbortSignal) =>
  ms === syncMs ? untilAborted(signal) : Bun.sleep(20);
const withId = async (box: string, id: string) =>
  (await mail.mailbox(box)).filter(({ raw }) => raw.includes(`<${id}>`));
const isSeen = async (id: string) => (await withId("INBOX", id))[0]?.flags.includes("\\Seen");
const arrived = (id: string) => mail.received().find((raw) => raw.includes(`<${id}>`)) ?? "";

/** What stands in Sent for a message: "draft" is a copy that may never have gone out. */
const copiesOf = async ({ clientId }: Outgoing) =>
  (await withId("Sent", `${clientId}@claw.test`))
    .filter(({ flags }) => !flags.includes("\\Deleted"))
    .map(({ flags }) => (flags.includes("\\Draft") ? "draft" : "sent"));

/** Marks a mail in Sent as some people's programs do, until they expunge it. */
const flagDeleted = (id: string) =>
  withImap(readUrl("EMAIL_IMAP_URL", mail.urls.tls.imap, mail.ca), async (imap) => {
    await imap.mailboxOpen("Sent");
    await imap.messageFlagsAdd({ header: { "Message-ID": `<${id}>` } }, ["\\Deleted"]);
  });

async function largeFile() {
  const [path, bytes] = [join(folder, "large.bin"), 12_000_000];
  await Bun.write(path, new Uint8Array(bytes));
  return { path, name: "large.bin", mediaType: "application/x-none", bytes };
}

/** A mail server that answers as it is told, to DATA, in the body, and to a mail; null: it is gone. */
function startSmtp(told: {
  [At in "DATA" | "body" | "end"]?: (raw: string) => Promise<string | null>;
}) {
  let raw: string | null = null;
  const say = (socket: Socket, word: string | null) =>
    word === null ? socket.terminate() : socket.write(`${word}\r\n`);
  async function take(socket: Socket, bytes: Buffer): Promise<unknown> {
    if (raw !== null) {
      raw += bytes.toString("latin1");
      if (raw.length === bytes.length && told.body) {
        socket.pause(); // The rest cannot come.
        return say(socket, await told.body(raw));
      }
      if (!raw.endsWith("\r\n.\r\n")) return null;
      const whole = raw.slice(0, -3);
      raw = null;
      return say(socket, (await told.end?.(whole)) ?? null);
    }
    const isData = bytes.toString().startsWith("DATA");
    if (!isData) return say(socket, "250 x");
    raw = "";
    return say(socket, told.DATA ? await told.DATA("") : "354 x");
  }
  const data = (socket: Socket, bytes: Buffer) => void take(socket, bytes);
  const open = (socket: Socket) => void say(socket, "220 x");
  const server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { open, data } });
  const url = `smtp://127.0.0.1:${server.port}`;
  return { url, [Symbol.dispose]: () => server.stop(true) };
}

describe.skipIf(missing !== null)("email", () => {
  beforeAll(async () => void (mail = await startMail()));
  afterAll(() => mail[Symbol.asyncDispose]());
  afterAll(() => rmSync(folder, { recursive: true }));

  test.each(["tls", "startTls", "plain"] as const)("in and out over %s", async (kind) => {
    const options = account(kind);
    expect(await testEmail(options)).toMatch(/^claw@claw\.test is read at .* and sends by .*\.$/);
    await using daemon = await startDaemon(options);
    const id = await deliver();
    await daemon.channel.caughtUp();
    expect(daemon.ids()).toContain(id);
    const sent = await daemon.send();
    await until(() => arrived(sent) !== "");
  });

  test("a refused password is a sentence that names the variable, not the password", async () => {
    const wrong = (url: string) => url.replace(encodeURIComponent(password), "wr0ng-word");
    const [imapUrl, smtpUrl] = [wrong(mail.urls.tls.imap), wrong(mail.urls.tls.smtp)];
    const jobs = [
      ["EMAIL_IMAP_URL", () => openDaemon({ imapUrl }).start()],
      ["EMAIL_IMAP_URL", () => testEmail({ ...account("tls"), imapUrl })],
      ["EMAIL_SMTP_URL", () => testEmail({ ...account("tls"), smtpUrl })],
    ] as const;
    for (const [name, job] of jobs) {
      const error = await failureOf(job());
      expect(error).toBeInstanceOf(UsageError);
      expect(String(error)).toContain(name);
      expect(String(error)).not.toContain("wr0ng");
    }
    const refused = { kind: "retry", afterMs: 600_000 };
    expect(await failureOf(openDaemon({ smtpUrl }).send())).toMatchObject(refused);
  });

  test("a certificate that nobody vouches for is refused, and one for another name", async () => {
    const sentence = async (options: EmailOptions) => String(await failureOf(testEmail(options)));
    expect(await sentence({ ...account("tls"), ca: undefined })).toContain("certificate");
    expect(await testEmail(account("tls", "127.0.0.1"))).toContain("127.0.0.1");
    expect(await sentence(account("tls", "127.0.0.3"))).toContain("certificate");
    // On loopback what cannot be had by STARTTLS goes in plain text.
    expect(await testEmail(account("startTls", "127.0.0.3"))).toContain("127.0.0.3");
  });

  test.each(["imaps://u:p%@x.org", "https://x.org", "imaps://"])("%s is no URL", (imapUrl) => {
    expect(() => openEmail({ ...account("tls"), imapUrl })).toThrow("imaps://user:password@host");
  });

  test("mails come in order, whole, and are seen once the daemon holds them", async () => {
    const file = "Content-Disposition: attachment; filename*=utf-8''..%2F..%2Fb%C3%B6se.txt";
    const parts = ["--b", "", "the words", "--b", "Content-Transfer-Encoding: base64", file];
    const body = [...parts, "", btoa("content"), "--b--"].join("\n");
    const headers = "Content-Type: multipart/mixed; boundary=b\nReply-To: evil@x.org\nCc: c@x.org";
    const ids = [await deliver(), await deliver({ headers, body }), await deliver()];
    await using daemon = await startDaemon();
    expect(daemon.ids()).toEqual(ids);
    const second = daemon.get(ids[1] ?? "");
    expect(second).toMatchObject({
      from: { address: "owner@x.org", name: "The Owner" },
      thread: `owner@x.org ${ids[1]}`,
      subject: `Mail ${count - 1}`,
      text: "the words",
      reply: { to: "owner@x.org", cc: [], inReplyTo: ids[1] },
      files: [{ name: "böse.txt", bytes: 7 }],
    });
    expect(readFileSync(second?.files[0]?.path ?? "", "utf8")).toBe("content");
    expect(await Promise.all(ids.map(isSeen))).toEqual([true, true, true]);
    const foreign = await deliver({ headers, body, from: "stranger@y.org" });
    await until(() => daemon.ids().includes(foreign), 3_000); // IDLE: long before the next sync.
    expect(daemon.get(foreign)).toMatchObject({ files: [], problems: [] });
  });

  test("who is not proven, a list, a program: passed over without a trace in the mailbox", async () => {
    const strange = {
      "its sender is not authenticated": { proof: "dmarc=fail header.from=x.org" },
      "it comes from a mailing list": { headers: "List-Id: <l.x.org>" },
      "it is our own": { from: address },
    };
    const ids = await Promise.all(Object.values(strange).map((parts) => deliver(parts)));
    const last = await deliver();
    await using deaf = await startDaemon({ authservId: null });
    const error = expect.stringContaining("EMAIL_AUTHSERV_ID");
    expect([deaf.ids(), deaf.channel.state().error]).toEqual([[], error]);
    await using daemon = await startDaemon();
    expect(daemon.ids()).toEqual([last]);
    const reasons = daemon.logged.map(({ reason }) => reason);
    expect(reasons).toEqual(expect.arrayContaining(Object.keys(strange)));
    expect(await Promise.all(ids.map(isSeen))).toEqual([false, false, false]);
  });

  test("what cannot be stored is tried again, and nothing overtakes it", async () => {
    const waits: number[] = [];
    const seen: unknown[] = [];
    const [first, second] = [await deliver(), await deliver()];
    const sleep = async (ms: number, signal: AbortSignal) => {
      if (ms === syncMs) return untilAborted(signal);
      waits.push(ms);
      seen.push(daemon.channel.state().error?.includes("disk is full"), await isSeen(first));
    };
    await using daemon = openDaemon({ clock: { now: Date.now, sleep } });
    daemon.kept.fails = 2;
    await daemon.start();
    await daemon.channel.caughtUp();
    expect(daemon.ids()).toEqual([first, second]);
    expect([...seen, daemon.channel.state().error]).toEqual([true, false, true, false, null]);
    expect(waits.map((ms, index) => Math.round(ms / 2_000 / 2 ** index))).toEqual([1, 1]);
  });

  test("over a restart nothing is skipped and nothing comes twice", async () => {
    const before = await startDaemon();
    const first = await deliver();
    await before.channel.caughtUp();
    await before.channel.stop();
    const ids = [await deliver(), await deliver()];
    await using after = await startDaemon({}, before.kept.note);
    expect([before.ids(), after.ids()]).toEqual([[first], ids]);
  });

  test("numbered anew, the mailbox is looked through again: the same ids", async () => {
    count += 1;
    await mail.deliver(letter(count).replace(/Message-ID.*\n/, ""));
    const before = await startDaemon();
    await deliver();
    await before.channel.caughtUp();
    await before.channel.stop();
    mail.resetUidValidity();
    await using again = await startDaemon({}, before.kept.note);
    expect(before.ids()).toEqual([expect.stringMatching(/^hash-/), `m${count}@x.org`]);
    expect(again.ids().slice(-2)).toEqual(before.ids());
    expect(again.logged.map(({ event }) => event)).toContain("mailbox renumbered");
  });

  test("at the very first start only young mail counts that nobody has read", async () => {
    const id = await deliver();
    await mail.deliver(letter(0), new Date(Date.now() - 8 * 86_400_000));
    await using daemon = await startDaemon();
    expect(daemon.ids()).toEqual([id]); // All those before it were seen.
  });

  test("a server that is away: the state says so, and later nothing is missing", async () => {
    await using daemon = openDaemon({ clock: { now: Date.now, sleep: hurried } });
    const ids = [await deliver(), await deliver()];
    daemon.kept.onReceive = () => mail.stopImap(); // In the middle of a sync.
    await daemon.start();
    await until(() => !!daemon.channel.state().error?.includes("Mail does not come in"));
    expect(daemon.channel.state().since).toBeNull();
    daemon.kept.onReceive = async () => {};
    ids.push(await deliver());
    await mail.startImap();
    await daemon.channel.caughtUp();
    expect([daemon.ids(), daemon.channel.state().error]).toEqual([ids, null]);
    expect(await Promise.all(ids.map(isSeen))).toEqual([true, true, true]);
  });

  test("a mail that is too large is known by its subject", async () => {
    const id = await deliver({ body: "x".repeat(1_000).concat("\n").repeat(31_000) });
    await using daemon = await startDaemon();
    const problems = [expect.stringContaining("30000000 is the most")];
    expect(daemon.get(id)).toMatchObject({ subject: `Mail ${count}`, problems });
  });

  test("one sender's flood is cut off, and told once", async () => {
    config.serve.email.maxPerHour = 2;
    for (const from of Array<string>(4).fill("loop@x.org")) await deliver({ from });
    await deliver();
    await using daemon = await startDaemon();
    config.serve.email.maxPerHour = maxPerHour;
    expect(daemon.received.map((one) => one.address[0])).toEqual(["l", "l", "o"]);
    expect(daemon.logged.filter(({ event }) => event === "too many mails")).toHaveLength(1);
  });

  test("a thread belongs to its sender: an answer finds it, a stranger does not", async () => {
    await using daemon = openDaemon();
    const { thread, ...target } = await daemon.channel.locate("Owner@X.org");
    const sent = await daemon.send(target);
    daemon.threads.set(sent, thread);
    const headers = `In-Reply-To: <${sent}>\nReferences: <root@y.org> <${sent}>`;
    const owner = await deliver({ headers });
    const mallory = await deliver({ headers, from: "mallory@y.org" });
    await daemon.start();
    await daemon.channel.caughtUp();
    expect(daemon.get(owner)).toMatchObject({ thread, text: `words of ${count - 1}` });
    expect(daemon.get(mallory)?.thread).toBe("mallory@y.org root@y.org");
    expect(String(await failureOf(daemon.channel.locate("nobody")))).toContain("no mail address");
  });

  test("an answer goes to From with the thread's headers, once; its copy is in Sent", async () => {
    const id = await deliver({ headers: "References: <a@x> <b@x>\nReply-To: evil@y.org" });
    await using daemon = await startDaemon();
    const path = join(folder, "a.txt");
    await Bun.write(path, "a file");
    const files = [{ path, name: "a.txt", mediaType: "text/plain", bytes: 6 }];
    const answer = outgoing({ reply: daemon.get(id)?.reply ?? null, files });
    expect(await daemon.channel.find(answer, noSignal())).toBeNull();
    const sent = await daemon.send(answer);
    expect(sent).toBe(`${answer.clientId}@claw.test`);
    expect(await daemon.channel.find(answer, noSignal())).toBe(sent);
    await until(() => arrived(sent) !== "");
    const got = arrived(sent);
    const lines = ["Envelope-to: owner@x.org", `Subject: Re: Mail ${count}`, btoa("a file")];
    const words = ["Auto-Submitted: auto-replied", "<strong>words</strong>", "Some **words**."];
    for (const part of [...lines, ...words, `In-Reply-To: <${id}>`]) expect(got).toContain(part);
    expect(got.replaceAll(/\s+/g, " ")).toContain(`References: <a@x> <b@x> <${id}>`);
    await daemon.send(answer);
    const copies = await withId("Sent", sent);
    expect(copies.map(({ flags }) => flags.includes("\\Seen"))).toEqual([true]);
    expect(Object.values(daemon.channel.state()).filter(Boolean)).toHaveLength(3); // no error
  });

  test("what became of a mail that did not go out", async () => {
    await using daemon = openDaemon();
    const to = (name: string) => failureOf(daemon.send({ address: name }));
    const message = expect.stringContaining("No such person");
    expect(await to("nobody@y.org")).toMatchObject({ kind: "permanent", message });
    expect(await to("refused@y.org")).toMatchObject({ kind: "permanent" });
    expect(await to("not an address")).toMatchObject({ kind: "permanent" });
    expect(await to("later@y.org")).toMatchObject({ kind: "retry" });
    const files = [{ path: join(folder, "none"), name: "n", mediaType: "text/plain", bytes: 1 }];
    expect(await failureOf(daemon.send({ files }))).toMatchObject({ kind: "permanent" });
    const nowhere = openDaemon({ smtpUrl: "smtps://u:p@127.0.0.1:1" }).send();
    expect(await failureOf(nowhere)).toMatchObject({ kind: "retry" });
  });

  test("a connection lost before the end of a mail: surely not taken, and not marked", async () => {
    for (const at of ["DATA", "body"] as const) {
      const answer = outgoing({ files: [await largeFile()] }); // more than the sockets hold
      const seen: unknown[] = [];
      const look = async () => {
        seen.push(await copiesOf(answer));
        return null;
      };
      using smtp = startSmtp({ [at]: look });
      await using daemon = openDaemon({ smtpUrl: smtp.url });
      expect(await failureOf(daemon.send(answer))).toMatchObject({ kind: "retry" });
      expect([...seen, await copiesOf(answer)]).toEqual([[], []]);
    }
  });

  test("the end of a mail waits for its copy in Sent, marked as a draft", async () => {
    const answer = outgoing();
    const copies: unknown[] = [];
    const look = async () => void copies.push(await copiesOf(answer));
    using smtp = startSmtp({
      DATA: async () => look().then(() => "354 x"),
      end: async () => look().then(() => "250 x"),
    });
    await using daemon = openDaemon({ smtpUrl: smtp.url });
    await daemon.send(answer);
    expect([...copies, await copiesOf(answer)]).toEqual([[], ["draft"], ["sent"]]);
  });

  test.each(["tls", "plain"] as const)(
    "refused when whole: the mark goes, over %s",
    async (kind) => {
      const answer = outgoing();
      const kept = await deliver({}, ".Sent");
      await flagDeleted(kept);
      const states: unknown[] = [];
      const end = async () => {
        states.push(await copiesOf(answer));
        return "451 Come again";
      };
      using smtp = startSmtp({ end });
      await using daemon = openDaemon({ ...account(kind), smtpUrl: smtp.url });
      expect(await failureOf(daemon.send(answer))).toMatchObject({ kind: "retry" });
      expect([...states, await copiesOf(answer)]).toEqual([["draft"], []]);
      expect(await daemon.channel.find(answer, noSignal())).toBeNull();
      expect(await withId("Sent", kept)).toHaveLength(1); // not ours to expunge
    },
  );

  test("no answer to a whole mail: this process sends it again, another one never does", async () => {
    using smtp = startSmtp({ end: async () => null });
    await using daemon = openDaemon({ smtpUrl: smtp.url });
    const answer = outgoing({ text: "Lost words", address: "ada@x.org" });
    expect(await failureOf(daemon.send(answer))).toMatchObject({ kind: "ambiguous" });
    expect(await copiesOf(answer)).toEqual(["draft"]);
    await using later = openDaemon();
    const error = await failureOf(later.channel.find(answer, noSignal()));
    expect(error).toMatchObject({ name: "SendError", kind: "permanent" });
    for (const part of ['"Lost words" to ada@x.org', "may or may not", "in Sent", "draft"])
      expect(String(error)).toContain(part);
    await mail.stopImap();
    expect(await failureOf(daemon.channel.find(answer, noSignal()))).toMatchObject({
      kind: "retry",
    });
    await mail.startImap();
    expect(await daemon.channel.find(answer, noSignal())).toBeNull();
    expect(await copiesOf(answer)).toEqual([]);
    await later.send(answer);
    expect([await copiesOf(answer), await later.channel.find(answer, noSignal())]).toEqual([
      ["sent"],
      `${answer.clientId}@claw.test`,
    ]);
  });

  test.each(["250 x", null])("a provider that keeps a copy itself, answer %p", async (word) => {
    const answer = outgoing();
    const end = async (raw: string) => mail.deliver(raw, new Date(), ".Sent").then(() => word);
    using smtp = startSmtp({ end });
    await using daemon = openDaemon({ smtpUrl: smtp.url });
    const sent = await failureOf(daemon.send(answer));
    const found = await daemon.channel.find(answer, noSignal());
    expect(await copiesOf(answer)).toEqual(["sent"]);
    expect([sent, found]).toEqual([word ? found : expect.any(SendError), expect.any(String)]);
  });

  test("without a mailbox for its copy a mail goes out all the same, and the log says so", async () => {
    await using daemon = await startDaemon();
    await mail.stopImap();
    const sent = await daemon.send();
    await mail.startImap();
    await until(() => arrived(sent) !== "");
    const events = daemon.logged.filter(({ id }) => id === sent).map(({ event }) => event);
    expect(events).toEqual(["not marked", "not copied"]);
  });

  test("config may want drafts, or nothing written", async () => {
    await using daemon = openDaemon();
    const draft = outgoing({ automatic: true });
    config.serve.email.write = "draft";
    const id = await daemon.send(draft);
    await daemon.send(draft);
    expect(await daemon.channel.find(draft, noSignal())).toBe(id);
    config.serve.email.write = "read";
    const error = await failureOf(daemon.send(draft));
    config.serve.email.write = "answer";
    const drafts = await withId("Drafts", id);
    const isDraft = drafts.map(({ flags }) => flags.includes("\\Draft"));
    expect([error, isDraft]).toEqual([expect.objectContaining({ kind: "permanent" }), [true]]);
    expect([arrived(id), drafts[0]?.raw]).toEqual(["", expect.stringMatching("generated")]);
  });
});
