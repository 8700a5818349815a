/**
 * The conversation in a terminal: what is typed becomes turns, steering, commands or shell commands,
 * and what a turn puts out becomes printed lines and the live area.
 *
 * Invariants: one thing runs at a time, in the order it was typed; what is typed meanwhile is shown
 * as queued and never lost; a key that was typed before a question appeared does not answer it; the
 * terminal is given back on every way out.
 */
import { runTurn } from "../agent/loop.ts";
import { openSession, type Session, type SessionOptions } from "../agent/session.ts";
import { config } from "../config.ts";
import { messageOf } from "../errors.ts";
import type { Answer, ImagePart, Mode, Output, Question, TextPart } from "../types.ts";
import { Activity, tickMs } from "./activity.ts";
import { renderQuestion, renderResult } from "./calls.ts";
import { type Desk, parseCommand, sessionOptions, suggestCommands } from "./commands.ts";
import { Editor } from "./editor.ts";
import { escapeLine, escapeText } from "./escape.ts";
import type { Key } from "./keys.ts";
import { composeLive, statusLine } from "./live.ts";
import {
  attach,
  personalCall,
  suggestFiles,
  toAttachment,
  withoutAttachments,
} from "./mentions.ts";
import type { Chat } from "./options.ts";
import { type Option, Picker } from "./picker.ts";
import { Renderer } from "./render.ts";
import { summaryOf } from "./report.ts";
import { bold, dim, glyphs, red } from "./style.ts";
import { type Frame, Terminal } from "./terminal.ts";

export type ReplOptions = Chat & {
  firstPrompt?: string;
  /** Printed below the greeting. */
  notice?: string;
};

/** Runs until the person leaves; resolves to the exit code. Throws UsageError before it began. */
export async function startRepl(options: ReplOptions): Promise<number> {
  return await new Repl(options).run();
}

/** What was typed and waits. `parts` are there once its mentions are read. */
type Queued = {
  kind: "prompt" | "shell" | "command";
  text: string;
  label: string;
  ready: Promise<Parts> | null;
  parts: Parts | null;
};
type Parts = { parts: (TextPart | ImagePart)[]; notes: string[] };

/** What takes the keys in place of the input. */
type Focus = {
  /** False: the key means nothing here. */
  press(key: Key): boolean;
  render(columns: number, rows: number): Frame;
  isQuestion: boolean;
};

const leaveWords = ["exit", "quit", ":q", ":q!", ":wq"];
/** Ctrl-C twice within this time leaves. */
const twiceMs = 2000;
/** A question takes no key while somebody is typing. */
const typingMs = 800;
/** How long a turn may take to end when the person leaves. */
const closeMs = 3000;

class Repl {
  #options: ReplOptions;
  #session: Session | null = null;
  #terminal: Terminal;
  #renderer: Renderer;
  #editor: Editor;
  #activity = new Activity();
  #queue: Queued[] = [];
  #pumping: Promise<void> | null = null;
  /** Interrupts what runs. */
  #running: AbortController | null = null;
  #focus: Focus | null = null;
  #asking: Promise<unknown> = Promise.resolve();
  /** Output of the person's own commands, for the model's next input. */
  #carried: TextPart[] = [];
  #typedAt = 0;
  #leaveAskedAt = -twiceMs;
  #left = Promise.withResolvers<number>();
  #isLeaving = false;

