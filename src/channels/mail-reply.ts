/**
 * Whether a mail may be answered at all, and the mail that goes out: RFC 3834, both ways.
 *
 * Pure. The Message-ID comes from the message's own id, so that a repeated send is found again.
 * Nothing a model or a correspondent wrote becomes a header line, a recipient, HTML of its own, or
 * a picture that the reader's program fetches.
 */
import type { MailComposerOptions } from "nodemailer/lib/mail-composer";
import type { Header } from "postal-mime";
import { z } from "zod";
import { type Outgoing, SendError } from "./channel.ts";
import { isAuthenticated, isOwn, type Mail, plainAddress } from "./mail.ts";

// ── What is never answered (RFC 3834) ───────────────────────────────────────────────────────────

const robots =
  /^(mailer-daemon|postmaster|(no|do[-_]?not|never)[-_.]?reply.*|bounces?|owner-.*|.*-(request|owner|bounces?))(\+.*)?@/;

/** A header that a person's mail does not have, and what it says of the mail. */
const signs: [key: RegExp, value: RegExp, reason: string][] = [
  [/^list-/, /^/, "it comes from a mailing list"],
  [/^precedence$/, /^(bulk|junk|list)$/, "it is bulk mail"],
  [/^auto-submitted$/, /^(?!no\s*(;|\(|$))/, "a program wrote it"],
  [/^x-auto(reply|respond)/, /^(?!no$)/, "it is an automatic reply"],
  [/^x-auto-response-suppress$/, /\b(all|autoreply)\b/, "it asks for no automatic reply"],
  [/^return-path$/, /^<\s*>/, "it has no return path"],
  [/^content-type$/, /^multipart\/report/, "it is a report"],
];

/** Why nobody may be told of this mail, or null. Needs its headers alone. */
export function reasonToIgnore(mail: Mail, own: string, authservId: string | null): string | null {
  const { from, headers } = mail;
  if (!from) return "it has no single, plain From address";
  const domain = from.address.slice(from.address.indexOf("@") + 1);
  if (isOwn(from.address, own)) return "it is our own";
  if (authservId === null) return "without EMAIL_AUTHSERV_ID no sender can be authenticated";
  if (!isAuthenticated(headers, domain, authservId)) return "its sender is not authenticated";
  if (robots.test(from.address)) return "its sender is a program";
  const sign = signs.find(([key, value]) => headers.some(has(key, value)));
  if (sign) return sign[2];
  const isToUs = [...mail.to, ...mail.cc].some((address) => isOwn(address, own));
  return isToUs ? null : "it is not addressed to us";
}

const has = (key: RegExp, value: RegExp) => (header: Header) =>
  key.test(header.key) && value.test(header.value.trim().toLowerCase());

// ── The answer ──────────────────────────────────────────────────────────────────────────────────

/** `Incoming.reply` of a mail: where an answer goes and what it refers to. */
const replyShape = z.object({
  to: z.string(),
  cc: z.array(z.string()).default([]),
  subject: z.string(),
  inReplyTo: z.string(),
  /** The ids of the thread, oldest first, without that of the mail itself. */
  references: z.array(z.string()),
});

/** An answer goes to who wrote in From, whatever Reply-To says; to the others only with `toAll`. */
export function replyOf(mail: Mail, to: string, own: string, toAll: boolean) {
  const others = toAll ? new Set([...mail.to, ...mail.cc]) : [];
  const thread = new Set([mail.root, ...mail.ancestors.toReversed()]);
  return {
    to,
    cc: [...others].filter((address) => address !== to && !isOwn(address, own)),
    subject: mail.subject,
    inReplyTo: mail.id.startsWith("hash-") ? "" : mail.id,
    references: bounded([...thread].filter((id) => id !== mail.id)),
  } satisfies z.infer<typeof replyShape>;
}

/** The root and the last ones of a long thread. */
const bounded = (ids: string[]) => [...ids.slice(0, 1), ...ids.slice(1).slice(-19)];

/** The id of a message's mail, without brackets: the same at every attempt. */
export function messageIdOf({ clientId }: Outgoing, own: string): string {
  return `${clientId}@${own.slice(own.indexOf("@") + 1)}`;
}

/** The mail for a message; `contents` are its files'. Throws SendError for an address that is none. */
export function letterOf(outgoing: Outgoing, own: string, contents: Uint8Array[]) {
  const { data: reply } = replyShape.nullable().safeParse(outgoing.reply);
  if (reply === undefined) throw new SendError("permanent", "What this answers cannot be read.");
  const [to = "", ...cc] = [reply?.to ?? outgoing.address, ...(reply?.cc ?? [])].map(mustBeAddress);
  const brackets = (id: string) => (/^[^\s<>\p{Cc}]+$/u.test(id) ? [`<${id}>`] : []);
  const references = reply ? bounded([...reply.references, reply.inReplyTo]) : [];
  const mail: MailComposerOptions = {
    from: own,
    to,
    ...(cc.length > 0 && { cc }),
    subject: reply ? answerSubject(reply.subject) : firstLine(outgoing.text),
    messageId: `<${messageIdOf(outgoing, own)}>`,
    ...(reply && { inReplyTo: brackets(reply.inReplyTo)[0] }),
    references: references.flatMap(brackets),
    headers: { "Auto-Submitted": outgoing.automatic ? "auto-generated" : "auto-replied" },
    text: outgoing.text,
    html: toHtml(outgoing.text),
    attachments: outgoing.files.map(({ name, mediaType }, index) => ({
      filename: oneLine(name),
      contentType: /^[\w.+-]+\/[\w.+-]+$/.test(mediaType) ? mediaType : "application/octet-stream",
      content: Buffer.from(contents[index] ?? []),
    })),
    disableFileAccess: true,
    disableUrlAccess: true,
  };
  return { recipients: [to, ...cc], mail };
}

export function mustBeAddress(address: string): string {
  const plain = plainAddress(address);
  if (plain !== null) return plain;
  const shown = JSON.stringify(address.slice(0, 80));
  throw new SendError("permanent", `${shown} is no mail address; it takes one such as me@x.org.`);
}

/** "Re: " once, whatever the answers so far put before it, in whichever language. */
function answerSubject(subject: string): string {
  const marks =
    /^\s*((re|aw|antw|antwort|sv|vs|rv|ref|rif|odp|ynt|res|回复|回覆|答复)\s*(\[\d+\]|\(\d+\))?\s*[:：]\s*)+/iu;
  return `Re: ${oneLine(subject).replace(marks, "") || "(no subject)"}`;
}

function firstLine(text: string): string {
  const line = text.split("\n").find((one) => /[\p{L}\p{N}]/u.test(one)) ?? "A message from claw";
  const plain = oneLine(line).replaceAll(/^[#>*\-\s]+|[*`]+/g, "");
  return plain.length <= 78 ? plain : `${plain.slice(0, 77).toWellFormed().trimEnd()}…`;
}

const oneLine = (text: string) => text.replaceAll(/[\p{Cc}\s]+/gu, " ").trim();

const styles: Record<string, string> = {
  table: "border-collapse:collapse",
  th: "border:1px solid #ccc;padding:4px 8px",
  td: "border:1px solid #ccc;padding:4px 8px",
  pre: "background:#f5f5f5;padding:8px;white-space:pre-wrap",
  blockquote: "border-left:3px solid #ccc;margin-left:0;padding-left:8px",
};

/** Markdown as HTML: what is HTML in it is shown as it stands, links are http(s) or mail alone. */
function toHtml(markdown: string): string {
  const rewriter = new HTMLRewriter().on("*", {
    element(element) {
      const link = element.getAttribute("href") ?? element.getAttribute("src") ?? "";
      const safe = /^(https?|mailto):/i.test(link) ? link : null;
      const style = styles[element.tagName];
      const label = element.getAttribute("alt") || (safe ?? "");
      if (style) element.setAttribute("style", style);
      if (element.tagName === "a" && safe === null) element.removeAndKeepContent();
      if (element.tagName === "input")
        element.replace(element.hasAttribute("checked") ? "☑ " : "☐ ");
      if (element.tagName !== "img") return;
      element.replace(safe ? `<a href="${safe}">${label}</a>` : label, { html: true });
    },
  });
  const options = { noHtmlBlocks: true, noHtmlSpans: true, autolinks: true };
  const body = rewriter.transform(Bun.markdown.html(markdown, options));
  return `<!doctype html><html><body style="font-family:sans-serif">${body}</body></html>`;
}
