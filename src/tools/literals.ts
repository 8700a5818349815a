/**
 * What a text must contain for a pattern to match it, so that most files are rejected by a search
 * for bytes, before any automaton looks at them.
 *
 * Invariant: conservative. Where `literalsOf` names strings, every match contains at least one of
 * them, byte for byte; where it cannot be sure it names none.
 */
import type { Node } from "./pattern.ts";

/** More than these are not worth as many searches. */
const MAX_LITERALS = 8;

/** Strings of which every match holds at least one; null: any text may match. */
export function literalsOf(node: Node): string[] | null {
  switch (node.type) {
    case "atom": {
      const literal = certain(node);
      return literal ? [literal] : null;
    }
    case "assert":
      return null;
    case "repeat":
      return node.min > 0 ? literalsOf(node.node) : null;
    case "any": {
      const each = node.nodes.map(literalsOf);
      const all = each.flatMap((literals) => literals ?? []);
      return each.includes(null) || all.length > MAX_LITERALS ? null : all;
    }
    case "all":
      return best([...runs(node.nodes), ...node.nodes.map(literalsOf)]);
  }
}

/** The text that the pattern stands for, where it stands for just one. */
export function onlyText(node: Node): string | null {
  const nodes = node.type === "all" ? node.nodes : [node];
  const chars = nodes.map(certain);
  return chars.length > 0 && chars.every((char) => char !== null) ? chars.join("") : null;
}

/** Strings of characters that follow each other in every match. */
function runs(nodes: readonly Node[]): string[][] {
  const found = [""];
  for (const node of nodes) {
    const literal = certain(node);
    if (literal !== null) found.push((found.pop() ?? "") + literal);
    else if (node.type !== "assert") found.push("");
  }
  return found.filter((run) => run !== "").map((run) => [run]);
}

/** Not those that a file in Latin-1 has in one byte, nor what a line end may stand in for. */
function certain(node: Node): string | null {
  const literal = node.type === "atom" ? node.atom.literal : null;
  return literal === null || /[\n\u0080-\u00ff]/.test(literal) ? null : literal;
}

/** The longest, for it is the rarest; of those as long, the fewest. */
function best(candidates: (string[] | null)[]): string[] | null {
  const weigh = (literals: string[]) =>
    Math.min(...literals.map((literal) => literal.length)) - literals.length / (MAX_LITERALS + 1);
  return candidates.reduce(
    (chosen, one) => (one && (!chosen || weigh(one) > weigh(chosen)) ? one : chosen),
    null,
  );
}
