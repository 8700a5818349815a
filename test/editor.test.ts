/** The input: bytes to keys, keys to text, text to rows. */
import { describe, expect, test } from "bun:test";
import { Editor, type Suggestions } from "../src/chat/editor.ts";
import { type Key, KeyReader } from "../src/chat/keys.ts";
import { Picker } from "../src/chat/question.ts";
import { glyphs } from "../src/chat/style.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

/** A key as one word: "C-a", "S-tab", "text:abc". */
function short(key: Key): string {
  if (key.type === "end") return "end";
  if (key.type !== "key") return `${key.type}:${key.text}`;
  return key.name;
}

function read(...chunks: (string | Uint8Array)[]): string[] {
  const reader = new KeyReader();
  const keys = chunks.flatMap((chunk) =>
    reader.feed(typeof chunk === "string" ? bytes(chunk) : chunk),
  );
  return [...keys, ...(reader.pending ? reader.flush() : [])].map(short);
}

describe("keys", () => {
  test.each<[string, string[], string[]]>([
    ["plain text", ["abc"], ["text:abc"]],
    ["text and Enter in one chunk", ["hello\r"], ["text:hello", "enter"]],
    [
      "control keys",
      ["\x01\x05\x0b\x15\x17\x19\x0c\x1a\x03\x04"],
      "C-a C-e C-k C-u C-w C-y C-l C-z C-c C-d".split(" "),
    ],
    ["Ctrl-J is not Enter", ["\n"], ["C-j"]],
    ["Backspace, Tab", ["\x7f\x08\t"], ["backspace", "backspace", "tab"]],
    [
      "arrows, Home, End, Delete",
      ["\x1b[A\x1b[B\x1bOC\x1b[D\x1b[H\x1bOF\x1b[3~\x1b[1~"],
      "up down right left home end delete home".split(" "),
    ],
    ["modified arrows", ["\x1b[1;5D\x1b[1;3C\x1b[1;2A"], ["C-left", "A-right", "S-up"]],
    ["Shift-Tab", ["\x1b[Z"], ["S-tab"]],
    [
      "Alt with a letter, Enter, Backspace",
      ["\x1bb\x1b\r\x1b\x7f"],
      ["A-b", "A-enter", "A-backspace"],
    ],
    [
      "kitty's protocol",
      ["\x1b[13;2u\x1b[99;5u\x1b[27u\x1b[98;3u\x1b[13;2:1u"],
      ["S-enter", "C-c", "escape", "A-b", "S-enter"],
    ],
    ["modifyOtherKeys", ["\x1b[27;2;13~\x1b[27;5;106~"], ["S-enter", "C-j"]],
    ["Esc alone", ["\x1b"], ["escape"]],
    ["Esc twice", ["\x1b\x1b"], ["escape", "escape"]],
    ["a sequence in three chunks", ["\x1b", "[1;", "5C"], ["C-right"]],
    [
      "unknown sequences are dropped whole",
      ["\x1b[?62;4c\x1b[15~\x1b]11;rgb:0/0/0\x07\x1b[<0;1;1Mx"],
      ["text:x"],
    ],
    ["a C1 control is not typed", ["\u009bx"], ["text:x"]],
    ["paste", ["\x1b[200~a\r\nb\x1b[31m\x1b[201~c"], ["paste:a\nb\x1b[31m", "text:c"]],
    ["paste whose end mark is split", ["\x1b[200~ab", "c\x1b[20", "1~\r"], ["paste:abc", "enter"]],
  ])("%s", (_, chunks, keys) => {
    expect(read(...chunks)).toEqual(keys);
  });

  test("UTF-8 split over chunks", () => {
    const all = bytes("é👨‍👩‍👧");
    const chunks = Array.from(all, (byte) => Uint8Array.of(byte));
    expect(
      read(...chunks)
        .map((key) => key.slice(5))
        .join(""),
    ).toBe("é👨‍👩‍👧");
  });

  test("a sequence waits for its end, and Esc does not wait for ever", () => {
    const reader = new KeyReader();
    expect(reader.feed(bytes("\x1b"))).toEqual([]);
    expect(reader.pending).toBe(true);
    expect(reader.flush().map(short)).toEqual(["escape"]);
    expect(reader.pending).toBe(false);
  });
});

