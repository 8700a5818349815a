/**
 * What stands in the place of the input while the person is asked something: a choice, or the reason
 * for a no. One at a time; an abort settles it with null.
 */
import type { Answer, Question } from "../types.ts";
import { Editor } from "./editor.ts";
import type { Key } from "./keys.ts";
import { type Option, Picker } from "./picker.ts";
import type { Frame } from "./terminal.ts";

type View = {
  /** False: the key means nothing here. */
  press: (key: Key) => boolean;
  render: (columns: number, maxRows: number) => Frame;
  /** The agent asks, not a command: the person may be in the middle of typing. */
  isAgents: boolean;
};

export class Asker {
  /** The last one takes the keys. */
  #views: View[] = [];
  #refresh: () => void;
  #last: Promise<unknown> = Promise.resolve();

  /** `refresh` is called when the view changes. */
  constructor(refresh: () => void) {
    this.#refresh = refresh;
  }

  /** What takes the keys, or null. */
  get view(): View | null {
    return this.#views.at(-1) ?? null;
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

  async #askNow({ verdict }: Question, signal: AbortSignal): Promise<Answer> {
    const { suggestion } = verdict;
    const always = `yes, and remember ${suggestion} for this workspace`;
    const options: Option<"yes" | "always" | "no">[] = [
      { label: "yes", value: "yes", key: "y" },
      ...(suggestion ? [{ label: always, value: "always" as const, key: "a" }] : []),
      { label: "no, and say why", value: "no", key: "n" },
    ];
    const word = await this.choose("Go ahead?", options, signal);
    if (word === "yes") return { allow: true };
    if (word === "always") return { allow: true, remember: suggestion };
    const why = word === "no" ? await this.#askWhy(signal) : null;
    if (why === null) return { allow: false, interrupt: true };
    return { allow: false, message: why ? `The person said no: ${why}` : "The person said no." };
  }

  #askWhy(signal: AbortSignal): Promise<string | null> {
    const editor = new Editor();
    editor.placeholder = "Why not, or what instead? Enter sends it";
    return this.#show<string>((done) => {
      const press = (key: Key): boolean => {
        if (key.type === "key" && (key.name === "escape" || (key.ctrl && key.name === "c")))
          done(null);
        else if (editor.press(key) === "submit") done(editor.value.trim());
        return true;
      };
      return { press, render: (columns, maxRows) => editor.render(columns, maxRows) };
    }, signal);
  }

  async #show<T>(
    open: (done: (value: T | null) => void) => {
      press(key: Key): boolean;
      render(columns: number, maxRows: number): Frame;
    },
    signal?: AbortSignal,
  ): Promise<T | null> {
    const { promise, resolve } = Promise.withResolvers<T | null>();
    const opened = open(resolve);
    const view: View = {
      press: (key) => opened.press(key),
      render: (columns, maxRows) => opened.render(columns, maxRows),
      isAgents: signal !== undefined,
    };
    const onAbort = (): void => resolve(null);
    signal?.addEventListener("abort", onAbort, { once: true });
    if (signal?.aborted) resolve(null);
    this.#views.push(view);
    this.#refresh();
    try {
      return await promise;
    } finally {
      signal?.removeEventListener("abort", onAbort);
      this.#views = this.#views.filter((one) => one !== view);
      this.#refresh();
    }
  }
}
