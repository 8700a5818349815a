/** The house stands: arrows run one way, files keep to their size, packages to the list. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";

const src = join(import.meta.dir, "../src");
const files = [...new Bun.Glob("**/*.ts").scanSync({ cwd: src })].toSorted();
const read = (file: string) => readFileSync(join(src, file), "utf8");

/** A room may import from itself, from those below it, and from the ground. */
const rooms = [
  "main",
  "commands",
  "chat",
  "serve",
  "channels",
  "agent",
  "models",
  "hands",
  "tools",
  "ground",
];
const mayImport: Record<string, string[]> = {
  main: ["commands", "chat", "serve", "hands", "ground"],
  commands: ["chat", "serve", "agent", "models", "hands", "ground"],
  chat: ["agent", "models", "hands", "tools", "ground"],
  serve: ["channels", "agent", "models", "hands", "tools", "ground"],
  channels: ["ground"],
  agent: ["models", "hands", "tools", "ground"],
  models: ["ground"],
  hands: ["tools", "ground"],
  tools: ["ground"],
  ground: [],
};
const ground = ["types.ts", "errors.ts", "config.ts", "args.ts", "escape.ts", "inside.ts"];
const packages = [
  "@anthropic-ai/sdk",
  "@clack/prompts",
  "@modelcontextprotocol/client",
  "@slack/web-api",
  "cron-parser",
  "diff",
  "ignore",
  "imapflow",
  "nodemailer",
  "openai",
  "picocolors",
  "postal-mime",
  "re2js",
  "unbash",
  "zod",
];

function roomOf(file: string): string {
  if (ground.includes(file) || file.startsWith("store/")) return "ground";
  return file === "main.ts" ? "main" : (file.split("/")[0] ?? "");
}

/** Every module that a file imports, statically, lazily, or as a type. */
const importsOf = (file: string): string[] =>
  [...read(file).matchAll(/(?:\bfrom\s+|\bimport\(\s*|^import\s+)"([^"]+)"/gm)].map(
    ([, name]) => name ?? "",
  );

const edges = files.flatMap((file) =>
  importsOf(file)
    .filter((name) => name.startsWith(".") && name.endsWith(".ts"))
    .map((name) => ({ file, target: normalize(join(dirname(file), name)) })),
);

test("every file is in a room", () => {
  expect(files.filter((file) => !rooms.includes(roomOf(file)))).toEqual([]);
  expect(edges.length).toBeGreaterThan(files.length);
});

test("arrows run one way", () => {
  const wrong = edges.filter(({ file, target }) => {
    const [from, to] = [roomOf(file), roomOf(target)];
    return from !== to && !mayImport[from]?.includes(to);
  });
  expect(wrong).toEqual([]);
});

test("no circles", () => {
  const targets = Map.groupBy(edges, ({ file }) => file);
  const circles: string[] = [];
  const visit = (file: string, path: string[]): void => {
    if (path.includes(file)) circles.push([...path, file].join(" → "));
    else for (const { target } of targets.get(file) ?? []) visit(target, [...path, file]);
  };
  for (const file of files) visit(file, []);
  expect(circles.slice(0, 3)).toEqual([]);
});

test("no file is longer than 400 lines, and each says what it owns", () => {
  const long = files.filter((file) => read(file).split("\n").length > 401);
  const silent = files.filter((file) => !read(file).startsWith("/**"));
  expect({ long, silent }).toEqual({ long: [], silent: [] });
});

test("only the listed packages, each pinned", () => {
  const manifest: { dependencies: Record<string, string> } = JSON.parse(
    readFileSync(join(src, "../package.json"), "utf8"),
  );
  expect(Object.keys(manifest.dependencies)).toEqual(packages);
  expect(Object.values(manifest.dependencies).filter((version) => !/^\d/.test(version))).toEqual(
    [],
  );
  const used = files.flatMap(importsOf).filter((name) => /^[@a-z]/.test(name));
  const foreign = used.filter(
    (name) =>
      !/^(node|bun):|^bun$/.test(name) &&
      !packages.some((listed) => name === listed || name.startsWith(`${listed}/`)),
  );
  expect(foreign).toEqual([]);
});

test("no type is forced and no error is swallowed without a word", () => {
  const forced = /: any\b|<any>|as any\b|as unknown as|@ts-(ignore|expect-error|nocheck)/;
  const swallowed = /catch\s*(\([a-z_]*\))?\s*\{\s*\}/;
  const wrong = files.filter((file) => forced.test(read(file)) || swallowed.test(read(file)));
  expect(wrong).toEqual([]);
});
