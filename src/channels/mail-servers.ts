/**
 * The two servers of a mailbox: their URLs, connections to them, and what is asked of them.
 *
 * Plain text goes to this machine alone; to any other host it is TLS, or STARTTLS that must
 * succeed. A refused password is a UsageError, all else an Error that may pass. No message of
 * either holds a password. Every `SendError` of `submit` says what surely became of the mail.
 */
import { isIP } from "node:net";
import { Readable } from "node:stream";
import { ImapFlow, type ImapFlowError } from "imapflow";
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
  const options = { host, port, secure, tls, ...starttls, ...timeouts, socketTimeout: 50_000 };
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

async function holds(imap: ImapFlow, path: string, id: string): Promise<boolean> {
  await imap.mailboxOpen(path); // Read-only, it would take no flags for a copy.
  const found = await imap.search({ header: { "Message-ID": `<${id}>` } }, { uid: true });
  if (!found) throw new Error(`${path} cannot be searched.`);
  return found.length > 0;
}

/** Puts a copy into a folder, unless one is there: many providers keep what they send. */
export async function keepCopy(imap: ImapFlow, path: string, letter: Letter, flags: string[]) {
  if (await holds(imap, path, letter.id)) return;
  if (!(await imap.append(path, letter.raw, flags))) throw new Error(`${path} takes no mail.`);
}

/** Whether a mail is among what was sent or drafted, or in the folder that has all mail. */
export async function findCopy(imap: ImapFlow, id: string): Promise<boolean> {
  const isDraft = config.serve.email.write === "draft";
  const all = (await imap.list()).filter(({ specialUse }) => specialUse === "\\All");
  const main = await folderFor(imap, isDraft ? "\\Drafts" : "\\Sent");
  for (const path of [main, ...all.map((folder) => folder.path)])
    if (await holds(imap, path, id)) return true;
  return false;
}

// ── Out ─────────────────────────────────────────────────────────────────────────────────────────

/**
 * Hands a mail over; who was refused, where others were not. `ready` is awaited just before it.
 * Throws SendError: permanent with the server's words, or ambiguous once the mail itself was under
 * way and no answer came.
 */
export async function submit(
  server: Server,
  { from, to, raw }: Letter,
  ready: Promise<unknown>,
  signal: AbortSignal,
): Promise<string[]> {
  const smtp = await openSmtp(server, signal).catch((error: unknown) => {
    const afterMs = error instanceof UsageError ? refusedAgainMs : null;
    throw new SendError("retry", messageOf(error), afterMs);
  });
  await ready;
  const { promise, resolve, reject } = Promise.withResolvers<string[]>();
  let hasBegun = false;
  const read = function (this: Readable) {
    hasBegun = true; // The stream is read when the server has said that it takes the mail.
    this.push(raw);
    this.push(null);
  };
  const abort = () => reject(tookTooLong());
  signal.addEventListener("abort", abort, { once: true });
  if (signal.aborted) abort();
  smtp.on("error", reject);
  smtp.send({ from, to, size: raw.length }, new Readable({ read }), (error, info) =>
    error ? reject(error) : resolve(info.rejected),
  );
  try {
    const rejected = await promise;
    smtp.quit();
    return rejected;
  } catch (error) {
    smtp.close();
    throw sendErrorOf(server, error, hasBegun);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

function sendErrorOf({ host }: Server, error: unknown, hasBegun: boolean): SendError {
  const { code = "", responseCode, response, permanent } = error as NodemailerError;
  const words = response ?? messageOf(error);
  if (hasBegun && responseCode === undefined)
    return new SendError("ambiguous", `${host} did not say whether it took the mail: ${words}`);
  if (["EENVELOPE", "EMESSAGE"].includes(code) && permanent !== false)
    return new SendError("permanent", `${host} refused the mail: ${words}`);
  return new SendError("retry", `${host} did not take the mail: ${words}`);
}
