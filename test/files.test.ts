/** Read, Write and Edit on real files: encodings, line ends, paging, refusals, failed saves. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  ftruncateSync,
  linkSync,
  lstatSync,
} from "node:fs";
import { mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, realpathSync } from "node:fs";
import { rmSync, statSync, symlinkSync, utimesSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { applyPatch } from "diff";
import { z } from "zod";
import { config } from "../src/config.ts";
import { messageOf } from "../src/errors.ts";
import { edit, read, write } from "../src/tools/files.ts";
import { patchOf } from "../src/tools/patch.ts";
import { decode, encode, type Encoding } from "../src/tools/text.ts";
import type { Workbench } from "../src/types.ts";

const base = realpathSync(mkdtempSync(join(tmpdir(), "claw-files-")));
afterAll(() => rmSync(base, { recursive: true, force: true }));

let root = "";
let bench: Workbench;
beforeEach(() => {
  root = mkdtempSync(join(base, "w-"));
  bench = { roots: [root], stamps: new Map(), shells: new Map(), env: {} };
});

const signal = new AbortController().signal;
const at = (name: string) => join(root, name);
const bytesOf = (name: string) => readFileSync(at(name));
const textOf = (name: string) => readFileSync(at(name), "utf8");

function put(name: string, content: string | Uint8Array): string {
  mkdirSync(dirname(at(name)), { recursive: true });
  writeFileSync(at(name), content);
  return at(name);
}

const doRead = (file_path: string, range: { offset?: number; limit?: number } = {}) =>
  read.run({ file_path, ...range }, bench, signal);
const doWrite = (file_path: string, content: string) =>
  write.run({ file_path, content }, bench, signal);
const doEdit = (file_path: string, old_string: string, new_string: string, replace_all?: boolean) =>
  edit.run({ file_path, old_string, new_string, replace_all }, bench, signal);

/** Puts a file there and reads it, as a model would before it changes it. */
async function known(name: string, content: string | Uint8Array): Promise<string> {
  put(name, content);
  await doRead(name);
  return name;
}

/** Ten times what these take when the machine does nothing else; without a bound it is minutes. */
const SOON_MS = 3000;

const failureOf = (work: Promise<unknown>) => work.then(() => "none", messageOf);

const lines = (count: number, from = 1) =>
  Array.from({ length: count }, (_, i) => `line ${from + i}\n`).join("");

const numberedLines = (count: number) =>
  Array.from({ length: count }, (_, i) => `${`${i + 1}`.padStart(6)}\tline ${i + 1}`).join("\n");

describe("what a model sees", () => {
  test.each([
    [read, "Read", { file_path: "string", offset: "integer", limit: "integer" }, ["file_path"]],
    [write, "Write", { file_path: "string", content: "string" }, ["file_path", "content"]],
    [
      edit,
      "Edit",
      { file_path: "string", old_string: "string", new_string: "string", replace_all: "boolean" },
      ["file_path", "old_string", "new_string"],
    ],
  ])("of %#", (tool, name, types, required) => {
    const schema = z.toJSONSchema(tool.schema, { io: "input" });
    const entries = Object.entries(schema.properties ?? {});
    expect(tool.name).toBe(name);
    expect(tool.description.length).toBeLessThan(350);
    expect(schema.required).toEqual(required);
    expect(Object.fromEntries(entries.map(([key, value]) => [key, Object(value).type]))).toEqual(
      types,
    );
  });
});