  constructor(options: ReplOptions) {
    this.#options = options;
    const { cwd } = options.session;
    this.#editor = new Editor(
      (text, cursor) =>
        suggestCommands(text, cursor, this.#session) ?? suggestFiles(text, cursor, cwd),
    );
    this.#editor.placeholder = "Ask for a change, or /help";
    this.#terminal = new Terminal({
      compose: (columns, rows) => this.#compose(columns, rows),
      onKey: (key) => this.#onKey(key),
    });
    this.#renderer = new Renderer({
      print: (lines) => this.#terminal.print(lines),
      columns: () => this.#terminal.columns,
      cwd,
      verbose: options.verbose,
      plain: options.args.flags.has("--no-markdown"),
    });
  }

  async run(): Promise<number> {
    const onSignal = (signal: NodeJS.Signals): void =>
      this.#leave(signal === "SIGTERM" ? 143 : 129);
    const onInterrupt = (): void => this.#onKey(ctrlC);
    this.#terminal.open();
    process.on("SIGTERM", onSignal).on("SIGHUP", onSignal).on("SIGINT", onInterrupt);
    try {
      this.#greet();
      await this.#begin();
      return await this.#left.promise;
    } finally {
      await this.#end();
      process.off("SIGTERM", onSignal).off("SIGHUP", onSignal).off("SIGINT", onInterrupt);
    }
  }

  // ── Beginning and end ─────────────────────────────────────────────────────────────────────────

  #greet(): void {
    const { notice, session } = this.#options;
    this.#renderer.block([
      `${bold(config.greeting)} ${dim(`${glyphs.bar} ${escapeLine(session.model.id)} ${glyphs.bar} ${escapeLine(session.cwd)}`)}`,
      ...(notice ? [escapeText(notice)] : []),
    ]);
  }

  async #begin(): Promise<void> {
    const { session, store, args, firstPrompt } = this.#options;
    const history = await store.history();
    this.#editor.history = [...history.map(withoutAttachments), ...this.#editor.history];
    const wantsPick = args.flags.has("--resume") && session.resume === undefined;
    const picked = wantsPick ? await this.#pickSession() : null;
    await this.#open(picked === null ? session : { ...session, resume: picked });
    if (firstPrompt) this.#submit(firstPrompt, firstPrompt, firstPrompt);
    void this.#pump();
  }

  async #pickSession(): Promise<string | null> {
    const { store, session } = this.#options;
    const sessions = await store.listSessions();
    if (sessions.length === 0) return null;
    return this.#choose("Go on with which session?", sessionOptions(sessions, session.cwd));
  }

  async #open(options: SessionOptions): Promise<void> {
    const session = await openSession(options);
    this.#session = session;
    this.#renderer.replay(session.events);
    for (const notice of session.notices) this.#say([dim(escapeLine(notice))]);
    this.#terminal.refresh();
  }

  async #reopen(changes: Pick<SessionOptions, "resume" | "fork">): Promise<void> {
    const old = this.#session;
    if (!old) return;
    const { model, mode } = old;
    await this.#open({
      ...this.#options.session,
      resume: undefined,
      fork: false,
      id: undefined,
      model,
      mode,
      ...changes,
    });
    await old.close();
    this.#carried = [];
    const { info } = this.#session ?? old;
    const what = changes.fork
      ? "A copy of the session"
      : changes.resume
        ? "Session"
        : "New session";
    this.#say([dim(`${what} ${info.id.slice(0, 8)}`)]);
  }

  #leave(code: number): void {
    if (this.#isLeaving) process.exit(code); // a second demand is not made to wait
    this.#isLeaving = true;
    this.#queue = [];
    this.#running?.abort();
    this.#left.resolve(code);
  }

  async #end(): Promise<void> {
    const session = this.#session;
    await Promise.race([this.#pumping, Bun.sleep(closeMs)]);
    if (session && session.events.length > 0)
      this.#say([dim(`claw --resume ${session.info.id} goes on from here.`)]);
    this.#terminal.close();
    await session?.close();
  }

  // ── Keys ──────────────────────────────────────────────────────────────────────────────────────

  #onKey(key: Key): void {
    if (key.type === "end") return this.#leave(129);
    const focus = this.#front();
    if (key.type === "key" && key.ctrl && key.name === "z") return this.#terminal.suspend();
    if (key.type === "key" && key.ctrl && key.name === "l") return this.#terminal.clearScreen();
    if (focus?.press(key) === false && focus.isQuestion) this.#edit(key);
    else if (!focus && !this.#control(key)) this.#edit(key);
    this.#terminal.refresh();
  }

  /** A question waits until nobody is in the middle of typing. */
  #front(): Focus | null {
    const isTyping = this.#editor.text !== "" && performance.now() - this.#typedAt < typingMs;
    return this.#focus?.isQuestion && isTyping ? null : this.#focus;
  }

  /** Keys that mean the same whatever is in the input. */
  #control(key: Key): boolean {
    if (key.type !== "key") return false;
    const { name, ctrl, shift } = key;
    if (ctrl && name === "c") this.#interruptOrLeave();
    else if (ctrl && name === "d" && !this.#editor.text) this.#leave(0);
    else if (name === "escape") return this.#escape();
    else if (name === "tab" && shift) this.#cycleMode();
    else if (name === "up" && !this.#editor.text && this.#queue.length > 0) this.#takeBack();
    else return false;
    return true;
  }

  #edit(key: Key): void {
    this.#typedAt = performance.now();
    if (this.#editor.press(key) !== "submit") return;
    const { value, label, text } = this.#editor;
    if (!value.trim()) return;
    this.#editor.clear(value);
    this.#submit(value, label, text);
  }

  #interruptOrLeave(): void {
    const now = performance.now();
    if (this.#running && !this.#running.signal.aborted) return this.#interrupt();
    if (this.#editor.text) return this.#editor.clear();
    if (now - this.#leaveAskedAt < twiceMs) return this.#leave(0);
    this.#leaveAskedAt = now;
    setTimeout(this.#terminal.refresh, twiceMs + 10).unref();
  }

  #escape(): boolean {
    if (this.#running) this.#interrupt();
    this.#editor.menu = null;
    return true;
  }

  #interrupt(): void {
    this.#running?.abort();
    this.#takeBack();
  }

  /** What is queued goes back into the input. */
  #takeBack(): void {
    if (this.#queue.length === 0) return;
    const texts = this.#queue.map(({ text }) => text);
    this.#queue = [];
    this.#editor.setText([...texts, this.#editor.value].filter(Boolean).join("\n"));
  }

  #cycleMode(): void {
    const session = this.#session;
    if (!session) return;
    const modes: Mode[] = ["ask", "edit", "read-only"];
    if (this.#options.session.mode === "unsafe") modes.push("unsafe");
    session.mode = modes[(modes.indexOf(session.mode) + 1) % modes.length] ?? "ask";
  }

  // ── What was typed ────────────────────────────────────────────────────────────────────────────

  /** `typed` is what the person wrote by hand: mentions in a paste are not followed. */
  #submit(text: string, label: string, typed: string): void {
    const line = text.trim();
    if (leaveWords.includes(line)) return this.#leave(0);
    const parsed = parseCommand(line, this.#session);
    if (parsed && "command" in parsed && parsed.command.isInstant && this.#session) {
      void this.#runCommand(line);
      return;
    }
    const kind = parsed ? "command" : line.startsWith("!") ? "shell" : "prompt";
    const item: Queued = { kind, text, label, ready: null, parts: null };
    if (kind === "prompt") item.ready = this.#prepare(item, typed);
    this.#queue.push(item);
    void this.#pump();
  }

  async #prepare(item: Queued, typed: string): Promise<Parts> {
    const { cwd } = this.#options.session;
    const hands = this.#session?.hands;
    const none: Parts = { parts: [], notes: [] };
    const signal = AbortSignal.timeout(30_000);
    const attached = hands
      ? await attach(typed, hands, cwd, signal).catch((error: unknown) => ({
          ...none,
          notes: [messageOf(error)],
        }))
      : none;
    item.parts = { ...attached, parts: [{ type: "text", text: item.text }, ...attached.parts] };
    return item.parts;
  }

  /** Works the queue off; one at a time. */
  #pump(): Promise<void> {
    this.#pumping ??= this.#drain().finally(() => {
      this.#pumping = null;
    });
    return this.#pumping;
  }

  async #drain(): Promise<void> {
    while (this.#session && !this.#isLeaving) {
      const item = this.#queue.shift();
      if (!item) return;
      if (item.kind === "command") await this.#runCommand(item.text.trim());
      else if (item.kind === "shell") await this.#runShell(item.text.trim().slice(1).trim());
      else await this.#runPrompt(item);
    }
  }

  /** Echoes an input and returns it as it is sent. */
  #send(item: Queued, { parts, notes }: Parts): (TextPart | ImagePart)[] {
    this.#renderer.echo(item.label);
    if (notes.length > 0)
      this.#terminal.print(notes.map((note) => dim(`  ${glyphs.result} ${escapeLine(note)}`)));
    const carried = this.#carried.splice(0);
    return [...parts, ...carried];
  }

  /** Runs `job` with a spinner, until it ends or is interrupted. Errors are printed; null then. */
  async #work<T>(label: string, job: (signal: AbortSignal) => Promise<T>): Promise<T | null> {
    const controller = new AbortController();
    const outer = this.#running;
    this.#running = controller;
    const tokens = this.#session ? summaryOf(this.#session).tokens : 0;
    this.#activity.start(label, performance.now(), tokens);
    const tick = setInterval(this.#terminal.refresh, tickMs);
    try {
      return await job(controller.signal);
    } catch (error) {
      this.#say([
        controller.signal.aborted ? dim("Interrupted.") : red(escapeText(messageOf(error))),
      ]);
      return null;
    } finally {
      clearInterval(tick);
      this.#activity.stop();
      this.#running = outer;
      this.#terminal.refresh();
    }
  }

  async #runPrompt(item: Queued): Promise<void> {
    const session = this.#session;
    if (!session) return;
    const { maxTurns, maxBudgetUsd, fallback } = this.#options;
    await this.#work("Waiting for the model", async (signal) => {
      const ready = item.parts ?? (await this.#prepare(item, item.text));
      return runTurn(session, this.#send(item, ready), {
        maxTurns,
        maxBudgetUsd,
        fallback,
        signal,
        emit: (output) => this.#emit(output),
        ask: (question, asked) => this.#ask(question, asked),
        takeSteering: () => this.#takeSteering(),
      });
    });
  }

  #emit(output: Output): void {
    this.#renderer.take(output);
    this.#activity.take(output, performance.now(), (id) => this.#renderer.titleOf(id));
    this.#terminal.refresh();
  }

  /** The prompts at the head of the queue; a command there waits for the turn's end. */
  #takeSteering(): (TextPart | ImagePart)[][] {
    const taken: (TextPart | ImagePart)[][] = [];
    for (let item = this.#queue[0]; item?.kind === "prompt" && item.parts; item = this.#queue[0]) {
      this.#queue.shift();
      taken.push(this.#send(item, item.parts));
    }
    return taken;
  }

  async #runShell(command: string): Promise<void> {
    const session = this.#session;
    if (!command || !session) return;
    this.#renderer.echo(`!${command}`);
    const call = personalCall("Bash", { command });
    const output = await this.#work(`Running ${escapeLine(command)}`, (signal) =>
      session.hands.run(call, signal),
    );
    if (!output) return;
    const result = {
      type: "tool_result" as const,
      id: call.id,
      name: call.name,
      isError: false,
      ...output,
    };
    const view = { cwd: session.info.cwd, columns: this.#terminal.columns, verbose: true };
    this.#terminal.print(renderResult(call, result, view, false).slice(1));
    this.#carried.push(toAttachment("command", command, output.content));
  }

  async #runCommand(line: string): Promise<void> {
    const session = this.#session;
    const parsed = parseCommand(line, session);
    if (!parsed || !session) return;
    this.#renderer.echo(line);
    if ("unknown" in parsed) return this.#say([parsed.unknown]);
    try {
      await parsed.command.run(this.#desk(session), parsed.argument);
    } catch (error) {
      this.#say([red(escapeText(messageOf(error)))]);
    }
  }

  #desk(session: Session): Desk {
    return {
      session,
      options: this.#options.session,
      columns: this.#terminal.columns,
      say: (lines) => this.#say(lines),
      choose: (title, options) => this.#choose(title, options),
      ask: (prompt) => this.#submit(prompt, prompt, prompt),
      reopen: (changes) => this.#reopen(changes),
      work: (label, job) => this.#work(label, job),
      leave: () => this.#leave(0),
    };
  }

  #say(lines: string[]): void {
    this.#renderer.block(lines);
  }

  // ── Questions ─────────────────────────────────────────────────────────────────────────────────

  #choose<T>(title: string, options: Option<T>[], signal?: AbortSignal): Promise<T | null> {
    const { promise, resolve } = Promise.withResolvers<T | null>();
    const picker = new Picker(title, options, resolve);
    return this.#focusOn(picker, promise, resolve, signal);
  }

  /** Lets `view` take the keys until `promise` is settled; an abort settles it with null. */
  async #focusOn<T>(
    view: Pick<Focus, "press" | "render">,
    promise: Promise<T | null>,
    settle: (value: null) => void,
    signal?: AbortSignal,
  ): Promise<T | null> {
    const focus: Focus = {
      press: (key) => view.press(key),
      render: (columns, rows) => view.render(columns, rows),
      isQuestion: signal !== undefined,
    };
    const onAbort = (): void => settle(null);
    signal?.addEventListener("abort", onAbort, { once: true });
    if (signal?.aborted) settle(null);
    this.#focus = focus;
    this.#terminal.refresh();
    try {
      return await promise;
    } finally {
      signal?.removeEventListener("abort", onAbort);
      if (this.#focus === focus) this.#focus = null;
      this.#terminal.refresh();
    }
  }

  /** One question at a time. */
  #ask(question: Question, signal: AbortSignal): Promise<Answer> {
    const answer = this.#asking.then(() => this.#askNow(question, signal));
    this.#asking = answer.catch(() => null); // the turn gets the error; the next question goes on
    return answer;
  }

  async #askNow(question: Question, signal: AbortSignal): Promise<Answer> {
    const refused: Answer = { allow: false, interrupt: true };
    if (signal.aborted) return refused;
    const { cwd } = this.#options.session;
    const view = { cwd, columns: this.#terminal.columns, verbose: true };
    this.#say(renderQuestion(question, view));
    if (question.patch) this.#renderer.markSeen(question.call.id);
    const { suggestion } = question.verdict;
    const word = await this.#choose(
      "Go ahead?",
      [
        { label: "yes", value: "yes", key: "y" },
        ...(suggestion
          ? [
              {
                label: `yes, and remember ${suggestion} for this workspace`,
                value: "always",
                key: "a",
              },
            ]
          : []),
        { label: "no, and say why", value: "no", key: "n" },
      ],
      signal,
    );
    if (word === null) return refused;
    if (word === "yes") return { allow: true };
    if (word === "always") return { allow: true, remember: suggestion };
    const why = await this.#askWhy(signal);
    if (why === null) return refused;
    return { allow: false, message: why ? `The person said no: ${why}` : "The person said no." };
  }

  #askWhy(signal: AbortSignal): Promise<string | null> {
    const { promise, resolve } = Promise.withResolvers<string | null>();
    const editor = new Editor();
    editor.placeholder = "Why not, or what instead? Enter sends it";
    const press = (key: Key): boolean => {
      const isLeaving =
        key.type === "key" && (key.name === "escape" || (key.ctrl && key.name === "c"));
      if (isLeaving) resolve(null);
      else if (editor.press(key) === "submit") resolve(editor.value.trim());
      return true;
    };
    const render = (columns: number, rows: number): Frame => editor.render(columns, rows);
    return this.#focusOn({ press, render }, promise, resolve, signal);
  }

  // ── The live area ─────────────────────────────────────────────────────────────────────────────

  #compose(columns: number, rows: number): Frame {
    const now = performance.now();
    const front = this.#front();
    return composeLive(columns, rows, {
      tail: (max) => this.#renderer.tail(columns, max),
      spinner: this.#focus ? null : this.#activity.line(now, columns),
      queued: this.#queue.map(({ label }) => label),
      written: front?.isQuestion ? this.#editor.label : "",
      input: front ?? this.#editor,
      status:
        now - this.#leaveAskedAt < twiceMs
          ? dim("Ctrl-C again leaves")
          : statusLine(this.#session, this.#options.session, columns),
    });
  }
}

const ctrlC: Key = { type: "key", name: "c", ctrl: true, alt: false, shift: false };
