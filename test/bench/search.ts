/**
 * How fast Glob and Grep are, side by side with ripgrep, GNU grep and find.
 *
 * Makes a tree of 50,000 files and 288 MB with nested ignore files (in BENCH_TREE if that is set, and
 * then kept), runs every contender in turn, and prints medians of RUNS runs with the page cache warm,
 * and how many times as long as ripgrep each took. A contender of ours is measured twice: `warm` is a
 * call in this process, `cold` the first call of a new one, without the start of the process.
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

type Case = {
  name: string;
  input: { pattern: string } & Record<string, unknown>;
  rg: string[];
  others?: string[][];
};

const CASES: Case[] = [
  {
    name: "rare literal",
    input: { pattern: "needle_xyzzy_9" },
    rg: ["-l", "needle_xyzzy_9"],
    others: [["grep", "-rnl", "needle_xyzzy_9", "."]],
  },
  {
    name: "rare literal, -i",
    input: { pattern: "NEEDLE_xyzzy", "-i": true },
    rg: ["-li", "NEEDLE_xyzzy"],
  },
  {
    name: "-i, no rare character",
    input: { pattern: "needlexyz", "-i": true },
    rg: ["-li", "needlexyz"],
  },
  {
    name: "regex around a literal",
    input: { pattern: "\\w+ needle_\\w+\\s*=" },
    rg: ["-l", "\\w+ needle_\\w+\\s*="],
  },
  {
    name: "alternation",
    input: { pattern: "needle_x|haystack_y|straw_z" },
    rg: ["-l", "needle_x|haystack_y|straw_z"],
  },
  {
    name: "no literal, rare",
    input: { pattern: "[A-Z]\\w+\\s\\d{4}" },
    rg: ["-l", "[A-Z]\\w+\\s\\d{4}"],
    others: [["grep", "-rnlE", "[A-Z]\\w+\\s[0-9]{4}", "."]],
  },
  {
    name: "no literal, words",
    input: { pattern: "\\w+\\s+\\w+\\s+\\d{7}" },
    rg: ["-l", "\\w+\\s+\\w+\\s+\\d{7}"],
  },
  { name: "frequent, files", input: { pattern: "promise" }, rg: ["-l", "promise"] },
  {
    name: "frequent, count",
    input: { pattern: "promise", output_mode: "count" },
    rg: ["-c", "promise"],
  },
  {
    name: "a line start",
    input: { pattern: "^import\\b.*zebra", output_mode: "content" },
    rg: ["-n", "^import\\b.*zebra"],
  },
  {
    name: "a type",
    input: { pattern: "needle_xyzzy_9", type: "py" },
    rg: ["-l", "-tpy", "needle_xyzzy_9"],
  },
  {
    name: "names",
    input: { pattern: "**/*.ts" },
    rg: ["--files", "-g", "*.ts"],
    others: [["find", ".", "-name", "*.ts"]],
  },
];

const toolOf = ({ rg }: Case) => (rg[0] === "--files" ? glob : grep);

async function timeOurs(root: string, one: Case): Promise<number> {
  const workbench: Workbench = { roots: [root], stamps: new Map(), shells: new Map(), env: {} };
  const start = performance.now();
  await toolOf(one).run(one.input, workbench, new AbortController().signal);
  return performance.now() - start;
}

function timeCold(root: string, name: string): number {
  const child = Bun.spawnSync([process.execPath, import.meta.path, "--once", root, name]);
  return Number(child.stdout.toString());
}

function timeCommand(root: string, command: string[]): number {
  const start = performance.now();
  Bun.spawnSync(command, { cwd: root, stdin: "ignore" });
  return performance.now() - start;
}

const medianOf = (values: number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;

async function compare(root: string, one: Case): Promise<string> {
  const commands = [["rg", ...one.rg], ...(one.others ?? [])];
  const times: Record<string, number[]> = { warm: [], cold: [] };
  for (let run = 0; run <= RUNS; run++) {
    const round: Record<string, number> = {
      warm: await timeOurs(root, one),
      cold: timeCold(root, one.name),
    };
    for (const command of commands) round[command[0] ?? ""] = timeCommand(root, command);
    if (run > 0) for (const [who, ms] of Object.entries(round)) (times[who] ??= []).push(ms);
  }
  const rg = medianOf(times["rg"] ?? []);
  const cells = Object.entries(times).map(
    ([who, all]) => `${who} ${medianOf(all).toFixed(0)} (×${(medianOf(all) / rg).toFixed(2)})`,
  );
  return `${one.name.padEnd(24)} ${cells.join("  ")}`;
}

function installRipgrep(): void {
  if (Bun.which("rg")) return;
  Bun.spawnSync(["apt-get", "install", "-y", "-qq", "ripgrep"]);
  if (!Bun.which("rg")) throw new Error("ripgrep is not here and cannot be installed with apt-get");
}

async function main(): Promise<void> {
  const kept = process.env["BENCH_TREE"];
  const root = kept ?? mkdtempSync(join(tmpdir(), "claw-search-"));
  try {
    installRipgrep();
    if (!existsSync(join(root, ".gitignore"))) makeTree(root);
    for (const one of CASES) console.log(await compare(root, one));
  } finally {
    if (!kept) rmSync(root, { recursive: true });
  }
}

const [flag, root = "", name] = process.argv.slice(2);
const once = CASES.find((one) => one.name === name);
if (flag === "--once" && once) console.log(await timeOurs(root, once));
else await main();
