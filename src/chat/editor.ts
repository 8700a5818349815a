/**
 * The input: a text of several lines with a cursor, history, a kill buffer and completion. State
 * and its picture as lines; reads no keyboard and writes no screen.
 *
 * Invariants: the cursor is a UTF-16 offset that never stands inside a grapheme; a long paste is
 * one character of the text (from a plane nobody types), shown as a label and sent whole; drawing
 * costs what is on the screen, however long the text is.
 */
import { escapeText } from "./escape.ts";
import type { Key } from "./keys.ts";
import { layOut, type Row } from "./layout.ts";
import {
  bold,
  cyan,
  dim,
  expandTabs,
  fit,
  glyphs,
  graphemesOf,
  inverse,
  plural,
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

/** Other ways to say the same key. */
const aliases: Record<string, string> = {
  "C-b": "left",
  "C-f": "right",
  "C-left": "A-left",
  "C-right": "A-right",
  "A-b": "A-left",
  "A-f": "A-right",
  "C-a": "home",
  "C-e": "end",
  "C-p": "up",
  "C-n": "down",
  "C-h": "backspace",
  "C-d": "delete",
  "C-backspace": "A-backspace",
  "C-delete": "A-d",
};

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
  #rows: { text: string; width: number; rows: Row[] } | null = null;

  constructor(suggest: (text: string, cursor: number) => Suggestions | null = () => null) {
    this.#suggest = suggest;
  }

  /** The text as it is sent, pastes whole. */
  get value(): string {
    return this.text.replace(pasteChars, (char) => this.#pasted(char));
  }

  /** The text as it is shown, pastes as labels. */
  get label(): string {
    return this.text.replace(pasteChars, (char) => this.#labelOf(char));
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

  /** Takes a key. "submit": the text is to be sent; false: the key means nothing here. */
  press(key: Key): boolean | "submit" {
    if (key.type === "text") return this.#type(key.text);
    if (key.type === "paste") return this.#paste(key.text);
    if (key.type === "end") return false;
    if (key.name === "enter") return this.#enter(key.shift || key.alt);
    if (key.name === "tab" && !key.shift) return this.#complete();
    if (this.menu && (key.name === "up" || key.name === "down"))
      return this.#select(key.name === "up" ? -1 : 1);
    const name = `${key.ctrl ? "C-" : ""}${key.alt ? "A-" : ""}${key.name.toLowerCase()}`;
    return this.#command(name);
  }

  // ── Keys ──────────────────────────────────────────────────────────────────────────────────────

  #command(name: string): boolean {
    switch (aliases[name] ?? name) {
      case "left":
        return this.#moveTo(this.#before(this.cursor));
      case "right":
        return this.#moveTo(this.#after(this.cursor));
      case "A-left":
        return this.#moveTo(this.#wordBefore());
      case "A-right":
        return this.#moveTo(this.#wordAfter());
      case "home":
        return this.#moveTo(this.#lineStart());
      case "end":
        return this.#moveTo(this.#lineEnd());
      case "C-home":
        return this.#moveTo(0);
      case "C-end":
        return this.#moveTo(this.text.length);
      case "up":
        return this.#moveRow(-1);
      case "down":
        return this.#moveRow(1);
      default:
        return this.#change(aliases[name] ?? name);
    }
  }

  #change(name: string): boolean {
    switch (name) {
      case "C-j":
        return this.#insert("\n");
      case "backspace":
        return this.#replace(this.#before(this.cursor), this.cursor, "");
      case "delete":
        return this.#replace(this.cursor, this.#after(this.cursor), "");
      case "C-k":
        return this.#kill(
          this.cursor,
          Math.max(this.#lineEnd(), this.cursor + Number(this.text[this.cursor] === "\n")),
        );
      case "C-u":
        return this.#kill(this.#lineStart(), this.cursor);
      case "C-w":
        return this.#kill(this.cursor - this.#match(/\S*\s*$/), this.cursor);
      case "A-backspace":
        return this.#kill(this.#wordBefore(), this.cursor);
      case "A-d":
        return this.#kill(this.cursor, this.#wordAfter());
      case "C-y":
        return this.#insert(this.#killed);
      default:
        return false;
    }
  }

  #type(text: string): boolean {
    return this.#insert(text.replace(pasteChars, ""));
  }

  #paste(text: string): boolean {
    const clean = text.replace(pasteChars, "");
    const isLong = clean.length > longPaste.chars || clean.split("\n").length > longPaste.lines;
    if (!isLong || this.#pastes.length > 0xff) return this.#insert(clean);
    this.#pastes.push(clean);
    return this.#insert(String.fromCodePoint(firstPaste + this.#pastes.length - 1));
  }

  #enter(isNewline: boolean): boolean | "submit" {
    if (this.menu && this.menu.selected >= 0) return this.#accept(this.menu.selected);
    if (isNewline) return this.#insert("\n");
    if (this.text[this.cursor - 1] === "\\")
      return this.#replace(this.cursor - 1, this.cursor, "\n");
    return "submit";
  }

  #insert(text: string): boolean {
    return this.#replace(this.cursor, this.cursor, text);
  }

  #kill(start: number, end: number): boolean {
    if (end > start) this.#killed = this.text.slice(start, end);
    return this.#replace(start, end, "");
  }

  #replace(start: number, end: number, text: string): boolean {
    this.text = this.text.slice(0, start) + text + this.text.slice(end);
    this.cursor = start + text.length;
    const found = this.text ? this.#suggest(this.text, this.cursor) : null;
    this.menu = found && found.options.length > 0 ? { ...found, selected: -1 } : null;
    return true;
  }

  // ── Places ────────────────────────────────────────────────────────────────────────────────────

  #moveTo(cursor: number): boolean {
    this.cursor = cursor;
    this.menu = null;
    return true;
  }

  #before(at: number): number {
    const graphemes = graphemesOf(this.text.slice(Math.max(0, at - 64), at));
    return at - (graphemes.at(-1)?.length ?? 0);
  }

  #after(at: number): number {
    return at + (graphemesOf(this.text.slice(at, at + 64))[0]?.length ?? 0);
  }

  #match(pattern: RegExp): number {
    const before = this.text.slice(Math.max(0, this.cursor - reach), this.cursor);
    return pattern.exec(before)?.[0].length ?? 0;
  }

  #wordBefore(): number {
    return this.cursor - this.#match(/[\p{L}\p{N}\p{M}_]*[^\p{L}\p{N}\p{M}_]*$/u);
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
  #moveRow(step: -1 | 1): boolean {
    const rows = this.#layout();
    const at = this.#rowOfCursor(rows);
    const [from, to] = [rows[at], rows[at + step]];
    if (!from || !to) return this.#recall(this.#age - step);
    const column = widthOf(this.#show(this.text.slice(from.start, this.cursor)));
    let cursor = to.start;
    while (cursor < to.end) {
      const next = this.#after(cursor);
      if (widthOf(this.#show(this.text.slice(to.start, next))) > column) break;
      cursor = next;
    }
    return this.#moveTo(cursor);
  }

  #recall(age: number): boolean {
    if (age < 0 || age > this.history.length) return true;
    if (this.#age === 0) this.#draft = this.text;
    this.#age = age;
    const past = this.history.at(-age)?.replace(pasteChars, "") ?? "";
    const text = age === 0 ? this.#draft : past;
    this.#replace(0, this.text.length, text);
    this.menu = null;
    return true;
  }

  // ── Completion ────────────────────────────────────────────────────────────────────────────────

  /** Tab: the only one; else what all begin with; else the next of the list. */
  #complete(): boolean {
    if (!this.menu) this.#replace(this.cursor, this.cursor, "");
    const { menu } = this;
    if (!menu) return true;
    if (menu.options.length === 1) return this.#accept(0);
    const typed = this.text.slice(menu.start, this.cursor);
    const prefix = commonPrefix(menu.options.map(({ value }) => value));
    if (menu.selected < 0 && prefix.length > typed.length && prefix.startsWith(typed))
      return this.#replace(menu.start, this.cursor, prefix);
    return this.#select(1);
  }

  #select(step: number): boolean {
    if (!this.menu) return false;
    const { selected, options } = this.menu;
    const next = selected < 0 && step < 0 ? options.length - 1 : selected + step;
    this.menu.selected = (next + options.length) % options.length;
    return true;
  }

  #accept(index: number): boolean {
    const option = this.menu?.options[index];
    if (!this.menu || !option) return true;
    const space = option.value.endsWith("/") ? "" : " ";
    return this.#replace(this.menu.start, this.cursor, option.value + space);
  }

  // ── The picture ───────────────────────────────────────────────────────────────────────────────

  /** The rows around the cursor, at most `maxRows`, and the menu below them if there is room. */
  render(columns: number, maxRows: number): Frame {
    this.#width = Math.max(1, columns - 3);
    const rows = this.#layout();
    const at = this.#rowOfCursor(rows);
    const count = Math.min(rows.length, Math.max(1, maxRows));
    const first = Math.max(0, Math.min(at - Math.floor(count / 2), rows.length - count));
    const shown = rows.slice(first, first + count);
    const lines = shown.map((row, index) => {
      const isCut =
        (index === 0 && first > 0) || (index === count - 1 && first + count < rows.length);
      const gutter =
        first + index === 0 ? bold(cyan(glyphs.prompt)) : isCut ? dim(glyphs.more[0] ?? "") : " ";
      return `${gutter} ${this.#show(this.text.slice(row.start, row.end))}`;
    });
    if (!this.text && this.placeholder) lines[0] += dim(fit(this.placeholder, this.#width));
    const start = rows[at]?.start ?? 0;
    const column = 2 + widthOf(this.#show(this.text.slice(start, this.cursor)));
    lines.push(...this.#renderMenu(columns, maxRows - count));
    return { lines, row: at - first, column };
  }

  #renderMenu(columns: number, maxRows: number): string[] {
    const { menu } = this;
    if (!menu || maxRows < 1) return [];
    const count = Math.min(menu.options.length, maxRows, menuRows);
    const first = Math.max(0, Math.min(menu.selected - count + 1, menu.options.length - count));
    const width = Math.max(...menu.options.map(({ value }) => widthOf(value)));
    return menu.options.slice(first, first + count).map(({ value, note = "" }, index) => {
      const name = escapeText(value) + " ".repeat(Math.max(0, width - widthOf(value)));
      const line = fit(`  ${name}  ${escapeText(note)}`.trimEnd(), columns - 1);
      return first + index === menu.selected ? inverse(line) : dim(line);
    });
  }

  #layout(): Row[] {
    const { text } = this;
    const width = this.#width;
    if (this.#rows?.text !== text || this.#rows.width !== width)
      this.#rows = { text, width, rows: layOut(text, width, (part) => this.#show(part)) };
    return this.#rows.rows;
  }

  #rowOfCursor(rows: Row[]): number {
    const after = rows.findIndex(({ start }) => start > this.cursor);
    return after < 0 ? rows.length - 1 : after - 1;
  }

  #show(text: string): string {
    return expandTabs(escapeText(text.replace(pasteChars, (char) => this.#labelOf(char))));
  }

  #pasted(char: string): string {
    return this.#pastes[(char.codePointAt(0) ?? 0) - firstPaste] ?? "";
  }

  #labelOf(char: string): string {
    const text = this.#pasted(char);
    const lines = text.replace(/\n$/, "").split("\n").length;
    return `[pasted ${lines > 1 ? plural(lines, "line") : plural(text.length, "character")}]`;
  }
}

function commonPrefix(texts: string[]): string {
  const [first = "", ...rest] = texts;
  let length = first.length;
  for (const text of rest) while (!text.startsWith(first.slice(0, length))) length -= 1;
  return first.slice(0, length);
}
