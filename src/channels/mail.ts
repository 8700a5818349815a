/**
 * From the bytes of a mail to what the email channel needs: who wrote it and whether that is proven,
 * the thread it belongs to, and the words in it that are new.
 *
 * Pure. Trusts nothing a sender can write: where a header is not exactly what its RFC allows, the
 * mail is not authenticated. Never guesses an address out of a display name, and never lets a
 * quoted mail, a forwarded one or hidden HTML pass for the sender's own words.
 */
import { domainToASCII } from "node:url";
import PostalMime, { addressParser, type Attachment, type Header } from "postal-mime";
import type { Person } from "./channel.ts";

export type Mail = {
  headers: readonly Header[];
  /** null: not exactly one From with exactly one plain address. */
  from: Person | null;
  to: string[];
  cc: string[];
  subject: string;
  /** The Message-ID without its brackets, or a hash of the whole where there is none. */
  id: string;
  /** What it answers, nearest first: In-Reply-To, then References from the end. */
  ancestors: string[];
  /** The mail that began its thread; its own id where it begins one. */
  root: string;
  sentAt: number | null;
  /** The sender's own words; quoted mails and signatures are in `quoted`. */
  text: string;
  quoted: string;
  attachments: Attachment[];
};

/** Reads a mail or its headers alone. Rejects for one nested or stuffed beyond reason. */
export async function readMail(raw: Uint8Array): Promise<Mail> {
  const email = await PostalMime.parse(raw, {
    forceRfc822Attachments: true, // A forwarded mail is a file; its words are not the sender's.
    maxNestingDepth: 40,
  });
  const { headers } = email;
  const listed = (key: string) =>
    headers
      .filter((header) => header.key === key)
      .flatMap(({ value }) => addressParser(value, { flatten: true }))
      .flatMap(({ address }) => plainAddress(address ?? "") ?? []);
  const id = idsIn(email.messageId)[0] ?? `hash-${Bun.SHA256.hash(raw, "hex")}`;
  const references = idsIn(email.references);
  const ancestors = [...idsIn(email.inReplyTo).slice(0, 1), ...references.toReversed()];
  const sentAt = Date.parse(email.date ?? "");
  const plain = email.text?.trim() ? email.text : htmlToText(email.html ?? "");
  return {
    headers,
    from: senderOf(headers),
    to: listed("to"),
    cc: listed("cc"),
    subject: (email.subject ?? "").replaceAll(/[\p{Cc}\s]+/gu, " ").trim(),
    id,
    ancestors: [...new Set(ancestors)].filter((one) => one !== id).slice(0, 50),
    root: references[0] ?? ancestors[0] ?? id,
    sentAt: Number.isNaN(sentAt) ? null : sentAt,
    ...splitQuotes(plain),
    attachments: email.attachments,
  };
}

function idsIn(value = ""): string[] {
  return [...value.matchAll(/<([^<>\s]{1,250})>/g)].map(([, id = ""]) => id);
}

// ── Who ─────────────────────────────────────────────────────────────────────────────────────────

/**
 * An address in lower case, its domain in ASCII; null where it is none that claw would write to:
 * a quoted local part, an address literal, a route.
 */
export function plainAddress(address: string): string | null {
  const parts = /^([^\s\p{Cc}"(),:;<>@[\\\]]+)@([^\s\p{Cc}"(),:;<>@[\\\]]+)$/u.exec(address.trim());
  const [, local = "", domain = ""] = parts ?? [];
  const ascii = domainToASCII(domain);
  return ascii === "" || address.length > 254 ? null : `${local}@${ascii}`.toLowerCase();
}

function senderOf(headers: readonly Header[]): Person | null {
  const [from, ...others] = headers.filter(({ key }) => key === "from");
  const spans = from && others.length === 0 ? spansOf(from.value) : null;
  if (!from || !spans) return null;
  const bare = spans.map(({ type, text }) => (type === "quoted" ? '"' : text)).join("");
  const inBrackets = /^[^<>@,:;]*<\s*([^\s<>]+)\s*>\s*$/.exec(bare);
  const address = plainAddress(inBrackets?.[1] ?? bare);
  const [parsed] = addressParser(from.value, { flatten: true });
  return address === null ? null : { address, name: parsed?.name.trim() || address };
}

