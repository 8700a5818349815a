/** Glob and Grep: what they find, in which order, what they leave out and say of it, and how long. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { parseQuery } from "../src/tools/query.ts";
import { glob, grep } from "../src/tools/search.ts";
import type { Workbench } from "../src/types.ts";

let root = "";
beforeAll(() => {
  root = realpathSync(mkdtempSync(join(tmpdir(), "claw-search-")));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

const never = new AbortController().signal;
const benchIn = (folder: string, hides?: (path: string) => boolean): Workbench => ({
  roots: [folder],
  stamps: new Map(),
  shells: new Map(),
  env: {},
  hides,
});

let count = 0;
/** A new folder with these files. */
function tree(files: Record<string, string | Buffer>): string {
  const folder = join(root, `t${count++}`);
  mkdirSync(folder);
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), content);
  }
  return folder;
}

type GrepInput = Parameters<typeof grep.run>[0];
const grepIn = async (folder: string, input: GrepInput, signal = never) =>
  (await grep.run(input, benchIn(folder), signal)).content;
const globIn = async (folder: string, pattern: string, path?: string) =>
  (await glob.run({ pattern, path }, benchIn(folder), never)).content;
const content = (folder: string, pattern: string, rest: Partial<GrepInput> = {}) =>
  grepIn(folder, { pattern, output_mode: "content", ...rest });