describe("Read", () => {
  test.each([
    ["one line", "a\n", "     1\ta"],
    ["no line break at the end", "a\nb", "     1\ta\n     2\tb"],
    ["blank lines", "\n\na\n", "     1\t\n     2\t\n     3\ta"],
    ["control characters stay", "a\x1b[31mb\x07\n", "     1\ta\x1b[31mb\x07"],
    ["CRLF", "a\r\nb\r\n", "     1\ta\n     2\tb\nCRLF line ends."],
    ["a CR inside a line stays", "a\rb\nc\n", "     1\ta\rb\n     2\tc"],
    [
      "mixed",
      "a\r\nb\nc\nd\n",
      "     1\ta\n     2\tb\n     3\tc\n     4\td\nSome line ends are CRLF.",
    ],
    ["UTF-8", "grüß €\u{1f600}\n", "     1\tgrüß €\u{1f600}"],
    ["UTF-8 with BOM", "\ufeffa\n", "     1\ta\nUTF-8 with a byte order mark."],
    ["UTF-16LE", utf16("a€\nb\n", "le"), "     1\ta€\n     2\tb\nUTF-16LE with a byte order mark."],
    [
      "UTF-16BE",
      utf16("a€\r\n", "be"),
      "     1\ta€\nCRLF line ends. UTF-16BE with a byte order mark.",
    ],
    [
      "Latin-1",
      Buffer.from("gr\xfc\xdf \x80\n", "latin1"),
      "     1\tgrüß €\nNot UTF-8; shown as Latin-1 (Windows-1252).",
    ],
    ["empty", "", "f is empty (0 bytes)."],
    ["only a BOM", "\ufeff", "f is empty (3 bytes)."],
  ])("%s", async (_, content, shown) => {
    put("f", content);
    expect(await doRead("f")).toEqual({ content: shown });
  });

  test.each([
    [
      { offset: 3, limit: 2 },
      "     3\tline 3\n     4\tline 4\nLines 3–4 of 10; read on with offset 5.",
    ],
    [{ offset: 9 }, "     9\tline 9\n    10\tline 10\nLines 9–10 of 10."],
    [{ limit: 1 }, "     1\tline 1\nLines 1–1 of 10; read on with offset 2."],
    [{ offset: 10, limit: 1 }, "    10\tline 10\nLines 10–10 of 10."],
    [{ offset: 0, limit: 1 }, "     1\tline 1\nLines 1–1 of 10; read on with offset 2."],
    [{ offset: -5, limit: 1 }, "     1\tline 1\nLines 1–1 of 10; read on with offset 2."],
    [{ limit: 10 }, numberedLines(10)],
    [{ limit: 0 }, numberedLines(10)],
    [{ limit: -1 }, numberedLines(10)],
  ])("pages %j", async (range, shown) => {
    put("f", lines(10));
    expect((await doRead("f", range)).content).toBe(shown);
  });

  test("a page past the end tells the line count", async () => {
    put("f", lines(10));
    expect(await doRead("f", { offset: 11 })).toEqual({
      content: "f has 10 lines: offset 11 is past its end.",
      isError: true,
    });
  });

  test("stops at the limit of lines, and says how to go on", async () => {
    put("f", "x\n".repeat(5000));
    const { content } = await doRead("f");
    expect(content).toEndWith("  2000\tx\nLines 1–2000 of 5000; read on with offset 2001.");
  });

  test("stops at the limit of characters; the pages join without a gap", async () => {
    const all = Array.from({ length: 900 }, (_, i) => `${i} `.padEnd(200, "y"));
    put("f", all.join("\n"));
    const seen: string[] = [];
    for (let offset = 1; offset <= 900;) {
      const { content } = await doRead("f", { offset });
      expect(content.length).toBeLessThanOrEqual(config.limits.resultChars);
      const shown = content.split("\n").filter((line) => line.includes("\t"));
      seen.push(...shown.map((line) => line.slice(line.indexOf("\t") + 1)));
      offset += shown.length;
    }
    expect(seen).toEqual(all);
  });

  test.each([
    [2000, "x".repeat(2000)],
    [2001, `${"x".repeat(2000)}… [cut: the line goes on; \`cut -c\` in Bash shows more]`],
    [3_000_000, `${"x".repeat(2000)}… [cut: the line goes on; \`cut -c\` in Bash shows more]`],
  ])("a line of %d characters", async (length, shown) => {
    put("f", `${"x".repeat(length)}\r\nb\r\n`);
    expect((await doRead("f")).content).toStartWith(`     1\t${shown}\n     2\tb\n`);
  });

  test("a cut never leaves half a character", async () => {
    put("f", `a${"\u{1f600}".repeat(1500)}\n`);
    expect((await doRead("f")).content.isWellFormed()).toBe(true);
  });

  test("a large file is paged in bounded memory, up to where it is no text", async () => {
    const fd = openSync(at("big"), "w");
    writeSync(fd, lines(300_000));
    ftruncateSync(fd, 5 * 2 ** 30);
    closeSync(fd);
    const before = process.memoryUsage().rss;
    const started = performance.now();
    const middle = await doRead("big", { offset: 250_000, limit: 2 });
    expect(middle.content).toBe(
      "250000\tline 250000\n250001\tline 250001\nLines 250000–250001 of more " +
        "(the file has 5368709120 bytes); read on with offset 250002.",
    );
    const last = await doRead("big", { offset: 299_999 });
    expect(last.content).toStartWith(
      "299999\tline 299999\n300000\tline 300000\nLines 299999–300000 of more",
    );
    expect(last.content).toEndWith("Line 300001 has NUL bytes: the file is no text from there on.");
    expect((await doRead("big", { offset: 300_001 })).content).toContain("has NUL bytes");
    const far = await doRead("big", { offset: 300_002 });
    expect(far).toMatchObject({
      isError: true,
      content: expect.stringContaining("further in than Read looks"),
    });
    expect(performance.now() - started).toBeLessThan(6000);
    expect(process.memoryUsage().rss - before).toBeLessThan(300e6);
    expect((await doEdit("big", "line 7\n", "x")).content).toContain(
      "too many to change here: use sed",
    );
  });

  test("a page of a large file knows its end, its encoding and its one endless line", async () => {
    put("utf16", utf16(lines(1_000_000), "le"));
    expect((await doRead("utf16", { offset: 1_000_000 })).content).toBe(
      "1000000\tline 1000000\nLines 1000000–1000000 of 1000000. UTF-16LE with a byte order mark.",
    );
    expect((await doRead("utf16", { offset: 1_000_001 })).content).toContain("has 1000000 lines");
    put("long", "z".repeat(21_000_000));
    expect((await doRead("long")).content).toContain("… [cut: the line goes on");
    expect((await doRead("long", { offset: 2 })).content).toContain("long has 1 lines");
  });

  test("an abort ends a long scan with the signal's reason", async () => {
    const fd = openSync(at("big"), "w");
    writeSync(fd, lines(200_000));
    ftruncateSync(fd, 50 * 2 ** 30);
    closeSync(fd);
    const scan = async (stop: AbortSignal) => {
      const started = performance.now();
      const said = await failureOf(read.run({ file_path: "big", offset: 1e9 }, bench, stop));
      return { said, ms: performance.now() - started };
    };
    const whole = await scan(signal);
    const controller = new AbortController();
    setTimeout(() => controller.abort(new Error("stop it")), 20);
    const stopped = await scan(controller.signal);
    expect([whole.said, stopped.said]).toEqual(["none", "stop it"]);
    expect(stopped.ms).toBeLessThan(whole.ms / 2);
  });
});

function utf16(text: string, order: "le" | "be"): Buffer {
  const bytes = Buffer.from(`\ufeff${text}`, "utf16le");
  return order === "be" ? bytes.swap16() : bytes;
}

const image = (start: string, size: number): Buffer =>
  Buffer.concat([Buffer.from(start, "latin1"), Buffer.alloc(size - start.length)]);