/** Whether `address` is claw's own; what follows a plus sign in it does not matter. */
export function isOwn(address: string, own: string): boolean {
  return address === own || address.replace(/\+[^@]*@/, "@") === own;
}

type Span = { type: "plain" | "quoted"; text: string };

/**
 * A structured header with a blank for each comment, which may nest (RFC 5322, 3.2.2); null where a
 * comment or a quoted string is not closed, or one is closed that was never opened.
 */
function spansOf(value: string): Span[] | null {
  const spans: Span[] = [];
  for (let at = 0; at < value.length;) {
    const isComment = value[at] === "(";
    const isQuoted = value[at] === '"';
    const pattern = isQuoted ? /"((?:[^"\\]|\\[^])*)"/y : /([^()"]+)/y;
    pattern.lastIndex = at;
    const [, text] = (isComment ? null : pattern.exec(value)) ?? [];
    const end = isComment ? commentEnd(value, at) : pattern.lastIndex;
    if (end === 0) return null;
    if (text === undefined) spans.push({ type: "plain", text: " " });
    else if (!isQuoted) spans.push({ type: "plain", text });
    else spans.push({ type: "quoted", text: text.replaceAll(/\\([^])/g, "$1") });
    at = end;
  }
  return spans;
}

/** The place after the comment that begins at `start`, or 0. */
function commentEnd(value: string, start: number): number {
  let depth = 0;
  for (let at = start; at < value.length; at += 1) {
    if (value[at] === "\\") at += 1;
    else if (value[at] === "(") depth += 1;
    else if (value[at] === ")") depth -= 1;
    if (depth === 0) return at + 1;
  }
  return 0;
}

// ── Authentication-Results (RFC 8601) ───────────────────────────────────────────────────────────

/** One method's result, "dkim=pass header.d=x.org": names in lower case. */
type Result = { method: string; result: string; properties: Map<string, string> };

/**
 * Whether our own server says that the mail is from `domain`: the topmost Authentication-Results is
 * its, and holds dmarc=pass, or dkim=pass by that domain or one above it and no dmarc=fail.
 * A signature by a subdomain or a sibling counts only by way of DMARC: without the list of public
 * suffixes "mine.github.io" would speak for "github.io".
 */
