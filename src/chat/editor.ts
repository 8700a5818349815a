/**
 * The input: a text of several lines with a cursor, history, a kill buffer and completion. State
 * and its picture as lines; reads no keyboard and writes no screen.
 *
 * Invariants: the cursor is a UTF-16 offset that never stands inside a grapheme; a long paste is
 * one character of the text (from a plane nobody types), shown as a label and sent whole; drawing
 * costs what is on the screen, however long the text is.
 */
import { escapeText } from "../escape.ts";
import type { Key } from "./keys.ts";
import {
  bold,
  cyan,
  dim,
  fit,
  glyphs,
  graphemesOf,
  inverse,
  plural,
  printable,
  widthOf,
} from "./style.ts";
import type { Frame } from "./terminal.ts";

/** What may stand in place of the text from `start` to the cursor. */
export type Suggestions = { start: number; options: Suggestion[] };
export type Suggestion = { value: string; note?: string };

/** Pastes of more than this are shown as a label. */
const longPaste = { lines: 8, chars: 800 };
const firstPaste = 0x10ff00;
const pasteChars = /[\u{10ff00}-\u{10ffff}]/gu;
const menuRows = 6;
/** How far back and ahead one looks for the end of a word or a grapheme. */
const reach = 1000;

/** A row of the picture, as UTF-16 offsets into the text, without the newline that ends it. */
type Row = { start: number; end: number };

export class Editor {
  text = "";
  cursor = 0;
  /** Oldest first. */
  history: string[] = [];
  menu: (Suggestions & { selected: number }) | null = null;
  placeholder = "";
  #suggest: (text: string, cursor: number) => Suggestions | null;
  #pastes: string[] = [];
  #killed = "";
  /** The place in history, counted from its end; 0 is what was being written. */
  #age = 0;
  #draft = "";
  #width = 80;

  /** What each key does; `C-` is Ctrl, `A-` is Alt. */
  #commands = byKey({
    "left C-b": () => this.#moveTo(this.#before()),
    "right C-f": () => this.#moveTo(this.#after(this.cursor)),
    "A-left A-b C-left": () => this.#moveTo(this.#wordBefore()),
    "A-right A-f C-right": () => this.#moveTo(this.#wordAfter()),
    "home C-a": () => this.#moveTo(this.#lineStart()),
    "end C-e": () => this.#moveTo(this.#lineEnd()),
    "up C-p": () => (this.menu ? this.#select(-1) : this.#moveRow(-1)),
    "down C-n": () => (this.menu ? this.#select(1) : this.#moveRow(1)),
    tab: () => this.#complete(),
    "C-j enter A-enter": () => this.#insert("\n"),
    "backspace C-h": () => this.#replace(this.#before(), this.cursor, ""),
    "delete C-d": () => this.#replace(this.cursor, this.#after(this.cursor), ""),
    // At a line's end, the newline goes.
    "C-k": () => this.#kill(this.cursor, Math.max(this.#lineEnd(), this.#after(this.cursor))),
    "C-u": () => this.#kill(this.#lineStart(), this.cursor),
    "C-w": () => this.#kill(this.cursor - this.#lengthBefore(/\S*\s*$/), this.cursor),
    "A-backspace C-backspace": () => this.#kill(this.#wordBefore(), this.cursor),
    "A-d C-delete": () => this.#kill(this.cursor, this.#wordAfter()),
    "C-y": () => this.#insert(this.#killed),
  });

  constructor(suggest: (text: string, cursor: number) => Suggestions | null = () => null) {
    this.#suggest = suggest;
  }

