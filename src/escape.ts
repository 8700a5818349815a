/**
 * What may reach the terminal. Text from models, tools, files and file names is never trusted to be
 * only text: every character that could move the cursor, change a setting, answer a query, reorder
 * or hide what a person reads is shown as visible text (`\x1b`, `\u202e`).
 *
 * `escapeText` is for untrusted text, before colour is added. `keepColours` is the last gate, in
 * terminal.ts: of all control sequences it lets only SGR (colour) pass.
 */

/** Controls, and all that is there without being seen: bidi, zero width, tags, fillers. */
const hidden = /(?![\n\t])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
const sgrOrHidden = new RegExp(`\\x1b\\[[0-9;]*m|${hidden.source}`, "gu");

/** What a joiner may follow: emoji, marks, letters of caseless scripts; and a variation selector. */
const joinable = /[\p{Extended_Pictographic}\p{Emoji_Modifier}\p{M}\p{Lo}\ufe0f]$/u;
const selectable = /[\p{Emoji}]$/u;

/** `text` with nothing in it that could drive a terminal; newlines and tabs stay. */
export function escapeText(text: string): string {
  return text.replace(hidden, (char, at: number) => (joins(char, at, text) ? char : visible(char)));
}

/** `escapeText` on one line: newlines and tabs are made visible or blank too. */
export const escapeLine = (text: string): string =>
  escapeText(text).replaceAll("\n", "\\n").replaceAll("\t", " ");

/** A line that is about to be written: colour stays, all else that `escapeText` escapes is escaped. */
export function keepColours(line: string): string {
  return line.replace(sgrOrHidden, (match, at: number) =>
    match.length > 2 || joins(match, at, line) ? match : visible(match),
  );
}

/** Emoji and scripts such as Persian or Hindi need these; after a Latin letter they only hide. */
function joins(char: string, at: number, text: string): boolean {
  const before = text.slice(Math.max(0, at - 2), at);
  if (char === "\u200d" || char === "\u200c") return joinable.test(before);
  return (char === "\ufe0f" || char === "\ufe0e") && selectable.test(before);
}

function visible(char: string): string {
  const code = char.codePointAt(0) ?? 0;
  const hex = code.toString(16);
  if (code < 0x100) return `\\x${hex.padStart(2, "0")}`;
  return code > 0xffff ? `\\u{${hex}}` : `\\u${hex.padStart(4, "0")}`;
}
