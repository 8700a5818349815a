/**
 * The tty: raw mode, and a live area of a few lines at the bottom that is redrawn in place. All
 * else is printed above it once and belongs to the terminal's scrollback: no alternate screen, no
 * mouse capture, nothing that scrolled is touched again.
 *
 * Invariants: one write per frame, inside synchronized output; only lines that changed are
 * rewritten; the live area is never higher than the screen; of what is printed or shown only text
 * and SGR reach the tty; the tty is restored on every way out that a process can see.
 */
import { writeSync } from "node:fs";
import { keepColours } from "../escape.ts";
import { type Key, KeyReader } from "./keys.ts";
import { fit, widthOf } from "./style.ts";

/** The live area: lines of at most `columns`, and where the cursor stands in them. */
export type Frame = { lines: string[]; row: number; column: number };

export type TerminalOptions = {
  /** The live area for a screen of that size; called only when a frame is due. */
  compose(columns: number, rows: number): Frame;
  onKey(key: Key): void;
};

const empty: Frame = { lines: [], row: 0, column: 0 };
const SYNC = "\x1b[?2026h";
const SYNC_END = "\x1b[?2026l";
/** Bracketed paste; keys that are told apart: kitty's protocol, xterm's modifyOtherKeys. */
const ENTER = "\x1b[?2004h\x1b[>1u\x1b[>4;1m";
const LEAVE = "\x1b[>4;0m\x1b[<u\x1b[?2004l\x1b[?25h\x1b[0m";
const frameMs = 33;
/** How long a lone ESC may be the beginning of a sequence. */
const escapeMs = 30;

export class Terminal {
  #options: TerminalOptions;
  #keys = new KeyReader();
  #shown = empty;
  /** The screen that the last frame was drawn for. */
  #screen = { columns: 80, rows: 24 };
  #printed: string[] = [];
  #timer: Timer | null = null;
  #escapeTimer: Timer | null = null;
  #drawnAt = 0;
  #open = false;

  constructor(options: TerminalOptions) {
    this.#options = options;
  }

  get columns(): number {
    return process.stdout.columns || 80;
  }

  get rows(): number {
    return process.stdout.rows || 24;
  }

