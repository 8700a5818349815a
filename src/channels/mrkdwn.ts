/**
 * Markdown, as models write it, to what Slack shows: the one converter for every post and update.
 *
 * Invariant: what the author wrote is data, and only a mark of ours is control. The parser's
 * callbacks put marks (noncharacters of Unicode, which no text may bring along) where Slack needs a
 * sign; all else is escaped, and the marks are replaced last. So nothing in the source becomes a
 * mention, a link or a command. Pure; never throws.
 */

/** Blocks, cells, quoted lines, lines of code; pieces that are not looked into, and their stead. */
const [block, row, cell] = ["\uFDD0", "\uFDD1", "\uFDD2"] as const;
const [quote, newline, fence, code] = ["\uFDD3", "\uFDD4", "\uFDD5", "\uFDD6"] as const;
const [link, bar, end, hole] = ["\uFDD7", "\uFDD8", "\uFDD9", "\uFDDA"] as const;
/** The marks around each kind of emphasis, and the signs that Slack has for them. */
const [openers, closers, signs] = ["\uFDDB\uFDDC\uFDDD", "\uFDDE\uFDDF\uFDE0", "*_~"];
const marks = /[\uFDD0-\uFDEF]/g;
/** Invisible: a boundary where Slack wants one, and a break where a sign shall not work. */
const gap = "\u200B";
const [maxTableColumns, maxLinkChars] = [100, 2000];

/** Markdown as Slack's mrkdwn, of any length; `splitMrkdwn` cuts it. */
export function toMrkdwn(markdown: string): string {
  const rendered = Bun.markdown.render(markdown.toWellFormed(), callbacks, { autolinks: true });
  const marked = partsOf(rendered).join("\n\n");
  const pieces = (marked.match(opaque) ?? []).map(finish);
  const lines = balance(marked.replaceAll(opaque, hole)).split("\n").map(settle);
  const text = lines.join("\n").replaceAll(hole, () => pieces.shift() ?? "");
  return text.trim();
}

const opaque = new RegExp(`[${fence}${code}${link}][^${end}]*${end}`, "g");

const around = (content: string) => block + content.replace(/\n+$/, "") + block;
const fenced = (content: string) =>
  around(fence + content.replace(/\n$/, "").replaceAll("\n", newline) + end);
const pair = (kind: number) => (content: string) =>
  openers.charAt(kind) + content + closers.charAt(kind);
const strong = pair(0);
const cellOf = (content: string, meta?: Bun.markdown.CellMeta) =>
  cell + (meta?.align ?? "left").charAt(0) + content;
const unmarked = (text: string) => text.replaceAll(marks, "\uFFFD");

const callbacks: Bun.markdown.RenderCallbacks = {
  text: unmarked,
  paragraph: around,
  html: around,
  list: around,
  table: tableOf,
  code: fenced,
  heading: (content) => around(strong(content)),
  strong,
  emphasis: pair(1),
  strikethrough: pair(2),
  hr: () => around("─".repeat(20)),
  codespan: (content) => code + content.replaceAll("\n", " ") + end,
  link: (label, { href }) => linkTo(href, label),
  image: (label, { src }) => linkTo(src, label || "image"),
  listItem: itemOf,
  blockquote: (content) => around(partsOf(content).join("\n\n").replaceAll(unquoted, quote)),
  tr: (content) => row + content,
  th: cellOf,
  td: cellOf,
};

const partsOf = (content: string) => content.split(block).filter((part) => part.trim() !== "");
/** The start of a line that is not quoted yet; a fence leaves the quote, where Slack shows none. */
const unquoted = new RegExp(`^(?![${quote}${fence}])`, "gm");
/** A further line of an item; a quote and a fence work only where the line begins. */
const indented = new RegExp(`\n(?![\n${quote}${fence}])`, "g");

function itemOf(content: string, meta: Bun.markdown.ListItemMeta): string {
  const number = meta.ordered ? `${(meta.start ?? 1) + meta.index}. ` : "";
  const box = meta.checked === undefined ? "" : meta.checked ? "☑ " : "☐ ";
  const bullet = meta.depth > 0 ? "◦ " : "• ";
  const body = partsOf(content).join("\n").replaceAll(indented, "\n    ");
  const space = body.startsWith(quote) || body.startsWith(fence) ? "\n" : "";
  return `${number + box || bullet}${space}${body}\n`;
}

/** Slack links to few schemes only; of any other the address is shown as text. */
function linkTo(address: string, content: string): string {
  const label = plainOf(content);
  const url = urlOf(address, label);
  if (/^(https?:\/\/|mailto:)./i.test(url) && escape(url + label).length <= maxLinkChars)
    return link + url + bar + (label === url ? "" : label) + end;
  return label === address ? label : `${content} (${unmarked(address)})`;
}

