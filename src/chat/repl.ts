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
import type { Answer, ImagePart, Mode, Question, TextPart } from "../types.ts";
import { renderResult } from "./calls.ts";
import { type Desk, isInstant, parseCommand, sessionOptions, suggestCommands } from "./commands.ts";
import { escapeLine, escapeText } from "./escape.ts";
import { FileIndex } from "./files.ts";
import type { Key } from "./keys.ts";
import { statusLine } from "./live.ts";
import { attach, personalCall, toAttachment, withoutAttachments } from "./mentions.ts";
import type { Chat } from "./options.ts";
import { type Prepared, Queue, type Queued } from "./queue.ts";
import { summaryOf } from "./report.ts";
import { Screen } from "./screen.ts";
import { bold, dim, glyphs, red } from "./style.ts";

export type ReplOptions = Chat & {
  firstPrompt?: string;
  /** Printed below the greeting. */
  notice?: string;
};

/** Runs until the person leaves; resolves to the exit code. Throws UsageError before it began. */
export async function startRepl(options: ReplOptions): Promise<number> {
  return await new Repl(options).run();
}

const leaveWords = ["exit", "quit", ":q", ":q!", ":wq"];
/** Ctrl-C twice within this time leaves. */
const twiceMs = 2000;
/** How long a turn may take to end when the person leaves. */
const closeMs = 3000;
/** How long reading what a prompt mentions may take. */
const attachMs = 30_000;

class Repl {
  #options: ReplOptions;
  #session: Session | null = null;
  #files: FileIndex | null = null;
  #screen: Screen;
  #queue = new Queue();
  #pumping: Promise<void> | null = null;
  /** Interrupts what runs. */
  #running: AbortController | null = null;
  /** Output of the person's own commands, for the model's next input. */
  #carried: TextPart[] = [];
  #leaveAskedAt = -twiceMs;
  #left = Promise.withResolvers<number>();
  #isLeaving = false;
  #opened = Promise.withResolvers<void>();

  constructor(options: ReplOptions) {
    this.#options = options;
    this.#screen = new Screen({
      cwd: () => this.#cwd,
      verbose: options.verbose,
      plain: options.args.flags.has("--no-markdown"),
      suggest: (text, cursor) =>
        suggestCommands(text, cursor, this.#session) ?? this.#files?.suggest(text, cursor) ?? null,
      onKey: (key) => this.#onKey(key),
      surroundings: (columns) => ({ queued: this.#queue.labels, status: this.#status(columns) }),
    });
  }

  get #cwd(): string {
    return this.#session?.info.cwd ?? this.#options.session.cwd;
  }

