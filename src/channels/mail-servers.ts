/**
 * The two servers of a mailbox: their URLs, connections to them, and what is asked of them.
 *
 * Plain text goes to this machine alone; to any other host it is TLS, or STARTTLS that must
 * succeed. A refused password is a UsageError, all else an Error that may pass. No message of
 * either holds a password. Every `SendError` of `submit` says what surely became of the mail.
 *
 * A mail's copy lies in Sent before its server can have taken it, flagged \\Draft until it has: a
 * copy with the flag is in doubt, one without it went out, and where none is nothing went out.
 */
import { isIP } from "node:net";
import { Readable } from "node:stream";
import { ImapFlow, type ImapFlowError, type SearchObject } from "imapflow";
import type { NodemailerError } from "nodemailer";
import SMTPConnection from "nodemailer/lib/smtp-connection";
import { config } from "../config.ts";
import { messageOf, UsageError } from "../errors.ts";
import { SendError } from "./channel.ts";

export type Server = {
  variable: "EMAIL_IMAP_URL" | "EMAIL_SMTP_URL";
  host: string;
  port: number;
  secure: boolean;
  isLoopback: boolean;
  user: string;
  password: string;
  tls: { servername?: string; ca?: string };
};

/** A mail as it goes over the wire, and its Message-ID without brackets. */
export type Letter = { id: string; from: string; to: string[]; raw: Buffer };

const timeouts = { connectionTimeout: 30_000, greetingTimeout: 16_000 };
const refusedAgainMs = 600_000;
/** A server may take this long to say whether it takes a mail (RFC 5321, 4.5.3.2.6). */
const answerMs = 600_000;
const chunkBytes = 64_000;

/** Throws UsageError for what is no imaps, imap, smtps or smtp URL. */
export function readUrl(variable: Server["variable"], text: string, ca?: string): Server {
  const [scheme, plainPort, tlsPort] =
    variable === "EMAIL_IMAP_URL" ? ["imap", 143, 993] : ["smtp", 587, 465];
  const url = URL.parse(text);
  const secure = url?.protocol === `${scheme}s:`;
  const host = url?.hostname.replaceAll(/^\[|\]$/g, "") ?? "";
  try {
    if (!url || host === "" || !(secure || url.protocol === `${scheme}:`)) throw new TypeError();
    return {
      variable,
      host,
      secure,
      port: Number(url.port) || Number(secure ? tlsPort : plainPort),
      isLoopback: host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host),
      user: decodeURIComponent(url.username),
      password: decodeURIComponent(url.password),
      // With no servername Bun checks the certificate against the address; it takes none for one.
      tls: { ...(isIP(host) !== 0 && { servername: "" }), ...(ca !== undefined && { ca }) },
    };
  } catch {
    throw new UsageError(
      `${variable} is no URL of a mail server: it takes ${scheme}s://user:password@host:${tlsPort}, ` +
        "with %40 for an @ and %25 for a % in the user or the password.",
    );
  }
}

/** Throws UsageError where the server refuses user or password. */
export async function openImap(
  server: Server,
  maxBytes: number,
  signal?: AbortSignal,
  plain = false,
): Promise<ImapFlow> {
  const { host, port, secure, user, password: pass, tls, isLoopback } = server;
  const doSTARTTLS = plain ? false : secure || isLoopback ? undefined : true;
  const connection = { host, port, secure, tls, doSTARTTLS, auth: { user, pass } };
  const limits = { ...timeouts, socketTimeout: 90_000, maxLiteralSize: maxBytes };
  const imap = new ImapFlow({ ...connection, ...limits, disableAutoIdle: true, logger: false });
  imap.on("error", () => {}); // The command that it fails tells of it.
  const close = () => imap.close();
  signal?.addEventListener("abort", close, { once: true });
  try {
    await imap.connect();
    signal?.throwIfAborted();
    return imap;
  } catch (error) {
    imap.close();
    const { tlsFailed, authenticationFailed, serverResponseCode } = error as ImapFlowError;
    if (tlsFailed && isLoopback && !secure && !plain)
      return openImap(server, maxBytes, signal, true);
    throw failureOf(server, error, !!authenticationFailed && serverResponseCode !== "UNAVAILABLE");
  } finally {
    signal?.removeEventListener("abort", close);
  }
}