export function isAuthenticated(
  headers: readonly Header[],
  domain: string,
  authservId: string,
): boolean {
  const topmost = headers.find(({ key }) => key === "authentication-results");
  const [server, ...statements] = statementsOf(topmost?.value ?? "");
  const [id = "", version = "1", ...rest] = server ?? [];
  const isOurs = id.replace(/^"/, "").toLowerCase() === authservId.toLowerCase();
  if (!isOurs || id === "" || !/^\d+$/.test(version) || rest.length > 0) return false;
  const results = statements.flatMap((words) => resultOf(words) ?? []);
  const dmarc = results.filter(({ method }) => method === "dmarc");
  if (dmarc.some(({ result }) => result === "fail")) return false;
  return (
    dmarc.some((one) => one.result === "pass" && speaksFor(one, "header.from", domain)) ||
    results.some((one) => one.method === "dkim" && one.result === "pass" && isAligned(one, domain))
  );
}

/** A property that is absent says nothing against. */
function speaksFor({ properties }: Result, property: string, domain: string): boolean {
  return domainToASCII(properties.get(property) ?? domain).toLowerCase() === domain;
}

function isAligned({ properties }: Result, domain: string): boolean {
  const identity = properties.get("header.i");
  const signer = properties.get("header.d") ?? identity?.slice(identity.lastIndexOf("@") + 1) ?? "";
  const ascii = domainToASCII(signer).toLowerCase();
  return ascii.includes(".") && `.${domain}`.endsWith(`.${ascii}`);
}

/** The words of each part between semicolons; "=" is a word of its own. */
function statementsOf(value: string): string[][] {
  const statements: string[][] = [[]];
  for (const { type, text } of spansOf(value) ?? []) {
    const words = type === "quoted" ? [`"${text}`] : (text.match(/[;=]|[^\s;=]+/g) ?? []);
    for (const word of words) {
      if (word === ";") statements.push([]);
      else statements.at(-1)?.push(word);
    }
  }
  return statements;
}

/** null where the words are not `name = value` throughout: what was not understood proves nothing. */
function resultOf(words: string[]): Result | null {
  const pairs = new Map<string, string>();
  for (let at = 0; at < words.length; at += 3) {
    const [name = "", equals, value = "="] = words.slice(at, at + 3);
    if (equals !== "=" || value === "=" || /^["=]/.test(name)) return null;
    if (!pairs.has(name.toLowerCase())) pairs.set(name.toLowerCase(), value.replace(/^"/, ""));
  }
  const [first] = pairs;
  if (!first) return null;
  return {
    method: first[0].replace(/\/1$/, ""),
    result: first[1].toLowerCase(),
    properties: pairs,
  };
}

// ── The sender's own words ──────────────────────────────────────────────────────────────────────

/** "On 1 May 2026 at 10:00, Jo <jo@x.org> wrote:", on one line. */
const attribution =
  /^(On\b.*\d.*\bwrote|Am\b.*\d.*\bschrieb\b.*|Le\b.*\d.*\sa écrit|El\b.*\d.*\sescribió|Il\b.*\d.*\sha scritto|Em\b.*\d.*\sescreveu|Op\b.*\d.*\bschreef\b.*)\s*:$/;
const divider =
  /^[-_]{2,}\s?(original message|ursprüngliche nachricht|message d'origine|mensaje original|messaggio originale|mensagem original|oorspronkelijk bericht|forwarded message|weitergeleitete nachricht|message transféré|mensaje reenviado)\s?[-_]{2,}$|^begin forwarded message:$/i;
const headFrom = /^[*_]*(from|von|de|da|van)[*_]*\s?:[*_]*\s*\S/i;
const headDate =
  /^[*_]*(sent|date|gesendet|datum|envoyé|enviado( el)?|fecha|inviato|data|verzonden)[*_]*\s?:/i;
const headTo =
  /^[*_]*(to|an|à|para|a|aan|subject|betreff|objet|asunto|oggetto|onderwerp)[*_]*\s?:/i;
const device =
  /^(sent from (my|mail for|outlook|yahoo|gmail|proton)\b|get outlook for |von meinem .{1,40} gesendet|gesendet (mit|von) |envoyé (de|depuis) |enviado (desde|do) |inviato da |verzonden vanaf )/i;

/**
 * Parts the new words of a mail from quoted mails and signatures. Answers between quoted lines stay.
 * Where nothing would be left, all of it counts as new.
 */
export function splitQuotes(mail: string): { text: string; quoted: string } {
  const whole = mail.replaceAll(/\r\n?/g, "\n").trim();
  const lines = whole.split("\n");
  const [kept, cut]: [string[], string[]] = [[], []];
  for (let at = 0; at < lines.length;) {
    const introduced = quoteStart(lines, at);
    const next = lines.slice(at + introduced).find((line) => line.trim() !== "");
    const endsHere = introduced > 0 && next !== undefined && !next.startsWith(">");
    const count = endsHere ? lines.length - at : Math.max(1, introduced);
    const target = introduced > 0 || lines[at]?.startsWith(">") ? cut : kept;
    target.push(...lines.slice(at, at + count));
    at += count;
  }
  const signature = kept.findIndex((line) => /^-- ?$/.test(line));
  if (signature !== -1) cut.push(...kept.splice(signature));
  while (kept.length > 0 && isFooter(kept.at(-1) ?? "")) cut.unshift(...kept.splice(-1));
  const text = kept.join("\n").trim();
  return text === "" ? { text: whole, quoted: "" } : { text, quoted: cut.join("\n").trim() };
}

/** How many lines from `at` on introduce a quoted mail; 0 for none. */
function quoteStart(lines: string[], at: number): number {
  const line = lines[at]?.trim() ?? "";
  if (divider.test(line)) return 1;
  const head = lines.slice(at + 1, at + 6);
  if (headFrom.test(line) && head.some(isDateLine) && head.some(isToLine)) return 1;
  for (const count of [1, 2, 3]) {
    const joined = lines
      .slice(at, at + count)
      .join(" ")
      .trim();
    if (joined.length < 500 && attribution.test(joined)) return count;
  }
  return 0;
}

const isFooter = (line: string) =>
  /^[-_\s]*$/.test(line) || (line.length < 100 && device.test(line.trim()));
const isDateLine = (line: string) => headDate.test(line.trim());
const isToLine = (line: string) => headTo.test(line.trim());

const unseen = /^(script|style|head|template|noscript|object|svg|title)$/;
const invisible =
  /display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(px|pt|em|%)?\s*(;|$|!)/i;
const spaced = /^(p|h[1-6]|ul|ol|pre|table|blockquote|hr)$/;
const blocks = /^(div|tr|li|section|article|header|footer|address|dt|dd|figure)$/;

const bare = (url: string) => url.trim().replaceAll(/^(https?:\/\/|mailto:)|\/$/gi, "");
const isNews = (label: string, url: string) => bare(label) !== "" && bare(label) !== bare(url);

/** HTML as text: blocks on lines of their own, lists, rows, links as "text (url)", quotes as "> ". */
export function htmlToText(html: string): string {
  const out: string[] = [];
  const lists: number[] = []; // The next number of each open list; 0: it has bullets.
  let [hidden, pre, quotes, cells, breaks] = [0, 0, 0, 0, 0];
  const newLine = () => `\n${"> ".repeat(quotes)}`;
  const write = (text: string) => {
    if (text.trim() === "" && (breaks > 0 || out.length === 0)) return;
    out.push(newLine().repeat(Math.min(breaks, 3)), text);
    breaks = 0;
  };
  const enter = (tag: string, element: HTMLRewriterTypes.Element): (() => void) => {
    const gap = spaced.test(tag) && lists.length === 0 ? 2 : spaced.test(tag) || blocks.test(tag);
    const isList = tag === "ul" || tag === "ol";
    const href = /^(https?|mailto):.*/i.exec(element.getAttribute("href") ?? "")?.[0] ?? "";
    breaks = tag === "br" ? breaks + 1 : Math.max(breaks, Number(gap));
    if (tag === "blockquote") quotes += 1;
    if (tag === "pre") pre += 1;
    if (tag === "tr") cells = 0;
    if (/^t[dh]$/.test(tag) && cells++ > 0) write(" | ");
    if (isList) lists.push(tag === "ol" ? 1 : 0);
    const number = lists.at(-1) ?? 0;
    const bullet = number > 0 ? `${number}. ` : "- ";
    if (tag === "li") write("&nbsp;".repeat(Math.max(0, 2 * lists.length - 2)) + bullet);
    if (tag === "li" && number > 0) lists[lists.length - 1] = number + 1;
    const start = out.length;
    return () => {
      if (isList) lists.pop();
      if (tag === "pre") pre -= 1;
      if (tag === "blockquote") quotes -= 1;
      if (href !== "" && isNews(out.slice(start).join(""), href)) write(` (${href})`);
      breaks = Math.max(breaks, Number(gap));
    };
  };
  const element = (one: HTMLRewriterTypes.Element) => {
    const [tag, style] = [one.tagName, one.getAttribute("style") ?? ""];
    const isHidden = unseen.test(tag) || invisible.test(style) || one.hasAttribute("hidden");
    hidden += Number(isHidden);
    const leave = isHidden ? () => (hidden -= 1) : enter(tag, one);
    if (one.canHaveContent) one.onEndTag(leave);
    else leave();
  };
  const text = ({ text: chunk }: { text: string }) => {
    const plain = chunk.replaceAll(pre > 0 ? /[^\P{Cc}\n]/gu : /[\p{Cc}\s]+/gu, " ");
    if (hidden > 0 || chunk === "") return;
    write(pre > 0 ? plain.replaceAll(" ", "&nbsp;").replaceAll("\n", newLine) : plain);
  };
  new HTMLRewriter().on("*", { element }).onDocument({ text }).transform(html);
  const decode = (entity: string) => Bun.markdown.render(entity, { paragraph: (one) => one });
  return out
    .join("")
    .replaceAll(/&(#\d{1,7}|#x[\da-f]{1,6}|\w{2,31});/gi, decode) // Markdown knows all of HTML's.
    .replaceAll("\u00A0", " ")
    .replaceAll(/ +$/gm, "")
    .trim();
}