describe("Grep finds lines", () => {
  const rows: [
    name: string,
    text: string | Buffer,
    pattern: string,
    rest: Partial<GrepInput>,
    lines: string[],
  ][] = [
    ["a literal", "a\nfoo bar\nb\n", "foo", {}, ["f:2:foo bar"]],
    ["without line numbers", "a\nfoo\n", "foo", { "-n": false }, ["f:foo"]],
    ["no newline at the end", "a\nfoo", "foo", {}, ["f:2:foo"]],
    ["CRLF, anchored", "foo\r\nbar\r\n", "foo$", {}, ["f:1:foo"]],
    ["a BOM", "\ufefffoo\n", "^foo", {}, ["f:1:foo"]],
    ["UTF-16", Buffer.from("\ufefffoo\nbar\n", "utf16le"), "bar", {}, ["f:2:bar"]],
    ["beginning of a line", "xfoo\nfoo\n", "^foo", {}, ["f:2:foo"]],
    ["empty lines", "a\n\nb\n", "^$", {}, ["f:2:"]],
    ["what matches nothing matches all", "a\nb\n", "x*", {}, ["f:1:a", "f:2:b"]],
    ["ignoring case", "FOO\n", "foo", { "-i": true }, ["f:1:FOO"]],
    ["an inline flag", "FOO\n", "(?i)foo", {}, ["f:1:FOO"]],
    ["a class that would leave the line", "a x\nb\nc\n", "b[^z]c", {}, []],
    ["white space that would leave the line", "foo\n  bar\n", "foo\\s+bar", {}, []],
    [
      "the same with multiline",
      "foo\n  bar\n",
      "foo\\s+bar",
      { multiline: true },
      ["f:1:foo", "f:2:  bar"],
    ],
    ["a later line than the one a match left", "ab\nc abc\n", "b\\s*c", {}, ["f:2:c abc"]],
    ["an alternation", "one\ntwo\nten\n", "one|ten", {}, ["f:1:one", "f:3:ten"]],
    ["an optional part", "color\ncolour\n", "colou?r", {}, ["f:1:color", "f:2:colour"]],
    ["a part that may be absent", "ac\n", "ab{0,1}c", {}, ["f:1:ac"]],
    ["an escape by number", "A1\n", "\\x41\\u0031", {}, ["f:1:A1"]],
    ["a class by property", "é1\n", "\\p{L}1", {}, ["f:1:é1"]],
    ["a POSIX class", "ab1\n", "[[:alpha:]]+[[:digit:]]", {}, ["f:1:ab1"]],
    ["a group that repeats", "ababab\n", "^(ab)+$", {}, ["f:1:ababab"]],
    ["a named group of Python's", "foo\n", "(?P<name>foo)", {}, ["f:1:foo"]],
    ["look-ahead", "foobar\nfoobaz\n", "foo(?=baz)", {}, ["f:2:foobaz"]],
    ["literal braces", "interface{}\n", "interface{}", {}, ["f:1:interface{}"]],
    ["a dot that stands for itself", "axb\na.b\n", "a\\.b", {}, ["f:2:a.b"]],
    [
      "several repeats",
      "const x  =  call(y)\n",
      "const\\s+\\w+\\s*=\\s*\\w+\\(",
      {},
      ["f:1:const x  =  call(y)"],
    ],
    ["an empty first line", "\nfoo\n\n", "^$", {}, ["f:1:", "f:3:"]],
    ["the empty pattern", "\n\na", "", {}, ["f:1:", "f:2:", "f:3:a"]],
    ["no line in an empty file", "", "^$", {}, []],
    ["an end without newline", "a\nb", "$", {}, ["f:1:a", "f:2:b"]],
    ["a return that is no line end", "a\rb\nb\n", "^b", {}, ["f:2:b"]],
    ["a separator that is no line end", "a\u2028b\nb\n", "a.b$", {}, ["f:1:a\u2028b"]],
    ["a return that is asked for", "a\r\nb\n", "a\\r$", {}, ["f:1:a\r"]],
    ["returns that are ruled out", "a\r\nb\n", "^[^\\r\\n]$", {}, ["f:1:a", "f:2:b"]],
    ["words of any script", "был\nбыло\n", "\\bбыл\\b", {}, ["f:1:был"]],
    ["letters of any script", "é1\n-1\n", "\\w1", {}, ["f:1:é1"]],
    ["one character that is two units", "😀\nab\n", "^.$", {}, ["f:1:😀"]],
    ["a script", "日\na\n", "\\p{Han}|\\pN", {}, ["f:1:日"]],
    ["a bracket first in a class", "x]\nx)\n", "x[]]", {}, ["f:1:x]"]],
    ["a hyphen in a class", "a-b\na+b\n", "a[\\w-.]b|[a-]$", {}, ["f:1:a-b"]],
    ["brackets that hold nothing", "int[] a\n", "int[] a", {}, ["f:1:int[] a"]],
    ["the edges of a text", "foo\nxfoo\n", "\\Afoo\\z", {}, ["f:1:foo"]],
    ["words as grep has them", "foo\nfoobar\n", "\\<foo\\>", {}, ["f:1:foo"]],
    ["angle brackets that are escaped", "A<b>\nA b\n", "A\\<b\\>", {}, ["f:1:A<b>"]],
    ["flags of a group", "aB\nab\nAb\n", "a(?i:b)", {}, ["f:1:aB", "f:2:ab"]],
    ["a break in multiline, CRLF", "a\r\nb\n", "a\nb", { multiline: true }, ["f:1:a", "f:2:b"]],
    ["all of it in multiline", "a\nb\n", "a.*b\\z", { multiline: true }, ["f:1:a", "f:2:b"]],
    [
      "hits in each other's context",
      "hit\nhit\nx\n",
      "hit",
      { "-A": 1 },
      ["f:1:hit", "f:2:hit", "f-3-x"],
    ],
    ["context from an empty line on", "\nhit", "hit", { "-B": 2 }, ["f-1-", "f:2:hit"]],
    ["context", "1\n2\nhit\n4\n5\n", "hit", { "-C": 1 }, ["f-2-2", "f:3:hit", "f-4-4"]],
    ["context at the ends", "hit\n2\n", "hit", { "-B": 3, "-A": 3 }, ["f:1:hit", "f-2-2"]],
    [
      "contexts that meet",
      "a\nhit\nb\nhit\nc\n",
      "hit",
      { "-C": 1 },
      ["f-1-a", "f:2:hit", "f-3-b", "f:4:hit", "f-5-c"],
    ],
    [
      "contexts apart",
      "hit\na\nb\nc\nhit\n",
      "hit",
      { "-A": 1 },
      ["f:1:hit", "f-2-a", "--", "f:5:hit"],
    ],
  ];
  test.each(rows)("%s", async (_, text, pattern, rest, lines) => {
    const found = await content(tree({ f: text }), pattern, rest);
    expect(found).toBe(lines.length > 0 ? lines.join("\n") : "No match in 1 files.");
  });

  test("line numbers go on over the pieces of a large file", async () => {
    const line = `${"x".repeat(99)}\n`;
    const folder = tree({ f: `${line.repeat(200_000)}needle\n` });
    expect(await content(folder, "needle")).toBe("f:200001:needle");
    expect(await content(folder, "n[e]+dle$")).toBe("f:200001:needle");
  });

  test("searches side by side do not see each other's files", async () => {
    const [x, y] = ["x", "y"].map((char) => `${char.repeat(99)}\n`.repeat(200_000));
    const folder = tree({ f: `${x}one\n`, g: `y${y}two\n` });
    const both = [content(folder, "[yo]", { path: "f" }), content(folder, "[xt]", { path: "g" })];
    expect(await Promise.all(both)).toEqual(["f:200001:one", "g:200001:two"]);
  });

  test.each<[string, string[]]>([
    ["needle", ["needle"]],
    ["a\\.b", ["a.b"]],
    ["\\w+ need\\w+=", [" need"]],
    ["abc?", ["ab"]],
    ["ab{0,1}cd", ["cd"]],
    ["abc+de", ["abc"]],
    ["a\\x41\\u0041\\cAbc", ["bc"]],
    ["(abc)?de", ["de"]],
    ["[abc]d\\tx", ["d"]],
    ["one|two[0-9]", ["one", "two"]],
    ["one|\\d", []],
    ["(?:one|two)", []],
    ["(?!no)yes", ["yes"]],
    ["a\\1\\k<n>\\p{Lu}", ["a"]],
    ["interface{}", ["interface{}"]],
    ["(?i)a", []],
    ["", []],
  ])("%s: every match holds one of %j", async (pattern, needles) => {
    const query = await parseQuery(pattern.replace("\\k<n>", "").replace("\\1", ""), false, false);
    expect(query.needles).toEqual(needles);
  });
});

