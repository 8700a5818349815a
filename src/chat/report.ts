/**
 * What a session amounts to: what fills the model's window, what it cost, how it stands, and the
 * conversation as Markdown. Computed from the events; nothing is counted anywhere else.
 */
import type { Session, SessionOptions } from "../agent/session.ts";
import type { Event, Message, Usage } from "../types.ts";
import { inputOf } from "./activity.ts";
import { titleOf } from "./calls.ts";
import { escapeLine } from "./escape.ts";
import { withoutAttachments } from "./mentions.ts";
import { bold, dim, dollars, paintMode, plural, shades, shortNumber } from "./style.ts";

type Answer = Event & { type: "answer" };

const answersOf = (session: Session): Answer[] =>
  session.events.flatMap(({ event }) => (event.type === "answer" ? [event] : []));

/** What the status line shows; computed anew only when something was logged. */
export type Summary = {
  /** Tokens that the window holds: what was counted last, or else an estimate. */
  tokens: number;
  /** USD; null where no price is known for a part of it. */
  costUsd: number | null;
};
const summaries = new WeakMap<Session, Summary & { events: number }>();

export function summaryOf(session: Session): Summary {
  const events = session.events.length;
  const known = summaries.get(session);
  if (known?.events === events) return known;
  const costs = answersOf(session).map(({ costUsd }) => costUsd);
  const costUsd = costs.includes(null)
    ? null
    : costs.reduce<number>((sum, cost) => sum + (cost ?? 0), 0);
  const tokens = lastCount(session) ?? (events > 0 ? measure(session).total : 0);
  const summary = { events, tokens, costUsd };
  summaries.set(session, summary);
  return summary;
}

// ── The window ──────────────────────────────────────────────────────────────────────────────────

const imageTokens = 1500;

export type Measure = {
  system: number;
  tools: number;
  instructions: number;
  messages: number;
  total: number;
  /** Whether the total rests on what the provider counted. */
  isCounted: boolean;
};

/**
 * Tokens in the window: 4 characters each, scaled to what the provider counted at the last answer
 * since the conversation was last shortened.
 */
export function measure(session: Session): Measure {
  const system = session.system.length / 4;
  const tools = JSON.stringify(session.tools).length / 4;
  const instructions = latestInstructions(session).length / 4;
  const all = session.messages.reduce((sum, message) => sum + tokensOf(message), 0);
  const messages = Math.max(0, all - instructions);
  const guess = system + tools + all;
  const counted = lastCount(session);
  const scale = counted ? counted / guess : 1;
  return {
    system: system * scale,
    tools: tools * scale,
    instructions: instructions * scale,
    messages: messages * scale,
    total: guess * scale,
    isCounted: counted !== null,
  };
}

function tokensOf({ parts }: Message): number {
  return parts.reduce((sum, part) => {
    if (part.type === "image") return sum + imageTokens;
    if (part.type === "tool_call") return sum + JSON.stringify(part.input).length / 4;
    const images = part.type === "tool_result" ? (part.images?.length ?? 0) : 0;
    const text = part.type === "tool_result" ? part.content : part.text;
    return sum + text.length / 4 + images * imageTokens;
  }, 0);
}

function latestInstructions(session: Session): string {
  const found = session.events.findLast(
    ({ event }) => event.type === "context" && event.name === "instructions",
  );
  return found?.event.type === "context" ? found.event.text : "";
}

/** The tokens of the last answer and of what it was given; null where nothing was counted. */
function lastCount(session: Session): number | null {
  const last = session.events.findLast(
    ({ event }) =>
      event.type === "compaction" || (event.type === "answer" && total(event.usage) > 0),
  );
  return last?.event.type === "answer" ? total(last.event.usage) : null;
}

const total = (usage: Usage): number => inputOf(usage) + usage.outputTokens;