  /** The text as it is sent, pastes whole. */
  get value(): string {
    return this.text.replace(pasteChars, (char) => this.#pasted(char));
  }

  /** The text as it is shown, pastes as labels. */
  get label(): string {
    return this.text.replace(pasteChars, (char) => labelOf(this.#pasted(char)));
  }

  setText(text: string): void {
    this.#replace(0, this.text.length, text.replace(pasteChars, ""));
    this.menu = null;
  }

  /** Empties the input; `text`, what was sent, becomes the newest of the history. */
  clear(text = ""): void {
    if (text.trim() && this.history.at(-1) !== text) this.history.push(text);
    this.setText("");
    this.#pastes = [];
    this.#age = 0;
  }

  /** Takes a key. True: the text is to be sent. */
  press(key: Key): boolean {
    if (key.type === "text") this.#insert(key.text.replace(pasteChars, ""));
    else if (key.type === "paste") this.#paste(key.text.replace(pasteChars, ""));
    else if (key.type === "key") {
      if (key.name === "enter") return this.#enter();
      this.#commands.get(key.name.replace("S-", ""))?.();
    }
    return false;
  }

  // ── Changes ───────────────────────────────────────────────────────────────────────────────────

  /** True: the text is to be sent. */
  #enter(): boolean {
    if (this.menu && this.menu.selected >= 0) this.#accept(this.menu.selected);
    else if (this.text[this.cursor - 1] === "\\") this.#replace(this.cursor - 1, this.cursor, "\n");
    else return true;
    return false;
  }

  #paste(text: string): void {
    const isLong = text.length > longPaste.chars || text.split("\n").length > longPaste.lines;
    if (!isLong || this.#pastes.length > 0xff) return this.#insert(text);
    this.#pastes.push(text);
    this.#insert(String.fromCodePoint(firstPaste + this.#pastes.length - 1));
  }

  #insert(text: string): void {
    this.#replace(this.cursor, this.cursor, text);
  }

  #kill(start: number, end: number): void {
    if (end > start) this.#killed = this.text.slice(start, end);
    this.#replace(start, end, "");
  }