/** Types `keys`, words such as "C-a" in angle brackets. */
function type(editor: Editor, keys: string): boolean {
  const reader = new KeyReader();
  const named: Record<string, string> = {
    up: "\x1b[A",
    down: "\x1b[B",
    right: "\x1b[C",
    left: "\x1b[D",
    home: "\x1b[H",
    end: "\x1b[F",
    enter: "\r",
    tab: "\t",
    back: "\x7f",
    del: "\x1b[3~",
    "S-enter": "\x1b[13;2u",
    "A-enter": "\x1b\r",
    "C-left": "\x1b[1;5D",
    "C-right": "\x1b[1;5C",
    "A-b": "\x1bb",
    "A-f": "\x1bf",
    "A-d": "\x1bd",
  };
  const raw = keys.replaceAll(
    /<([^>]+)>/g,
    (_, name: string) => named[name] ?? String.fromCharCode(name.charCodeAt(2) - 96),
  );
  let last = false;
  for (const key of reader.feed(bytes(raw))) last = editor.press(key);
  return last;
}

describe("editing", () => {
  test.each<[keys: string, text: string]>([
    ["abc<left>X", "abXc"],
    ["abc<C-a>X<C-e>Y", "XabcY"],
    ["one two<C-w>X", "one X"],
    ["one two<C-u>X", "X"],
    ["one two<C-a><C-k>X", "X"],
    ["one two<C-w><C-a><C-y>", "twoone "],
    ["one two<A-b>X", "one Xtwo"],
    ["one two<C-left><C-left><C-right>X", "oneX two"],
    ["one two<C-a><A-d>", " two"],
    ["abc<left><del>", "ab"],
    ["ae\u0301<back>", "a"],
    ["a👨‍👩‍👧b<left><back>", "ab"],
    ["你好<left>X", "你X好"],
    ["a<S-enter>b<A-enter>c<C-j>d", "a\nb\nc\nd"],
    ["a\\<enter>b", "a\nb"],
    ["one<C-j>two<C-a>X<up>Y", "oYne\nXtwo"],
    ["one<C-j>two<C-k><home><C-k><back>", "one"],
  ])("%j", (keys, text) => {
    const editor = new Editor();
    type(editor, keys);
    expect(editor.value).toBe(text);
  });

  test("Enter sends, with the text left for the caller", () => {
    const editor = new Editor();
    expect(type(editor, "hello<enter>")).toBe(true);
    expect(editor.value).toBe("hello");
  });

  test("Up and Down move in the text before they move in history, and the draft comes back", () => {
    const editor = new Editor();
    editor.history = ["first", "second line 1\nsecond line 2"];
    type(editor, "draft<up>");
    expect(editor.text).toBe("second line 1\nsecond line 2");
    type(editor, "<up>");
    expect(editor.text).toContain("second");
    type(editor, "<up>");
    expect(editor.text).toBe("first");
    type(editor, "<up><down><down><down>");
    expect(editor.text).toBe("draft");
  });

  test("a long paste is a label that is sent whole", () => {
    const editor = new Editor();
    const paste = Array.from({ length: 10_000 }, (_, line) => `line ${line}`).join("\n");
    const start = performance.now();
    type(editor, "see: ");
    editor.press({ type: "paste", text: paste });
    editor.render(80, 10);
    expect(performance.now() - start).toBeLessThan(100);
    expect(editor.label).toBe("see: [pasted 10000 lines]");
    expect(editor.value).toBe(`see: ${paste}`);
    type(editor, "<back>");
    expect(editor.value).toBe("see: ");
  });

  test("a short paste is text, newlines and all", () => {
    const editor = new Editor();
    editor.press({ type: "paste", text: "a\nb" });
    expect(editor.text).toBe("a\nb");
  });
});

