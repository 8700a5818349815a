/**
 * All that a person sees of the conversation: the terminal with its live area, what is printed, what
 * is asked, and the line that says what goes on. Knows no session: it is handed what to show.
 */
import type { Answer, Output, Question } from "../types.ts";
import { Activity, tickMs } from "./activity.ts";
import { renderQuestion } from "./calls.ts";
import { Editor } from "./editor.ts";
import type { Key } from "./keys.ts";
import { composeLive, type Live } from "./live.ts";
import { Asker } from "./question.ts";
import { Renderer } from "./render.ts";
import { type Frame, Terminal } from "./terminal.ts";

export type ScreenOptions = {
  /** The workspace. */
  cwd: () => string;
  verbose: boolean;
  plain: boolean;
  suggest: ConstructorParameters<typeof Editor>[0];
  onKey: (key: Key) => void;
  /** What stands around the input. */
  surroundings: (columns: number) => Pick<Live, "queued" | "status">;
};

/** A question takes no key while somebody is typing. */
const typingMs = 800;

export class Screen {
  readonly editor: Editor;
  readonly terminal: Terminal;
  readonly renderer: Renderer;
  readonly asker: Asker;
  #options: ScreenOptions;
  #activity = new Activity();
  #typedAt = 0;

  constructor(options: ScreenOptions) {
    this.#options = options;
    const { cwd, verbose, plain, onKey } = options;
    this.editor = new Editor(options.suggest);
    this.editor.placeholder = "Ask for a change, or /help";
    this.terminal = new Terminal({ compose: (...size) => this.#compose(...size), onKey });
    this.asker = new Asker(this.terminal.refresh);
    this.renderer = new Renderer({
      print: (lines) => this.terminal.print(lines),
      columns: () => this.terminal.columns,
      cwd,
      verbose,
      plain,
    });
  }

  /** Prints a block of escaped lines that is no part of the turn. */
  say = (lines: string[]): void => this.renderer.insert(lines);

  /** What a turn puts out. */
  take(output: Output): void {
    this.renderer.take(output);
    this.#activity.take(output, performance.now(), (id) => this.renderer.titleOf(id));
    this.terminal.refresh();
  }

  /** Shows what goes on until it is disposed of. `tokens` is the size of the next request. */
  spin(label: string, tokens: number): Disposable {
    this.#activity.start(label, performance.now(), tokens);
    const tick = setInterval(this.terminal.refresh, tickMs);
    return {
      [Symbol.dispose]: () => {
        clearInterval(tick);
        this.#activity.stop();
        this.terminal.refresh();
      },
    };
  }

  /** A key for the input; "submit" where the text is to be sent. */
  type(key: Key): boolean | "submit" {
    this.#typedAt = performance.now();
    return this.editor.press(key);
  }

  /** What stands in the place of the input; the agent's question waits while somebody is typing. */
  get front(): Asker["view"] {
    const isTyping = this.editor.text !== "" && performance.now() - this.#typedAt < typingMs;
    const { view } = this.asker;
    return view?.isAgents && isTyping ? null : view;
  }

  ask(question: Question, signal: AbortSignal): Promise<Answer> {
    return this.asker.ask(question, signal, () => {
      const view = { cwd: this.#options.cwd(), columns: this.terminal.columns, verbose: true };
      this.renderer.block(renderQuestion(question, view));
      if (question.patch) this.renderer.markSeen(question.call.id);
    });
  }

  #compose(columns: number, rows: number): Frame {
    const { front } = this;
    return composeLive(columns, rows, {
      ...this.#options.surroundings(columns),
      tail: (max) => this.renderer.tail(columns, max),
      spinner: this.asker.view ? null : this.#activity.line(performance.now(), columns),
      input: front ?? this.editor,
      written: front?.isAgents ? this.editor.label : "",
    });
  }
}