  #replace(start: number, end: number, text: string): void {
    this.text = this.text.slice(0, start) + text + this.text.slice(end);
    this.cursor = start + text.length;
    this.menu = null;
    this.suggest();
  }

  /** Fills the menu, unless somebody is choosing from it. */
  suggest(): void {
    if (this.menu && this.menu.selected >= 0) return;
    const found = this.text ? this.#suggest(this.text, this.cursor) : null;
    this.menu = found && found.options.length > 0 ? { ...found, selected: -1 } : null;
  }

  // ── Places ────────────────────────────────────────────────────────────────────────────────────

  #moveTo(cursor: number): void {
    this.cursor = cursor;
    this.menu = null;
  }

  #before(): number {
    const graphemes = graphemesOf(this.text.slice(Math.max(0, this.cursor - 64), this.cursor));
    return this.cursor - (graphemes.at(-1)?.length ?? 0);
  }

  #after(at: number): number {
    return at + (graphemesOf(this.text.slice(at, at + 64))[0]?.length ?? 0);
  }

  #lengthBefore(pattern: RegExp): number {
    const before = this.text.slice(Math.max(0, this.cursor - reach), this.cursor);
    return pattern.exec(before)?.[0].length ?? 0;
  }

  #wordBefore(): number {
    return this.cursor - this.#lengthBefore(/[\p{L}\p{N}\p{M}_]*[^\p{L}\p{N}\p{M}_]*$/u);
  }

  #wordAfter(): number {
    const after = this.text.slice(this.cursor, this.cursor + reach);
    const word = /^[^\p{L}\p{N}\p{M}_]*[\p{L}\p{N}\p{M}_]*/u.exec(after);
    return this.cursor + (word?.[0].length ?? 0);
  }

  #lineStart(): number {
    return this.cursor === 0 ? 0 : this.text.lastIndexOf("\n", this.cursor - 1) + 1;
  }

  #lineEnd(): number {
    const end = this.text.indexOf("\n", this.cursor);
    return end < 0 ? this.text.length : end;
  }

  /** One row up or down, as shown; from the first and the last row, through history. */
  #moveRow(step: -1 | 1): void {
    const rows = this.#layOut();
    const at = this.#rowOfCursor(rows);
    const [from, to] = [rows[at], rows[at + step]];
    if (!from || !to) return this.#recall(this.#age - step);
    const column = this.#columns(from.start, this.cursor);
    let cursor = to.start;
    while (cursor < to.end) {
      const next = this.#after(cursor);
      if (this.#columns(to.start, next) > column) break;
      cursor = next;
    }
    this.#moveTo(cursor);
  }

  #recall(age: number): void {
    if (age < 0 || age > this.history.length) return;
    if (this.#age === 0) this.#draft = this.text;
    this.#age = age;
    const text = age === 0 ? this.#draft : this.history.at(-age)?.replace(pasteChars, "");
    this.#replace(0, this.text.length, text ?? "");
    this.menu = null;
  }

  // ── Completion ────────────────────────────────────────────────────────────────────────────────

  /** Tab: the only one, or the next of the list. */
  #complete(): void {
    this.suggest();
    if (this.menu?.options.length === 1) this.#accept(0);
    else this.#select(1);
  }

  #select(step: number): void {
    if (!this.menu) return;
    const { selected, options } = this.menu;
    const next = selected < 0 && step < 0 ? options.length - 1 : selected + step;
    this.menu.selected = (next + options.length) % options.length;
  }

  #accept(index: number): void {
    const option = this.menu?.options[index];
    if (!this.menu || !option) return;
    const space = option.value.endsWith("/") ? "" : " ";
    this.#replace(this.menu.start, this.cursor, option.value + space);
  }

  // ── The picture ───────────────────────────────────────────────────────────────────────────────

  /** The rows around the cursor, at most `maxRows`, and the menu below them if there is room. */
  render(columns: number, maxRows: number): Frame {
    this.#width = Math.max(1, columns - 3);
    const rows = this.#layOut();
    const at = this.#rowOfCursor(rows);
    const count = Math.min(rows.length, Math.max(1, maxRows));
    const first = Math.max(0, Math.min(at - Math.floor(count / 2), rows.length - count));
    const lines = rows.slice(first, first + count).map(({ start, end }, index) => {
      const isCut = index === 0 || (index === count - 1 && first + count < rows.length);
      const mark = first + index === 0 ? bold(cyan(glyphs.prompt)) : dim(glyphs.more[0] ?? "");
      return `${isCut ? mark : " "} ${this.#show(this.text.slice(start, end))}`;
    });
    if (!this.text) lines[0] += dim(fit(this.placeholder, this.#width));
    lines.push(...this.#renderMenu(columns, maxRows - count));
    const column = 2 + this.#columns(rows[at]?.start ?? 0, this.cursor);
    return { lines, row: at - first, column };
  }

  #renderMenu(columns: number, maxRows: number): string[] {
    const { menu } = this;
    if (!menu || maxRows < 1) return [];
    const count = Math.min(menu.options.length, maxRows, menuRows);
    const first = Math.max(0, Math.min(menu.selected - count + 1, menu.options.length - count));
    const width = Math.max(...menu.options.map(({ value }) => widthOf(value)));
    return menu.options.slice(first, first + count).map(({ value, note = "" }, index) => {
      const name = escapeText(value) + " ".repeat(width - widthOf(value));
      const line = fit(`  ${name}  ${escapeText(note)}`.trimEnd(), columns - 1);
      return first + index === menu.selected ? inverse(line) : dim(line);
    });
  }

  #layOut(): Row[] {
    const rows: Row[] = [];
    let offset = 0;
    for (const line of this.text.split("\n")) {
      let start = offset;
      for (const end of [...this.#breaks(line), line.length]) {
        rows.push({ start, end: offset + end });
        start = offset + end;
      }
      offset += line.length + 1;
    }
    return rows;
  }

  /** Where a line is broken: wherever a row is full, but never inside a grapheme. */
  #breaks(line: string): number[] {
    const breaks: number[] = [];
    if (/^[\x20-\x7e]*$/.test(line)) {
      for (let at = this.#width; at < line.length; at += this.#width) breaks.push(at);
      return breaks;
    }
    let [end, used] = [0, 0];
    for (const grapheme of graphemesOf(line)) {
      const columns = widthOf(this.#show(grapheme));
      if (used > 0 && used + columns > this.#width) {
        breaks.push(end);
        used = 0;
      }
      end += grapheme.length;
      used += columns;
    }
    return breaks;
  }

  #rowOfCursor(rows: Row[]): number {
    return rows.findLastIndex(({ start }) => start <= this.cursor);
  }

  #columns(start: number, end: number): number {
    return widthOf(this.#show(this.text.slice(start, end)));
  }

  #show(text: string): string {
    return printable(text.replace(pasteChars, (char) => labelOf(this.#pasted(char))));
  }

  #pasted(char: string): string {
    return this.#pastes[(char.codePointAt(0) ?? 0) - firstPaste] ?? "";
  }
}

/** A table whose rows have one or more keys, by key. */
const byKey = (table: Record<string, () => void>): Map<string, () => void> =>
  new Map(Object.entries(table).flatMap(([keys, run]) => keys.split(" ").map((key) => [key, run])));

function labelOf(paste: string): string {
  const lines = paste.replace(/\n$/, "").split("\n").length;
  return `[pasted ${lines > 1 ? plural(lines, "line") : plural(paste.length, "character")}]`;
}