  async run(): Promise<number> {
    const onSignal = (signal: NodeJS.Signals): void =>
      this.#leave(signal === "SIGTERM" ? 143 : 129);
    const onInterrupt = (): void => this.#onKey(ctrlC);
    this.#greet();
    this.#screen.terminal.open();
    process.on("SIGTERM", onSignal).on("SIGHUP", onSignal).on("SIGINT", onInterrupt);
    try {
      await Promise.race([this.#begin(), this.#left.promise]);
      return await this.#left.promise;
    } finally {
      await this.#end();
      process.off("SIGTERM", onSignal).off("SIGHUP", onSignal).off("SIGINT", onInterrupt);
    }
  }

  // ── Beginning and end ─────────────────────────────────────────────────────────────────────────

  #greet(): void {
    const { notice, session } = this.#options;
    this.#screen.renderer.block([
      `${bold(config.greeting)} ${dim(`${glyphs.bar} ${escapeLine(session.model.id)} ${glyphs.bar} ${escapeLine(session.cwd)}`)}`,
      ...(notice ? [escapeText(notice)] : []),
    ]);
  }

  async #begin(): Promise<void> {
    const { session, store, args, firstPrompt } = this.#options;
    const history = await store.history();
    const { editor } = this.#screen;
    editor.history = [...history.map(withoutAttachments), ...editor.history];
    const isPicked = args.flags.has("--resume") && session.resume === undefined;
    const resume = isPicked ? await this.#pickSession() : session.resume;
    if (resume === null) return this.#leave(0);
    await this.#open({ ...session, resume });
    if (firstPrompt) this.#submit(firstPrompt, firstPrompt, firstPrompt);
    this.#pump();
  }

  /** The session that the person picks; undefined where there is none yet, null where they left. */
  async #pickSession(): Promise<string | null | undefined> {
    const { store, session } = this.#options;
    const sessions = await store.listSessions();
    if (sessions.length === 0) return undefined;
    const options = sessionOptions(sessions, session.cwd);
    return this.#screen.asker.choose("Go on with which session?", options);
  }

  async #open(options: SessionOptions): Promise<void> {
    const session = await openSession(options);
    this.#session = session;
    this.#opened.resolve();
    const { id, title, cwd } = session.info;
    this.#files = new FileIndex(cwd);
    const where = cwd === options.cwd ? "" : ` in ${cwd}`;
    if (title) this.#screen.say([dim(escapeLine(`Session ${id.slice(0, 8)}${where}: ${title}`))]);
    this.#screen.renderer.replay(session.events);
    for (const notice of session.notices) this.#screen.say([dim(escapeLine(notice))]);
    this.#screen.terminal.refresh();
  }

  async #reopen(changes: Pick<SessionOptions, "resume" | "fork">): Promise<void> {
    const old = this.#session;
    if (!old) return;
    const { model, mode } = old;
    const fresh = { resume: undefined, fork: false, id: undefined };
    await this.#open({ ...this.#options.session, ...fresh, model, mode, ...changes });
    this.#carried = [];
    await old.close();
  }

  #leave(code: number): void {
    if (this.#isLeaving) process.exit(code); // a second demand is not made to wait
    this.#isLeaving = true;
    this.#queue.takeBack();
    this.#running?.abort();
    this.#left.resolve(code);
  }

  async #end(): Promise<void> {
    const session = this.#session;
    const limit = Promise.withResolvers<void>();
    const timer = setTimeout(limit.resolve, closeMs);
    await Promise.race([this.#pumping, limit.promise]);
    clearTimeout(timer);
    if (session && session.events.length > 0)
      this.#screen.say([dim(`claw --resume ${session.info.id} goes on from here.`)]);
    this.#screen.terminal.close();
    await session?.close();
  }

  // ── Keys ──────────────────────────────────────────────────────────────────────────────────────

  #onKey(key: Key): void {
    if (key.type === "end") return this.#leave(129);
    if (key.type === "key" && key.ctrl && key.name === "z") return this.#screen.terminal.suspend();
    if (key.type === "key" && key.ctrl && key.name === "l")
      return this.#screen.terminal.clearScreen();
    const { front } = this.#screen;
    const isTaken = front ? front.press(key) || !front.isAgents : this.#control(key);
    if (!isTaken) this.#edit(key);
    this.#screen.terminal.refresh();
  }

  /** Keys that mean the same whatever is in the input. */
  #control(key: Key): boolean {
    if (key.type !== "key") return false;
    const { name, ctrl, shift } = key;
    if (ctrl && name === "c") this.#interruptOrLeave();
    else if (ctrl && name === "d" && !this.#screen.editor.text) this.#leave(0);
    else if (name === "escape") return this.#escape();
    else if (name === "tab" && shift) this.#cycleMode();
    else if (name === "up" && !this.#screen.editor.text && !this.#queue.isEmpty) this.#takeBack();
    else return false;
    return true;
  }

  #edit(key: Key): void {
    if (this.#screen.type(key) !== "submit") return;
    const { value, label, text } = this.#screen.editor;
    if (!value.trim()) return;
    this.#screen.editor.clear(value);
    this.#submit(value, label, text);
  }

  #interruptOrLeave(): void {
    const now = performance.now();
    if (this.#running && !this.#running.signal.aborted) return this.#interrupt();
    if (this.#screen.editor.text) return this.#screen.editor.clear();
    if (now - this.#leaveAskedAt < twiceMs) return this.#leave(0);
    this.#leaveAskedAt = now;
    setTimeout(this.#screen.terminal.refresh, twiceMs + 10).unref();
  }

  #escape(): boolean {
    if (this.#running) this.#interrupt();
    this.#screen.editor.menu = null;
    return true;
  }

  #interrupt(): void {
    this.#running?.abort();
    this.#takeBack();
  }

  /** What is queued goes back into the input. */
  #takeBack(): void {
    const texts = this.#queue.takeBack();
    if (texts.length === 0) return;
    this.#screen.editor.setText([...texts, this.#screen.editor.value].filter(Boolean).join("\n"));
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
    if (parsed && "command" in parsed && isInstant(parsed) && this.#session) {
      void this.#runCommand(line);
      return;
    }
    const kind = parsed ? "command" : line.startsWith("!") ? "shell" : "prompt";
    this.#queue.push(kind, text, label, () => this.#prepare(text, typed));
    this.#pump();
  }

  async #prepare(text: string, typed: string): Promise<Prepared> {
    const own: TextPart = { type: "text", text };
    await this.#opened.promise;
    if (!this.#session) return { parts: [own], notes: [] };
    try {
      const limit = AbortSignal.timeout(attachMs);
      const { parts, notes } = await attach(typed, this.#session.hands, this.#cwd, limit);
      return { parts: [own, ...parts], notes };
    } catch (error) {
      return { parts: [own], notes: [`nothing is attached: ${messageOf(error)}`] };
    }
  }

  /** Works the queue off, one at a time. */
  #pump(): void {
    this.#pumping ??= this.#drain().finally(() => {
      this.#pumping = null;
    });
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
  #send(item: Queued, { parts, notes }: Prepared): (TextPart | ImagePart)[] {
    this.#screen.renderer.echo(item.label);
    if (notes.length > 0)
      this.#screen.terminal.print(
        notes.map((note) => dim(`  ${glyphs.result} ${escapeLine(note)}`)),
      );
    const carried = this.#carried.splice(0);
    return [...parts, ...carried];
  }

  /** Runs `job` with a spinner, until it ends or is interrupted. Errors are printed; null then. */
  async #work<T>(label: string, job: (signal: AbortSignal) => Promise<T>): Promise<T | null> {
    const controller = new AbortController();
    const outer = this.#running;
    this.#running = controller;
    using _ = this.#screen.spin(label, this.#session ? summaryOf(this.#session).tokens : 0);
    try {
      return await job(controller.signal);
    } catch (error) {
      this.#screen.say([
        controller.signal.aborted ? dim("Interrupted.") : red(escapeText(messageOf(error))),
      ]);
      return null;
    } finally {
      this.#running = outer;
    }
  }

  async #runPrompt(item: Queued): Promise<void> {
    const session = this.#session;
    if (!session) return;
    const { maxTurns, maxBudgetUsd, fallback } = this.#options;
    await this.#work("Waiting for the model", async (signal) => {
      const prepared = (await item.prepared) ?? { parts: [], notes: [] };
      return runTurn(session, this.#send(item, prepared), {
        maxTurns,
        maxBudgetUsd,
        fallback,
        signal,
        emit: (output) => this.#screen.take(output),
        ask: (question, asked) => this.#ask(question, asked),
        takeSteering: () =>
          this.#queue.takeReady().map(({ item: next, prepared: ready }) => this.#send(next, ready)),
      });
    });
  }

  async #runShell(command: string): Promise<void> {
    const session = this.#session;
    if (!command || !session) return;
    this.#screen.renderer.echo(`!${command}`);
    const call = personalCall("Bash", { command });
    const output = await this.#work(`Running ${escapeLine(command)}`, (signal) =>
      session.hands.run(call, signal),
    );
    if (!output) return;
    const { id, name } = call;
    const result = { type: "tool_result" as const, id, name, isError: false, ...output };
    const view = { cwd: this.#cwd, columns: this.#screen.terminal.columns, verbose: true };
    this.#screen.terminal.print(renderResult(call, result, view, false).slice(1));
    this.#carried.push(toAttachment("command", command, output.content));
  }

  async #runCommand(line: string): Promise<void> {
    const session = this.#session;
    const parsed = parseCommand(line, session);
    if (!parsed || !session) return;
    this.#screen.renderer.echo(line);
    if ("unknown" in parsed) return this.#screen.say([parsed.unknown]);
    try {
      await parsed.command.run(this.#desk(session), parsed.argument);
    } catch (error) {
      this.#screen.say([red(escapeText(messageOf(error)))]);
    }
  }

  #desk(session: Session): Desk {
    return {
      session,
      options: this.#options.session,
      columns: this.#screen.terminal.columns,
      say: this.#screen.say,
      choose: (title, options) => this.#screen.asker.choose(title, options),
      ask: (prompt) => this.#submit(prompt, prompt, prompt),
      reopen: (changes) => this.#reopen(changes),
      work: (label, job) => this.#work(label, job),
      leave: () => this.#leave(0),
    };
  }

  async #ask(question: Question, signal: AbortSignal): Promise<Answer> {
    const answer = await this.#screen.ask(question, signal);
    if (!answer.allow && answer.interrupt) this.#takeBack();
    return answer;
  }

  #status(columns: number): string {
    if (performance.now() - this.#leaveAskedAt < twiceMs) return dim("  Ctrl-C again leaves");
    return statusLine(this.#session, this.#options.session, columns);
  }
}

const ctrlC: Key = { type: "key", name: "c", ctrl: true, alt: false, shift: false };
