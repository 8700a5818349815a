/**
 * `claw fork` writes the source that this binary was built from; `claw build` builds a binary from
 * such a folder. Both need this binary and nothing else: under BUN_BE_BUN=1 it is the whole Bun CLI.
 */
import { mkdir, readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { UsageError } from "../errors.ts";

export async function runFork(argv: string[]): Promise<number> {
  const [dir, ...rest] = argv;
  if (dir === undefined || dir.startsWith("-") || rest.length > 0)
    throw new UsageError("claw fork needs one folder to write to: claw fork DIR.");
  if (!Bun.isStandaloneExecutable)
    throw new UsageError("claw fork is for the built binary; this one runs from its source.");
  const folder = resolve(dir);
  const present = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw new UsageError(`claw fork cannot write to ${folder}: ${error.message}.`);
  });
  if (present.length > 0)
    throw new UsageError(`${folder} is not empty. claw fork writes to a new or an empty folder.`);

  await mkdir(folder, { recursive: true });
  const source = await Bun.file(join(import.meta.dir, "source.tar.gz")).bytes();
  const count = await new Bun.Archive(source).extract(folder);
  console.log(`${folder}: ${count} files. Edit src/config.ts, then: claw build ${dir}`);
  return 0;
}

export async function runBuild(argv: string[]): Promise<number> {
  const named = argv[0] !== undefined && !argv[0].startsWith("-");
  const folder = resolve(named ? (argv[0] ?? ".") : ".");
  const flags = named ? argv.slice(1) : argv;
  if (!(await Bun.file(join(folder, "build.ts")).exists()))
    throw new UsageError(
      `${folder} holds no build.ts. \`claw fork DIR\` writes a folder that does.`,
    );
  const { BUN_OPTIONS: _, ...env } = process.env;
  const child = Bun.spawn([process.execPath, join(folder, "build.ts"), ...flags], {
    cwd: folder,
    env: { ...env, BUN_BE_BUN: "1" },
    stdio: ["ignore", "inherit", "inherit"],
  });
  return (await child.exited) === 0 ? 0 : 1;
}
