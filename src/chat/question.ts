/**
 * What stands in the place of the input while the person is asked something: a list to choose from
 * (arrows and Enter, a key where an option has one, or typing to filter), or the reason for a no.
 * One at a time; an abort settles it with null.
 */
import type { Answer, Question } from "../types.ts";
import { Editor } from "./editor.ts";
import { escapeLine } from "../escape.ts";
import type { Key } from "./keys.ts";
import { bold, cyan, dim, fit, glyphs, widthOf, wrap } from "./style.ts";
import type { Frame } from "./terminal.ts";

export type Option<T> = { label: string; value: T; note?: string; key?: string };

type View = {
  /** False: the key means nothing here. */
  press(key: Key): boolean;
  render(columns: number, maxRows: number): Frame;
};

export class Asker {
  /** The last one takes the keys. `isAgents`: the person may be in the middle of typing. */
  #views: { view: View; isAgents: boolean }[] = [];
  #refresh: () => void;
  #last: Promise<unknown> = Promise.resolve();

  /** `refresh` is called when the view changes. */
  constructor(refresh: () => void) {
    this.#refresh = refresh;
  }

  /** What takes the keys, or undefined. */
  get front(): { view: View; isAgents: boolean } | undefined {
    return this.#views.at(-1);
  }

  choose<T>(title: string, options: Option<T>[], signal?: AbortSignal): Promise<T | null> {
    return this.#show<T>((done) => new Picker(title, options, done), signal);
  }

  /** Puts a question about a call; `show` prints what it is about when its turn has come. */
  ask(question: Question, signal: AbortSignal, show: () => void): Promise<Answer> {
    const answer = this.#last.then(() => {
      if (!signal.aborted) show();
      return this.#askNow(question, signal);
    });
    this.#last = answer.catch(() => null); // whoever asked gets the error; the next one goes on
    return answer;
  }

  async #askNow({ verdict: { suggestion } }: Question, signal: AbortSignal): Promise<Answer> {
    const always = `yes, and remember ${suggestion} for this workspace`;
    const options: Option<Answer>[] = [
      { label: "yes", value: { allow: true }, key: "y" },
      { label: always, value: { allow: true, remember: suggestion }, key: "a" },
      { label: "no, and say why", value: { allow: false }, key: "n" },
    ];
    const offered = options.filter(({ key }) => suggestion || key !== "a");
    const answer = await this.choose("Go ahead?", offered, signal);
    if (answer?.allow) return answer;
    const why = answer && (await this.#askWhy(signal));
    if (why === null) return { allow: false, interrupt: true };
    return { allow: false, message: why ? `The person said no: ${why}` : "The person said no." };
  }

  #askWhy(signal: AbortSignal): Promise<string | null> {
    const editor = new Editor();
    editor.placeholder = "Why not, or what instead? Enter sends it";
    const render = (columns: number, maxRows: number) => editor.render(columns, maxRows);
    return this.#show<string>((done) => {
      const press = (key: Key): boolean => {
        if (isLeaving(key)) done(null);
        else if (editor.press(key)) done(editor.value.trim());
        return true;
      };
      return { press, render };
    }, signal);
  }

  async #show<T>(
    open: (done: (value: T | null) => void) => View,
    signal?: AbortSignal,
  ): Promise<T | null> {
    const { promise, resolve } = Promise.withResolvers<T | null>();
    const onAbort = (): void => resolve(null);
    signal?.addEventListener("abort", onAbort);
    if (signal?.aborted) onAbort();
    const shown = { view: open(resolve), isAgents: signal !== undefined };
    this.#views.push(shown);
    this.#refresh();
    try {
      return await promise;
    } finally {
      signal?.removeEventListener("abort", onAbort);
      this.#views = this.#views.filter((one) => one !== shown);
      this.#refresh();
    }
  }
}

const isLeaving = (key: Key): boolean => key.type === "key" && ["escape", "C-c"].includes(key.name);

export class Picker<T> implements View {
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

  press(key: Key): boolean {
    if (key.type === "end") return false;
    if (key.type !== "key") return this.#filter === null ? this.#pick(key) : this.#search(key.text);
    const shown = this.#shown();
    const chosen = shown[this.#selected];
    const { name } = key;
    if (isLeaving(key) || name === "C-d") this.#done(null);
    else if (name === "up" || name === "C-p") this.#move(-1, shown.length);
    else if (name === "down" || name === "C-n" || name === "tab") this.#move(1, shown.length);
    else if (name === "enter" && chosen) this.#done(chosen.value);
    else if (name === "backspace" && this.#filter) {
      this.#filter = this.#filter.slice(0, -1);
      this.#selected = 0;
    }
    return true;
  }

  #pick({ type, text }: { type: "text" | "paste"; text: string }): boolean {
    const option = this.#options.find(({ key }) => type === "text" && key === text.toLowerCase());
    if (option) this.#done(option.value);
    return option !== undefined;
  }

  #search(text: string): boolean {
    this.#filter += text;
    this.#selected = 0;
    return true;
  }

  #move(step: number, count: number): void {
    if (count > 0) this.#selected = (this.#selected + step + count) % count;
  }

  /** The options that hold every word of the filter. */
  #shown(): Option<T>[] {
    const words = (this.#filter ?? "").toLowerCase().split(/\s+/);
    return this.#options.filter(({ label, note = "" }) =>
      words.every((word) => `${label} ${note}`.toLowerCase().includes(word)),
    );
  }

  render(columns: number, maxRows: number): Frame {
    const hint = this.#filter === null ? "" : ` ${dim("(type to filter)")} `;
    const head = fit(bold(this.#title) + hint + escapeLine(this.#filter ?? ""), columns - 1);
    const blocks = this.#shown().map((option, index) => this.#renderOption(option, index, columns));
    const rows = blocks.flat();
    const end = blocks.slice(0, this.#selected + 1).flat().length;
    const room = Math.max(1, maxRows - 1);
    const first = Math.max(0, Math.min(end - Math.ceil(room / 2), rows.length - room), end - room);
    const lines = [head, ...rows.slice(first, first + room)];
    if (rows.length === 0) lines.push(dim("  nothing matches; Esc leaves"));
    return { lines, row: 0, column: widthOf(head) };
  }

  #renderOption({ label, note = "", key }: Option<T>, index: number, columns: number): string[] {
    const isSelected = index === this.#selected;
    const paint = isSelected ? bold : String;
    const mark = isSelected ? cyan(glyphs.prompt) : " ";
    if (!key) {
      const text = `${escapeLine(label)}  ${dim(escapeLine(note))}`;
      return [fit(`${mark} ${paint(text)}`, columns - 1)];
    }
    const rows = wrap(escapeLine(label), columns - 8);
    return rows.map(
      (row, at) => `${at === 0 ? `${mark} ${dim(`${key})`)}` : "    "} ${paint(row)}`,
    );
  }
}
