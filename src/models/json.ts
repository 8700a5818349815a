/** Reads what may be of any shape: what a server sends is trusted for nothing. */

export type Json = Record<string, unknown>;

/** The value that `text` is JSON of; undefined where it is none, for the caller to judge. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // said in the contract
  }
}

export const recordOf = (value: unknown): Json | null =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Json) : null;

export const recordsOf = (value: unknown): Json[] =>
  Array.isArray(value) ? value.map(recordOf).filter((record) => record !== null) : [];

export const textOf = (value: unknown): string => (typeof value === "string" ? value : "");

/** A count of tokens, or an index; null where it is none. */
export const countOf = (value: unknown): number | null =>
  typeof value === "number" && value >= 0 ? value : null;

/** How far JSON text was gone through: `open` holds what closes it, the innermost first. */
export type Scan = { at: number; open: string[]; quoted: boolean };

/**
 * Goes on through an object or a list, as far as `text` reaches. True: it has ended right before
 * `scan.at`. Looks at brackets and quotes only; whether it is JSON, the parser says.
 */
export function scanJson(text: string, scan: Scan): boolean {
  for (; scan.at < text.length; scan.at++) {
    const char = text[scan.at];
    if (char === "\\" && scan.quoted) scan.at++;
    else if (char === '"') scan.quoted = !scan.quoted;
    else if (scan.quoted) continue;
    else if (char === "{" || char === "[") scan.open.unshift(char === "{" ? "}" : "]");
    else if (char === "}" || char === "]") {
      scan.open.shift();
      if (scan.open.length > 0) continue;
      scan.at++;
      return true;
    }
  }
  return false;
}

/**
 * An object that broke off between its values, with what closes it; else `text` itself: half a string
 * may be half a command.
 */
export function closeJson(text: string): string {
  const scan: Scan = { at: 0, open: [], quoted: false };
  const isWhole = scanJson(text, scan) || scan.at > text.length; // or it ends in half an escape
  const closed = `${text}${scan.open.join("")}`;
  return !isWhole && !scan.quoted && recordOf(parseJson(closed)) ? closed : text;
}