const entities: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'" };

/** The parser leaves entities in addresses, and finds www.x.org and a@b.org without a scheme. */
function urlOf(address: string, label: string): string {
  const isBare = label === address && !/^[a-z]+:/i.test(address);
  const scheme = !isBare ? "" : address.includes("@") ? "mailto:" : "http://";
  const decoded = address.replaceAll(/&(amp|lt|gt|quot|#39);/g, (_, name) => entities[name] ?? "");
  return scheme + decoded.replaceAll(/[\s<>|`"\uFDD0-\uFDEF]/g, encodeURIComponent);
}

const links = new RegExp(`${link}([^${bar}]*)${bar}([^${end}]*)${end}`, "g");

/** What is left for the eye where Slack shows no signs: labels, and cells of a table. */
function plainOf(content: string, showsAddress = false): string {
  const text = content.replaceAll(links, (_, url: string, label: string) =>
    showsAddress && label && url !== `mailto:${label}` ? `${label} (${url})` : label || url,
  );
  return text.replaceAll(marks, "").replaceAll(/\s+/g, " ").trim();
}

/** An aligned block; a wide one as lines of "header: value", row by row. */
function tableOf(content: string): string {
  const rows = content.split(row).slice(1);
  const cells = rows.map((one) => one.split(cell).slice(1));
  const plain = cells.map((one) => one.map((text) => plainOf(text.slice(1), true)));
  const widths = (plain[0] ?? []).map((_, at) =>
    Math.max(1, ...plain.map((one) => Bun.stringWidth(one[at] ?? ""))),
  );
  const columns = widths.reduce((sum, width) => sum + width + 3, -3);
  if (columns > maxTableColumns) return around(longTable(cells));
  const sides = cells[0]?.map((text) => text.charAt(0)) ?? [];
  const lineOf = (texts: string[]) => texts.map((text, at) => align(text, widths[at], sides[at]));
  const [head = "", ...rest] = plain.map((texts) => lineOf(texts).join(" | ").trimEnd());
  const rule = widths.map((width) => "-".repeat(width)).join("-|-");
  return fenced([head, rule, ...rest].join("\n"));
}

function align(text: string, width = 0, side = "l"): string {
  const space = Math.max(0, width - Bun.stringWidth(text));
  const left = side === "r" ? space : side === "c" ? Math.floor(space / 2) : 0;
  return " ".repeat(left) + text + " ".repeat(space - left);
}

function longTable(cells: string[][]): string {
  const [head = [], ...rest] = cells.map((one) => one.map((text) => text.slice(1).trim()));
  const named = (text: string, at: number) => (head[at] ? `${strong(head[at])}: ${text}` : text);
  const rowOf = (texts: string[]) => texts.map((text, at) => text && named(text, at));
  return rest.map((texts) => rowOf(texts).filter(Boolean).join("\n")).join("\n\n");
}

const escape = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** A fence, a code span or a link in its last form. Backticks inside would end it too early. */
function finish(piece: string): string {
  const content = escape(piece.slice(1, -1));
  if (piece.startsWith(code)) return `\`${content.replaceAll("`", "ˋ")}\``;
  const [first = "", label = ""] = content.replaceAll(/`(?=``)/g, `\`${gap}`).split(bar);
  if (piece.startsWith(link)) return `<${first}${label && `|${label.replaceAll("|", "¦")}`}>`;
  return `\`\`\`\n${first.replaceAll(newline, "\n")}\n\`\`\``;
}

/** Emphasis within its own kind is dropped, and none goes over the end of a line. */
function balance(marked: string): string {
  const open: number[] = []; // the kinds that hold here; the line shows the first `shown` of them
  let [out, shown] = ["", 0];
  const marksOf = (from: string, isWanted: (at: number) => boolean) =>
    open.map((kind, at) => (isWanted(at) && open.indexOf(kind) === at ? from.charAt(kind) : ""));
  for (const char of marked) {
    if (openers.includes(char)) open.push(openers.indexOf(char));
    else if (closers.includes(char)) {
      const kind = open.pop() ?? 0;
      if (shown > open.length && !open.includes(kind)) out += char;
      shown = Math.min(shown, open.length);
    } else if (char === "\n") {
      out += `${marksOf(closers, (at) => at < shown)
        .toReversed()
        .join("")}\n`;
      shown = 0;
    } else if (char === quote || char.trim() === "") out += char;
    else {
      out += marksOf(openers, (at) => at >= shown).join("") + char;
      shown = open.length;
    }
  }
  return out;
}

/** Where Slack reads a sign: at an end of the line, beside a space or plain punctuation. */
const edge = /^$|[\s!-)+-/:-@[-^{-}\uFDD3]/;

/** One line as Slack reads it, but for its pieces. */
function settle(line: string): string {
  const text = escape(["*", "_", "~", "`"].reduce(disarm, line.replace(/^>/, `${gap}>`)))
    .replaceAll(/@(?=(channel|here|everyone)\b)/gi, `@${gap}`)
    .replaceAll(/`(?=``)/g, `\`${gap}`);
  const signed = text.replaceAll(/[\uFDDA-\uFDE0]/g, (mark, at: number) => {
    const [before, after] = [text.charAt(at - 1), text.charAt(at + 1)];
    const [opens, closes] = [!closers.includes(mark), !openers.includes(mark)];
    const left = opens && !edge.test(before) && !openers.includes(before) ? gap : "";
    const right = closes && !edge.test(after) && !/[\uFDDA-\uFDE0]/.test(after) ? gap : "";
    const kind = Math.max(openers.indexOf(mark), closers.indexOf(mark));
    return left + (signs[kind] ?? mark) + right;
  });
  return signed.replaceAll(quote, "> ");
}

/** Breaks up the author's own signs where Slack could take two of them for a pair. */
function disarm(line: string, sign: string): string {
  const [open = bar, close = bar] = [openers, closers].map((all) => all[signs.indexOf(sign)]);
  const opens = new RegExp(`(?<![\\p{L}\\p{N}])[${sign}](?=\\S)|${open}`, "gu");
  const closes = new RegExp(`(?<=\\S)[${sign}](?![\\p{L}\\p{N}])|${close}`, "gu");
  const first = line.search(opens);
  if (first < 0 || line.slice(first + 1).search(closes) < 0) return line;
  return line
    .replaceAll(opens, (found) => (found === sign ? sign + gap : found))
    .replaceAll(closes, (found) => (found === sign ? gap + sign : found));
}

/** What a cut should not go through: links, entities, fences; and, if it can be helped, emphasis. */
const whole = /<[^<>\n]*>|&(?:amp|lt|gt);|`{3,}/g;
const spans = /(?<![\p{L}\p{N}])([*_~`])(?=\S)[^\n]*?\S\1/gu;
const graphemes = new Intl.Segmenter("en", { granularity: "grapheme" });

/**
 * mrkdwn in parts of at most `maxChars` UTF-16 units (20 or more): cut between paragraphs, lines or
 * words where it can be, never inside a character as people see it. A fence that must be cut is
 * closed at the end of a part and opened again in the next.
 */
export function splitMrkdwn(text: string, maxChars = 4000): string[] {
  const parts: string[] = [];
  let [head, rest] = ["", text.trim()];
  while (rest !== "") {
    const all = head + rest;
    const isLast = all.length + (isOpen(all) ? 4 : 0) <= maxChars;
    const at = isLast ? rest.length : cutOf(head, rest, maxChars - head.length - 4);
    const part = (head + rest.slice(0, at)).trimEnd();
    head = isOpen(part) ? "```\n" : "";
    if (part !== "") parts.push(head ? `${part}\n\`\`\`` : part);
    rest = head ? rest.slice(at) : rest.slice(at).replace(/^\s*\n/, "");
  }
  return parts;
}

const isOpen = (text: string) => (text.match(/```/g)?.length ?? 0) % 2 === 1;

/** Where to cut `rest`: at `room` at most, or behind the end of a fence that just fits. */
function cutOf(head: string, rest: string, room: number): number {
  const near = rest.slice(0, room + 200);
  const isInside = (at: number) => isOpen(head + rest.slice(0, at));
  const isEmptyFence = (at: number) => isInside(at) && /```\s*$/.test(head + rest.slice(0, at));
  const isAfter = (tail: RegExp) => (at: number) =>
    at > room / 3 && tail.test(rest.slice(at - 2, at)) && !isEmptyFence(at);
  const isFree = (pattern: RegExp) => {
    const held = [...near.matchAll(pattern)];
    return (at: number) => !held.some((one) => one.index < at && at < one.index + one[0].length);
  };
  const ends = [...graphemes.segment(near)].map(({ index }) => index).toReversed();
  const fitting = ends.filter((at) => at > 0 && at <= room);
  const good = fitting.filter(isFree(whole));
  const best = good.filter(isFree(spans));
  const at =
    best.filter(isAfter(/\n\n/)).find((one) => !isInside(one)) ??
    best.find(isAfter(/\n$/)) ??
    best.find(isAfter(/\s$/)) ??
    good.find(isAfter(/\s$/)) ??
    good[0] ??
    fitting[0] ??
    room;
  const closing = isInside(at) ? /^\n?```/.exec(rest.slice(at, at + 4)) : null;
  return at + (closing?.[0].length ?? 0);
}