describe("the shape of an answer", () => {
  test("files newest first, counts by path, and what a path may be", async () => {
    const folder = tree({ "a.ts": "x\nx\n", "b/c.ts": "x\n", "d.md": "x\n", "e.ts": "y\n" });
    utimesSync(join(folder, "a.ts"), 1000, 1000);
    utimesSync(join(folder, "b/c.ts"), 3000, 3000);
    utimesSync(join(folder, "d.md"), 2000, 2000);
    expect(await grepIn(folder, { pattern: "x" })).toBe("b/c.ts\nd.md\na.ts");
    expect(await grepIn(folder, { pattern: "x", output_mode: "count" })).toBe(
      "a.ts:2\nb/c.ts:1\nd.md:1",
    );
    expect(await grepIn(folder, { pattern: "x", glob: "*.ts" })).toBe("b/c.ts\na.ts");
    expect(await grepIn(folder, { pattern: "x", glob: "!*.md" })).toBe("b/c.ts\na.ts");
    expect(await grepIn(folder, { pattern: "x", type: "md" })).toBe("d.md");
    expect(await grepIn(folder, { pattern: "x", path: "b" })).toBe("b/c.ts");
    expect(await content(folder, "x", { path: join(folder, "d.md") })).toBe("d.md:1:x");
  });

  test("what is cut is said, with the cure", async () => {
    const folder = tree({ f: "hit\n".repeat(50) });
    const found = await content(folder, "hit", { head_limit: 3 });
    expect(found.split("\n").slice(0, 3)).toEqual(["f:1:hit", "f:2:hit", "f:3:hit"]);
    expect(found).toContain("Raise head_limit");
    const long = await content(tree({ f: `${"a".repeat(5000)}hit\n` }), "hit");
    expect(long.length).toBeLessThan(700);
    expect(long).toContain("[5003 characters]");
  });

  test.each([
    [{ pattern: "(" }, "no regular expression"],
    [{ pattern: "a\\nb" }, "set multiline"],
    [{ pattern: "\\h" }, "no regular expression"],
    [{ pattern: "x", type: "klingon" }, "There is no type klingon"],
    [{ pattern: "x", path: "absent" }, "does not exist"],
  ])("%j is refused with the cure", async (input, text) => {
    const output = await grep.run(input, benchIn(tree({ f: "x" })), never);
    expect(output).toMatchObject({ isError: true, content: expect.stringContaining(text) });
  });

  test("a file that a deny rule covers is not shown, and that is said", async () => {
    const folder = tree({ ".env": "KEY=1\n", "a.txt": "KEY=2\n" });
    const bench = benchIn(folder, (path) => path.endsWith(".env"));
    const { content: found } = await grep.run(
      { pattern: "KEY", output_mode: "content" },
      bench,
      never,
    );
    expect(found).toContain("a.txt:1:KEY=2");
    expect(found).not.toContain("KEY=1");
    expect(found).toContain("permission");
  });
});

