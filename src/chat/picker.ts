/**
 * A list to choose from, in the place of the input: arrows and Enter, a single key where an option
 * has one, or typing to filter. State and picture only, like the editor.
 */
import { escapeLine } from "./escape.ts";
import type { Key } from "./keys.ts";
import { bold, cyan, dim, fit, glyphs, wrap } from "./style.ts";
import type { Frame } from "./terminal.ts";

export type Option<T> = { label: string; value: T; note?: string; key?: string };

export class Picker<T> {
  #title: string;
  #options: Option<T>[];
  /** What was typed to filter; null where options are chosen by their keys. */
  #filter: string | null;
  #selected = 0;
  #done: (value: T | null) => void;

  /** `done` gets the chosen value, or null when the person left. */
  constructor(title: string, options: Option<T>[], done: (value: T | null) => void) {
    this.#title = title;
    this.#options = options;
    this.#filter = options.some(({ key }) => key) ? null : "";
    this.#done = done;
  }

  /** False: the key means nothing here. */
  press(key: Key): boolean {
    if (key.type === "text" || (key.type === "paste" && this.#filter !== null))
      return this.#type(key.text);
    if (key.type !== "key") return false;
    const name = key.ctrl ? `C-${key.name}` : key.name;
    const shown = this.#shown();
    const chosen = shown[this.#selected];
    if (name === "up" || name === "C-p") this.#move(-1, shown.length);
    else if (name === "down" || name === "C-n" || name === "tab") this.#move(1, shown.length);
    else if (name === "backspace") this.#setFilter(this.#filter?.slice(0, -1));
    else if (name === "escape" || name === "C-c" || name === "C-d") this.#done(null);
    else if (name === "enter" && chosen) this.#done(chosen.value);
    return true;
  }

  #type(text: string): boolean {
    if (this.#filter !== null) {
      this.#setFilter(this.#filter + text);
      return true;
    }
    const option = this.#options.find(({ key }) => key === text.toLowerCase());
    if (option) this.#done(option.value);
    return option !== undefined;
  }

  #setFilter(filter: string | undefined): void {
    if (this.#filter === null || filter === undefined) return;
    this.#filter = filter;
    this.#selected = 0;
  }

  #move(step: number, count: number): void {
    if (count > 0) this.#selected = (this.#selected + step + count) % count;
  }

  #shown(): Option<T>[] {
    const words = (this.#filter ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    return this.#options.filter(({ label, note = "" }) => {
      const text = `${label} ${note}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  render(columns: number, maxRows: number): Frame {
    const head = this.#filter === null ? this.#title : `${this.#title} ${dim("(type to filter)")} `;
    const lines = [fit(bold(head) + escapeLine(this.#filter ?? ""), columns - 1)];
    const shown = this.#shown();
    const blocks = shown.map((option, index) => this.#renderOption(option, index, columns));
    let [first, last] = [this.#selected, this.#selected];
    let height = blocks[first]?.length ?? 0;
    for (let grown = true; grown;) {
      grown = false;
      for (const next of [last + 1, first - 1]) {
        const added = blocks[next]?.length ?? Infinity;
        if (height + added >= maxRows) continue;
        [first, last, grown] = [Math.min(first, next), Math.max(last, next), true];
        height += added;
      }
    }
    lines.push(...blocks.slice(first, last + 1).flat());
    if (shown.length === 0) lines.push(dim("  nothing matches; Esc leaves"));
    return { lines, row: 0, column: Math.min(Bun.stringWidth(lines[0] ?? ""), columns - 1) };
  }

  #renderOption({ label, note, key }: Option<T>, index: number, columns: number): string[] {
    const isSelected = index === this.#selected;
    const mark = isSelected ? cyan(glyphs.prompt) : " ";
    if (key) {
      const rows = wrap(escapeLine(label), columns - 8);
      return rows.map(
        (row, at) =>
          `${at === 0 ? mark : " "} ${at === 0 ? dim(`${key})`) : "  "} ${isSelected ? bold(row) : row}`,
      );
    }
    const text = `${escapeLine(label)}${note ? `  ${dim(escapeLine(note))}` : ""}`;
    return [fit(`${mark} ${isSelected ? bold(text) : text}`, columns - 1)];
  }
}
