/**
 * How fast Glob and Grep are, side by side with ripgrep, and with GNU grep and find where they can.
 *
 * Makes a tree of 50,000 files and 288 MB with nested ignore files (in BENCH_TREE if that is set, and
 * then kept), runs every contender in turn, ours in this process, and prints medians of RUNS runs
 * after one that does not count, and how many times as long as ripgrep each took.
 *
 *   bun test/bench/search.ts
 */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { glob, grep } from "../../src/tools/search.ts";
import type { Workbench } from "../../src/types.ts";

const FILES = 50_000;
const BYTES = 288e6;
const FOLDERS = 4_000;
const RUNS = Number(process.env["RUNS"] ?? 7);

// ── The tree ────────────────────────────────────────────────────────────────────────────────────

const WORDS =
  "const function return import export from class interface type string number boolean async await promise request response handler context value index buffer stream error message config option result session event model token parse render search folder ignore match".split(
    " ",
  );
const EXTENSIONS = ["ts", "ts", "ts", "js", "json", "md", "py", "go", "rs", "css"];
const MARKS = [" ", "(", ") ", ".", " = ", ", ", "_"];

/** Numbers in [0, 1), the same at every run. */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
    return (state >>> 8) / 0x800000;
  };
}

function makeTree(root: string): void {
  const random = seeded(7);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
  const line = () =>
    "  ".repeat(Math.floor(random() * 4)) +
    Array.from({ length: 3 + Math.floor(random() * 9) }, () => pick(WORDS) + pick(MARKS)).join("") +
    (random() < 0.2 ? `${Math.floor(random() * 1e6)};` : ";");
  const lines = Array.from({ length: 4_000 }, line);
  const folders = makeFolders(root, pick);
  for (let i = 0; i < FILES; i++) {
    // Most files are small, few are large; together they weigh BYTES.
    const size = (BYTES / FILES) * (0.2 + 4 * random() ** 4);
    const body: string[] = [];
    for (let length = 0; length < size; length += body.at(-1)?.length ?? 0) body.push(pick(lines));
    if (i === 31_234) body.push("const needle_xyzzy_9 = 1;");
    const kind = random();
    const name =
      kind < 0.04
        ? `x${i}.log`
        : kind < 0.06
          ? `gen_${i}.ts`
          : `${pick(WORDS)}${i}.${pick(EXTENSIONS)}`;
    writeFileSync(join(pick(folders), name), `${body.join("\n")}\n`);
  }
}

function makeFolders(root: string, pick: <T>(from: readonly T[]) => T): string[] {
  const folders = [root];
  for (let i = 0; folders.length < FOLDERS; i++) {
    const parent = pick(folders.slice(-400));
    folders.push(
      join(
        parent.split("/").length > root.split("/").length + 7 ? root : parent,
        `${pick(WORDS)}${i}`,
      ),
    );
  }
  for (const folder of folders) mkdirSync(folder, { recursive: true });
  mkdirSync(join(root, ".git"));
  writeFileSync(
    join(root, ".gitignore"),
    "node_modules/\ndist/\n*.log\n*.min.js\n/build\n.cache\n!keep.log\n",
  );
  folders
    .filter((_, i) => i % 40 === 1)
    .forEach((folder) =>
      writeFileSync(join(folder, ".gitignore"), "*.tmp\ngen_*\n/local/\n!important.tmp\n"),
    );
  return folders;
}

// ── The contenders ──────────────────────────────────────────────────────────────────────────────

type Case = [name: string, input: { pattern: string; [key: string]: unknown }, commands: string[]];

/** Commands are split at blanks. */
const CASES: Case[] = [
  [
    "rare literal",
    { pattern: "needle_xyzzy_9" },
    ["rg -l needle_xyzzy_9", "grep -rnl needle_xyzzy_9 ."],
  ],
  ["rare literal, -i", { pattern: "NEEDLE_xyzzy", "-i": true }, ["rg -li NEEDLE_xyzzy"]],
  ["-i, no rare character", { pattern: "needlexyz", "-i": true }, ["rg -li needlexyz"]],
  [
    "regex around a literal",
    { pattern: "\\w+\\sneedle_\\w+\\s*=" },
    ["rg -l \\w+\\sneedle_\\w+\\s*="],
  ],
  [
    "alternation",
    { pattern: "needle_x|haystack_y|straw_z" },
    ["rg -l needle_x|haystack_y|straw_z"],
  ],
  [
    "no literal, rare",
    { pattern: "[A-Z]\\w+\\s\\d{4}" },
    ["rg -l [A-Z]\\w+\\s\\d{4}", "grep -rnlE [A-Z]\\w+\\s[0-9]{4} ."],
  ],
  ["no literal, words", { pattern: "\\w+\\s+\\w+\\s+\\d{7}" }, ["rg -l \\w+\\s+\\w+\\s+\\d{7}"]],
  ["frequent, files", { pattern: "promise" }, ["rg -l promise"]],
  ["frequent, count", { pattern: "promise", output_mode: "count" }, ["rg -c promise"]],
  [
    "a line start",
    { pattern: "^import\\b.*zebra", output_mode: "content" },
    ["rg -n ^import\\b.*zebra"],
  ],
  ["a type", { pattern: "needle_xyzzy_9", type: "py" }, ["rg -l -tpy needle_xyzzy_9"]],
  ["names", { pattern: "**/*.ts" }, ["rg --files -g *.ts", "find . -name *.ts"]],
];

async function timeOurs(root: string, [name, input]: Case): Promise<number> {
  const workbench: Workbench = { roots: [root], stamps: new Map(), shells: new Map(), env: {} };
  const start = performance.now();
  await (name === "names" ? glob : grep).run(input, workbench, new AbortController().signal);
  return performance.now() - start;
}

function timeCommand(root: string, command: string): number {
  const start = performance.now();
  Bun.spawnSync(command.split(" "), { cwd: root, stdin: "ignore" });
  return performance.now() - start;
}

const medianOf = (values: number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;

async function compare(root: string, one: Case): Promise<string> {
  const [name, , commands] = one;
  const times = new Map<string, number[]>();
  for (let run = 0; run <= RUNS; run++) {
    const note = (who: string, ms: number) =>
      run > 0 && times.set(who, [...(times.get(who) ?? []), ms]);
    note("claw", await timeOurs(root, one));
    for (const command of commands) note(command.split(" ")[0] ?? "", timeCommand(root, command));
  }
  const rg = medianOf(times.get("rg") ?? []);
  const cells = [...times].map(
    ([who, all]) => `${who} ${medianOf(all).toFixed(0)} (×${(medianOf(all) / rg).toFixed(2)})`,
  );
  return `${name.padEnd(24)} ${cells.join("  ")}`;
}

const kept = process.env["BENCH_TREE"];
const tree = kept ?? mkdtempSync(join(tmpdir(), "claw-search-"));
try {
  if (!Bun.which("rg")) Bun.spawnSync(["apt-get", "install", "-y", "-qq", "ripgrep"]);
  if (!existsSync(join(tree, ".gitignore"))) makeTree(tree);
  for (const one of CASES) console.log(await compare(tree, one));
} finally {
  if (!kept) rmSync(tree, { recursive: true });
}