describe("the picture", () => {
  const rows = (editor: Editor, columns: number, maxRows = 10) =>
    editor.render(columns, maxRows).lines.map((line) => Bun.stripANSI(line));

  test("lines wrap by columns, and the cursor is where the text ends", () => {
    const editor = new Editor();
    type(editor, "abcdefghij你好");
    const { row, column } = editor.render(13, 10);
    expect(rows(editor, 13)).toEqual([`${glyphs.prompt} abcdefghij`, "  你好"]);
    expect([row, column]).toEqual([1, 6]);
  });

  test("a wide character never straddles the edge", () => {
    const editor = new Editor();
    type(editor, "你好你好");
    for (const line of rows(editor, 8)) expect(Bun.stringWidth(line)).toBeLessThan(8);
  });

  test("a long text is a window around the cursor", () => {
    const editor = new Editor();
    editor.setText(Array.from({ length: 500 }, (_, line) => `line ${line}`).join("\n"));
    expect(rows(editor, 40, 5)).toEqual([
      `${glyphs.more[0]} line 495`,
      "  line 496",
      "  line 497",
      "  line 498",
      "  line 499",
    ]);
    type(editor, "<up><up><up>X");
    expect(rows(editor, 40, 5).join("\n")).toContain("line 496X");
  });

  test("control characters are shown and sent as they are", () => {
    const editor = new Editor();
    editor.press({ type: "paste", text: "a\x1b[2Jb\tc" });
    expect(rows(editor, 40)).toEqual([`${glyphs.prompt} a\\x1b[2Jb    c`]);
    expect(editor.value).toBe("a\x1b[2Jb\tc");
  });

  test.each([1, 2, 3, 5, 20])("%i columns", (columns) => {
    const editor = new Editor();
    type(editor, "hello 你好 world");
    const frame = editor.render(columns, 3);
    expect(frame.lines.length).toBeLessThanOrEqual(3);
    expect(frame.row).toBeLessThan(frame.lines.length);
  });
});

describe("completion", () => {
  const words = ["/clear", "/compact", "/context", "/cost"];
  const suggest = (text: string): Suggestions | null =>
    text.startsWith("/")
      ? {
          start: 0,
          options: words.filter((word) => word.startsWith(text)).map((value) => ({ value })),
        }
      : null;

  test.each<[keys: string, text: string]>([
    ["/cl<tab>", "/clear "],
    ["/c<tab>", "/clear "], // the first is marked, and Enter takes it
    ["/con<tab>", "/context "],
    ["/co<tab><tab><enter>", "/context "],
    ["/co<down><down><down><enter>", "/cost "],
    ["/co<up><enter>", "/cost "],
    ["hello<tab>", "hello"],
  ])("%j", (keys, text) => {
    const editor = new Editor(suggest);
    type(editor, keys);
    if (editor.menu && editor.menu.selected >= 0) type(editor, "<enter>");
    expect(editor.text).toBe(text);
  });

  test("a recalled command is not in the way of Up", () => {
    const editor = new Editor(suggest);
    editor.history = ["older", "/cost"];
    type(editor, "<up><up>");
    expect(editor.text).toBe("older");
  });
});

describe("choosing", () => {
  const options = [
    { label: "yes", value: 1, key: "y" },
    { label: "always", value: 2, key: "a" },
    { label: "no", value: 3, key: "n" },
  ];
  const press = (keys: string, filtered = false) => {
    let chosen: number | null | undefined;
    const list = filtered ? options.map(({ label, value }) => ({ label, value })) : options;
    const picker = new Picker("Which?", list, (value) => (chosen ??= value));
    const reader = new KeyReader();
    const keysRead = [...reader.feed(bytes(keys)), ...reader.flush()];
    const meant = keysRead.map((key) => picker.press(key));
    return { chosen, meant };
  };

  test.each<[string, number | null | undefined]>([
    ["y", 1],
    ["A", 2],
    ["n", 3],
    ["\r", 1],
    ["\x1b[B\r", 2],
    ["\x1b[A\r", 3],
    ["\x1b", null],
    ["\x03", null],
    ["x", undefined],
    ["yes", undefined],
    ["\x1b[200~y\x1b[201~", undefined],
  ])("%j", (keys, value) => expect(press(keys).chosen).toBe(value));

  test("what is no key of an option is not taken", () =>
    expect(press("hello").meant).toEqual([false]));

  test("typing filters where options have no keys", () =>
    expect(press("alw\r", true).chosen).toBe(2));

  test("a long option is shown whole", () => {
    const label = `remember ${"very ".repeat(30)}long`;
    const picker = new Picker("?", [{ label, value: 1, key: "a" }], () => {});
    const text = picker.render(40, 20).lines.join(" ").replaceAll(/\s+/g, " ");
    expect(Bun.stripANSI(text)).toContain(label);
  });
});