  open(): void {
    process.stdin.on("data", this.#onData);
    process.stdin.on("end", this.#onEnd);
    process.stdout.on("resize", this.refresh);
    process.stdout.on("error", this.#onEnd); // stays: a write may fail after the end, too
    process.on("SIGCONT", this.#onContinue);
    process.on("exit", this.#restore);
    process.on("uncaughtExceptionMonitor", this.#restore);
    this.#enter();
  }

  /** Takes the live area away, gives the tty back and stops listening. */
  close(): void {
    this.#leave();
    process.stdin.off("data", this.#onData);
    process.stdin.off("end", this.#onEnd);
    process.stdin.pause();
    process.stdout.off("resize", this.refresh);
    process.off("SIGCONT", this.#onContinue);
    process.off("exit", this.#restore);
    process.off("uncaughtExceptionMonitor", this.#restore);
  }

  /** Stops the process group as a shell's job control expects; comes back when continued. */
  suspend(): void {
    this.#leave();
    process.kill(0, "SIGTSTP");
    setTimeout(this.#onContinue, 100); // without job control nothing stops, and nobody says SIGCONT
  }

  /** Prints lines above the live area, for good. They may be longer than the screen is wide. */
  print(lines: readonly string[]): void {
    for (const line of lines) this.#printed.push(...keepColours(line).split("\n"));
    this.refresh();
  }

  /** Asks for a frame: at once if the last one is long enough ago. */
  refresh = (): void => {
    if (!this.#open || this.#timer) return;
    const waitMs = Math.max(0, this.#drawnAt + frameMs - performance.now());
    this.#timer = setTimeout(this.#draw, waitMs);
  };

  /** Empties the screen, but not the scrollback, and draws the live area at its top. */
  clearScreen(): void {
    process.stdout.write(`${this.#erased()}\x1b[H\x1b[2J`);
    this.#shown = empty;
    this.refresh();
  }

  // ── Frames ────────────────────────────────────────────────────────────────────────────────────

  #draw = (): void => {
    this.#timer = null;
    if (!this.#open) return;
    if (process.stdout.writableNeedDrain) {
      process.stdout.once("drain", this.refresh);
      return;
    }
    this.#drawnAt = performance.now();
    const { columns, rows } = this;
    const frame = this.#composed();
    const isSameShape =
      columns === this.#screen.columns &&
      rows === this.#screen.rows &&
      frame.lines.length === this.#shown.lines.length;
    const isInPlace = isSameShape && this.#printed.length === 0;
    const out = isInPlace ? this.#changed(frame) : this.#redrawn(frame);
    this.#shown = frame;
    this.#screen = { columns, rows };
    if (out) process.stdout.write(SYNC + out + SYNC_END);
  };

  /** The frame, with every line made safe and cut to fit, and at most as high as the screen. */
  #composed(): Frame {
    const { columns, rows } = this;
    const { lines, row, column } = this.#options.compose(columns, rows);
    const first = Math.max(0, Math.min(lines.length - rows, row));
    return {
      lines: lines.slice(first, first + rows).map((line) => fit(keepColours(line), columns - 1)),
      row: row - first,
      column: Math.min(column, columns - 1),
    };
  }

  /** Everything anew, below what was printed since. */
  #redrawn(frame: Frame): string {
    const reset = this.#printed.length > 0 ? "\x1b[0m" : "";
    const printed = this.#printed.splice(0).map((line) => `${line}\r\n`);
    const last = Math.max(0, frame.lines.length - 1);
    return this.#erased() + printed.join("") + reset + frame.lines.join("\r\n") + goTo(last, frame);
  }

  /**
   * Empties the live area and leaves the cursor in its first cell, also where a new width has wrapped
   * its lines. Line by line: erasing to the screen's end from its first cell would make tmux keep a
   * copy in its scrollback.
   */
  #erased(): string {
    const { columns, rows } = this;
    const { lines, row, column } = this.#shown;
    const heights = lines.map((line) => Math.max(1, Math.ceil(widthOf(line) / columns)));
    const sum = (some: number[]): number => some.reduce((all, height) => all + height, 0);
    const above = Math.min(rows - 1, sum(heights.slice(0, row)) + Math.floor(column / columns));
    const below = Math.max(0, Math.min(rows, sum(heights)) - 1);
    return `${moveRows(-above)}\r\x1b7\x1b[2K${"\x1b[1B\x1b[2K".repeat(below)}\x1b8`;
  }

  /** The lines that differ, and the cursor. */
  #changed(frame: Frame): string {
    const old = this.#shown;
    let [out, at] = ["", old.row];
    for (const [row, line] of frame.lines.entries()) {
      if (line === old.lines[row]) continue;
      out += `${moveRows(row - at)}\r${line}\x1b[K`;
      at = row;
    }
    const isStill = !out && frame.row === old.row && frame.column === old.column;
    return isStill ? "" : out + goTo(at, frame);
  }

  // ── The tty ───────────────────────────────────────────────────────────────────────────────────

  #enter(): void {
    process.stdin.setRawMode(true);
    process.stdin.resume();
    process.stdout.write(ENTER);
    this.#open = true;
    this.#shown = empty;
    this.#screen = { columns: this.columns, rows: this.rows };
    this.#draw();
  }

  #leave(): void {
    if (!this.#open) return;
    this.#open = false;
    for (const timer of [this.#timer, this.#escapeTimer]) if (timer) clearTimeout(timer);
    this.#timer = this.#escapeTimer = null;
    process.stdout.write(this.#redrawn(empty) + LEAVE);
    process.stdin.setRawMode(false);
  }

  #onContinue = (): void => {
    if (!this.#open) this.#enter();
  };

  /** The process is ending under us: no more events, so this writes past every buffer. */
  #restore = (): void => {
    if (!this.#open) return;
    this.#open = false;
    const below = moveRows(Math.max(0, this.#shown.lines.length - 1 - this.#shown.row));
    try {
      process.stdin.setRawMode(false);
      writeSync(1, `${SYNC_END}${below}\r\n${LEAVE}`);
    } catch {
      // The tty is gone, and with it all that could be restored.
    }
  };

  #onData = (bytes: Buffer): void => {
    if (this.#escapeTimer) clearTimeout(this.#escapeTimer);
    this.#escapeTimer = null;
    for (const key of this.#keys.feed(bytes)) this.#options.onKey(key);
    if (this.#keys.pending)
      this.#escapeTimer = setTimeout(() => {
        for (const key of this.#keys.flush()) this.#options.onKey(key);
      }, escapeMs);
  };

  #onEnd = (): void => this.#options.onKey({ type: "end" });
}

/** Down, or up where `rows` is negative. */
const moveRows = (rows: number): string =>
  rows === 0 ? "" : `\x1b[${Math.abs(rows)}${rows > 0 ? "B" : "A"}`;

/** From row `from` of a frame, in whatever column, to the frame's cursor. */
const goTo = (from: number, { row, column }: Frame): string =>
  `${moveRows(row - from)}\r${column > 0 ? `\x1b[${column}C` : ""}`;