describe("what is not searched", () => {
  test("binaries are told, special files and links passed over, and nothing hangs", async () => {
    const folder = tree({ "a.bin": Buffer.from("\0\0hit\0"), "b.txt": "hit\n" });
    expect(Bun.spawnSync(["mkfifo", join(folder, "pipe")]).exitCode).toBe(0);
    symlinkSync("/dev/zero", join(folder, "zero"));
    symlinkSync("b.txt", join(folder, "link"));
    symlinkSync(".", join(folder, "loop"));
    writeFileSync(join(folder, "big"), "");
    truncateSync(join(folder, "big"), 5e9);
    const startedAt = performance.now();
    const found = await grepIn(folder, { pattern: "hit" });
    expect(performance.now() - startedAt).toBeLessThan(2000);
    expect(found.split("\n")[0]).toBe("b.txt");
    expect(found).toContain("hold no text");
    expect(found).not.toContain("link");
  });

  test("a text goes up to a NUL, and that is said", async () => {
    const folder = tree({ f: `${"hit\n".repeat(3000)}\0\nhit\n` });
    truncateSync(join(folder, "f"), 5e9);
    const startedAt = performance.now();
    expect(await grepIn(folder, { pattern: "h[i]t", output_mode: "count" })).toMatch(
      /^f:3000\n\[Files that could not be seen as a whole/,
    );
    expect(performance.now() - startedAt).toBeLessThan(1000);
  });

  test("a name that is no UTF-8", async () => {
    const folder = tree({});
    writeFileSync(Buffer.concat([Buffer.from(`${folder}/a`), Buffer.from([0xff])]), "hit\n");
    expect(await grepIn(folder, { pattern: "hit" })).toBe("a\ufffd");
  });

  test("odd names are spelt in one line", async () => {
    const folder = tree({ "a\nb\u001b[31m.txt": "hit\n" });
    expect(await grepIn(folder, { pattern: "hit" })).toBe("a\\nb\\u001b[31m.txt");
  });
});

describe("patterns that backtrack", () => {
  const rows: [string, string][] = [
    ["(a+)+$", `${"a".repeat(60)}b`],
    ["(a|aa)+$", `${"a".repeat(60)}b`],
    ["a*a*a*a*a*[bc]$", "a".repeat(400)],
    [".*.*.*[!?]z?$", "a".repeat(3000)],
    ["\\w+\\s*\\w+\\s*\\w+[=:]", "a".repeat(2000)],
    ["\\s*\\w*\\s*\\w*\\s*[=:]\\d", "a".repeat(4000)],
    ["a*[bc]$", "a".repeat(1_000_000)],
    ["[^x]+y", `${"a\n".repeat(100_000)}`],
    ["(?=a)a*a*a*a*[bc]$", "a".repeat(5000)],
    ["a*a*[bc]$", `${"a".repeat(440)}\n`.repeat(2000)],
    ["a*a*[bc]$", `${"a".repeat(440)}\n`.repeat(2000)],
  ];
  test.each(rows)("%s ends within a second, and an abort is seen", async (pattern, text) => {
    const folder = tree({ f: `${text}\n` });
    for (const multiline of [false, true]) {
      const startedAt = performance.now();
      await grepIn(folder, { pattern, multiline });
      expect(performance.now() - startedAt).toBeLessThan(2500);
    }
  });

  test("what could not be searched is said", async () => {
    const found = await grepIn(tree({ f: "a".repeat(5000) }), { pattern: "(?=a)a*a*a*a*[bc]$" });
    expect(found).toContain("simplify");
  });

  test.each([
    ["(a|b)+ (a|b)+[!?]", "aaaa bbbb\n".repeat(5000)],
    ["(?=a)(a+)+[!?]", `${"a".repeat(40)}\n`.repeat(100)],
    [".*.*[!?]", `${"a".repeat(460)}\n`.repeat(100)],
    [".*[!?]", `${"a".repeat(9900)}\n`.repeat(10)],
    ["(?=.)a*a*a*[!?]", `${"a".repeat(90)}\n`.repeat(1000)],
  ])("an abort ends a search for %s in many files", async (pattern, text) => {
    const files = Array.from({ length: 300 }, (_, index) => [`f${index}`, text]);
    const folder = tree(Object.fromEntries(files));
    const controller = new AbortController();
    setTimeout(() => controller.abort(new Error("stop")), 30);
    const startedAt = performance.now();
    const input = { pattern };
    const ending = await grepIn(folder, input, controller.signal).catch(
      (error: Error) => error.message,
    );
    expect(ending).toBe("stop");
    expect(performance.now() - startedAt).toBeLessThan(1000);
  });
});

describe("Glob", () => {
  test("patterns, order and hints", async () => {
    const folder = tree({ "a.ts": "", "src/b.ts": "", "src/deep/c.tsx": "", ".hidden": "" });
    utimesSync(join(folder, "a.ts"), 1000, 1000);
    utimesSync(join(folder, "src/b.ts"), 2000, 2000);
    expect(await globIn(folder, "**/*.ts")).toBe(`${folder}/src/b.ts\n${folder}/a.ts`);
    expect(await globIn(folder, "src/**/*.{ts,tsx}")).toContain("deep/c.tsx");
    expect(await globIn(folder, "*.ts")).toBe(`${folder}/a.ts`);
    expect(await globIn(folder, `${folder}/src/*.ts`)).toBe(`${folder}/src/b.ts`);
    expect(await globIn(folder, "*.ts", "src")).toBe(`${folder}/src/b.ts`);
    expect(await globIn(folder, ".hid*")).toBe(`${folder}/.hidden`);
    expect(await globIn(folder, "c.tsx")).toContain("**/c.tsx");
    expect(await globIn(folder, "*.py")).toContain("No file matches");
  });

  test("more than 100 files: the newest, and how many there are", async () => {
    const files = Array.from({ length: 130 }, (_, index) => [`f${index}.txt`, ""]);
    const found = await globIn(tree(Object.fromEntries(files)), "*.txt");
    expect(found.split("\n").filter((line) => line.startsWith("/"))).toHaveLength(100);
    expect(found).toContain("of 130 files");
  });
});

describe("ignore files mean what they mean to git", () => {
  const pick = <T>(from: readonly T[], random: () => number) =>
    from[Math.floor(random() * from.length)] as T;
  const names = ["a", "b.log", "c.txt", "build", "x y", "tmp", "[z]", "d#", "é"];
  const patterns = [
    "*.log",
    "build/",
    "/a",
    "!a",
    "tmp",
    "**/c.txt",
    "a/**",
    "!b.log",
    "x\\ y",
    "b*",
    "*/c.txt",
    "# no",
    "",
    "!/build/",
    "\\[z\\]",
    "d#",
    "/build/a",
  ];

  function seeded(seed: number): () => number {
    let state = seed;
    return () =>
      ((state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff) >>> 8) / 0x800000;
  }

  test("on 30 random trees, beside git ls-files", async () => {
    for (let seed = 1; seed <= 30; seed++) {
      const random = seeded(seed);
      const files: Record<string, string> = {};
      for (let index = 0; index < 25; index++) {
        const depth = 1 + Math.floor(random() * 3);
        const path = Array.from({ length: depth }, () => pick(names, random));
        const isTaken = path.some((_, at) => files[path.slice(0, at + 1).join("/")] !== undefined);
        const isFolder = Object.keys(files).some((other) => other.startsWith(`${path.join("/")}/`));
        if (!isTaken && !isFolder) files[path.join("/")] = "hit\n";
      }
      const folders = ["", ...new Set(Object.keys(files).map((path) => dirname(path)))].filter(
        (one) => one !== ".",
      );
      for (let index = 0; index < 3; index++) {
        const lines = Array.from({ length: 3 }, () => pick(patterns, random));
        files[join(pick(folders, random), ".gitignore")] = `${lines.join("\n")}\n`;
      }
      const folder = tree(files);
      const git = (...args: string[]) =>
        Bun.spawnSync(["git", ...args], { cwd: folder }).stdout.toString();
      git("init", "-q");
      const wanted = git("ls-files", "-z", "--others", "--exclude-standard")
        .split("\0")
        .filter(Boolean);
      const found = (await grepIn(folder, { pattern: "", output_mode: "count", head_limit: 1000 }))
        .split("\n")
        .map((line) => line.replace(/:\d+$/, ""));
      expect({ seed, files: found.toSorted() }).toEqual({ seed, files: wanted.toSorted() });
    }
  });
});

describe("line by line the same as GNU grep", () => {
  const words = "foo|bar(|baz)|a.b|x=1||  |Foo_9|é|\t|41|{}|<a>|[x]|$9|-".split("|");
  let state = 7;
  const next = (most: number) => (state = (state * 48_271) % 2_147_483_647) % most;
  const line = () => Array.from({ length: next(6) }, () => words[next(words.length)]).join(" ");
  const text = () => Array.from({ length: next(60) }, line).join("\n") + (next(3) ? "\n" : "");
  let folder = "";
  beforeAll(() => {
    folder = tree(Object.fromEntries(Array.from({ length: 12 }, (_, at) => [`f${at}`, text()])));
  });
  const grepOf = (...args: string[]) =>
    Bun.spawnSync(["grep", "-rE", ...args], { cwd: folder, env: { LC_ALL: "C.UTF-8" } })
      .stdout.toString()
      .split("\n")
      .filter((one) => one !== "" && !one.endsWith(":0"));

  test.each(
    String.raw`foo ^foo 9$ a\.b (foo|x=1)[[:space:]] [Ff]oo[^a]*9 o{2} ^[[:blank:]]*$ ^$ x* b.*b.*b
      (foo[[:space:]]?)+bar \bfoo\b [^x]+ [^a-z] \W \w+\s+\w+ \s\S \$9 \{\} \[x\] []x] [^]x]$ foo|bar
      fo+\b fo?o (fo){1,2}o .{3}$ ^.$ [a-]$ [.-] (^|\s)foo(\s|$) [[:alpha:]]+_[[:digit:]] \Bo o\B
      .*\s.*\s.*= ^(.*)(x=1)(.*)$ \S+$ ^\s+ ([a-z]+\s)+1? \<foo [0-9]+ -`
      .split(/\s+/)
      .concat("é.", "[é-]"),
  )("%s", async (pattern) => {
    for (const flags of [[], ["-i"]]) {
      const input = { pattern, "-i": flags.length > 0, head_limit: 1e6 };
      const count = await grepIn(folder, { ...input, output_mode: "count" });
      const counted = grepOf("-c", ...flags, "-e", pattern, ".").map((one) => one.slice(2));
      expect(count.split("\n").toSorted()).toEqual(counted.toSorted());
      const lines = await grepIn(folder, { ...input, output_mode: "content" });
      const shown = grepOf("-n", ...flags, "-e", pattern, ".").map((one) => one.slice(2));
      const isWhole = !lines.includes("\n[Cut after");
      expect(isWhole && lines.split("\n").toSorted()).toEqual(shown.toSorted());
    }
  });
});
