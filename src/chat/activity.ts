/**
 * What goes on while a person waits, in one line: what, for how long, tokens up and down. Tokens are
 * estimated (4 characters each) until the provider says how many they were.
 */
import type { Output, Usage } from "../types.ts";
import { escapeLine } from "./escape.ts";
import { arrows, cyan, dim, fit, glyphs, shortNumber, spinner } from "./style.ts";

/** What is done within this time shows no line. */
const quietMs = 500;
export const tickMs = 120;

export const inputOf = (usage: Usage): number =>
  usage.inputTokens + usage.cacheReadTokens + usage.cacheWriteTokens;

export class Activity {
  /** When it began; null while nothing goes on. */
  #since: number | null = null;
  #label = "";
  #retry: { cause: string; until: number } | null = null;
  #running = new Map<string, string>();
  #up = 0;
  #down = 0;
  #chars = 0;

  get busy(): boolean {
    return this.#since !== null;
  }

  /** `tokens` is what the next request is expected to hold. */
  start(label: string, now: number, tokens = 0): void {
    this.#since = now;
    this.#label = label;
    this.#up = tokens;
    this.#down = this.#chars = 0;
    this.#running.clear();
    this.#retry = null;
  }

  stop(): void {
    this.#since = null;
  }

  /** `titleOf` names the call of an id. */
  take(output: Output, now: number, titleOf: (id: string) => string): void {
    if (output.type !== "retry") this.#retry = null;
    switch (output.type) {
      case "text_delta":
      case "thinking_delta":
        this.#label = output.type === "text_delta" ? "Answering" : "Thinking";
        this.#chars += output.text.length;
        return;
      case "tool_delta":
        this.#label = `Writing a call of ${escapeLine(output.name)}`;
        this.#chars += output.chars;
        return;
      case "retry":
        this.#retry = { cause: escapeLine(output.cause), until: now + output.delayMs };
        return;
      case "answer":
        this.#up = inputOf(output.usage) || this.#up;
        this.#down += output.usage.outputTokens || Math.round(this.#chars / 4);
        this.#chars = 0;
        this.#label = "Working";
        return;
      case "tool_start":
        this.#running.set(output.id, titleOf(output.id));
        return;
      case "tool_result":
        this.#running.delete(output.id);
        if (this.#running.size === 0) this.#label = "Waiting for the model";
        return;
      default:
    }
  }

  /** The line, or null where there is nothing to show yet. */
  line(now: number, columns: number): string | null {
    if (this.#since === null || now - this.#since < quietMs) return null;
    const elapsedMs = now - this.#since;
    const wheel = spinner[Math.floor(elapsedMs / tickMs) % spinner.length] ?? "";
    const down = this.#down + Math.round(this.#chars / 4);
    const facts = [
      duration(elapsedMs),
      ...(this.#up > 0 ? [`${arrows.up} ${shortNumber(this.#up)}`] : []),
      ...(down > 0 ? [`${arrows.down} ${shortNumber(down)}`] : []),
      "esc interrupts",
    ].join(` ${glyphs.bar} `);
    const room = columns - 4 - Bun.stringWidth(facts);
    const what = fit(this.#what(now), Math.max(12, room));
    return `${cyan(wheel)} ${what} ${dim(facts)}`;
  }

  #what(now: number): string {
    if (this.#retry) {
      const seconds = Math.max(0, Math.ceil((this.#retry.until - now) / 1000));
      return `Retrying in ${seconds} s: ${this.#retry.cause}`;
    }
    const [first, ...others] = this.#running.values();
    if (first === undefined) return this.#label + glyphs.more;
    return `Running ${first}${others.length > 0 ? ` and ${others.length} more` : ""}`;
  }
}

export function duration(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds}s`;
  return seconds < 3600
    ? `${Math.floor(seconds / 60)}m ${seconds % 60}s`
    : `${Math.floor(seconds / 3600)}h ${Math.floor((seconds % 3600) / 60)}m`;
}
