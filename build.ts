/**
 * Builds the executable: `bun build.ts [--target T] [--outfile FILE]`.
 *
 * The binary carries its own source (src, skills, tests, and the files of its packages that the
 * bundle uses), so that `claw fork` can write it out and `claw build` can build it again with no
 * other program and no network. It reads no .env, bunfig.toml, tsconfig.json or package.json where
 * it is started.
 */
import { mkdir } from "node:fs/promises";
import { extname, join, relative } from "node:path";
import { parseArgs } from "node:util";

const targets = [
  "linux-x64",
  "linux-x64-baseline",
  "linux-arm64",
  "linux-x64-musl",
  "linux-arm64-musl",
  "darwin-x64",
  "darwin-arm64",
  "windows-x64",
];

/** What belongs to the project; all else in the folder is not part of a fork. */
const parts = [
  "{src,skills,container,test,.ci}/**",
  "{build.ts,package.json,package-lock.json,bunfig.toml,tsconfig.json}",
  "{README.md,LICENSE,.gitignore}",
];

const root = import.meta.dir;
const entry = join(root, "src/main.ts");
const archive = join(root, "dist/source.tar.gz");

async function build(): Promise<void> {
  const { values } = parseArgs({
    options: { target: { type: "string" }, outfile: { type: "string" } },
  });
  const { target } = values;
  if (target !== undefined && !targets.includes(target)) {
    console.error(`There is no target "${target}". There are: ${targets.join(", ")}.`);
    process.exit(2);
  }
  const outfile = values.outfile ?? join(root, "dist", target ? `claw-${target}` : "claw");

  await mkdir(join(root, "dist"), { recursive: true });
  await Bun.write(archive, await (await packSource()).bytes());
  const result = await Bun.build({
    entrypoints: [entry],
    format: "esm",
    splitting: true,
    minify: true,
    bytecode: true,
    sourcemap: "none",
    compile: {
      outfile,
      assets: ["skills", "dist/source.tar.gz"],
      autoloadDotenv: false,
      autoloadBunfig: false,
      autoloadTsconfig: false,
      autoloadPackageJson: false,
      ...(target && { target: `bun-${target}` as Bun.Build.CompileTarget }),
    },
  });
  if (!result.success) throw new AggregateError(result.logs, "The bundle failed.");
  const path = result.outputs[0]?.path ?? outfile;
  console.log(`${relative(process.cwd(), path)}  ${(Bun.file(path).size / 1e6).toFixed(1)} MB`);
}

/** The project's files and those of its packages that the bundle reads, as a tar.gz. */
async function packSource(): Promise<Bun.Archive> {
  // Unshaken: what the bundler drops in the end it has to resolve all the same.
  const { metafile } = await Bun.build({
    entrypoints: [entry],
    target: "bun",
    metafile: true,
    treeShaking: false,
  });
  const used = Object.keys(metafile?.inputs ?? {})
    .map((path) => relative(root, join(process.cwd(), path)))
    .filter((path) => path.startsWith("node_modules"));
  const paths = new Set<string>();
  for (const [folder, files] of Map.groupBy(used, packageOf))
    for (const path of modulesOf(folder ?? "", files)) paths.add(path);
  for (const pattern of parts)
    for (const path of new Bun.Glob(pattern).scanSync({ cwd: root, dot: true })) paths.add(path);

  const files: Record<string, Uint8Array> = {};
  for (const path of [...paths].toSorted()) {
    const file = Bun.file(join(root, path));
    if (await file.exists()) files[path.replaceAll("\\", "/")] = await file.bytes();
  }
  return new Bun.Archive(files, { compress: "gzip" });
}

/** The folder of the package that a file belongs to. */
const packageOf = (path: string) => /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1];

/**
 * A package's modules in the form that the bundle uses (packages hold each module twice or more),
 * and its package.json files: the bundler reads more of them than it keeps.
 */
function modulesOf(folder: string, used: string[]): string[] {
  const endings = [...new Set(used.map((path) => extname(path).slice(1)))];
  const pattern = `**/{package.json,LICENSE*,*.{${endings.join(",")},}}`;
  const unused = used.some((path) => path.startsWith(`${folder}/src/`))
    ? "node_modules"
    : "src|node_modules";
  const left = new RegExp(`(^|/)(${unused})/|\\.d\\.[cm]?ts$`);
  return [...new Bun.Glob(pattern).scanSync({ cwd: join(root, folder), dot: true })]
    .filter((path) => !left.test(path))
    .map((path) => join(folder, path));
}

process.chdir(root); // assets are named from here
await build();