/** Throws UsageError where the server refuses user or password. Without a user nobody logs in. */
export async function openSmtp(
  server: Server,
  signal?: AbortSignal,
  plain = false,
): Promise<SMTPConnection> {
  const { host, port, secure, user, password: pass, tls, isLoopback } = server;
  const starttls = { requireTLS: !secure && !isLoopback, ignoreTLS: plain };
  const options = { host, port, secure, tls, ...starttls, ...timeouts, socketTimeout: answerMs };
  const smtp = new SMTPConnection(options);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const settle = (error?: unknown) => (error ? reject(error) : resolve());
  const abort = () => reject(tookTooLong());
  signal?.addEventListener("abort", abort, { once: true });
  smtp.on("error", settle);
  smtp.connect((error) => {
    if (error || user === "") return settle(error);
    smtp.login({ user, pass }, settle);
  });
  try {
    await promise;
    return smtp;
  } catch (error) {
    smtp.close();
    const { code, responseCode = 0 } = error as NodemailerError;
    if (code !== "EAUTH" && isLoopback && !secure && !plain) return openSmtp(server, signal, true);
    throw failureOf(server, error, code === "EAUTH" && responseCode >= 500);
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

const tookTooLong = () => new Error("It took too long.");

function failureOf({ host, port, variable }: Server, error: unknown, isRefused: boolean): Error {
  const words = (error as ImapFlowError).responseText ?? messageOf(error);
  if (!isRefused) return new Error(`${host}:${port} (${variable}) cannot be used: ${words}`);
  return new UsageError(
    `${host} refuses the user or the password of ${variable}: put the right ones there ` +
      "(many providers want an app password).",
  );
}

/** Over a connection of its own, which ends with the work, or when the signal says so. */
export async function withImap<T>(
  server: Server,
  work: (imap: ImapFlow) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const imap = await openImap(server, 1_000_000, signal);
  const close = () => imap.close();
  signal?.addEventListener("abort", close, { once: true });
  try {
    return await work(imap);
  } finally {
    signal?.removeEventListener("abort", close);
    await leave(imap);
  }
}

/** Says goodbye, for two seconds at most. */
export async function leave(imap: ImapFlow): Promise<void> {
  await within(2_000, imap.logout()).catch(() => imap.close());
}

/** Rejects when the work takes longer. */
export async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error(`No answer within ${ms / 1000} s.`)), ms);
  return Promise.race([work, late.promise]).finally(() => clearTimeout(timer));
}

// ── Folders ─────────────────────────────────────────────────────────────────────────────────────

/** The folder that the server marks for this use, or the one config names, made where missing. */
export async function folderFor(imap: ImapFlow, use: "\\Sent" | "\\Drafts"): Promise<string> {
  const name = use === "\\Sent" ? config.serve.email.sent : config.serve.email.drafts;
  const folders = await imap.list();
  const folder =
    folders.find(({ specialUse }) => specialUse === use) ??
    folders.find(({ path }) => path === name);
  return folder?.path ?? (await imap.mailboxCreate(name)).path;
}

const byUid = { uid: true };

/** A folder over a connection; `uid` is that of the copy that this process has marked there. */
export type Folder = { imap: ImapFlow; path: string; uid?: number };

export async function openFolder(imap: ImapFlow, use: "\\Sent" | "\\Drafts"): Promise<Folder> {
  const path = await folderFor(imap, use);
  await imap.mailboxOpen(path);
  return { imap, path };
}

/** The UIDs of a mail's copies: of those that are no proof, and of those that are. */
async function copiesIn({ imap, path }: Folder, id: string) {
  await imap.mailboxOpen(path); // Anew, or it would not hold what others have put there since.
  const search = async (query: SearchObject) => {
    const found = await imap.search({ header: { "Message-ID": `<${id}>` }, ...query }, byUid);
    if (!found) throw new Error(`${path} cannot be searched.`);
    return found;
  };
  const marked = await search({ draft: true, deleted: false });
  const sure = await search({ draft: false });
  return { marked: marked.filter((one) => !sure.includes(one)), sure };
}

async function append({ imap, path }: Folder, { raw }: Letter, flags: string[]) {
  const copy = await imap.append(path, raw, flags);
  if (!copy) throw new Error(`${path} takes no mail.`);
  return copy.uid;
}

/** Puts a draft into a folder, unless it is there. */
export async function keepDraft(folder: Folder, letter: Letter): Promise<void> {
  const { marked, sure } = await copiesIn(folder, letter.id);
  if (marked.length + sure.length === 0) await append(folder, letter, ["\\Draft", "\\Seen"]);
}

/** Says in Sent that a mail may be on its way: a copy with the flag \\Draft. */
export async function markCopy(folder: Folder, letter: Letter): Promise<void> {
  const { permanentFlags } = folder.imap.mailbox || {};
  // A copy that lost the flag would prove a mail that never went out.
  if (permanentFlags && !permanentFlags.has("\\Draft"))
    throw new Error(`${folder.path} keeps no flag \\Draft.`);
  folder.uid = await append(folder, letter, ["\\Draft", "\\Seen"]);
}

