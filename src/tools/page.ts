/**
 * What Read shows: a page of a text, with line numbers, or an image.
 *
 * Invariant: memory is bounded by WHOLE_BYTES however large the file and its lines are, and the
 * result by the limits of config.ts; what is not shown is said, with the way to get it. What is no
 * text is refused with its kind.
 */
import type { FileHandle } from "node:fs/promises";
import { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import type { ToolOutput, Workbench } from "../types.ts";
import { existing, locate, openFile, readBytes, stampOf, WHOLE_BYTES } from "./disk.ts";
import { decode, imageTypeOf, magicOf, numbered, type Form } from "./text.ts";

const { resultChars, readLines, readLineChars, imageBytes } = config.limits;

/** A larger file goes on in pieces of so much; what begins with so much text is one, up to a NUL. */
const PIECE_BYTES = 1 << 20;
/** How far into a larger file lines are looked for. */
const SCAN_CHARS = 2 ** 30;
/** What of a result is kept free for the words around the lines. */
const FRAME_CHARS = 500;

export type Range = { offset?: number; limit?: number };

/** Reads and stamps a file; throws UsageErrors and the system's. */
export async function showFile(
  file: string,
  range: Range,
  bench: Workbench,
  signal: AbortSignal,
): Promise<ToolOutput> {
  const place = await locate(file, bench);
  const stats = await existing(place, bench);
  await using handle = await openFile(place);
  const head = await readBytes(handle, WHOLE_BYTES + 1);
  const isWhole = head.length <= WHOLE_BYTES;
  // Also for what is then refused: the model is told what it is, and may write over it.
  bench.stamps.set(place.path, stampOf(stats, head));
  const source = { name: place.name, bytes: isWhole ? head.length : stats.size };
  if (imageTypeOf(head)) return showImage(source, head);
  const { text, ...form } = decode(head, !isWhole);
  mustBeText(place.name, head, text.slice(0, PIECE_BYTES));
  const texts = chunks(head, new TextDecoder(form.encoding), handle, signal);
  return { content: lay(await pageOf(texts, range, isWhole), source, form) };
}

/** A file as answers name it, and how large it is. */
type Source = { name: string; bytes: number };

async function* chunks(
  head: Buffer,
  decoder: TextDecoder,
  handle: FileHandle,
  signal: AbortSignal,
): AsyncGenerator<string> {
  for (let bytes = head; bytes.length > 0; bytes = await readBytes(handle, PIECE_BYTES)) {
    signal.throwIfAborted();
    yield decoder.decode(bytes, { stream: true });
  }
}

function showImage({ name, bytes }: Source, head: Buffer): ToolOutput {
  if (bytes > imageBytes)
    throw new UsageError(
      `${name} is an image of ${bytes} bytes, and ${imageBytes} is the most that can be shown: ` +
        "make a smaller copy (`convert FILE -resize 1600x1600 SMALL.png`) and Read that.",
    );
  const mediaType = imageTypeOf(head) ?? "image/png";
  const content = `${name}: ${mediaType}, ${bytes} bytes.`;
  return { content, images: [{ type: "image", mediaType, data: head.toString("base64") }] };
}

export function mustBeText(name: string, head: Buffer, text: string): void {
  const magic = magicOf(head);
  if (magic === null && !text.includes("\0")) return;
  const what = magic ?? "binary (it has NUL bytes): use `file` or `xxd FILE | head`";
  throw new UsageError(`${name} is no text, but ${what} in Bash.`);
}

// ── Paging ──────────────────────────────────────────────────────────────────────────────────────

/** Lines from `first` on, a CR still at their end; `total` are those up to where reading ended. */
type Page = { first: number; lines: string[]; total: number; hasEnd: boolean; hasNul: boolean };

/** `isCounted`: goes on to the end when the page is full, to count the lines. */
async function pageOf(
  texts: AsyncIterable<string>,
  { offset, limit }: Range,
  isCounted: boolean,
): Promise<Page> {
  const first = Math.max(1, offset ?? 1);
  const page: Page = { first, lines: [], total: 0, hasEnd: true, hasNul: false };
  const most = limit && limit > 0 ? limit : readLines;
  let [line, isOpen, isFull, room, scanned] = ["", false, false, resultChars - FRAME_CHARS, 0];
  const endLine = () => {
    if (++page.total >= first && !isFull) {
      const shown = shorten(line);
      page.hasNul = line.includes("\0");
      room -= shown.length + 8;
      const fits = !page.hasNul && (room >= 0 || page.lines.length === 0);
      isFull = !fits || page.lines.push(shown) >= most;
    }
    line = "";
  };
  for await (const text of texts) {
    for (let from = 0; from < text.length;) {
      const at = text.indexOf("\n", from);
      isOpen = at < 0;
      const to = isOpen ? text.length : at;
      if (page.total + 1 >= first && !isFull && line.length <= readLineChars)
        line += text.slice(from, Math.min(to, from + readLineChars + 2));
      if (!isOpen) endLine();
      from = to + 1;
    }
    scanned += text.length;
    page.hasEnd = (isCounted || !isFull) && !line.includes("\0") && scanned <= SCAN_CHARS;
    if (!page.hasEnd) break;
  }
  if (isOpen && (page.hasEnd || line !== "")) endLine();
  return page;
}

function shorten(line: string): string {
  if (line.replace(/\r$/, "").length <= readLineChars) return line;
  return `${line.slice(0, readLineChars)}… [cut: the line goes on; \`cut -c\` in Bash shows more]`;
}

/** The page as a model sees it, with what it has to know about it in the last line. */
function lay(page: Page, { name, bytes }: Source, { encoding, bom }: Form): string {
  const { first, lines, total, hasEnd, hasNul } = page;
  if (total === 0 && hasEnd) return `${name} is empty (${bytes} bytes).`;
  if (lines.length === 0) throw new UsageError(whyNothing(page, name));
  const next = first + lines.length;
  const isMore = !hasEnd || next <= total;
  const notes: string[] = [];
  if (first > 1 || isMore) {
    const all = hasEnd ? total : `more (the file has ${bytes} bytes)`;
    notes.push(
      `Lines ${first}–${next - 1} of ${all}${isMore ? `; read on with offset ${next}` : ""}.`,
    );
  }
  if (hasNul) notes.push(`Line ${next} has NUL bytes: the file is no text from there on.`);
  const crs = lines.filter((line) => line.endsWith("\r")).length;
  if (crs > 0) notes.push(crs >= lines.length - 1 ? "CRLF line ends." : "Some line ends are CRLF.");
  if (encoding === "windows-1252") notes.push("Not UTF-8; shown as Latin-1 (Windows-1252).");
  else if (bom) notes.push(`${encoding.toUpperCase()} with a byte order mark.`);
  return [numbered(lines, first), notes.join(" ")].filter(Boolean).join("\n");
}

function whyNothing({ first, total, hasEnd, hasNul }: Page, name: string): string {
  if (hasNul) return `Line ${first} of ${name} has NUL bytes: use \`xxd\` in Bash.`;
  if (hasEnd) return `${name} has ${total} lines: offset ${first} is past its end.`;
  const command = `sed -n '${first},${first + 99}p;${first + 99}q'`;
  return `Line ${first} of ${name} is further in than Read looks (${total} lines so far): use \`${command}\` in Bash.`;
}
