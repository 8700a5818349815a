/**
 * What a text must contain for a pattern to match in it, so that most files are rejected by a search
 * for bytes before any automaton looks at them.
 *
 * Invariant: conservative. Every match contains, of each set of needles, at least one; where that
 * cannot be said for sure there is no set.
 */
import type { Node } from "./pattern.ts";

/** A text; `isFolded`: its letters may be of either case. */
export type Needle = { text: string; isFolded: boolean };

/** More needles are not worth as many searches, nor are more sets. */
const MAX_NEEDLES = 8;
const MAX_SETS = 3;

export function needlesOf(node: Node): Needle[][] {
  const sets = setsOf(node);
  return sets.toSorted((a, b) => weightOf(b) - weightOf(a)).slice(0, MAX_SETS);
}

/** The text that the pattern stands for, where it stands for just one. */
export function onlyText(node: Node): string | null {
  const [run, ...more] = node.type === "all" ? runsOf(node.nodes) : [];
  const isAll =
    node.type === "all" && node.nodes.every((part) => part.type === "atom" && part.atom.only);
  return run && more.length === 0 && isAll && !run.isFolded ? run.text : null;
}

function setsOf(node: Node): Needle[][] {
  switch (node.type) {
    case "assert":
      return [];
    case "atom":
      return runsOf([node]).map((run) => [run]);
    case "repeat":
      return node.min > 0 ? setsOf(node.node) : [];
    case "all":
      return [
        ...runsOf(node.nodes).map((run) => [run]),
        ...node.nodes.flatMap((part) => (part.type === "atom" ? [] : setsOf(part))),
      ];
    case "any": {
      const best = node.nodes.map((part) => needlesOf(part)[0]);
      const all = best.flatMap((set) => set ?? []);
      return best.every((set) => set) && all.length <= MAX_NEEDLES ? [all] : [];
    }
  }
}

/** The characters that follow each other in every match. */
function runsOf(nodes: readonly Node[]): Needle[] {
  const runs: Needle[] = [{ text: "", isFolded: false }];
  for (const node of nodes) {
    const only = node.type === "atom" ? node.atom.only : null;
    const last = runs.at(-1);
    // In Latin-1 some characters have other bytes; a line feed may stand for two.
    if (last && only && !/[\n\u0080-\u00ff]/.test(only.text)) {
      last.text += only.text;
      last.isFolded ||= only.isFolded;
    } else if (node.type !== "assert") runs.push({ text: "", isFolded: false });
  }
  return runs.filter((run) => run.text !== "");
}

/** The longest needles are the rarest; of those as long, the fewest cost least. */
const weightOf = (set: readonly Needle[]): number =>
  Math.min(...set.map(({ text }) => text.length)) - set.length / (MAX_NEEDLES + 1);
