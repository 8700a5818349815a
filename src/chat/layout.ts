/**
 * From a text to the rows it takes on a screen, broken where they are full and never inside a
 * grapheme. Pure; lines of plain ASCII cost no more than their length divided by the width.
 */
import { graphemesOf, widthOf } from "./style.ts";

/** A row as UTF-16 offsets into the text, without the newline that ends it. */
export type Row = { start: number; end: number };

/** `show` says how a part of the text looks; rows are at most `width` columns of that. */
export function layOut(text: string, width: number, show: (part: string) => string): Row[] {
  const rows: Row[] = [];
  let offset = 0;
  for (const line of text.split("\n")) {
    const ends = /^[\x20-\x7e]*$/.test(line) ? chopPlain(line, width) : chop(line, width, show);
    let start = offset;
    for (const end of [...ends, line.length]) {
      rows.push({ start, end: offset + end });
      start = offset + end;
    }
    offset += line.length + 1;
  }
  return rows;
}

/** Where a line of characters of one column each is broken. */
function chopPlain(line: string, width: number): number[] {
  const count = Math.max(0, Math.ceil(line.length / width) - 1);
  return Array.from({ length: count }, (_, index) => (index + 1) * width);
}

function chop(line: string, width: number, show: (part: string) => string): number[] {
  const ends: number[] = [];
  let [end, used] = [0, 0];
  for (const grapheme of graphemesOf(line)) {
    const columns = widthOf(show(grapheme));
    if (used > 0 && used + columns > width) {
      ends.push(end);
      used = 0;
    }
    end += grapheme.length;
    used += columns;
  }
  return ends;
}