export function windowLines(session: Session, columns: number): string[] {
  const size = measure(session);
  const window = session.model.contextTokens;
  const width = Math.max(10, Math.min(60, columns - 4));
  const rows = [
    ["system prompt", size.system],
    ["tools", size.tools],
    ["instructions", size.instructions],
    ["messages", size.messages],
  ] as const;
  const filled = Math.min(width, Math.round((size.total / window) * width));
  const line = (name: string, tokens: number) =>
    `  ${name.padEnd(14)}${shortNumber(tokens).padStart(6)}  ${dim(`${((tokens / window) * 100).toFixed(1)}%`)}`;
  return [
    `${bold("Context")} of ${escapeLine(session.model.id)}: ${shortNumber(size.total)} of ${shortNumber(window)} tokens`,
    `  ${shades.full.repeat(filled)}${dim(shades.empty.repeat(width - filled))}`,
    ...rows.map(([name, tokens]) => line(name, tokens)),
    line("free", Math.max(0, window - size.total)),
    dim(
      size.isCounted
        ? "  shares are estimates; the sum is what the provider counted"
        : "  estimates, 4 characters a token",
    ),
  ];
}

// ── Cost and status ─────────────────────────────────────────────────────────────────────────────

export function costLines(session: Session): string[] {
  const byModel = Map.groupBy(answersOf(session), ({ model }) => model);
  if (byModel.size === 0) return [dim("Nothing has been spent yet.")];
  const lines = Array.from(byModel, ([model, answers]) => {
    const sum = (pick: (usage: Usage) => number) =>
      shortNumber(answers.reduce((all, { usage }) => all + pick(usage), 0));
    const cost = answers.some(({ costUsd }) => costUsd === null)
      ? "no price is known"
      : dollars(answers.reduce((all, { costUsd }) => all + (costUsd ?? 0), 0));
    return `  ${escapeLine(model)}: ${bold(cost)}  ${dim(
      `${plural(answers.length, "call")}, ${sum(({ inputTokens }) => inputTokens)} in, ${sum(({ cacheReadTokens }) => cacheReadTokens)} from cache, ${sum(({ cacheWriteTokens }) => cacheWriteTokens)} to cache, ${sum(({ outputTokens }) => outputTokens)} out`,
    )}`;
  });
  return [bold("Cost of this session"), ...lines];
}

export function statusLines(session: Session, options: SessionOptions): string[] {
  const { info, model } = session;
  const rows: [string, string][] = [
    ["session", escapeLine(info.id)],
    ...(info.forkedFrom ? [["copy of", escapeLine(info.forkedFrom)] as [string, string]] : []),
    ["folder", escapeLine([info.cwd, ...(options.addedRoots ?? [])].join(", "))],
    ["model", `${escapeLine(model.id)}, window of ${shortNumber(model.contextTokens)} tokens`],
    ["mode", paintMode(session.mode)],
    ["sandbox", "none: tools run on this machine, under the permission rules"],
    ["context", `${shortNumber(summaryOf(session).tokens)} tokens`],
    ["store", escapeLine(options.clawHome)],
  ];
  return rows.map(([name, value]) => `  ${dim(name.padEnd(9))}${value}`);
}

// ── Export ──────────────────────────────────────────────────────────────────────────────────────

/** The conversation as Markdown: what was said, and each call with its result. */
export function conversation(session: Session): string {
  const { info, model } = session;
  const head = `# ${info.title || "A conversation"}\n\nSession ${info.id}, ${model.id}, ${info.cwd}\n`;
  const parts = session.events.map(({ event }) => toMarkdown(event, info.cwd)).filter(Boolean);
  return `${[head, ...parts].join("\n")}\n`;
}

function toMarkdown(event: Event, cwd: string): string {
  switch (event.type) {
    case "input": {
      const texts = event.parts.map((part) => (part.type === "text" ? part.text : "[image]"));
      return `## Person\n\n${withoutAttachments(texts.join("\n"))}\n`;
    }
    case "text":
      return `## claw\n\n${event.text}\n`;
    case "tool_call":
      return `**${event.name}** \`${titleOf(event, cwd).replaceAll("`", "'")}\`\n`;
    case "tool_result":
      return `${fenced(event.content)}\n`;
    case "compaction":
      return `## Summary of what came before\n\n${event.summary}\n`;
    default:
      return "";
  }
}

/** Text in a fence that nothing in it can close. */
function fenced(text: string): string {
  const longest = Math.max(2, ...Array.from(text.matchAll(/`+/g), ([run]) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text.trimEnd()}\n${fence}`;
}
