/**
 * What a command prints, on its way to a model: bytes in, bounded text out.
 *
 * Invariant: memory does not grow with the output. The first and the last KEEP_BYTES are kept and
 * the middle is counted; what is left out is said in the text, with the way to get it. Bytes that
 * are no UTF-8 become replacement characters; a character that comes in two pieces stays whole.
 */
import { config } from "../config.ts";

/** The longest character has four bytes, so either end alone could fill a result. */
const KEEP_BYTES = 4 * config.limits.resultChars;

/** What of a result is kept free for the words around the output. */
const FRAME_CHARS = 1_000;

export class Capture {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #head = Buffer.alloc(0);
  /** A ring: the byte at `offset` of the output stands at `offset % KEEP_BYTES`. */
  #tail = Buffer.alloc(0);
  #bytes = 0;
  #isOpen = true;

  /** How much was printed since the last `take`. */
  get bytes(): number {
    return this.#bytes;
  }

  readonly write = (bytes: Uint8Array): void => {
    if (!this.#isOpen) return;
    const first = bytes.subarray(0, Math.max(0, KEEP_BYTES - this.#bytes));
    if (first.length > 0) this.#writeHead(first);
    if (first.length < bytes.length) this.#writeTail(bytes.subarray(first.length));
  };

  #writeHead(bytes: Uint8Array): void {
    if (this.#head.length === 0) this.#head = Buffer.allocUnsafe(KEEP_BYTES);
    this.#head.set(bytes, this.#bytes);
    this.#bytes += bytes.length;
  }

  #writeTail(bytes: Uint8Array): void {
    if (this.#tail.length === 0) this.#tail = Buffer.allocUnsafe(KEEP_BYTES);
    const last = bytes.subarray(-KEEP_BYTES);
    const at = (this.#bytes + bytes.length - last.length) % KEEP_BYTES;
    this.#tail.set(last.subarray(0, KEEP_BYTES - at), at);
    this.#tail.set(last.subarray(KEEP_BYTES - at), 0);
    this.#bytes += bytes.length;
  }

  /**
   * The text of what was printed since the last call, without the line ends at its end. Unless
   * `isLast`, a character of which only the first bytes have come waits for the next call.
   */
  take(isLast: boolean): string {
    const turn = this.#bytes % KEEP_BYTES;
    const lost = Math.max(0, this.#bytes - 2 * KEEP_BYTES);
    const head = this.#head.subarray(0, this.#bytes);
    const newest = this.#tail.subarray(0, lost > 0 ? turn : Math.max(0, this.#bytes - KEEP_BYTES));
    const tail = lost > 0 ? Buffer.concat([this.#tail.subarray(turn), newest]) : newest;
    this.#bytes = 0;
    const first = this.#decoder.decode(head, { stream: lost === 0 });
    return present(first, this.#decoder.decode(tail, { stream: !isLast }), lost);
  }

  /** The last text. What is printed from now on is dropped, and the memory is given back. */
  close(): string {
    const text = this.take(true);
    this.#isOpen = false;
    this.#head = this.#tail = Buffer.alloc(0);
    return text;
  }
}

/** `head` and `tail` as a model reads them; `lost` bytes between them are gone already. */
function present(head: string, tail: string, lost: number): string {
  const first = keepLastStates(lost > 0 ? head : head + tail);
  const last = keepLastStates(lost > 0 ? tail : "");
  const cure =
    "to see them, run it again with its output redirected to a file, then Read or Grep that file";
  const text = join(first, last, lost, config.limits.resultChars - FRAME_CHARS, cure);
  const overwritten = head.length + tail.length - first.length - last.length;
  const note = `\n[${overwritten} characters that were overwritten after a \\r are left out]`;
  return trimLineEnds(text) + (overwritten > 0 ? note : "");
}

/**
 * `text` in about `maxChars` at most: its beginning, its end, and between them how many bytes are
 * cut, with the `cure`, half a sentence that says how to see them.
 */
export function cutMiddle(text: string, maxChars: number, cure: string): string {
  return join(text, "", 0, maxChars, cure);
}

function join(head: string, tail: string, lost: number, maxChars: number, cure: string): string {
  if (lost === 0 && head.length + tail.length <= maxChars) return head + tail;
  const half = Math.floor(maxChars / 2);
  const [first, last] = tail === "" ? [head.slice(0, half), head.slice(half)] : [head, tail];
  const cut = Buffer.byteLength(first.slice(half)) + Buffer.byteLength(last.slice(0, -half)) + lost;
  const beginning = first.slice(0, half).toWellFormed();
  return `${beginning}\n[${cut} bytes are cut here; ${cure}]\n${last.slice(-half).toWellFormed()}`;
}

/** Of each line that rewrites itself with carriage returns, as progress bars do, the last state. */
function keepLastStates(text: string): string {
  if (!text.includes("\r")) return text;
  return text.split("\n").map(lastStateOf).join("\n");
}

function lastStateOf(line: string): string {
  let end = line.length;
  while (line[end - 1] === "\r") end--;
  const at = line.lastIndexOf("\r", end - 1);
  return at < 0 || end === 0 ? line : line.slice(at + 1, end);
}

function trimLineEnds(text: string): string {
  let end = text.length;
  while (text[end - 1] === "\n" || text[end - 1] === "\r") end--;
  return text.slice(0, end);
}