describe("Read refuses", () => {
  test.each([
    ["\x7fELF\x02\x01\x01", /ELF binary: use `file`/],
    ["%PDF-1.7\nhello", /a PDF: use `pdftotext/],
    ["PK\x03\x04\x14", /zip archive.*unzip -l/],
    ["\x1f\x8b\x08", /gzip data.*zcat/],
    ["SQLite format 3\0", /SQLite database.*sqlite3/],
    ["\xca\xfe\xba\xbe\0", /Java class.*javap/],
    ["\0asm\x01", /WebAssembly/],
    ["\0\0\0\x20ftypisom", /MP4/],
    ["\x89PNG\r\n\x1a\n", /a PNG image, maybe damaged/],
    ["abc\0def", /no text, but binary \(it has NUL bytes\): use `file` or `xxd/],
    [`${"a\n".repeat(50_000)}\0`, /NUL bytes/],
    ["\xff\xfe\0\0a\0\0\0", /NUL bytes/],
  ])("%j", async (start, why) => {
    put("f", Buffer.from(start, "latin1"));
    const { content, isError } = await doRead("f");
    expect(isError).toBe(true);
    expect(content).toMatch(why);
  });

  test.each([
    ["let ftyp = 3;\n"],
    ["MZ is a code\n"],
    ["GIF89a is a format of long standing\n"],
    ["BZh\n"],
  ])("%j not: it is text", async (text) => {
    put("f", text);
    expect(await doRead("f")).toEqual({ content: `     1\t${text.trimEnd()}` });
  });

  test("a folder, with what is in it", async () => {
    for (let i = 10; i < 35; i++) put(`d/f${i}`, "");
    mkdirSync(at("d/a"));
    const { content, isError } = await doRead("d");
    expect(isError).toBe(true);
    expect(content).toBe(
      `d is a folder: list it with Glob or \`ls\`. In it: a/, ${Array.from({ length: 19 }, (_, i) => `f${i + 10}`).join(", ")}, and 6 more.`,
    );
  });

  test.each([
    ["a named pipe", "mkfifo f", /f is a named pipe/],
    ["a link to a pipe", "mkfifo p; ln -s p f", /p is a named pipe/],
    ["a device", "ln -s /dev/zero f", /\/dev\/zero is a device/],
    ["a link into nothing", "ln -s gone f", /f is a link to gone, which does not exist/],
    ["a circle of links", "ln -s f g; ln -s g f", /links lead in a circle/],
  ])("%s, at once", async (_, command, why) => {
    Bun.spawnSync(["sh", "-c", command], { cwd: root });
    const started = performance.now();
    const outputs = [await doRead("f"), await doWrite("f", "x"), await doEdit("f", "a", "b")];
    for (const { content, isError } of outputs) {
      expect(isError).toBe(true);
      expect(content).toMatch(why);
    }
    expect(performance.now() - started).toBeLessThan(500);
  });

  test("a socket", async () => {
    const server = Bun.listen({ unix: at("s"), socket: { data() {} } });
    expect((await doRead("s")).content).toBe(
      "s is a socket, not a file: use Bash, with `timeout`.",
    );
    server.stop(true);
  });

  test.each([
    [
      "src/Util.ts",
      /^src\/Util\.ts does not exist: there is no Util\.ts in .*src\. Did you mean .*\/src\/util\.ts\?$/,
    ],
    ["src/utils.ts", /Did you mean .*\/src\/util\.ts\?$/],
    ["src/unlike-any.md", /Look for it with Glob\.$/],
    ["/src/util.ts", /^\/src\/util.ts does not exist. Did you mean .*w-.*\/src\/util\.ts\?$/],
    ["srcs/util.ts", /^srcs\/util\.ts .*: there is no srcs in .*\. Did you mean .*\/src\?$/],
    ["src/util.ts/x", /a part of this path is a file, not a folder/],
    ["~/x", /^~ is not expanded in ~\/x: give the whole path, or one from \//],
    ["", /^file_path "" names no file/],
    ["a\0b", /^file_path "a\\u0000b" names no file/],
    ["x".repeat(300), /the name is too long/],
    ["/src/util.ts/gone", /^\/src\/util\.ts\/gone does not exist: there is no src in \//],
  ])("the missing %j", async (file, why) => {
    put("src/util.ts", "a\n");
    const { content, isError } = await doRead(file);
    expect(isError).toBe(true);
    expect(content).toMatch(why);
  });
});

describe("Read shows", () => {
  test.each([
    ["image/png", "\x89PNG\r\n\x1a\n\0\0\0\rIHDR"],
    ["image/gif", "GIF89a\x10\0\x20\0"],
    ["image/jpeg", "\xff\xd8\xff\xe0\0\x10JFIF"],
    ["image/webp", "RIFF\x20\0\0\0WEBPVP8 "],
  ])("%s by its bytes, whatever its name", async (mediaType, start) => {
    const bytes = image(start, 100);
    put("picture.txt", bytes);
    expect(await doRead("picture.txt")).toEqual({
      content: `picture.txt: ${mediaType}, 100 bytes.`,
      images: [{ type: "image", mediaType, data: bytes.toString("base64") }] as never,
    });
  });

  test.each([[5_000_001], [22_000_000]])("no image of %d bytes", async (size) => {
    put("f", image("\x89PNG\r\n\x1a\n", size));
    const { content, images, isError } = await doRead("f");
    expect({ images, isError }).toEqual({ images: undefined, isError: true });
    expect(content).toMatch(new RegExp(`image of ${size} bytes.*5000000.*convert`));
  });

  test("a file that the system says has no size", async () => {
    expect((await doRead("/proc/self/status")).content).toContain("Name:\t");
    expect((await doRead("/proc/self/mem")).isError).toBe(true);
  });
});

// ── Write ───────────────────────────────────────────────────────────────────────────────────────

const mode = (name: string) => (statSync(at(name)).mode & 0o7777).toString(8);
const strays = () => readdirSync(root).filter((name) => name.startsWith(".claw"));

describe("Write", () => {
  test("creates a file and its folders", async () => {
    expect(await doWrite("a/b/c.txt", "one\ntwo")).toEqual({
      content: "Created a/b/c.txt (2 lines).",
      patch:
        "--- /dev/null\n+++ b/a/b/c.txt\n@@ -0,0 +1,2 @@\n+one\n+two\n\\ No newline at end of file\n",
    });
    expect(textOf("a/b/c.txt")).toBe("one\ntwo");
    expect(mode("a/b/c.txt")).toBe((0o666 & ~process.umask()).toString(8));
  });

  test("its own file may be written again, without a Read", async () => {
    await doWrite("f", "a\n");
    expect((await doWrite("f", "b\n")).content).toBe("Overwrote f (1 line).");
    expect((await doEdit("f", "b", "c")).isError).toBeUndefined();
    expect(textOf("f")).toBe("c\n");
  });

  test("a path outside the workspace is named in full", async () => {
    const outside = join(base, `outside-${crypto.randomUUID()}`);
    expect((await doWrite(outside, "a\n")).content).toBe(`Created ${outside} (1 line).`);
  });

  test.each([
    ["not read", async () => put("f", "old\n"), /^f has not been read yet: Read it before/],
    [
      "changed since",
      async () => {
        await known("f", "old\n");
        put("f", "new\n");
      },
      /^f has changed since it was read \(by someone else\): read it again\.$/,
    ],
    ["half a character", async () => known("f", ""), /half a character \(U\+D83D, one of/],
    ["a folder", async () => mkdirSync(at("f")), /^f is a folder/],
  ])("refuses: %s", async (_, prepare, why) => {
    await prepare();
    const before = existsSync(at("f")) && statSync(at("f")).isFile() ? bytesOf("f") : null;
    const { content, isError } = await doWrite("f", "x\ud83d");
    expect(isError).toBe(true);
    expect(content).toMatch(why);
    if (before) expect(bytesOf("f")).toEqual(before);
    expect(strays()).toEqual([]);
  });

  test("no Read is needed for an empty file, or where the workbench says so", async () => {
    put("empty", "");
    put("f", "old\n");
    expect((await doWrite("empty", "a\n")).isError).toBeUndefined();
    bench.needsRead = false;
    expect((await doWrite("f", "a\n")).isError).toBeUndefined();
    expect((await doEdit("f", "a", "b")).isError).toBeUndefined();
  });

  test("a touched file that holds the same may be written over", async () => {
    await known("f", "old\n");
    utimesSync(at("f"), 1, 1);
    expect((await doWrite("f", "new\n")).isError).toBeUndefined();
  });

  test("what was refused as binary may be written over: the model knows what it is", async () => {
    await known("f", Buffer.from("\x7fELF\xff\0", "latin1"));
    expect((await doWrite("f", "é\n")).patch).toBe("--- a/f\n+++ b/f\n@@ -0,0 +1,1 @@\n+é\n");
    expect(textOf("f")).toBe("é\n");
  });

  test.each<[string, string | Buffer, string, string | Buffer, string]>([
    ["CRLF is kept", "a\r\nb\r\n", "c\nd\n", "c\r\nd\r\n", "2 lines, CRLF line ends kept"],
    ["CR in the new text decides", "a\r\n", "c\r\nd\n", "c\r\nd\n", "2 lines"],
    ["mixed ends are not kept", "a\r\nb\n", "c\nd\n", "c\nd\n", "2 lines"],
    ["LF stays", "a\n", "c\nd\n", "c\nd\n", "2 lines"],
    ["the BOM stays", "\ufeffa\n", "b\n", "\ufeffb\n", "1 line"],
    ["the BOM is not doubled", "\ufeffa\n", "\ufeffb\n", "\ufeffb\n", "1 line"],
    ["UTF-16LE stays", utf16("a", "le"), "b€", utf16("b€", "le"), "1 line, utf-16le kept"],
    ["UTF-16BE stays", utf16("a", "be"), "b€", utf16("b€", "be"), "1 line, utf-16be kept"],
    ["Latin-1 stays", Buffer.from([0xe9]), "è", Buffer.from([0xe8]), "1 line, windows-1252 kept"],
    [
      "Latin-1 cannot",
      Buffer.from([0xe9]),
      "你",
      "你",
      "1 line, now UTF-8, no longer windows-1252",
    ],
    ["nothing", "a\n", "", "", "0 lines"],
    ["$ is only a character", "a\n", "$& $1 $$\n", "$& $1 $$\n", "1 line"],
  ])("%s", async (_, before, text, after, notes) => {
    await known("f", before);
    expect((await doWrite("f", text)).content).toBe(`Overwrote f (${notes}).`);
    expect(bytesOf("f")).toEqual(Buffer.from(after as string));
  });

  test("keeps the mode, and the owner", async () => {
    await known("f", "a\n");
    chmodSync(at("f"), 0o4751);
    if (process.getuid?.() === 0) chownSync(at("f"), 12, 34);
    chmodSync(at("f"), 0o4751);
    const { uid, gid } = statSync(at("f"));
    await doWrite("f", "b\n");
    expect(mode("f")).toBe("4751");
    expect([statSync(at("f")).uid, statSync(at("f")).gid]).toEqual([uid, gid]);
  });

  test("writes through a link, and keeps hard links together", async () => {
    put("target", "a\n");
    symlinkSync("target", at("soft"));
    linkSync(at("target"), at("hard"));
    await doRead("soft");
    expect((await doWrite("soft", "longer\n")).content).toBe("Overwrote target (1 line).");
    expect((await doWrite("target", "b\n")).isError).toBeUndefined();
    expect([textOf("target"), textOf("hard")]).toEqual(["b\n", "b\n"]);
    expect(lstatSync(at("soft")).isSymbolicLink()).toBe(true);
    expect(statSync(at("hard")).nlink).toBe(2);
  });

  test("a link put in the file's place is replaced or refused, never followed", async () => {
    await known("f", "mine\n");
    put("victim", "theirs\n");
    rmSync(at("f"));
    symlinkSync("victim", at("f"));
    expect((await doWrite("f", "x\n")).content).toBe(
      "victim has not been read yet: Read it before you change it.",
    );
    expect(textOf("victim")).toBe("theirs\n");
  });

  test("a reader sees the old or the new content, never a part", async () => {
    const [old, now] = ["a".repeat(3_000_000), "b".repeat(3_000_000)];
    await known("f", old);
    const { ino } = statSync(at("f"));
    const done = doWrite("f", now);
    const seen = new Set<string>();
    for (let isDone = false; !isDone;) {
      const text = textOf("f");
      expect(text.length).toBe(3_000_000);
      seen.add(text[0] ?? "");
      isDone =
        (await Promise.race([done.then(() => true), Bun.sleep(0).then(() => false)])) === true;
    }
    expect(textOf("f")).toBe(now);
    expect(seen.has("a")).toBe(true);
    expect(statSync(at("f")).ino).not.toBe(ino);
  });
});

// ── Failed saves ────────────────────────────────────────────────────────────────────────────────

/** Runs a tool in a process of its own, in `root`; `wrap` is a shell command that ends in "$@". */
function runApart(wrap: string, tool: "Write" | "Edit", input: Record<string, unknown>): string {
  const script = `
    import { read, write, edit } from ${JSON.stringify(join(import.meta.dir, "../src/tools/files.ts"))};
    const bench = { roots: [${JSON.stringify(root)}], stamps: new Map(), shells: new Map(), env: {} };
    const input = ${JSON.stringify(input)};
    const signal = new AbortController().signal;
    await read.run({ file_path: input.file_path }, bench, signal);
    const { content, isError } = await (${tool === "Write" ? "write" : "edit"}).run(input, bench, signal);
    console.log((isError ? "error: " : "done: ") + content);
  `;
  const command = ["sh", "-c", wrap, "sh", process.execPath, "-e", script];
  const { stdout, stderr } = Bun.spawnSync(command, {
    cwd: root,
    env: { ...process.env, BUN_RUNTIME_TRANSPILER_CACHE_PATH: "0" },
  });
  return stdout.toString().trim() || stderr.toString();
}

describe("a save that fails leaves the old content", () => {
  /** A file may not grow beyond 16 kB: write(2) then gives less than asked, and EFBIG. */
  const limited = `trap "" XFSZ; ulimit -f 32; exec "$@"`;
  const big = "new\n".repeat(15_000);

  test.each([
    ["by renaming", "f", "old\n"],
    ["in place", "hard", "old\n".repeat(3000)],
    ["a new file", "fresh", null],
  ])("%s", (_, name, old) => {
    if (old !== null) put(name, old);
    if (name === "hard") linkSync(at("hard"), at("other"));
    const said = runApart(limited, "Write", { file_path: name, content: big });
    expect(said).toMatch(
      old === null
        ? /^error: fresh: the file would be larger.*Nothing was written\.$/
        : /^error: .*: the file would be larger than the system allows.*The file is as it was\.$/,
    );
    expect(existsSync(at(name)) ? textOf(name) : null).toBe(old);
    expect(strays()).toEqual([]);
  });

  test("Edit, too", () => {
    put("f", `old\n${"x\n".repeat(100)}`);
    const input = { file_path: "f", old_string: "old", new_string: big };
    expect(runApart(limited, "Edit", input)).toMatch(/^error: f: .*The file is as it was\.$/);
    expect(textOf("f")).toBe(`old\n${"x\n".repeat(100)}`);
  });

  const nobody = `exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"`;
  const asOther = process.getuid?.() === 0 ? nobody : `exec "$@"`;

  test.each([
    ["a folder without write permission", "d/new", /d\/new: permission denied; `ls -ld`.*Nothing/],
    ["a file without write permission", "d/locked", /d\/locked: permission denied; `ls -ld`/],
    ["the same in a folder that has it", "w/locked", /w\/locked: permission denied; `ls -ld`/],
  ])("%s", (_, file_path, why) => {
    for (const [folder, bits] of [
      ["d", 0o555],
      ["w", 0o777],
    ] as const) {
      put(`${folder}/locked`, "old\n");
      chmodSync(at(`${folder}/locked`), 0o444);
      chmodSync(at(folder), bits);
    }
    // Its owner could replace it, were that not asked first.
    if (process.getuid?.() === 0) chownSync(at("w/locked"), 65534, 65534);
    chmodSync(root, 0o755);
    chmodSync(base, 0o755);
    expect(runApart(asOther, "Write", { file_path, content: "x" })).toMatch(why);
    chmodSync(at("d"), 0o755);
    for (const folder of ["d", "w"]) {
      expect(readdirSync(at(folder))).toEqual(["locked"]);
      expect(textOf(`${folder}/locked`)).toBe("old\n");
    }
  });

  test("a file that may be written in a folder that may not is written in place", () => {
    put("d/open", "old\n");
    chmodSync(at("d/open"), 0o666);
    chmodSync(at("d"), 0o555);
    chmodSync(root, 0o755);
    chmodSync(base, 0o755);
    const { ino } = statSync(at("d/open"));
    expect(runApart(asOther, "Write", { file_path: "d/open", content: "x\n" })).toBe(
      "done: Overwrote d/open (1 line).",
    );
    chmodSync(at("d"), 0o755);
    expect(textOf("d/open")).toBe("x\n");
    expect(statSync(at("d/open")).ino).toBe(ino);
  });
});

// ── Edit ────────────────────────────────────────────────────────────────────────────────────────

describe("Edit", () => {
  test("shows the region, and hands on the patch", async () => {
    await known("src/f", lines(10));
    const preview = await edit.preview?.(
      { file_path: "src/f", old_string: "line 5\n", new_string: "five\nand a half\n" },
      bench,
    );
    const patch =
      "--- a/src/f\n+++ b/src/f\n@@ -2,7 +2,8 @@\n line 2\n line 3\n line 4\n-line 5\n+five\n+and a half\n line 6\n line 7\n line 8\n";
    expect(preview).toBe(patch);
    expect(textOf("src/f")).toBe(lines(10));
    expect(await doEdit("src/f", "line 5\n", "five\nand a half\n")).toEqual({
      content:
        "Edited src/f, now at lines 5–6:\n     2\tline 2\n     3\tline 3\n     4\tline 4\n     5\tfive\n     6\tand a half\n     7\tline 6\n     8\tline 7\n     9\tline 8",
      patch,
    });
  });

  const replacements: [string, string, string, string, string, boolean?][] = [
    ["the first line", "a\nb\n", "a\n", "", "b\n"],
    ["the last line, without a break", "a\nb", "b", "c", "a\nc"],
    ["all there is", "a", "a", "", ""],
    ["inside a line", "one two three\n", "two", "2", "one 2 three\n"],
    ["$& is only text", "price\n", "price", "$& $1 $` $' $$", "$& $1 $` $' $$\n"],
    ["a pattern is only text", "a.c abc\n", "a.c", ".*", ".* abc\n"],
    ["all", "a-a-a\n", "a", "bb", "bb-bb-bb\n", true],
    ["all, not overlapping", "aaaaa\n", "aa", "b", "bba\n", true],
    ["all, with what contains it", "a a\n", "a", "aa", "aa aa\n", true],
    ["all, where there is one", "a\n", "a", "b", "b\n", true],
    ["LF matches CRLF", "a\r\nb\r\nc\r\n", "a\nb\n", "x\ny\nz\n", "x\r\ny\r\nz\r\nc\r\n"],
    ["CRLF matches CRLF", "a\r\nb\r\n", "a\r\nb", "x\r\ny", "x\r\ny\r\n"],
    ["CRLF matches LF", "a\nb\nc\n", "a\r\nb", "x\r\ny", "x\ny\nc\n"],
    ["a break is taken whole", "a\r\nb\r\n", "\nb", "", "a\r\n"],
    ["a break is not split", "x\r\na\r\nb\r\n", "\na\r\n", "\nc\r\n", "x\r\nc\r\nb\r\n"],
    ["a break is left whole", "a\r\nb\r\n", "a", "c\nd", "c\r\nd\r\nb\r\n"],
    ["all in CRLF", "a\r\na\r\n", "a\n", "b\nc\n", "b\r\nc\r\nb\r\nc\r\n", true],
    ["mixed: the LF part", "a\r\nb\nc\n", "b\nc", "x\ny", "a\r\nx\ny\n"],
    ["mixed: the CRLF part", "a\nb\r\nc\r\nd\n", "b\nc", "x\ny", "a\nx\r\ny\r\nd\n"],
    ["mixed: a CR says which", "a\nb\r\na\r\nb\n", "a\r\nb", "x\r\ny", "a\nb\r\nx\r\ny\n"],
    ["mixed: all, each in its own", "a\nb\na\r\nb\r\n", "a\nb", "x\ny", "x\ny\nx\r\ny\r\n", true],
    ["a lone CR stays", "a\rb\nc\r\n", "c", "d", "a\rb\nd\r\n"],
    ["the BOM stays", "\ufeffa\n", "a", "b", "\ufeffb\n"],
    ["a second BOM is text", "\ufeff\ufeffa\n", "\ufeffa", "b", "\ufeffb\n"],
    ["a second BOM stays", "\ufeff\ufeffa\n", "a", "b", "\ufeff\ufeffb\n"],
    [
      "next to an emoji",
      "\u{1f600}a\u{1f601}\n",
      "a",
      "\u{1f602}",
      "\u{1f600}\u{1f602}\u{1f601}\n",
    ],
  ];
  test.each(replacements)("%s", async (...[, before, old, now, after, all]) => {
    await known("f", before);
    const preview = await edit.preview?.(
      { file_path: "f", old_string: old, new_string: now, replace_all: all },
      bench,
    );
    const { content, isError, patch } = await doEdit("f", old, now, all);
    expect({ content, isError }).toEqual({ content, isError: undefined });
    expect(textOf("f")).toBe(after);
    expect(patch).toBe(preview ?? "");
  });

  test.each<[string, string, string]>([
    ["x = 1\nx = 1\n", "x = 1", "2 times in f (lines 1, 2)"],
    ["aaa\n", "aa", "2 times in f (lines 1)"],
    ["\n\n\n", "\n\n", "2 times in f (lines 1, 2)"],
    ["a\nb\n-\na\r\nb\r\n", "a\nb", "2 times in f (lines 1, 4)"],
    ["y\n".repeat(40), "y", "40 times in f (lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)"],
    ["y".repeat(5000), "y", "1000 or more times in f (lines 1, …)"],
  ])("%j has more than one %j", async (before, old, say) => {
    await known("f", before);
    expect(await doEdit("f", old, "z")).toEqual({
      content: `old_string occurs ${say}: add surrounding lines to make it unique, or set replace_all.`,
      isError: true,
    });
    expect(textOf("f")).toBe(before);
  });

  test("replace_all tells how often", async () => {
    await known("f", lines(3));
    const { content } = await doEdit("f", "line", "row", true);
    expect(content).toBe(
      "Replaced 3 occurrences in f; the first is now at line 1:\n     1\trow 1\n     2\trow 2\n     3\trow 3",
    );
  });

  test.each<[string, string | Buffer | null, string, string, RegExp]>([
    ["the same", "a\n", "a", "a", /are the same: there is nothing to change/],
    ["line ends alone", "a\n", "a\n", "a\r\n", /are the same: there is nothing/],
    ["no file", null, "a", "b", /^f does not exist: there is no f in /],
    ["an empty old_string", "a\n", "", "b", /^old_string is empty, but f is not: give the text/],
    ["binary", Buffer.from("a\0b"), "a", "b", /^f is no text, but binary/],
    ["not in Latin-1", Buffer.from([0xe9, 0x61]), "a", "你", /has no 你 \(U\+4F60\): convert it/],
    ["half a character", "a\u{1f600}\n", "\ud83d", "b", /half a character \(U\+DE00/],
    ["half a character in", "a\n", "a", "\udc00", /half a character \(U\+DC00/],
  ])("refuses %s", async (_, before, old, now, why) => {
    if (before !== null) await known("f", before);
    const input = { file_path: "f", old_string: old, new_string: now };
    expect(await edit.preview?.(input, bench)).toBeNull();
    const { content, isError } = await doEdit("f", old, now);
    expect(isError).toBe(true);
    expect(content).toMatch(why);
    expect(existsSync(at("f")) ? bytesOf("f") : null).toEqual(
      before === null ? null : Buffer.from(before as string),
    );
  });

  test("an empty old_string makes a new file, and fills an empty one", async () => {
    expect((await doEdit("new", "", "a\n")).content).toBe("Created new (1 line).");
    put("empty", "");
    expect((await doEdit("empty", "", "a\n")).content).toBe("Overwrote empty (1 line).");
    expect([textOf("new"), textOf("empty")]).toEqual(["a\n", "a\n"]);
  });

  test("needs a Read, also after somebody else wrote", async () => {
    put("f", "a\n");
    expect((await doEdit("f", "a", "b")).content).toMatch(/^f has not been read yet/);
    await doRead("f", { limit: 1 });
    expect((await doEdit("f", "a", "b")).isError).toBeUndefined();
    expect((await doEdit("f", "b", "c")).isError).toBeUndefined();
    const { mtime } = statSync(at("f"));
    put("f", "d\n"); // The same size and time: the content alone tells.
    utimesSync(at("f"), mtime, mtime);
    expect((await doEdit("f", "d", "e")).content).toMatch(/^f has changed since it was read/);
    expect(textOf("f")).toBe("d\n");
  });

  test("a large file of several pieces can be changed", async () => {
    await known("f", "a\n".repeat(6_000_000));
    expect((await doEdit("f", "a\n".repeat(6_000_000), "b\n")).isError).toBeUndefined();
    expect(textOf("f")).toBe("b\n");
  });

  const encodings: [string, (text: string) => Buffer][] = [
    ["UTF-8", (text) => Buffer.from(text)],
    ["UTF-8 with BOM", (text) => Buffer.from(`\ufeff${text}`)],
    ["UTF-16LE", (text) => utf16(text, "le")],
    ["UTF-16BE", (text) => utf16(text, "be")],
    ["Latin-1", (text) => Buffer.from(text, "latin1")],
  ];
  const ends: [string, (text: string) => string][] = [
    ["LF", (text) => text],
    ["CRLF", (text) => text.replaceAll("\n", "\r\n")],
  ];
  const cells = encodings.flatMap(([encoding, toBytes]) =>
    ends.map(([end, toEnds]) => [encoding, end, (text: string) => toBytes(toEnds(text))] as const),
  );
  test.each(cells)("%s, %s: nothing changes outside the span", async (_, __, toBytes) => {
    const text = "// grün\nlet a = 1;\n\tlet b = 2;\nëÿ\n";
    await known("f", toBytes(text));
    expect(
      (await doEdit("f", "let a = 1;\n\tlet b", "let ä = 1;\n\n\tlet c")).isError,
    ).toBeUndefined();
    const after = text.replace("a = 1;\n", "ä = 1;\n\n").replace("b = 2", "c = 2");
    expect(bytesOf("f")).toEqual(Buffer.from(toBytes(after)));
  });
});

// ── What an edit that is not found says ─────────────────────────────────────────────────────────

const source = `import { a } from "./a.ts";

export function greet(name: string) {
\tconst text = "Hello, " + name;
\tif (text.length > 10) {
\t\tconsole.log(text);   
\t}
\treturn text.replace("\\n", "");
}

export function farewell(name: string) {
  const text = “Bye” + name;
  return text;
}
const café = naive(1, 2);
`;

describe("an edit that is not found", () => {
  test("shows the nearest lines and what differs", async () => {
    await known("s.ts", source);
    expect(await doEdit("s.ts", '\treturn text .replace("', "x")).toEqual({
      content: `old_string was not found in s.ts. The nearest text:
     5\t\tif (text.length > 10) {
     6\t\t\tconsole.log(text);   
     7\t\t}
     8\t\treturn text.replace("\\n", "");
     9\t}
    10\t
What differs: line 8: differs at column 13: \`text.replace("\\n", "\` in the file, \`text .replace("\` (a space) in old_string.`,
      isError: true,
    });
    expect(textOf("s.ts")).toBe(source);
  });

  test.each<[string, string, RegExp]>([
    [
      "tabs",
      '    const text = "Hello, " + name;\n    if',
      /line 4: differs at column 1: .*\(a tab\) in the file, .*\(a space\) in old_string; line 5:/,
    ],
    [
      "white space at the end",
      "\t\tconsole.log(text);\n\t}",
      /line 6: differs at column 21: .*\(a space\) in the file, nothing after `xt\);`/,
    ],
    [
      "too much of it",
      "greet(name: string) { \n\tconst",
      /line 3: differs at column 38: nothing after/,
    ],
    [
      "a space",
      "function greet (name: string) {\n\tconst text",
      /line 3: differs at column 22: `reet\(name.*, `reet \(name/,
    ],
    [
      "no-break space",
      "const café =\u00a0naive(1, 2);",
      /line 15: differs at column 13: .*\(a space\).*\(U\+00A0\)/,
    ],
    [
      "quotes",
      '  const text = "Bye" + name;',
      /line 12: differs at column 16: .*\(U\+201C\) in the file/,
    ],
    ["case", "export function Farewell(name: string) {", /line 11: differs at column 17/],
    [
      "Unicode form",
      "const cafe\u0301 = naive(1, 2);",
      /line 15: differs at column 10: .*\(U\+00E9\)/,
    ],
    [
      "a slip",
      "export function fairwell(nam: string) {",
      /line 11: differs at column 19: `n farewell.*, `n fairwell/,
    ],
    ["a slip in one word", "farewel(", /line 11: differs at column 24/],
    [
      "what begins before it",
      'nothing\nimport { a } from "./b.ts";',
      /line 1: differs at column 1/,
    ],
    ["past the end", "naive(1, 2);\n\n", /line 16: the file has ended before it/],
    [
      "line numbers",
      "    11\texport function farewell(name: string) {\n    12\t  const text",
      /holds the line numbers that Read prints/,
    ],
    ["line numbers and an arrow", "    13→  return text;", /holds the line numbers/],
    [
      "nothing like it",
      "SELECT * FROM users WHERE id = 1",
      /Nothing in it is like old_string: Read it again/,
    ],
    ["white space alone", " \n \n ", /Nothing in it is like old_string/],
  ])("for %s", async (_, old, why) => {
    await known("s.ts", source);
    const { content, isError } = await doEdit("s.ts", old, "x");
    expect(isError).toBe(true);
    expect(content).toStartWith("old_string was not found in s.ts. ");
    expect(content).toMatch(why);
  });

  test("a last line without its break", async () => {
    await known("f", "a line\nthe last line");
    expect((await doEdit("f", "the last line\n", "x\n")).content).toEndWith(
      "the file lacks the line break at the end.",
    );
  });

  test.each([
    ["one line", "const value_150123 = compute (150123)", /line 150124: differs/],
    [
      "many lines",
      Array.from({ length: 300 }, (_, i) => `const value_${i + 1000} = (${i});`).join("\n"),
      /line 1001: differs/,
    ],
    ["many matches", "ab ".repeat(2000), /occurs 1000 or more times/],
    ["one long line", "abx ab".repeat(1000), /differs at column|Nothing in it/],
  ])("in 10 MB it takes no time: %s", async (_, old, why) => {
    const line = (i: number) => `const value_${i} = compute(${i}, "some text");\n`;
    const text = old.startsWith("ab")
      ? "ab ".repeat(3_000_000)
      : Array.from({ length: 200_000 }, (__, i) => line(i)).join("");
    await known("f", text);
    const started = performance.now();
    expect((await doEdit("f", old, "x")).content).toMatch(why);
    expect(performance.now() - started).toBeLessThan(SOON_MS);
  });
});

describe("a patch", () => {
  const many = (count: number, line: (i: number) => string) =>
    Array.from({ length: count }, (_, i) => `${line(i)}\n`).join("");

  test("of far changes in a large file shows them alone", async () => {
    const old = many(60_000, (i) => `row ${i}`);
    const now = old.replace("row 5\n", "five\n").replace("row 59990\n", "far\n");
    expect(await patchOf("f", old, now)).toBe(
      `--- a/f\n+++ b/f\n@@ -3,7 +3,7 @@\n row 2\n row 3\n row 4\n-row 5\n+five\n row 6\n row 7\n row 8\n` +
        `@@ -59988,7 +59988,7 @@\n row 59987\n row 59988\n row 59989\n-row 59990\n+far\n row 59991\n row 59992\n row 59993\n`,
    );
  });

  test.each([
    ["all is new", many(40_000, (i) => `a ${i}`), many(40_000, (i) => `b ${i}`)],
    ["50 MB", many(3_000_000, (i) => `row ${i}`), many(3_000_000, (i) => `now ${i}`)],
    ["lines without end", "ab ".repeat(3_000_000), "ab ".repeat(3_000_001)],
  ])("is bounded in size and time: %s", async (_, old, now) => {
    const started = performance.now();
    const patch = (await patchOf("f", old, now)) ?? "";
    expect(performance.now() - started).toBeLessThan(SOON_MS);
    expect(patch.length).toBeLessThan(100_100);
    expect(patch).toMatch(/cut/i);
  });

  test("of a CRLF file has no CRs; one of changed line ends has", async () => {
    await known("f", "a\r\nb\r\n");
    expect((await doEdit("f", "b", "c")).patch).toEndWith("\n a\n-b\n+c\n");
    await known("f", "a\n");
    expect((await doWrite("f", "a\r\n")).patch).toEndWith("-a\n+a\r\n");
  });

  test("of nothing is none", async () => {
    await known("f", "a\n");
    expect(await write.preview?.({ file_path: "f", content: "a\n" }, bench)).toBeNull();
    expect((await doWrite("f", "a\n")).patch).toBeUndefined();
  });
});

// ── What holds for every file ───────────────────────────────────────────────────────────────────

/** A small generator with a seed, so that what fails fails again. */
function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const flat = (text: string) => text.replaceAll("\r\n", "\n");

/** `after` is `before` with one span like `old` replaced by one like `now`, but for line ends. */
function isReplaced(before: string, old: string, now: string, after: string): boolean {
  for (let from = 0; from <= before.length; from++)
    for (let to = from; to <= before.length; to++) {
      const [head, tail] = [before.slice(0, from), before.slice(to)];
      if (flat(before.slice(from, to)) !== flat(old)) continue;
      if (!after.startsWith(head) || !after.slice(from).endsWith(tail)) continue;
      if (flat(after.slice(from, after.length - tail.length)) === flat(now)) return true;
    }
  return false;
}

describe("for every file", () => {
  test("decoded and encoded, it is the same bytes", () => {
    const random = randomOf(1);
    const marks = [[], [0xef, 0xbb, 0xbf], [0xff, 0xfe], [0xfe, 0xff]];
    for (let round = 0; round < 5000; round++) {
      const tail = Array.from({ length: random(12) }, () => random(round % 3 === 0 ? 128 : 256));
      const bytes = Buffer.from([...(marks[random(4)] ?? []), ...tail]);
      const text = decode(bytes);
      if (!encode(text.text, text).equals(bytes)) throw new Error(bytes.toString("hex"));
    }
  });

  test("an edit changes its span, and the patch says what it changed", async () => {
    const random = randomOf(2);
    const tokens = ["a", "b", "\n", "\r\n", " ", "é", "€", "\u{1f600}", "$&"];
    const encodings: Encoding[] = ["utf-8", "utf-16le", "utf-16be"];
    const text = (length: number) =>
      Array.from({ length }, () => tokens[random(tokens.length)]).join("");
    let edits = 0;
    for (let round = 0; round < 600; round++) {
      const form = { encoding: encodings[random(3)] ?? "utf-8", bom: true, crlf: false };
      const before = text(1 + random(30));
      const from = random(before.length);
      const old = before.slice(from, from + 1 + random(8));
      const now = text(random(5));
      await known("f", encode(before, form));
      const { isError, patch = "" } = await doEdit("f", old, now);
      const after = decode(bytesOf("f"));
      const whole = after.crlf ? after.text.replaceAll("\n", "\r\n") : after.text;
      if (isError) expect(whole).toBe(before);
      if (isError) continue;
      edits++;
      expect([after.encoding, after.bom]).toEqual([form.encoding, form.bom]);
      expect(isReplaced(before, old, now, whole)).toBe(true);
      const applied = applyPatch(flat(before), flat(patch));
      expect(applied).toBe(flat(after.text));
    }
    expect(edits).toBeGreaterThan(150);
  });
});
