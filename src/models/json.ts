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
