/**
 * The live area's layout: what is shown above and below the input, and what gives way when the
 * screen is small. The input and the question always have room; the rest comes as there is space.
 * There is no frame around the input: a line as wide as the screen wraps when that shrinks, and what
 * a terminal then pushes into its scrollback nobody can take back.
 */
import type { Session, SessionOptions } from "../agent/session.ts";
import { escapeLine } from "./escape.ts";
import { summaryOf } from "./report.ts";
import { dim, dollars, fit, glyphs, paintMode, red, shortNumber, widthOf } from "./style.ts";
import type { Frame } from "./terminal.ts";

export type Live = {
  /** The end of what is being answered, in at most so many rows. */
  tail(maxRows: number): string[];
  spinner: string | null;
  queued: string[];
  /** What is in the input while a question stands in its place. */
  written: string;
  input: { render(columns: number, maxRows: number): Frame };
  status: string;
};

const tailRows = 5;
const queueRows = 3;
const inputRows = 12;

export function composeLive(columns: number, rows: number, live: Live): Frame {
  const isSmall = rows < 8;
  const input = live.input.render(
    columns,
    Math.max(1, Math.min(inputRows, rows - (isSmall ? 1 : 3))),
  );
  const status = rows > input.lines.length + 1 ? [live.status] : [];
  let room = rows - input.lines.length - status.length;
  const take = (lines: string[]): string[] => {
    const taken = room > 0 ? lines.slice(0, room) : [];
    room -= taken.length;
    return taken;
  };
  const spinner = take(live.spinner === null ? [] : [live.spinner]);
  const queued = take(renderQueue(live, columns));
  const gap = take(isSmall ? [] : [""]);
  const tail = take(live.tail(Math.min(tailRows, room - 1)));
  const above = [...tail, ...gap, ...spinner, ...queued];
  return {
    lines: [...above, ...input.lines, ...status],
    row: above.length + input.row,
    column: input.column,
  };
}

function renderQueue({ queued, written }: Live, columns: number): string[] {
  const lines = queued.slice(0, queueRows).map((text) => `  queued: ${escapeLine(text)}`);
  if (queued.length > queueRows)
    lines.push(`  ${glyphs.more} and ${queued.length - queueRows} more`);
  if (written) lines.push(`  in the input: ${escapeLine(written)}`);
  return lines.map((line) => dim(fit(line, columns - 1)));
}

/** Mode, model, how full the window is, cost; what does not fit is left out from the end. */
export function statusLine(
  session: Session | null,
  options: SessionOptions,
  columns: number,
): string {
  const { model, mode } = session ?? options;
  const { tokens, costUsd } = session ? summaryOf(session) : { tokens: 0, costUsd: 0 };
  const percent = Math.round((tokens / model.contextTokens) * 100);
  const window = `${percent}% of ${shortNumber(model.contextTokens)}`;
  const fields = [
    paintMode(mode),
    escapeLine(model.id),
    percent >= 80 ? red(window) : window,
    costUsd === null ? "no price" : dollars(costUsd),
    dim("shift-tab: mode"),
  ];
  const bar = dim(` ${glyphs.bar} `);
  let line = `  ${fields[0]}`;
  for (const field of fields.slice(1)) {
    if (widthOf(line) + 3 + widthOf(field) > columns - 1) continue;
    line += bar + dim(field);
  }
  return line;
}