/** Says in Sent that a mail went out: one copy without a mark; many providers keep one themselves. */
export async function confirmCopy(folder: Folder, letter: Letter): Promise<void> {
  let { uid } = folder;
  // At once: until then no other process could know.
  if (uid !== undefined) await change(folder, "Remove", [uid], "\\Draft");
  const { marked, sure } = await copiesIn(folder, letter.id);
  const others = sure.filter((one) => one !== uid);
  if (uid === undefined && others.length === 0) {
    uid = marked.shift();
    if (uid === undefined) await append(folder, letter, ["\\Seen"]);
    else await change(folder, "Remove", [uid], "\\Draft");
  } else if (uid !== undefined && others.length > 0) marked.push(uid);
  await remove(folder, marked);
}

/** Takes back what `markCopy` said: the mail surely did not go out. */
export async function withdrawCopy(folder: Folder, { id }: Pick<Letter, "id">): Promise<void> {
  await remove(folder, (await copiesIn(folder, id)).marked);
}

async function remove(folder: Folder, uids: number[]): Promise<void> {
  if (uids.length === 0) return;
  // Without UIDPLUS the folder would lose all that anybody has flagged.
  if (!folder.imap.capabilities.has("UIDPLUS")) return change(folder, "Add", uids, "\\Deleted");
  if (!(await folder.imap.messageDelete(uids, byUid))) throw new Error(`${folder.path} keeps it.`);
}

async function change({ imap, path }: Folder, how: "Add" | "Remove", uids: number[], flag: string) {
  if (await imap[`messageFlags${how}`](uids, [flag], byUid)) return;
  throw new Error(`${path} does not let the flag ${flag} be changed.`);
}

/**
 * Whether a mail is among what was sent or drafted, or in the folder that has all mail: "there",
 * "nowhere", or the folder where its only copy is in doubt.
 */
export async function findCopy(imap: ImapFlow, id: string): Promise<"there" | "nowhere" | Folder> {
  const isDraft = config.serve.email.write === "draft";
  const main = await folderFor(imap, isDraft ? "\\Drafts" : "\\Sent");
  const all = (await imap.list()).filter(({ specialUse }) => specialUse === "\\All");
  let doubtful: Folder | null = null;
  for (const path of [main, ...all.map((folder) => folder.path)]) {
    const { marked, sure } = await copiesIn({ imap, path }, id);
    if (sure.length > 0 || (isDraft && marked.length > 0)) return "there";
    if (marked.length > 0) doubtful ??= { imap, path };
  }
  return doubtful ?? "nowhere";
}

// ── Out ─────────────────────────────────────────────────────────────────────────────────────────

/** What is awaited before a mail is announced, and before the end of its body can be on its way. */
export type Steps = { ready: Promise<unknown>; mark: () => Promise<unknown> };

/**
 * Hands a mail over; who was refused, where others were not. Throws SendError: permanent with the
 * server's words, or ambiguous once the whole mail was under way and no answer came. The signal
 * ends it until the server asks for the body.
 */
export async function submit(
  server: Server,
  { from, to, raw }: Letter,
  { ready, mark }: Steps,
  signal: AbortSignal,
): Promise<string[]> {
  const smtp = await openSmtp(server, signal).catch((error: unknown) => {
    const afterMs = error instanceof UsageError ? refusedAgainMs : null;
    throw new SendError("retry", messageOf(error), afterMs);
  });
  await ready;
  const { promise, resolve, reject } = Promise.withResolvers<string[]>();
  const state = { hasBegun: false, isWhole: false };
  async function* body() {
    state.hasBegun = true; // It is read when the server has said that it takes the mail.
    for (let at = 0; at < raw.length; at += chunkBytes) yield raw.subarray(at, at + chunkBytes);
    await mark();
    state.isWhole = true; // What ends the mail is sent when this function returns.
  }
  const abort = () => state.hasBegun || reject(tookTooLong());
  signal.addEventListener("abort", abort, { once: true });
  if (signal.aborted) abort();
  smtp.on("error", reject);
  smtp.send({ from, to, size: raw.length }, Readable.from(body()), (error, info) =>
    error ? reject(error) : resolve(info.rejected),
  );
  try {
    const rejected = await promise;
    smtp.quit();
    return rejected;
  } catch (error) {
    smtp.close();
    throw sendErrorOf(server, error, state.isWhole);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

function sendErrorOf({ host }: Server, error: unknown, isWhole: boolean): SendError {
  const { code = "", responseCode, response, permanent } = error as NodemailerError;
  const words = response ?? messageOf(error);
  if (isWhole && responseCode === undefined)
    return new SendError("ambiguous", `${host} did not say whether it took the mail: ${words}`);
  if (["EENVELOPE", "EMESSAGE"].includes(code) && permanent !== false)
    return new SendError("permanent", `${host} refused the mail: ${words}`);
  return new SendError("retry", `${host} did not take the mail: ${words}`);
}
